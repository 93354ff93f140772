"""The complete events of streams with `content = "source"`: copied from the source files when a run has ended.

They do not travel with the events; what the stages look at is a part of each. So a file of them is made anew at the end
of each part of a run that goes on, of all that was accepted. What is there stays until then.
"""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from stages.config import Config
from stages.menu.output import FOLDER, SOURCE
from stages.skim import MovedError, NothingAcceptedError, of_streams, skim
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
        before = {*path.parent.glob(f"{name}{SOURCE}*.*")}
        made: list[tuple[Path, int]] = []
        again = f"streamer skim {shlex.quote(str(folder))} --stream {name} -o {shlex.quote(str(path))}"
        what = f"{path}: is not made" + (" anew, and what is there is older" if before else "")
        try:
            made = skim(folder, of_streams([name]), path, inputs, stream.without)
        except NothingAcceptedError:
            print(f"stream {name}: nothing was accepted")
        except MovedError as error:
            log.warning("%s: %s; then: %s", what, error, again)
            continue
        except (StreamerError, OSError) as error:
            problems.append(f"{what}: {error}; what was accepted is told in the scores, then: {again}")
            continue
        for old in before - {file for file, _ in made}:
            old.unlink(missing_ok=True)
        for file, n in made:
            print(f"{n:,} complete events in {file}")
    return problems
