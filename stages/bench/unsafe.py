"""The chain without its safety, for `streamer bench safety`: the reader keeps no book, the writer no results.

`python -m stages.bench.unsafe stage NAME ...` is one of its processes.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from stages import CHAIN, PIPELINE, records
from stages.config import Config
from streamer.block import Block
from streamer.pipeline import Pipeline, StageSpec
from streamer.runner import Run, run_stage
from streamer.stage import Sink


class UnsafeConfig(Config):
    """The same settings, and no place for books."""

    @property
    def books(self) -> None:  # type: ignore[override]
        return None


class Forgetful(Sink):
    """Takes each block, forgets it, and commits it at once."""

    commit_events = 1

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inputs = records.scores(config)
        self.commit_interval = config.writer.commit_interval

    def write(self, block: Block) -> None:
        pass

    async def sync(self) -> None:
        pass

    async def finish(self) -> None:
        pass

    async def abandon(self) -> None:
        pass


UNSAFE = replace(
    PIPELINE,
    config=UnsafeConfig,
    chain=(*CHAIN[:-1], StageSpec(CHAIN[-1].name, "stages.bench.unsafe:Forgetful")),
    program="stages.bench.unsafe",
    finish="",
)


def main(pipeline: Pipeline) -> int:
    """One process of a pipeline that is only there to be measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["stage"])
    parser.add_argument("name", choices=pipeline.names)
    parser.add_argument("--replica", type=int, default=0)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--supervised", action="store_true")
    parser.add_argument("--predecessor", default="died")
    parser.add_argument("--slot", type=int)
    given = parser.parse_args()
    config, run = pipeline.load_config(given.config), Run.open(given.run_dir)
    told = {name: getattr(given, name) for name in ("supervised", "predecessor", "slot")}
    return run_stage(pipeline, given.name, given.replica, config, run, **told)


if __name__ == "__main__":
    sys.exit(main(UNSAFE))
