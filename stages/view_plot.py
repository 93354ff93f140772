"""The picture of one event: the detector frame channel by channel, its photons and jets, their crops and scores.

A panel is the frame as it is streamed: 280 rows of equal height and 360 columns, so that pixels and crops are square.
It begins at phi = -pi. Eta is marked where it lies on the rows, which are wider in the endcaps than in the barrel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
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

from stages.detector.grid import ETA_EDGES
from stages.detector.layout import EB_FIRST_ROW, EB_LAST_ROW, N_COLUMNS, N_ROWS
from streamer.block import Array
from streamer.errors import UsageError

SUFFIXES = (".png", ".pdf", ".svg")
DPI = 200
PAGE = (13.333, 7.5)
"""Width and height of the picture [inches], those of a slide; it is less high where there is less to show."""
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
        The channels, at least one, in the order of the panels.
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
            raise UsageError(f"{path}: cannot be written ({error.strerror or error}); check its folder") from None


def compose(event: SeenEvent) -> Figure:
    """The figure of an event: an axes for each channel, labelled with its name, on one for the page."""
    names = _names(event.objects)
    blocks = _blocks(event.objects, names)
    plan = _plan(len(event.images), blocks, _HEAD + 0.25 * bool(event.event_scores))
    figure = Figure(figsize=(PAGE[0], plan.page))
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, PAGE[0]), ylim=(0, plan.page), zorder=-1, label="page")
    page.axis("off")  # its unit is the inch
    _head(page, event, plan)
    labels = _label_places(event.objects, names, plan)
    first = None
    for place, (channel, image) in enumerate(event.images.items()):
        axes = _panel(figure, page, plan, place, channel, first)
        _pixels(axes, page, plan, place, np.asarray(image, np.float64), event.units.get(channel, ""))
        _objects(axes, event.objects, names, labels, plan)
        first = first or axes
    _tables(page, blocks, plan)
    if event.objects:
        _key(page, event.objects)
    return figure


# --- Names and tables ---


_ROW, _GAP = 1.62 / 72, 2.0 / 72  # height of a row and distance of tables [inches], for a text of one point


@dataclass(frozen=True)
class _Block:
    """The table of one kind of objects."""

    kind: _Kind
    head: list[str]
    rows: list[list[str]]
    bars: list[list[float]]
    """How far the bar of a score reaches, nan where there is none."""
    note: str

    @property
    def widths(self) -> list[float]:
        """Of the columns [inches], for a text of one point."""
        return [(0.62 * max(map(len, cells)) + 1.0) / 72 for cells in zip(self.head, *self.rows, strict=True)]

    def size(self, text: float) -> tuple[float, float]:
        """Width and height [inches]."""
        return sum(self.widths) * text, _ROW * text * (1 + len(self.rows) + bool(self.note))


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
        listed = {name: objects[i] for i, name in names.items() if objects[i].kind == kind}
        if not listed:
            continue
        scores = list(dict.fromkeys(score for seen in listed.values() for score in seen.scores))
        rows, bars = [], []
        for name, seen in listed.items():
            values = [seen.scores.get(score) for score in scores]
            place = [f"{seen.pt:.1f}", _number(seen.eta, 2), _number(seen.phi, 2)]
            rows.append([name, *place, *(_score(value, seen.seed) for value in values)])
            bars.append([value if value is not None and 0 <= value <= 1 else math.nan for value in values])
        more = len(_worth_listing(objects, kind)) - len(listed)
        head = [about.title, "pT [GeV]", "η", "φ", *scores]
        out.append(_Block(about, head, rows, bars, f"and {more} more" if more else ""))
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
    """An arrangement of panels and tables. Lengths are in inches, from the lower left corner of the page.

    Attributes
    ----------
    n, n_columns : int
        Panels, and how many stand side by side.
    text : float
        Text size [points]; the room for axis and colour labels goes with it.
    panel : float
        Width of a panel.
    page : float
        Height of the page.
    head : float
        Room for the title of the page.
    tables : (float, float)
        Upper left corner of the tables.
    stacked : bool
        The tables stand one below the other, and not side by side.
    """

    n: int
    n_columns: int
    text: float
    panel: float
    page: float
    head: float
    tables: tuple[float, float] = (0.0, 0.0)
    stacked: bool = False

    @property
    def height(self) -> float:
        """Height of a panel."""
        return self.panel * N_ROWS / N_COLUMNS

    @property
    def point(self) -> float:
        """Side of a pixel [points]."""
        return self.panel * 72 / N_COLUMNS

    @property
    def seen(self) -> float:
        """Side of the smallest square that is seen on a slide [points]; a pixel is smaller in most panels."""
        return 0.26 * self.text

    @property
    def mark(self) -> float:
        """Size of an object's mark [points]."""
        return 3.0 + 1.1 * self.panel

    def corner(self, place: int) -> tuple[float, float]:
        """Lower left corner of a panel."""
        row, column = divmod(place, self.n_columns)
        left, _, bar, title = _rims(self.text)
        return _MARGIN + left + column * (self.panel + bar), self.page - self.head - (row + 1) * (title + self.height)


