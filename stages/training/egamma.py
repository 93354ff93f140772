"""Training of the E/Gamma network, and its way into an ONNX file."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stages.training.metrics import auc
from stages.training.network import CROP, EGammaNetwork, Scorer, n_macs, n_parameters

Crops = npt.NDArray[np.float32]
Labels = npt.NDArray[np.generic]

OPSET = 18
INPUT, OUTPUT = "crops", "score"


@dataclass(frozen=True)
class Epoch:
    """One pass over the training crops: mean loss, and the AUC with its error on the validation crops."""

    number: int
    loss: float
    auc: float
    auc_error: float


@dataclass
class TrainedModel:
    """A network with the weights of its best epoch, and how it came about."""

    network: Any
    seed: int
    n_train: int
    n_validation: int
    epochs: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None

    @property
    def n_parameters(self) -> int:
        """Number of trained weights."""
        return n_parameters(self.network)

    @property
    def n_macs(self) -> int:
        """Multiply-accumulates for one crop."""
        return n_macs(self.network)

    def scores(self, crops: Crops, batch_size: int = 1024) -> npt.NDArray[np.float32]:
        """Probability of an electron: float32[n, 1, 32, 32] in GeV -> float32[n]."""
        scorer = Scorer(self.network).eval()
        with torch.no_grad():
            parts = [scorer(batch)[:, 0].numpy() for batch in torch.from_numpy(crops).split(batch_size)]
        return np.concatenate([np.empty(0, np.float32), *parts])


def mirror(crops: Any, chosen: Any, axis: int) -> Any:
    """Mirror the chosen crops about their seed pixel, along one axis of [batch, 1, eta, phi].

    The seed stands at 15 of 0..31: the last row or column has no partner and becomes zero.
    """
    size = crops.shape[axis] - 1
    mirrored = torch.zeros_like(crops)
    mirrored.narrow(axis, 0, size).copy_(crops.narrow(axis, 0, size).flip(axis))
    return torch.where(chosen[:, None, None, None], mirrored, crops)


def _augment(crops: Any, generator: Any) -> Any:
    """Mirror at random in phi, as the other charge does, and in eta, as the other half of the barrel does."""
    for axis in (2, 3):
        crops = mirror(crops, torch.rand(len(crops), generator=generator) < 0.5, axis)
    return crops


def _check(crops: Crops, labels: Labels, name: str) -> None:
    if crops.dtype != np.float32 or crops.shape[1:] != (1, CROP, CROP):
        raise ValueError(f"{name}: crops must be float32[n, 1, {CROP}, {CROP}], not {crops.dtype}{list(crops.shape)}")
    if labels.shape != (len(crops),) or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{name}: one label, 0 or 1, is needed for each of the {len(crops)} crops")


@contextmanager
def _deterministic(seed: int, threads: int | None) -> Iterator[None]:
    """Seed torch and forbid it what is not reproducible; put everything back afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            torch.use_deterministic_algorithms(True)
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch.set_num_threads(before[1])


def train(
    crops: Crops,
    labels: Labels,
    *,
    validation: tuple[Crops, Labels],
    seed: int,
    epochs: int = 12,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    patience: int = 4,
    augment: bool = True,
    threads: int | None = None,
    network: Any = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainedModel:
    """Train on crops of known truth: binary cross-entropy, AdamW, one cosine cycle of the learning rate.

    The same arguments give the same weights on the same kind of processor with the same number of threads.

    Parameters
    ----------
    crops : float32[n, 1, 32, 32]
        Energies in GeV, the seed at 15, 15.
    labels : [n]
        1 for an electron, 0 for a photon.
    validation : (crops, labels)
        Other events; the weights kept are those of the epoch with the highest AUC on them.
    seed : int
        Of the first weights, the order of the crops and the mirroring.
    epochs, patience : int
        At most so many passes; the end comes early after `patience` passes without a better AUC.
    batch_size, learning_rate, weight_decay
        Learning rate at the top of the cycle.
    augment : bool
        Mirror half of the crops in phi and half in eta, anew in each pass.
    threads : int, optional
        Of the processor, for torch.
    network : torch.nn.Module, optional
        What to train, in place of a new `EGammaNetwork`: crops to logits [n, 1].
    on_epoch : callable, optional
        Called with each `Epoch`.
    """
    _check(crops, labels, "training")
    _check(*validation, "validation")
    n_batches = len(crops) // batch_size
    if n_batches == 0 or epochs < 1:
        raise ValueError(f"{len(crops)} crops do not fill one batch of {batch_size}" if epochs >= 1 else "no epochs")

    with _deterministic(seed, threads):
        if network is None:
            network = EGammaNetwork()
        model = TrainedModel(network, seed, len(crops), len(validation[0]))
        generator = torch.Generator().manual_seed(seed)
        images, truth = torch.from_numpy(crops), torch.from_numpy(labels.astype(np.float32))
        optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * n_batches + 1)
        weights = copy.deepcopy(network.state_dict())
        for number in range(1, epochs + 1):
            network.train()
            total = 0.0
            for chosen in torch.randperm(len(images), generator=generator)[: n_batches * batch_size].split(batch_size):
                batch = _augment(images[chosen], generator) if augment else images[chosen]
                loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], truth[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item()
            epoch = Epoch(number, total / n_batches, *auc(validation[1], model.scores(validation[0])))
            model.epochs.append(epoch)
            if model.best is None or epoch.auc > model.best.auc:
                model.best, weights = epoch, copy.deepcopy(network.state_dict())
            if on_epoch is not None:
                on_epoch(epoch)
            if number - model.best.number >= patience:
                break
        network.load_state_dict(weights)
        network.eval()
    return model


def export_onnx(model: TrainedModel, path: Path | str) -> Path:
    """Write a network as one ONNX file: "crops" float32[batch, 1, 32, 32] in GeV -> "score" float32[batch, 1].

    The file is run once by ONNX Runtime and held against torch; RuntimeError if they differ by more than
    1e-5.
    """
    import onnxruntime

    path = Path(path)
    scorer = Scorer(model.network).eval()
    example = torch.zeros(2, 1, CROP, CROP)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        scorer,
        (example,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: batch},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    program.save(path, external_data=False)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    sample = 20 * np.random.default_rng(0).random((5, 1, CROP, CROP), np.float32) ** 8
    difference = np.abs(session.run([OUTPUT], {INPUT: sample})[0][:, 0] - model.scores(sample)).max()
    if not difference < 1e-5:
        raise RuntimeError(f"{path}: ONNX Runtime and torch differ by {difference:.2g}")
    return path


def score_onnx(path: Path | str, crops: Crops, batch_size: int = 1024) -> npt.NDArray[np.float32]:
    """Scores of an exported network by ONNX Runtime, on one thread: float32[n, 1, 32, 32] -> float32[n]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    starts = range(0, len(crops), batch_size)
    parts = [session.run([OUTPUT], {INPUT: crops[k : k + batch_size]})[0][:, 0] for k in starts]
    return np.concatenate([np.empty(0, np.float32), *parts])
