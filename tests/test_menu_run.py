"""A menu in running pipelines: real processes, sockets, files; decisions are worked out again from the input."""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from physics_helpers import Processes, call, event, sum_model, wait_until, write_hits

from stages.books import read_books
from stages.config import CHANNELS
from stages.detector.ecal import eb_detid
from stages.finishing import settings_of
from stages.menu.complete import copy_complete
from stages.stored import opened
from streamer import control
from streamer.errors import UsageError

N = 100
MENU = """
[paths]
High_v1 = "Photon: egScore > 50.5 and abs(eta) < 1"
Third_v1 = { expression = "Photon: egScore > 20.5", prescale = 3 }
Either_v2 = "High_v1 or Third_v1"
Rare_v1 = { expression = "nPhoton == 2 and (2 Photon: pt > 10)", prescale = 1 }
All_v1 = { expression = "true", prescale = 7 }

[columns.quiet]
High_v1 = 0
All_v1 = 5

[streams.physics]
datasets.High = ["High_v1", "Rare_v1"]
datasets.Third = ["Third_v1"]

[streams.scouting]
content = "scores"
datasets.All = ["All_v1"]
"""


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


@pytest.fixture
def menu(tmp_path: Path) -> Path:
    path = tmp_path / "menu.toml"
    path.write_text(MENU)
    return path


