"""Collisions at 13 TeV by PYTHIA 8: stable particles, and the truth that labels are made of."""

from dataclasses import dataclass
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from stages.simulation.processes import ENERGY
from stages.simulation.response import (
    CHARGED_HADRON,
    DEPOSIT,
    ELECTRON,
    KIND,
    MUON,
    N_COLUMNS,
    NEUTRAL_HADRON,
    PHOTON,
    PX,
    PY,
    PZ,
    X0,
    Z0,
    Q,
)
from streamer.errors import StreamerError, UsageError

NEEDS = "generating collisions needs pythia8mc and fastjet: pip install 'e2e-streamer[generate]'"

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_COMMON = ("Print:quiet = on", *ENERGY, "Random:setSeed = on", "Random:seed = 1")
_MOST_SEED = 900_000_000
_STABLE_KIND = {22: PHOTON, 11: ELECTRON, 13: MUON}
_CHARGED = (11, 13, 211, 321, 2212, 3112, 3222, 3312, 3334)
_INVISIBLE = (12, 14, 16)
_NEGATIVE = (11, 13, 3112, 3312, 3334)  # those of them whose particle has the charge -1


@dataclass
class Collisions:
    """A chunk of events.

    Attributes
    ----------
    particles : list of float64[n, N_COLUMNS]
        The stable particles of each event, see `response`; the collision is at the origin.
    partons : list of float64[n, 3]
        The outgoing partons of the hard process of each event: id, eta, phi.
    tops : list of float64[n, 6]
        The hadronically decaying top quarks: eta and phi of their three quarks.
    taus : list of float64[n, 3]
        The hadronically decaying tau leptons: what is visible of them, pt [GeV], eta, phi.
    """

    particles: list[Floats]
    partons: list[Floats]
    tops: list[Floats]
    taus: list[Floats]


def require_pythia() -> Any:
    """PYTHIA 8 as a module.

    Raises
    ------
    UsageError
        It is not installed; the line names the extra that brings it.
    """
    try:
        import pythia8mc
    except ImportError as error:
        raise UsageError(f"{NEEDS} ({error})") from None
    return pythia8mc


class Generator:
    """PYTHIA 8 for one process.

    Raises
    ------
    UsageError
        It is not installed, or does not take the settings.
    """

    def __init__(self, settings: tuple[str, ...]) -> None:
        self._pythia = require_pythia().Pythia("", False)
        for line in (*_COMMON, *settings):
            if not self._pythia.readString(line):
                raise UsageError(f"PYTHIA does not know the setting '{line}'")
        if not self._pythia.init():
            raise UsageError("PYTHIA does not start with its settings")

    def make(self, n: int, seed: int) -> Collisions:
        """Generate n events; the same seed gives the same events, whatever was generated before.

        Raises
        ------
        StreamerError
            PYTHIA gave up.
        """
        self._pythia.rndm.init(1 + seed % _MOST_SEED)
        batch = self._pythia.nextBatch(n)
        if len(batch) != n:
            raise StreamerError(f"PYTHIA made {len(batch)} of {n} events; try another seed")
        return _read(batch)


def _read(batch: Any) -> Collisions:
    counts = ak.to_numpy(ak.num(batch.prt)).astype(np.int64)
    table = batch.prt

    def flat(array: Any) -> Any:
        return ak.to_numpy(ak.flatten(array))

    pdg, status, mother = flat(table.id), flat(table.status), flat(table.mother1)
    momentum = np.stack([flat(table.p[name]) for name in ("px", "py", "pz", "e")], axis=1)
    place = np.stack([flat(ak.fill_none(table.vProd[name], 0.0)) for name in ("px", "py", "pz")], axis=1)
    event = np.repeat(np.arange(counts.size), counts)
    mother = mother + (np.cumsum(counts) - counts)[event]
    truth = _Truth(pdg, status, mother, momentum, event)
    stable = (status > 0) & ~np.isin(abs(pdg), _INVISIBLE)
    particles = _stable(pdg[stable], momentum[stable], flat(table.m)[stable], place[stable])
    n = counts.size
    return Collisions(
        _split(particles, event[stable], n),
        *(_split(rows, events, n) for rows, events in (truth.partons(), truth.tops(), truth.taus())),
    )


