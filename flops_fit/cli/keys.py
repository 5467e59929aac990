"""Which keys a config may have, which classes it may name, and what was probably meant by one that is not there."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks, loggers
from torch import nn

from flops_fit.cli.documents import ConfigError, Entry, written
from flops_fit.cli.words import nearest
from flops_fit.shapes import WidthRule
from flops_fit.sweep.config import RayOptions, SlurmOptions, SweepConfig
from flops_fit.train.module import ScalingModule

_SPEC_KEYS = ("class_path", "init_args", "dict_kwargs")
_MOST_LISTED = 16


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something that cannot be meant: where it stands, what it is, what to do."""

    place: str
    problem: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class _Spec:
    """A place for an object: an import path, or a mapping with class_path and init_args.

    Attributes:
        kind: What its class must be a subclass of; object for anything.
        home: The module of names that are written without one.
        is_many: Whether a list of such may stand there.
    """

    kind: type = object
    home: str | None = None
    is_many: bool = False


class _Loose:
    """A place where any keys may stand, objects among them."""


class _Arguments(_Loose):
    """A place for the arguments of the object above."""


_Schema = Mapping[str, Any] | _Spec | _Loose | None


def _fields(cls: type, **known: _Schema) -> dict[str, _Schema]:
    return {f.name: known.get(f.name) for f in dataclasses.fields(cls)}


_SWEEP = _fields(
    SweepConfig,
    slurm=_fields(SlurmOptions),
    ray=_fields(RayOptions),
    width=_fields(WidthRule),
    loggers=_Spec(loggers.Logger, loggers.__name__, is_many=True),
)
_TRAINER: dict[str, _Schema] = {name: _Loose() for name in inspect.signature(pl.Trainer).parameters}
_TRAINER["callbacks"] = _Spec(callbacks.Callback, callbacks.__name__, is_many=True)
_ROOT: dict[str, _Schema] = {
    "model": _Spec(ScalingModule, "flops_fit"),
    "data": _Spec(pl.LightningDataModule, "lightning.pytorch"),
    "trainer": _TRAINER,
    "sweep": _SWEEP,
    "seed_everything": None,
}
# Arguments of our own module that hold objects.
_OWN_OBJECTS = ("net", "loss_fn")


def find_mistakes(entries: Sequence[Entry]) -> list[Mistake]:
    """Keys that there are not and classes that cannot be found, in order; what cannot be judged passes.

    Args:
        entries: Of all configs and options, later ones over earlier ones.
    """
    classes = {e.parts[:-1]: e for e in entries if e.parts[-1] == "class_path" and e.kind == "scalar"}
    for entry in entries:
        if (
            entry.kind == "scalar"
            and isinstance(_schema_at(entry.parts, classes), _Spec)
            and entry.value not in _NOTHING
        ):
            classes[entry.parts] = entry
    wrong = {parts: m for parts, e in classes.items() if (m := _wrong_class(e, _schema_at(parts, classes))) is not None}
    # What stands below an object that is itself none cannot be judged.
    judged = [e for e in entries if not any(e.parts[: len(parts)] == parts for parts in wrong)]
    found = [m for e in judged if (m := _wrong_key(e, classes) or _wrong_form(e, classes)) is not None]
    return list(dict.fromkeys([*wrong.values(), *found]))


_NOTHING = ("", "null", "~", "None")
_Classes = Mapping[tuple[str, ...], Entry]


def check_arguments(names: Iterable[str], path: str, entry: Entry | None) -> None:
    """Refuse arguments that the network does not take, as far as that can be told.

    Args:
        names: Of the arguments that a size sets.
        path: Of the network's class or function.
        entry: The key that names them.

    Raises:
        ConfigError: One is unknown.
    """
    known = _arguments_of(Entry((), "", "scalar", path), None)
    unknown = [name for name in names if known is not None and name not in known]
    if unknown and known is not None:
        where = f"{entry.place}: {entry.name}: " if entry is not None else ""
        raise ConfigError(f"{where}{path} takes no {unknown[0]!r}", hint=_hint(unknown[0], known))


