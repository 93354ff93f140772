"""All 13 channels, jet and photon seeds and crops as a plain loop: dense images, one hit at a time.

Slow and obvious. It shares no code with the stages and stands here to be compared with, as `reference_chain` does for
photons alone. Below the reference are the made-up awkward events and the linear network to compare on.
"""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import asinh, atan2, cos, degrees, floor, hypot, isfinite, pi, radians, sin, sinh
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from reference_chain import COLUMNS, ROWS, TOWERS, barrel_pixel, column_of, endcap_pixel

Event = dict[str, Any]
Image = npt.NDArray[np.float64]
Pixel = tuple[int, int]

COLLECTIONS = {
    "EBRecHit": ("detid", "energy"),
    "EERecHit": ("detid", "energy"),
    "HBHERecHit": ("detid", "energy"),
    "Track": ("pt", "eta", "phi", "charge", "d0", "dz", "highPurity"),
    "PixelHit": ("x", "y", "z", "layer"),
    "StripHit": ("x", "y", "z", "subdet", "layer"),
    "Tower": ("eta", "phi", "emEnergy", "hadEnergy"),
    "Photon": ("pt", "eta", "phi", "seedDetId"),
    "Jet": ("pt", "eta", "phi"),
    "FatJet": ("pt", "eta", "phi"),
    "PV": ("x", "y", "z"),
}
CHANNELS = (
    *("TrackPt", "TrackD0", "TrackDz", "BPIX1", "BPIX2", "BPIX3", "BPIX4"),
    *("ECAL", "HCAL", "TIB", "TOB", "TID", "TEC"),
)
REASONS = ("nan_energy", "bad_detid", "nan_track", "nan_position", "bad_layer")
TOWER_ROWS, TOWER_COLUMNS = 56, 72
TOWER_EDGES = (*(0.087 * k for k in range(17)), *TOWERS)  # of |ieta| 1 to 28, as in the published HCAL geometry
STRIPS = {3: ("TIB", 4), 4: ("TID", 3), 5: ("TOB", 6), 6: ("TEC", 9)}  # subdetector: name, layers
LAST_SEED_IETA = 16
BARREL_M, ENDCAP_M, FIELD_T = 1.29, 3.17, 3.8
STEP_M = 0.01


def rows_of(event: Event, collection: str) -> Iterator[tuple[Any, ...]]:
    """The members of each hit or object; a collection without columns is empty."""
    yield from zip(*(event.get(f"{collection}_{member}", []) for member in COLLECTIONS[collection]), strict=True)


# ---- where on the frame


def row_of(eta: float) -> int | None:
    """The frame's row; None outside |eta| <= 3."""
    if not abs(eta) <= TOWERS[-1]:
        return None
    if abs(eta) < TOWERS[0]:
        return 140 + floor(eta / 0.01745)
    if abs(eta) == TOWERS[-1]:
        return 279 if eta > 0 else 0
    return endcap_pixel(eta, 0.0)[0]


def pixel_of(eta: float, phi: float) -> Pixel | None:
    """The pixel of a direction; None outside |eta| <= 3."""
    row = row_of(eta)
    return None if row is None else (row, column_of(phi))


def tower_of(eta: float, phi: float) -> Pixel | None:
    """Row and column of the HCAL tower in a direction; None outside |eta| <= 3."""
    if not abs(eta) <= TOWER_EDGES[-1]:
        return None
    column = column_of(phi) // 5
    for ring, (low, high) in enumerate(pairwise(TOWER_EDGES)):
        if low <= abs(eta) < high:
            return (28 + ring if eta >= 0 else 27 - ring), column
    return (55 if eta > 0 else 0), column  # exactly 3


def hcal_towers(detid: int) -> list[Pixel]:
    """The tower, or the two halves, of an HB or HE cell; nothing if there is no such cell."""
    if detid & 0x1000000:
        iphi, ring, positive = detid & 0x3FF, detid >> 10 & 0x1FF, detid & 0x80000
    else:
        iphi, ring, positive = detid & 0x7F, detid >> 7 & 0x3F, detid & 0x2000
    detector, subdetector = detid >> 28, detid >> 25 & 7
    if detector != 4 or subdetector not in (1, 2) or not 1 <= ring <= 29 or not 1 <= iphi <= 72:
        return []
    if (subdetector == 1 and ring > 16) or (subdetector == 2 and ring < 16) or (ring > 20 and iphi % 2 == 0):
        return []
    ieta = min(ring, 28) if positive else -min(ring, 28)
    row = 28 + (ieta - 1 if ieta > 0 else ieta)
    column = (iphi + 1) % 72
    return [(row, column), (row, (column + 1) % 72)] if ring > 20 else [(row, column)]


