"""Loggers of the user's choice: one of each a run, with the run's name, its group and tags; never at a run's expense.

A run's truth is its metrics.csv. What a logger shows is a copy: after a resume, loggers that write files of their own
get its rows once more, and others go on with the record they had.
"""

from __future__ import annotations

import inspect
import json
import logging
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from flops_fit.errors import PlanError, RunError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunDirectory
from flops_fit.runs.files import read_json, read_metrics, write_json
from flops_fit.train.class_path import check_arguments, find_class
from flops_fit.units import format_count, format_flops

logger = logging.getLogger(__name__)

Spec = Mapping[str, Any]

_HOME = "lightning.pytorch.loggers"
# What Lightning's loggers need installed; one of them where there are several.
_PACKAGES = {
    "WandbLogger": ("wandb",),
    "MLFlowLogger": ("mlflow",),
    "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "CometLogger": ("comet_ml",),
    "NeptuneLogger": ("neptune",),
}
# Arguments that name one record, where every run needs its own.
_ONE_RECORD = {WandbLogger: ("id", "version", "experiment"), MLFlowLogger: ("run_id",)}
_FILE_ARGUMENTS = {"save_dir", "name", "version"}


def check_loggers(specs: Sequence[Spec] | None) -> None:
    """Refuse, before anything is trained, loggers that cannot be built.

    Args:
        specs: ``{class_path: ..., init_args: {...}}`` each, of plain values.

    Raises:
        PlanError: One cannot be imported, lacks its package, does not take an argument, or would give all runs one
            record.
    """
    if specs is None:
        return
    if isinstance(specs, (str, Mapping)) or not isinstance(specs, Sequence):
        raise PlanError(
            f"loggers is {type(specs).__name__}, not a list", hint="give [{class_path: ..., init_args: {}}]"
        )
    for i, spec in enumerate(specs):
        what = f"loggers[{i}]"
        if isinstance(spec, Logger):
            raise PlanError(
                f"{what} is an instance of {type(spec).__name__}, and every run needs one of its own",
                hint="give {'class_path': ..., 'init_args': {...}} instead",
            )
        cls = find_class(spec, what, Logger, _HOME)
        given = _given(spec)
        filled = _filled_in(cls, given, _Record(name="", group="", tags={}, folder=Path()))
        check_arguments(cls, given, what, filled)
        try:
            json.dumps(given)
        except TypeError as error:
            raise PlanError(f"{what}: init_args must be plain values: {error}") from None
        for name in (base.__name__ for base in cls.__mro__):
            packages = _PACKAGES.get(name, ())
            if packages and not any(find_spec(package) for package in packages):
                raise PlanError(
                    f"{what}: {cls.__name__} needs the package {' or '.join(packages)}, which is not installed",
                    hint=f"pip install {packages[0]}",
                )
        for kind, names in _ONE_RECORD.items():
            shared = [name for name in names if issubclass(cls, kind) and name in given]
            if shared:
                raise PlanError(
                    f"{what}: {shared[0]} would give all runs one record", hint="leave it out: every run gets its own"
                )
        if _writes_files(cls) and {"save_dir", "version"} <= set(given):
            raise PlanError(
                f"{what}: save_dir and version together would give all runs one folder",
                hint="leave version out: it becomes the run's name",
            )


def build_loggers(specs: Sequence[Spec] | None, run: RunDirectory, experiment: Experiment, group: str) -> list[Logger]:
    """Build a run's loggers, in its first process, once its metrics.csv is rewound to where it goes on.

    Arguments that the user left open are filled in where the constructor takes them: name, group, tags and identity of
    the run, and a folder in the run's own.

    Args:
        specs: As ``check_loggers`` takes them.
        run: The run's directory.
        experiment: What is trained; its values become hyperparameters.
        group: What the runs of a sweep have in common: its name.

    Raises:
        RunError: A logger cannot be started.
    """
    built: list[Logger] = []
    tags = {"C": format_flops(experiment.compute_budget), "N": format_count(experiment.num_params)}
    tags |= {"seed": str(experiment.seed)}
    for label, spec in zip(_labels(specs or ()), specs or (), strict=True):
        cls, given = find_class(spec, label, Logger, _HOME), _given(spec)
        record = _Record(name=run.run_id, group=group, tags=tags, folder=run.path / "loggers" / label)
        record.folder.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a folder is there already, or a record gone on with
                made: Logger = cls(**given | _filled_in(cls, given, record))
                made.log_hyperparams(experiment.to_dict())
                _copy_rows(made, run)
                record.remember(made)
        except Exception as error:
            close_loggers(built, "failed")
            raise RunError(
                f"{run.run_id}: the logger {cls.__name__} cannot be started: {type(error).__name__}: {error}",
                hint="mend it, or take it out of sweep.loggers; what was trained is kept",
            ) from error
        built.append(made)
    return built


