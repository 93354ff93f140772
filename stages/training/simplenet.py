"""SimpleNet (S. H. Hasanpour et al., arXiv:1608.06037), as published and small.

A plain stack of 3 x 3 convolutions with batch normalisation and ReLU, max pooling in between, global pooling at the
end and one linear layer. It was made for 32 x 32 pixels: larger crops are first cut into patches of 4 x 4, whose
pixels become channels by one convolution, so that a crop of 128 x 128 goes on as 32 x 32.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from stages.training.layers import BIG, Scaling, convolution


class SmallNetwork(nn.Module):  # type: ignore[misc]
    """A small SimpleNet: fewer layers and filters, no dropout, the mean for the global pooling.

    In crops up to 64 pixels the first convolution is 5 x 5 with a stride of 2.

    Parameters
    ----------
    channels : sequence of str
    size : int
        Side of a crop [pixels].
    """

    def __init__(self, channels: Sequence[str], size: int) -> None:
        super().__init__()
        self.scaling = Scaling(channels, size)
        n = self.scaling.n_images
        layers: list[nn.Module] = [convolution(n, 24, 4, 4) if size > BIG else convolution(n, 24, 5, 2)]
        n = 24
        for filters in (32, 0, 32, 32, 32, 0, 48, 48, 48, 0, 64, 64, 64):
            layers.append(convolution(n, filters) if filters else nn.MaxPool2d(2))
            n = filters or n
        self.images = nn.Sequential(*layers)
        self.dense = nn.Linear(n, 1)

    def forward(self, crops: Any) -> Any:
        """float32[batch, n_channels, size, size] -> float32[batch, 1] logits."""
        return self.dense(self.images(self.scaling(crops)).mean((2, 3)))


class SimpleNet(nn.Module):  # type: ignore[misc]
    """The 13 convolutions of the paper, two of them 1 x 1, with its poolings and dropout.

    In crops above 64 pixels the first one is that of the patches.

    Parameters
    ----------
    channels : sequence of str
    size : int
        Side of a crop [pixels].
    """

    def __init__(self, channels: Sequence[str], size: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.scaling = Scaling(channels, size)
        n = self.scaling.n_images

        def pool() -> list[nn.Module]:
            return [nn.MaxPool2d(2), nn.Dropout2d(dropout)]

        self.images = nn.Sequential(
            convolution(n, 64, 4, 4) if size > BIG else convolution(n, 64),
            convolution(64, 128),
            convolution(128, 128),
            convolution(128, 128),
            *pool(),
            convolution(128, 128),
            convolution(128, 128),
            convolution(128, 256),
            *pool(),
            convolution(256, 256),
            convolution(256, 256),
            *pool(),
            convolution(256, 512),
            nn.Dropout2d(dropout),
            convolution(512, 2048, 1, 1),
            nn.Dropout2d(dropout),
            convolution(2048, 256, 1, 1),
            *pool(),
            convolution(256, 256),
        )
        self.dense = nn.Linear(256, 1)

    def forward(self, crops: Any) -> Any:
        """float32[batch, n_channels, size, size] -> float32[batch, 1] logits."""
        return self.dense(self.images(self.scaling(crops)).amax((2, 3)))
