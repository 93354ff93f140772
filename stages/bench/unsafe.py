"""The chain without its safety, for `streamer bench safety`: the reader keeps no book, the writer no results.

`python -m stages.bench.unsafe stage NAME ...` is one of its processes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stages import CHAIN, PIPELINE, records
from stages.config import Config
from streamer.block import Block
from streamer.cli import leave
from streamer.forkserver import serve
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


def main(pipeline: Pipeline, arguments: Sequence[str] | None = None) -> int:
    """One process of a pipeline that is only there to be measured, or what such processes are copies of."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    stage = commands.add_parser("stage")
    stage.add_argument("name", choices=pipeline.names)
    stage.add_argument("--replica", type=int, default=0)
    stage.add_argument("--config", type=Path, required=True)
    stage.add_argument("--run-dir", type=Path, required=True)
    stage.add_argument("--predecessor", default="died")
    stage.add_argument("--slot", type=int)
    server = commands.add_parser("forkserver")
    server.add_argument("fd", type=int)
    server.add_argument("modules", nargs="*")
    for command in (stage, server):
        command.add_argument("--supervised", action="store_true")
    given = parser.parse_args(arguments)
    if given.command == "forkserver":
        serve(given.fd, given.modules, lambda asked: leave(main(pipeline, asked)))
        return 0
    config, run = pipeline.load_config(given.config), Run.open(given.run_dir)
    told = {name: getattr(given, name) for name in ("supervised", "predecessor", "slot")}
    return run_stage(pipeline, given.name, given.replica, config, run, **told)


if __name__ == "__main__":
    sys.exit(main(UNSAFE))
