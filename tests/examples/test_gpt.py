"""The example GPT: causal, and one learning rate is right at every width."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flops_fit import TokenBin
from flops_fit.examples import GPT, next_token_loss


def ids(batch: int = 4, time: int = 64, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, time), generator=torch.Generator().manual_seed(seed))


def test_logits_have_a_place_for_every_token() -> None:
    logits = GPT(16, vocab_size=100, seq_len=32)(ids(2, 32) % 100)
    assert logits.shape == (2, 32, 100)
    assert GPT(16)(ids(3, 10)).shape == (3, 10, 256)


def test_an_untrained_model_knows_nothing() -> None:
    torch.manual_seed(0)
    x = ids(16)
    assert next_token_loss(GPT(64)(x), x).item() == pytest.approx(math.log(256), rel=0.02)


def test_the_loss_is_the_mean_over_tokens() -> None:
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    each = [-torch.log_softmax(logits[i, t], 0)[targets[i, t]].item() for i in range(2) for t in range(5)]
    assert next_token_loss(logits, targets).item() == pytest.approx(np.mean(each), rel=1e-5)


def test_the_future_does_not_change_the_past() -> None:
    torch.manual_seed(0)
    model, x = GPT(32, n_layer=3).eval(), ids()
    changed = x.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 256
    before, after = model(x), model(changed)
    assert torch.equal(before[:, :40], after[:, :40]) or torch.allclose(before[:, :40], after[:, :40], atol=1e-6)
    assert (before[:, 40] - after[:, 40]).abs().max() > 1e-3


def test_every_earlier_token_matters() -> None:
    torch.manual_seed(0)
    model, x = GPT(32).eval(), ids(1, 16)
    reference = model(x)[0, -1]
    for t in range(16):
        changed = x.clone()
        changed[0, t] = (changed[0, t] + 1) % 256
        assert (model(changed)[0, -1] - reference).abs().max() > 1e-6, t


def trained_loss(pairs: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], data: TokenBin) -> float:
    """Mean held-out loss after a brief training on what ``pairs`` makes of inputs and targets."""
    torch.manual_seed(0)
    model = GPT(16, n_layer=1, vocab_size=16, seq_len=16)
    optimizer = torch.optim.AdamW(model.param_groups(0.7), betas=(0.9, 0.95), weight_decay=0.0)
    for step, (x, y) in enumerate(data.train_dataloader()):
        for group in optimizer.param_groups:
            group["lr"] *= 0.97 if step > 40 else 1.0
        x, y = pairs(x, y)
        optimizer.zero_grad()
        next_token_loss(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        return float(
            np.mean([next_token_loss(model(x), y).item() for x, y in (pairs(*b) for b in data.val_dataloader())])
        )


def test_nobody_guesses_better_than_the_entropy(tmp_path: Path) -> None:
    """Nobody knows which random token comes next: a smaller loss would be a target seen among the inputs."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 30_000), ("val", 16_400)):
        rng.integers(0, 16, count).astype("<u2").tofile(tmp_path / f"{name}.bin")
    data = TokenBin(str(tmp_path / "train.bin"), str(tmp_path / "val.bin"), 16, 16, val_windows=None)
    entropy = math.log(16)
    assert entropy - 0.01 < trained_loss(lambda x, y: (x, y), data) < entropy + 0.1
    assert trained_loss(lambda x, y: (x, x), data) < 0.5 * entropy  # the test would see it


def test_weights_start_as_the_unit_scaled_maximal_update_has_them() -> None:
    torch.manual_seed(0)
    model = GPT(128, vocab_size=512)
    for weight, std in (
        (model.embedding.weight, 1.0),
        (model.head.weight, 1.0),
        (model.blocks[0].qkv.weight, 128**-0.5),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert model.blocks[1].down.weight.std().item() == pytest.approx(512**-0.5, rel=0.02)
    assert model.blocks[0].attention_scale == 1 / 16
    assert [tau for block in model.blocks for tau in block.taus] == pytest.approx([(2 + i) ** -0.5 for i in range(4)])


def test_inputs_longer_than_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match="inputs of 65 tokens are longer than the model's seq_len=64"):
        GPT(16)(ids(1, 65))
    with pytest.raises(ValueError, match="seq_len=1 must be 2 or more"):
        GPT(16, seq_len=1)


@pytest.mark.parametrize("d_model", [9, 1, 63])
def test_odd_widths_are_refused(d_model: int) -> None:
    with pytest.raises(ValueError, match=f"d_model={d_model} must be even"):
        GPT(d_model)


@pytest.mark.parametrize(("d_model", "head_dim"), [(8, 8), (16, 16), (64, 16), (40, 20), (48, 16), (256, 16), (34, 34)])
def test_heads_are_even_and_near_the_wished_dimension(d_model: int, head_dim: int) -> None:
    model = GPT(d_model)
    assert d_model // model.blocks[0].num_heads == head_dim
    assert model(ids(1, 8)).isfinite().all()


def test_parameters_that_do_flops_are_counted() -> None:
    model = GPT(32, n_layer=3, vocab_size=100)
    assert model.num_params() == 3 * 12 * 32**2 + 100 * 32
    assert model.num_params() == sum(p.numel() for p in model.parameters()) - 100 * 32


@pytest.mark.parametrize("d_model", [8, 32])
def test_parameter_groups_hold_every_parameter_once(d_model: int) -> None:
    model = GPT(d_model, n_layer=3)
    grouped = [p for group in model.param_groups(1.0) for p in group["params"]]
    assert len(grouped) == len(set(map(id, grouped))) == len(list(model.parameters()))
    assert set(map(id, grouped)) == set(map(id, model.parameters()))
    torch.optim.AdamW(model.param_groups(1.0))


def test_rates_are_those_of_the_unit_scaled_maximal_update() -> None:
    d, L, eta = 64, 3, 0.5
    model = GPT(d, n_layer=L)
    rates = {id(p): group["lr"] for group in model.param_groups(eta) for p in group["params"]}
    assert rates[id(model.embedding.weight)] == pytest.approx(eta / math.sqrt(d))
    assert rates[id(model.head.weight)] == eta
    for block in model.blocks:
        for layer in (block.qkv, block.out, block.up):
            assert rates[id(layer.weight)] == pytest.approx(eta / d / math.sqrt(L))
        assert rates[id(block.down.weight)] == pytest.approx(eta / (4 * d) / math.sqrt(L))


def test_activations_start_at_the_same_scale_at_every_width() -> None:
    def scales(d_model: int) -> list[float]:
        torch.manual_seed(0)
        model, found = GPT(d_model), []
        for block in model.blocks:
            block.register_forward_hook(lambda m, args, output: found.append(output.square().mean().sqrt().item()))
        model(ids(16))
        return found

    assert scales(32) == pytest.approx(scales(256), rel=0.1)
    assert scales(256) == pytest.approx([1.0, 1.0], rel=0.3)
