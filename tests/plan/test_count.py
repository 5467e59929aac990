"""A size is really built and counted, on the meta device where that works, and nothing else changes."""

from __future__ import annotations

import random
import resource
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flops_fit.errors import PlanError
from flops_fit.examples import GPT, next_token_loss
from flops_fit.plan.count import SizeCounter, checked_num_params, constructor
from flops_fit.plan.rungs import BuildError

IDS = torch.zeros(2, 32, dtype=torch.long)


class Net(nn.Module):
    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))

    def num_params(self) -> Any:
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def counter(model_cls: Any, size_param: str = "width", example: Any = None, loss: Any = None, **kwargs: Any) -> Any:
    return SizeCounter(constructor(model_cls, size_param, kwargs), example, loss)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return next_token_loss(model(batch[0]), batch[1])


class ReadsValues(GPT):
    """Reads values in its constructor, as a drop-path schedule does, which the meta device refuses."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, seq_len=32)
        self.rates = [x.item() for x in torch.linspace(0, 0.1, 2)]
        self.noise = (torch.rand(2).tolist(), np.random.rand(), random.random())


class DrawsOnTheCpu(Net):
    def __init__(self, width: int) -> None:
        torch.rand(1, device="cpu")
        super().__init__(width)
        self.first = self.layers[0].weight.sum().item()


# Contract ------------------------------------------------------------------------------------------------------------


def test_a_size_parameter_that_the_constructor_does_not_take_is_told() -> None:
    with pytest.raises(PlanError, match=r"Net does not take d_model; it takes width, depth") as caught:
        constructor(Net, "d_model", {})
    assert "name the size parameter as the constructor does" in str(caught.value)


def test_unknown_and_missing_arguments_are_told_before_anything_is_built() -> None:
    with pytest.raises(PlanError, match=r"Net does not take n_layer, heads; it takes width, depth"):
        constructor(Net, "width", {"n_layer": 2, "heads": 3})
    with pytest.raises(PlanError, match="Net: missing a required argument: 'width'"):
        constructor(Net, "depth", {})


def test_whatever_builds_a_model_will_do() -> None:
    def factory(**kwargs: int) -> Net:
        return Net(**kwargs)

    for model_cls in (Net, factory, partial(Net, depth=2), lambda width: Net(width)):
        assert counter(model_cls)(8).num_params in (72, 144)


@pytest.mark.parametrize(
    ("model_cls", "message"),
    [(Net(4), "model_cls is an instance of Net"), ("Net", "model_cls='Net' is not a class or factory function")],
)
def test_what_is_no_class_is_refused(model_cls: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        constructor(model_cls, "width", {})
    assert "pass the class itself" in str(caught.value)


def test_the_planned_size_wins_over_the_same_key_among_the_arguments() -> None:
    assert counter(Net, width=99)(4).size == 4
    assert counter(Net, width=99)(4).num_params == 20


def test_a_model_without_num_params_is_told_what_to_add() -> None:
    with pytest.raises(PlanError, match=r"Linear has no method num_params\(\)") as caught:
        counter(lambda width: nn.Linear(width, width))(8)
    assert "def num_params(self) -> int: return sum(p.numel() for p in self.parameters())" in str(caught.value)


@pytest.mark.parametrize("value", [0, -3, 72.0, None, True, "72", torch.tensor(72.0), torch.tensor([72])])
def test_num_params_must_be_a_positive_int(value: object) -> None:
    class Wrong(Net):
        def num_params(self) -> Any:
            return value

    with pytest.raises(PlanError, match=r"Wrong\.num_params\(\) returned .*; it must be a positive int") as caught:
        counter(Wrong)(8)
    assert repr(value) in str(caught.value)


def test_num_params_may_be_a_tensor_of_one_integer() -> None:
    class Counts(Net):
        def num_params(self) -> Any:
            return torch.tensor(sum(p.numel() for p in self.parameters()), device="cpu")

    assert checked_num_params(Counts(8)) == 72


def test_a_factory_that_returns_no_module_is_told() -> None:
    with pytest.raises(PlanError, match=r"the model factory returned list, not a torch\.nn\.Module"):
        counter(lambda width: [width])(8)


# Building ------------------------------------------------------------------------------------------------------------


def test_a_size_that_cannot_be_built_says_why() -> None:
    gpt = counter(GPT, "d_model")
    with pytest.raises(BuildError, match="size 9 cannot be built: ValueError: d_model=9 must be even"):
        gpt(9)
    with pytest.raises(BuildError, match="d_model=9 must be even"):
        gpt(9)
    assert gpt(8).num_params > 0


def test_each_size_is_built_once() -> None:
    built: list[int] = []

    def factory(width: int) -> Net:
        built.append(width)
        if width == 3:
            raise ValueError("no threes")
        return Net(width)

    sizes = counter(factory)
    for size in (2, 3, 2, 3):
        try:
            sizes(size)
        except BuildError:
            continue
    assert built == [2, 3, 3]  # an unbuildable size is tried on the meta device and on the CPU


def test_a_large_size_costs_no_memory() -> None:
    assert counter(Net)(400_000).num_params == 400_000 * 400_001  # 640 GB, were it real


@pytest.mark.parametrize(("model_cls", "size_param"), [(ReadsValues, "d_model"), (DrawsOnTheCpu, "width")])
def test_counting_leaves_every_random_state_as_it_was(model_cls: Any, size_param: str) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(3).tolist(), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    assert counter(model_cls, size_param)(16).num_params > 0
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == expected


# Parameters ----------------------------------------------------------------------------------------------------------


def test_parameters_are_counted_under_every_convention() -> None:
    V, d, L = 256, 32, 3
    count = counter(GPT, "d_model", n_layer=L, vocab_size=V)(d)
    assert count.total == 2 * V * d + 12 * L * d**2
    assert count.matmul == count.num_params == V * d + 12 * L * d**2
    assert count.non_embedding == 12 * L * d**2


def test_a_tied_head_takes_part_in_a_product() -> None:
    class Tied(Net):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.embedding = nn.Embedding(100, width)
            self.head = nn.Linear(width, 100, bias=False)
            self.head.weight = self.embedding.weight

    count = counter(Tied)(8)
    assert count.total == 100 * 8 + 8 * 9
    assert count.matmul == 100 * 8 + 64
    assert count.non_embedding == 8 * 9


# FLOPs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d_model", [16, 48])
def test_counted_flops_of_the_gpt_are_6n_and_full_attention(d_model: int) -> None:
    batch, T = IDS.shape
    L = 2
    sizes = counter(GPT, "d_model", example=(IDS, IDS), loss=loss, n_layer=L, seq_len=T)
    expected = 6 * sizes(d_model).matmul + 12 * L * T * d_model
    assert sizes.flops_per_token(d_model) / T == pytest.approx(expected, rel=1e-12)
    assert batch == 2


def test_a_model_that_the_meta_device_refuses_is_counted_with_its_attention_too() -> None:
    plain = counter(GPT, "d_model", example=(IDS, IDS), loss=loss, n_layer=2, seq_len=32)
    stubborn = counter(ReadsValues, "d_model", example=(IDS, IDS), loss=loss)
    assert stubborn(16) == plain(16)
    assert stubborn.flops_per_token(16) == plain.flops_per_token(16)


def test_flops_of_a_layer_are_three_products_a_sample() -> None:
    x = torch.zeros(5, 8)

    def squared(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch["x"]), batch["y"])

    # The first layer needs no gradient of its inputs: two products instead of three.
    sizes = counter(Net, example={"x": x, "y": x}, loss=squared, depth=2)
    assert sizes.flops_per_token(8) == 2 * 64 * (2 + 3)


@pytest.mark.parametrize(
    ("example", "loss_fn", "message"),
    [
        (None, loss, "without an example batch and a loss"),
        ((IDS, IDS), None, "without an example batch and a loss"),
        ((IDS, IDS), lambda m, b: m(b[0]).sum().tolist(), "the FLOPs of size 8 could not be counted: Attr"),
        ((IDS, IDS), lambda m, b: torch.zeros((), requires_grad=True) * 1.0, "none were seen"),
    ],
)
def test_flops_that_cannot_be_counted_say_why(example: Any, loss_fn: Any, message: str) -> None:
    sizes = counter(GPT, "d_model", example=example, loss=loss_fn)
    with pytest.raises(PlanError, match=message) as caught:
        sizes.flops_per_token(8)
    assert "flops='6nd'" in str(caught.value)


@pytest.mark.parametrize(("layers", "billions"), [(4, 1.2), pytest.param(48, 10.1, marks=pytest.mark.slow)])
def test_billions_of_parameters_are_counted_without_allocating_any(layers: int, billions: float) -> None:
    ids = torch.zeros(1, 4096, dtype=torch.long)
    fixed = {"n_layer": layers, "vocab_size": 50_257, "seq_len": 4096, "head_dim": 128}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = SizeCounter(constructor(GPT, "d_model", fixed), (ids, ids), loss, 4096)
    assert sizes(4096).total == pytest.approx(billions * 1e9, rel=0.03)
    expected = 6 * sizes(4096).matmul + 12 * layers * 4096 * 4096
    assert sizes.flops_per_token(4096) == pytest.approx(expected, rel=0.02)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 * 1024, "KiB"
    assert not sizes.notes
