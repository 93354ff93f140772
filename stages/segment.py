"""Finishing a long segment beside the stream: in a process of its own, of low priority.

In the writer's own process the work, which is Python's, would take turns with its loop. The process is told on standard
input what to do, and answers with a JSON object: the segment (`stages.manifest.Segment`), or what went wrong.
"""

import asyncio
import json
import sys
from array import array
from asyncio.subprocess import PIPE
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from streamer.background import give_way_as_session
from streamer.errors import StreamerError
from streamer.orphan import die_with_parent

if TYPE_CHECKING:
    from stages.manifest import Segment
    from stages.results import Results
    from streamer.journal import Journal

LEAST_EVENTS = 100_000
"""A shorter segment is finished sooner than a process has started."""
NICE = 10
"""Lower, and on a machine that is full it would not be done before the next one is."""
MOST_TOLD = 1 << 26


async def made_beside(results: "Results", closing: "Journal", segment: int) -> "Segment":
    """Let another process make the files of a journal, which is on disk.

    Raises
    ------
    OSError
        The disk does not take them.
    StreamerError
        They cannot be made, as where the journal cannot be read back.
    RuntimeError
        The process could not do it.
    """
    from stages.manifest import Segment

    assert results.manifest is not None
    task = {
        "config": results.config.model_dump(mode="json"),
        "replica": results.replica,
        "n_replicas": results.stripes.n,
        "networks": results.networks,
        "went_on": results.manifest.went_on,
        "segment": segment,
        "journal": str(closing.path),
        "n_blocks": len(closing.ids),
    }
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, stdin=PIPE, stdout=PIPE, limit=MOST_TOLD, start_new_session=True
        )
    except OSError as error:  # which is no disk's
        raise RuntimeError(f"no process could be started for {closing.path} ({error.strerror})") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n" + closing.ids.tobytes() + closing.places.tobytes())
        line = await process.stdout.readline()
        told = json.loads(line)
        if "errno" in told:
            raise OSError(told["errno"], told["strerror"], told["filename"])
        if "problem" in told:
            raise StreamerError(told["problem"])
        return Segment(**told)
    except (ValueError, TypeError, ConnectionError) as error:
        raise RuntimeError(f"process {process.pid} has made no files of {closing.path}") from error
    finally:
        process.stdin.close()  # it is held until here: its end tells of our death
        if process.returncode is None:
            process.kill()
        await process.wait()


def make(task: dict[str, Any], blocks: IO[bytes]) -> dict[str, Any]:
    """Do what is asked for; returns the answer."""
    from stages.config import Config
    from stages.results import Results
    from streamer.journal import Written

    ids, places = array("q"), array("q")
    for numbers in (ids, places):
        numbers.frombytes(blocks.read(numbers.itemsize * task["n_blocks"]))
    results = Results(Config.model_validate(task["config"]), task["replica"], task["n_replicas"])
    results.networks = task["networks"]
    written = Written(Path(task["journal"]), ids, places, results.schema)
    try:
        return asdict(results.make(written, task["segment"], task["went_on"]))
    except OSError as error:
        return {"errno": error.errno, "strerror": error.strerror or str(error), "filename": error.filename}
    except StreamerError as error:
        return {"problem": str(error)}


if __name__ == "__main__":
    die_with_parent()
    give_way_as_session(NICE)
    print(json.dumps(make(json.loads(sys.stdin.buffer.readline()), sys.stdin.buffer)), flush=True)