def is_endcap_crystal(detid: int) -> bool:
    """Whether the bits name an endcap crystal; its place may still be empty."""
    return detid >> 15 == 0x34000000 >> 15 and 1 <= detid & 0x7F <= 100 and 1 <= detid >> 7 & 0x7F <= 100


# ---- the 13 channels


def frame(
    event: Event,
    *,
    hits_from: str = "origin",
    tracks_at: str = "direction",
    ee_cell: Callable[[int], tuple[float, float] | None],
) -> tuple[dict[str, Image], dict[str, int]]:
    """The images of an event and what could not be placed.

    Parameters
    ----------
    event
        Column name to list. A collection that is missing is empty; tracks without `Track_highPurity` are all good.
    hits_from
        Where the direction of a pixel or strip hit starts: "origin", or "vertex", the first of the event.
    tracks_at
        The pixel of a track: that of its "direction", or of where it enters the "ecal".
    ee_cell
        Gives eta and phi of the centre of an endcap crystal, None or NaN where there is none.

    Returns
    -------
    images
        float64[280, 360] of each of `CHANNELS`, and "HCALTowers" [GeV], float64[56, 72].
    dropped
        The number of dropped hits for each of `REASONS`.
    """
    if hits_from not in ("origin", "vertex") or tracks_at not in ("direction", "ecal"):
        raise ValueError(f"hits_from {hits_from!r} or tracks_at {tracks_at!r} is unknown")
    images = {name: np.zeros((ROWS, COLUMNS)) for name in CHANNELS}
    towers = images["HCALTowers"] = np.zeros((TOWER_ROWS, TOWER_COLUMNS))
    dropped = dict.fromkeys(REASONS, 0)
    vertex = next(rows_of(event, "PV"), (0.0, 0.0, 0.0))

    def calorimeter(image: Image, energy: float, pixels: Sequence[Pixel], reason: str = "bad_detid") -> None:
        """Share a hit's energy among its pixels; one without any is dropped for the reason, if there is one."""
        if not isfinite(energy):
            dropped["nan_energy"] += 1
        elif not pixels:
            if reason:
                dropped[reason] += 1
        elif energy > 0:
            for pixel in pixels:
                image[pixel] += energy / len(pixels)

    for detid, energy in rows_of(event, "EBRecHit"):
        crystal = barrel_pixel(detid)
        calorimeter(images["ECAL"], energy, [crystal] if crystal else [])
    for detid, energy in rows_of(event, "EERecHit"):
        centre = ee_cell(detid) if is_endcap_crystal(detid) else None
        calorimeter(images["ECAL"], energy, [endcap_pixel(*centre)] if centre and isfinite(centre[0]) else [])
    for detid, energy in rows_of(event, "HBHERecHit"):
        calorimeter(towers, energy, hcal_towers(detid))
    for eta, phi, em, had in rows_of(event, "Tower"):
        known = isfinite(eta) and isfinite(phi)
        for image, energy, place in ((images["ECAL"], em, pixel_of), (towers, had, tower_of)):
            pixel = place(eta, phi) if known else None
            calorimeter(image, energy, [pixel] if pixel else [], reason="" if known else "nan_position")
    for row in range(TOWER_ROWS):
        for column in range(TOWER_COLUMNS):
            images["HCAL"][5 * row : 5 * row + 5, 5 * column : 5 * column + 5] = towers[row, column] / 25

    start = vertex if hits_from == "vertex" else (0.0, 0.0, 0.0)
    layers = [
        (x, y, z, f"BPIX{layer}" if layer in (1, 2, 3, 4) else "") for x, y, z, layer in rows_of(event, "PixelHit")
    ]
    for x, y, z, subdetector, layer in rows_of(event, "StripHit"):
        name, n_layers = STRIPS.get(subdetector, ("", 0))
        layers.append((x, y, z, name if 1 <= layer <= n_layers else ""))
    for x, y, z, channel in layers:
        x, y, z = x - start[0], y - start[1], z - start[2]
        if not (isfinite(x) and isfinite(y) and isfinite(z)):
            dropped["nan_position"] += 1
        elif not channel:
            dropped["bad_layer"] += 1
        elif hypot(x, y) > 0 and (pixel := pixel_of(asinh(z / hypot(x, y)), atan2(y, x))):
            images[channel][pixel] += 1

    if "Track_highPurity" not in event:
        event = {**event, "Track_highPurity": [1] * len(event.get("Track_pt", []))}
    for pt, eta, phi, charge, d0, dz, pure in rows_of(event, "Track"):
        if not pure:
            continue
        at_ecal = tracks_at == "ecal"
        known = all(map(isfinite, (pt, eta, phi, charge, d0, dz, *vertex) if at_ecal else (eta, phi)))
        direction = None
        if known and abs(eta) <= TOWERS[-1]:
            direction = ecal_position(pt, eta, phi, charge, d0, dz, vertex) if at_ecal else (eta, phi)
        pixel = pixel_of(*direction) if direction else None
        for channel, value in (("TrackPt", pt), ("TrackD0", d0), ("TrackDz", dz)):
            if not (known and isfinite(value)):
                dropped["nan_track"] += 1
            elif pixel and (channel == "TrackPt" or abs(dz) < 0.1):
                images[channel][pixel] += value
    return images, dropped


