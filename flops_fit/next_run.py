"""The run that an answer calls for: the nearest size that can be built, what to train it with, what to expect."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flops_fit.fit.prediction import SCHEMA_VERSION, finite
from flops_fit.units import format_count, format_flops

if TYPE_CHECKING:
    from flops_fit.fit import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class NextRun:
    """The model to train for a budget.

    Attributes:
        compute_budget: The budget [FLOPs].
        num_params: Of the size; the predicted optimum where there is no model to build [parameters].
        num_params_optimal: The predicted optimum [parameters].
        num_tokens: Data, in whole batches where the batch is known [tokens or samples].
        steps: Optimiser steps.
        batch_size: Global batch [samples]; None where no sweep says.
        batch_tokens: Global batch [tokens or samples].
        size: Value of the size parameter; None where there is no model to build.
        size_arguments: All arguments of the model that set its size.
        is_counted: Whether N of this size was counted in the sweep; otherwise it is estimated.
        prediction: What this run is expected to do; its loss is that of this size.
        config: What to train it with: a config for ``flops-fit fit``, or arguments of ``find_optimal``; None where
            there is no model to build.
        trained_with: How the sweep's runs were trained, by name.
        caveats: What must be known before paying for it.
    """

    compute_budget: float
    num_params: int
    num_params_optimal: float
    num_tokens: int
    steps: int
    batch_tokens: int
    prediction: Prediction
    batch_size: int | None = None
    size: int | None = None
    size_arguments: Mapping[str, Any] = field(default_factory=dict)
    is_counted: bool = False
    config: Mapping[str, Any] | None = None
    trained_with: Mapping[str, Any] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        names = (
            *("compute_budget", "num_params", "num_params_optimal", "num_tokens", "steps", "batch_size"),
            *("batch_tokens", "size", "is_counted", "config"),
        )
        document = {"schema_version": SCHEMA_VERSION} | {name: getattr(self, name) for name in names}
        document |= {"loss": self.prediction.loss, "loss_ci": self.prediction.ci.get("loss")}
        document |= {"size_arguments": dict(self.size_arguments), "trained_with": dict(self.trained_with)}
        return dict(finite(document | {"caveats": list(self.caveats)}))

    def __str__(self) -> str:
        return self.to_yaml()

    def to_yaml(self) -> str:
        """A file to train from: what is expected and the caveats as comments, then the config."""
        import yaml

        values = self.config
        if values is None:
            keys = ("compute_budget", "num_params", "num_tokens", "batch_tokens", "steps", "loss", "loss_ci")
            values = {key: self.to_dict()[key] for key in keys}
        comments = [*self._lines(), "", *(f"* {text}" for text in self.caveats)]
        wrapped = [line for text in comments for line in _wrapped(text)]
        body: str = yaml.safe_dump(_plain(values), sort_keys=False, width=110, allow_unicode=True)
        return "\n".join(f"# {line}".rstrip() for line in wrapped) + "\n" + body

    def _lines(self) -> list[str]:
        p, unit = self.prediction, self.prediction.unit
        loss = "withheld" if p.loss is None else f"{p.loss:.4g}"
        if "loss" in p.ci:
            loss += " ({:.4g} to {:.4g})".format(*p.ci["loss"])
        named = ", ".join(f"{k}={v}" for k, v in self.size_arguments.items())
        size = format_count(self.num_params, 4)
        if self.size is not None:
            size = f"{'' if self.is_counted else 'about '}{size} with {named}; the optimum is"
            size += f" {format_count(self.num_params_optimal)}" + _interval(p, "num_params")
        else:
            size += _interval(p, "num_params")
        ratio = self.num_tokens / self.num_params
        batch = f"{self.batch_tokens:,} {unit}"
        if self.batch_size is not None and self.batch_size != self.batch_tokens:
            batch = f"{self.batch_size:,} samples, {batch}"
        return [
            f"The model that {format_flops(self.compute_budget)} FLOPs call for, by flops-fit.",
            "",
            f"N           {size}",
            f"D           {format_count(self.num_tokens, 4)} {unit}, {ratio:.3g} a parameter",
            f"batch       {batch}",
            f"steps       {self.steps:,}",
            *(f"{name:<11} {value}" for name, value in self.trained_with.items()),
            f"loss        {loss}, expected at the end, 95 % interval of one run",
        ]


def _interval(prediction: Prediction, name: str) -> str:
    if name not in prediction.ci:
        return ""
    return " ({} to {})".format(*(format_count(end) for end in prediction.ci[name]))


def _wrapped(text: str) -> Sequence[str]:
    indent = " " * (2 if text.startswith("* ") else 12)
    return textwrap.wrap(text, 108, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def _plain(value: Any) -> Any:
    """Values as YAML's safe writer takes them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