def _step(
    schema: _Schema, parts: tuple[str, ...], i: int, classes: _Classes, is_option: bool
) -> tuple[_Schema, list[str]]:
    """The schema below a key, and, where the key is none, those that there are."""
    part = parts[i]
    if part.isdigit() and isinstance(schema, Mapping | _Spec | _Arguments):  # of a list, which may be wrong by itself
        return (schema if isinstance(schema, _Spec) and schema.is_many else None), []
    if isinstance(schema, Mapping):
        return (schema[part], []) if part in schema else (None, list(schema))
    if isinstance(schema, _Spec):
        if part in _SPEC_KEYS:
            return (_Arguments() if part == "init_args" else None), []
        if not is_option:
            return None, list(_SPEC_KEYS)
        return _step(_Arguments(), (*parts[:i], "init_args", *parts[i:]), i + 1, classes, is_option)
    if isinstance(schema, _Arguments):
        known = _arguments_of(classes.get(parts[: i - 1]), _schema_at(parts[: i - 1], classes))
        if known is not None and part not in known:
            return None, known
        is_own = part in _OWN_OBJECTS and parts[0] == "model" and i == 2
        return (_Spec() if is_own or parts[: i + 1] in classes else _Loose()), []
    if isinstance(schema, _Loose):
        return (_Spec() if parts[: i + 1] in classes else _Loose()), []
    return None, []


def _schema_at(parts: tuple[str, ...], classes: _Classes) -> _Schema:
    schema: _Schema = _ROOT
    for i in range(len(parts)):
        schema, _ = _step(schema, parts, i, classes, is_option=False)
    return schema


def _wrong_key(entry: Entry, classes: _Classes) -> Mistake | None:
    """Of a key in a file, only itself is judged: those above it have entries of their own."""
    schema: _Schema = _ROOT
    for i, part in enumerate(entry.parts):
        schema, known = _step(schema, entry.parts, i, classes, entry.is_option)
        if known and (entry.is_option or i == len(entry.parts) - 1):
            above = written(entry.parts[:i])
            owner = classes.get(entry.parts[: i - 1] if entry.parts[i - 1] == "init_args" else entry.parts[:i])
            if owner is not None and set(known) != set(_SPEC_KEYS):
                return Mistake(entry.place, f"{above}: {owner.value} takes no {part!r}", _hint(part, known))
            problem = f"{above} has no key {part!r}" if above else f"there is no key {part!r}"
            return Mistake(entry.place, problem, _hint(part, known, above, classes.get(entry.parts[:i])))
        if known:
            return None
    return None


def group_of(key: str) -> str | None:
    """The group of a config that has this key: "sweep" for "jobs"."""
    return next((name for name, schema in _ROOT.items() if isinstance(schema, Mapping) and key in schema), None)


def _hint(part: str, known: Sequence[str], above: str = "", owner: Entry | None = None) -> str:
    if owner is not None and part in (_arguments_of(owner, None) or ()):
        return f"arguments stand under {above}.init_args"
    near = nearest(part, known)
    if near is not None:
        return f"did you mean {near}?"
    if elsewhere := group_of(part):
        return f"{part} stands under {elsewhere}:"
    if len(known) <= _MOST_LISTED:
        return f"there are {', '.join(known)}" if known else "it takes none"
    return "`flops-fit fit --help-all` lists the keys"


def _wrong_form(entry: Entry, classes: _Classes) -> Mistake | None:
    """A list or a word where keys are wanted."""
    schema = _schema_at(entry.parts, classes)
    what = f"{entry.value!r}" if entry.kind == "scalar" else f"a {entry.kind}"
    if entry.is_option or entry.kind == "mapping" or (entry.kind == "scalar" and entry.value in _NOTHING):
        return None
    if isinstance(schema, Mapping):
        hint = f"its keys stand below it, such as {next(iter(schema))}:"
        return Mistake(entry.place, f"{entry.name} is {what}, not a mapping", hint)
    if isinstance(schema, _Arguments):
        return Mistake(entry.place, f"{entry.name} is {what}, not a mapping", "write {name: value}")
    if isinstance(schema, _Spec) and entry.kind == "list" and not schema.is_many:
        return Mistake(entry.place, f"{entry.name} is a list", "write class_path: and init_args: below it")
    return None