def ecal_position(
    pt: float,
    eta: float,
    phi: float,
    charge: float,
    d0: float,
    dz: float,
    vertex: Sequence[float] = (0.0, 0.0, 0.0),
    *,
    barrel_m: float = BARREL_M,
    endcap_m: float = ENDCAP_M,
) -> tuple[float, float] | None:
    """Direction, from the origin, of the place where a track leaves the cylinder; None if it never does.

    The track starts where it is closest to the vertex and is followed in small steps; the last one is bisected.
    """
    radius = pt / (0.3 * FIELD_T)
    x0, y0, z0 = (vertex[0] + d0 * sin(phi)) / 100, (vertex[1] - d0 * cos(phi)) / 100, (vertex[2] + dz) / 100

    def place(path: float) -> tuple[float, float, float]:
        """After a way in the transverse plane [m]; in a field along +z a positive charge turns to smaller phi."""
        z = z0 + path * sinh(eta)
        if charge == 0:
            return x0 + path * cos(phi), y0 + path * sin(phi), z
        bend = -1 / radius if charge > 0 else 1 / radius
        x = x0 + (sin(phi + bend * path) - sin(phi)) / bend
        return x, y0 - (cos(phi + bend * path) - cos(phi)) / bend, z

    def outside(path: float) -> bool:
        x, y, z = place(path)
        return hypot(x, y) >= barrel_m or abs(z) >= endcap_m

    if pt <= 0 or outside(0.0):
        return None
    turn = 2 * pi * radius if charge else float("inf")
    step = min(STEP_M, turn / 360)
    path = 0.0
    while path < turn and not outside(path):
        path += step
    if not outside(path):  # r repeats itself with each turn, so only z can end it
        if eta == 0:
            return None
        while not outside(path + turn):
            path += turn
        while not outside(path):
            path += step
    inner, outer = path - step, path
    for _ in range(60):
        middle = (inner + outer) / 2
        inner, outer = (inner, middle) if outside(middle) else (middle, outer)
    x, y, z = place(outer)
    return asinh(z / hypot(x, y)), atan2(y, x)


# ---- seeds and crops


def selected(pt: float, eta: float, pt_min: float, eta_max: float) -> bool:
    """Whether an object is looked at; compared as the float32 that the columns hold."""
    return bool(np.float32(pt) > np.float32(pt_min) and abs(np.float32(eta)) < np.float32(eta_max))


def photon_seed(ecal: Image, eta: float, phi: float, seed_detid: int = 0) -> Pixel | None:
    """The barrel crystal that the input names, else the most energetic barrel pixel within 5 rows and columns."""
    if named := barrel_pixel(seed_detid):
        return named
    centre = pixel_of(eta, phi) if isfinite(eta) and isfinite(phi) else None
    if centre is None:
        return None
    rows = range(max(centre[0] - 5, 55), min(centre[0] + 5, 224) + 1)
    columns = [(centre[1] + step) % COLUMNS for step in range(-5, 6)]
    return _largest(ecal, [(row, column) for row in rows for column in columns])


