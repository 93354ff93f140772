"""Two samples side by side: how much each detector sees in an event, and of which energies.

It is how generated events are held against real ones. Everything is counted per event, and channels as the framer
makes them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages import records
from stages.config import CHANNELS, Config
from stages.formats import open_events
from stages.framer import Framer
from stages.reader import with_jets
from stages.records import INPUT_BY_NAME
from stages.sources import channels_of, choose, look
from streamer.block import Block
from streamer.errors import UsageError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Something that is counted: members of a collection with more than `least` GeV, of one subdetector if need be."""

    collection: str
    column: str
    least: float
    subdetector: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """What must be read for it."""
        return (self.column,) if self.subdetector is None else (self.column, f"{self.collection}_detid")


PARTS = {
    "EB hits": Part("EBRecHit", "EBRecHit_energy", 0.1),
    "EE hits": Part("EERecHit", "EERecHit_energy", 0.5),
    "HB hits": Part("HBHERecHit", "HBHERecHit_energy", 1.0, 1),
    "HE hits": Part("HBHERecHit", "HBHERecHit_energy", 1.0, 2),
    "tracks": Part("Track", "Track_pt", 1.0),
    "AK4 jets": Part("Jet", "Jet_pt", 15.0),
}
"""What is counted. The least energies [GeV] are above the thresholds of most files, which differ in their noise."""
ENERGY_EDGES = np.geomspace(0.1, 2000.0, 44)


@dataclass
class Sample:
    """What was counted in some files.

    Attributes
    ----------
    name : str
    n_events : int
    multiplicity : dict of str to float64[n_events]
        Of each of `PARTS`.
    spectrum : dict of str to float64[n_bins]
        Members per event in the bins of `ENERGY_EDGES`, the last edge being open.
    occupancy : dict of str to float64[n_events]
        Non-empty pixels (HCAL: towers) of each channel.
    """

    name: str
    n_events: int = 0
    multiplicity: dict[str, Floats] = field(default_factory=dict)
    spectrum: dict[str, Floats] = field(default_factory=dict)
    occupancy: dict[str, Floats] = field(default_factory=dict)


def count(name: str, files: Sequence[Path | str], config: Config, most: int) -> Sample:
    """Count what is in the first `most` events of some files.

    Raises
    ------
    UsageError
        A file cannot be read or holds other things than the first one, or there are no events.
    """
    sample = Sample(name)
    multiplicity: dict[str, list[Floats]] = {}
    occupancy: dict[str, list[Floats]] = {}
    for path in files:
        file = open_events(path, config.input)
        channels = tuple(channel for channel in CHANNELS if channel in channels_of(file, config))
        if not channels:
            raise UsageError(f"{file.path}: no channel can be made of what it holds; see: streamer inspect {file.path}")
        own = config.model_copy(update={"taggers": {"frame": look("Event", channels)}})
        choice = choose(file, own)
        holds = [what for what, part in PARTS.items() if all(column in file.names for column in part.columns)]
        if sample.n_events and (channels != tuple(occupancy) or holds != list(multiplicity)):
            raise UsageError(f"{file.path}: holds other collections than {files[0]}; compare files of one kind")
        extra = [INPUT_BY_NAME[c] for part in PARTS.values() for c in part.columns if c in file.names]
        wanted = list({column.name: column for column in (*choice.columns, *extra)}.values())
        framer = Framer(own)
        framer.setup()

        def refuse(first: int, n: int, why: str, path: Path | str = file.path) -> None:
            raise UsageError(f"{path}: {n} events from entry {first} on cannot be read: {why}")

        file.wanted_images = choice.images
        for step in file.read(wanted, refuse):
            n = min(len(step.entries), most - sample.n_events)
            for what, part in PARTS.items():
                if not all(column in step.columns for column in part.columns):
                    continue
                counts = step.columns[f"n{part.collection}"][:n]
                values = step.columns[part.column][: int(counts.sum())]
                good = values > part.least
                if part.subdetector is not None:
                    detids = step.columns[f"{part.collection}_detid"][: len(values)]
                    good &= (detids >> 25) & 7 == part.subdetector
                events = np.repeat(np.arange(n), counts)[good]
                multiplicity.setdefault(what, []).append(np.bincount(events, minlength=n).astype(np.float64))
                found, _ = np.histogram(np.minimum(values[good], ENERGY_EDGES[-1]), ENERGY_EDGES)
                sample.spectrum[what] = sample.spectrum.get(what, 0.0) + found
            everything = {**framer.inputs.empty(len(step.entries)),
                          **records.complete(own, with_jets(step, choice), len(step.entries))}  # fmt: skip
            columns = framer.inputs.slice({k: everything[k] for k in framer.inputs.by_name}, 0, n)
            frame = framer.process(Block(0, n, columns)).columns["nPixel"]
            for k, channel in enumerate(own.channels):
                occupancy.setdefault(channel, []).append(frame[:, k].astype(np.float64))
            sample.n_events += n
            if sample.n_events >= most:
                break
        file.close()
        if sample.n_events >= most:
            break
    if not sample.n_events:
        raise UsageError(f"{name}: no events to compare")
    sample.multiplicity = {name: np.concatenate(parts) for name, parts in multiplicity.items()}
    sample.occupancy = {name: np.concatenate(parts) for name, parts in occupancy.items()}
    sample.spectrum = {name: found / sample.n_events for name, found in sample.spectrum.items()}
    return sample


