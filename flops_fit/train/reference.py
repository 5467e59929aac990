"""How another process finds the user's objects again: by name, never by pickle."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from functools import partial, reduce
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, NoneType
from typing import Any

from flops_fit.errors import RunError

_SCRIPT_MODULE = "flops_fit_user_script"
_loading_script = False


def is_loading_script() -> bool:
    """Whether a child process is importing the user's script to find its classes."""
    return _loading_script


def reference(thing: Any) -> str | None:
    """``module:qualname`` of a class or function that resolves back to the same object, else None.

    Objects of a script started as ``__main__`` are named by the script's file, with its hash.
    """
    if not isinstance(thing, (type, FunctionType)):
        return None
    module, name = thing.__module__, thing.__qualname__
    try:
        found = reduce(getattr, name.split("."), sys.modules[module])
    except (AttributeError, KeyError):
        return None
    if found is not thing:
        return None
    if module not in ("__main__", _SCRIPT_MODULE):
        return f"{module}:{name}"
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or not Path(file).is_file():
        return None  # a notebook or an interactive session
    return f"{Path(file).resolve()}#{_digest(Path(file))}:{name}"


def resolve(reference: str) -> Any:
    """The object that ``reference`` named.

    Raises:
        RunError: It is not there, or its script has changed since.
    """
    where, _, name = reference.rpartition(":")
    path, _, digest = where.rpartition("#")
    try:
        module = _load_script(Path(path), digest) if path else importlib.import_module(where)
        return reduce(getattr, name.split("."), module)
    except (ImportError, AttributeError) as error:
        raise RunError(f"{reference} cannot be imported: {error}") from error


def _load_script(path: Path, digest: str) -> Any:
    global _loading_script
    if not path.is_file():
        raise RunError(f"{path}, the script that started the sweep, is gone", hint="bring it back")
    if _digest(path) != digest:
        raise RunError(f"{path} has changed since the sweep was started", hint="run the script again; it resumes")
    loaded = sys.modules.get(_SCRIPT_MODULE)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(_SCRIPT_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_SCRIPT_MODULE] = module
    _loading_script = True
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_SCRIPT_MODULE]
        raise
    finally:
        _loading_script = False
    return module


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def source_hash(thing: Any) -> str:
    """A hash of the name and source text of a class (with its bases) or function; of torch's, of the name alone.

    For an instance, and for a ``functools.partial``, of its class or function and of the plain values that it holds,
    such as a loss's label smoothing.
    """
    texts = []
    while isinstance(thing, partial):
        texts.append(_plain_values({str(i): v for i, v in enumerate(thing.args)} | thing.keywords))
        thing = thing.func
    if not isinstance(thing, (type, FunctionType, MethodType, BuiltinFunctionType)):
        texts.append(_plain_values(vars(thing) if hasattr(thing, "__dict__") else {}))
        thing = type(thing)
    texts.append(describe(thing))
    for item in thing.__mro__ if isinstance(thing, type) else (thing,):
        if str(item.__module__).partition(".")[0] not in ("torch", "lightning", "builtins"):
            with contextlib.suppress(OSError, TypeError):  # of a notebook or an extension: the name must do
                texts.append(inspect.getsource(item))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _plain_values(values: dict[str, Any]) -> str:
    plain = (bool, int, float, str, NoneType)
    return repr(sorted((k, v) for k, v in values.items() if isinstance(v, plain) and k[0] != "_"))


def describe(thing: Any) -> str:
    """A name that is the same in every process: no addresses, no line numbers."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    module = "script" if named.__module__ in ("__main__", _SCRIPT_MODULE) else named.__module__
    return f"{module}:{named.__qualname__}"
