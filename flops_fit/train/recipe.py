"""Recipes: how the parts of a run are built, fresh, in whichever process trains it."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn

from flops_fit.errors import FlopsFitError, PlanError, RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory
from flops_fit.runs.files import SCHEMA_VERSION, write_atomic
from flops_fit.train.attempt import RunParts
from flops_fit.train.data import SweepData, sweep_data
from flops_fit.train.module import ScalingModule
from flops_fit.train.reference import describe, reference, resolve, source_hash


class Recipe(Protocol):
    """Builds what runs need, and says what decides their results."""

    @property
    def model_name(self) -> str:
        """Name of the network's class or factory."""

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """The network's fixed arguments, as far as they are known."""

    def module(self) -> ScalingModule:
        """A fresh module, its network not yet built."""

    def data(self) -> SweepData:
        """The data, checked."""

    def trainer(self) -> dict[str, Any]:
        """Fresh arguments for the Trainer."""

    def basis(self) -> dict[str, Any]:
        """What decides a run's result: names, source texts, arguments; plain nested values."""

    def to_config(self) -> dict[str, Any] | None:
        """Plain values another process can rebuild the recipe from; None where only this process can."""


@cache
def config_parser() -> LightningArgumentParser:
    """The model, data and trainer groups of a sweep's YAML; built once a process, since that takes a while."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(ScalingModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(pl.LightningDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    return parser


@dataclass
class ConfigRecipe:
    """From YAML: classes by their import path, arguments checked by their signatures.

    Attributes:
        config: The resolved model, data and trainer groups.
    """

    config: dict[str, Any]

    def __post_init__(self) -> None:
        self._parsed: Namespace | None = None

    def _instance(self, group: str) -> Any:
        if self._parsed is None:
            self._parsed = config_parser().parse_object(copy.deepcopy(self.config))
        # Only the group that is wanted: another one may be costly to build.
        parsed = copy.copy(self._parsed)
        for other in {"model", "data", "trainer"} - {group}:
            parsed.pop(other)
        parsed[group] = copy.deepcopy(parsed[group])
        try:
            return config_parser().instantiate(parsed)[group]
        except Exception as error:
            # The parser wraps what a constructor raises in the list of all it tried.
            cause = error.__cause__ or error
            if isinstance(cause, FlopsFitError):
                raise cause from None
            name = self.config[group].get("class_path", group)
            raise PlanError(f"{group}: {name} cannot be built: {type(cause).__name__}: {cause}") from error

    @property
    def model_name(self) -> str:
        net = self._net
        return str(net["class_path"] if isinstance(net, dict) else net)

    @property
    def model_kwargs(self) -> dict[str, Any]:
        net = self._net
        return dict(net.get("init_args") or {}) if isinstance(net, dict) else {}

    @property
    def _net(self) -> Any:
        return self.config["model"]["init_args"].get("net")

    def module(self) -> ScalingModule:
        module: ScalingModule = self._instance("model")
        return module

    def data(self) -> SweepData:
        return sweep_data(self._instance("data"))

    def trainer(self) -> dict[str, Any]:
        trainer: Namespace = self._instance("trainer")
        return {k: v for k, v in trainer.as_dict().items() if v is not None}

    def basis(self) -> dict[str, Any]:
        model, data = copy.deepcopy(self.config["model"]), copy.deepcopy(self.config["data"])
        sources = {path: _source_at(path) for path in sorted({*_class_paths(model), *_class_paths(data)})}
        return {"model": model, "data": data, "source": sources} | _trainer_basis(self.config.get("trainer") or {})

    def to_config(self) -> dict[str, Any]:
        return {"kind": "config"} | self.config


@dataclass
class PythonRecipe:
    """From objects handed to ``find_optimal``.

    Attributes:
        model_cls: Class or factory function of the network.
        model_kwargs: Its fixed arguments.
        loss_fn: ``(outputs, targets) -> scalar``.
        dataset: Data, or a function without arguments that returns it.
        val_dataset: Validation data likewise, several sets by name, or None.
        batch_size: Global batch [samples], or None.
        module_cls: ScalingModule or the user's subclass.
        module_kwargs: Its arguments: lr, schedule and so on.
        trainer_kwargs: Arguments for the Trainer.
    """

    model_cls: Callable[..., nn.Module]
    model_kwargs: dict[str, Any]
    loss_fn: Callable[..., Any] | None
    dataset: Any
    val_dataset: Any = None
    batch_size: int | None = None
    module_cls: type[ScalingModule] = ScalingModule
    module_kwargs: dict[str, Any] = field(default_factory=dict)
    trainer_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._data: SweepData | None = None

    @property
    def model_name(self) -> str:
        return getattr(self.model_cls, "__qualname__", str(self.model_cls))

    def module(self) -> ScalingModule:
        net = partial(self.model_cls, **self.model_kwargs)
        return self.module_cls(net, self.loss_fn, **self.module_kwargs)

    def data(self) -> SweepData:
        if self._data is None:
            self._data = sweep_data(self.dataset, self.val_dataset, self.batch_size)
        return self._data

    def trainer(self) -> dict[str, Any]:
        return dict(self.trainer_kwargs)

    def basis(self) -> dict[str, Any]:
        parts = {"model_cls": self.model_cls, "loss_fn": self.loss_fn, "module_cls": self.module_cls}
        named = {k: f"{describe(v)} {source_hash(v)}" for k, v in parts.items() if v is not None}
        arguments = {"model_kwargs": _plain(self.model_kwargs), "module": _plain(self.module_kwargs)}
        return named | arguments | _trainer_basis(self.trainer_kwargs)

    def to_config(self) -> dict[str, Any] | None:
        config: dict[str, Any] = {"kind": "python", "model_kwargs": self.model_kwargs, "batch_size": self.batch_size}
        config |= {"module_kwargs": self.module_kwargs, "trainer_kwargs": self.trainer_kwargs}
        for name in ("model_cls", "loss_fn", "dataset", "val_dataset", "module_cls"):
            thing = getattr(self, name)
            config[name] = _named(thing)
            if thing is not None and config[name] is None:
                return None
        try:
            same: bool = json.loads(json.dumps(config)) == config
        except TypeError:
            return None
        return config if same else None


def recipe_from(config: dict[str, Any]) -> Recipe:
    """The inverse of ``to_config``."""
    if config["kind"] == "config":
        return ConfigRecipe({k: config[k] for k in ("model", "data", "trainer")})
    named = ("model_cls", "loss_fn", "dataset", "val_dataset", "module_cls")
    rest = ("model_kwargs", "batch_size", "module_kwargs", "trainer_kwargs")
    arguments: dict[str, Any] = {k: _resolved(config[k]) for k in named}
    return PythonRecipe(**arguments | {k: config[k] for k in rest})


def _named(thing: Any) -> str | dict[str, str] | None:
    """A reference, or one for each of several things by name; None where something cannot be found by name."""
    if not isinstance(thing, dict):
        return reference(thing)
    names = {k: name for k, v in thing.items() if (name := reference(v)) is not None}
    return names if len(names) == len(thing) else None


def _resolved(named: str | dict[str, str] | None) -> Any:
    if isinstance(named, dict):
        return {k: resolve(v) for k, v in named.items()}
    return None if named is None else resolve(named)


def write_run_config(
    run: RunDirectory, experiment: Experiment, recipe: dict[str, Any] | None, facts: dict[str, Any]
) -> None:
    """Write ``config.yaml``: all that ``flops-fit run RUN_DIR`` needs."""
    run.create()
    config = {"schema_version": SCHEMA_VERSION, "experiment": experiment.to_dict(), "run": facts}
    config |= {"recipe": recipe, "import_path": _own_import_path()}
    # JSON is YAML, and keeps every float as it is.
    write_atomic(run.config, json.dumps(config, indent=1) + "\n")


def read_run_config(run: RunDirectory) -> tuple[Experiment, Callable[[], RunParts]]:
    """Rebuild a run from its directory alone: what was planned, and what builds its parts.

    Raises:
        RunError: There is no usable ``config.yaml``, or it was written from objects of another process.
    """
    try:
        config = json.loads(run.config.read_text())
        experiment, facts = Experiment.from_dict(config["experiment"]), config["run"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise RunError(f"{run.path} is not a run directory: {run.config.name}: {error}") from None
    if config["recipe"] is None:
        raise RunError(
            f"{run.run_id} was planned from objects that live only in the process that made them",
            hint="run your script or notebook again; it resumes",
        )
    sys.path[:0] = [p for p in config["import_path"] if p not in sys.path]
    recipe = recipe_from(config["recipe"])
    return experiment, partial(run_parts, recipe, facts)


def run_parts(recipe: Recipe, facts: dict[str, Any]) -> RunParts:
    """Fresh parts for one run.

    Args:
        recipe: Builds them.
        facts: size_param, batch_size, checkpoint_interval and what else the result should carry.
    """
    return RunParts(
        module=recipe.module(),
        data=recipe.data(),
        size_param=facts["size_param"],
        batch_size=facts["batch_size"],
        trainer=recipe.trainer(),
        checkpoint_interval=facts["checkpoint_interval"],
        facts=facts,
    )


def _own_import_path() -> list[str]:
    """Where this process finds modules, beyond what every process of this interpreter does."""
    installed = {Path(p).resolve() for p in (sys.prefix, sys.base_prefix)}
    folders = [Path(p or ".").resolve() for p in sys.path]
    return [str(f) for f in folders if f.is_dir() and not installed & {f, *f.parents}]


def basis_hash(basis: dict[str, Any]) -> str:
    """Eight characters that differ when anything that decides a result differs."""
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:8]


def _trainer_basis(trainer: dict[str, Any]) -> dict[str, Any]:
    """The Trainer arguments that change numbers; devices and strategies do not."""
    deciding = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "limit_val_batches")
    return {"trainer": {k: _plain(trainer[k]) for k in deciding if trainer.get(k) is not None}}


def _plain(value: Any) -> Any:
    """Values as JSON holds them; objects by their name."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else describe(value)


def _class_paths(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["class_path"]] if isinstance(node.get("class_path"), str) else []
        return own + [p for v in node.values() for p in _class_paths(v)]
    if isinstance(node, list):
        return [p for v in node for p in _class_paths(v)]
    return [node] if isinstance(node, str) and "." in node and node.replace(".", "").isidentifier() else []


def _source_at(path: str) -> str:
    module, _, name = path.rpartition(".")
    try:
        return source_hash(getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError, ValueError):
        return ""
