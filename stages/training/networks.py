"""The networks by name: a dense crop of raw values in, the logit of "this is the signal" out.

All scaling happens inside, so that they take the GeV, cm and hits of the stream.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stages.training.points import PointNetwork
from stages.training.simplenet import SimpleNet, SmallNetwork
from stages.training.vit import VisionTransformer


@dataclass(frozen=True)
class Architecture:
    """A kind of network, and how it is best trained.

    Attributes
    ----------
    make : callable
        Takes the channels and the side of a crop.
    about : str
        For people.
    learning_rate : float
        At the top of its cycle.
    batch : int
        Crops in a step.
    """

    make: Callable[[Sequence[str], int], Any]
    about: str
    learning_rate: float
    batch: int


ARCHITECTURES = {
    "small": Architecture(SmallNetwork, "a small SimpleNet", 3e-3, 64),
    "simplenet": Architecture(SimpleNet, "SimpleNet as published, 13 convolutions", 1e-3, 64),
    "vit": Architecture(VisionTransformer, "a small vision transformer", 1e-3, 64),
    "points": Architecture(PointNetwork, "Deep Sets on the brightest pixels", 2e-3, 64),
}
"""By the name that `--arch` takes."""


class Scorer(nn.Module):  # type: ignore[misc]
    """A network with the sigmoid behind it: what is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Any) -> Any:
        """float32[batch, n_channels, size, size] -> float32[batch, 1], the probability of the label 1."""
        return torch.sigmoid(self.network(crops))


class PointScorer(nn.Module):  # type: ignore[misc]
    """A network of points, given points, with the sigmoid behind it."""

    def __init__(self, network: PointNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, points: Any, mask: Any) -> Any:
        """As `PointNetwork.of_points`; the probability of the label 1."""
        return torch.sigmoid(self.network.of_points(points, mask))


def n_parameters(network: nn.Module) -> int:
    """Number of trained weights."""
    return sum(weights.numel() for weights in network.parameters())


def n_macs(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of the convolutions and matrix products for one input of this shape."""
    was = network.training
    # Attention is only counted where it is made of matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *shape))
    network.train(was)
    return int(counter.get_total_flops() // 2)
