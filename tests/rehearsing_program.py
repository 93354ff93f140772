"""A program whose stage `cook` rehearses as the setting `how` says: well, badly, or not at all.

`python -m rehearsing_program` is to it what `python -m streamer` is to the pipeline that is installed. Stages that are
called as one of `ANSWERS` say that instead of an answer.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

from streamer import cli
from streamer.background import AUTOGROUP
from streamer.config import CoreConfig
from streamer.errors import UsageError
from streamer.pipeline import Pipeline, StageSpec

ANSWERS = {"rubbish": "what?\n", "list": '{"found": [1]}\n', "half": '{"found": {', "flood": "x" * (4 << 20)}


class ToyConfig(CoreConfig):
    how: str = "well"


def rehearse(now: ToyConfig, wanted: ToyConfig) -> Any:
    print("a library has something to say", flush=True)
    os.write(1, b"and so has C\n")
    match wanted.how:
        case "crashes":
            ctypes.string_at(0)
        case "exits":
            os._exit(3)
        case "leaves":
            os._exit(0)
        case "hangs":
            while True:
                signal.pause()
        case "refuses":
            raise UsageError("one line\nand another")
        case "raises":
            raise ValueError("not foreseen")
        case "odd":
            return {"data": {1, 2}}
    victim = Path("/proc/self/oom_score_adj").read_text()
    nice = [os.getpriority(os.PRIO_PROCESS, 0)]
    if AUTOGROUP.exists():
        nice.append(int(AUTOGROUP.read_text().split()[-1]))
    return {"was": now.how, "is": wanted.how, "nice": nice, "victim": int(victim)}


PIPELINE = Pipeline(
    name="kitchen",
    config=ToyConfig,
    chain=(StageSpec("cook", "streamer.testing:ToyStage", rehearse="rehearsing_program:rehearse"),),
    add_commands="",
    checks="",
    program="rehearsing_program",
)

if __name__ == "__main__":
    if sys.argv[1] == "rehearse" and sys.argv[2] in ANSWERS:
        sys.stdout.write(ANSWERS[sys.argv[2]])
        sys.exit(0)
    cli.installed_pipeline = lambda: PIPELINE
    cli.app(standalone_mode=False)
