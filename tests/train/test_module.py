"""The module round a user's network: a loss that can be called, a schedule over the run's own steps, its own groups."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toy
from torch import Tensor, nn

from flops_fit.errors import PlanError
from flops_fit.examples import GPT, next_token_loss
from flops_fit.train.module import ScalingModule, check_loss


def module(steps: int = 100, **options: Any) -> ScalingModule:
    made = ScalingModule(toy.Net, toy.squared_error, **options)
    made.begin({"width": 8}, steps)
    return made


# The loss ------------------------------------------------------------------------------------------------------------


class Loss(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()


class Callable_:  # noqa: N801
    def __call__(self, outputs: Tensor, targets: Tensor, weight: float = 1.0) -> Tensor:
        return outputs.mean()


def three(outputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return outputs.mean()


@pytest.mark.parametrize(
    "loss_fn",
    [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        Loss(),
        Callable_(),
        lambda outputs, targets: outputs.mean(),
        lambda *args: args[0].mean(),
        functools.partial(three, mask=torch.zeros(1)),
        torch.dist,  # cannot be inspected
    ],
)
def test_whatever_takes_outputs_and_targets_is_a_loss(loss_fn: Any) -> None:
    check_loss(loss_fn)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (nn.CrossEntropyLoss, "loss_fn is the class CrossEntropyLoss, not an instance"),
        (Loss, "pass Loss() instead of Loss"),
        (0.5, "loss_fn=0.5 cannot be called"),
        ("mse", "loss_fn='mse' cannot be called"),
        (three, "loss_fn three cannot be called with (outputs, targets): missing a required argument: 'mask'"),
        (lambda outputs: outputs, "cannot be called with (outputs, targets): too many positional arguments"),
        (nn.ReLU(), "loss_fn ReLU cannot be called with (outputs, targets)"),
        (lambda outputs, *, targets: outputs, "cannot be called with (outputs, targets)"),
    ],
)
def test_what_is_no_loss_is_told_before_training(loss_fn: Any, message: str) -> None:
    for check in (check_loss, lambda loss: ScalingModule(toy.Net, loss)):
        with pytest.raises(PlanError) as caught:
            check(loss_fn)
        assert message in str(caught.value)


def test_without_a_loss_compute_loss_must_be_overridden() -> None:
    class Own(ScalingModule):
        def compute_loss(self, net: nn.Module, batch: Any) -> Tensor:
            return net(batch[0]).mean()

    Own(toy.Net)
    with pytest.raises(PlanError, match="no loss_fn was given") as caught:
        ScalingModule(toy.Net)
    assert "override ScalingModule.compute_loss" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"lr": float("nan")}, "lr=nan must be positive"),
        ({"lr": float("inf")}, "lr=inf must be positive"),
        ({"warmup_fraction": 1.0}, r"warmup_fraction=1.0 must be in \[0, 1\)"),
        ({"warmup_fraction": -0.1}, r"warmup_fraction=-0.1 must be in \[0, 1\)"),
        ({"schedule": "linaer"}, "schedule='linaer' is none of linear, cosine, constant"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        module(**options)


# The schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 10, 150, 10_000])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_peaks_and_never_rises_again(steps: int, schedule: str) -> None:
    made = module(steps, schedule=schedule)
    factors = [made.lr_factor(step) for step in range(steps)]
    warmup = max(1, round(0.1 * steps))
    assert all(0 < f <= 1 for f in factors)
    assert factors[warmup - 1] == 1
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup - 1 :] == sorted(factors[warmup - 1 :], reverse=True)
    assert factors[0] == pytest.approx(1 / warmup)


@pytest.mark.parametrize(("schedule", "end"), [("linear", 0.0), ("cosine", 0.1), ("constant", 1.0)])
def test_the_decay_ends_at_the_runs_own_horizon(schedule: str, end: float) -> None:
    for steps in (100, 1000, 12_345):
        made = module(steps, schedule=schedule)
        assert made.lr_factor(steps) == pytest.approx(end)
        assert made.lr_factor(steps - 1) == pytest.approx(end, abs=1.2 / (0.9 * steps))
        assert made.lr_factor(steps + 1) == pytest.approx(end)  # asked once more when the last step is done


def test_no_warmup_starts_at_the_peak() -> None:
    assert module(warmup_fraction=0.0).lr_factor(0) == 1
    assert module(100, warmup_fraction=0.5).lr_factor(24) == 0.5


def test_the_schedule_multiplies_every_group_by_the_same_factor() -> None:
    made = ScalingModule(GPT, next_token_loss, lr=0.7)
    made.begin({"d_model": 16}, 100)
    configured: Any = made.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    peaks = [group["lr"] for group in made.net.param_groups(0.7)]
    for step in range(30):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([peak * made.lr_factor(step) for peak in peaks])
        optimizer.step()
        scheduler.step()


# The network ---------------------------------------------------------------------------------------------------------


def test_the_network_is_built_anew_for_every_run() -> None:
    made = module()
    first = made.net
    made.begin({"width": 16}, 50)
    assert made.net is not first
    assert made.net.num_params() == toy.Net(16).num_params()
    assert made.total_steps == 50


def test_a_factory_with_fixed_arguments_takes_the_size() -> None:
    made = ScalingModule(functools.partial(GPT, n_layer=1, vocab_size=16), next_token_loss)
    made.begin({"d_model": 8}, 10)
    assert made(torch.zeros(2, 4, dtype=torch.long)).shape == (2, 4, 16)


def test_one_group_of_all_parameters_where_the_network_has_no_rule() -> None:
    made = module(lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    (group,) = made.param_groups()
    assert group["lr"] == 0.01
    assert len(group["params"]) == len(list(made.net.parameters()))
    optimizer = made.build_optimizer([group])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["weight_decay"] == 0.1
    assert optimizer.defaults["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("as_mapping", [False, True])
def test_pairs_and_mappings_have_the_same_loss(as_mapping: bool) -> None:
    torch.manual_seed(0)
    made = ScalingModule(GPT, next_token_loss)
    made.begin({"d_model": 8}, 10)
    x = torch.randint(256, (2, 9))
    batch: Any = (x[:, :-1], x[:, 1:])
    expected = next_token_loss(made.net(x[:, :-1]), x[:, 1:])
    if as_mapping:
        batch = {"input_ids": x[:, :-1], "labels": x[:, 1:]}
    assert torch.equal(made.training_step(batch, 0), expected)
    assert made.count_tokens(batch) == 16


def test_a_stated_unit_is_what_counts() -> None:
    made = ScalingModule(GPT, next_token_loss, unit="samples")
    assert made.count_tokens((torch.zeros(3, 8, dtype=torch.long),) * 2) == 3


def test_evaluation_is_the_mean_over_tokens_not_over_batches() -> None:
    made = module(schedule="constant")
    made.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    data = toy.regression(30)[:]
    batches = [tuple(t[i:j] for t in data) for i, j in ((0, 20), (20, 30))]
    with torch.no_grad():
        for i, batch in enumerate(batches):
            made.validation_step(batch, i)
        assert made.val_loss.compute().item() == pytest.approx(made.compute_loss(made.net, data).item(), rel=1e-6)
