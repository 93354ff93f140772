"""Every setting of the chain. Kept apart from the stages, so that reading it imports no heavy library."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from stages.inputs import expand
from stages.machine import n_cores, n_gpus
from stages.menu.config import SEVERAL, MenuConfig
from streamer.config import MAX_REPLICAS, CoreConfig, PositiveSeconds, Seconds, Section
from streamer.errors import nearest

CHANNELS = (
    *("TrackPt", "TrackD0", "TrackDz"),
    *("BPIX1", "BPIX2", "BPIX3", "BPIX4"),
    *("ECAL", "HCAL"),
    *("TIB", "TOB", "TID", "TEC"),
)
"""The detector channels that can be framed; a frame holds those that are needed, in this order."""

UNITS = dict.fromkeys(CHANNELS, "hits") | {
    **{"TrackPt": "GeV", "TrackD0": "cm", "TrackDz": "cm"},
    **{"ECAL": "GeV", "HCAL": "GeV"},
}
"""What a pixel of a channel holds the sum of."""

SEED_CHANNEL = {"Photon": "ECAL", "Jet": "HCAL", "FatJet": "HCAL"}
"""The channel in which an object's seed is looked for."""

_JET_CHANNELS = ("TrackPt", "TrackD0", "TrackDz", "ECAL", "HCAL")
_FAT_JET_CHANNELS = ("TrackPt", "TrackD0", "TrackDz", "BPIX1", "BPIX2", "BPIX3", "ECAL", "HCAL")

OBJECT_DEFAULTS: dict[str, dict[str, Any]] = {
    "Photon": {"channels": ("ECAL",), "crop": 32, "pt_min": 10.0, "eta_max": 1.44},
    "Jet": {"channels": _JET_CHANNELS, "crop": 128, "pt_min": 35.0, "eta_max": 2.4},
    "FatJet": {"channels": _FAT_JET_CHANNELS, "crop": 128, "pt_min": 35.0, "eta_max": 2.4},
    "Event": {"channels": ("TrackPt", "ECAL", "HCAL"), "crop": 0, "pt_min": 0.0, "eta_max": 10.0},
}
"""What a tagger of these objects is where nothing else is said."""


MOST_TAGGERS = 16
"""More are not started unless asked for: one reader feeds no more of the fastest networks."""


def packaged(name: str) -> str:
    """The path of a file that comes with the package."""
    return str(files("stages").joinpath(name))


def digest(path: Path) -> str:
    """SHA-256 of a network's file, and of the files beside it that hold its weights, where there are such.

    Nothing where one cannot be read, which is the tagger's to complain about.
    """
    try:
        data = path.read_bytes()
        return hashed(data, (path.parent / other for other in weights_of(data)))
    except OSError:
        return ""


def hashed(data: bytes, others: Iterable[Path]) -> str:
    """SHA-256 of a network, and of the files that hold its weights.

    Raises
    ------
    OSError
        One of them cannot be read.
    """
    found = hashlib.sha256(data)
    for other in others:
        found.update(other.read_bytes())
    return found.hexdigest()


def weights_of(data: bytes) -> list[str]:
    """The files that a network keeps its weights in, in order of their names."""
    if b"location" not in data:  # the key of such an entry
        return []
    import onnx

    try:
        graph = onnx.load_from_string(data).graph
    except Exception:  # not a network
        return []
    kept = [one for tensor in graph.initializer for one in tensor.external_data if one.key == "location"]
    return sorted({one.value for one in kept})


