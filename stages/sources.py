"""What the channels and objects are made of, file by file: what it offers against what the taggers need."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stages.config import SEED_CHANNEL, Config
from stages.formats.base import EventFile
from stages.records import INPUT, INPUT_BY_NAME, SOURCES, VERTEX, InputColumn, channel_columns
from streamer.errors import UsageError, nearest

CONSTITUENTS = {
    "PFCand": ("PFCand_pt", "PFCand_eta", "PFCand_phi"),
    "Tower": ("Tower_eta", "Tower_phi", "Tower_emEnergy", "Tower_hadEnergy"),
}
"""What jets can be clustered from; the first that a file has is taken."""

RADII = {"Jet": 0.4, "FatJet": 0.8}


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
    notes : list of str
        What a user should know of it.
    """

    columns: list[InputColumn]
    images: tuple[str, ...] = ()
    jets: dict[str, str] = field(default_factory=dict)
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

    empty: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # what the file lacks, and who would see it, to channels
    for channel in config.channels:
        sources = list(_sources(config, channel))
        source = next((source for source in sources if not _missing(file, config, channel, source)), None)
        if source is not None:
            images += [channel] if source == ("ImagePixel",) else []
            wanted |= {column.name for column in channel_columns(config, channel, source)}
            continue
        users = [name for name, spec in config.taggers.items()
                 if channel in spec.channels or SEED_CHANNEL.get(spec.objects) == channel]  # fmt: skip
        strict = [name for name in users if not config.taggers[name].allow_empty]
        usual = sources[1]  # the first are ready-made images
        if strict and file.mappable:
            for name in _missing(file, config, channel, usual):
                lacks.setdefault(name, []).append(f"{channel} of {_taggers(strict)}")
        else:
            empty.setdefault((" and ".join(usual), tuple(users)), []).append(channel)
    for (source_names, those), channels in empty.items():
        why = f"no {', '.join(channels)}, as there is no {source_names} in this {file.kind} file"
        strict = [name for name in those if not config.taggers[name].allow_empty]
        if strict:
            lines.append(f"{file.path}: {why}; {_taggers(strict)} would see nothing there: {_allow(strict)} to go on "
                         "so, or take another kind of file")  # fmt: skip
        else:
            notes.append(f"{why}; empty for {_taggers(those)}")

    for objects in config.objects:
        own = [column for column in INPUT if column.objects == objects]
        needs = [column.name for column in own if not column.optional]
        made_from = _made_from(file, config, objects, all(name in file.names for name in needs))
        if made_from == objects:
            wanted |= {column.name for column in own}
        elif made_from:
            jets[objects] = made_from
            wanted |= set(CONSTITUENTS.get(made_from, ("Jet_pt", "Jet_eta", "Jet_phi")))
            how = "the file's Jet, whatever their radius" if made_from == "Jet" else (
                f"anti-kT jets with R = {RADII[objects]}, clustered from {made_from}")  # fmt: skip
            notes.append(f"{objects} are {how}")
        else:
            users = [name for name, spec in config.taggers.items() if spec.objects == objects]
            for name in needs:
                if name not in file.names:
                    lacks.setdefault(name, []).append(_taggers(users))

    lines += [_lack(file, name, users, config) for name, users in lacks.items()]
    if lines:
        raise UsageError("\n".join(lines))
    return Choice([c for c in INPUT if c.name in wanted and c.name in file.names], tuple(images), jets, notes)


def _sources(config: Config, channel: str) -> Iterator[tuple[str, ...]]:
    """The ways to make a channel that the configuration allows."""
    left_out = {"auto": "", "hits": "Tower", "towers": "RecHit"}[config.input.calorimeters]
    for source in SOURCES[channel]:
        if not left_out or not source[0].endswith(left_out):
            yield source


def _missing(file: EventFile, config: Config, channel: str, source: tuple[str, ...]) -> list[str]:
    """Columns that a file lacks for a channel from these collections."""
    if source == ("ImagePixel",):
        return [] if channel in file.images else ["ImagePixel_index"]
    return [
        column.name
        for column in channel_columns(config, channel, source)
        if not column.optional and column.name not in (*VERTEX, *file.names)
    ]


def _made_from(file: EventFile, config: Config, objects: str, has_own: bool) -> str:
    """The collection that objects are made from: their own, another, or none ("")."""
    choice = {"Jet": config.input.jets, "FatJet": config.input.fat_jets}.get(objects, "auto")
    if choice == "Jet":
        return "Jet" if "Jet_pt" in file.names else ""
    if has_own and choice == "auto":
        return objects
    if objects not in RADII:
        return ""
    return next((name for name, columns in CONSTITUENTS.items() if file.names.keys() >= set(columns)), "")


def _taggers(names: Sequence[str]) -> str:
    return f"tagger {names[0]}" if len(names) == 1 else f"taggers {', '.join(names)}"


def _allow(taggers: Sequence[str]) -> str:
    return "set " + " and ".join(f"taggers.{name}.allow_empty = true" for name in taggers)


def _lack(file: EventFile, name: str, users: list[str], config: Config) -> str:
    """One line for a missing column: what it is, who needs it, and what to do."""
    column = INPUT_BY_NAME[name]
    own = set(file.own_names())
    own -= {f"n{name}" for name in (*own, column.collection)} | set(file.names.values())  # counters, and what is taken
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
    if column.channels:
        line += f", or {_allow(sorted({name for name in config.taggers if not config.taggers[name].allow_empty}))}"
    return line
