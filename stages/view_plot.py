"""The picture of one event: the detector frame channel by channel, its photons and jets, their crops and scores.

A panel is the frame as it is streamed: 280 rows of equal height and 360 columns, so that pixels and crops are square.
It begins at phi = -pi. Eta is marked where it lies on the rows, which are wider in the endcaps than in the barrel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, LogNorm, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from stages.detector.grid import EB_FIRST_ROW, EB_LAST_ROW, ETA_EDGES, N_COLUMNS, N_ROWS
from streamer.block import Array
from streamer.errors import UsageError

SUFFIXES = (".png", ".pdf", ".svg")
DPI = 200
PAGE = (13.333, 7.5)
"""Width and height of the picture [inches], those of a slide."""
LABEL_PT = 30.0
"""Objects above this pt [GeV] are named and listed, as are all that have a score."""
MAX_LISTED = 8
"""At most so many objects of a kind are named and listed, those with scores first, then by pt."""
DECADES = 3
"""A logarithmic colour scale spans at most so many decades below the largest value."""

_MARGIN, _HEAD, _FOOT = 0.35, 0.75, 0.5  # inches
_TEXT_SIZES = (13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0)  # points
_INK, _GREY, _PALE = "#1f2933", "#66717d", "#c9d0d8"
_HALO = [withStroke(linewidth=2.2, foreground="white")]
_AMOUNT = LinearSegmentedColormap.from_list("amount", ["#8fd0b4", "#41a5b5", "#2a6fae", "#2b3a8c", "#1a1147"])
_SIGNED = LinearSegmentedColormap.from_list("signed", ["#08306b", "#2f7fc1", "#b9b9b9", "#e08214", "#7f3b08"])


@dataclass(frozen=True)
class SeenObject:
    """A photon, jet or fat jet of the event.

    Attributes
    ----------
    kind : str
        "Photon", "Jet" or "FatJet".
    pt, eta, phi : float
        pt in GeV, phi in rad.
    seed : (int, int) or None
        Row and column in the frame.
    scores : dict of str to float
        Empty when it was not scored.
    crops : tuple of int
        Sides of its crops [pixels].
    """

    kind: str
    pt: float
    eta: float
    phi: float
    seed: tuple[int, int] | None
    scores: dict[str, float]
    crops: tuple[int, ...]


@dataclass(frozen=True)
class SeenEvent:
    """What is drawn.

    Attributes
    ----------
    title : str
        File, run, lumisection, event.
    images : dict of str to numpy.ndarray of float32, shape (280, 360)
        The channels, in the order of the panels.
    units : dict of str to str
        "GeV", "cm" or "hits" of each channel.
    objects : tuple of SeenObject
    event_scores : dict of str to float
        Scores of the whole event.
    """

    title: str
    images: dict[str, Array]
    units: dict[str, str]
    objects: tuple[SeenObject, ...]
    event_scores: dict[str, float]


@dataclass(frozen=True)
class _Kind:
    title: str
    letter: str
    colour: str
    marker: str


_KINDS = {
    "Photon": _Kind("Photons", "γ", "#c8430a", "o"),
    "Jet": _Kind("Jets", "j", "#a3248f", "D"),
    "FatJet": _Kind("Fat jets", "J", "#1b1b1b", "h"),
}


def draw(event: SeenEvent, path: Path) -> None:
    """Draw an event into a PNG, PDF or SVG file, by the suffix.

    Raises
    ------
    UsageError
        The suffix is another one, or the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: a picture ends in {', '.join(SUFFIXES)}, not in '{path.suffix}'")
    with mpl.style.context("default"):
        figure = compose(event)
        try:
            figure.savefig(path, format=suffix[1:], dpi=DPI)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror}); check the folder") from None


def compose(event: SeenEvent) -> Figure:
    """The figure of an event: an axes for each channel, labelled with its name, on one for the page."""
    figure = Figure(figsize=PAGE)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, PAGE[0]), ylim=(0, PAGE[1]), zorder=-1, label="page")
    page.axis("off")  # its unit is the inch
    names = _names(event.objects)
    blocks = _blocks(event.objects, names)
    plan = _plan(len(event.images), blocks, PAGE[1] - _HEAD - 0.25 * bool(event.event_scores))
    _head(page, event)
    labels = _label_places(event.objects, names, plan)
    first = None
    for place, (channel, image) in enumerate(event.images.items()):
        axes = _panel(figure, page, plan, place, channel, first)
        _pixels(axes, page, plan, place, np.asarray(image, np.float64), event.units.get(channel, ""))
        _objects(axes, event.objects, names, labels, plan)
        first = first or axes
    _table(page, blocks, plan)
    _key(page, plan, event.objects)
    return figure


