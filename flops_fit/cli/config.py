"""The verbs that read a sweep's YAML: LightningCLI, with short messages."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # those of Lightning's own calls

import lightning.pytorch as pl
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from flops_fit.errors import PlanError
from flops_fit.sweep.config import SweepConfig
from flops_fit.train.module import ScalingModule
from flops_fit.train.recipe import ConfigRecipe
from flops_fit.units import Flops, Seconds

register_type(Flops, serializer=float, deserializer=Flops)
register_type(Seconds, serializer=float, deserializer=Seconds)


class ConfigError(PlanError):
    """The config or the command line cannot be used."""


class SweepParser(LightningArgumentParser):
    """One message instead of fifty lines of usage, with the nearest valid key."""

    config_text = ""  # of the configs at hand, for suggestions

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        raise ConfigError(_shortened(message), hint=_nearest(message, _valid_keys(self, message)))


def _shortened(message: str) -> str:
    """The lines that say what is wrong, without jsonargparse's list of what else was tried."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not line.startswith(noise)]
    return "config: " + " ".join(kept)


def _nearest(message: str, valid: set[str]) -> str | None:
    match = re.search(r"option '([^']+)'", message, re.IGNORECASE) or re.search(r"arguments: --(\S+)", message)
    if match is None:
        match = re.search(r"has no attribute '([^']+)'", message)
    if match is None:
        return None
    word = match[1].rpartition(".")[2]
    close = difflib.get_close_matches(word, sorted(valid), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "`flops-fit fit --help` lists the keys"


def _valid_keys(parser: SweepParser, message: str) -> set[str]:
    """Names that could have been meant: the parser's own, those of the classes named, a module's attributes."""
    group = re.search(r"Group '([^']+)'", message) or re.search(r"arguments: --([\w.]+)\.\w+", message)
    names = [action.dest for action in parser._actions if action.dest]
    if group is not None:
        return {name.rpartition(".")[2] for name in names if name.startswith(f"{group[1]}.")}
    module = re.search(r"module '([^']+)' has no attribute", message)
    if module is not None:
        return {name for name in dir(importlib.import_module(module[1])) if not name.startswith("_")}
    keys = {part for name in names for part in name.split(".")[:1]}
    for path in re.findall(r"class_path['\"]?[:=]\s*['\"]?([\w.]+)", parser.config_text):
        keys |= set(_parameters(path))
    return keys


def _parameters(path: str) -> Iterator[str]:
    module, _, name = path.rpartition(".")
    try:
        thing = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return
    for item in thing.__mro__ if isinstance(thing, type) else (thing,):
        if item is object or item.__module__.startswith(("torch.", "lightning.")):
            continue
        yield from inspect.signature(item).parameters


class SweepCLI(LightningCLI):
    """Reads ``model:``, ``data:``, ``trainer:`` and ``sweep:``; builds nothing, since every run builds its own.

    Args:
        configs: YAML files, later ones over earlier ones.
        words: Options over both, as on the command line.
        verb: For the usage line.
    """

    def __init__(self, configs: Sequence[Path], words: Sequence[str], verb: str) -> None:
        SweepParser.config_text = "".join(path.read_text() for path in configs)
        _import_from(configs)
        super().__init__(
            ScalingModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=SweepParser,
            parser_kwargs={"prog": f"flops-fit {verb}", "description": "A compute sweep from a YAML file."},
            trainer_defaults={"devices": 1},
            save_config_callback=None,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            run=False,
            args=[w for path in configs for w in ("--config", str(path))] + list(words),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the ``sweep:`` group."""
        parser.add_class_arguments(SweepConfig, "sweep")

    def instantiate_classes(self) -> None:
        """Nothing is built until a run is known."""

    @property
    def recipe(self) -> ConfigRecipe:
        """The model, data and trainer groups."""
        config = self._plain
        return ConfigRecipe({k: config[k] for k in ("model", "data", "trainer")})

    @property
    def sweep(self) -> SweepConfig:
        """The sweep group."""
        return SweepConfig(**self.config.sweep.as_dict())

    @property
    def text(self) -> str:
        """The resolved config, as YAML that loads again."""
        return str(self.parser.dump(self.config))

    @property
    def _plain(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.parser.dump(self.config, format="json"))
        missing = [k for k in ("model", "data") if not values.get(k)]
        if missing:
            raise ConfigError(
                f"config: {' and '.join(missing)} must be given", hint="see configs/quickstart.yaml for a whole sweep"
            )
        return values


def _import_from(configs: Sequence[Path]) -> None:
    """Put the working directory and the configs' folders on the import path, as ``python`` itself would."""
    for folder in [*(path.resolve().parent for path in configs), Path.cwd()]:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
