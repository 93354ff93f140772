"""Jets for an input that brings none: anti-kT with the E-scheme, by FastJet.

FastJet's compiled code holds the interpreter while it clusters, and keeps a history of about 70 kB for an event
of 150 constituents. A step therefore goes through it in slices of `SLICE` events, some 10 ms and 5 MB each.
"""

import math
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from streamer.block import Array, Columns, offsets
from streamer.errors import UsageError

R_AK4 = 0.4
R_AK8 = 0.8

NEEDS = "clustering jets needs fastjet: pip install 'e2e-streamer[jets]'"
SLICE = 64
ETA_LIMIT = 100.0
"""Farther out the squares of a momentum overflow. No detector is there."""

Floats = npt.NDArray[np.float64]


def require_fastjet() -> Any:
    """FastJet as a module that keeps its banner from stdout.

    Raises
    ------
    UsageError
        It is not installed; the line names the extra that brings it.
    """
    try:
        import fastjet
    except ImportError as error:
        raise UsageError(f"{NEEDS} ({error})") from None
    fastjet._swig.ClusterSequence.set_fastjet_banner_stream(None)
    return fastjet


def cluster(
    n_particles: Array, pt: Array, eta: Array, phi: Array, *, radius: float, pt_min: float
) -> tuple[Columns, int]:
    """Cluster massless particles into jets, each event for itself.

    A particle with a value that is not finite, with pt <= 0 or with |eta| >= `ETA_LIMIT` is left out.

    Parameters
    ----------
    n_particles : int32, shape (n_events,)
    pt : float32, shape (n_particles.sum(),)
        In GeV.
    eta, phi : float32, shape (n_particles.sum(),)
        Phi in rad.
    radius : float
        Above 0 and below pi.
    pt_min : float
        Jets have at least this pt [GeV]; above 0.

    Returns
    -------
    jets : dict
        `counts` (int32, shape (n_events,)), and `pt` [GeV], `eta`, `phi` [rad, in -pi..pi without pi itself] of
        the jets (float32, shape (counts.sum(),)), in each event by falling pt. Eta is the pseudorapidity.
    n_left_out : int
        Number of particles left out.

    Raises
    ------
    UsageError
        FastJet is not installed.
    ValueError
        `radius` or `pt_min` is out of range.
    """
    if not (0 < radius < math.pi and 0 < pt_min < math.inf):
        raise ValueError(f"no jets with radius {radius} and pt_min {pt_min}: 0 < radius < pi, 0 < pt_min")
    fastjet = require_fastjet()
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, float(radius))
    good = (pt > 0) & np.isfinite(pt) & (np.abs(eta) < ETA_LIMIT) & np.isfinite(phi)
    n_events = n_particles.size
    event = np.repeat(np.arange(n_events), n_particles)
    bounds = offsets(np.bincount(event[good], minlength=n_events))
    momenta = _momenta(*(column[good].astype(np.float64) for column in (pt, eta, phi)))

    parts = []
    for first in range(0, max(n_events, 1), SLICE):
        places = bounds[first : first + SLICE + 1]
        # FastJet reads from the start of the columns, wherever the first event begins.
        columns = [ak.contents.NumpyArray(column[places[0] : places[-1]]) for column in momenta]
        records = ak.contents.RecordArray(columns, ["px", "py", "pz", "E"])
        events = ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(places - places[0]), records))
        parts.append(fastjet.ClusterSequence(events, definition).inclusive_jets(min_pt=float(pt_min)))
    jets = ak.concatenate(parts)

    counts = ak.to_numpy(ak.num(jets)).astype(np.int32)
    momentum = ak.to_numpy(ak.flatten(jets))  # a structured array
    px, py, pz = momentum["px"], momentum["py"], momentum["pz"]
    jet_pt = np.hypot(px, py)
    order = np.lexsort((-jet_pt, np.repeat(np.arange(n_events), counts)))
    jet_phi = np.arctan2(py, px).astype(np.float32)
    jet_phi[jet_phi == np.float32(np.pi)] = -np.float32(np.pi)
    found = {"pt": jet_pt, "eta": np.arcsinh(pz / jet_pt), "phi": jet_phi}
    return {"counts": counts, **{name: a[order].astype(np.float32) for name, a in found.items()}}, int((~good).sum())


def _momenta(pt: Floats, eta: Floats, phi: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """px, py, pz, E of massless particles."""
    return pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)


def particles_of_towers(
    eta: Array, phi: Array, energy_em: Array, energy_had: Array
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Calorimeter towers as massless particles.

    Parameters
    ----------
    eta, phi : float32, shape (n_towers,)
        Direction of the tower; phi in rad.
    energy_em, energy_had : float32, shape (n_towers,)
        In GeV. Their sum may be 0 or below; `cluster` leaves such a tower out.

    Returns
    -------
    pt, eta, phi : float32, shape (n_towers,)
        `pt = (energy_em + energy_had) / cosh(eta)` [GeV].
    """
    energy = energy_em.astype(np.float64) + energy_had
    pt = energy / np.cosh(eta.astype(np.float64))
    return pt.astype(np.float32), eta.astype(np.float32), phi.astype(np.float32)