# --- Names and tables ---


@dataclass(frozen=True)
class _Block:
    """A small table. Sizes are in units of the text size, but in inches for a text of one point."""

    kind: str
    head: list[str]
    rows: list[list[str]]
    fractions: list[list[float]]  # how far a cell's bar reaches, nan for none
    note: str

    @property
    def widths(self) -> list[float]:
        columns = zip(self.head, *self.rows, strict=True)
        return [(0.62 * max(map(len, column)) + 1.0) / 72 for column in columns]

    @property
    def width(self) -> float:
        return sum(self.widths)

    @property
    def height(self) -> float:
        return _ROW * (1 + len(self.rows) + bool(self.note))


_ROW = 1.62 / 72


def _names(objects: Sequence[SeenObject]) -> dict[int, str]:
    """Names such as j1, by place in `objects`."""
    out: dict[int, str] = {}
    for kind in _KINDS:
        listed = sorted(_worth_listing(objects, kind)[:MAX_LISTED], key=lambda i: -objects[i].pt)
        out |= {i: f"{_KINDS[kind].letter}{rank}" for rank, i in enumerate(listed, 1)}
    return out


def _worth_listing(objects: Sequence[SeenObject], kind: str) -> list[int]:
    mine = [i for i, seen in enumerate(objects) if seen.kind == kind and (seen.scores or seen.pt > LABEL_PT)]
    return sorted(mine, key=lambda i: (not objects[i].scores, -objects[i].pt))


def _blocks(objects: Sequence[SeenObject], names: dict[int, str]) -> list[_Block]:
    out = []
    for kind, about in _KINDS.items():
        listed = [i for i in names if objects[i].kind == kind]
        if not listed:
            continue
        scores = list(dict.fromkeys(score for i in listed for score in objects[i].scores))
        rows, fractions = [], []
        for i in listed:
            seen = objects[i]
            cells = [names[i], f"{seen.pt:.1f}", _number(seen.eta, 2), _number(seen.phi, 2)]
            values = [seen.scores.get(score) for score in scores]
            rows.append([*cells, *(_score(value, seen.seed) for value in values)])
            bars = [value if value is not None and 0 <= value <= 1 else math.nan for value in values]
            fractions.append([math.nan] * len(cells) + bars)
        more = len(_worth_listing(objects, kind)) - len(listed)
        note = f"and {more} more" if more else ""
        out.append(_Block(kind, [about.title, "pT [GeV]", "η", "φ", *scores], rows, fractions, note))
    return out


def _number(value: float, digits: int) -> str:
    return f"{value:z.{digits}f}".replace("-", "−")


def _score(value: float | None, seed: tuple[int, int] | None) -> str:
    if value is None:
        return ""
    return "no seed" if seed is None and value == -1 else _number(value, 3)


# --- Where everything goes ---