def _wrong_class(entry: Entry, schema: _Schema) -> Mistake | None:
    """An import path that leads nowhere, or to something of another kind."""
    spec = schema if isinstance(schema, _Spec) else _Spec()
    path, name = entry.value, entry.name
    thing, problem, hint = find(path, spec.home, spec.kind)
    if problem is not None:
        return Mistake(entry.place, f"{name}: {problem}", hint)
    if not isinstance(thing, type) or issubclass(thing, spec.kind):
        return None
    wanted = {ScalingModule: "flops_fit.ScalingModule", pl.LightningDataModule: "lightning.pytorch.LightningDataModule"}
    parent = wanted.get(spec.kind, f"{spec.kind.__module__}.{spec.kind.__name__}")
    hint = f"give {parent} or a subclass of it"
    if spec.kind is ScalingModule and issubclass(thing, nn.Module):
        hint = f"let class_path be flops_fit.ScalingModule, and {path} its init_args.net"
    return Mistake(entry.place, f"{name}: {path} is no {spec.kind.__name__}", hint)


def find(path: str, home: str | None = None, kind: type = object) -> tuple[Any, str | None, str | None]:
    """What an import path names; or why it names nothing, and what was probably meant."""
    if not all(part.isidentifier() for part in path.split(".")):
        return None, f"{path!r} is no import path", "write package.module.Class"
    if "." not in path:
        return _bare(path, home, kind)
    names = path.split(".")
    thing: Any = None
    for i, name in enumerate(names):
        so_far = ".".join(names[: i + 1])
        if i and hasattr(thing, name):
            thing = getattr(thing, name)
            continue
        if i and not inspect.ismodule(thing):
            return None, f"{'.'.join(names[:i])} has no {name}", _meant(name, dir(thing))
        try:
            thing = importlib.import_module(so_far)
        except ModuleNotFoundError as error:
            if error.name != so_far and not so_far.startswith(f"{error.name}."):
                return None, f"{so_far} cannot be imported: {error}", "install it beside flops-fit, or mend that import"
            if i == 0:
                hint = _meant(name, (m.name for m in pkgutil.iter_modules()))
                return None, f"there is no module {name}", hint or "it must be installed, or lie beside the config"
            submodules = [m.name for m in pkgutil.iter_modules(getattr(thing, "__path__", None) or [])]
            public = [n for n in dir(thing) if not n.startswith("_")]
            return None, f"{'.'.join(names[:i])} has no {name}", _meant(name, [*public, *submodules])
        except Exception as error:  # whatever the user's module raises
            return None, f"{so_far} cannot be imported: {type(error).__name__}: {error}", "mend that module"
    return thing, None, None


def _bare(name: str, home: str | None, kind: type) -> tuple[Any, str | None, str | None]:
    """A name without a module: one of the home's, or any class of the kind that is loaded."""
    if kind is object:
        if hasattr(builtins, name):
            return getattr(builtins, name), None, None
        return None, f"{name!r} is no import path", "write package.module.Class"
    holder = importlib.import_module(home) if home is not None else None
    known = {c.__name__: c for c in _subclasses(kind)}
    known |= {n: v for n in dir(holder) if isinstance(v := getattr(holder, n, None), type) and issubclass(v, kind)}
    if name in known:
        return known[name], None, None
    return None, f"there is no {kind.__name__} called {name}", _meant(name, known) or "write package.module.Class"


def _subclasses(kind: type) -> list[type]:
    below: list[type] = type.__subclasses__(kind)
    return [kind, *(sub for direct in below for sub in _subclasses(direct))]


def _meant(word: str, known: Iterable[str]) -> str | None:
    near = nearest(word, known, cutoff=0.6)
    return None if near is None else f"did you mean {near}?"


def _arguments_of(owner: Entry | None, schema: _Schema) -> list[str] | None:
    """Names of the arguments of a class or function; None where it takes any, or cannot be judged.

    A class that hands on further keywords takes those of its parents, too.
    """
    if owner is None:
        return None
    spec = schema if isinstance(schema, _Spec) else _Spec()
    thing, problem, _ = find(owner.value, spec.home, spec.kind)
    if problem is not None or not callable(thing):
        return None
    names: dict[str, None] = {}
    for item in thing.__mro__ if isinstance(thing, type) else (thing,):
        if isinstance(thing, type) and "__init__" not in vars(item):
            continue
        try:
            parameters = inspect.signature(vars(item)["__init__"] if isinstance(thing, type) else item).parameters
        except (TypeError, ValueError):
            return None
        kinds = [p.kind for p in parameters.values()]
        names |= dict.fromkeys(n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return [n for n in names if n != "self"] if item is not object else None
    return None
