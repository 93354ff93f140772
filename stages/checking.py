"""What `streamer check` looks at beyond keys and values: inputs, models, geometry, output folder."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from stages.config import Config
from streamer.errors import UsageError
from streamer.tracing import require


def problems(config: Config) -> list[str]:
    """One line per problem; all of them."""
    from stages.framer import Framer
    from stages.quality import measured
    from stages.reader import Reader
    from stages.tagger import Tagger
    from streamer.reference import fitting

    found: list[str] = []

    def attempt(check: Callable[[], object]) -> None:
        try:
            check()
        except UsageError as error:
            found.extend(str(error).splitlines())

    if config.input.files:
        attempt(Reader(config).setup)
    attempt(Framer(config).setup)
    attempt(Tagger(config).setup)
    attempt(lambda: _output(config.writer.dir))
    if (reference := config.quality.reference) is not None:
        going_on = config.model_copy(update={"writer": config.writer.model_copy(update={"overwrite": False})})
        attempt(lambda: fitting(reference, measured(going_on)))
    attempt(lambda: require(config))
    return found


def _output(folder: Path) -> None:
    """Whether there can be such a folder; if there is none, there is none afterwards."""
    from stages.writer import prepare_folder

    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        prepare_folder(folder)
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # it was not made, or is somebody's meanwhile
                path.rmdir()
