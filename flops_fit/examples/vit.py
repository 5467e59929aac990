"""A small vision transformer in the unit-scaled maximal update parametrisation: one learning rate serves all widths.

The architecture is that of Dosovitskiy et al. 2020, arXiv:2010.11929, with mean pooling (Beyer et al. 2022,
arXiv:2205.01580); u-muP: Blake et al. 2024, arXiv:2407.17465, its multipliers folded into initialisation and learning
rate, which is equivalent under Adam.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GELU_STD = 0.588  # standard deviation of gelu(x) for x ~ N(0, 1)


def _num_heads(d_model: int, head_dim: int) -> int:
    """The head count whose head dimension is nearest the one wished for, on a log scale."""
    divisors = [h for h in range(1, d_model + 1) if d_model % h == 0]
    return min(divisors, key=lambda h: abs(math.log(d_model / h / head_dim)))


def _rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


class Attention(nn.Module):
    """Every patch looks at every patch: (batch, patches, width) to the same, of about unit variance at the start."""

    def __init__(self, d_model: int, head_dim: int, num_patches: int) -> None:
        super().__init__()
        self.num_heads = _num_heads(d_model, head_dim)
        self.head_dim = d_model // self.num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        # A mean over patches that had nothing in common would have lost sqrt(num_patches); those of an image have much,
        # and lose about half of it, on a log scale (measured on CIFAR-10 and on glyphs).
        self.gain = num_patches**0.25

    def forward(self, x: Tensor) -> Tensor:
        batch, patches, width = x.shape
        qkv = self.qkv(x).view(batch, patches, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # 1/head_dim and not its root: queries and keys come to agree (u-muP, as muP).
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1 / self.head_dim)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, patches, width)) * self.gain
        return out


class MLP(nn.Module):
    """Two layers with GELU between, four times as wide: (..., width) to the same, of unit variance at the start."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 4 * d_model, bias=False)
        self.down = nn.Linear(4 * d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.gelu(self.up(x)) / _GELU_STD)
        return out


class ViT(nn.Module):
    """Images (batch, channels, image_size, image_size) to logits (batch, num_classes).

    Args:
        d_model: Width; the size parameter of a sweep.
        n_layer: Blocks, each of attention and MLP.
        image_size: Height and width of the images [pixels].
        patch_size: Height and width of a patch [pixels]; divides ``image_size``.
        channels: 3 for colour, 1 for grey.
        num_classes: Classes to tell apart.
        head_dim: Wished dimension of an attention head; the nearest divisor of ``d_model`` is taken.
    """

    places: Tensor

    def __init__(
        self,
        d_model: int,
        n_layer: int = 2,
        image_size: int = 32,
        patch_size: int = 4,
        channels: int = 3,
        num_classes: int = 10,
        head_dim: int = 16,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patches of {patch_size} pixels do not tile images of {image_size}; choose a divisor")
        self.d_model, self.n_layer = d_model, n_layer
        self.shape, self.patch_size = (channels, image_size, image_size), patch_size
        num_patches = (image_size // patch_size) ** 2
        self.patch = nn.Linear(channels * patch_size**2, d_model, bias=False)
        self.position = nn.Embedding(num_patches, d_model)
        self.branches = nn.ModuleList(
            branch for _ in range(n_layer) for branch in (Attention(d_model, head_dim, num_patches), MLP(d_model))
        )
        self.head = nn.Linear(d_model, num_classes, bias=False)
        self.register_buffer("places", torch.arange(num_patches), persistent=False)
        for name, weight in self.named_parameters():
            outside = name in ("position.weight", "head.weight")
            nn.init.normal_(weight, std=1.0 if outside else weight.shape[1] ** -0.5)

    def num_params(self) -> int:
        """Parameters that take part in a matrix product: all but the positions."""
        return sum(p.numel() for p in self.parameters()) - self.position.weight.numel()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """u-muP's learning rates for Adam: one ``lr`` is right at every width.

        Positions are looked up, as embeddings are; the projection of patches is a hidden matrix outside the branches,
        so that the depth does not slow it down.
        """
        by_fan_in: dict[int, list[nn.Parameter]] = {}
        for weight in self.branches.parameters():
            by_fan_in.setdefault(weight.shape[1], []).append(weight)
        hidden = [{"params": ws, "lr": lr / fan_in / math.sqrt(self.n_layer)} for fan_in, ws in by_fan_in.items()]
        return [
            {"params": [self.patch.weight], "lr": lr / self.patch.in_features},
            {"params": [self.position.weight], "lr": lr / math.sqrt(self.d_model)},
            {"params": [self.head.weight], "lr": lr},
            *hidden,
        ]

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            raise ValueError(
                f"a batch of images has the shape {tuple(images.shape)}; this model takes (batch, channels, height,"
                f" width) = (batch, {', '.join(map(str, self.shape))}): set channels and image_size"
            )
        x = (self.patch(self._patches(images)) + self.position(self.places)) / math.sqrt(2)
        for i, branch in enumerate(self.branches):
            # 1/sqrt(n_layer + i) over the 2 n_layer branches gives what came in and all branches equal variance.
            tau = 1 / math.sqrt(self.n_layer + i)
            x = (x + tau * branch(_rms_norm(x))) / math.sqrt(1 + tau**2)
        logits: Tensor = self.head(_rms_norm(x).mean(dim=1)) / self.d_model
        return logits

    def _patches(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) cut into (batch, patches, channels * patch_size**2)."""
        p = self.patch_size
        batch, channels, height, width = images.shape
        cut = images.view(batch, channels, height // p, p, width // p, p)
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
