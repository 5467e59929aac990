"""Objects written as plain values, ``{class_path: ..., init_args: {...}}``, so that they reach every process."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from flops_fit.errors import PlanError

_KEYS = ("class_path", "init_args")


def find_class(spec: Any, what: str, kind: type, home: str | None = None) -> type:
    """The class that ``spec`` names.

    Args:
        spec: A mapping with ``class_path`` and, where there are any, ``init_args``.
        what: What it is, for messages.
        kind: What the class must be a subclass of.
        home: The module of names that are written without one.

    Raises:
        PlanError: It is no such mapping, cannot be imported, or names something else.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str):
        raise PlanError(
            f"{what} is {spec!r}, not a mapping with class_path",
            hint="write {class_path: package.Class, init_args: {name: value}}",
        )
    arguments = spec.get("init_args")
    if arguments is not None and not (isinstance(arguments, Mapping) and all(isinstance(k, str) for k in arguments)):
        raise PlanError(f"{what}: init_args is {arguments!r}, not a mapping of names to values")
    unknown = [key for key in spec if key not in _KEYS]
    if unknown:
        raise PlanError(f"{what} has the key {unknown[0]!r}", hint=_nearest(str(unknown[0]), _KEYS))
    path = spec["class_path"]
    module, _, name = path.rpartition(".")
    module = module or home or ""
    try:
        holder = importlib.import_module(module) if module else None
    except ImportError as error:
        raise PlanError(f"{what}: {path} cannot be imported: {error}") from error
    found = getattr(holder, name, None)
    if found is None:
        names = [n for n in dir(holder) if isinstance(getattr(holder, n, None), type)] if holder else []
        raise PlanError(f"{what}: {module or 'the path'} has no {name}", hint=_nearest(name, names))
    if not isinstance(found, type) or not issubclass(found, kind):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise PlanError(f"{what}: {path} is not a {kind.__name__}", hint=f"name a subclass of {wanted}")
    return found


def check_arguments(
    cls: type, arguments: Mapping[str, Any] | None, what: str, filled: Mapping[str, Any] | None = None
) -> None:
    """Hold arguments against the constructor's signature; what cannot be inspected passes.

    Args:
        cls: The class.
        arguments: The user's, by name.
        what: What it is, for messages.
        filled: Those that are added to them.

    Raises:
        PlanError: One is unknown, or one without a default is missing.
    """
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return
    known = [n for n, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in set(arguments or ()) - set(known):
        # Where anything is taken, and handed on, a name that is nearly another is still a slip.
        if not takes_any or difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise PlanError(f"{what}: {cls.__name__} does not take {name}", hint=_nearest(name, known))
    try:
        signature.bind(**{**(filled or {}), **(arguments or {})})
    except TypeError as error:
        raise PlanError(f"{what}: {cls.__name__}: {error}", hint="give it in init_args") from None


def build(spec: Any, what: str, kind: type, home: str | None = None) -> Any:
    """The object that ``spec`` describes.

    Raises:
        PlanError: It cannot be found, or its constructor refuses.
    """
    cls = find_class(spec, what, kind, home)
    arguments = spec.get("init_args")
    check_arguments(cls, arguments, what)
    try:
        return cls(**(arguments or {}))
    except Exception as error:
        raise PlanError(f"{what}: {cls.__name__} cannot be built: {type(error).__name__}: {error}") from error


def _nearest(word: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(known)}" if 0 < len(known) <= 20 else "check its spelling"