class InputConfig(Section):
    """What is read."""

    files: tuple[str, ...] = ()
    """Event files, globs and folders."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """One for each of `files`: then they are mixed, and each event is of one of them by such a chance."""
    found: tuple[tuple[str, ...], ...] = ()
    """What each of a mix's `files` stood for when the run began, which sets this; nothing for one that is a file."""
    shuffle: bool = False
    """Whole steps in random order, and the events of some at a time, too; with `weights`, within each of `files`."""
    seed: int = Field(0, ge=0, le=(1 << 32) - 1)
    """Of a mix and of the random order; the same seed gives the same order."""
    tree: str = "Events"
    """The tree or RNTuple that holds the events."""
    columns: dict[str, str] = Field({})
    """Our column names to the names in the files, such as `EBRecHit_energy = "ecalBarrel_E"`."""
    step_events: int = Field(1000, ge=1, le=1_000_000)
    """Events read from a file at a time."""
    keep_mb: int = Field(64, ge=0, le=1 << 20)
    """With `feed.loop`, the input is read once if it takes no more memory than this, else each time; 0: each time."""
    time_unit: Literal["auto", "s", "ms", "us", "ns", "edm"] = "auto"
    """Of the column `time`; `auto`: floating point numbers are s, others ns; `edm`: s in the upper half, us below."""
    calorimeters: Literal["auto", "hits", "towers"] = "auto"
    """What ECAL and HCAL are made from; `auto` takes the rechits where a file has them, else its towers."""
    jets: Literal["auto", "cluster"] = "auto"
    """`auto`: the file's `Jet`, and where it has none, anti-kT 0.4 jets of its particles or towers."""
    fat_jets: Literal["auto", "cluster", "Jet"] = "auto"
    """Likewise `FatJet` with 0.8; `Jet` lets the file's `Jet` stand in, whatever their radius."""
    timeout: PositiveSeconds = 30.0
    """How long a server of remote files may be silent or away [s]; a stop may have to wait for it."""

    @model_validator(mode="after")
    def _a_weight_each(self) -> "InputConfig":
        if self.weights and len(self.weights) != len(self.files):
            raise ValueError(f"'weights' are {len(self.weights)}, and 'files' {len(self.files)}; give one for each")
        if self.found and len(self.found) != len(self.files):
            raise ValueError("'found' is for a run to set; leave it out")
        return self

    def by_name(self) -> list[list[Path | str]]:
        """The files that each of `files` stands for, URLs as texts.

        Raises
        ------
        UsageError
            For what stands for none.
        """
        found = self.found or ((),) * len(self.files)
        return [[*map(Path, own)] or expand([name]) for name, own in zip(self.files, found, strict=True)]

    def expanded(self) -> list[Path | str]:
        """All files, in order, each once.

        Raises
        ------
        UsageError
            For whatever stands for no file.
        """
        return list(dict.fromkeys(itertools.chain(*self.by_name()))) if self.found else expand(self.files)

    @property
    def in_order(self) -> bool:
        """Whether events come in the order in which they stand in the files."""
        return not (self.weights or self.shuffle)


class FramerConfig(Section):
    """From hits to the detector frame."""

    tracks_at: Literal["direction", "ecal"] = "direction"
    """A track's pixel is where it points to at its origin, or where its helix in 3.8 T meets the ECAL."""
    hits_from: Literal["origin", "vertex"] = "origin"
    """Pixel and strip hits are seen from the detector's centre or from the primary vertex."""

    ee_geometry: Path | None = None
    """A geometry file (`[detid, corners]`, .json.gz) that overrides the built-in endcap geometry."""


class Normalise(Section):
    """What is done to a channel before the network sees it: scaled, then transformed, then clipped."""

    scale: float = 1.0
    """Factor."""
    transform: Literal["none", "log", "asinh"] = "none"
    """`log` is sign(x) log(1 + |x|)."""
    clip: float = Field(0.0, ge=0)
    """What is beyond this, in either direction, is this; 0 = not clipped."""


