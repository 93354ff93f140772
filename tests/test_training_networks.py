"""Every kind of network trains, and is the same in ONNX Runtime and in the tagger."""

from pathlib import Path

import numpy as np
import pytest
from jet_sample import write_jets

torch = pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnxscript", reason="training needs the extra 'train'")

from stages.config import OBJECT_DEFAULTS, packaged  # noqa: E402
from stages.model import Model  # noqa: E402
from stages.network import Network  # noqa: E402
from stages.network_commands import Arch  # noqa: E402
from stages.performance import auc  # noqa: E402
from stages.training.dataset import Crops, load_crops  # noqa: E402
from stages.training.export import export_onnx, export_points  # noqa: E402
from stages.training.layers import Scaling  # noqa: E402
from stages.training.networks import ARCHITECTURES, n_macs, n_parameters  # noqa: E402
from stages.training.points import PointNetwork  # noqa: E402
from stages.training.scoring import score_onnx  # noqa: E402
from stages.training.session import POINTS  # noqa: E402
from stages.training.settings import Settings  # noqa: E402
from stages.training.train import TrainedModel, train  # noqa: E402
from streamer.errors import UsageError  # noqa: E402

SOME = ["top", *(pytest.param(name, marks=pytest.mark.long) for name in ("eg", "qg", "tau"))]  # pixels and towers
FAT_JET = OBJECT_DEFAULTS["FatJet"]["channels"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Crops, Crops]:
    """Crops of the qg tagger for training and for validation."""
    sample = write_jets(tmp_path_factory.mktemp("jets") / "jets.root", 250, 1)
    return load_crops([sample], Settings("qg").config).split(1 / 4)


def trained(parts: tuple[Crops, Crops], arch: str = "points", n: int | None = None, **given: object) -> TrainedModel:
    """A network after one epoch of `n` crops, where nothing else is said."""
    first, validation = parts
    first = first.take(np.arange(len(first))[:n])
    own = ARCHITECTURES[arch]
    settings = {"seed": 1, "epochs": 1, "batch_size": 16, "learning_rate": own.learning_rate, "threads": 1, **given}
    return train(lambda: own.make(first.channels, first.size), first, validation=validation, **settings)  # type: ignore[arg-type]


