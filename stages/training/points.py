"""A network on the crop's brightest pixels as points: Deep Sets (M. Zaheer et al., arXiv:1703.06114)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stages.config import UNITS
from stages.detector.layout import TOWER
from stages.training.layers import BIG, GAIN, gains


class PointNetwork(nn.Module):  # type: ignore[misc]
    """The brightest pixels, each by the same dense layers, their sum and maximum, and dense layers on that.

    What a pixel holds is scaled as in `Scaling`, once; the brightest have the largest sum of magnitudes over the
    channels. A tower of HCAL stands in its middle pixel alone, with its whole energy: the seed pixel is the middle of a
    tower, so these are every fifth row and column from it. Pixels without content count for nothing.

    Parameters
    ----------
    channels : sequence of str
    size : int
        Side of a crop [pixels].
    """

    def __init__(self, channels: Sequence[str], size: int, width: int = 64) -> None:
        super().__init__()
        self.size, self.n_points = size, 256 if size > BIG else 128
        gain = torch.tensor(gains(channels)).reshape(-1, 1, 1).repeat(1, size, size)
        if "HCAL" in channels:
            off = (torch.arange(size) - (size // 2 - 1)) % TOWER != 0
            gain[channels.index("HCAL"), off[:, None] | off[None, :]] = 0
        self.register_buffer("gain", gain, persistent=False)
        of_points = [GAIN[UNITS[channel]] for channel in channels]  # a tower stands there with its whole energy
        self.register_buffer("gain_of_points", torch.tensor(of_points), persistent=False)
        self.register_buffer("order", torch.arange(size * size) * 2e-6, persistent=False)
        self.each = nn.Sequential(
            nn.Linear(len(channels) + 3, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2 * width),
            nn.ReLU(),
        )
        self.dense = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, crops: Any) -> Any:
        """float32[batch, n_channels, size, size] -> float32[batch, 1] logits."""
        scaled = torch.asinh(crops * self.gain).flatten(2)
        brightness = scaled.abs().sum(1)
        # Of equals the last ones are taken: without that, two libraries would choose differently.
        _, places = torch.topk(brightness + self.order, self.n_points, sorted=False)
        brightness = torch.gather(brightness, 1, places)
        held = torch.gather(scaled, 2, places.unsqueeze(1).expand(-1, scaled.shape[1], -1)).transpose(1, 2)
        rows = places.div(self.size, rounding_mode="floor")
        away = torch.stack([rows, places - rows * self.size], 2).float() / (self.size // 2) - (1 - 2 / self.size)
        return self._of_all(held, away, brightness)

    def of_points(self, points: Any, mask: Any) -> Any:
        """The same of the crop's pixels with content, as `stages.forms.Points` hands them out.

        float32[batch, n, 2 + n_channels], float32[batch, n] -> float32[batch, 1] logits; n is at least `n_points`.
        """
        scaled = torch.asinh(points[:, :, 2:] * self.gain_of_points)
        brightness = scaled.abs().sum(2) * mask
        order = (points[:, :, 0] * self.size + points[:, :, 1] + (self.size // 2 - 1) * (self.size + 1)) * 2e-6
        _, places = torch.topk(brightness + order * mask, self.n_points, sorted=False)
        chosen = torch.gather(points, 1, places.unsqueeze(2).expand(-1, -1, points.shape[2]))
        held = torch.gather(scaled, 1, places.unsqueeze(2).expand(-1, -1, scaled.shape[2]))
        return self._of_all(held, chosen[:, :, :2] / (self.size // 2), torch.gather(brightness, 1, places))

    def _of_all(self, held: Any, away: Any, brightness: Any) -> Any:
        points = torch.cat([held, away, away.square().sum(2, keepdim=True).sqrt()], 2)
        made = self.each(points) * (brightness > 0).unsqueeze(2)
        return self.dense(torch.cat([made.sum(1) / 64, made.amax(1)], 1))