def _rims(text: float) -> tuple[float, float, float, float]:
    """Room left of the panels, below them, right of each (for its colour bar) and above each (for its title)."""
    return 0.056 * text, 0.046 * text, 0.072 * text, 0.031 * text


def _plan(n: int, blocks: Sequence[_Block], head: float) -> _Plan:
    """The best arrangement: large panels, a large text, few free places; tables in these, below, or at the right."""
    best, most = None, 0.0
    top = PAGE[1] - head
    for text, n_columns, where in product(_TEXT_SIZES, range(1, n + 1), ("free", "below", "right")):
        left, bottom, bar, title = _rims(text)
        gap = _GAP * text
        sizes = [block.size(text) for block in blocks] or [(0.0, 0.0)]
        across = (sum(w for w, _ in sizes) + gap * (len(sizes) - 1), max(h for _, h in sizes))
        down = (max(w for w, _ in sizes), sum(h for _, h in sizes) + gap * (len(sizes) - 1))
        n_rows = -(-n // n_columns)
        width = PAGE[0] - 2 * _MARGIN - left - (down[0] + gap if where == "right" else 0)
        height = top - _FOOT - bottom - (across[1] + gap if where == "below" else 0)
        panel = min(width / n_columns - bar, (height / n_rows - title) * N_COLUMNS / N_ROWS)
        value = panel * text**0.45 * math.sqrt(n / (n_rows * n_columns))
        if panel <= 0 or text > max(_TEXT_SIZES[-1], 3 * panel + 1) or value <= most:
            continue  # no large text at small panels
        plan = _Plan(n, n_columns, text, panel, PAGE[1], head)
        lowest = plan.corner(n - 1)[1] - bottom
        if where == "right":
            x, y, x_end, y_end = _MARGIN + left + n_columns * (panel + bar) + gap, top - title, math.inf, _FOOT
        elif where == "below":
            x, y, x_end, y_end = _MARGIN, lowest - gap, PAGE[0] - _MARGIN, -math.inf
        else:
            x, y = plan.corner(n)  # in the next row, so without room, where no place is free
            x, y, x_end, y_end = x, y + plan.height - (bottom if n_rows > 1 else 0), PAGE[0] - _MARGIN, lowest
        stacked = where != "below" and x + down[0] <= x_end and y - down[1] >= y_end
        if stacked or (where != "right" and x + across[0] <= x_end and y - across[1] >= y_end):
            spare = min(lowest, y - (down if stacked else across)[1]) - _FOOT
            best, most = replace(plan, page=PAGE[1] - spare, tables=(x, y - spare), stacked=stacked), value
    return best or _plan(n, (), head)  # tables that fit nowhere are drawn over something


# --- Drawing ---


def _text(axes: Any, x: float, y: float, text: str, size: float, **how: Any) -> Any:
    """Text as it is: a dollar in a file's name begins no formula."""
    return axes.text(x, y, text, fontsize=size, parse_math=False, **{"color": _INK, **how})


def _fit(text: str, size: float, width: float) -> tuple[str, float]:
    """A line's text and size [points] such that it fits into a width [inches], down to 9 points, then shortened."""
    size = max(min(size, width * 72 / (0.7 * len(text))), 9.0)
    n_most = int(width * 72 / (0.7 * size))
    if len(text) > n_most:
        half = n_most // 2 - 1
        text = f"{text[:half]} … {text[-half:]}"
    return text, size


def _head(page: Any, event: SeenEvent, plan: _Plan) -> None:
    width = PAGE[0] - 2 * _MARGIN
    text, size = _fit(event.title, 16, width)
    _text(page, _MARGIN, plan.page - 0.48, text, size, weight="bold", gid="title")
    if event.event_scores:
        scores = "     ".join(f"{name}  {_score(value, None)}" for name, value in event.event_scores.items())
        text, size = _fit(f"Event scores     {scores}", 12, width)
        _text(page, _MARGIN, plan.page - 0.76, text, size, color=_GREY, gid="event scores")


def _panel(figure: Figure, page: Any, plan: _Plan, place: int, channel: str, first: Any) -> Any:
    x, y = plan.corner(place)
    axes = figure.add_axes(
        (x / PAGE[0], y / plan.page, plan.panel / PAGE[0], plan.height / plan.page),
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


_COLUMN = math.tau / N_COLUMNS


def _row(eta: Any) -> Any:
    """Place of an eta on the rows, a row being 1 high; nan outside the frame."""
    return np.interp(eta, ETA_EDGES, np.arange(N_ROWS + 1), left=np.nan, right=np.nan)


def _x(column: Any) -> Any:
    """Azimuth in [-pi, pi) of the left edge of a column [rad]."""
    return ((column + 170) % N_COLUMNS - 180) * _COLUMN


def _scale(values: Array, unit: str) -> tuple[Any, Any, Sequence[float], str]:
    """Norm, colour map, ticks and the ends that reach further, for the non-empty pixels of a channel."""
    most = float(np.abs(values).max())
    if values.min() < 0 or unit == "cm":
        linear = most / 10**DECADES
        norm = SymLogNorm(linear, vmin=-most, vmax=most)
        ticks = _ticks(linear, most)
        return norm, _SIGNED, [*(-tick for tick in reversed(ticks)), 0.0, *ticks], "neither"
    if unit == "hits" and most <= 8:
        counts = np.arange(1, math.ceil(most) + 1)
        return BoundaryNorm([0.5, *(counts + 0.5)], _AMOUNT.N), _AMOUNT, counts.tolist(), "neither"
    least = float(values.min())
    low = max(least, most / 10**DECADES) if least < most else most / 2
    return LogNorm(low, most), _AMOUNT, _ticks(low, most), "min" if least < low else "neither"


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a range, or 1, 2, 5 times these where there would be few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [(step, float(f"{step}e{power}")) for power in powers for step in (1, 2, 5)]
    few = [tick for step, tick in every if step == 1 and low <= tick <= high]
    return few if len(few) > 1 else [tick for _, tick in every if low <= tick <= high]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Plain numbers, but powers of ten where plain numbers would be long."""
    plain = [f"{tick:g}".replace("-", "−") for tick in ticks]
    if max(map(len, plain)) <= 5:
        return plain
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    labels = []
    for tick in ticks:
        factor, power = f"{tick:.0e}".split("e")
        factor = {"1": "", "-1": "−"}.get(factor, f"{factor}×".replace("-", "−"))
        labels.append(f"{factor}10{str(int(power)).translate(raised)}" if tick else "0")
    return labels


def _pixels(axes: Any, page: Any, plan: _Plan, place: int, image: Array, unit: str) -> None:
    """The non-empty pixels as squares that one can see, the largest values on top, and their colour scale."""
    rows, columns = np.nonzero(np.isfinite(image) & (image != 0))
    values = image[rows, columns]
    left, bottom = plan.corner(place)
    right, top = left + plan.panel, bottom + plan.height
    n = f"{values.size:,} pixel{'' if values.size == 1 else 's'}" if values.size else "empty"
    _text(page, right, top + 0.5 * plan.text / 72, n, 0.9 * plan.text, color=_GREY, ha="right")
    if not values.size:
        return
    norm, colours, ticks, extend = _scale(values, unit)
    order = np.argsort(np.abs(values), kind="stable")
    # A pixel is smaller than what one sees on a slide; where there are many, they must not cover the panel.
    seen = min(plan.seen, math.sqrt(0.3 * N_ROWS * N_COLUMNS / values.size) * plan.point)
    axes.scatter(
        _x(columns[order]) + _COLUMN / 2, rows[order] + 0.5, max(plan.point, seen) ** 2, values[order],
        marker="s", linewidths=0, norm=norm, cmap=colours, zorder=1, gid="pixels", rasterized=values.size > 5000,
    )  # fmt: skip
    box = ((right + 0.08) / PAGE[0], bottom / plan.page, 0.012 * plan.text / PAGE[0], plan.height / plan.page)
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
        wide, high = 0.35 * plan.text * len(names[i]), 0.5 * plan.text
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
    for i, seen in enumerate(objects):
        kind = _KINDS[seen.kind]
        x, y = _direction(seen)
        if i not in names:
            _mark(axes, x, y, kind, 0.45 * plan.mark, alpha=0.3, gid="unnamed")
            continue
        if seen.seed is not None:
            _seed(axes, seen.seed, kind, plan)
            for side in seen.crops:
                _crop(axes, seen.seed, side, kind)
        if i in labels:
            _mark(axes, x, y, kind, plan.mark, clip_on=False, gid=names[i])
            line = {"arrowstyle": "-", "color": kind.colour, "lw": 0.6, "shrinkA": 0, "shrinkB": plan.mark / 2}
            axes.annotate(
                names[i], (x, y), labels[i], textcoords="offset points", fontsize=plan.text, weight="bold",
                color=kind.colour, ha="center", va="center", path_effects=_HALO, zorder=5, arrowprops=line,
            )  # fmt: skip


def _mark(axes: Any, x: float, y: float, kind: _Kind, size: float, **how: Any) -> None:
    axes.plot([x], [y], kind.marker, ms=size, mfc="none", mec=kind.colour, mew=0.12 * size, zorder=4, **how)


def _seed(axes: Any, seed: tuple[int, int], kind: _Kind, plan: _Plan) -> None:
    """A frame around the seed pixel."""
    x, y = _x(seed[1]) + _COLUMN / 2, seed[0] + 0.5
    size, line = max(plan.point, plan.seen) + 0.25 * plan.mark, 0.12 * plan.mark
    axes.plot([x], [y], "s", ms=size, mfc="none", mec=kind.colour, mew=line, zorder=4, gid="seed")


def _crop(axes: Any, seed: tuple[int, int], side: int, kind: _Kind) -> None:
    """The border of a crop: what leaves the panel in phi comes in at the other side; in eta it is cut off."""
    before = side // 2 - 1
    left, width = _x(seed[1]) - before * _COLUMN, side * _COLUMN
    how: dict[str, Any] = {
        "fill": False,
        "edgecolor": kind.colour,
        "linewidth": 0.9,
        "alpha": 0.7,
        "zorder": 3,
        "gid": "crop",
    }
    for x in (left - math.tau, left, left + math.tau):
        if x < math.pi - 1e-9 and x + width > -math.pi + 1e-9:
            axes.add_patch(Rectangle((x, seed[0] - before), width, side, **how))


def _tables(page: Any, blocks: Sequence[_Block], plan: _Plan) -> None:
    x, y = plan.tables
    for block in blocks:
        _block(page, block, x, y, plan.text)
        width, height = block.size(plan.text)
        if plan.stacked:
            y -= height + _GAP * plan.text
        else:
            x += width + _GAP * plan.text


def _block(page: Any, block: _Block, x: float, y: float, text: float) -> None:
    """A table with its upper left corner at (x, y) [inches]."""
    row, pad, colour = _ROW * text, 0.3 * text / 72, block.kind.colour
    edges = x + np.cumsum([0.0, *block.widths]) * text
    for line, (name, *cells) in enumerate([block.head, *block.rows]):
        middle = y - (line + 0.5) * row
        _text(page, x, middle, name, text, color=colour, weight="bold", va="center")
        for edge, cell in zip(edges[2:], cells, strict=True):
            grey = _INK if line else _GREY
            _text(page, edge - 2 * pad, middle, cell, text, color=grey, ha="right", va="center")
    for line, bars in enumerate(block.bars, 1):
        for k, part in enumerate(bars, 4):
            if not math.isnan(part):
                corner, width = (edges[k] + pad, y - (line + 0.88) * row), edges[k + 1] - edges[k] - 2 * pad
                page.add_patch(Rectangle(corner, width, 0.76 * row, color=colour, alpha=0.06, linewidth=0))
                page.add_patch(Rectangle(corner, width * part, 0.76 * row, color=colour, alpha=0.2, linewidth=0))
    _text(page, x, y - (len(block.rows) + 1.5) * row, block.note, 0.9 * text, color=_GREY, va="center")
    page.plot([x, edges[-1]], [y - row] * 2, color=_PALE, linewidth=0.8)


def _key(page: Any, objects: Sequence[SeenObject]) -> None:
    """What the symbols mean, in a line at the bottom."""
    sides = {
        kind.title.lower(): sorted({side for seen in objects if seen.kind == name for side in seen.crops})
        for name, kind in _KINDS.items()
    }
    crops = [f"{' and '.join(f'{n} × {n}' for n in sizes)} ({kinds})" for kinds, sizes in sides.items() if sizes]
    x, y = _MARGIN + 0.1, 0.27
    for marker, size, text in (
        ("o", 7, "direction"),
        ("s", 4, "seed pixel"),
        ("s", 9, f"crop: {', '.join(crops)}" if crops else ""),
        ("o", 3, "not listed"),
    ):
        if text:
            page.plot([x], [y], marker, ms=size, mfc="none", mec=_GREY, mew=min(1, 0.2 * size))
            _text(page, x + 0.15, y, text, 9, color=_GREY, va="center_baseline")
            x += 0.5 + 0.07 * len(text)