def log_row(loggers: list[Logger], row: Mapping[str, Any], step: int) -> None:
    """Show a row of metrics.csv in every logger; one that fails is left out from then on.

    Args:
        loggers: As built; changed in place.
        row: Values by name; missing ones are None.
        step: Optimiser steps done.
    """
    values = {k: float(v) for k, v in row.items() if k != "step" and v not in (None, "")}
    for each in list(loggers):
        try:
            each.log_metrics(values, step)
        except Exception as error:
            loggers.remove(each)
            logger.warning(
                "%s is left out from step %d on: %s: %s", type(each).__name__, step, type(error).__name__, error
            )


def close_loggers(loggers: Sequence[Logger], status: str) -> None:
    """Let every logger write what it holds and let go of its record.

    Args:
        loggers: As built.
        status: "success", "failed", or "interrupted": the run goes on later.
    """
    for each in loggers:
        try:
            each.save()
            if isinstance(each, WandbLogger):
                # Finalizing does not end its record, and the next run of this process would go on with it.
                each.experiment.finish(exit_code=0 if status == "success" else 1)
            elif isinstance(each, MLFlowLogger):
                each.finalize("KILLED" if status == "interrupted" else status)
            else:
                each.finalize(status)
        except Exception as error:
            logger.warning("%s could not be closed: %s: %s", type(each).__name__, type(error).__name__, error)


def _given(spec: Spec) -> dict[str, Any]:
    """The arguments that the user gave; None is as good as none."""
    return {k: v for k, v in (spec.get("init_args") or {}).items() if v is not None}


def _labels(specs: Sequence[Spec]) -> list[str]:
    """A name for each logger of a run: its class, numbered where there are several."""
    names = [str(spec["class_path"]).rpartition(".")[2] for spec in specs]
    return [
        name if not names[:i].count(name) else f"{name}-{names[:i].count(name) + 1}" for i, name in enumerate(names)
    ]


def _writes_files(cls: type) -> bool:
    """Whether a logger writes below a folder, a name and a version of which Lightning would make up the last."""
    return set(inspect.signature(cls).parameters) >= _FILE_ARGUMENTS and not issubclass(cls, WandbLogger)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What a logger is told of a run.

    Attributes:
        name: The run's id.
        group: The sweep's name.
        tags: What tells runs of a sweep apart, for people.
        folder: The logger's own, in the run's.
    """

    name: str
    group: str
    tags: dict[str, str]
    folder: Path

    @property
    def identity(self) -> str | None:
        """Of the record that an earlier process began."""
        file = self.folder / "identity.json"
        return str(read_json(file)["id"]) if file.exists() else None

    def remember(self, made: Logger) -> None:
        """Keep a record's identity, so that a resumed run goes on with it."""
        if isinstance(made, (WandbLogger, MLFlowLogger)):
            identity = made.run_id if isinstance(made, MLFlowLogger) else made.experiment.id
            write_json(self.folder / "identity.json", {"id": str(identity)})


def _filled_in(cls: type, given: Mapping[str, Any], record: _Record) -> dict[str, Any]:
    """What is added to the user's arguments."""
    parameters = inspect.signature(cls).parameters
    folder, words = str(record.folder), [f"{k}={v}" for k, v in record.tags.items()]
    if issubclass(cls, MLFlowLogger):
        tags = {"sweep": record.group} | record.tags | given.get("tags", {})
        begun = {"run_id": record.identity} if record.identity else {"run_name": given.get("run_name", record.name)}
        return begun | {"tags": tags}
    offered: dict[str, Any]
    if issubclass(cls, WandbLogger):
        offered = {"name": record.name, "group": record.group, "tags": words, "resume": "allow"}
        offered |= {"id": record.identity or uuid.uuid4().hex} | ({} if "dir" in given else {"save_dir": folder})
    elif _writes_files(cls):
        is_ours = "save_dir" not in given
        offered = {"save_dir": folder, "name": "" if is_ours else record.group}
        offered |= {"version": "" if is_ours else record.name}
        if issubclass(cls, CSVLogger):
            offered["flush_logs_every_n_steps"] = 1
        if issubclass(cls, TensorBoardLogger):  # which hides what was written before, and is written once more
            offered |= {"default_hp_metric": False, "purge_step": 0}
    else:
        wants_mapping = "tags" in parameters and "dict" in str(parameters["tags"].annotation).lower()
        offered = {"group": record.group, "tags": record.tags if wants_mapping else words}
        offered |= dict.fromkeys(("name", "run_name"), record.name)
        offered |= dict.fromkeys(("save_dir", "log_dir", "dir"), folder)
        offered = {k: v for k, v in offered.items() if k in parameters}
    return {k: v for k, v in offered.items() if k not in given}


def _copy_rows(made: Logger, run: RunDirectory) -> None:
    """Of loggers that write files, make the rows before a resume those of metrics.csv: whole, each once."""
    if not isinstance(made, (CSVLogger, TensorBoardLogger)) or not run.metrics.exists():
        return
    if not run.metrics.stat().st_size:
        return
    for row in read_metrics(run.metrics):
        log_row([made], {k: v for k, v in row.items() if k != "schema_version"}, int(row["step"]))
