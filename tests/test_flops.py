"""FLOPs are counted on the model, attention included, whatever the batch is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flops_fit.examples import GPT, next_token_loss
from flops_fit.flops import flops_per_sample


def squared(model: nn.Module, batch: Any) -> Tensor:
    inputs = batch["x"] if isinstance(batch, dict) else batch[0]
    return model(inputs).square().mean()


@pytest.mark.parametrize("samples", [1, 5])
def test_a_linear_layer_costs_six_per_weight_less_what_its_inputs_need_not(samples: int) -> None:
    with torch.device("meta"):
        model = nn.Linear(8, 4, bias=False)
    x = torch.zeros(samples, 8)
    # Nothing asks for the inputs' gradient: 2 forward and 2 backward.
    assert flops_per_sample(model, squared, (x, x)) == 4 * 8 * 4
    assert flops_per_sample(model, squared, {"x": x, "y": x}) == 4 * 8 * 4


def test_attention_is_counted_in_full() -> None:
    with torch.device("meta"):
        model = GPT(d_model=32, n_layer=2, vocab_size=64, seq_len=128)

    def loss(net: nn.Module, batch: Any) -> Tensor:
        return next_token_loss(net(batch[0]), batch[1])

    costs = []
    for length in (64, 128):
        ids = torch.zeros(2, length, dtype=torch.long)
        costs.append(flops_per_sample(model, loss, (ids, ids)) / length)
    assert costs[1] - costs[0] == pytest.approx(12 * 2 * 64 * 32, rel=0.2), "12 L d more for every token of context"
