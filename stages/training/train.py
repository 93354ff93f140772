"""The training loop: PyTorch on a GPU where there is one, else on the CPU."""

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stages.performance import auc
from stages.training.dataset import Crops
from stages.training.networks import Scorer
from streamer.errors import UsageError


@dataclass(frozen=True)
class Epoch:
    """One pass over the training crops: mean loss, the AUC and its error on the validation crops, seconds."""

    number: int
    loss: float
    auc: float
    auc_error: float
    seconds: float


@dataclass
class TrainedModel:
    """A network with the weights of its best epoch, and how it came about."""

    network: Any
    seed: int
    epochs: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    weights: dict[str, Any] = field(default_factory=dict)
    """Of the best epoch."""
    stopped: bool = False
    """By Ctrl-C."""
    device: str = ""
    """Name of the GPU, where there was one."""

    def scores(self, crops: Crops, batch_size: int = 64) -> npt.NDArray[np.float32]:
        """Probability of the signal for each crop: float32[n]."""
        scorer = Scorer(self.network).eval()
        device = next(self.network.parameters()).device
        out = np.empty(len(crops), np.float32)
        batch = np.empty((batch_size, *crops.shape), np.float32)
        with torch.no_grad():
            for first in range(0, len(crops), batch_size):
                chosen = np.arange(first, min(first + batch_size, len(crops)))
                made = torch.from_numpy(crops.dense(chosen, out=batch)).to(device)
                out[chosen] = scorer(made)[:, 0].cpu().numpy()
        return out


@contextmanager
def _deterministic(seed: int, threads: int | None, device: str) -> Iterator[None]:
    """Seed torch and forbid it what is not reproducible; put everything back afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            torch.use_deterministic_algorithms(True, warn_only=device == "cuda")
            if threads is not None:
                torch.set_num_threads(threads)
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch.set_num_threads(before[1])


def train(
    make: Callable[[], Any],
    crops: Crops,
    *,
    validation: Crops,
    seed: int,
    epochs: int = 12,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    patience: int = 4,
    augment: bool = True,
    threads: int | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> TrainedModel:
    """Train on crops of known truth: binary cross-entropy, AdamW, one cosine cycle of the learning rate.

    The same arguments give the same weights on the same kind of processor with the same number of threads. Ctrl-C
    ends the training with what is best so far.

    Parameters
    ----------
    make : callable
        Makes the network: crops to logits [n, 1].
    crops, validation : Crops
        Of different events; the weights kept are those of the epoch with the highest AUC on the second.
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
    on_batch : callable, optional
        Called behind each batch with its number in the epoch, from 1, and their number.
    on_epoch : callable, optional
        Called with each `Epoch`.

    Raises
    ------
    UsageError
        The crops do not fill a batch, or the loss is no longer a number.
    KeyboardInterrupt
        Ctrl-C before the first epoch was done.
    """
    n_batches = len(crops) // batch_size
    if n_batches == 0:
        raise UsageError(
            f"{len(crops):,} crops for training do not fill one batch of {batch_size}; give more events, or a smaller "
            "--batch"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _deterministic(seed, threads, device):
        # On a CPU convolutions are faster with the channels innermost.
        network = make().to(device, memory_format=torch.channels_last)
        model = TrainedModel(network, seed, device=torch.cuda.get_device_name() if device == "cuda" else "")
        optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        try:
            for epoch in _epochs(model, optimiser, crops, validation, epochs, batch_size, augment, on_batch):
                if on_epoch is not None:
                    on_epoch(epoch)
                if model.best and epoch.number - model.best.number >= patience:
                    break
        except KeyboardInterrupt:
            if model.best is None:
                raise
            model.stopped = True
        network.load_state_dict(model.weights)
        model.network = network.to("cpu", memory_format=torch.contiguous_format).eval()
    return model


def _epochs(
    model: TrainedModel, optimiser: Any, crops: Crops, validation: Crops, epochs: int, batch_size: int, augment: bool,
    on_batch: Callable[[int, int], None] | None,
) -> Iterator[Epoch]:  # fmt: skip
    """Each epoch when it is done; the best is kept in the model."""
    network, n_batches = model.network, len(crops) // batch_size
    device = next(network.parameters()).device
    rng = np.random.default_rng(model.seed)
    truth = torch.from_numpy(crops.labels.astype(np.float32)).to(device)
    most = optimiser.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, most, total_steps=epochs * n_batches + 1)
    memory = np.empty((batch_size, *crops.shape), np.float32)
    for number in range(1, epochs + 1):
        begin = time.perf_counter()
        network.train()
        total = 0.0
        order = rng.permutation(len(crops))
        for k in range(n_batches):
            chosen = order[k * batch_size : (k + 1) * batch_size]
            mirrored = rng.random((batch_size, 2)) < (0.5 if augment else 0.0)
            batch = torch.from_numpy(crops.dense(chosen, mirrored, memory)).to(device)
            loss = nn.functional.binary_cross_entropy_with_logits(network(batch)[:, 0], truth[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
            if on_batch is not None:
                on_batch(k + 1, n_batches)
        if not np.isfinite(total):
            raise UsageError(f"epoch {number}: the loss is no longer a number; try a smaller --learning-rate")
        area, error = auc(validation.labels, model.scores(validation, batch_size))
        epoch = Epoch(number, total / n_batches, area, error, time.perf_counter() - begin)
        model.epochs.append(epoch)
        if model.best is None or epoch.auc > model.best.auc:
            weights = copy.deepcopy(network.state_dict())
            model.best, model.weights = epoch, weights
        yield epoch