class TaggerSpec(Section):
    """One tagger: which objects it looks at, what it sees of them, and its network."""

    objects: Literal["Photon", "Jet", "FatJet", "Event"] = "Photon"
    """The collection whose members are cropped and scored; `Event` scores the whole frame, without a crop."""
    model: Path = Path(packaged("models/eg.onnx"))
    """ONNX file; its input is (batch, channels, rows, columns), or points and their mask."""
    channels: tuple[str, ...] = ("ECAL",)
    """The channels in the order that the model wants."""
    crop: int = Field(32, ge=0, le=280, multiple_of=2)
    """Side of the square crop [pixels]; the seed is at index crop / 2 - 1. 0 for `Event`."""
    pt_min: float = Field(10.0, ge=0)
    """Objects with pt above this [GeV] are scored."""
    eta_max: float = Field(1.44, gt=0, le=10.0)
    """Objects with |eta| below this are scored."""
    score: str = Field("egScore", pattern="^[A-Za-z][A-Za-z0-9]*$")
    """Name of the output column behind `<objects>_`."""
    signal: int = Field(1, ge=1, le=127)
    """The truth label of what it looks for; 0 is its background, and what has another label does not count."""
    allow_empty: bool = False
    """Go on with an empty channel where an input cannot give it."""
    priority: int = Field(0, ge=-1000, le=1000)
    """Under a deadline, where not all can be scored in time, those of lower priority give way first."""
    input: Literal["image", "sparse", "points", "auto"] = "image"
    """`image`: a dense tensor; `sparse`: the device makes it from the non-empty pixels; `auto`: what of these is faster
    when measured at the start; `points`: the network takes points (batch, points, 2 + channels) and a mask."""
    points: int = Field(256, ge=1, le=65536)
    """Points of an object at most, where the network leaves it open; beyond that the brightest pixels are taken."""
    normalise: dict[str, Normalise] = Field({})
    """By channel, what is done to its pixels first; it becomes part of the network's graph."""
    shadow: Path | None = None
    """A second network that scores `shadow_share` of the objects beside the stream; how far both agree is a metric."""
    shadow_share: float = Field(0.01, gt=0, le=1)
    """Of the objects, for `shadow`."""
    cpu_check: float = Field(0.0, ge=0, le=1)
    """This share of the objects is scored once more on the CPU; a difference above 0.001 is counted."""
    input_name: str = ""
    """Of a network with several inputs, the one that takes the object; the others need `constants`."""
    output_name: str = ""
    """Of a network with several outputs, the one that is the score."""
    constants: dict[str, float] = Field({})
    """What the network's other inputs hold, by their names."""

    @model_validator(mode="before")
    @classmethod
    def _as_its_objects_are(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**OBJECT_DEFAULTS.get(str(data.get("objects", "Photon")), {}), **data}

    @field_validator("channels", mode="before")
    @classmethod
    def _from_text(cls, channels: Any) -> Any:
        return [name.strip() for name in channels.split(",")] if isinstance(channels, str) else channels

    @field_validator("channels")
    @classmethod
    def _known_channels(cls, channels: tuple[str, ...]) -> tuple[str, ...]:
        if not channels:
            raise ValueError("a tagger needs at least one channel")
        for channel in channels:
            if channel not in CHANNELS:
                raise ValueError(f"no channel '{channel}'{nearest(channel, CHANNELS)}; there are {', '.join(CHANNELS)}")
        return channels

    @model_validator(mode="after")
    def _crops_fit(self) -> "TaggerSpec":
        if self.objects == "Event":
            own = OBJECT_DEFAULTS["Event"]
            for key in ("crop", "pt_min", "eta_max"):
                if getattr(self, key) != own[key]:
                    raise ValueError(f"'{key}' has no meaning for objects = \"Event\", which see the whole frame")
        elif not self.crop:
            raise ValueError("'crop' must be at least 2; to see the whole frame, set objects = \"Event\"")
        for channel in self.normalise:
            if channel not in self.channels:
                raise ValueError(
                    f"'normalise': the network does not see '{channel}'{nearest(channel, self.channels)}; it sees "
                    f"{', '.join(self.channels)}"
                )
        if self.objects != "Event" and self.score in TAKEN_SCORES:
            raise ValueError(f"'score' cannot be '{self.score}', which is a column of {self.objects} already")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the network sees of an object."""
        rows, columns = (280, 360) if self.objects == "Event" else (self.crop, self.crop)
        return len(self.channels), rows, columns


TAKEN_SCORES = ("pt", "eta", "phi", "genLabel", "seedRow", "seedCol")
"""The output has these columns of its objects already."""

TAGGERS: dict[str, dict[str, Any]] = {
    "eg": {"objects": "Photon", "model": packaged("models/eg.onnx")},
    "qg": {"objects": "Jet", "model": packaged("models/qg.onnx")},
    "top": {"objects": "FatJet", "model": packaged("models/top.onnx")},
    "tau": {"objects": "FatJet", "model": packaged("models/tau.onnx"), "signal": 2},
}
"""The taggers of the paper's Table 1; what is configured under their name is laid over this."""


