"""How the runs were trained, in words, from what they recorded; what nobody recorded is asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from flops_fit.report.recorded import Recorded
from flops_fit.units import format_count, format_duration, format_flops

# What only the owner of the runs can say.
ASK = "not recorded: to be stated by the authors"
_FEW = 4


def trained(recorded: Recorded) -> dict[str, str]:
    """Architecture, data, recipe and machine: question and answer."""
    table = recorded.table
    return {
        "architecture and shape": _architecture(recorded.plan),
        "data set": _data(recorded),
        "tokenizer": ASK if recorded.plan.get("unit", "tokens") == "tokens" else "",
        "optimizer": _column(table, "optimizer") or ASK,
        "peak learning rate": _column(table, "lr") or ASK,
        "schedule": _schedule(table) or ASK,
        "batch": _batch(recorded) or ASK,
        "gradient clipping": _column(table, "clip"),
        "precision": _column(table, "precision") or ASK,
        "how the recipe was tuned for each size": ASK if recorded.rate_law is None else str(recorded.rate_law),
        "compute is": _rule(recorded.plan),
        "devices": _devices(table),
        "time of devices": _time(table),
    }


def evaluated(recorded: Recorded) -> str:
    """What the losses were measured on."""
    tokens = _column(recorded.table, "evaluation_tokens", format_count)
    unit = recorded.plan.get("unit", "tokens")
    return f"the same {tokens} held-out {unit} for every run, with its final weights" if tokens else ASK


def loss_unit(recorded: Recorded) -> str:
    """What the losses are measured in."""
    return _column(recorded.table, "loss_unit") or "nats, unless the table said otherwise"


def origin(recorded: Recorded) -> dict[str, str]:
    """Source, versions and machines of the runs: question and answer."""
    told = recorded.environments
    if not told:
        return {"code, versions and checkpoints of the models": ASK}
    return {
        "versions in training": _most(_versions(env) for env in told),
        "source in training": _most(_commit(env.get("git")) for env in told),
        "training was started by": _most(" ".join(map(str, env.get("command") or ())) for env in told),
        "machines": _most(_machine(env) for env in told),
    }


def _most(texts: Iterable[str]) -> str:
    """What all runs say; the most frequent of several, and how many say otherwise."""
    counts = Counter(text for text in texts if text)
    if not counts:
        return ASK
    (text, n), others = counts.most_common(1)[0], len(counts) - 1
    return text if not others else f"{text} ({n} of {sum(counts.values())} runs; {others} others)"


def _column(table: pd.DataFrame | None, name: str, form: Callable[[float], str] = lambda v: f"{v:.6g}") -> str:
    """The values of a column: each where they are few, else the range of numbers; empty where there are none."""
    if table is None or name not in table:
        return ""
    values = table[name].dropna()
    if values.empty:
        return ""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = np.unique(values.to_numpy(float))
        if len(numbers) > _FEW:
            return f"{form(float(numbers[0]))} to {form(float(numbers[-1]))}"
        return ", ".join(form(float(v)) for v in numbers)
    texts = list(dict.fromkeys(str(v) for v in values))
    return ", ".join(texts[:_FEW]) + (f" and {len(texts) - _FEW} more" if len(texts) > _FEW else "")


def _architecture(plan: Mapping[str, Any]) -> str:
    if "model_cls_name" not in plan:
        return ASK
    arguments = ", ".join(f"{k}={_brief(v)}" for k, v in dict(plan.get("model_kwargs") or {}).items())
    return f"{plan['model_cls_name']}({arguments}), its size set by {plan.get('size_param')}"


def _brief(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _data(recorded: Recorded) -> str:
    basis = recorded.plan.get("basis")
    data = basis.get("data") if isinstance(basis, Mapping) else None
    said = _brief(data.get("class_path")).strip('"') if isinstance(data, Mapping) and "class_path" in data else ""
    fingerprint = _column(recorded.table, "data_fingerprint")
    parts = [said, f"fingerprint {fingerprint}" if fingerprint else ""]
    return ", ".join(part for part in parts if part) or ASK


def _schedule(table: pd.DataFrame | None) -> str:
    schedule, steps = _column(table, "schedule"), _column(table, "horizon_steps")
    if not schedule:
        return ""
    warmup = _column(table, "warmup_steps")
    said = f"{schedule}, over each run's own {steps} steps" if steps else schedule
    return f"{said}, {warmup} of them warm-up" if warmup else said


def _batch(recorded: Recorded) -> str:
    tokens = _column(recorded.table, "batch_tokens", format_count)
    return f"{tokens} {recorded.plan.get('unit', 'tokens')} a step" if tokens else ""


def _rule(plan: Mapping[str, Any]) -> str:
    rule = plan.get("flops_rule")
    return {"6nd": "6 N D", "counted": "counted on the model, forward and backward"}.get(str(rule), "")


def _devices(table: pd.DataFrame | None) -> str:
    name, n = _column(table, "device_name"), _column(table, "world_size")
    return "" if not name else name if n in ("", "1") else f"{name}; {n} for a run"


def _time(table: pd.DataFrame | None) -> str:
    if table is None or not {"seconds", "world_size"} <= set(table.columns):
        return ""
    seconds = float((table["seconds"] * table["world_size"]).sum())
    spent = float(table.loc[table["seconds"].notna(), "flops"].sum())
    return f"{format_duration(seconds)} of training for {format_flops(spent)} FLOPs" if seconds > 0 else ""


def _versions(env: Mapping[str, Any]) -> str:
    versions = env.get("versions")
    known = {k: v for k, v in versions.items() if v} if isinstance(versions, Mapping) else {}
    said = [f"{name} {v}" for name, v in known.items()]
    return ", ".join([*said, *([f"Python {env['python']}"] if env.get("python") else [])])


def _commit(git: Any) -> str:
    if not isinstance(git, Mapping) or not git.get("commit"):
        return ""
    return f"git commit {git['commit']}" + (", with changes that were not committed" if git.get("is_dirty") else "")


def _machine(env: Mapping[str, Any]) -> str:
    devices = env.get("devices")
    named = ", ".join(f"{n} x {name}" for name, n in Counter(map(str, devices)).items()) if devices else ""
    cuda = f", CUDA {env['cuda']}" if devices and env.get("cuda") else ""
    return f"{named}{cuda}" if named else ", ".join(str(v) for v in (env.get("cpu"), env.get("platform")) if v)
