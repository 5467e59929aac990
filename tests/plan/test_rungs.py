"""Constructors and steps of every kind are counted the cheapest way that works, and the plan says which it was."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.errors import PlanError
from flops_fit.examples import GPT, next_token_loss
from flops_fit.plan import rungs
from flops_fit.plan.count import SizeCounter, constructor
from flops_fit.plan.planner import plan_sweep
from flops_fit.plan.rungs import BuildError

IDS = torch.zeros(2, 16, dtype=torch.long)
BUILT_FOR_REAL = r"models are counted for real, on the CPU: RuntimeError: .*meta"


class Plain(GPT):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, vocab_size=32, seq_len=16)


class Draws(Plain):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        for block in self.blocks:
            nn.init.orthogonal_(block.qkv.weight)
            nn.init.trunc_normal_(block.out.weight)


class ItemInInit(Plain):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.rates = [x.item() for x in torch.linspace(0, 0.1, 4)]


class BoolInInit(Plain):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        if (self.head.weight.abs() > 100).any():
            raise AssertionError


class NumpyParameter(Plain):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.head.weight = nn.Parameter(torch.from_numpy(np.ones((32, d_model), np.float32)))


class NumpyData(Plain):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.head.weight.data = torch.from_numpy(np.ones((32, d_model), np.float32))


class NumpyOfTensor(Plain):
    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.spread = np.linalg.norm(self.head.weight.detach().numpy())


class ConstantInForward(Plain):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + torch.arange(32, dtype=torch.float32)


class ConstantFromInit(Plain):
    """A constant that is no buffer and made on the CPU whatever the default device."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.shift = torch.ones(32, device="cpu")

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + self.shift


class BooleanIndex(Plain):
    def forward(self, ids: Tensor) -> Tensor:
        logits = super().forward(ids)
        return logits + logits[logits > 0].sum()


def loss(model: nn.Module, batch: Any) -> Tensor:
    return next_token_loss(model(batch[0]), batch[1])


def counter(model_cls: Any, **kwargs: Any) -> SizeCounter:
    return SizeCounter(constructor(model_cls, "d_model", kwargs), (IDS, IDS), loss, 16)


@pytest.mark.parametrize(
    ("model_cls", "parameters", "flops"),
    [
        (Plain, None, None),
        (Draws, None, None),
        (NumpyParameter, None, None),
        (NumpyData, "models are counted with fake tensors: RuntimeError: .*", None),
        (ItemInInit, BUILT_FOR_REAL, None),
        (BoolInInit, BUILT_FOR_REAL, None),
        (NumpyOfTensor, "models are counted for real, on the CPU: TypeError: .*", None),
        (ConstantInForward, None, "models are counted with fake tensors: RuntimeError: .*"),
        (ConstantFromInit, None, "models are counted with fake tensors: RuntimeError: .*"),
        (BooleanIndex, None, "models are counted for real, on the CPU: NotImplementedError: .*"),
    ],
)
def test_each_is_counted_alike_and_says_how(model_cls: Any, parameters: str | None, flops: str | None) -> None:
    sizes, plain = counter(model_cls), counter(Plain)
    assert sizes(16) == plain(16)
    assert len(sizes.notes) == (parameters is not None)
    assert all(re.match(parameters or "", note) for note in sizes.notes)
    assert sizes.flops_per_token(16) == plain.flops_per_token(16)
    assert len(sizes.notes) == (parameters is not None or flops is not None)
    assert re.match(flops or parameters or "", (*sizes.notes, "")[0])


def test_the_plan_says_how_its_models_were_counted() -> None:
    plan = plan_sweep(ItemInInit, "d_model", None, [1e10, 3e10, 1e11])
    (note,) = [w for w in plan.warnings if w.startswith("models are counted")]
    assert note.startswith("models are counted for real, on the CPU: ")
    assert not [w for w in plan_sweep(Plain, "d_model", None, [1e10]).warnings if w.startswith("models")]


def test_steps_taken_for_counting_draw_nothing_that_is_missed() -> None:
    class Dropping(BooleanIndex):
        def forward(self, ids: Tensor) -> Tensor:
            return F.dropout(super().forward(ids))

    torch.manual_seed(1)
    expected = torch.rand(3).tolist()
    torch.manual_seed(1)
    assert counter(Dropping).flops_per_token(16) > 0
    assert torch.rand(3).tolist() == expected


# Guards --------------------------------------------------------------------------------------------------------------


