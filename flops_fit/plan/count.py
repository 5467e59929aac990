"""Build one size of the user's model and count it: parameters, and FLOPs of a training step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flops_fit.errors import PlanError
from flops_fit.flops import flops_per_sample
from flops_fit.randomness import PrivateRandomness

Build = Callable[[int], nn.Module]
Loss = Callable[[nn.Module, Any], Tensor]


class BuildError(PlanError):
    """This size cannot be constructed; another may."""


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


def constructor(model_cls: Callable[..., nn.Module], size_param: str, model_kwargs: dict[str, Any]) -> Build:
    """A function from size to model, after checking that the class takes the size parameter.

    Raises:
        PlanError: ``model_cls`` does not accept ``size_param`` or one of ``model_kwargs``.
    """
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
        unknown = [k for k in (size_param, *model_kwargs) if k not in parameters]
        if unknown and not takes_any:
            raise PlanError(
                f"{name} does not take {', '.join(unknown)}; it takes {', '.join(parameters) or 'nothing'}",
                hint="name the size parameter as the constructor does, and leave unknown arguments out",
            )
    fixed = {k: v for k, v in model_kwargs.items() if k != size_param}
    if signature is not None:
        try:
            signature.bind(**fixed, **{size_param: 1})
        except TypeError as error:
            raise PlanError(f"{name}: {error}", hint="give it in model_kwargs") from None
    return lambda size: model_cls(**fixed, **{size_param: size})


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


class SizeCounter:
    """Builds sizes on the meta device (on the CPU where that fails) and counts them; each size once.

    Args:
        build: From size to model.
        example_batch: A batch to count FLOPs with, or None.
        loss: From model and batch to a scalar, or None.
    """

    def __init__(self, build: Build, example_batch: Any = None, loss: Loss | None = None) -> None:
        self._build, self._batch, self._loss = build, example_batch, loss
        self._known: dict[int, SizeCount | BuildError] = {}
        self._costs: dict[int, float] = {}

    def __call__(self, size: int) -> SizeCount:
        """Count one size.

        Raises:
            BuildError: The constructor refused this size.
            PlanError: The model breaks the contract of ``num_params()``.
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

    def flops_per_sample(self, size: int) -> float:
        """Forward and backward of one sample [FLOPs].

        Raises:
            PlanError: It cannot be counted.
        """
        if size not in self._costs:
            self._costs[size] = self._flops(size)
        return self._costs[size]

    def _count(self, size: int) -> SizeCount:
        model, _ = self._construct(size)
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

    def _construct(self, size: int) -> tuple[nn.Module, bool]:
        """The model, and whether it is on the meta device; the global random states stay as they were."""
        with PrivateRandomness(0):  # counting must not change what a later run draws
            try:
                with torch.device("meta"):
                    model = self._build(size)
                if isinstance(model, nn.Module):
                    checked_num_params(model)
                    return model, True
            except Exception:
                pass  # constructors that read values (.item(), numpy) fail on meta; a real build says what is wrong
            try:
                model = self._build(size)
            except Exception as error:
                raise BuildError(f"size {size} cannot be built: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise PlanError(f"the model factory returned {type(model).__qualname__}, not a torch.nn.Module")
        return model, False

    def _flops(self, size: int) -> float:
        hint = "use flops='6nd', or let the model and the loss run on the meta device"
        if self._batch is None or self._loss is None:
            raise PlanError("FLOPs cannot be counted without an example batch and a loss", hint=hint)
        model, on_meta = self._construct(size)
        try:
            flops = flops_per_sample(model if on_meta else model.to("meta"), self._loss, self._batch)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise PlanError(f"the FLOPs of size {size} could not be counted: {why}", hint=hint) from error
        if not flops:
            raise PlanError(f"the FLOPs of size {size} could not be counted: none were seen", hint=hint)
        return flops
