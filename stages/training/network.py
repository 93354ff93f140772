"""The E/Gamma network: a crop of raw ECAL energies in, the probability of an electron out.

Two strided convolutions and three dense layers. All scaling happens inside, so that the network takes the GeV
of the hits. It sees every energy twice: the square root resolves the shape of the core, the logarithm the
soft photons around it.
"""

from typing import Any

import torch
from torch import nn

CROP = 32


class EGammaNetwork(nn.Module):  # type: ignore[misc]
    """Logit of "this is an electron" for each crop.

    Parameters
    ----------
    n_filters : tuple of int
        Filters of the two convolutions; each halves the image.
    n_hidden : tuple of int
        Units of the dense layers before the last.
    """

    def __init__(self, n_filters: tuple[int, int] = (32, 32), n_hidden: tuple[int, int] = (128, 32)) -> None:
        super().__init__()
        first, second = n_filters
        self.images = nn.Sequential(
            nn.Conv2d(2, first, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.dense = nn.Sequential(
            nn.Flatten(),
            nn.Linear(second * (CROP // 4) ** 2, n_hidden[0]),
            nn.ReLU(),
            nn.Linear(n_hidden[0], n_hidden[1]),
            nn.ReLU(),
            nn.Linear(n_hidden[1], 1),
        )

    def forward(self, crops: Any) -> Any:
        """float32[batch, 1, 32, 32] in GeV -> float32[batch, 1] logits."""
        energy = torch.relu(crops)
        scaled = torch.cat([0.3 * torch.sqrt(energy), 0.3 * torch.log(10.0 * energy + 1.0)], dim=1)
        return self.dense(self.images(scaled))


class Scorer(nn.Module):  # type: ignore[misc]
    """A network with the sigmoid behind it: what is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, crops: Any) -> Any:
        """float32[batch, 1, 32, 32] in GeV -> float32[batch, 1], the probability of the label 1."""
        return torch.sigmoid(self.network(crops))


def n_parameters(network: nn.Module) -> int:
    """Number of trained weights."""
    return sum(weights.numel() for weights in network.parameters())


def n_macs(network: nn.Module, shape: tuple[int, ...] = (1, CROP, CROP)) -> int:
    """Multiply-accumulates of the convolutions and dense layers for one input of this shape."""
    total = 0

    def count(layer: Any, _: Any, output: Any) -> None:
        nonlocal total
        places = output[0].numel() // layer.weight.shape[0]  # of the output image; 1 for a dense layer
        total += places * layer.weight.numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    try:
        with torch.no_grad():
            network(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return total
