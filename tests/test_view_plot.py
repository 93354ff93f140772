"""What the picture of an event shows, and where."""

import math
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, LogNorm, SymLogNorm
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from stages.detector.grid import ETA_EDGES, column_of_phi, eta_of_row, phi_of_column, row_of_eta
from stages.view_plot import DPI, LABEL_PT, MAX_LISTED, PAGE, SeenEvent, SeenObject, compose, draw
from streamer.errors import UsageError

TRACKS = ("track pt", "track d0", "track dz")
CHANNELS = (*TRACKS, "BPIX1", "BPIX2", "BPIX3", "BPIX4", "ECAL", "HCAL", "TIB", "TOB", "TID", "TEC")
UNITS = dict.fromkeys(CHANNELS, "hits") | {"track pt": "GeV", "ECAL": "GeV", "HCAL": "GeV"}
UNITS |= {"track d0": "cm", "track dz": "cm"}

Image = npt.NDArray[np.float32]


def image(pixels: dict[tuple[int, int], float]) -> Image:
    out = np.zeros((280, 360), np.float32)
    for place, value in pixels.items():
        out[place] = value
    return out


def jet(pt: float = 50.0, eta: float = 0.3, phi: float = 1.0, **other: Any) -> SeenObject:
    given: dict[str, Any] = {"kind": "Jet", "seed": None, "scores": {}, "crops": ()} | other
    return SeenObject(pt=pt, eta=eta, phi=phi, **given)


def event(*objects: SeenObject, **other: Any) -> SeenEvent:
    given: dict[str, Any] = {
        "title": "events.root   run 1, lumisection 2, event 3",
        "images": {"ECAL": image({(140, 10): 1.0, (141, 10): 20.0})},
        "units": UNITS,
        "event_scores": {},
    }
    return SeenEvent(objects=objects, **(given | other))


def crowded(channels: tuple[str, ...]) -> SeenEvent:
    """As many objects as there may be, some in one place, some in the corners, on images of all kinds."""
    random = np.random.default_rng(3)
    images = {}
    for channel in channels:
        pixels = (random.integers(280, size=500), random.integers(360, size=500))
        images[channel] = np.zeros((280, 360), np.float32)
        images[channel][pixels] = {
            "GeV": random.exponential(2.0, 500),
            "cm": random.normal(0, 0.02, 500),
            "hits": random.integers(1, 5, 500),
        }[UNITS[channel]]
    places = [(2.35, -3.0), (0.8, 1.4), (-0.3, 1.2), (-1.0, -1.9), (1.4, -1.5)]
    objects = [
        jet(90.0 - 9 * i, eta, phi, kind=kind, seed=(140, 190 + i), scores={score: 0.1 * i, "otherScore": 0.5},
            crops=(side,))
        for kind, score, side in (("Photon", "egScore", 32), ("Jet", "qgScore", 128), ("FatJet", "topScore", 128))
        for i, (eta, phi) in enumerate(places)
    ]  # fmt: skip
    objects += [jet(10.0, random.uniform(-3, 3), random.uniform(-3, 3)) for _ in range(40)]
    return event(*objects, images=images, event_scores={"ttbarScore": 0.9})


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_label() != "page" and axes not in scales(figure)]


def scales(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_label().endswith(" scale")]


def panel(seen: SeenEvent) -> Any:
    (only,) = panels(compose(seen))
    return only


def with_gid(axes: Any, gid: str) -> list[Any]:
    return [artist for artist in axes.get_children() if artist.get_gid() == gid]


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def page(figure: Any) -> Any:
    (only,) = [axes for axes in figure.axes if axes.get_label() == "page"]
    return only


def row_of(seen: SeenEvent, name: str) -> list[str]:
    """The cells of an object in its table, from left to right."""
    axes = page(compose(seen))
    (height,) = [text.get_position()[1] for text in axes.texts if text.get_text() == name]
    cells = [text for text in axes.texts if abs(text.get_position()[1] - height) < 1e-6]
    return [text.get_text() for text in sorted(cells, key=lambda text: text.get_position()[0])]