class TaggerConfig(Section):
    """How networks are run."""

    provider: Literal["auto", "cuda", "tensorrt", "cpu"] = "auto"
    """ONNX Runtime provider; `auto` takes the best that truly loads, a provider asked for by name must."""
    threads: int = Field(0, ge=0, le=256)
    """Threads of one inference on the CPU; 0 = the taggers share one for each two cores, at least one each."""
    cpus: str = Field("", pattern=r"^(\d+(-\d+)?(,\d+(-\d+)?)*)?$")
    """The cores that inference may use, such as '2-5,8', so that stages do not fight for them; empty = any."""
    max_batch: int = Field(64, ge=1, le=65536)
    """Crops in a batch at most, as far as they fit into `batch_mb`."""
    batch_mb: int = Field(64, ge=1, le=65536)
    """Memory that a tagger's dense batch may take [MB]; a single crop may take more."""
    policy: Literal["adaptive", "fixed"] = "adaptive"
    """`adaptive`: a free network takes what waits, earliest deadline first; `fixed`: when a batch is full or old."""
    deadline: Seconds = 0.0
    """A crop that cannot be scored so long after its event was due is given up, and the event shed (`adaptive` only);
    0 = what `feed.deadline` leaves, less the way from here to the writer."""
    max_wait: Seconds = 0.002
    """A batch is closed when its oldest crop has waited so long (`fixed` only)."""

    @field_validator("cpus", mode="before")
    @classmethod
    def _one_core(cls, cpus: Any) -> Any:
        """`--set tagger.cpus=3` is read as a number."""
        return str(cpus) if type(cpus) is int else cpus

    @model_validator(mode="after")
    def _has_an_effect(self) -> "TaggerConfig":
        if self.policy == "adaptive" and self.max_wait != type(self).model_fields["max_wait"].default:
            raise ValueError("'max_wait' has no effect with policy = 'adaptive'; leave it out, or set policy = 'fixed'")
        if self.policy == "fixed" and self.deadline:
            raise ValueError("'deadline' has no effect with policy = 'fixed'; leave it out, or set policy = 'adaptive'")
        return self


