"""What the networks share: the scaling of raw values, and a convolution with what belongs to it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stages.config import UNITS
from stages.detector.layout import TOWER

GAIN = {"GeV": 10.0, "cm": 500.0, "hits": 1.0}
"""Values far below 1 / gain enter linearly, those far above by their logarithm: 0.1 GeV, 20 um, 1 hit."""

BIG = 64
"""Crops with more pixels on a side are large."""


def gains(channels: Sequence[str]) -> list[float]:
    """The gain of each channel; a tower's pixels share its energy, and each stands for the whole."""
    return [GAIN[UNITS[channel]] * (TOWER**2 if channel == "HCAL" else 1) for channel in channels]


class Scaling(nn.Module):  # type: ignore[misc]
    """asinh(gain * value) for each channel: odd, for impact parameters have a sign, and one pass over the crop.

    Small crops, which cost little, are seen a second time with 1/30 of the gain: the first view shows the soft
    surroundings, the second the shape of the core.

    Parameters
    ----------
    channels : sequence of str
    size : int
        Side of a crop [pixels].

    Attributes
    ----------
    n_images : int
        Images that come out for each crop.
    """

    def __init__(self, channels: Sequence[str], size: int) -> None:
        super().__init__()
        gain = torch.tensor(gains(channels)).reshape(-1, 1, 1)
        views = (1.0,) if size > BIG else (1.0, 1 / 30)
        for k, view in enumerate(views):
            self.register_buffer(f"gain{k}", view * gain, persistent=False)
        self.n_images = len(views) * len(channels)

    def forward(self, crops: Any) -> Any:
        """float32[batch, n_channels, size, size] -> float32[batch, n_images, size, size], mostly within 8 of 0."""
        views = [torch.asinh(crops * gain) for gain in self.buffers()]
        return torch.cat(views, 1) if len(views) > 1 else views[0]


def convolution(n_in: int, n_out: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution with batch normalisation and ReLU behind it; where stride and side agree, it cuts patches."""
    padding = 0 if stride == side else side // 2
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, side, stride, padding, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )
