"""Events that tell their number by their score, and whether a run has them all, each once."""

import json
from pathlib import Path

import numpy as np
import uproot
from physics_helpers import call, event, write_hits

from stages.detector.ecal import eb_detid

N_FILES, N_ENTRIES = 3, 100


def write_numbered(folder: Path) -> list[Path]:
    """Files in which the event `i` has one photon, whose score by `sum_model` is i + 1."""
    made = []
    for k in range(N_FILES):
        numbers = range(k * N_ENTRIES, (k + 1) * N_ENTRIES)
        events = [
            event(i, EBRecHit=[(int(eb_detid(20, 11)), float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in numbers
        ]
        made.append(write_hits(folder / f"{k}.root", events))
    return made


def numbers_on_disk(out: Path, n_files: int | None = None) -> list[int]:
    """The numbers of all events in files of scores; each has its score, and each file is in order."""
    files = sorted(out.glob("scores*.root"))
    assert n_files is None or len(files) == n_files
    names = ["replay", "sourceFile", "sourceEntry", "nPhoton", "Photon_egScore"]
    numbers: list[int] = []
    for path in files:
        with uproot.open(path) as file:
            columns = file["Events"].arrays(names, library="np")
        replay, source, entry = (columns[name].astype(int) for name in names[:3])
        number = (replay * N_FILES + source) * N_ENTRIES + entry
        assert np.all(np.diff(number) > 0)
        scores = np.concatenate(columns["Photon_egScore"])
        np.testing.assert_array_equal(scores, number % (N_FILES * N_ENTRIES) + 1)
        numbers += number.tolist()
    return sorted(numbers)


def assert_whole(out: Path, n_events: int, n_files: int | None = None) -> None:
    """Every event is there once with its score, and the books close."""
    assert numbers_on_disk(out, n_files) == [*range(n_events)]
    code, said, _ = call("ledger", out, "--json")
    books = json.loads(said)
    assert (code, books["problems"]) == (0, [])
    nothing = dict.fromkeys(("errors", "shed", "late", "dropped", "in_flight"), 0)
    assert books["total"] == {"fed": n_events, "scored": n_events, **nothing}
    assert sum(lumi["fed"] for lumi in books["lumisections"]) == n_events
