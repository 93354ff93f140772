"""Truth labels: which parton, top quark or tau lepton a jet comes from.

A jet that nothing is known about has the label -1, and counts in no training and no measurement.
"""

import numpy as np
import numpy.typing as npt

from stages.records import UNKNOWN

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]

BACKGROUND, QUARK, TOP, TAU = 0, 1, 1, 2
JET_MATCH, FAT_JET_MATCH, TAU_MATCH = 0.3, 0.8, 0.3
"""Distance in eta and phi within which a jet is taken for that of a parton, of the quarks of a top, of a tau."""
MIN_TAU_PT_GEV = 20.0
_LIGHT, _GLUON = (1, 2, 3), 21


def distances(eta: Floats, phi: Floats, to_eta: Floats, to_phi: Floats) -> Floats:
    """Distances in eta and phi between n and m directions: float64[n, m]."""
    d_phi = (phi[:, None] - to_phi[None, :] + np.pi) % (2 * np.pi) - np.pi
    return np.asarray(np.hypot(eta[:, None] - to_eta[None, :], d_phi))


def label_partons(eta: Floats, phi: Floats, partons: Floats) -> Labels:
    """Jets of light quarks (u, d, s: 1) and of gluons (0), by the closest outgoing parton of the hard process.

    Jets of charm and bottom quarks stay unknown: they are known by their long-lived hadrons.

    Parameters
    ----------
    eta, phi : float64[n]
        Of the jets.
    partons : float64[m, 3]
        id, eta, phi.
    """
    out = np.full(eta.size, UNKNOWN, np.int8)
    if not len(partons) or not eta.size:
        return out
    apart = distances(eta, phi, partons[:, 1], partons[:, 2])
    closest = apart.argmin(axis=1)
    flavour = abs(partons[closest, 0])
    near = apart.min(axis=1) < JET_MATCH
    out[near & np.isin(flavour, _LIGHT)] = QUARK
    out[near & (flavour == _GLUON)] = BACKGROUND
    return out


def label_background(eta: Floats, phi: Floats, partons: Floats) -> Labels:
    """Jets within 0.8 of an outgoing parton of the hard process, 0; the others stay unknown."""
    out = np.full(eta.size, UNKNOWN, np.int8)
    if len(partons) and eta.size:
        out[distances(eta, phi, partons[:, 1], partons[:, 2]).min(axis=1) < FAT_JET_MATCH] = BACKGROUND
    return out


def label_tops(eta: Floats, phi: Floats, tops: Floats) -> Labels:
    """Jets that hold all three quarks of a top within 0.8, 1; tops[m, 6] are eta and phi of the quarks."""
    out = np.full(eta.size, UNKNOWN, np.int8)
    for top in tops:
        if eta.size:
            held = distances(eta, phi, top[0::2], top[1::2]).max(axis=1) < FAT_JET_MATCH
            out[held] = TOP
    return out


def label_taus(eta: Floats, phi: Floats, taus: Floats) -> Labels:
    """Jets within 0.3 of what is visible of a hadronic tau above 20 GeV, 2; taus[m, 3] are pt [GeV], eta, phi."""
    out = np.full(eta.size, UNKNOWN, np.int8)
    hard = taus[taus[:, 0] > MIN_TAU_PT_GEV]
    if len(hard) and eta.size:
        out[distances(eta, phi, hard[:, 1], hard[:, 2]).min(axis=1) < TAU_MATCH] = TAU
    return out
