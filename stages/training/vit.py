"""A small vision transformer (A. Dosovitskiy et al., arXiv:2010.11929)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from stages.training.layers import BIG, Scaling


class Block(nn.Module):  # type: ignore[misc]
    """Attention between the patches, then two dense layers on each; both add to what they were given."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.before_attention, self.before_dense = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, patches: Any) -> Any:
        """float32[batch, n_patches, width] -> the same shape."""
        _, n_patches, width = patches.shape
        made = self.query_key_value(self.before_attention(patches))
        made = made.reshape(-1, n_patches, 3, self.n_heads, width // self.n_heads)
        query, key, value = made.permute(2, 0, 3, 1, 4).unbind(0)
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        patches = patches + self.mix(seen.transpose(1, 2).reshape(-1, n_patches, width))
        return patches + self.dense(self.before_dense(patches))


class VisionTransformer(nn.Module):  # type: ignore[misc]
    """Patches of 8 x 8 pixels (4 x 4 in crops up to 64), learned places, four blocks, the mean of all patches.

    Parameters
    ----------
    channels : sequence of str
    size : int
        Side of a crop [pixels]; a multiple of the patch's.
    """

    def __init__(self, channels: Sequence[str], size: int, width: int = 64, depth: int = 4, n_heads: int = 4) -> None:
        super().__init__()
        side = 8 if size > BIG else 4
        self.scaling = Scaling(channels, size)
        self.patches = nn.Conv2d(self.scaling.n_images, width, side, side)
        self.places = nn.Parameter(0.02 * torch.randn((size // side) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, n_heads) for _ in range(depth)))
        self.dense = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, crops: Any) -> Any:
        """float32[batch, n_channels, size, size] -> float32[batch, 1] logits."""
        patches = self.patches(self.scaling(crops)).flatten(2).transpose(1, 2) + self.places
        return self.dense(self.blocks(patches).mean(1))
