"""With which settings a run began, as its manifest tells them, perhaps written by an older version of streamer.

What that one did not say yet means what it means by default; what this one does not know any more is told in one line.
"""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from stages.config import Config, FramerConfig, InputConfig, Taggers, TaggerSpec
from stages.manifest import Manifest
from streamer.config import Section, problems
from streamer.errors import UsageError


class OfResults(Section):
    """The settings that results depend on; a run goes on only with the same."""

    taggers: Taggers = Field({"eg": TaggerSpec()})
    framer: FramerConfig = FramerConfig()
    input: InputConfig = InputConfig()

    def without_places(self) -> "OfResults":
        """The same, wherever the networks lie: a network is what it holds."""
        taggers = {name: spec.model_copy(update={"model": Path()}) for name, spec in self.taggers.items()}
        return self.model_copy(update={"taggers": taggers})


def of_results(config: dict[str, Any]) -> OfResults:
    """Those settings of a run, as plain data, that results depend on.

    Raises
    ------
    UsageError
        This version does not know them.
    """
    try:
        return OfResults.model_validate({key: config[key] for key in OfResults.model_fields if key in config})
    except ValidationError as error:
        why = "; ".join(problems(error, OfResults))
        raise UsageError(f"the run there is not of this version of streamer ({why})") from None


def began_with(manifest: Manifest) -> Config:
    """All settings with which the run of a manifest began.

    Raises
    ------
    UsageError
        This version does not know them.
    """
    told = f"{manifest.path}: not a manifest of this version of streamer"
    try:
        return Config.model_validate(manifest.about["config"])
    except KeyError:
        raise UsageError(told) from None
    except ValidationError as error:
        raise UsageError(f"{told} ({'; '.join(problems(error, Config))})") from None