def test_a_size_too_large_to_be_built_for_real_is_refused_from_what_smaller_ones_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rungs, "MAX_REAL_BYTES", 2**26)
    sizes = counter(ItemInInit)
    with pytest.raises(BuildError) as caught:
        sizes(65_536)
    text = str(caught.value)
    assert "size 65536 is not built: it needs real numbers (RuntimeError: Tensor.item() cannot be called" in text
    expected = re.search(r"about ([\d.]+)B parameters would take [\d.]+ GiB \(at most 0.0625\)", text)
    assert expected is not None
    assert float(expected[1]) == pytest.approx(24 * 65_536**2 / 1e9, rel=0.1)
    assert "torch.device('meta')" in text


def test_a_plan_stops_at_the_largest_size_that_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rungs, "MAX_REAL_BYTES", 4 * 40_000)
    plan = plan_sweep(ItemInInit, "d_model", None, [1e11], sizes=[16, 32, 48])
    assert [e.size_param_value for e in plan.experiments] == [16, 32]
    (dropped,) = plan.dropped
    assert dropped.reason.startswith("size 48 is not built: it needs real numbers (RuntimeError")


def test_a_real_step_is_not_taken_where_it_would_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rungs, "MAX_REAL_FLOPS", 1e5)
    with pytest.raises(PlanError, match=r"could not be counted: a real step may take .* more than the 1e\+05 worth"):
        counter(BooleanIndex).flops_per_token(16)


def test_a_constructor_that_reaches_for_the_network_is_told_so_at_once() -> None:
    tried = []

    class Downloads(Plain):
        def __init__(self, d_model: int) -> None:
            super().__init__(d_model)
            tried.append(d_model)
            urllib.request.urlopen("http://127.0.0.1:9/weights.pt", timeout=1)

    with pytest.raises(PlanError, match="the model's constructor failed at size 2: URLError") as caught:
        plan_sweep(Downloads, "d_model", None, [1e10])
    assert "a constructor should read no file and no network" in str(caught.value)
    assert tried == [2, 2]


def test_a_constructor_that_allocates_is_told_what_to_do() -> None:
    class Allocates(Plain):
        def __init__(self, d_model: int) -> None:
            super().__init__(d_model)
            self.table = np.zeros((d_model, 10**15))

    with pytest.raises(BuildError, match=r"size 16 cannot be built: \w*MemoryError: Unable to allocate") as caught:
        counter(Allocates)(16)
    assert "the constructor allocates beside its parameters" in str(caught.value)


# Kernels that nobody counts ------------------------------------------------------------------------------------------


class Silent(torch.autograd.Function):
    """A product by a kernel of one's own, as far as a counter can see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        return x[..., :1] * weight[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, None


class HasKernel(Plain):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + Silent.apply(x, block.up.weight)[..., : x.shape[-1]]
        return self.head(x)


class KnowsItself(HasKernel):
    def flops_per_token(self) -> float:
        return 6.0 * self.num_params()


def test_kernels_that_count_nothing_are_noticed() -> None:
    sizes = counter(HasKernel)
    head, matmul = 32 * 16, 32 * 16 + 24 * 16**2
    assert sizes.flops_per_token(16) == 6 * head
    (note,) = sizes.notes
    assert note.startswith(f"only {head / matmul:.0%} of the FLOPs that size 16 must take were seen")
    assert "flops_per_token()" in note


def test_the_models_own_word_is_taken_where_counting_misses_something() -> None:
    sizes = counter(KnowsItself)
    assert sizes.flops_per_token(16) == 6 * sizes(16).num_params
    assert "FLOPs are what the model's flops_per_token() says: only 8% of what" in sizes.notes[0]

    class Uncountable(KnowsItself):
        def forward(self, ids: Tensor) -> Tensor:
            raise RuntimeError("only on my accelerator")

    sizes = counter(Uncountable)
    assert sizes.flops_per_token(16) == 6 * sizes(16).num_params
    assert sizes.notes[0].endswith("RuntimeError: only on my accelerator")


def test_a_model_that_counts_well_needs_no_word_of_its_own() -> None:
    class Boasts(Plain):
        def flops_per_token(self) -> float:
            return 1e30

    assert counter(Boasts).flops_per_token(16) == counter(Plain).flops_per_token(16)


@pytest.mark.parametrize("value", [0, -1.0, None, "6N", True, float("inf")])
def test_a_word_that_is_no_number_is_refused(value: Any) -> None:
    class Wrong(HasKernel):
        def flops_per_token(self) -> Any:
            return value

    with pytest.raises(PlanError, match=r"Wrong\.flops_per_token\(\) returned .*; it must be a positive number"):
        counter(Wrong).flops_per_token(16)
