"""Crops for training: the tagger's own, split by event, and mirrored as the detector would be."""

from pathlib import Path

import numpy as np
import pytest
from jet_sample import COLUMNS, jet_columns, write_jets

from stages.conversion import schema_of
from stages.detector.layout import TOWER
from stages.filling import fill_crops
from stages.formats.root import write_events
from stages.training.dataset import Crops, load_crops
from stages.training.settings import Settings
from streamer.block import offsets
from streamer.errors import UsageError

CHANNELS = ("TrackPt", "TrackD0", "TrackDz", "ECAL", "HCAL")


@pytest.fixture(scope="module")
def jets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jets(tmp_path_factory.mktemp("jets") / "jets.root", 100, 1, (0, 1, 2, -1))


def random_crops(n: int = 12, size: int = 32) -> Crops:
    """Crops with pixels and towers everywhere, those at the edges included."""
    rng = np.random.default_rng(7)
    counts = rng.integers(0, 40, (n, len(CHANNELS))).astype(np.int32)
    index = []
    for channel, count in zip(CHANNELS * n, counts.ravel(), strict=True):
        side = size + (TOWER - 1 if channel == "HCAL" else 0)
        index.append(rng.choice(side * side, count, replace=False))
    return Crops(
        CHANNELS,
        size,
        counts,
        np.concatenate(index).astype(np.uint16),
        rng.standard_normal(counts.sum()).astype(np.float32),
        rng.integers(0, 2, n).astype(np.int8),
        rng.random(n).astype(np.float32),
        np.zeros(n, np.int32),
        np.arange(n) // 2,
    )


def filled(crops: Crops) -> np.ndarray:  # type: ignore[type-arg]
    """All crops by the tagger's kernel."""
    made = np.empty((len(crops), len(CHANNELS), crops.size**2), np.float32)
    towers = np.array([channel == "HCAL" for channel in CHANNELS])
    fill_crops(offsets(crops.counts), crops.index, crops.value, 0, len(crops), towers, crops.size, made, 0)
    return made.reshape(len(crops), *crops.shape)


def test_dense_crops_are_those_that_the_tagger_makes() -> None:
    crops = random_crops()
    chosen = np.array([3, 0, 11, 3])
    memory = np.full((6, *crops.shape), np.nan, np.float32)
    np.testing.assert_array_equal(crops.dense(chosen), filled(crops)[chosen])
    np.testing.assert_array_equal(crops.dense(chosen, out=memory), filled(crops)[chosen])
    np.testing.assert_array_equal(filled(crops.take(chosen)), filled(crops)[chosen])
    np.testing.assert_array_equal(crops.take(crops.labels == 1).events, crops.events[crops.labels == 1])


@pytest.mark.parametrize("in_phi", [False, True])
@pytest.mark.parametrize("in_eta", [False, True])
def test_a_mirror_turns_every_pixel_about_the_seed(in_phi: bool, in_eta: bool) -> None:
    crops = random_crops()
    dense = crops.dense(np.arange(len(crops)))
    expected = np.zeros_like(dense)
    last = crops.size - 1
    for row in range(last if in_eta else last + 1):
        for column in range(last if in_phi else last + 1):
            from_row = last - 1 - row if in_eta else row
            from_column = last - 1 - column if in_phi else column
            expected[:, :, row, column] = dense[:, :, from_row, from_column]
    expected[:, CHANNELS.index("TrackD0")] *= -1 if in_phi else 1
    expected[:, CHANNELS.index("TrackDz")] *= -1 if in_eta else 1
    mirrored = np.tile([in_phi, in_eta], (len(crops), 1))
    made = crops.dense(np.arange(len(crops)), mirrored)
    np.testing.assert_allclose(made[:, :-1], expected[:, :-1], atol=1e-6)
    rows, columns = slice(0, last if in_eta else None), slice(0, last if in_phi else None)
    np.testing.assert_allclose(made[:, -1, rows, columns], expected[:, -1, rows, columns], atol=1e-6)


