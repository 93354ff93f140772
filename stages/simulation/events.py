"""Simulated collisions as the columns of an event file.

Events come in chunks of `CHUNK`, each from random seeds of its own, so that a chunk is the same whatever was generated
before it, and in whichever process. The collision happens 3.5 cm (sigma) along the beam and 10 um across it from the
centre of CMS. Pile-up is a Poisson number of minimum bias events at places of their own, drawn with a random azimuth
and side from a pool of `POOL`. The primary vertex is found within 10 um across and 15 um along the beam.

Numbers are rounded to what they are worth, which makes files smaller: energies and momenta to 12 bits, positions of
hits to 1/512 cm, directions to 2^-14.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.detector.ecal import N_EE_INDICES, eb_detid, ee_detid
from stages.detector.hcal import hcal_detid
from stages.detector.layout import N_TOWER_COLUMNS, N_TOWER_ROWS
from stages.jets import R_AK4, R_AK8, cluster
from stages.records import UNKNOWN
from stages.simulation import dice
from stages.simulation.collisions import Collisions, Generator
from stages.simulation.processes import MINIMUM_BIAS, PROCESSES
from stages.simulation.readout import EE_NOISE_GEV, N_EB_CELLS, NOISE_GEV
from stages.simulation.response import PILEUP, PX, PY, PZ, X0, Z0, Detector
from stages.simulation.shower import N_EB_COLUMNS, N_EB_ROWS
from streamer.block import Columns

CHUNK = 100
POOL = 500
BEAM_SIGMA_CM = (0.001, 0.001, 3.5)
VERTEX_SIGMA_CM = (0.0010, 0.0010, 0.0015)
EVENTS_PER_LUMISECTION = 1000
MIN_JET_PT_GEV, MIN_FAT_JET_PT_GEV = 15.0, 30.0

Floats = npt.NDArray[np.float64]


class Simulator:
    """Makes the events of one sample.

    Parameters
    ----------
    process : str
        A key of `PROCESSES`.
    seed : int
        0 .. 2^64 - 1.
    pileup : float
        Mean number of minimum bias events on top of each.

    Raises
    ------
    UsageError
        PYTHIA or FastJet is not installed.
    """

    def __init__(self, process: str, seed: int, pileup: float = 0.0) -> None:
        self.process, self.seed, self.pileup = PROCESSES[process], seed, pileup
        self._generators = [Generator(source.settings) for source in self.process.sources]
        self._detector, self._stream = Detector(), np.zeros(1, np.uint64)
        self._pool = Generator(MINIMUM_BIAS).make(POOL, self._seed_of(0, 0)).particles if pileup else []

    def _seed_of(self, what: int, index: int) -> int:
        dice.start(self._stream, np.uint64(self.seed), np.uint64(index * 16 + what))
        return int(self._stream[0])

    def make(self, first: int, n: int) -> Columns:
        """The events `first` (from 0, a multiple of `CHUNK`) and following, n of them at most `CHUNK`."""
        n_sources = len(self._generators)
        made = [
            generator.make((n - k + n_sources - 1) // n_sources, self._seed_of(1 + k, first // CHUNK))
            for k, generator in enumerate(self._generators)
            if k < n
        ]
        rows = [self._see(made[k % n_sources], k // n_sources, first + k) for k in range(n)]
        return self._columns(rows, made, first)

    def _see(self, collisions: Collisions, place: int, number: int) -> dict[str, Any]:
        """One event's hits and measured particles; `number` is its own, from 0."""
        random = np.random.default_rng([self.seed, number])
        centre = random.normal(0.0, BEAM_SIGMA_CM)
        particles = collisions.particles[place].copy()
        particles[:, X0 : Z0 + 1] += centre
        places = [centre]
        if self.pileup:
            every = [particles]
            for k in random.integers(POOL, size=random.poisson(self.pileup)):
                places.append(random.normal(0.0, BEAM_SIGMA_CM))
                every.append(_turned(self._pool[k], random.uniform(0, 2 * np.pi), random.choice([-1, 1]), places[-1]))
            particles = np.concatenate(every)
        vertices = places + random.normal(0.0, VERTEX_SIGMA_CM, (len(places), 3))
        dice.start(self._stream, np.uint64(self.seed), np.uint64(number * 16 + 15))
        detector = self._detector
        detector.see(self._stream, particles, vertices[0])
        n_pixels, n_strips, n_tracks, n_candidates, n_photons, n_cells, n_towers = detector.n
        cells = detector.cells[:n_cells].copy()
        energies = detector.readings[cells]
        noise = np.where(cells < N_EB_CELLS, NOISE_GEV, EE_NOISE_GEV)
        return {
            "pixels": detector.pixels[:n_pixels].copy(),
            "strips": detector.strips[:n_strips].copy(),
            "tracks": detector.tracks[:n_tracks].copy(),
            "candidates": detector.candidates[:n_candidates].copy(),
            "photons": detector.photons[:n_photons].copy(),
            "cells": np.stack([cells, energies, random.normal(0.0, np.hypot(35.0 * noise / energies, 0.15))], axis=1),
            "towers": np.stack([detector.towers[:n_towers], detector.energies[:n_towers]], axis=1),
            "vertices": vertices,
        }

    def _columns(self, rows: list[dict[str, Any]], made: list[Collisions], first: int) -> Columns:
        n = len(rows)
        table = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        counts = {name: np.array([len(row[name]) for row in rows], np.int32) for name in rows[0]}
        event = np.arange(first + 1, first + 1 + n, dtype=np.uint64)
        columns: Columns = {
            "run": np.ones(n, np.uint32),
            "luminosityBlock": (1 + event // EVENTS_PER_LUMISECTION).astype(np.uint32),
            "event": event,
            **_ecal(table["cells"], np.repeat(np.arange(n), counts["cells"]), n),
            **_hcal(table["towers"], counts["towers"]),
            "nTrack": counts["tracks"],
            **_directions("Track", table["tracks"]),
            "Track_charge": table["tracks"][:, 3].astype(np.int8),
            "Track_d0": _rounded(table["tracks"][:, 4]),
            "Track_dz": _rounded(table["tracks"][:, 5]),
            "Track_highPurity": np.ones(len(table["tracks"]), np.uint8),
            "nPixelHit": counts["pixels"],
            **_positions("PixelHit", table["pixels"]),
            "PixelHit_layer": table["pixels"][:, 4].astype(np.uint8),
            "nStripHit": counts["strips"],
            **_positions("StripHit", table["strips"]),
            "StripHit_subdet": table["strips"][:, 3].astype(np.uint8),
            "StripHit_layer": table["strips"][:, 4].astype(np.uint8),
            "nPhoton": counts["photons"],
            **_directions("Photon", table["photons"]),
            "Photon_genLabel": np.full(len(table["photons"]), UNKNOWN, np.int8),
            "nPV": counts["vertices"],
            **{f"PV_{axis}": table["vertices"][:, k].astype(np.float32) for k, axis in enumerate("xyz")},
        }
        pt, eta, phi = (np.ascontiguousarray(column) for column in table["candidates"].T)
        for objects, radius, pt_min in (("Jet", R_AK4, MIN_JET_PT_GEV), ("FatJet", R_AK8, MIN_FAT_JET_PT_GEV)):
            jets, _ = cluster(counts["candidates"], pt, eta, phi, radius=radius, pt_min=pt_min)
            columns |= {f"n{objects}": jets["counts"], **{f"{objects}_{k}": jets[k] for k in ("pt", "eta", "phi")}}
            columns[f"{objects}_genLabel"] = self._labels(objects, jets, made)
        return columns

    def _labels(self, objects: str, jets: Columns, made: list[Collisions]) -> npt.NDArray[np.int8]:
        if objects != self.process.objects:
            return np.full(jets["pt"].size, UNKNOWN, np.int8)
        sources, ends = self.process.sources, np.cumsum(jets["counts"])
        parts = []
        for k, (end, count) in enumerate(zip(ends, jets["counts"], strict=True)):
            which, place = k % len(sources), k // len(sources)
            truth = getattr(made[which], sources[which].truth)[place]
            eta, phi = (jets[name][end - count : end].astype(np.float64) for name in ("eta", "phi"))
            parts.append(sources[which].label(eta, phi, truth))
        return np.concatenate([np.zeros(0, np.int8), *parts])


def _turned(particles: Floats, angle: float, side: int, centre: Floats) -> Floats:
    """A minimum bias event turned about the beam, its z multiplied by `side`, and moved to its place."""
    out = particles.copy()
    out[:, PILEUP] = 1.0
    cos, sin = np.cos(angle), np.sin(angle)
    for x, y, z in ((PX, PY, PZ), (X0, X0 + 1, Z0)):
        out[:, x], out[:, y] = (
            cos * particles[:, x] - sin * particles[:, y],
            sin * particles[:, x] + cos * particles[:, y],
        )
        out[:, z] *= side
    out[:, X0 : Z0 + 1] += centre
    return out


def _rounded(values: Floats) -> npt.NDArray[np.float32]:
    """float32 with 12 bits of mantissa, rounded to nearest."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept = (bits + np.uint32(1 << 10)) & np.uint32(~((1 << 11) - 1) & 0xFFFFFFFF)
    return np.asarray(kept.view(np.float32))


def _directions(name: str, table: Floats) -> Columns:
    """pt, eta and phi (in [-pi, pi)) from the first columns of a table."""
    phi = (table[:, 2] + np.pi) % (2 * np.pi) - np.pi
    phi = np.floor(phi * 2**14) / 2**14
    return {
        f"{name}_pt": _rounded(table[:, 0]),
        f"{name}_eta": (np.round(table[:, 1] * 2**14) / 2**14).astype(np.float32),
        f"{name}_phi": np.where(phi < -np.pi, phi + 2**-14, phi).astype(np.float32),
    }


def _positions(name: str, table: Floats) -> Columns:
    return {f"{name}_{axis}": (np.round(table[:, k] * 512) / 512).astype(np.float32) for k, axis in enumerate("xyz")}


def _ecal(table: Floats, event: npt.NDArray[np.int64], n: int) -> Columns:
    """Hits from rows (cell, energy, time)."""
    cells = table[:, 0].astype(np.int64)
    barrel = cells < N_EB_CELLS
    rows, columns = np.divmod(cells[barrel], N_EB_COLUMNS)
    ieta = np.where(rows >= N_EB_ROWS // 2, rows - N_EB_ROWS // 2 + 1, rows - N_EB_ROWS // 2)
    index = cells[~barrel] - N_EB_CELLS
    side, place = np.divmod(index, N_EE_INDICES // 2)
    out: Columns = {}
    for name, chosen, detids in (
        ("EBRecHit", barrel, eb_detid(ieta, columns + 1)),
        ("EERecHit", ~barrel, ee_detid(place // 100 + 1, place % 100 + 1, np.where(side == 1, 1, -1))),
    ):
        out[f"n{name}"] = np.bincount(event[chosen], minlength=n).astype(np.int32)
        out[f"{name}_detid"] = detids
        out[f"{name}_energy"] = _rounded(table[chosen, 1])
        out[f"{name}_time"] = _rounded(table[chosen, 2])
    return out


def _hcal(table: Floats, counts: npt.NDArray[np.int32]) -> Columns:
    """Hits from rows (tower, energy), all of them at depth 1."""
    row, column = np.divmod(table[:, 0].astype(np.int64), N_TOWER_COLUMNS)
    half = N_TOWER_ROWS // 2
    ieta = np.where(row >= half, row - half + 1, row - half)
    iphi = (column - 2) % N_TOWER_COLUMNS + 1
    return {
        "nHBHERecHit": counts,
        "HBHERecHit_detid": hcal_detid(ieta, iphi, np.ones_like(ieta)),
        "HBHERecHit_energy": _rounded(table[:, 1]),
    }
