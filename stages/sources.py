"""What the channels and objects are made of, file by file: what it offers against what the taggers need."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stages.config import CHANNELS, SEED_CHANNEL, Config, TaggerSpec
from stages.formats.base import EventFile
from stages.jets import R_AK4, R_AK8
from stages.records import INPUT, INPUT_BY_NAME, READABLE, SOURCES, TIME, VERTEX, InputColumn, channel_columns
from streamer.errors import UsageError, nearest

CONSTITUENTS = {
    "PFCand": ("PFCand_pt", "PFCand_eta", "PFCand_phi"),
    "Tower": ("Tower_eta", "Tower_phi", "Tower_emEnergy", "Tower_hadEnergy"),
}
"""What jets can be clustered from; the first that a file has is taken."""

RADII = {"Jet": R_AK4, "FatJet": R_AK8}

_JET = ("Jet_pt", "Jet_eta", "Jet_phi")
_JET_KEYS = {"Jet": "jets", "FatJet": "fat_jets"}


@dataclass(frozen=True)
class Choice:
    """What is read from a file.

    Attributes
    ----------
    columns : list of InputColumn
    images : tuple of str
        The channels that its ready-made images give.
    jets : dict of str to str
        `Jet` and `FatJet`, where they are not the file's own: the collection that they are made from.
    only_jets : frozenset of str
        What is read for their clustering alone, and is no part of a channel.
    notes : list of str
        What a user should know of it.
    """

    columns: list[InputColumn]
    images: tuple[str, ...] = ()
    jets: dict[str, str] = field(default_factory=dict)
    only_jets: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)


def choose(file: EventFile, config: Config) -> Choice:
    """Decide what to read from a file.

    Raises
    ------
    UsageError
        It lacks what a tagger needs: one line for each missing column or channel.
    """
    wanted = {"run", "luminosityBlock", "event"}
    lacks: dict[str, list[str]] = {name: [] for name in sorted(wanted) if name not in file.names}
    images: list[str] = []
    jets: dict[str, str] = {}
    notes: list[str] = []
    lines: list[str] = []
    allowing: dict[str, list[str]] = {}  # a column that a channel lacks to the taggers that could do without

    empty: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # what the file lacks, and who would see it, to channels
    for channel in config.channels:
        sources = list(_sources(config, channel))
        source = next((source for source in sources if not _missing(file, config, channel, source)), None)
        if source is not None:
            images += [channel] if source == ("ImagePixel",) else []
            wanted |= {column.name for column in channel_columns(config, channel, source)}
            hits = sources[1]
            if source not in (("ImagePixel",), hits) and any(name.startswith(hits) for name in file.names):
                lacking = _in_short(file, _missing(file, config, channel, hits))
                notes.append(f"{channel} is made of {' and '.join(source)}, as there is no {lacking}")
            continue
        users = [name for name, spec in config.taggers.items()
                 if channel in spec.channels or SEED_CHANNEL.get(spec.objects) == channel]  # fmt: skip
        strict = [name for name in users if not config.taggers[name].allow_empty]
        missing = _missing(file, config, channel, sources[1])  # the first are ready-made images
        there = tuple(name for name in sources[1] if not _missing(file, config, channel, (name,)))
        if not strict and there:
            wanted |= {column.name for column in channel_columns(config, channel, there)}
            notes.append(f"{channel} is made of {' and '.join(there)} alone, as there is no {_in_short(file, missing)}")
        elif strict and file.mappable:
            for name in missing:
                lacks.setdefault(name, []).append(f"{channel} of {_taggers(strict)}")
                allowing.setdefault(name, []).extend(strict)
        else:
            empty.setdefault((_in_short(file, missing), tuple(users)), []).append(channel)
    for (source_names, those), channels in empty.items():
        why = f"no {', '.join(channels)}, as there is no {source_names} in this {file.kind} file"
        strict = [name for name in those if not config.taggers[name].allow_empty]
        if strict:
            lines.append(f"{file.path}: {why}; {_taggers(strict)} would see nothing there: {_allow(strict)} to go on "
                         "so, or take another kind of file")  # fmt: skip
        else:
            notes.append(f"{why}; empty for {_taggers(those)}")

    if wanted.intersection(VERTEX) and not file.names.keys() >= set(VERTEX):
        notes.append("there are no vertices (PV): the origin is taken for them")

    in_channels = frozenset(wanted)
    only_jets: set[str] = set()
    for objects in config.objects:
        users = [name for name, spec in config.taggers.items() if spec.objects == objects]
        own = [column for column in INPUT if column.objects == objects]
        needs = [column.name for column in own if not column.optional]
        made_from = _made_from(file, config, objects, all(name in file.names for name in needs))
        if made_from == objects:
            wanted |= {column.name for column in own}
            if objects in RADII and file.any_radius:
                notes.append(f"{objects} are the file's own, whatever their radius")
        elif made_from == "Jet":
            jets[objects] = made_from
            wanted |= set(_JET)
            notes.append(f"{objects} are the file's Jet, whatever their radius")
        elif made_from:
            jets[objects] = made_from
            wanted |= set(CONSTITUENTS[made_from])
            only_jets |= set(CONSTITUENTS[made_from]) - in_channels
            if in_channels.isdisjoint(CONSTITUENTS[made_from]):
                only_jets.add(f"n{made_from}")
            notes.append(f"{objects} are anti-kT jets with R = {RADII[objects]}, clustered from {made_from}")
        elif _how(config, objects) == "cluster":
            lines.append(f"{file.path}: nothing to cluster {objects} from for {_taggers(users)}, neither "
                         f"{' nor '.join(CONSTITUENTS)}; without input.{_JET_KEYS[objects]} = \"cluster\" the file's "
                         "own are taken")  # fmt: skip
        else:
            for name in _JET if _how(config, objects) == "Jet" else needs:
                if name not in file.names:
                    lacks.setdefault(name, []).append(_taggers(users))

    if config.feed.arrivals == "recorded":
        if TIME.name in file.names:
            wanted.add(TIME.name)
        else:
            lacks[TIME.name] = ['feed.arrivals = "recorded"']
    lines += [_lack(file, name, users, config, allowing.get(name, [])) for name, users in lacks.items()]
    if lines:
        raise UsageError("\n".join(lines))
    columns = [column for column in READABLE if column.name in wanted and column.name in file.names]
    return Choice(columns, tuple(images), jets, frozenset(only_jets), notes)


def look(objects: str, channels: Sequence[str]) -> TaggerSpec:
    """A tagger without a network: what to frame and to crop."""
    return TaggerSpec.model_validate({"objects": objects, "channels": channels, "model": "none"})


def gives(file: EventFile, config: Config, spec: TaggerSpec) -> bool:
    """Whether a file has all that a tagger needs."""
    try:
        choose(file, config.model_copy(update={"taggers": {"any": spec}}))
    except UsageError:
        return False
    return True


def channels_of(file: EventFile, config: Config) -> tuple[str, ...]:
    """The channels that can be made of a file."""
    return tuple(channel for channel in CHANNELS if gives(file, config, look("Event", (channel,))))


def _sources(config: Config, channel: str) -> Iterator[tuple[str, ...]]:
    """The ways to make a channel that the configuration allows."""
    left_out = {"auto": "", "hits": "Tower", "towers": "RecHit"}[config.input.calorimeters]
    for source in SOURCES[channel]:
        if not left_out or not source[0].endswith(left_out):
            yield source


def _missing(file: EventFile, config: Config, channel: str, source: tuple[str, ...]) -> list[str]:
    """Columns that a file lacks for a channel from these collections."""
    if source == ("ImagePixel",) and channel not in file.images:
        return ["ImagePixel_index"]
    return [
        column.name
        for column in channel_columns(config, channel, source)
        if not column.optional and column.name not in (*VERTEX, *file.names)
    ]


def _made_from(file: EventFile, config: Config, objects: str, has_own: bool) -> str:
    """The collection that objects are made from: their own, another, or none ("")."""
    how = _how(config, objects)
    if how == "Jet":
        return "Jet" if file.names.keys() >= set(_JET) else ""
    if has_own and how == "auto":
        return objects
    if objects not in RADII:
        return ""
    return next((name for name, columns in CONSTITUENTS.items() if file.names.keys() >= set(columns)), "")


def _in_short(file: EventFile, missing: list[str]) -> str:
    """Missing columns, by their collection where the file has nothing of it."""
    there = {name.partition("_")[0] for name in file.names}
    collections = {name: name.partition("_")[0] for name in missing}
    return " and ".join(dict.fromkeys(name if of in there else of for name, of in collections.items()))


def _how(config: Config, objects: str) -> str:
    """What the configuration says of where objects come from."""
    return getattr(config.input, _JET_KEYS[objects]) if objects in _JET_KEYS else "auto"


def _taggers(names: Sequence[str]) -> str:
    return f"tagger {names[0]}" if len(names) == 1 else f"taggers {', '.join(names)}"


def _allow(taggers: Sequence[str]) -> str:
    return "set " + " and ".join(f"taggers.{name}.allow_empty = true" for name in taggers)


def _lack(file: EventFile, name: str, users: list[str], config: Config, allowing: list[str]) -> str:
    """One line for a missing column: what it is, who needs it, and what to do."""
    column = INPUT_BY_NAME[name]
    own = set(file.own_names())
    counters = {f"n{part}" for name in (*own, column.name) for part in (name, name.partition("_")[0])}
    own -= counters | set(file.names.values())
    mapped = config.input.columns.get(name, name)
    near = nearest(mapped, sorted(own)).removeprefix("; did you mean '").removesuffix("'?")
    line = f"{file.path}: no column '{mapped}' ({column.doc})"
    line += f" for {' and '.join(dict.fromkeys(users))}" if users else ""
    if not file.mappable:
        line += f" in this {file.kind} file"
    elif near:
        line += f"; if '{near}' is it, set [input.columns] {name} = \"{near}\""
    else:
        line += f'; map it with [input.columns] {name} = "..."'
    if column.objects == "FatJet" and "Jet_pt" in file.names:
        line += ', or let Jet stand in with input.fat_jets = "Jet"'
    if allowing:
        line += f", or {_allow(sorted(set(allowing)))}"
    return line