class WriterConfig(Section):
    """Where the scores go."""

    dir: Path = Path("streamer-out")
    """Folder for scores.root and the ROC pictures; it is made if need be."""
    format: Literal["ttree", "rntuple", "parquet"] = "ttree"
    """What scores.root holds; or the scores go to scores.parquet."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    resume: bool = False
    """Go on behind what an earlier run brought to disk in this folder, where there is one."""
    segment_events: int = Field(1_000_000, ge=1)
    """A file of scores is finished when it has so many events, and the next one is begun."""
    segment_interval: PositiveSeconds = 3600.0
    """... or when it is so old."""
    error_files: int = Field(1000, ge=0)
    """At most so many events that could not be processed are saved as files of their own, to try them again."""
    disk_patience: Seconds = 60.0
    """A disk that takes nothing (full, read-only) is tried again for so long; the feed waits meanwhile."""
    commit_interval: PositiveSeconds = 0.05
    """Results are brought to disk (fsync) at least so often."""
    commit_events: int = Field(2048, ge=1)
    """... and whenever so many events are waiting for it."""


def _built_in(taggers: Any) -> Any:
    """What is known of a tagger by its name: the built-in ones, and what scores are called."""
    if not isinstance(taggers, dict):
        return taggers
    if not taggers:
        raise ValueError(f"configure at least one tagger; built in are {', '.join(TAGGERS)}")
    out = {}
    for name, given in taggers.items():
        if not re.fullmatch("[A-Za-z][A-Za-z0-9]*", str(name)):
            raise ValueError(f"a tagger cannot be called '{name}'; letters and digits, please")
        table = given
        if isinstance(given, dict):
            table = {"score": f"{name}Score", **TAGGERS.get(name, {}), **given}
            if "model" not in table:
                raise ValueError(f"tagger '{name}' needs a network: set taggers.{name}.model = \"FILE.onnx\"")
        out[name] = table
    return out


Taggers = Annotated[dict[str, TaggerSpec], BeforeValidator(_built_in)]
"""Names to taggers."""


class Config(CoreConfig):
    """The whole pipeline."""

    input: InputConfig = InputConfig()
    framer: FramerConfig = FramerConfig()
    taggers: Taggers = Field({"eg": TaggerSpec()})
    tagger: TaggerConfig = TaggerConfig()
    writer: WriterConfig = WriterConfig()
    menu: MenuConfig = MenuConfig()

    @model_validator(mode="after")
    def _taggers_fit(self) -> "Config":
        for name, spec in self.taggers.items():
            if spec.priority and (not self.deadline or self.tagger.policy == "fixed"):
                raise ValueError(
                    f"'taggers.{name}.priority' has no effect without a deadline; leave it out, or set tagger.deadline"
                )
        collections: dict[str, str] = {}
        scores: dict[tuple[str, str], str] = {}
        for name, spec in self.taggers.items():
            twin = collections.setdefault(name.lower(), name)
            if twin != name:
                raise ValueError(f"'taggers': '{twin}' and '{name}' differ only in capitals; rename one")
            twin = scores.setdefault((spec.objects, spec.score), name)
            if twin != name:
                raise ValueError(
                    f"'taggers': {twin} and {name} both write {spec.objects}_{spec.score}; "
                    f"set another taggers.{name}.score"
                )
        return self

    @model_validator(mode="after")
    def _menu_fits(self) -> "Config":
        if self.menu.paths:
            from stages.menu.menu import problems

            if found := problems(self):
                raise ValueError("\n".join(found))
        return self

    @model_validator(mode="after")
    def _writers_agree(self) -> "Config":
        if self.menu.prescale_from and self.n_replicas("writer") > 1 and not self.feed.lumisection:
            raise ValueError(f"'menu.prescale_from': {SEVERAL}")
        return self

    @model_validator(mode="after")
    def _the_order_matters(self) -> "Config":
        for key, wanted in (
            ('feed.arrivals = "recorded"', self.feed.arrivals == "recorded"),
            ("feed.lumisections", bool(self.feed.lumisections) and not self.feed.lumisection),
        ):
            if wanted and not self.input.in_order:
                raise ValueError(f"'{key}' goes by the order of the input; leave out input.weights and input.shuffle")
            if wanted and self.n_replicas("reader") > 1:
                raise ValueError(f"'{key}' goes by the order of the input; set replicas.reader = 1")
        if self.feed.lumisection and self.n_replicas("reader") > 1:
            raise ValueError("'feed.lumisection' is counted by one reader; set replicas.reader = 1")
        return self

    @property
    def books(self) -> Path:
        """Folder for journals, manifests and the books of what was fed."""
        return self.writer.dir / "books"

    @property
    def disk_patience(self) -> float:
        return self.writer.disk_patience

    @property
    def commit_interval(self) -> float:
        return self.writer.commit_interval

    @property
    def deadline(self) -> float:
        return self.tagger.deadline or self.feed.deadline

    def for_this_machine(self, stages: Sequence[str]) -> "Config":
        if "tagger" in self.replicas or "tagger" not in stages:
            return self
        return self.model_copy(update={"replicas": {**self.replicas, "tagger": n_taggers(self.tagger)}})

    @property
    def output(self) -> Path:
        """Where the results are."""
        return self.writer.dir

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that any tagger sees or that seeds are looked for in, in frame order."""
        wanted = {channel for spec in self.taggers.values() for channel in spec.channels}
        wanted |= {SEED_CHANNEL[spec.objects] for spec in self.taggers.values() if spec.objects in SEED_CHANNEL}
        return tuple(channel for channel in CHANNELS if channel in wanted)

    @property
    def objects(self) -> tuple[str, ...]:
        """The collections of objects that any tagger scores."""
        wanted = {spec.objects for spec in self.taggers.values()}
        return tuple(objects for objects in SEED_CHANNEL if objects in wanted)

    @property
    def crops(self) -> dict[str, str]:
        """Each tagger that sees crops to the first one that sees the same; they share them on the way."""
        first: dict[Any, str] = {}
        return {
            name: first.setdefault((spec.objects, spec.channels, spec.crop, spec.pt_min, spec.eta_max), name)
            for name, spec in self.taggers.items()
            if spec.crop
        }


def n_taggers(settings: TaggerConfig) -> int:
    """Taggers for this machine: one for each GPU, or else for each core, unless cores or threads are shared out."""
    if settings.provider != "cpu" and (gpus := n_gpus()):
        return min(gpus, MAX_REPLICAS)
    return 1 if settings.threads or settings.cpus else min(n_cores(), MOST_TAGGERS)