def rows(first: Sample, second: Sample) -> list[tuple[str, float, float, float]]:
    """What both have: (what, mean per event in the first, in the second, ratio), multiplicities before channels."""
    out = []
    for kind in ("multiplicity", "occupancy"):
        one, other = getattr(first, kind), getattr(second, kind)
        for name in one:
            if name in other:
                mean, of_other = float(one[name].mean()), float(other[name].mean())
                label = (
                    f"{name} above {PARTS[name].least:g} GeV"
                    if name in PARTS
                    else f"{'towers' if name == 'HCAL' else 'pixels'} of {name}"
                )
                out.append((label, mean, of_other, mean / of_other if of_other else math.nan))
    return out


def draw(first: Sample, second: Sample, path: Path) -> None:
    """The picture: multiplicities, spectra and occupancies side by side.

    Raises
    ------
    UsageError
        It cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = ((first, "#2a6fae"), (second, "#e08214"))
    figure = Figure(figsize=(20.0, 10.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, len(PARTS))
    for k, (what, part) in enumerate(PARTS.items()):
        above = figure.add_subplot(grid[0, k])
        below = figure.add_subplot(grid[1, k])
        have = [sample.multiplicity[what] for sample, _ in samples if what in sample.multiplicity]
        top = max([1.0, *(float(np.percentile(values, 99)) for values in have)])
        edges = np.linspace(0.0, top * 1.05, 21)
        for sample, colour in samples:
            if what not in sample.multiplicity:
                continue
            values = np.minimum(sample.multiplicity[what], edges[-1])
            shares = np.histogram(values, edges)[0] / sample.n_events
            above.stairs(shares, edges, color=colour, label=sample.name)
            spectrum = sample.spectrum[what] / np.diff(ENERGY_EDGES)
            below.stairs(np.where(spectrum > 0, spectrum, np.nan), ENERGY_EDGES, color=colour)
        above.set(xlabel=f"{what} above {part.least:g} GeV in an event", ylabel="share of events")
        below.set(xscale="log", yscale="log", xlabel=f"{part.column} [GeV], {what}", ylabel="per event and GeV")
    axes = figure.add_subplot(grid[2, :])
    channels = [name for name in CHANNELS if any(name in sample.occupancy for sample, _ in samples)]
    for k, (sample, colour) in enumerate(samples):
        there = [j for j, name in enumerate(channels) if name in sample.occupancy]
        values = [sample.occupancy[channels[j]] for j in there]
        low, middle, high = (np.array([np.percentile(v, q) for v in values]) for q in (16, 50, 84))
        places = np.array(there) + 0.3 * (k - 0.5)
        axes.bar(places, middle, 0.28, color=colour, alpha=0.75, label=sample.name)
        axes.errorbar(places, middle, (middle - low, high - middle), fmt="none", color="black", linewidth=1)
    axes.set_xticks(range(len(channels)), channels)
    axes.set(yscale="log", ylabel="non-empty pixels (HCAL: towers) in an event")
    axes.set_title("Occupancy of the channels: median, and where 68 % of the events lie", fontsize=10)
    names = [f"{sample.name}, {sample.n_events:,} events" for sample, _ in samples]
    figure.legend(axes.get_legend_handles_labels()[0], names, loc="outside upper center", ncols=2)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be written ({error})") from None
