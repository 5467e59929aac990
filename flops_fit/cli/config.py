"""The verbs that read a sweep's YAML: LightningCLI, with short messages."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # those of Lightning's own calls

import lightning.pytorch as pl
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from flops_fit.cli.complaints import explained, placed, told
from flops_fit.cli.documents import ConfigError, Entry, read_config, read_options
from flops_fit.cli.keys import check_arguments, find_mistakes
from flops_fit.errors import PlanError
from flops_fit.shapes import shapes_of
from flops_fit.sweep.config import SweepConfig
from flops_fit.train.guard import OWNED
from flops_fit.train.module import ScalingModule
from flops_fit.train.recipe import ConfigRecipe
from flops_fit.units import Count, Flops, Seconds

register_type(Count, serializer=int, deserializer=Count)
register_type(Flops, serializer=float, deserializer=Flops)
register_type(Seconds, serializer=float, deserializer=Seconds)


class SweepParser(LightningArgumentParser):
    """One message with its place instead of fifty lines of usage."""

    entries: Sequence[Entry] = ()  # what the configs at hand and the command line set
    raised: ClassVar[list[ConfigError]] = []

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        # An object's arguments have a parser of their own, whose complaint comes back as a part of this one.
        error = next((e for e in self.raised if e.problem in message), None) or explained(message, self.entries)
        self.raised.append(error)
        raise error from None


def print_keys() -> None:
    """Every key of model, data, trainer and sweep that a sweep may set, as options."""
    parser = SweepParser(usage=argparse.SUPPRESS, add_help=False, description="The config's keys, as options:")
    parser.add_class_arguments(SweepConfig, "sweep")
    parser.add_lightning_class_args(ScalingModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(pl.LightningDataModule, "data", subclass_mode=True)
    parser.add_class_arguments(pl.Trainer, "trainer", skip=set(OWNED), instantiate=False)
    print("\n" + parser.format_help().strip())


class SweepCLI(LightningCLI):
    """Reads ``model:``, ``data:``, ``trainer:`` and ``sweep:``; builds nothing, since every run builds its own.

    Args:
        configs: YAML files, later ones over earlier ones.
        words: Options over both, as on the command line.
        verb: For the usage line.
    """

    def __init__(self, configs: Sequence[Path], words: Sequence[str], verb: str) -> None:
        files = [entry for path in configs for entry in read_config(path)]
        strangers = find_mistakes([entry for entry in files if len(entry.parts) == 1])
        if strangers:  # with nothing below them, jsonargparse would pass over them
            raise told(strangers)
        SweepParser.raised.clear()
        SweepParser.entries = [*files, *read_options(words)]
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
        """The sweep group, its sizes held against the network's arguments.

        Raises:
            PlanError: A value is nonsense, or the network does not take what sets its size.
        """
        entries = SweepParser.entries
        try:
            sweep = SweepConfig(**self.config.sweep.as_dict())
        except PlanError as error:
            raise placed(error, entries) from None
        names = shapes_of(sweep.size_param, sweep.sizes, sweep.width).names
        entry = next((e for e in reversed(entries) if e.parts == ("sweep", "size_param")), None)
        check_arguments(names, self.recipe.model_name, entry)
        return sweep

    @property
    def text(self) -> str:
        """The resolved config, as YAML that loads again."""
        return str(self.parser.dump(self.config))

    @property
    def _plain(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.parser.dump(self.config, format="json"))
        missing = [k for k in ("model", "data") if not values.get(k)]
        if missing:
            raise explained(f"the following arguments are required: {', '.join(missing)}", SweepParser.entries)
        return values


def _import_from(configs: Sequence[Path]) -> None:
    """Put the working directory and the configs' folders on the import path, as ``python`` itself would."""
    for folder in [*(path.resolve().parent for path in configs), Path.cwd()]:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
