"""Small events with two jets each, whose truth shows in how wide they are."""

from pathlib import Path

import numpy as np

from stages.conversion import schema_of
from stages.formats.root import write_events
from stages.records import INPUT
from streamer.block import Columns

_COLLECTIONS = ("Tower", "Track", "PixelHit", "Jet", "FatJet")
COLUMNS = [c for c in INPUT if not c.collection or c.collection in _COLLECTIONS]

WIDTH = {0: 0.25, 1: 0.08, 2: 0.08, -1: 0.15}
"""Of jets with this label, in eta and phi."""


def jet_columns(n_events: int, seed: int, labels: tuple[int, ...] = (0, 1)) -> Columns:
    """Events with two jets of 60 GeV; their labels are drawn from `labels`, for Jet and FatJet alike."""
    rng = np.random.default_rng(seed)
    n_jets, n_parts = 2 * n_events, 30
    eta, phi = rng.uniform(-1, 1, n_jets), rng.uniform(-np.pi, np.pi, n_jets)
    label = rng.choice(labels, n_jets)
    width = np.array([WIDTH[int(k)] for k in label])[:, None]
    part_eta = (eta[:, None] + width * rng.standard_normal((n_jets, n_parts))).ravel()
    part_phi = phi[:, None] + width * rng.standard_normal((n_jets, n_parts))
    part_phi = ((part_phi + np.pi) % (2 * np.pi) - np.pi).ravel()
    energy = rng.exponential(2.0, n_jets * n_parts) + 0.1
    n_each = np.full(n_events, 2 * n_parts, np.int32)
    radius = np.tile([4.3, 7.2, 11.0], n_jets * n_parts // 3)
    values = {
        "event": np.arange(n_events),
        "run": np.ones(n_events),
        "luminosityBlock": np.ones(n_events),
        "nTower": n_each,
        "Tower_eta": part_eta,
        "Tower_phi": part_phi,
        "Tower_emEnergy": energy,
        "Tower_hadEnergy": 0.7 * energy,
        "nTrack": n_each,
        "Track_pt": energy,
        "Track_eta": part_eta,
        "Track_phi": part_phi,
        "Track_charge": rng.choice([-1, 1], part_eta.size),
        "Track_d0": 0.005 * rng.standard_normal(part_eta.size),
        "Track_dz": 0.02 * rng.standard_normal(part_eta.size),
        "Track_highPurity": np.ones(part_eta.size),
        "nPixelHit": n_each,
        "PixelHit_x": radius * np.cos(part_phi),
        "PixelHit_y": radius * np.sin(part_phi),
        "PixelHit_z": radius * np.sinh(part_eta),
        "PixelHit_layer": np.tile([1, 2, 3], radius.size // 3),
    }
    for objects in ("Jet", "FatJet"):
        values |= {
            f"n{objects}": np.full(n_events, 2, np.int32),
            f"{objects}_pt": np.full(n_jets, 60.0),
            f"{objects}_eta": eta,
            f"{objects}_phi": phi,
            f"{objects}_genLabel": label,
        }
    return {
        column.name: np.asarray(values[column.name]).astype(column.wire_dtype) for column in schema_of(COLUMNS).columns
    }


def write_jets(path: Path, n_events: int, seed: int, labels: tuple[int, ...] = (0, 1)) -> Path:
    """They as an event file."""
    write_events(path, schema_of(COLUMNS), [jet_columns(n_events, seed, labels)])
    return path