def test_the_command_line_knows_every_network() -> None:
    assert [arch.value for arch in Arch] == list(ARCHITECTURES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_trained_network_is_the_same_in_the_tagger(parts: tuple[Crops, Crops], arch: str, tmp_path: Path) -> None:
    validation = parts[1].take(np.arange(10))
    model = trained(parts, arch, n=16)
    path = tmp_path / "network.onnx"
    path.write_bytes(export_onnx(model.network, validation.dense(np.arange(3))))
    assert b'File "' not in path.read_bytes()
    wanted = model.scores(validation, 4)
    np.testing.assert_allclose(score_onnx(path.read_bytes(), validation, 7), wanted, atol=1e-4)
    spec = Settings("qg").config.taggers["qg"]
    tagger = Model("qg", path, spec, "cpu", 1)
    np.testing.assert_allclose(tagger.scores(validation.dense(np.arange(10))), wanted, atol=1e-4)
    assert not tagger.fixed_batch
    assert np.ptp(wanted) > 0
    assert np.all((wanted > 0) & (wanted < 1))


@pytest.mark.parametrize("tagger", SOME)
def test_points_are_scored_like_the_image_that_they_are_of(tagger: str, tmp_path: Path) -> None:
    config = Settings(tagger).config
    sample = packaged(f"samples/{'egamma' if tagger == 'eg' else tagger}.root")
    crops = load_crops([sample], config)
    crops = crops.take(np.arange(min(len(crops), 32)))
    torch.manual_seed(3)
    network = PointNetwork(crops.channels, crops.size)
    image, cloud = tmp_path / "image.onnx", tmp_path / "points.onnx"
    image.write_bytes(export_onnx(network, crops.dense(np.arange(3))))
    cloud.write_bytes(export_points(network, crops.points(np.arange(3), POINTS * network.n_points)))
    scores = []
    for form, model in (("image", image), ("sparse", image), ("points", cloud)):
        spec = config.taggers[tagger].model_copy(update={"model": model, "input": form})
        given = {"max_batch": 16, "threads": 1, "provider": "cpu"}
        made = config.model_copy(update={"taggers": {tagger: spec}, "tagger": config.tagger.model_copy(update=given)})
        at_work = Network(tagger, made)
        at_work.warm_up()
        parts = []
        for first in range(0, len(crops), 16):
            last = min(first + 16, len(crops))
            at_work.form.fill(crops.sparse, first, last, 0)
            parts.append(at_work.run(last - first).copy())
        scores.append(np.concatenate(parts))
    assert np.ptp(scores[0]) > 1e-4
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores[2], scores[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "size"), [(("ECAL",), 32), (FAT_JET, 128), (("TrackPt", "HCAL"), 128)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_networks_fit_every_crop(arch: str, channels: tuple[str, ...], size: int) -> None:
    network = ARCHITECTURES[arch].make(channels, size).eval()
    crops = torch.rand(2, len(channels), size, size) * (torch.rand(2, len(channels), size, size) < 0.01)
    with torch.no_grad():
        assert network(crops).shape == (2, 1)
        assert torch.isfinite(network(torch.zeros_like(crops))).all(), "an empty crop"
    if arch == "small":
        assert n_parameters(network) < 200_000
        assert n_macs(network, (len(channels), size, size)) < 25e6
    if arch == "simplenet":
        assert n_parameters(network) == pytest.approx(5.48e6, rel=0.01), "the paper's Table"


def test_macs_are_those_of_the_products() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(48, 5))
    assert n_macs(network, (2, 4, 4)) == 16 * 3 * 2 * 9 + 48 * 5


def test_scaling_is_odd_and_linear_for_small_values() -> None:
    channels = ("TrackD0", "HCAL", "BPIX1")
    values = torch.tensor([1e-5, 1e-5, 1e-3]).reshape(1, 3, 1, 1)
    scaling = Scaling(channels, 128)
    scaled = scaling(values)
    np.testing.assert_allclose(scaled.ravel(), [5e-3, 2.5e-3, 1e-3], rtol=1e-3)
    np.testing.assert_array_equal(scaling(-values), -scaled)
    assert float(scaling(1e6 * values).max()) < 10
    twice = Scaling(channels, 32)
    np.testing.assert_allclose(twice(values)[:, 3:].ravel(), scaled.ravel() / 30, rtol=1e-3)
    assert (scaling.n_images, twice.n_images) == (3, 6)


def test_points_are_where_the_energy_is() -> None:
    network = PointNetwork(("ECAL", "HCAL"), 128).eval()
    crops = torch.zeros(2, 2, 128, 128)
    crops[:, 0, 70, 20] = 3.0
    crops[0, 1, 61:66, 61:66] = 10 / 25
    crops[1, 1, 63, 63] = 10 / 25
    with torch.no_grad():
        logits = network(crops).ravel()
        empty, moved = network(torch.zeros(1, 2, 128, 128)), network(crops.roll(5, 3))
    assert float(logits[0]) == pytest.approx(float(logits[1]), rel=1e-5), "a tower stands in its middle pixel"
    assert not np.isclose(float(empty), float(logits[0]))
    assert not np.isclose(float(moved[0]), float(logits[0]))


def test_the_same_seed_gives_the_same_network(parts: tuple[Crops, Crops]) -> None:
    one, two, other = (trained(parts, n=64, seed=seed) for seed in (1, 1, 2))
    for name, weights in one.network.state_dict().items():
        torch.testing.assert_close(weights, two.network.state_dict()[name], rtol=0, atol=0)
    assert not np.allclose(one.scores(parts[1]), other.scores(parts[1]))


def test_the_best_epoch_is_kept_and_ends_the_training(parts: tuple[Crops, Crops]) -> None:
    noise = parts[0].shuffled(3), parts[1].shuffled(3)
    model = trained(noise, n=64, epochs=30, patience=3)
    areas = [epoch.auc for epoch in model.epochs]
    best = int(np.argmax(areas))
    assert model.best is model.epochs[best]
    assert len(areas) == best + 1 + 3 < 30
    assert auc(noise[1].labels, model.scores(noise[1], 16))[0] == areas[best]


def test_ctrl_c_keeps_the_best_so_far(parts: tuple[Crops, Crops]) -> None:
    def stop(epoch: object) -> None:
        if epoch.number == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    model = trained(parts, n=64, epochs=5, on_epoch=stop)
    assert model.stopped
    assert len(model.epochs) == 2
    assert model.best is max(model.epochs, key=lambda epoch: epoch.auc)
    assert auc(parts[1].labels, model.scores(parts[1], 16))[0] == model.best.auc


def test_ctrl_c_in_the_first_epoch_leaves_nothing(parts: tuple[Crops, Crops]) -> None:
    def stop(batch: int, n_batches: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(parts, n=64, on_batch=stop)


def test_what_cannot_be_trained_is_told(parts: tuple[Crops, Crops]) -> None:
    with pytest.raises(UsageError, match="15 crops for training do not fill one batch of 16"):
        trained(parts, n=15)
    with pytest.raises(UsageError, match="smaller --learning-rate"):
        trained(parts, n=64, learning_rate=1e30, epochs=4)
    assert not torch.are_deterministic_algorithms_enabled(), "torch's settings are put back"
