"""Fixtures that the tests share, and how a test that is a coroutine is run."""

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import copied
import pytest
from hypothesis import settings

from streamer.runner import Run
from streamer.testing import run_folder

DATA = Path(__file__).parents[2] / "shared" / "cms-open-data"
ASYNC_TIMEOUT_S = 60.0

settings.register_profile("streamer", deadline=None, database=None)  # a slow machine is no failure
settings.load_profile("streamer")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="what takes long as well, and chaos in its long form")
    parser.addoption("--seed", type=int, help="of the chaos suite; drawn and told when left out")


def pytest_configure(config: pytest.Config) -> None:
    copied.anew = copied.anew or config.getoption("--long")


LONGEST_FIRST = (
    *("pipeline", "control", "collisions", "poison", "mix", "remote", "bad_disks", "chaos", "taggers", "truth"),
    *("training_session", "models", "foreign_formats", "bench", "bench_peers", "training_networks", "view_plot"),
    *("quantize", "batch_metrics", "forms", "page", "deploy", "notify", "live_feed", "skim", "bench_feed", "menu_run"),
    *("recovery", "model_swap"),
)
"""Files of tests that take more than ten seconds: those that start first do not keep one worker busy at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))  # stable: the rest stays as it is
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long; with --long"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests in a loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    asyncio.run(asyncio.wait_for(test, ASYNC_TIMEOUT_S))
    return True


@pytest.fixture(autouse=True)
def nothing_is_left_here() -> Iterator[None]:
    """What commands make where nobody says where (`streamer-out`, `streamer-bench`) belongs into `tmp_path`."""
    before = {*Path().glob("streamer-*")}
    yield
    assert {*Path().glob("streamer-*")} == before


@pytest.fixture
def run() -> Iterator[Run]:
    """A run: a short folder for sockets, and a token."""
    with run_folder() as run:
        yield run


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """An ONNX network for the default E/Gamma crops; its score is the energy in the crop [GeV]."""
    from physics_helpers import sum_model  # the heavy libraries only where they are needed

    return sum_model(tmp_path / "tiny.onnx")


@pytest.fixture
def hits_file(tmp_path: Path) -> Path:
    """A ROOT file of six events: ordinary ones, one without photons, one at each seam in phi, one without anything.

    With `tiny_model` the scores are [34], [], [28], [], [16, -1] and [64, -1].
    """
    from physics_helpers import event, write_hits

    from stages.detector.ecal import eb_detid

    def hit(ieta: int, iphi: int, energy: float) -> tuple[int, float]:
        return int(eb_detid(ieta, iphi)), energy

    # phi = 0 lies in iphi 11; the frame's seam is at -10 degrees, between iphi 360 and 1.
    events = [
        event(1, EBRecHit=[hit(20, 11, 30.0), hit(21, 11, 4.0)], Photon=[(34.0, 0.34, 0.005)]),
        event(2, EBRecHit=[hit(-40, 100, 2.5), hit(3, 3, 1.25)]),
        event(3, EBRecHit=[hit(10, 360, 20.0), hit(10, 1, 8.0)], Photon=[(28.0, 0.17, -0.18)]),
        event(4),
        event(5, EBRecHit=[hit(1, 191, 16.0)], Photon=[(16.0, 0.01, 3.14), (5.0, 0.01, 3.14)]),
        event(6, EBRecHit=[hit(60, 50, 64.0)], Photon=[(64.0, 1.04, 0.69), (20.0, -1.2, -2.0)]),
    ]
    return write_hits(tmp_path / "hits.root", events)


@pytest.fixture
def real_events() -> list[Path]:
    """The files of real CMS events; the test skips where they are missing."""
    files = sorted(DATA.glob("*.ig"))
    if not files:
        pytest.skip(f"the published CMS events are not at {DATA}")
    return files
