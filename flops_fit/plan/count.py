"""Build one size of the user's model and count it: parameters, and FLOPs of a training step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flops_fit.errors import PlanError
from flops_fit.plan.rungs import FAKE, META, REAL, RUNGS, BuildError, Loss, Rung, check_real_size, refusal, said
from flops_fit.randomness import PrivateRandomness
from flops_fit.shapes import Shapes

Build = Callable[[int], nn.Module]

# Less of the least possible FLOPs than this has been missed, not rounded.
_SEEN_SHARE = 0.9
# Parameters are extrapolated over this ratio of sizes at most, where sizes between can be built.
_NEAR = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeCount:
    """One size, built and counted.

    Attributes:
        size: Value of the size parameter.
        num_params: What the model's own ``num_params()`` says.
        matmul: Parameters in matrix products: two or more dimensions, embedding look-ups left out.
        total: All parameters.
        non_embedding: ``total`` less look-ups and less output heads of the same shape.
    """

    size: int
    num_params: int
    matmul: int
    total: int
    non_embedding: int


def constructor(model_cls: Callable[..., nn.Module], shapes: Shapes | str, model_kwargs: dict[str, Any]) -> Build:
    """A function from size to model, after checking that the class takes the arguments that a size sets.

    Raises:
        PlanError: ``model_cls`` does not accept what a size sets or one of ``model_kwargs``.
    """
    if isinstance(shapes, str):
        shapes = Shapes(size_param=shapes)
    name = getattr(model_cls, "__qualname__", type(model_cls).__qualname__)
    if not callable(model_cls):
        raise PlanError(f"model_cls={model_cls!r} is not a class or factory function", hint="pass the class itself")
    if isinstance(model_cls, nn.Module):
        raise PlanError(f"model_cls is an instance of {type(model_cls).__qualname__}", hint="pass the class itself")
    try:
        signature = inspect.signature(model_cls)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        parameters = signature.parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        unknown = [k for k in (*shapes.names, *model_kwargs) if k not in parameters]
        if unknown and not takes_any:
            raise PlanError(
                f"{name} does not take {', '.join(unknown)}; it takes {', '.join(parameters) or 'nothing'}",
                hint="name the size parameter as the constructor does, and leave unknown arguments out",
            )
    fixed = {k: v for k, v in model_kwargs.items() if k not in shapes.names}
    if signature is not None:
        try:
            signature.bind(**fixed, **dict.fromkeys(shapes.names, 1))
        except TypeError as error:
            raise PlanError(f"{name}: {error}", hint="give it in model_kwargs") from None
    return lambda size: model_cls(**fixed, **shapes.arguments(size))


def checked_num_params(model: nn.Module) -> int:
    """``model.num_params()``, which must be a positive integer.

    Raises:
        PlanError: The method is missing or returns something else.
    """
    name = type(model).__qualname__
    method = getattr(model, "num_params", None)
    if not callable(method):
        raise PlanError(
            f"{name} has no method num_params()",
            hint="add to the model: def num_params(self) -> int: return sum(p.numel() for p in self.parameters())",
        )
    count = method()
    if isinstance(count, Tensor) and count.ndim == 0 and not count.is_floating_point():
        count = int(count)
    if isinstance(count, bool) or not isinstance(count, int) or count <= 0:
        raise PlanError(
            f"{name}.num_params() returned {count!r}; it must be a positive int",
            hint="return the number of parameters, for example sum(p.numel() for p in self.parameters())",
        )
    return count


def own_flops(model: nn.Module) -> float | None:
    """What the model's own ``flops_per_token()`` says, where it has one [FLOPs].

    Raises:
        PlanError: It says nothing usable.
    """
    method = getattr(model, "flops_per_token", None)
    if not callable(method):
        return None
    value = method()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise PlanError(
            f"{type(model).__qualname__}.flops_per_token() returned {value!r}; it must be a positive number",
            hint="return the FLOPs of training on one token, forward and backward, about 6 for each parameter",
        )
    return float(value)


class SizeCounter:
    """Builds sizes as cheaply as their constructor allows and counts them; each size once.

    Args:
        build: From size to model.
        example_batch: A batch to count FLOPs with, or None.
        loss: From model and batch to a scalar, or None.
        tokens_per_sample: What D counts in one sample.
    """

    def __init__(
        self, build: Build, example_batch: Any = None, loss: Loss | None = None, tokens_per_sample: int = 1
    ) -> None:
        self._build, self._batch, self._loss = build, example_batch, loss
        self._tokens_per_sample = tokens_per_sample
        self._known: dict[int, SizeCount | BuildError] = {}
        self._costs: dict[int, float] = {}
        self._notes: dict[str, str] = {}

    @property
    def notes(self) -> list[str]:
        """What the user should know of how sizes were counted."""
        return list(self._notes.values())

    @property
    def known(self) -> list[SizeCount]:
        """The sizes counted so far, ascending."""
        return [k for _, k in sorted(self._known.items()) if isinstance(k, SizeCount)]

    def __call__(self, size: int) -> SizeCount:
        """Count one size.

        Raises:
            BuildError: The constructor refused this size.
            PlanError: The model breaks the contract of ``num_params()``, or no size could be built here.
        """
        if size not in self._known:
            try:
                self._known[size] = self._count(size)
            except BuildError as error:
                self._known[size] = error
        known = self._known[size]
        if isinstance(known, BuildError):
            raise known
        return known

    def flops_per_token(self, size: int) -> float:
        """Forward and backward of one token, or sample where that is the unit [FLOPs].

        Raises:
            PlanError: It cannot be counted.
        """
        if size not in self._costs:
            self._costs[size] = self._flops(size)
        return self._costs[size]

    def _count(self, size: int) -> SizeCount:
        model, rung, why = self._construct(size)
        if why:
            self._note(rung, why)
        embeddings = [m.weight for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        lookups = {id(w) for w in embeddings}
        # A head has its embedding's shape; a tied one is its embedding, and does take part in a product.
        shapes = {w.shape for w in embeddings}
        heads = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight.shape in shapes]
        tied = {id(w) for w in heads} & lookups
        parameters = list(model.parameters())
        outside = lookups | {id(w) for w in heads}
        return SizeCount(
            size=size,
            num_params=checked_num_params(model),
            matmul=sum(p.numel() for p in parameters if p.ndim >= 2 and (id(p) not in lookups or id(p) in tied)),
            total=sum(p.numel() for p in parameters),
            non_embedding=sum(p.numel() for p in parameters if id(p) not in outside),
        )

    def _construct(self, size: int) -> tuple[nn.Module, Rung, str]:
        """The model, built the cheapest way that works; the way, and why no cheaper one did."""
        failures: list[str] = []
        for rung in (META, FAKE, REAL):
            try:
                model = self._build_on(rung, size, failures)
                return model, rung, failures[0] if failures else ""
            except BuildError:
                raise
            except Exception as error:
                failures.append(said(error))
                if rung is REAL or failures.count(failures[-1]) > 1:  # its own word, wherever the tensors are
                    raise refusal(size, error) from error
        raise AssertionError("the last rung builds or raises")

    def _build_on(self, rung: Rung, size: int, failures: list[str]) -> nn.Module:
        """A model built in one way; the global random states stay, as counting must not change what a run draws."""
        if rung.is_real:
            check_real_size(size, self._expected_params(size), failures[0])
        with PrivateRandomness(0):
            model = rung.build(lambda: self._build(size))
            checked_num_params(model)
        return model

    def _expected_params(self, size: int) -> float | None:
        """Parameters of a size: its own where they are known, else by the power law through the two largest below it.

        None where there are none below.

        Where those are far below, sizes from one on are counted by doubling: the law of the smallest does not hold far.
        """
        known_here = self._known.get(size)
        if isinstance(known_here, SizeCount):
            return known_here.total
        smaller = 1
        while smaller < size:
            known = self._totals_below(size)
            if len(known) > 1 and _NEAR * known[-1][0] >= size:
                break
            with suppress(BuildError):
                self(smaller)
            smaller *= 2
        known = self._totals_below(size)[-2:]
        if len(known) < 2:
            return known[0][1] if known else None
        (a, N_a), (b, N_b) = known
        return float(N_b * (size / b) ** max(0.0, math.log(N_b / N_a) / math.log(b / a)))

    def _totals_below(self, size: int) -> list[tuple[int, int]]:
        return sorted(
            (s, k.total) for s, k in self._known.items() if isinstance(k, SizeCount) and k.total and 0 < s < size
        )

    def _flops(self, size: int) -> float:
        hint = "use flops='6nd', or give the model flops_per_token() -> float, or let model and loss run on meta"
        if self._batch is None or self._loss is None:
            raise PlanError("FLOPs cannot be counted without an example batch and a loss", hint=hint)
        step, own = None, None
        failures: list[str] = []
        for rung in RUNGS:
            try:
                model = self._build_on(rung, size, failures)
                own = own or own_flops(model)
                with PrivateRandomness(0):
                    step = rung.step(model, self._loss, self._batch)
                break
            except Exception as error:
                failures.append(said(error))
        seen = 0.0 if step is None else step.forward / max(1, 2 * self(size).matmul * self._tokens_per_sample)
        why = failures[0] if failures else f"only {seen:.0%} of what size {size} must take were seen"
        if own is not None and seen < _SEEN_SHARE:
            self._notes.setdefault("own", f"FLOPs are what the model's flops_per_token() says: {why}")
            return own
        if step is None or not step.total:
            why = failures[-1] if failures else "none were seen"
            raise PlanError(f"the FLOPs of size {size} could not be counted: {why}", hint=hint)
        if failures:
            self._note(rung, why)
        if seen < _SEEN_SHARE:
            self._notes.setdefault(
                "missed",
                f"only {seen:.0%} of the FLOPs that size {size} must take were seen: there are kernels that nobody"
                " counts, or parameters that not every token meets; give the model flops_per_token() -> float",
            )
        return step.total / self._tokens_per_sample

    def _note(self, rung: Rung, why: str) -> None:
        self._notes.setdefault(rung.how, f"models are counted {rung.how}: {why}")