def _split(rows: Floats, event: Ints, n: int) -> list[Floats]:
    return np.split(rows, np.cumsum(np.bincount(event, minlength=n))[:-1])


def _stable(pdg: Ints, momentum: Floats, mass: Floats, place: Floats) -> Floats:
    """Rows for `response` from PDG ids, px, py, pz, E, m [GeV] and the vertex [mm]."""
    size = abs(pdg)
    charged = np.isin(size, _CHARGED)
    sign = np.where(np.isin(size, _NEGATIVE), -1, 1) * np.sign(pdg)
    out = np.zeros((pdg.size, N_COLUMNS))
    out[:, KIND] = np.where(charged, CHARGED_HADRON, NEUTRAL_HADRON)
    for code, kind in _STABLE_KIND.items():
        out[size == code, KIND] = kind
    out[:, Q] = np.where(charged, sign, 0)
    out[:, [PX, PY, PZ]] = momentum[:, :3]
    # A nucleon keeps its mass; an antinucleon annihilates and gives twice that.
    baryon = (size > 1000) & (size < 10_000)
    out[:, DEPOSIT] = momentum[:, 3] + np.where(baryon, -np.sign(pdg) * mass, 0.0)
    out[:, X0 : Z0 + 1] = 0.1 * place
    return out


def _eta_phi(momentum: Floats) -> Floats:
    pt = np.maximum(np.hypot(momentum[:, 0], momentum[:, 1]), 1e-9)
    return np.stack([np.arcsinh(momentum[:, 2] / pt), np.arctan2(momentum[:, 1], momentum[:, 0])], axis=1)


@dataclass
class _Truth:
    """What became of the hard process, from PYTHIA's event record: columns over all entries of all events."""

    pdg: Ints
    status: Ints
    mother: Ints  # place of the first mother in these columns
    momentum: Floats
    event: Ints

    def partons(self) -> tuple[Floats, Ints]:
        """Outgoing partons of the hard process: rows (id, eta, phi), and their events."""
        size = abs(self.pdg)
        first = abs(self.pdg[self.mother])
        chosen = (abs(self.status) == 23) & ((size <= 5) | (size == 21)) & ((first <= 5) | (first == 21))
        rows = np.column_stack([self.pdg[chosen], _eta_phi(self.momentum[chosen])])
        return rows, self.event[chosen]

    def tops(self) -> tuple[Floats, Ints]:
        """Hadronic top quarks: rows with eta, phi of b and the two quarks of the W, and their events."""
        size, parent = abs(self.pdg), self.pdg[self.mother]
        out = abs(self.status) == 23
        rows, events = [], []
        for sign in (1, -1):
            bottom = np.flatnonzero(out & (size == 5) & (parent == 6 * sign))
            quarks = np.flatnonzero(out & (size <= 5) & (parent == 24 * sign))
            pairs, n_quarks = np.unique(self.event[quarks], return_counts=True)
            whole = np.intersect1d(pairs[n_quarks == 2], self.event[bottom])
            bottom = bottom[np.isin(self.event[bottom], whole)]
            quarks = quarks[np.isin(self.event[quarks], whole)]
            directions = _eta_phi(self.momentum[quarks]).reshape(-1, 4)
            rows.append(np.column_stack([_eta_phi(self.momentum[bottom]), directions]))
            events.append(self.event[bottom])
        return _by_event(rows, events)

    def taus(self) -> tuple[Floats, Ints]:
        """Hadronic tau decays: rows (pt, eta, phi) of what is visible, and their events."""
        size, final = abs(self.pdg), self.status > 0
        of_tau = abs(self.pdg[self.mother]) == 15
        neutrino = np.flatnonzero(final & (size == 16) & of_tau)
        tau = self.mother[neutrino]
        leptonic = np.isin(tau, self.mother[of_tau & np.isin(size, (11, 13))])
        # The neutrinos of one decay are all of its invisible part.
        visible = (self.momentum[tau] - self.momentum[neutrino])[~leptonic]
        rows = np.column_stack([np.hypot(visible[:, 0], visible[:, 1]), _eta_phi(visible)])
        return _by_event([rows], [self.event[tau[~leptonic]]])


def _by_event(rows: list[Floats], events: list[Ints]) -> tuple[Floats, Ints]:
    every, event = np.concatenate(rows), np.concatenate(events)
    order = np.argsort(event, kind="stable")
    return every[order], event[order]
