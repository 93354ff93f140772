"""What `streamer view` draws: one event through framer, cropper and the networks."""

from pathlib import Path

import numpy as np

from stages import records
from stages.config import CHANNELS, SEED_CHANNEL, UNITS, Config, TaggerSpec
from stages.cropper import Cropper
from stages.detector.layout import N_COLUMNS, N_PIXELS, N_ROWS
from stages.filling import fill_frames
from stages.formats import open_events
from stages.formats.base import EventFile
from stages.framer import Framer
from stages.network import Network
from stages.reader import with_jets
from stages.seeds import selected
from stages.sources import Choice, channels_of, choose, gives, look
from stages.view_plot import SeenEvent, SeenObject
from streamer.batcher import Part
from streamer.block import Array, Block, Columns, offsets, readonly
from streamer.errors import UsageError, nearest


def see(path: Path | str, entry: int, config: Config, channels: tuple[str, ...] = ()) -> tuple[SeenEvent, list[str]]:
    """One event of a file as it would be streamed.

    Parameters
    ----------
    entry : int
        In the file, from 0.
    channels : tuple of str
        Those to show; by default all that the file gives.

    Returns
    -------
    SeenEvent
    notes : list of str
        What could not be scored, and why.

    Raises
    ------
    UsageError
        There is no such event, or no such channel.
    """
    for channel in channels:
        if channel not in CHANNELS:
            raise UsageError(f"no channel '{channel}'{nearest(channel, CHANNELS)}; there are {', '.join(CHANNELS)}")
    file = open_events(path, config.input)
    if entry >= file.n_events:
        raise UsageError(f"{file.path}: no event {entry}; it has {file.n_events:,}, counted from 0")
    given = channels_of(file, config)
    shown = channels or given
    if not given:
        raise UsageError(f"{file.path}: no channel can be made of what it holds; see: streamer inspect {file.path}")
    notes = [f"{file.path}: nothing to see of {channel}" for channel in shown if channel not in given]
    looks = {"Event": look("Event", tuple(shown)).model_copy(update={"allow_empty": True})}
    for objects in SEED_CHANNEL:
        spec = look(objects, (SEED_CHANNEL[objects],))
        if f"{objects}_pt" in file.names and gives(file, config, spec):
            looks[objects] = spec
    networks = {}
    for name, spec in config.taggers.items():
        try:
            choose(file, _with(config, {name: spec}))
            networks[name] = spec
        except UsageError as error:
            notes.append(f"not scored by {name}: {str(error).splitlines()[0]}")
    config = _with(config, {**networks, **{f"view {objects}": spec for objects, spec in looks.items()}})
    choice = choose(file, config)
    notes += [f"{file.path}: {note}" for note in choice.notes if note.partition(" ")[0] in choice.jets]
    block = _frame_and_crops(file, entry, config, choice)
    file.close()
    columns = block.columns
    scored: Columns = dict(columns)
    for name in networks:
        network = Network(name, config)
        parts = [Part(block, first, first + 1) for first in range(network.items(block))]
        network.place(scored, np.concatenate([np.zeros(0, np.float32), *(network.infer([part]) for part in parts)]), {})
    numbers = [int(columns[name][0]) for name in ("run", "luminosityBlock", "event")]
    title = "{}   run {}   lumisection {}   event {}".format(Path(str(file.path)).name, *numbers)
    scores = {records.score_column(name, spec).name: (name, spec) for name, spec in networks.items()}
    seen = SeenEvent(
        title=title,
        images=_images(config, columns, shown),
        units={channel: UNITS[channel] for channel in shown},
        objects=tuple(thing for objects in config.objects for thing in _objects(objects, config, scored)),
        event_scores={spec.score: float(scored[name][0]) for name, (_, spec) in scores.items() if not spec.crop},
    )
    return seen, notes


def _with(config: Config, taggers: dict[str, TaggerSpec]) -> Config:
    return config.model_copy(update={"taggers": taggers})


def _frame_and_crops(file: EventFile, entry: int, config: Config, choice: Choice) -> Block:
    why: list[str] = []
    file.wanted_images = choice.images
    step = next(file.read(choice.columns, lambda first, n, text: why.append(text), first=entry), None)
    if step is None or int(step.entries[0]) != entry:
        raise UsageError(f"{file.path}: event {entry} cannot be read: {why[0] if why else 'it is not there'}")
    framer, cropper = Framer(config), Cropper(config)
    framer.setup()
    everything = {**framer.inputs.empty(len(step.entries)),
                  **records.complete(config, with_jets(step, choice), len(step.entries))}  # fmt: skip
    one = framer.inputs.slice(everything, 0, 1)
    return cropper.process(framer.process(Block(0, 1, one)))


def _images(config: Config, columns: Columns, shown: tuple[str, ...]) -> dict[str, Array]:
    dense = np.zeros((1, len(shown), N_PIXELS), np.float32)
    fill_frames(
        offsets(columns["nPixel"]),
        readonly(columns["Pixel_index"]),
        readonly(columns["Pixel_value"]),
        0,
        1,
        len(config.channels),
        np.array([config.channels.index(channel) for channel in shown]),
        np.array([channel == "HCAL" for channel in shown]),
        dense,
        0,
    )
    return {channel: dense[0, k].reshape(N_ROWS, N_COLUMNS) for k, channel in enumerate(shown)}


def _objects(objects: str, config: Config, columns: Columns) -> list[SeenObject]:
    """The members of a collection, with the scores of those taggers that selected them."""
    specs = [(name, spec) for name, spec in config.taggers.items() if spec.objects == objects]
    wanted = {name: selected(columns, spec) for name, spec in specs}
    out = []
    for k in range(int(columns[f"n{objects}"][0])):
        row, column = (int(columns[f"{objects}_{name}"][k]) for name in ("seedRow", "seedCol"))
        scores: dict[str, float] = {}
        for name, spec in specs:
            score = columns.get(records.score_column(name, spec).name)
            if score is not None and wanted[name][k]:
                scores[spec.score] = float(score[k])
        pt, eta, phi = (float(columns[f"{objects}_{name}"][k]) for name in ("pt", "eta", "phi"))
        seed = (row, column) if row >= 0 else None
        out.append(SeenObject(objects, pt, eta, phi, seed, scores, tuple({spec.crop for _, spec in specs if seed})))
    return out
