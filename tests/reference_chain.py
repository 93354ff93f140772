"""The chain as a plain loop: dense images, one event, one crop and one inference at a time.

Slow and obvious. It shares no code with the stages, not even the reading of the .ig text, and stands here to be
compared with. What it does is the CMS end-to-end framework's meaning of a frame, a seed and a crop.
"""

import re
import zipfile
from dataclasses import dataclass, field
from itertools import pairwise
from math import floor, isfinite, pi
from pathlib import Path
from typing import Any

import numpy as np

ROWS, COLUMNS = 280, 360
TOWERS = (1.479, 1.566, 1.653, 1.740, 1.830, 1.930, 2.043, 2.172, 2.322, 2.500, 2.650, 3.000)


@dataclass
class Event:
    """What the chain looks at. An endcap hit knows its cell's own eta and phi."""

    eb: list[tuple[int, float]] = field(default_factory=list)  # detid, energy
    ee: list[tuple[float, float, float]] = field(default_factory=list)  # eta, phi, energy
    photons: list[tuple[float, float, float, int]] = field(default_factory=list)  # pt, eta, phi, seed detid
    run: int = 0
    number: int = 0
    ee_detids: list[int] = field(default_factory=list)


# ---- the .ig text


def read_ig(path: Path) -> list[Event]:
    """The events of an archive, in its order."""
    events = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if match := re.fullmatch(r"Events/Run_(\d+)/Event_(\d+)", name):
                event = parse(archive.read(name).decode())
                event.run, event.number = int(match[1]), int(match[2])
                events.append(event)
    return events


def parse(text: str) -> Event:
    """One event, by looking for the names of its collections."""
    types, _, collections = text.partition("Collections")
    event = Event()
    for row in _rows(types, collections, "EBRecHits_V2", ("detid", "energy")):
        event.eb.append((int(row[0]), float(row[1])))
    for row in _rows(types, collections, "EERecHits_V2", ("eta", "phi", "energy", "detid")):
        event.ee.append((float(row[0]), float(row[1]), float(row[2])))
        event.ee_detids.append(int(row[3]))
    for row in _rows(types, collections, "Photons_V1", ("et", "eta", "phi")):
        event.photons.append((float(row[0]), float(row[1]), float(row[2]), 0))
    return event


def _rows(types: str, collections: str, name: str, fields: tuple[str, ...]) -> list[list[str]]:
    declared = [str(row[0]).strip("\"'") for row in _table(types, name)]
    places = [declared.index(field) for field in fields]
    return [[row[place] for place in places] for row in _table(collections, name)]


def _table(text: str, name: str) -> list[list[str]]:
    """The rows behind `"name":`, their fields as text; a vector is one empty field."""
    match = re.search(rf"[\"']{name}[\"']\s*:", text)
    if match is None:
        return []
    rows: list[list[str]] = []
    depth = 0
    for token in re.finditer(r"[\[(]|[\])]|[^\[\](),]+", text[match.end() :]):
        word = token[0].strip()
        if word in ("[", "("):
            depth += 1
            if depth == 2:
                rows.append([])
            elif depth == 3:
                rows[-1].append("")
        elif word in ("]", ")"):
            depth -= 1
            if depth == 0:
                break
        elif depth == 2 and word:
            rows[-1].append(word)
    return rows


# ---- frame, seed, crop


def endcap_pixel(eta: float, phi: float) -> tuple[int, int]:
    """55 bins a side, five to a tower; 360 uniform bins in phi over [-pi, pi)."""
    for tower, (low, high) in enumerate(pairwise(TOWERS)):
        if low <= abs(eta) < high:
            away = 5 * tower + min(4, floor(5 * (abs(eta) - low) / (high - low)))
            return (225 + away if eta > 0 else 54 - away), column_of(phi)
    raise ValueError(f"eta {eta} is in no endcap tower")


def column_of(phi: float) -> int:
    return (floor((phi + pi) / (2 * pi) * COLUMNS) + 190) % COLUMNS


def barrel_pixel(detid: int) -> tuple[int, int] | None:
    """Row and column of a barrel crystal; None if there is no such crystal."""
    iphi, ieta = detid & 0x1FF, (detid >> 9) & 0x7F
    if detid >> 28 != 3 or (detid >> 25) & 7 != 1 or (detid >> 17) & 0xFF:
        return None
    if not 1 <= ieta <= 85 or not 1 <= iphi <= 360:
        return None
    return 55 + 85 + (ieta - 1 if detid & 0x10000 else -ieta), iphi - 1


def frame_of(event: Event) -> tuple[Any, dict[str, int]]:
    """The ECAL image, float32[280, 360], and how many hits could not be placed."""
    image = np.zeros((ROWS, COLUMNS), np.float32)
    dropped = {"nan_energy": 0, "bad_detid": 0}
    for detid, energy in event.eb:
        pixel = barrel_pixel(detid)
        if not isfinite(energy):
            dropped["nan_energy"] += 1
        elif pixel is None:
            dropped["bad_detid"] += 1
        elif energy > 0:
            image[pixel] += np.float32(energy)
    for eta, phi, energy in event.ee:
        if not isfinite(energy):
            dropped["nan_energy"] += 1
        elif not isfinite(eta):
            dropped["bad_detid"] += 1
        elif energy > 0:
            image[endcap_pixel(eta, phi)] += np.float32(energy)
    return image, dropped


def seed_of(image: Any, photon: tuple[float, float, float, int]) -> tuple[int, int] | None:
    """Row and column of a selected photon's seed."""
    pt, eta, phi, detid = photon
    if not (pt > 10 and abs(eta) < 1.44):
        return None
    if (named := barrel_pixel(detid)) is not None:
        return named
    row = 140 + floor(eta / 0.01745)
    column = column_of(phi)
    best = None
    for y in range(max(row - 5, 55), min(row + 5, 224) + 1):
        for x in sorted((column + step) % COLUMNS for step in range(-5, 6)):
            if image[y, x] > 0 and (best is None or image[y, x] > image[best]):
                best = (y, x)
    return best


def crop_of(image: Any, seed: tuple[int, int], size: int = 32) -> Any:
    """The square around the seed, which is at index size / 2 - 1; float32[size, size]."""
    out = np.zeros((size, size), np.float32)
    for y in range(size):
        for x in range(size):
            row = seed[0] - (size // 2 - 1) + y
            if 0 <= row < ROWS:
                out[y, x] = image[row, (seed[1] - (size // 2 - 1) + x) % COLUMNS]
    return out


def run(events: list[Event], session: Any, size: int = 32) -> tuple[list[list[float]], list[list[tuple[int, int]]]]:
    """Scores and seeds of every photon of every event; -1 and (-1, -1) without a seed."""
    name = session.get_inputs()[0].name
    scores: list[list[float]] = []
    seeds: list[list[tuple[int, int]]] = []
    for event in events:
        image, _ = frame_of(event)
        found = [seed_of(image, photon) for photon in event.photons]
        seeds.append([seed or (-1, -1) for seed in found])
        scores.append([])
        for seed in found:
            score = -1.0
            if seed is not None:
                (answer,) = session.run(None, {name: crop_of(image, seed, size)[None, None]})
                score = float(answer.reshape(-1)[0])
            scores[-1].append(score)
    return scores, seeds
