"""An analysis on disk: ``analysis.json`` for people and programs, ``draws.npz`` for the arrays it refers to.

What is read is data: only the classes named here are ever built, nothing is imported by name or unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tempfile
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from flops_fit.errors import DataError
from flops_fit.fit.prediction import SCHEMA_VERSION

if TYPE_CHECKING:
    from flops_fit.fit.analysis import ScalingAnalysis

ANALYSIS_FILE: Final = "analysis.json"
DRAWS_FILE: Final = "draws.npz"


def save_analysis(analysis: ScalingAnalysis, folder: Path) -> None:
    """Write both files, each replaced as a whole, the JSON last: it names the checksum of its arrays."""
    arrays: dict[str, Any] = {}
    state = _encode(analysis, arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    packed = buffer.getvalue()
    document = analysis.to_dict() | {"draws_sha256": hashlib.sha256(packed).hexdigest(), "state": state}
    text = json.dumps(document, indent=1, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / DRAWS_FILE, packed)
    _replace(folder / ANALYSIS_FILE, text.encode())


def load_analysis(source: Path) -> ScalingAnalysis:
    """Read what ``save_analysis`` wrote, given the folder or its ``analysis.json``.

    Raises:
        DataError: A file is missing or damaged, or of another schema.
    """
    folder = source if source.is_dir() else source.parent
    path = folder / ANALYSIS_FILE
    if not path.is_file():
        hint = f"make one with `flops-fit analyze {source}`, which needs the runs"
        raise DataError(f"{source} holds no {ANALYSIS_FILE}", hint=hint)
    again = "make it again with `flops-fit analyze`"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        packed = (folder / DRAWS_FILE).read_bytes()
    except OSError as error:
        raise DataError(f"{folder} holds no saved analysis: {error}", hint=again) from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", hint=again) from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}", hint=again)
    if hashlib.sha256(packed).hexdigest() != document.get("draws_sha256"):
        raise DataError(f"{folder / DRAWS_FILE} does not belong to {path}", hint=again)
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            loaded = _decode(document["state"], arrays, _classes())
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error!r}", hint=again) from error
    return cast("ScalingAnalysis", loaded)


def _classes() -> dict[str, Any]:
    from flops_fit import laws
    from flops_fit.fit import (
        analysis,
        combine,
        forms,
        frontier,
        holdout,
        isoflop,
        leave_out,
        local,
        misfit,
        noise,
        parametric,
        powerlaw,
        prediction,
        rows,
    )

    known = [
        *(laws.ComputeRule, laws.ParametricLaw, laws.PowerLaw),
        *(analysis.ScalingAnalysis, analysis.Headline, prediction.Warning_, rows.Rows, rows.Excluded),
        *(parametric.ParametricFit, parametric.FitStatus, misfit.Misfit, noise.Noise, noise.LackOfFit),
        *(isoflop.IsoflopFit, isoflop.BudgetOptimum, isoflop.BudgetStatus, powerlaw.PowerLawFit),
        *(frontier.FrontierFit, frontier.FrontierStatus),
        *(forms.SurfaceForm, forms.ParabolaForm, forms.LocalForm, local.LocalLaw),
        leave_out.LeftOut,
        *(combine.Combination, holdout.HoldOut, holdout.HoldOutPoint, holdout.Score),
    ]
    return {cls.__name__: cls for cls in known}


def _rare_classes(name: str) -> dict[str, Any]:
    """Classes of modules that few analyses need, and one of which loads pandas."""
    from types import ModuleType

    module: ModuleType
    if name.startswith("Envelope"):
        from flops_fit.fit import envelope as module
    else:
        from flops_fit.fit import repeated as module
    known = ("EnvelopeFit", "EnvelopePoint", "RepetitionFit", "RepeatedDataLaw", "RepetitionStatus")
    return {known_name: vars(module)[known_name] for known_name in known if known_name in vars(module)}


def _encode(value: Any, arrays: dict[str, Any]) -> Any:
    """JSON for any tree of dataclasses, mappings, tuples and arrays; lists are not part of an analysis."""
    if isinstance(value, StrEnum):
        return {"enum": type(value).__name__, "value": str(value)}
    if is_dataclass(value) and not isinstance(value, type):
        content = {f.name: _encode(getattr(value, f.name), arrays) for f in fields(value)}
        return {"class": type(value).__name__, "fields": content}
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value.astype(str) if value.dtype == object else value
        return {"array": name}
    if isinstance(value, np.generic):
        return _encode(value.item(), arrays)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, tuple):
        return [_encode(v, arrays) for v in value]
    if isinstance(value, dict):
        return {"mapping": {str(k): _encode(v, arrays) for k, v in value.items()}}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} is not part of an analysis")


def _decode(node: Any, arrays: Any, classes: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return tuple(_decode(v, arrays, classes) for v in node)
    if not isinstance(node, dict):
        return node
    if "class" in node:
        if node["class"] not in classes:
            classes |= _rare_classes(node["class"])
        return classes[node["class"]](**{k: _decode(v, arrays, classes) for k, v in node["fields"].items()})
    if "enum" in node:
        return classes[node["enum"]](node["value"])
    if "array" in node:
        return arrays[node["array"]]
    if "float" in node:
        return float(node["float"])
    return {k: _decode(v, arrays, classes) for k, v in node["mapping"].items()}


def _replace(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp keeps others out; an analysis is as readable as any other file of its folder.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