@pytest.mark.parametrize("axis", ["phi", "eta"])
def test_a_mirrored_crop_is_the_crop_of_a_mirrored_event(tmp_path: Path, axis: str) -> None:
    columns = jet_columns(40, seed=3)
    turned = dict(columns)
    odd = ("d0", "phi", "y") if axis == "phi" else ("dz", "eta", "z")
    for name in columns:
        if name.partition("_")[2] in odd:
            turned[name] = -columns[name]
    config = Settings("top").config
    made = []
    for name, given in (("given", columns), ("turned", turned)):
        write_events(tmp_path / f"{name}.root", schema_of(COLUMNS), [given])
        made.append(load_crops([tmp_path / f"{name}.root"], config))
    everything = np.arange(len(made[0]))
    mirrored = np.tile([axis == "phi", axis == "eta"], (len(everything), 1))
    ours, theirs = made[0].dense(everything, mirrored), made[1].dense(everything)
    used = slice(0, made[0].size - 1)  # the last row and column are lost in a mirror
    ours, theirs = ours[:, :, used, used], theirs[:, :, used, used]
    assert np.abs(ours).sum() > 0
    differ = ~np.isclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert differ.sum() < 1e-3 * np.count_nonzero(theirs), "but for hits on the border of two pixels"


def test_labels_are_those_of_the_tagger(jets: Path) -> None:
    top, tau, qg = (load_crops([jets], Settings(name).config) for name in ("top", "tau", "qg"))
    assert len(qg) > 60
    assert len(top) < 200, "a tau's jets are not the top tagger's"
    for crops in (top, tau, qg):
        assert set(crops.labels.tolist()) == {0, 1}
        np.testing.assert_allclose(crops.pt, 60.0)
    assert top.events[top.labels == 1].tolist() != tau.events[tau.labels == 1].tolist()
    assert top.events[top.labels == 0].tolist() == tau.events[tau.labels == 0].tolist()
    assert top.shape == (8, 128, 128)
    assert qg.shape == (5, 128, 128)


def test_no_event_is_in_two_parts(jets: Path, tmp_path: Path) -> None:
    other = write_jets(tmp_path / "other.root", 50, 2)
    crops = load_crops([jets, other], Settings("qg").config)
    first, last = crops.split(1 / 5)
    assert len(first) + len(last) == len(crops)
    for file in (0, 1):
        before, behind = first.events[first.files == file], last.events[last.files == file]
        assert before.max() < behind.min(), "the last events of each file"
        assert 0.7 < len(before) / (len(before) + len(behind)) < 0.9


def test_a_sample_without_truth_is_refused(tmp_path: Path) -> None:
    columns = [column for column in COLUMNS if column.name != "Jet_genLabel"]
    schema = schema_of(columns)
    write_events(tmp_path / "data.root", schema, [schema.empty(3)])
    with pytest.raises(UsageError, match=r"data\.root: no column Jet_genLabel"):
        load_crops([tmp_path / "data.root"], Settings("qg").config)


def test_a_sample_of_unknown_truth_is_refused(tmp_path: Path) -> None:
    write_jets(tmp_path / "data.root", 5, 1, (-1,))
    with pytest.raises(UsageError, match="no Jet with Jet_genLabel 1 or 0"):
        load_crops([tmp_path / "data.root"], Settings("qg").config)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.root").write_bytes(b"root, but not really")
    for name in ("no.root", "missing.root"):
        with pytest.raises(UsageError, match=name) as error:
            load_crops([tmp_path / name], Settings("qg").config)
        assert len(str(error.value).splitlines()) == 1


def test_channels_are_picked_in_the_taggers_order() -> None:
    config = Settings("qg", channels=("ECAL", "TrackPt")).config
    assert config.taggers["qg"].channels == ("TrackPt", "ECAL")
    with pytest.raises(UsageError, match="did you mean 'TrackPt'"):
        _ = Settings("qg", channels=("TrackP",)).config