def write_lumis(path: Path) -> Path:
    """Event `i` has a photon that `sum_model` scores as i + 1, each tenth has another one; 25 events a lumisection."""
    photon = (34.0, 0.34, 0.005)
    events = [
        event(i, EBRecHit=[(int(eb_detid(20, 11)), float(i + 1))], Photon=[photon, photon] if i % 10 == 0 else [photon])
        for i in range(N)
    ]
    return write_hits(path, [{**e, "luminosityBlock": 1 + i // 25} for i, e in enumerate(events)])


def rows_of(files: list[Path], n: int = N) -> dict[str, Any]:
    """All columns that an event has once, in the order of the events; `n` are in the input."""
    parts = []
    for file in files:
        with uproot.open(file) as opened:
            tree = opened["Events"]
            names = [name for name in tree.keys() if not name.startswith("Photon_")]  # noqa: SIM118
            parts.append(tree.arrays(names, library="np"))
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(rows["replay"].astype(int) * n + rows["sourceEntry"])
    return {name: column[order] for name, column in rows.items()}


def places_of(rows: dict[str, Any]) -> Any:
    return rows["replay"].astype(int) * N + rows["sourceEntry"]


def books_of(out: Path) -> dict[str, Any]:
    code, said, _ = call("ledger", out, "--json")
    books: dict[str, Any] = json.loads(said)
    assert (code, books["problems"]) == (0, [])
    menu = books["menu"]
    assert sum(menu[name] for name in ("accepted", "rejected", "prescaled")) == books["total"]["scored"]
    return books


def passed_by(rows: dict[str, Any]) -> dict[str, Any]:
    """What the paths say, from what is known of the input."""
    score = rows["sourceEntry"] + 1
    found = {"High_v1": score > 50, "Third_v1": score > 20, "Rare_v1": rows["sourceEntry"] % 10 == 0}
    return found | {"Either_v2": found["High_v1"] | found["Third_v1"], "All_v1": score > 0}


def test_each_nth_accept_is_kept_over_deaths_switches_and_resumes(
    streamer: Processes, menu: Path, tmp_path: Path
) -> None:
    hits, out = write_lumis(tmp_path / "events.root"), tmp_path / "out"
    tagger = "--tagger", f"eg={sum_model(tmp_path / 'sum.onnx')}"
    process = streamer(
        *("run", hits, "--output", out, "--menu", menu, "--loop", "--rate", 1000, "--replicas", "tagger=2"),
        *(*tagger, "--set", "feed.block_events=16"),
        *("--set", "writer.segment_events=3000"),
    )
    process.wait_for_events(200)
    alive(streamer, 0)
    metrics = wait_until(lambda: process.metrics("writer-0"), "the writer's metrics")
    assert (
        metrics["streamer_path_events_total/Third_v1,passed"] > metrics["streamer_path_events_total/Third_v1,accepted"]
    )
    assert metrics["streamer_prescale_column/default"] == 1
    refused = streamer("prescale", "quite")
    assert refused.wait() == 2
    assert "there is no prescale column 'quite'; did you mean 'quiet'?" in refused.err
    for settings, why in (
        ({"menu.prescale_column": "default"}, "was asked for already"),
        ({"menu.prescale_column": "quiet", "menu.prescale_from": 1}, r"lumisection \d of run 1 has begun already"),
        ({"menu.paths.All_v1.prescale": 8}, r"only the prescale column \(menu.prescale_column\) can be changed"),
    ):
        with pytest.raises(UsageError, match=why):
            control.ask(streamer.run_dir(), {"do": "change", "stage": "writer", "settings": settings})
    process.stage("writer-0").send_signal(signal.SIGKILL)
    alive(streamer, 1)
    streamer("prescale", "quiet").check()
    seen = done(streamer)
    wait_until(lambda: done(streamer) > seen + 200, "events with the other column")
    process.stage("writer-0").send_signal(signal.SIGKILL)
    process.stage("tagger-1").send_signal(signal.SIGKILL)
    alive(streamer, 2)
    seen = done(streamer)
    wait_until(lambda: done(streamer) > seen + 200, "events after the deaths")
    streamer("stop", "--now").check()
    assert process.wait() == 130
    broken_off = Path(shutil.copytree(out, tmp_path / "broken-off"))
    lost = sum(last - first + 1 for first, last in read_books(out).in_flight)
    again = streamer("run", "--resume", out)
    again.wait_for_events(lost + 200)  # a stop before that would leave them out
    streamer("prescale", "default", out).check()
    seen = done(streamer)
    wait_until(lambda: done(streamer) > seen + 200, "events with the first column again")
    streamer("stop").check()
    again.check()

    rows = rows_of(sorted(out.glob("scores*.root")))
    place = places_of(rows)
    assert place.tolist() == [*range(place.size)], "each event that was fed, once"
    books = books_of(out)
    section = place // 25
    held = rows["HLT_High_v1_prescale"]
    edges = np.flatnonzero(np.diff(held))
    assert held[0] == held[-1] == 1
    assert len(edges) == 2, "default, quiet, default"
    assert np.all((edges + 1) % 25 == 0), "at the edges of lumisections alone"
    assert np.all(held == held[np.searchsorted(section, section)])
    np.testing.assert_array_equal(rows["HLT_All_v1_prescale"], np.where(held == 1, 7, 5))
    passed = passed_by(rows)
    kept = {name: rows[f"HLT_{name}"] for name in passed}
    for name, each in (("Third_v1", 3), ("Either_v2", 1), ("Rare_v1", 1)):
        assert not np.any(kept[name] & ~passed[name])
        assert kept[name].sum() == passed[name].sum() // each
    np.testing.assert_array_equal(kept["High_v1"], passed["High_v1"] & (held == 1))
    fifth, seventh = (int((held == own).sum()) for own in (0, 1))
    assert abs(kept["All_v1"].sum() - fifth / 5 - seventh / 7) <= 20, "but where events overtook each other"
    paths = books["menu"]["paths"]
    assert {name: paths[name]["passed"] for name in paths} == {name: int(passed[name].sum()) for name in paths}
    assert {name: paths[name]["accepted"] for name in paths} == {name: int(kept[name].sum()) for name in paths}
    physics = kept["High_v1"] | kept["Rare_v1"] | kept["Third_v1"]
    np.testing.assert_array_equal(rows["Stream_physics"], physics)
    np.testing.assert_array_equal(rows["Dataset_High"], kept["High_v1"] | kept["Rare_v1"])
    stream = rows_of(sorted((out / "streams").glob("physics*.root")))
    np.testing.assert_array_equal(stream["sourceEntry"], rows["sourceEntry"][physics])
    np.testing.assert_array_equal(stream["Dataset_Third"], kept["Third_v1"][physics])
    scouting = rows_of(sorted((out / "streams").glob("scouting*.root")))
    assert scouting["event"].size == kept["All_v1"].sum()

    assert call("finish", broken_off)[0] == 0
    first = rows_of(sorted(broken_off.glob("scores*.root")))
    n = first["event"].size
    assert 0 < n < place.size
    for name in ("HLT_Third_v1", "HLT_All_v1", "HLT_High_v1_prescale"):
        np.testing.assert_array_equal(first[name], rows[name][np.isin(place, places_of(first))])
    with uproot.open(broken_off / "streams" / "scouting.root") as file:
        assert "Photon_egScore" in file["Events"]
        assert "Photon_pt" not in file["Events"]
        assert json.loads(str(file["streamer_menu"]))["columns"]["quiet"]["High_v1"] == 0
    menu.write_text('[paths]\nHigh_v1 = "true"\n')
    code, _, err = call("run", hits, "--output", broken_off, "--menu", menu, "--set", "writer.resume=true", *tagger)
    assert code == 2
    assert f"{broken_off}: the run there was begun with another menu" in err


@pytest.mark.long
def test_several_writers_keep_each_nth_of_their_own_and_switch_at_the_same_lumisection(
    streamer: Processes, menu: Path, tmp_path: Path
) -> None:
    hits, out = write_lumis(tmp_path / "events.root"), tmp_path / "out"
    several = (
        *("run", hits, "--output", out, "--menu", menu, "--loop", "--rate", 1000),
        *("--tagger", f"eg={sum_model(tmp_path / 'sum.onnx')}", "--replicas", "writer=2"),
        *("--set", "feed.block_events=16", "--prescale-column", "quiet", "--set", "menu.prescale_from=3"),
    )
    code, _, err = call(*several)
    assert code == 2
    assert "several writers agree on lumisections that the feed counts; run with --lumisection '23.31 s'" in err
    process = streamer(*several, "--lumisection", "25 events")
    process.wait_for_events(100)
    settings: dict[str, Any] = {"menu.prescale_column": "default", "menu.prescale_from": 0}
    with pytest.raises(UsageError, match=r"name the lumisection .*, such as --at-lumisection \d+"):
        control.ask(streamer.run_dir(), {"do": "change", "stage": "writer", "settings": settings})
    wait_until(lambda: done(streamer) > 600, "events")
    switched = [(3, "quiet")]
    first = 1
    for k in range(60):
        column, since = ("default", "quiet")[len(switched) % 2], first + k % 3
        settings = {"menu.prescale_column": column, "menu.prescale_from": since}
        try:
            control.ask(streamer.run_dir(), {"do": "change", "stage": "writer", "settings": settings})
        except UsageError as error:
            told = re.findall(r"has begun already; the first that can .* is (\d+)", str(error))
            first = int(told[0]) if told else first + 1  # the same was asked for
        else:
            switched.append((since, column))
    assert len(switched) > 10
    column = ("default", "quiet")[len(switched) % 2]
    asked = streamer("prescale", column)
    asked.check()
    since = int(re.findall(rf"prescale column '{column}' from lumisection (\d+) on", asked.out)[0])
    switched.append((since, column))
    wait_until(lambda: done(streamer) > 25 * (since + 4), "events with the column of both writers")
    streamer("stop").check()
    process.check()
    books = books_of(out)
    lumis = {one["luminosityBlock"]: one for one in books["menu"]["lumisections"]}
    seconds = sum(one["seconds"] for one in lumis.values())
    assert seconds == pytest.approx(books["total"]["fed"] / 1000, rel=0.5), "of the same time, not twice"
    held: dict[int, set[int]] = {}
    for writer in range(2):
        rows = rows_of([out / ("scores-1.root" if writer else "scores.root")])
        passed = passed_by(rows)
        assert rows["HLT_Third_v1"].sum() == passed["Third_v1"].sum() // 3
        for lumi, prescale in zip(rows["feedLumisection"].tolist(), rows["HLT_High_v1_prescale"].tolist(), strict=True):
            held.setdefault(lumi, set()).add(prescale)
        mine = rows_of([out / "streams" / ("physics-1.root" if writer else "physics.root")])
        assert mine["event"].size == rows["Stream_physics"].sum()
    in_force = {
        lumi: next((column for since, column in reversed(switched) if since <= lumi), "default") for lumi in held
    }
    assert since in held
    assert held == {lumi: {0 if column == "quiet" else 1} for lumi, column in in_force.items()}
    assert call("ledger", out)[1].count("High_v1") == 1


def test_events_that_no_seed_wants_are_booked_and_not_worked_on(
    streamer: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hit = int(eb_detid(20, 11))
    events = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(30.0 + i, 0.34, 0.005)] * (i % 3)) for i in range(60)]
    hits, out = write_hits(tmp_path / "events.root", events), tmp_path / "out"
    path, tagger = tmp_path / "menu.toml", f"eg={sum_model(tmp_path / 'sum.onnx')}"
    path.write_text("""
        [paths]
        High_v1 = { expression = "Photon: egScore > 55.5", seed = "Photon: pt > 70.5" }
        Pair_v1 = { expression = "2 Photon: egScore > 0", seed = "2 Photon: pt > 80.5", prescale = 2 }
        Either_v1 = "High_v1 or Pair_v1"
        [streams.physics]
        content = "crops+source"
        format = "parquet"
        without = ["Photon_eta"]
        datasets.High = ["High_v1"]
    """)
    process = streamer("run", hits, "--output", out, "--menu", path, "--loop", "--rate", 1000, "--tagger", tagger)
    process.wait_for_events(200)
    reader, tagged = (wait_until(lambda at=at: process.metrics(at), at) for at in ("reader-0", "tagger-0"))  # type: ignore[misc]
    streamer("stop").check()
    process.check()
    rows = rows_of([out / "scores.root"], 60)
    entry = rows["sourceEntry"]
    wanted = (entry > 40) & (entry % 3 > 0)
    with uproot.open(out / "scores.root") as file:
        tree = file["Events"].arrays(["sourceEntry", "Photon_pt", "Photon_egScore"], library="np")
    for number, pts, scores in zip(*tree.values(), strict=True):
        assert pts.tolist() == [30.0 + number] * (number % 3), "its objects are told all the same"
        assert set(scores) <= ({number + 1.0} if number > 40 else {-1.0}), "but not scored"
    np.testing.assert_array_equal(rows["HLT_High_v1"], wanted & (entry > 54))
    pairs = (entry > 50) & (entry % 3 == 2)
    assert rows["HLT_Pair_v1"].sum() == pairs.sum() // 2
    np.testing.assert_array_equal(rows["HLT_Either_v1"], pairs | rows["HLT_High_v1"])
    assert call("skim", out, "--stream", "physics", "-o", tmp_path / "skim.root")[0] == 0
    with uproot.open(tmp_path / "skim.root") as file:
        skimmed = file["Events"].arrays(["event", "nEBRecHit"], library="np")
    assert skimmed["event"].tolist() == np.unique(entry[rows["HLT_High_v1"]]).tolist()
    assert skimmed["nEBRecHit"].tolist() == [1] * skimmed["event"].size, "whole, from the source"
    with uproot.open(out / "streams" / "physics-source.root") as file:
        complete = file["Events"].arrays()
    assert complete["event"].tolist() == skimmed["event"].tolist()
    assert ak.flatten(complete["EBRecHit_energy"]).tolist() == [number + 1.0 for number in skimmed["event"]]
    assert "Photon_eta" not in complete.fields
    with opened(out / "streams" / "physics.parquet") as stored:
        kept = ak.zip(stored.arrays(stored.names, 0, stored.n_events), depth_limit=1)
    assert len(kept) == rows["HLT_High_v1"].sum()
    assert kept["nEgCrop"].tolist() == kept["nPhoton"].tolist(), "a crop for each photon, for all were selected"
    of_crop = kept["EgPixel_value"][kept["EgPixel_cropIdx"] == 0]
    assert ak.sum(of_crop, axis=1).tolist() == kept["Photon_egScore"][:, 0].tolist(), "what the network has added up"
    assert ak.all(kept["EgCrop_photonIdx"] == ak.local_index(kept["Photon_pt"]))
    assert set(ak.flatten(kept["EgPixel_channel"]).tolist()) == {CHANNELS.index("ECAL")}
    books = books_of(out)
    paths = books["menu"]["paths"]
    assert paths["High_v1"]["seeded"] == paths["Either_v1"]["seeded"] == wanted.sum()
    assert paths["Pair_v1"]["seeded"] == pairs.sum()
    assert books["menu"]["rejected"] == (~(rows["HLT_High_v1"] | pairs)).sum()
    assert reader["streamer_unseeded_events_total/no_seed"] > 100
    assert 0 < tagged["streamer_batch_size_sum/eg"] < 0.6 * tagged["streamer_events_total/ok"]
    hits.rename(tmp_path / "elsewhere.root")
    [problem] = copy_complete(settings_of(out))
    whole = out / "streams" / "physics-source.root"
    assert f"{whole}: is not made anew, and what is there is older: {hits}" in problem
    assert f"then: streamer skim {out} --stream physics -o " in problem
    (tmp_path / "elsewhere.root").rename(hits)
    (out / "scores.root").rename(tmp_path / "scores.root")
    assert copy_complete(settings_of(out)) == [], "somebody's choice"
    assert f"{whole}: is not made anew" in caplog.text
    with uproot.open(whole) as file:
        assert file["Events"]["event"].array().tolist() == complete["event"].tolist()
    (tmp_path / "scores.root").rename(out / "scores.root")
    (whole.with_name("physics-source_1.root")).touch()
    assert copy_complete(settings_of(out)) == []
    assert [path.name for path in whole.parent.glob("*-source*")] == [whole.name]


def alive(streamer: Processes, deaths: int) -> None:
    """Wait until the writer has died so often, and all processes run."""

    def look() -> bool:
        rows = {row["name"]: row for row in status(streamer)}
        return rows["writer-0"]["restarts"] == deaths and {row["state"] for row in rows.values()} == {"running"}

    wait_until(look, "all processes to run")


def status(streamer: Processes) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = control.ask(streamer.run_dir(), {"do": "status"})["processes"]
    return rows


def done(streamer: Processes) -> int:
    return int(control.ask(streamer.run_dir(), {"do": "status"})["done"])
