"""A small GPT in the unit-scaled maximal update parametrisation, so that one learning rate serves all widths.

u-muP: Blake et al. 2024, arXiv:2407.17465; multipliers are folded into initialisation and learning rate, which is
equivalent under Adam. Rotary positions: Su et al. 2021, arXiv:2104.09864.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GELU_STD = 0.588  # standard deviation of gelu(x) for x ~ N(0, 1)


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token [nats/token]; logits (batch, time, vocab), targets (batch, time)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _num_heads(d_model: int, head_dim: int) -> int:
    """The head count whose (even) head dimension is nearest the one wished for, on a log scale."""
    fits = [h for h in range(1, d_model // 2 + 1) if d_model % h == 0 and d_model // h % 2 == 0]
    if not fits:
        raise ValueError(f"d_model={d_model} must be even")
    return min(fits, key=lambda h: abs(math.log(d_model / h / head_dim)))


def _rms_norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _look_one_back(x: Tensor) -> Tensor:
    """Half of the channels, shifted one position into the future: the bigram without waiting for attention."""
    here, before = x.chunk(2, dim=-1)
    return torch.cat((here, F.pad(before, (0, 0, 1, -1))), dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """Attention and MLP, each a unit-variance branch added with weight tau (u-muP, section 3)."""

    def __init__(self, d_model: int, num_heads: int, seq_len: int, taus: tuple[float, float]) -> None:
        super().__init__()
        self.num_heads, self.taus = num_heads, taus
        head_dim = d_model // num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.up = nn.Linear(d_model, 4 * d_model, bias=False)
        self.down = nn.Linear(4 * d_model, d_model, bias=False)
        self.attention_scale = 1 / head_dim
        # Attention averages values over up to seq_len positions; this undoes the loss of variance (u-muP, appendix).
        sharpness = 1 / (1 + 4 * head_dim)
        self.attention_gain = math.exp(-(1 - sharpness) * 0.5 * math.log(math.log(seq_len) / seq_len))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.qkv(_look_one_back(_rms_norm(x))).view(batch, time, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.attention_scale)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, time, width)) * self.attention_gain
        x = self._add(x, mixed, self.taus[0])
        return self._add(x, self.down(F.gelu(self.up(_rms_norm(x))) / _GELU_STD), self.taus[1])

    @staticmethod
    def _add(x: Tensor, branch: Tensor, tau: float) -> Tensor:
        return (x + tau * branch) / math.sqrt(1 + tau**2)


class GPT(nn.Module):
    """Decoder-only transformer over token ids (batch, time) -> logits (batch, time, vocab_size).

    Args:
        d_model: Width, even; the size parameter of a sweep.
        n_layer: Blocks.
        vocab_size: Number of token ids; 256 for bytes.
        seq_len: Longest input.
        head_dim: Wished head dimension; the nearest even divisor of ``d_model`` is taken.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, d_model: int, n_layer: int = 2, vocab_size: int = 256, seq_len: int = 64, head_dim: int = 16
    ) -> None:
        super().__init__()
        if seq_len < 2:
            raise ValueError(f"seq_len={seq_len} must be 2 or more")
        self.d_model, self.n_layer = d_model, n_layer
        num_heads = _num_heads(d_model, head_dim)
        half = d_model // num_heads // 2
        self.embedding = nn.Embedding(vocab_size, d_model)
        # tau_i = 1/sqrt(n_layer + i) over the 2 n_layer branches gives embedding and all branches equal variance.
        taus = [1 / math.sqrt(n_layer + i) for i in range(2 * n_layer)]
        self.blocks = nn.ModuleList(
            Block(d_model, num_heads, seq_len, (taus[2 * i], taus[2 * i + 1])) for i in range(n_layer)
        )
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        angles = torch.arange(seq_len)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            hidden = name.startswith("blocks")
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5 if hidden else 1.0)

    def num_params(self) -> int:
        """Parameters that take part in a matrix product: blocks and head, not the embedding look-up."""
        return sum(p.numel() for p in self.parameters()) - self.embedding.weight.numel()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """u-muP's learning rates for Adam: one ``lr`` is right at every width."""
        by_fan_in: dict[int, list[nn.Parameter]] = {}
        for weight in self.blocks.parameters():
            by_fan_in.setdefault(weight.shape[1], []).append(weight)
        hidden = [{"params": ws, "lr": lr / fan_in / math.sqrt(self.n_layer)} for fan_in, ws in by_fan_in.items()]
        embedding = {"params": [self.embedding.weight], "lr": lr / math.sqrt(self.d_model)}
        return [embedding, {"params": [self.head.weight], "lr": lr}, *hidden]

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > len(self.cos):
            raise ValueError(f"inputs of {ids.shape[1]} tokens are longer than the model's seq_len={len(self.cos)}")
        x = self.embedding(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, cos, sin)
        logits: Tensor = self.head(_rms_norm(x)) / self.d_model
        return logits
