"""Three ways to build a model for counting, cheapest first; each lets through what the one before does not.

The meta device has shapes and no numbers. Fake tensors have none either, but believe to be on the CPU, which suits what
comes from numpy and constants made on the CPU. A real build suits everything, and costs memory and time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from flops_fit.batch import batch_samples, split_batch
from flops_fit.errors import PlanError
from flops_fit.flops import StepFlops, count_step
from flops_fit.units import format_count

Loss = Callable[[nn.Module, Any], Tensor]

# A laptop has this to spare, and initialises it in seconds.
MAX_REAL_BYTES = 2 * 2**30
_BYTES_PER_PARAM = 4
# Half a minute on one slow core.
MAX_REAL_FLOPS = 1e12


class BuildError(PlanError):
    """This size cannot be constructed; another may."""


@dataclass(frozen=True)
class Rung:
    """One of the ways.

    Attributes:
        how: In words.
        place: A context to build in; None for the world as it is.
        step: From a model built here, a loss and a batch to the FLOPs of a sample.
        is_real: Whether numbers are allocated.
    """

    how: str
    place: Callable[[], AbstractContextManager[Any]]
    step: Callable[[nn.Module, Loss, Any], StepFlops]
    is_real: bool = False

    def build(self, build: Callable[[], Any]) -> nn.Module:
        """Build a model here; whatever the constructor raises comes through.

        Raises:
            PlanError: What was built is no module.
        """
        with self.place():
            model = build()
        if not isinstance(model, nn.Module):
            raise PlanError(f"the model factory returned {type(model).__qualname__}, not a torch.nn.Module")
        return model


def _meta_step(model: nn.Module, loss: Loss, batch: Any) -> StepFlops:
    return count_step(model.to("meta"), loss, batch, lambda t: t.to("meta"))


def _fake_step(model: nn.Module, loss: Loss, batch: Any) -> StepFlops:
    modes = (t.fake_mode for t in (*model.parameters(), *model.buffers()) if isinstance(t, FakeTensor))
    with next(modes, FakeTensorMode(allow_non_fake_inputs=True)) as mode:
        return count_step(model, loss, batch, mode.from_tensor)


class _CopiesAreClones(TorchFunctionMode):
    """Lets fake tensors be deep-copied, as torchmetrics does with its states.

    torch copies their storage, which they have none of: it fails, and what is left crashes the interpreter when it is
    collected.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone().requires_grad_(tensor.requires_grad))
        return func(*args, **(kwargs or {}))


@contextmanager
def _fake_place() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True), _CopiesAreClones():
        yield


def _real_step(model: nn.Module, loss: Loss, batch: Any) -> StepFlops:
    samples = batch_samples(batch)
    few = split_batch(batch, samples // 2 if samples % 2 == 0 else samples)[0]  # one alone is too few for a batch norm
    entries = max(t.numel() for t in tree_leaves(few) if isinstance(t, Tensor))
    expected = 6.0 * sum(p.numel() for p in model.parameters()) * entries
    if expected > MAX_REAL_FLOPS:
        raise PlanError(f"a real step may take {expected:.1g} FLOPs, more than the {MAX_REAL_FLOPS:.0g} worth spending")
    return count_step(model, loss, few, lambda t: t)


META = Rung("on the meta device", lambda: torch.device("meta"), _meta_step)
FAKE = Rung("with fake tensors", _fake_place, _fake_step)
MOVED = Rung("for real, on the CPU", nullcontext, _meta_step, is_real=True)
REAL = Rung("for real, on the CPU", nullcontext, _real_step, is_real=True)
# What needs real numbers in its constructor may not need them in a step.
RUNGS = (META, FAKE, MOVED, REAL)


def said(error: Exception) -> str:
    """An exception in a line."""
    if isinstance(error, PlanError):
        return error.problem
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def refusal(size: int, error: Exception) -> PlanError:
    """Why a size cannot be built, or, where that has nothing to do with its size, why none can."""
    if isinstance(error, PlanError):
        return error
    if isinstance(error, (OSError, ImportError)):
        return PlanError(
            f"the model's constructor failed at size {size}: {said(error)}",
            hint="planning builds many sizes, so a constructor should read no file and no network: load weights after",
        )
    hint = None
    if isinstance(error, MemoryError) or "memory" in str(error):
        hint = "the constructor allocates beside its parameters: make buffers of torch tensors, on the default device"
    return BuildError(f"size {size} cannot be built: {said(error)}", hint=hint)


def check_real_size(size: int, expected_params: float | None, why: str) -> None:
    """Refuse to allocate a model that is too large.

    Args:
        size: Of the model.
        expected_params: How many parameters it will have, as far as smaller sizes tell.
        why: What keeps it from being counted without being allocated.

    Raises:
        BuildError: It would not fit.
    """
    if expected_params is not None and expected_params * _BYTES_PER_PARAM > MAX_REAL_BYTES:
        raise BuildError(
            f"size {size} is not built: it needs real numbers ({why}), and its about"
            f" {format_count(expected_params)} parameters would take {expected_params * _BYTES_PER_PARAM / 2**30:.1f}"
            f" GiB (at most {MAX_REAL_BYTES / 2**30:g})",
            hint="let the constructor run under torch.device('meta'): no .item(), no tolist(), no numpy on tensors",
        )
