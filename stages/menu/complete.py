"""The complete events of streams with `content = "source"`: copied from the source files when a run has ended.

They do not travel with the events; what the stages look at is a part of each. So a file of them is made anew at the end
of each part of a run that goes on, of all that was accepted.
"""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from stages.config import Config
from stages.menu.output import FOLDER, SOURCE
from stages.skim import NothingAcceptedError, of_streams, skim
from streamer.errors import StreamerError

log = logging.getLogger(__name__)


def copy_complete(config: Config, inputs: Sequence[Path | str] = ()) -> list[str]:
    """Copy what the streams of a run's menu want, and print what was made; returns what went wrong, one line each.

    Parameters
    ----------
    inputs : sequence of Path or str
        The source files; none: where they were. What is stored of them lacks passwords.
    """
    folder, problems = config.writer.dir, []
    for name, stream in config.menu.streams.items():
        if not stream.keeps_source:
            continue
        path = folder / FOLDER / f"{name}{SOURCE}.root"
        for old in path.parent.glob(f"{name}{SOURCE}*.*"):
            old.unlink(missing_ok=True)
        try:
            made = skim(folder, of_streams([name]), path, inputs, stream.without)
        except NothingAcceptedError:
            print(f"stream {name}: nothing was accepted")
            continue
        except (StreamerError, OSError) as error:
            again = f"streamer skim {shlex.quote(str(folder))} --stream {name} -o {shlex.quote(str(path))}"
            problems.append(f"{path}: is not made: {error}; what was accepted is told in the scores, then: {again}")
            continue
        for file, n in made:
            print(f"{n:,} complete events in {file}")
    return problems