# --- Files ---


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_png_is_a_slide_wide(tmp_path: Path) -> None:
    draw(crowded(("ECAL", "HCAL")), tmp_path / "event.PNG")
    width, height = png_size(tmp_path / "event.PNG")
    assert width == int(PAGE[0] * DPI)
    assert 0.7 * PAGE[1] * DPI < height <= PAGE[1] * DPI


@pytest.mark.parametrize(("suffix", "begin"), [("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_vector_files(tmp_path: Path, suffix: str, begin: bytes) -> None:
    path = tmp_path / f"event.{suffix}"
    draw(event(jet(seed=(140, 10), crops=(32,))), path)
    assert path.read_bytes().startswith(begin)
    assert path.stat().st_size > 5000


@pytest.mark.parametrize("name", ["event.jpg", "event", "event.png.gz"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.pdf, \.svg"):
        draw(event(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["nowhere/event.png", "folder.png"])
def test_unwritable_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="cannot be written") as caught:
        draw(event(), tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_style_of_the_user_is_left_alone(tmp_path: Path) -> None:
    with mpl.rc_context({"savefig.bbox": "tight", "text.usetex": True, "font.size": 40.0}):
        draw(event(), tmp_path / "event.png")
        assert mpl.rcParams["font.size"] == 40.0
    assert png_size(tmp_path / "event.png")[0] == int(PAGE[0] * DPI)


def test_neither_pyplot_nor_a_display_is_needed(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import numpy as np; from stages.view_plot import SeenEvent, draw\n"
        "draw(SeenEvent('t', {'ECAL': np.eye(280, 360)}, {}, (), {}), Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MPLBACKEND": "TkAgg"}
    path = tmp_path / "event.png"
    subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=True, timeout=60)
    assert png_size(path)[0] == int(PAGE[0] * DPI)


# --- Panels ---


@pytest.mark.parametrize("n", [1, 3, 5, 8, 13])
def test_every_channel_has_a_panel_and_a_colour_bar_and_nothing_overlaps(n: int) -> None:
    figure = compose(crowded(CHANNELS[-n:]))
    renderer = FigureCanvasAgg(figure).get_renderer()
    channels = [axes.get_label() for axes in panels(figure)]
    assert channels == list(CHANNELS[-n:])
    assert [axes.get_label() for axes in scales(figure)] == [f"{channel} scale" for channel in channels]
    boxes = {axes.get_label(): axes.get_window_extent(renderer) for axes in panels(figure)}
    boxes |= {axes.get_label(): axes.get_tightbbox(renderer) for axes in scales(figure)}
    for axes in panels(figure):
        for side in (axes.xaxis, axes.yaxis):
            if box := side.get_tightbbox(renderer):  # an inner panel shows no numbers
                boxes[f"{side.axis_name} axis of {axes.get_label()}"] = box
    boxes |= {
        f"text {i} {text.get_text()}": text.get_window_extent(renderer)
        for i, text in enumerate(page(figure).texts)
        if text.get_text()
    }
    whole = figure.bbox
    for name, box in boxes.items():
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, name
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1, name
    for (name, one), (other_name, other) in combinations(boxes.items(), 2):
        if "axis of" in name and "axis of" in other_name:
            continue  # the numbers of two axes meet at a corner
        common = Bbox.intersection(one, other)
        assert common is None or min(common.width, common.height) < 2, (name, other_name)

    names = [text for text in panels(figure)[-1].texts if text.get_text()[0] in "jJγ"]
    assert len(names) == 15
    for text in names:
        text.update_positions(renderer)  # as when it is drawn
    for one, other in combinations([Text.get_window_extent(text, renderer) for text in names], 2):
        common = Bbox.intersection(one, other)
        area = common.width * common.height if common else 0.0
        assert area < 0.15 * min(one.width * one.height, other.width * other.height)


def test_panels_share_their_axes_and_cover_the_frame() -> None:
    one, two, three = panels(compose(event(images={name: image({(1, 1): 1.0}) for name in ("ECAL", "TIB", "TEC")})))
    assert one.get_shared_x_axes().joined(one, three)
    assert one.get_shared_y_axes().joined(one, two)
    assert two.get_xlim() == (-math.pi, math.pi)
    assert two.get_ylim() == (0, 280)
    box = one.get_window_extent()
    assert box.width / 360 == pytest.approx(box.height / 280)  # pixels and crops are square


def test_eta_ticks_lie_in_the_rows_of_their_eta() -> None:
    axes = panel(event())
    labels = [label.get_text().replace("−", "-") for label in axes.get_yticklabels()]
    etas = np.array([float(label) for label in labels])
    assert {-3.0, -1.5, 0.0, 1.5, 2.0, 3.0} <= set(etas)
    places = axes.get_yticks()
    assert places[0] == 0
    assert places[-1] == 280
    np.testing.assert_array_equal(np.floor(places[1:-1]), row_of_eta(etas[1:-1]))


def test_borders_of_the_barrel() -> None:
    rows = [int(line.get_ydata()[0]) for line in with_gid(panel(event()), "endcap")]
    np.testing.assert_allclose(ETA_EDGES[rows], [-1.479, 1.479])


# --- Pixels ---


@pytest.mark.parametrize("column", [0, 10, 189, 190, 359])
def test_pixel_is_at_its_phi_and_row(column: int) -> None:
    (pixels,) = with_gid(panel(event(images={"ECAL": image({(225, column): 3.0})})), "pixels")
    ((x, y),) = pixels.get_offsets()
    assert x == pytest.approx(phi_of_column(column))
    assert y == 225.5


def test_largest_pixel_is_on_top_and_all_are_seen() -> None:
    values = {(140, 10): 50.0, (140, 11): 0.1, (141, 10): 2.0}
    (pixels,) = with_gid(panel(event(images={"ECAL": image(values)})), "pixels")
    np.testing.assert_allclose(pixels.get_array(), [0.1, 2.0, 50.0])
    assert pixels.get_sizes()[0] >= 1.5**2
    thirteen = compose(event(images=dict.fromkeys(CHANNELS, image(values))))
    assert all(with_gid(axes, "pixels")[0].get_sizes()[0] >= 1.5**2 for axes in panels(thirteen))


def test_pixels_of_a_full_frame_have_their_true_size() -> None:
    axes = panel(event(images={"ECAL": np.ones((280, 360), np.float32)}))
    (pixels,) = with_gid(axes, "pixels")
    points = axes.get_window_extent().width / axes.figure.dpi * 72
    assert math.sqrt(pixels.get_sizes()[0]) == pytest.approx(points / 360)


def test_energies_have_a_logarithmic_scale_of_three_decades() -> None:
    axes = panel(event(images={"ECAL": image({(1, 1): 1e-6, (1, 2): 1.0, (1, 3): 20.0})}))
    norm = with_gid(axes, "pixels")[0].norm
    assert isinstance(norm, LogNorm)
    assert (norm.vmin, norm.vmax) == pytest.approx((0.02, 20.0))


def test_signed_values_have_a_scale_around_zero() -> None:
    for unit in ("cm", "GeV"):
        seen = event(images={"track d0": image({(1, 1): -0.2, (1, 2): 0.001})}, units={"track d0": unit})
        figure = compose(seen)
        norm = with_gid(panels(figure)[0], "pixels")[0].norm
        assert isinstance(norm, SymLogNorm)
        assert (norm.vmin, norm.vmax, norm(0.0)) == pytest.approx((-0.2, 0.2, 0.5))
        (scale,) = scales(figure)
        assert [label.get_text() for label in scale.get_yticklabels()] == [
            *("−10⁻¹", "−10⁻²", "−10⁻³", "0", "10⁻³", "10⁻²", "10⁻¹")
        ]


def test_small_counts_have_a_colour_each() -> None:
    figure = compose(event(images={"TIB": image({(1, 1): 1.0, (1, 2): 3.0})}))
    assert isinstance(with_gid(panels(figure)[0], "pixels")[0].norm, BoundaryNorm)
    (scale,) = scales(figure)
    assert [label.get_text() for label in scale.get_yticklabels()] == ["1", "2", "3"]
    many = panel(event(images={"TIB": image({(1, 1): 1.0, (1, 2): 90.0})}))
    assert isinstance(with_gid(many, "pixels")[0].norm, LogNorm)


@pytest.mark.parametrize("channel", ["ECAL", "track dz", "TOB"])
def test_a_single_value_can_be_drawn(tmp_path: Path, channel: str) -> None:
    draw(event(images={channel: image({(3, 3): 1.0})}), tmp_path / "event.png")
    draw(event(images={channel: image({(3, 3): 1.7e-30})}), tmp_path / "event.png")


def test_empty_image_says_so() -> None:
    figure = compose(event(images={"ECAL": image({}), "HCAL": image({(1, 1): 1.0})}))
    assert "empty" in texts(page(figure))
    assert "1 pixel" in texts(page(figure))
    assert [axes.get_label() for axes in scales(figure)] == ["HCAL scale"]


def test_values_that_are_not_finite_are_no_pixels() -> None:
    axes = panel(event(images={"ECAL": image({(1, 1): math.nan, (1, 2): math.inf, (1, 3): 2.0})}))
    np.testing.assert_array_equal(with_gid(axes, "pixels")[0].get_array(), [2.0])


# --- Objects ---


@pytest.mark.parametrize("side", [2, 32, 128])
def test_crop_keeps_its_seed_and_comes_in_again_at_the_seam(side: int) -> None:
    columns = {150: 0, 151: 100, 152: 189, 153: 190, 154: 359}  # by row
    axes = panel(event(*(jet(seed=seed, crops=(side,)) for seed in columns.items())))
    assert len(with_gid(axes, "seed")) == len(columns)
    centres = phi_of_column(np.arange(360))
    for seed, (row, column) in zip(with_gid(axes, "seed"), columns.items(), strict=True):
        assert seed.get_xdata()[0] == pytest.approx(phi_of_column(column))
        assert seed.get_ydata()[0] == row + 0.5
        pieces = [crop for crop in with_gid(axes, "crop") if crop.get_y() == row - (side // 2 - 1)]
        inside = np.zeros(360, bool)
        for piece in pieces:
            assert piece.get_height() == side
            assert piece.get_clip_on()
            inside |= (piece.get_x() < centres) & (centres < piece.get_x() + piece.get_width())
        expected = (column - (side // 2 - 1) + np.arange(side)) % 360
        assert set(np.flatnonzero(inside)) == set(expected)
        assert len(pieces) == (2 if 189 in expected[:-1] else 1)  # column 189 is the last before phi = pi


def test_every_crop_of_an_object_is_drawn_in_every_panel() -> None:
    figure = compose(
        event(jet(seed=(150, 30), crops=(32, 128)), images={name: image({(1, 1): 1.0}) for name in CHANNELS[:4]})
    )
    for axes in panels(figure):
        assert [crop.get_height() for crop in with_gid(axes, "crop")] == [32, 128]


def test_direction_is_marked_on_its_row_and_column() -> None:
    places = [(-2.9, -3.14), (-1.0, 0.5), (0.0, 3.14), (1.47, 3.5), (2.1, -3.5), (2.99, 0.0)]
    axes = panel(event(*(jet(100.0 - i, eta, phi) for i, (eta, phi) in enumerate(places))))
    for i, (eta, phi) in enumerate(places, 1):
        (mark,) = with_gid(axes, f"j{i}")
        assert math.floor(mark.get_ydata()[0]) == row_of_eta(eta)
        assert column_of_phi(mark.get_xdata()[0]) == column_of_phi(phi)
        assert -math.pi <= mark.get_xdata()[0] < math.pi


def test_middle_of_a_row_is_where_its_eta_is_marked() -> None:
    rows = [0, 54, 55, 139, 224, 225, 279]
    axes = panel(event(*(jet(100.0 - i, float(eta_of_row(row))) for i, row in enumerate(rows))))
    for i, row in enumerate(rows, 1):
        assert with_gid(axes, f"j{i}")[0].get_ydata()[0] == pytest.approx(row + 0.5)


def test_objects_are_named_by_kind_and_pt() -> None:
    objects = [
        jet(40.0),
        jet(80.0, phi=-1.0),
        jet(50.0, kind="Photon", phi=2.0),
        jet(12.0, kind="Photon", phi=-2.0, scores={"egScore": 0.5}),
        jet(99.0, kind="FatJet", eta=-1.0),
        jet(LABEL_PT - 1, eta=1.0),
    ]
    axes = panel(event(*objects))
    assert sorted(name for name in texts(axes) if len(name) == 2 and name != "EB") == ["J1", "j1", "j2", "γ1", "γ2"]
    assert with_gid(axes, "j1")[0].get_xdata()[0] == pytest.approx(-1.0)
    assert with_gid(axes, "γ2")[0].get_xdata()[0] == pytest.approx(-2.0)
    (faint,) = with_gid(axes, "unnamed")
    assert math.floor(faint.get_ydata()[0]) == row_of_eta(1.0)
    assert row_of(event(*objects), "γ2") == ["γ2", "12.0", "0.30", "−2.00", "0.500"]


def test_only_so_many_are_listed_those_with_scores_first() -> None:
    scored = [jet(35.0 + i, phi=i / 3, scores={"qgScore": 0.1 * i}) for i in range(2)]
    others = [jet(100.0 + i, eta=-1.0, phi=i / 3) for i in range(MAX_LISTED + 2)]
    figure = compose(event(*others, *scored))
    assert "and 4 more" in texts(page(figure))
    assert len(with_gid(panels(figure)[0], "unnamed")) == 4
    last = f"j{MAX_LISTED}"
    assert row_of(event(*others, *scored), last) == [last, "35.0", "0.30", "0.00", "0.000"]


def test_scores_that_are_missing_nan_or_of_no_seed() -> None:
    seen = event(
        jet(80.0, phi=-2.0, seed=(140, 10), scores={"qgScore": math.nan, "tauScore": 0.25}),
        jet(70.0, phi=0.0, scores={"qgScore": -1.0}),
        jet(60.0, phi=2.0, seed=(140, 10), scores={"qgScore": -1.0, "tauScore": 1.0}),
    )
    assert row_of(seen, "j1")[4:] == ["nan", "0.250"]
    assert row_of(seen, "j2")[4:] == ["no seed", ""]
    assert row_of(seen, "j3")[4:] == ["−1.000", "1.000"]
    ground, bar, *more = [patch.get_width() for patch in page(compose(seen)).patches if patch.get_fill()]
    assert bar == pytest.approx(0.25 * ground)
    assert more == pytest.approx([ground, ground])


def test_object_beyond_the_frame_is_listed_but_not_drawn() -> None:
    seen = event(jet(60.0, eta=4.2), jet(50.0, eta=math.nan, phi=math.nan))
    assert not with_gid(panel(seen), "j1")
    assert row_of(seen, "j1") == ["j1", "60.0", "4.20", "1.00"]
    assert row_of(seen, "j2") == ["j2", "50.0", "nan", "nan"]


def test_no_objects(tmp_path: Path) -> None:
    draw(event(), tmp_path / "event.png")
    figure = compose(event())
    assert not with_gid(panels(figure)[0], "crop")
    assert "direction" not in texts(page(figure))
    assert "direction" in texts(page(compose(event(jet()))))


def test_crop_sizes_are_told() -> None:
    seen = event(jet(seed=(140, 10), crops=(128, 32)), jet(kind="Photon", seed=(140, 10), crops=(32,)))
    assert "crop: 32 × 32 (photons), 32 × 32 and 128 × 128 (jets)" in texts(page(compose(seen)))


# --- Title ---


def test_title_is_taken_as_it_is(tmp_path: Path) -> None:
    seen = event(jet(scores={"a$b$": 0.5}), title=r"$\broken_{file$.root   run 1", event_scores={"topScore": 0.25})
    draw(seen, tmp_path / "event.png")
    (title,) = with_gid(page(compose(seen)), "title")
    assert title.get_text() == seen.title
    (scores,) = with_gid(page(compose(seen)), "event scores")
    assert scores.get_text().split() == ["Event", "scores", "topScore", "0.250"]


@pytest.mark.parametrize("length", [1, 90, 130, 1000])
def test_title_fits_the_page(length: int) -> None:
    figure = compose(event(title="/" + ("data/2012B/" * 100)[:length] + "/events.root   run 198230"))
    renderer = FigureCanvasAgg(figure).get_renderer()
    (title,) = with_gid(page(figure), "title")
    assert title.get_window_extent(renderer).x1 < figure.bbox.x1
    assert title.get_text().startswith("/d")
    assert title.get_text().endswith("run 198230")
