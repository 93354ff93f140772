"""What can be generated from collisions: signal and background of a tagger, and how their jets are labelled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.simulation.labels import label_background, label_partons, label_taus, label_tops

ENERGY = ("Beams:eCM = 13000",)
_QCD = "HardQCD:all = on"
_HARD = ("PhaseSpace:pTHatMin = 300", "PhaseSpace:pTHatMax = 470")
_BOOSTED = ("PhaseSpace:pTHatMin = 400", "PhaseSpace:pTHatMax = 600")  # most tops below do not fit into one jet


@dataclass(frozen=True)
class Source:
    """One process of PYTHIA.

    Attributes
    ----------
    name : str
        For people.
    settings : tuple of str
    truth : str
        The attribute of `Collisions` that labels come from.
    label : callable
        eta, phi of the jets and a row for each truth object to labels, see `labels`.
    """

    name: str
    settings: tuple[str, ...]
    truth: str
    label: Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Process:
    """A sample. Its events come from its sources in turn, and its truth is about one kind of objects."""

    name: str
    objects: str
    sources: tuple[Source, ...]


PROCESSES = {
    "qg": Process(
        "QCD jets at pT-hat 300-470 GeV, light quarks against gluons",
        "Jet",
        (Source("QCD", (_QCD, *_HARD), "partons", label_partons),),
    ),
    "top": Process(
        "hadronic ttbar against QCD, both at pT-hat 400-600 GeV",
        "FatJet",
        (
            Source(
                "ttbar",
                ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on", *_BOOSTED, "24:onMode = off", "24:onIfAny = 1 2 3 4 5"),
                "tops",
                label_tops,
            ),
            Source("QCD", (_QCD, *_BOOSTED), "partons", label_background),
        ),
    ),
    "tau": Process(
        "gluon fusion H(125) to two tau leptons, against QCD at pT-hat 30-120 GeV",
        "FatJet",
        (
            Source(
                "H to tau tau",
                ("HiggsSM:gg2H = on", "25:m0 = 125", "25:onMode = off", "25:onIfMatch = 15 15"),
                "taus",
                label_taus,
            ),
            Source(
                "QCD",
                (
                    *(_QCD, "PhaseSpace:pTHatMin = 30", "PhaseSpace:pTHatMax = 120"),
                    *("PhaseSpace:bias2Selection = on", "PhaseSpace:bias2SelectionPow = 2.5"),
                ),
                "partons",
                label_background,
            ),
        ),
    ),
}
MINIMUM_BIAS = ("SoftQCD:inelastic = on",)