def jet_seed(towers: Image, eta: float, phi: float) -> Pixel | None:
    """The middle pixel of the most energetic of the 7 x 7 towers around a jet; None if it is not in the barrel."""
    centre = tower_of(eta, phi) if isfinite(eta) and isfinite(phi) else None
    if centre is None:
        return None
    rows = range(max(centre[0] - 3, 0), min(centre[0] + 3, TOWER_ROWS - 1) + 1)
    columns = [(centre[1] + step) % TOWER_COLUMNS for step in range(-3, 4)]
    best = _largest(towers, [(row, column) for row in rows for column in columns])
    if best is None:
        return None
    row, column = best
    ring = row - 28 + 1 if row >= 28 else 28 - row
    return (5 * row + 2, 5 * column + 2) if ring <= LAST_SEED_IETA else None


def _largest(image: Image, pixels: list[Pixel]) -> Pixel | None:
    """The first, in the order of the image, of those with the most energy."""
    best = None
    for pixel in sorted(pixels):
        if image[pixel] > 0 and (best is None or image[pixel] > image[best]):
            best = pixel
    return best


def crop(image: Image, seed: Pixel, size: int) -> Image:
    """The square around the seed, which is at index size / 2 - 1, of an image or of a stack [channel, row, column]."""
    if size % 2:
        raise ValueError(f"the size of a crop must be even, not {size}")
    out = np.zeros((*image.shape[:-2], size, size))
    columns = [(seed[1] - (size // 2 - 1) + x) % COLUMNS for x in range(size)]
    for y in range(size):
        row = seed[0] - (size // 2 - 1) + y
        if 0 <= row < ROWS:
            out[..., y, :] = image[..., row, columns]
    return out


# ---- a linear network


def linear_model(path: Path, n_channels: int, rows: int, cols: int, seed: int = 0) -> Image:
    """Write an ONNX network whose score is a weighted sum of its input, and give its weights.

    The input `crops` is float32[batch, n_channels, rows, cols], the output `score` float32[batch, 1]. Each weight is a
    product of three random numbers, of its channel, row and column; so the file holds three short vectors.

    Returns
    -------
    float64[n_channels, rows, cols], all different; about 0.01, so that some 100 GeV give a score of order 1.
    """
    rng = np.random.default_rng(seed)
    vectors = [(rng.choice([-1, 1], n) * rng.uniform(0.5, 1.5, n)).astype(np.float32) for n in (n_channels, rows, cols)]
    vectors[0] *= np.float32(0.01)
    across, down, deep = (v.reshape(-1, 1) for v in reversed(vectors))
    tensors = {"across": across, "down": down, "deep": deep, "last": np.array([-1], np.int64)}
    nodes = [
        helper.make_node("MatMul", ["crops", "across"], ["a"]),  # (batch, channels, rows, 1)
        helper.make_node("Squeeze", ["a", "last"], ["b"]),
        helper.make_node("MatMul", ["b", "down"], ["c"]),  # (batch, channels, 1)
        helper.make_node("Squeeze", ["c", "last"], ["d"]),
        helper.make_node("MatMul", ["d", "deep"], ["score"]),
    ]
    inputs = [helper.make_tensor_value_info("crops", TensorProto.FLOAT, ["batch", n_channels, rows, cols])]
    outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1])]
    weights = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9  # onnxruntime 1.22 reads up to 10
    onnx.save(model, path)
    of_channel, of_row, of_column = (vector.astype(np.float64) for vector in vectors)
    return of_channel[:, None, None] * of_row[None, :, None] * of_column[None, None, :]


def linear_score(weights: Image, crop: Image) -> float:
    """The score that the network of these weights gives a crop [channel, row, column]."""
    return float(np.sum(weights * crop))


# ---- made-up events

SMALLEST = 2.0**-6  # energies are multiples of it [GeV], so that float32 sums of them are exact in any order
ETA_EDGES = sorted(
    {*(0.01745 * k for k in range(85)), *TOWER_EDGES}
    | {low + (high - low) * k / 5 for low, high in pairwise(TOWERS) for k in range(5)}
)
BAD_NUMBERS = (float("nan"), float("inf"), float("-inf"))
BAD_EB = (0, 0xFFFFFFFF, 0x32000000, 0x32000000 | 86 << 9 | 1, 0x32000000 | 1 << 9 | 361, 0x34000000 | 20 << 7 | 50)
BAD_LAYERS: dict[str, list[tuple[int, ...]]] = {
    "PixelHit": [(0,), (5,), (100,)],
    "StripHit": [(3, 5), (4, 4), (5, 7), (6, 10), (3, 0), (2, 1), (7, 1)],
}
BAD_EE = (0, 0x34000000, *(0x34000000 | ix << 7 | iy for ix, iy in ((1, 1), (50, 50), (101, 50), (50, 101))))


def f32(value: float) -> float:
    """The nearest number that a float32 column can hold."""
    return float(np.float32(value))


def around(value: float) -> tuple[float, float, float]:
    """The float32 number nearest to a limit, and its neighbours below and above."""
    limit = np.float32(value)
    return float(limit), float(np.nextafter(limit, np.float32(-1e9))), float(np.nextafter(limit, np.float32(1e9)))


def eb_id(ieta: int, iphi: int) -> int:
    return 0x32000000 | (0x10000 if ieta > 0 else 0) | abs(ieta) << 9 | iphi


def ee_id(ix: int, iy: int, side: int) -> int:
    return 0x34000000 | (0x4000 if side > 0 else 0) | ix << 7 | iy


def hcal_id(ieta: int, iphi: int, depth: int = 1, *, subdetector: int = 0, run2: bool = False) -> int:
    """HB (1) up to |ieta| 16 and HE (2) above, unless told; in the layout of Run 2 or the one before."""
    base = 4 << 28 | (subdetector or (1 if abs(ieta) <= 16 else 2)) << 25
    if run2:
        return base | 1 << 24 | depth << 20 | (ieta > 0) << 19 | abs(ieta) << 10 | iphi
    return base | depth << 14 | (ieta > 0) << 13 | abs(ieta) << 7 | iphi


def clear_of_edges(eta: float, phi: float, margin: float = 1e-5) -> bool:
    """Whether a direction stays in its pixel and tower when each angle is a little wrong."""
    place = bisect(ETA_EDGES, abs(eta))
    near = min(abs(abs(eta) - edge) for edge in ETA_EDGES[max(place - 1, 0) : place + 1])
    return near > margin and abs(phi - radians(round(degrees(phi)))) > margin


def random_events(rng: np.random.Generator, n: int) -> list[Event]:
    """Made-up events around every edge that the meaning of frame, seed and crop has; 100 hold each at least once.

    All values are float32 numbers. Directions, and the places where tracks enter the ECAL, are clear of the edges of
    pixels and towers, but for tracks with eta 0 or 3, where the edge is what counts.
    """
    return [_RandomEvent(rng, number).event for number in range(n)]


class _RandomEvent:
    """One event; what is awkward about it depends on its number, the rest is drawn."""

    def __init__(self, rng: np.random.Generator, number: int) -> None:
        self.rng, self.number = rng, number
        self.event: Event = {"run": 1, "luminosityBlock": 1 + number // 100, "event": number}
        for collection, members in COLLECTIONS.items():
            self.event |= {f"{collection}_{member}": [] for member in members}
        if number % 13 == 12:
            return  # nothing at all
        self.ties = number % 3 == 0
        self.ieta = self._one_of(85, -85, 1, -1, int(rng.integers(1, 86)), -int(rng.integers(1, 86)))
        self.iphi = self._one_of(1, 360, 10, 190, 191, *rng.integers(1, 361, 3).tolist())
        self.hcal_ieta = self._one_of(1, -1, 6, -9, 14, -15, 16, -16, 17, -18, 20, 21, -24, 28, -29)
        self.hcal_iphi = self._one_of(71, 72, 1, 2, 36, 37, *rng.integers(1, 73, 4).tolist())
        self.eta = float(np.sign(self.ieta)) * (abs(self.ieta) - 0.5) * 0.01745
        self.phi = radians((self.iphi - 10.5 + 180) % 360 - 180)
        ring = min(abs(self.hcal_ieta), 28)
        self.hcal_eta = float(np.sign(self.hcal_ieta)) * (TOWER_EDGES[ring - 1] + TOWER_EDGES[ring]) / 2
        self.hcal_phi = radians((self.hcal_iphi * 5 - 2.5 + 180) % 360 - 180)
        self.vertex = (0.0, 0.0, 0.0)
        self._vertices()
        self._ecal()
        self._hcal()
        if number % 3 == 1:
            self._towers()
        self._tracks()
        self._hits()
        self._photons()
        self._jets("Jet")
        self._jets("FatJet")
        if number == 7:
            for ieta in rng.integers(1, 86, 20_000).tolist():
                self._add("EBRecHit", eb_id(ieta, 200), self._energy())
            for depth in range(2000):
                self._add("HBHERecHit", hcal_id(5, 42, depth % 7 + 1, run2=True), self._energy())

    def _add(self, collection: str, *values: float) -> None:
        for member, value in zip(COLLECTIONS[collection], values, strict=True):
            self.event[f"{collection}_{member}"].append(f32(value) if isinstance(value, float) else value)

    def _one_of(self, *values: Any) -> Any:
        return values[int(self.rng.integers(len(values)))]

    def _energy(self, largest: float = 50.0) -> float:
        """Mostly some GeV, sometimes none or negative; in an event with ties often the largest."""
        if self.ties and self.rng.random() < 0.2:
            return largest
        energy = min(self.rng.exponential(3.0) - 0.2, largest)
        return 0.0 if self.rng.random() < 0.02 else round(energy / SMALLEST) * SMALLEST

    def _near(self, eta: float, phi: float, spread: float) -> tuple[float, float]:
        """A direction within |eta| < 3.3 that is clear of the edges."""
        while True:
            found = f32(eta + self.rng.normal(0, spread)), f32(self._wrapped(phi + self.rng.normal(0, spread)))
            if abs(found[0]) < 3.3 and clear_of_edges(*found):
                return found

    @staticmethod
    def _wrapped(phi: float) -> float:
        return (phi + pi) % (2 * pi) - pi

    def _anywhere(self) -> tuple[float, float]:
        return self._near(self.rng.uniform(-3.2, 3.2), self.rng.uniform(-pi, pi), 0.01)

    def _vertices(self) -> None:
        for k in range(0 if self.number % 7 == 3 else self._one_of(1, 1, 2, 5)):
            x, y, z = (f32(self.rng.normal(0, width)) for width in (0.05, 0.05, 5.0))
            self._add("PV", x, y, z)
            if k == 0:
                self.vertex = x, y, z

    def _ecal(self) -> None:
        rng = self.rng
        for _ in range(0 if self.number % 11 == 4 else int(rng.integers(5, 60))):
            ieta = self.ieta + int(rng.integers(-12, 13))
            if ieta and abs(ieta) <= 85:
                self._add(
                    "EBRecHit", eb_id(ieta, (self.iphi - 1 + int(rng.integers(-12, 13))) % 360 + 1), self._energy()
                )
        for _ in range(int(rng.integers(0, 30))):
            distance, angle = rng.uniform(12.5, 47), rng.uniform(-pi, pi)  # where every place has its crystal
            ix, iy = round(50.5 + distance * cos(angle)), round(50.5 + distance * sin(angle))
            for _ in range(self._one_of(1, 1, 1, 4)):
                self._add("EERecHit", ee_id(ix, iy, 1 if self.ieta > 0 else -1), self._energy())
        if self.number % 5 == 3:
            for bad in BAD_EB:
                self._add("EBRecHit", bad, self._one_of(3.0, 3.0, -1.0, BAD_NUMBERS[0]))
            for bad in BAD_EE:
                self._add("EERecHit", bad, self._one_of(3.0, 3.0, 0.0, BAD_NUMBERS[1]))
            for number in BAD_NUMBERS:
                self._add("EBRecHit", eb_id(1, 1), number)
                self._add("EERecHit", ee_id(50, 20, 1), number)

    def _hcal(self) -> None:
        rng = self.rng
        for _ in range(int(rng.integers(5, 60))):
            ieta = self.hcal_ieta + int(rng.integers(-5, 6))
            iphi = (self.hcal_iphi - 1 + int(rng.integers(-5, 6))) % 72 + 1
            if not 1 <= abs(ieta) <= 30:
                continue
            if abs(ieta) > 20 and rng.random() < 0.95:
                iphi -= (iphi + 1) % 2  # these cells have odd numbers only
            run2 = bool(rng.random() < 0.5)
            subdetector = self._one_of(1, 2) if abs(ieta) == 16 else 0
            for depth in range(1, self._one_of(1, 1, 2, 3) + 1):
                self._add("HBHERecHit", hcal_id(ieta, iphi, depth, subdetector=subdetector, run2=run2), self._energy())
        if self.ties and abs(self.hcal_ieta) <= 16:  # more than anything else, on both sides of the middle
            for iphi in (self.hcal_iphi % 72 + 1, (self.hcal_iphi - 2) % 72 + 1):
                self._add("HBHERecHit", hcal_id(self.hcal_ieta, iphi), 1000.0)
        for ieta in (21, -28, 29):
            self._add("HBHERecHit", hcal_id(ieta, 71, run2=self._one_of(True, False)), self._energy())
        if self.number % 5 == 3:
            cells = [(0, 1, 1), (30, 1, 2), (-41, 1, 2), (17, 1, 1), (15, 1, 2), (3, 0, 1), (3, 73, 1), (21, 2, 2)]
            for ieta, iphi, subdetector in [*cells, (-25, 72, 2), (4, 4, 3), (29, 1, 4), (4, 4, 7)]:
                for run2 in (True, False):
                    bad = hcal_id(ieta, iphi, subdetector=subdetector, run2=run2)
                    self._add("HBHERecHit", bad, self._one_of(3.0, 3.0, -1.0, BAD_NUMBERS[2]))
            for bad in (0, 0xFFFFFFFF, eb_id(3, 3)):
                self._add("HBHERecHit", bad, 3.0)
            for number in BAD_NUMBERS:
                self._add("HBHERecHit", hcal_id(1, 1), number)

    def _towers(self) -> None:
        for k in range(int(self.rng.integers(1, 20))):
            eta, phi = self._near(self.hcal_eta, self.hcal_phi, 0.2) if k % 2 else self._anywhere()
            self._add("Tower", eta, phi, self._energy(), self._energy())
        for bad in BAD_NUMBERS:
            self._add("Tower", *self._anywhere(), *self._one_of((bad, 2.0), (2.0, bad), (bad, bad)))

    # ---- tracks

    def _tracks(self) -> None:
        rng = self.rng
        for k in range(int(rng.integers(0, 16))):
            eta, phi = self._near(self.eta, self.phi, 0.1) if k % 2 else self._anywhere()
            self._track(eta, phi)
            if k % 4 == 0:  # a neighbour in the same pixel
                self._track(eta, phi)
        _, phi = self._near(0.5, self.phi, 0.3)
        for dz in (*around(0.1), 0.5):
            self._track(*self._near(self.eta, self.phi, 0.05), dz=dz * self._one_of(1, -1))
        for eta in (*around(3.0), 3.1):
            self._track(eta * self._one_of(1, -1), phi, dz=0.05)
        self._add("Track", 0.25, 0.0, phi, 1, 0.01, 0.01, 1)  # turns in its plane for ever
        for side in (-1, 1):
            self._track(*self._near(side * rng.uniform(0.5, 2.0), self.phi, 0.02), pt=rng.uniform(0.1, 0.7))
        self._track(*self._anywhere(), charge=0)
        if self.number % 4 == 1:
            for place in (0, 1, 2, 4, 5):
                values = [5.0, *self._near(self.eta, self.phi, 0.1), 1, 0.01, 0.02, 1]
                values[place] = self._one_of(*BAD_NUMBERS)
                self._add("Track", *values)
            self._add("Track", *[BAD_NUMBERS[0]] * 3, 1, *[BAD_NUMBERS[0]] * 2, 1)
            self._add("Track", *[BAD_NUMBERS[0]] * 3, 1, *[BAD_NUMBERS[0]] * 2, 0)  # bad anyhow
            self._add("Track", 5.0, self.eta, BAD_NUMBERS[1], -1, 0.01, 0.5, 1)

    def _track(
        self, eta: float, phi: float, *, pt: float = 0, charge: int | None = None, dz: float | None = None
    ) -> None:
        """A track whose way to the ECAL ends clear of the edges as well."""
        for _ in range(1000):
            momentum = max(round((pt or self.rng.exponential(3.0) + 0.1) / SMALLEST), 4) * SMALLEST
            sign = self._one_of(-1, 1) if charge is None else charge
            away, along = self.rng.normal(0, 0.02), self.rng.normal(0, 0.07) if dz is None else dz
            track = momentum, f32(eta), f32(phi), sign, f32(away), f32(along)
            if self._is_clear(*track):
                self._add("Track", *track, int(self.rng.random() < 0.85))
                return
        raise RuntimeError(f"no track with eta {eta}, phi {phi} is clear of the edges")

    def _is_clear(self, pt: float, eta: float, phi: float, charge: int, d0: float, dz: float) -> bool:
        radius, sign = pt / (0.3 * FIELD_T), 1 if charge > 0 else -1
        start = d0 / 100 + radius * sign
        farthest = radius + hypot(self.vertex[0] / 100 + start * sin(phi), self.vertex[1] / 100 - start * cos(phi))
        if charge and abs(farthest - BARREL_M) < 1e-3:
            return False  # whether it touches the barrel is a matter of rounding
        if charge and farthest < BARREL_M and ENDCAP_M / abs(sinh(eta)) > 100 * radius:
            return False  # and so is where it is after many turns
        place = ecal_position(pt, eta, phi, charge, d0, dz, self.vertex)
        return place is None or clear_of_edges(*place)

    # ---- tracker hits

    def _hits(self) -> None:
        rng = self.rng
        for collection, radii in (("PixelHit", (2.9, 6.8, 10.9, 16.0)), ("StripHit", (25.0, 45.0, 70.0, 105.0))):
            for k in range(int(rng.integers(0, 40))):
                eta, phi = self._near(self.eta, self.phi, 0.05) if k % 3 else self._anywhere()
                radius = self._one_of(*radii)
                hit = f32(radius * cos(phi)), f32(radius * sin(phi)), f32(radius * sinh(eta))
                if self._seen_clearly(*hit):
                    for _ in range(self._one_of(1, 1, 1, 6)):
                        self._add(collection, *hit, *self._layer(collection))
            if self.number % 4 == 2:
                one = self._layer(collection)
                for place in range(3):
                    values = [1.0, 2.0, 3.0]
                    values[place] = self._one_of(*BAD_NUMBERS)
                    self._add(collection, *values, *one)
                for x, y, z in ((0.0, 0.0, 0.0), self.vertex):
                    for along in (z + 50, z - 50, z):  # the beam, and no way at all
                        if self._seen_clearly(x, y, along):
                            self._add(collection, x, y, along, *one)
                for layer in BAD_LAYERS[collection]:
                    self._add(collection, 20.0, 20.0, 20.0, *layer)
                self._add(collection, 20.0, BAD_NUMBERS[0], 20.0, *[99] * len(one))

    def _layer(self, collection: str) -> tuple[int, ...]:
        if collection == "PixelHit":
            return (int(self.rng.integers(1, 5)),)
        subdetector = self._one_of(*STRIPS)
        return subdetector, int(self.rng.integers(1, STRIPS[subdetector][1] + 1))

    def _seen_clearly(self, x: float, y: float, z: float) -> bool:
        """From the origin and from the vertex."""
        for start in ((0.0, 0.0, 0.0), self.vertex):
            across, along = hypot(x - start[0], y - start[1]), z - start[2]
            if across and not clear_of_edges(asinh(along / across), atan2(y - start[1], x - start[0])):
                return False
        return True

    # ---- objects

    def _photons(self) -> None:
        rng = self.rng
        for k in range(0 if self.number % 9 == 5 else 4):
            eta, phi = self._near(self.eta, self.phi, 0.05)
            if k == 1:
                eta = around(1.44)[self.number // 2 % 3] * float(np.sign(self.ieta))
            if k == 2:
                eta, phi = self._one_of(self._anywhere(), (BAD_NUMBERS[0], phi), (eta, BAD_NUMBERS[0]), (eta, phi))
            named = self.event["EBRecHit_detid"][:1] or [0]
            seed = self._one_of(0, 0, 0, named[0], ee_id(50, 20, 1), 0x32000000 + 400, hcal_id(3, 3))
            pt = self._one_of(9.999, 10.0, 10.001, BAD_NUMBERS[0], *[float(rng.uniform(11, 90))] * 6)
            self._add("Photon", pt, eta, phi, seed)

    def _jets(self, collection: str) -> None:
        if self.number % 9 == 6:
            return
        for _ in range(3):
            self._jet(collection, *self._near(self.hcal_eta, self.hcal_phi, 0.1))
        for eta in around(2.4):
            self._add(collection, 50.0, eta * self._one_of(1, -1), self._anywhere()[1])
        corner = self._one_of(1, -1) * 2.97, radians(-10 + self._one_of(-0.3, 0.3))  # of the frame
        self._jet(collection, *corner)
        self._jet(collection, self._one_of(3.1, -3.1, 5.0), self.hcal_phi + 0.01)
        if self.number % 4 == 3:
            for values in ((BAD_NUMBERS[0], 1.0, 1.0), (50.0, BAD_NUMBERS[0], 1.0), (50.0, 1.0, BAD_NUMBERS[1])):
                self._add(collection, *values)

    def _jet(self, collection: str, eta: float, phi: float) -> None:
        self._add(collection, self._one_of(*around(35.0), *[float(self.rng.uniform(36, 400))] * 7), eta, phi)
