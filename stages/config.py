"""Every setting of the chain. Kept apart from the stages, so that reading it imports no heavy library."""

from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from streamer.config import CoreConfig, PositiveSeconds, Seconds, Section
from streamer.errors import nearest

CHANNELS = ("ECAL",)
"""The detector channels that can be framed; their order here is their number on the way."""

OBJECTS = ("Photon",)


def packaged(name: str) -> str:
    """The path of a file that comes with the package."""
    return str(files("stages").joinpath(name))


class InputConfig(Section):
    """What is read."""

    files: tuple[str, ...] = ()
    """Event files, globs and folders."""
    tree: str = "Events"
    """The tree or RNTuple that holds the events."""
    columns: dict[str, str] = Field({})
    """Our column names to the names in the files, such as `EBRecHit_energy = "ecalBarrel_E"`."""
    step_events: int = Field(1000, ge=1, le=1_000_000)
    """Events read from a file at a time."""


class FramerConfig(Section):
    """From hits to the detector frame."""

    ee_geometry: Path | None = None
    """A geometry file (`[detid, corners]`, .json.gz) that overrides the built-in endcap geometry."""


class TaggerSpec(Section):
    """One tagger: which objects it looks at, what it sees of them, and its network."""

    objects: Literal["Photon"] = "Photon"
    """The collection whose members are cropped and scored."""
    model: Path = Path(packaged("models/eg.onnx"))
    """ONNX file; its input is (batch, channels, rows, columns) float32."""
    channels: tuple[str, ...] = ("ECAL",)
    """The channels in the order that the model wants."""
    crop: int = Field(32, ge=2, le=256, multiple_of=2)
    """Side of the square crop [pixels]; the seed is at index crop / 2 - 1."""
    pt_min: float = Field(10.0, ge=0)
    """Objects with pt above this [GeV] are scored."""
    eta_max: float = Field(1.44, gt=0, le=3.0)
    """Objects with |eta| below this are scored."""
    score: str = Field("egScore", pattern="^[A-Za-z][A-Za-z0-9]*$")
    """Name of the output column behind `<objects>_`."""

    @field_validator("channels")
    @classmethod
    def _known_channels(cls, channels: tuple[str, ...]) -> tuple[str, ...]:
        if not channels:
            raise ValueError("a tagger needs at least one channel")
        for channel in channels:
            if channel not in CHANNELS:
                raise ValueError(f"no channel '{channel}'{nearest(channel, CHANNELS)}; there are {', '.join(CHANNELS)}")
        return channels


class TaggerConfig(Section):
    """How networks are run."""

    provider: Literal["auto", "cuda", "tensorrt", "cpu"] = "auto"
    """ONNX Runtime provider; `auto` takes the best that truly loads, a provider asked for by name must."""
    threads: int = Field(0, ge=0, le=256)
    """Threads of one inference on the CPU; 0 = one for each two cores, at least one."""
    max_batch: int = Field(64, ge=1, le=65536)
    """Crops in a batch at most."""
    max_wait: Seconds = 0.002
    """A batch is closed when its oldest crop has waited so long."""


class WriterConfig(Section):
    """Where the scores go."""

    dir: Path = Path("streamer-out")
    """Folder for scores.root; it is made if need be."""
    format: Literal["ttree", "rntuple"] = "ttree"
    """What scores.root holds."""
    overwrite: bool = False
    """Replace the scores.root of an earlier run."""
    commit_interval: PositiveSeconds = 0.05
    """Results are brought to disk (fsync) at least so often."""
    commit_events: int = Field(2048, ge=1)
    """... and whenever so many events are waiting for it."""


class Config(CoreConfig):
    """The whole pipeline."""

    input: InputConfig = InputConfig()
    framer: FramerConfig = FramerConfig()
    taggers: dict[str, TaggerSpec] = Field({"eg": TaggerSpec()})
    tagger: TaggerConfig = TaggerConfig()
    writer: WriterConfig = WriterConfig()

    @model_validator(mode="after")
    def _taggers_fit(self) -> "Config":
        if len(self.taggers) != 1:
            raise ValueError(f"'taggers': exactly one tagger can be configured, here are {len(self.taggers)}")
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that any tagger sees, in frame order."""
        wanted = {channel for spec in self.taggers.values() for channel in spec.channels}
        return tuple(channel for channel in CHANNELS if channel in wanted)