@dataclass(frozen=True)
class _Plan:
    """Sizes in inches, `text` in points."""

    n: int
    n_columns: int
    text: float
    panel: float
    table: tuple[float, float]  # upper left corner
    stacked: bool
    top: float

    @property
    def height(self) -> float:
        return self.panel * N_ROWS / N_COLUMNS

    @property
    def n_rows(self) -> int:
        return -(-self.n // self.n_columns)

    @property
    def point(self) -> float:
        """Side of a pixel [points]."""
        return self.panel * 72 / N_COLUMNS

    @property
    def mark(self) -> float:
        """Size of an object's mark [points]."""
        return 3.0 + 1.1 * self.panel

    def corner(self, place: int) -> tuple[float, float]:
        """Lower left corner of a panel."""
        row, column = divmod(place, self.n_columns)
        left, _, bar, title = _rims(self.text)
        return _MARGIN + left + column * (self.panel + bar), self.top - (row + 1) * (title + self.height)


def _rims(text: float) -> tuple[float, float, float, float]:
    """Room left of the panels, below them, right of each (for its colour bar) and above each (for its title)."""
    return 0.056 * text, 0.046 * text, 0.072 * text, 0.031 * text


def _plan(n: int, blocks: Sequence[_Block], top: float) -> _Plan:
    """The best arrangement: large panels and a large text, the table right of them, below, or in a free place."""
    best, most = None, 0.0
    for text in _TEXT_SIZES:
        left, bottom, bar, title = _rims(text)
        gap = 2.0 * text / 72
        widths, heights = [b.width * text for b in blocks], [b.height * text for b in blocks]
        across = (sum(widths) + gap * (len(blocks) - 1), max(heights, default=0.0))
        down = (max(widths, default=0.0), sum(heights) + gap * (len(blocks) - 1))
        for n_columns in range(1, n + 1):
            n_rows = -(-n // n_columns)
            for where in ("right", "below", "free"):
                stacked = where == "right"
                width = PAGE[0] - 2 * _MARGIN - left - (down[0] + gap) * (where == "right")
                height = top - _FOOT - bottom - (across[1] + gap) * (where == "below")
                panel = min(width / n_columns - bar, (height / n_rows - title) * N_COLUMNS / N_ROWS)
                plan = _Plan(n, n_columns, text, panel, (0, 0), stacked, top)
                end = _MARGIN + left + n_columns * (panel + bar)
                floor = plan.corner(n - 1)[1] - bottom
                if where == "right":
                    corner = (end + gap, top - title)
                    room = (math.inf, top - title - _FOOT)
                elif where == "below":
                    corner = (_MARGIN, floor - gap)
                    room = (PAGE[0] - 2 * _MARGIN, math.inf)
                else:
                    corner = plan.corner(n)
                    corner = (corner[0], corner[1] + plan.height - (bottom if n_rows > 1 else 0))
                    room = (PAGE[0] - _MARGIN - corner[0], corner[1] - floor if n % n_columns else 0.0)
                    stacked = down[0] <= room[0] and down[1] <= room[1]
                wanted = down if stacked else across
                fits = 0 < text <= max(min(_TEXT_SIZES), 3 * panel + 1) and wanted[0] <= room[0] and wanted[1] <= room[1]
                value = panel * text**0.45 * math.sqrt(n / (n_rows * n_columns)) if fits else 0.0
                if best is None or value > most:
                    best, most = _Plan(n, n_columns, text, panel, corner, stacked, top), value
    assert best
    return best


# --- Drawing ---


def _text(axes: Any, x: float, y: float, text: str, size: float, **how: Any) -> Any:
    """Text as it is: a dollar in a file's name begins no formula."""
    return axes.text(x, y, text, fontsize=size, parse_math=False, **{"color": _INK, **how})


def _fit(text: str, size: float, width: float) -> tuple[str, float]:
    """A line's text and size [points] such that it fits into a width [inches], down to 9 points, then shortened."""
    size = max(min(size, width * 72 / (0.6 * len(text) + 1)), 9.0)
    n_most = int(width * 72 / (0.6 * size))
    if len(text) > n_most:
        text = f"{text[:n_most // 2]} … {text[3 - n_most // 2:]}"
    return text, size


def _head(page: Any, event: SeenEvent) -> None:
    width = PAGE[0] - 2 * _MARGIN
    text, size = _fit(event.title, 16, width)
    _text(page, _MARGIN, PAGE[1] - 0.48, text, size, weight="bold", gid="title")
    if event.event_scores:
        scores = "     ".join(f"{name}  {_score(value, None)}" for name, value in event.event_scores.items())
        text, size = _fit(f"Event scores     {scores}", 12, width)
        _text(page, _MARGIN, PAGE[1] - 0.76, text, size, color=_GREY, gid="event scores")


def _panel(figure: Figure, page: Any, plan: _Plan, place: int, channel: str, first: Any) -> Any:
    x, y = plan.corner(place)
    axes = figure.add_axes(
        (x / PAGE[0], y / PAGE[1], plan.panel / PAGE[0], plan.height / PAGE[1]),
        sharex=first, sharey=first, label=channel, xlim=(-math.pi, math.pi), ylim=(0, N_ROWS),
    )  # fmt: skip
    _text(page, x, y + plan.height + 0.5 * plan.text / 72, channel, 1.25 * plan.text, weight="bold")
    if first is None:
        steps = [0, 1, 2, 3] if plan.panel < 3 else [0, 0.5, 1, 1.5, 2, 3]
        etas = np.array([*(-step for step in steps[:0:-1]), *steps])
        axes.set_xticks(range(-3, 4), [str(x).replace("-", "−") for x in range(-3, 4)])
        axes.set_yticks(_row(etas), [f"{eta:g}".replace("-", "−") for eta in etas])
    axes.tick_params(
        labelsize=plan.text, length=3, color=_PALE, labelcolor=_GREY,
        labelleft=place % plan.n_columns == 0, labelbottom=place + plan.n_columns >= plan.n,
    )  # fmt: skip
    for spine in axes.spines.values():
        spine.set(color=_PALE, linewidth=0.8)
    if place % plan.n_columns == 0:
        axes.set_ylabel("η", fontsize=1.1 * plan.text, color=_GREY, rotation=0, labelpad=0.5 * plan.text)
    if place + plan.n_columns >= plan.n:
        axes.set_xlabel("φ [rad]", fontsize=1.1 * plan.text, color=_GREY, labelpad=1)
    for row in (EB_FIRST_ROW, EB_LAST_ROW + 1):
        axes.axhline(row, color=_PALE, linewidth=0.8, zorder=0.5, gid="endcap")
    if plan.panel > 6:
        for row, part in ((27, "EE−"), (140, "EB"), (252, "EE+")):
            _text(axes, 3.08, row, part, plan.text, color=_PALE, ha="right", va="center", zorder=0.5)
    return axes


def _row(eta: Any) -> Any:
    """Place of an eta on the rows, a row being 1 high; nan outside the frame."""
    return np.interp(eta, ETA_EDGES, np.arange(N_ROWS + 1), left=np.nan, right=np.nan)


def _x(column: Any) -> Any:
    """Azimuth in [-pi, pi) at the left edge of a column [rad]."""
    return ((column + 170) % N_COLUMNS - 180) * (2 * math.pi / N_COLUMNS)


def _scale(values: Array, unit: str) -> tuple[Any, Any, list[float], str]:
    """Norm, colour map, ticks and the ends that reach further, for the non-empty pixels of a channel."""
    most = float(np.abs(values).max())
    if values.min() < 0 or unit == "cm":
        linear = most / 10**DECADES
        norm = SymLogNorm(linear, vmin=-most, vmax=most)
        powers = _ticks(linear, most)
        return norm, _SIGNED, [*(-p for p in reversed(powers)), 0.0, *powers], "neither"
    if unit == "hits" and most <= 8:
        edges = np.arange(0.5, math.ceil(most) + 1)
        return BoundaryNorm(edges, _AMOUNT.N), _AMOUNT, list(range(1, math.ceil(most) + 1)), "neither"
    least = float(values.min())
    low = max(least, most / 10**DECADES)
    if low == most:
        low = most / 2
    return LogNorm(low, most), _AMOUNT, _ticks(low, most), "min" if least < low else "neither"


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a range, or 1, 2, 5 times these where there would be few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        out = [float(f"{step}e{power}") for power in powers for step in steps]
        out = [tick for tick in out if low <= tick <= high]
        if len(out) > 1:
            break
    return out or [high]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Plain numbers, but powers of ten where plain numbers would be long."""
    if all(tick == 0 or 0.01 <= abs(tick) < 1000 for tick in ticks):
        return [f"{tick:g}".replace("-", "−") for tick in ticks]
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    labels = []
    for tick in ticks:
        step, power = f"{abs(tick):.0e}".split("e")
        sign, factor = "−" * (tick < 0), "" if step == "1" else f"{step}×"
        labels.append(f"{sign}{factor}10{str(int(power)).translate(raised)}" if tick else "0")
    return labels


def _pixels(axes: Any, page: Any, plan: _Plan, place: int, image: Array, unit: str) -> None:
    """The non-empty pixels as squares that one can see, the largest values on top, and their colour scale."""
    rows, columns = np.nonzero(np.isfinite(image) & (image != 0))
    values = image[rows, columns]
    left, bottom = plan.corner(place)
    right, top = left + plan.panel, bottom + plan.height
    n = f"{values.size:,} pixel{'' if values.size == 1 else 's'}"
    _text(page, right, top + 0.5 * plan.text / 72, n, 0.9 * plan.text, color=_GREY, ha="right")
    if not values.size:
        _text(axes, 0, N_ROWS / 2, "empty", 1.25 * plan.text, color=_GREY, ha="center", va="center")
        return
    norm, colours, ticks, extend = _scale(values, unit)
    order = np.argsort(np.abs(values), kind="stable")
    # A pixel is smaller than what one sees on a slide; where there are many, they must not cover the panel.
    seen = min(0.26 * plan.text, math.sqrt(0.3 * N_ROWS * N_COLUMNS / values.size) * plan.point)
    axes.scatter(
        _x(columns[order]) + math.pi / N_COLUMNS, rows[order] + 0.5, max(plan.point, seen) ** 2, values[order],
        marker="s", linewidths=0, norm=norm, cmap=colours, zorder=1, gid="pixels", rasterized=values.size > 5000,
    )  # fmt: skip
    box = ((right + 0.08) / PAGE[0], bottom / PAGE[1], 0.012 * plan.text / PAGE[0], plan.height / PAGE[1])
    scale = axes.figure.add_axes(box, label=f"{axes.get_label()} scale")
    bar = axes.figure.colorbar(ScalarMappable(norm, colours), cax=scale, extend=extend, extendfrac=0.03)
    bar.set_ticks(ticks, labels=_tick_labels(ticks))
    bar.minorticks_off()
    bar.outline.set_visible(False)
    scale.tick_params(labelsize=0.9 * plan.text, length=2, pad=2, color=_PALE, labelcolor=_GREY)
    _text(page, right + 0.08, top + 0.5 * plan.text / 72, unit, 0.9 * plan.text, color=_GREY)


def _label_places(objects: Sequence[SeenObject], names: dict[int, str], plan: _Plan) -> dict[int, tuple[float, float]]:
    """Where each name stands, relative to its object [points]: the first place around it that is the freest."""
    width, height = plan.panel * 72, plan.height * 72
    at = {i: _direction(objects[i]) for i in names}
    at = {i: ((x / math.tau + 0.5) * width, y / N_ROWS * height) for i, (x, y) in at.items() if not math.isnan(x + y)}
    reach = 0.6 * plan.mark
    taken = [(x - reach, x + reach, y - reach, y + reach) for x, y in at.values()]
    out = {}
    for i, (x, y) in at.items():
        wide, high = 0.35 * plan.text * len(names[i]), 0.45 * plan.text
        best, least = (0.0, 0.0), math.inf
        for far in (1.0, 1.8, 2.6):
            for turn in (1, 3, 7, 5, 0, 4, 2, 6):
                dx = round(math.cos(turn * math.pi / 4)) * far * (reach + wide)
                dy = round(math.sin(turn * math.pi / 4)) * far * (reach + high)
                box = (x + dx - wide, x + dx + wide, y + dy - high, y + dy + high)
                outside = 4 * wide * high - _overlap(box, (0, width, 0, height))
                cost = 2 * outside + 3 * sum(_overlap(box, other) for other in taken) + 1.5 * (far - 1) * wide * high
                if cost < least - 1e-6:
                    best, least = (dx, dy), cost
        out[i] = best
        taken.append((x + best[0] - wide, x + best[0] + wide, y + best[1] - high, y + best[1] + high))
    return out


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    wide = min(one[1], other[1]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[2], other[2])
    return max(wide, 0.0) * max(high, 0.0)


def _direction(seen: SeenObject) -> tuple[float, float]:
    """Azimuth in [-pi, pi) and place on the rows."""
    return (seen.phi + math.pi) % math.tau - math.pi, float(_row(seen.eta))


def _objects(axes: Any, objects: Sequence[SeenObject], names: dict[int, str], labels: Any, plan: _Plan) -> None:
    size = plan.mark
    for i, seen in enumerate(objects):
        kind = _KINDS[seen.kind]
        x, y = _direction(seen)
        if i not in names:
            _mark(axes, x, y, kind, 0.45 * size, alpha=0.3, gid="unnamed")
            continue
        for side in seen.crops if seen.seed else ():
            _crop(axes, seen.seed, side, kind.colour)
        if seen.seed:
            _seed(axes, _x(seen.seed[1]) + math.pi / N_COLUMNS, seen.seed[0] + 0.5, kind.colour, plan)
        if i in labels:
            _mark(axes, x, y, kind, size, clip_on=False, gid=names[i])
            line = {"arrowstyle": "-", "color": kind.colour, "lw": 0.6, "shrinkA": 0, "shrinkB": size / 2}
            axes.annotate(
                names[i], (x, y), labels[i], textcoords="offset points", fontsize=plan.text, weight="bold",
                color=kind.colour, ha="center", va="center", path_effects=_HALO, zorder=5, arrowprops=line,
            )  # fmt: skip


def _mark(axes: Any, x: float, y: float, kind: _Kind, size: float, **how: Any) -> None:
    axes.plot([x], [y], kind.marker, ms=size, mfc="none", mec=kind.colour, mew=0.12 * size, zorder=4, **how)


def _seed(axes: Any, x: float, y: float, colour: str, plan: _Plan) -> None:
    """A frame around the seed pixel."""
    size = max(plan.point, 0.26 * plan.text) + 0.25 * plan.mark
    axes.plot([x], [y], "s", ms=size, mfc="none", mec=colour, mew=0.12 * plan.mark, zorder=4, gid="seed")


def _crop(axes: Any, seed: tuple[int, int], side: int, colour: str) -> None:
    """A crop's border; what leaves the panel at phi = pi comes in at the other side, beyond the frame in eta is no border."""
    before = side // 2 - 1
    column = math.tau / N_COLUMNS
    left = _x(seed[1]) - before * column
    for shift in (-math.tau, 0.0, math.tau):
        if left + shift < math.pi - 1e-9 and left + shift + side * column > -math.pi + 1e-9:
            axes.add_patch(
                Rectangle((left + shift, seed[0] - before), side * column, side, fill=False, edgecolor=colour,
                          linewidth=0.9, alpha=0.7, zorder=3, gid="crop")  # fmt: skip
            )


def _table(page: Any, blocks: Sequence[_Block], plan: _Plan) -> None:
    x, y = plan.table
    gap = 2.0 * plan.text / 72
    for block in blocks:
        _block(page, block, x, y, plan)
        if plan.stacked:
            y -= block.height * plan.text + gap
        else:
            x += block.width * plan.text + gap


def _block(page: Any, block: _Block, x: float, y: float, plan: _Plan) -> None:
    """A small table with its upper left corner at (x, y) [inches]."""
    text, row = plan.text, _ROW * plan.text
    kind = _KINDS.get(block.kind)
    colour = kind.colour if kind else _INK
    edges = x + np.cumsum([0.0, *block.widths]) * text
    pad = 0.3 * text / 72
    for place, cells in enumerate([block.head, *block.rows]):
        middle = y - (place + 0.5) * row
        for k, cell in enumerate(cells):
            how: dict[str, Any] = {"va": "center", "color": _INK if place else _GREY}
            if k == 0:
                how |= {"ha": "left", "color": colour, "weight": "bold"}
            elif kind:
                how["ha"] = "right"
            if place and not math.isnan(part := block.fractions[place - 1][k]):
                corner, wide = (edges[k] + pad, middle - 0.38 * row), edges[k + 1] - edges[k] - 2 * pad
                page.add_patch(Rectangle(corner, wide, 0.76 * row, color=colour, alpha=0.06, linewidth=0))
                page.add_patch(Rectangle(corner, wide * part, 0.76 * row, color=colour, alpha=0.2, linewidth=0))
            _text(page, edges[k] if how.get("ha", "left") == "left" else edges[k + 1] - 2 * pad, middle, cell, text, **how)
    if block.note:
        _text(page, x, y - (len(block.rows) + 1.5) * row, block.note, 0.9 * text, color=_GREY, va="center")
    page.plot([x, edges[-1]], [y - row] * 2, color=_PALE, linewidth=0.8)


def _key(page: Any, plan: _Plan, objects: Sequence[SeenObject]) -> None:
    """What the symbols mean, in a line at the bottom."""
    if not objects:
        return
    crops = []
    for kind, about in _KINDS.items():
        sides = sorted({side for seen in objects for side in seen.crops if seen.kind == kind})
        if sides:
            crops.append(f"{', '.join(f'{side} × {side}' for side in sides)} ({about.title.lower()})")
    crop = f"crop, {', '.join(crops)}" if crops else "crop"
    other, x, y = _Kind("", "", _GREY, "o"), _MARGIN + 0.1, 0.27
    for place, text in enumerate(("direction", "seed pixel", crop, f"pt up to {LABEL_PT:g} GeV, not scored")):
        if place == 0:
            _mark(page, x, y, other, 7)
        elif place == 1:
            page.plot([x], [y], "s", ms=4, mfc="none", mec=_GREY, mew=1)
        elif place == 2:
            page.add_patch(Rectangle((x - 0.065, y - 0.065), 0.13, 0.13, fill=False, ec=_GREY))
        else:
            _mark(page, x, y, other, 4, alpha=0.5)
        _text(page, x + 0.15, y, text, 9, color=_GREY, va="center_baseline")
        x += 0.5 + 0.072 * len(text)
