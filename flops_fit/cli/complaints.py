"""jsonargparse's complaints about values, which list all that was tried, as one line: where, what, and what to do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from flops_fit.cli.documents import ConfigError, Entry
from flops_fit.cli.keys import Mistake, find_mistakes
from flops_fit.cli.words import nearest
from flops_fit.errors import PlanError
from flops_fit.sweep.config import RayOptions, SlurmOptions, SweepConfig
from flops_fit.train.module import ScalingModule

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "Count": "a whole number",
}
_MOST_LISTED = 8
_MISSING = {
    "model": "write model: {class_path: flops_fit.ScalingModule, init_args: {net: ..., loss_fn: ...}}",
    "data": "write data: {class_path: my_package.MyDataModule}",
}


def explained(message: str, entries: Sequence[Entry]) -> ConfigError:
    """The error that says what jsonargparse means.

    Args:
        message: Its message.
        entries: What the configs and the command line set.
    """
    mistakes = find_mistakes(entries)
    if mistakes:
        return told(mistakes)
    if match := re.fullmatch(r"the following arguments are required: (.*)", message):
        missing = match[1].split(", ")
        hint = _MISSING.get(missing[0]) or _meaning(missing[0].split("."))
        return ConfigError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing", hint=hint)
    return _about_a_value(message, entries)


def told(mistakes: Sequence[Mistake]) -> ConfigError:
    """One error for all of them."""
    if len(mistakes) == 1:
        return ConfigError(f"{mistakes[0].place}: {mistakes[0].problem}", hint=mistakes[0].hint)
    lines = [f"{m.place}: {m.problem}" + (f" ({m.hint})" if m.hint else "") for m in mistakes]
    return ConfigError("\n  ".join([f"{len(lines)} mistakes", *lines]))


def _about_a_value(message: str, entries: Sequence[Entry]) -> ConfigError:
    keys = [part for key in re.findall(r'Parser key "([^"]+)"', message) for part in key.split(".")]
    values = re.findall(r"(?:Got value|Given value): (.*)", message)
    expected: list[str] = re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    expected = list(dict.fromkeys(e for e in expected if "NoneType" not in e and not e.startswith("path but")))
    entry = _entry_of(keys, entries, message)
    name = entry.name if entry is not None else ".".join(keys)
    where = f"{entry.place}: " if entry is not None else ""
    meaning = _meaning(entry.parts if entry is not None else keys)
    if match := re.search(r"Not of type \w+: (.*)", message):
        problem, _, hint = match[1].partition("; ")
        return ConfigError(f"{where}{name}: {problem}", hint=hint or meaning)
    if expected and values:
        value = repr(entry.value if entry is not None and entry.kind == "scalar" else values[0])
        if entry is not None and entry.kind != "scalar":
            value = "a list" if entry.kind == "list" else "a mapping"
        choices = [c for e in expected for c in re.findall(r"'([^']*)'|(?<=[\[ ])(\d+)", e) if "Literal" in e]
        words = [a or b for a, b in choices]
        near = nearest(value.strip("'"), words) if words else None
        kinds = [f"one of {', '.join(words)}"] * bool(words) + _in_words(expected)
        wanted = "one of its values" if near and len(words) > _MOST_LISTED else " or ".join(dict.fromkeys(kinds))
        return ConfigError(
            f"{where}{name} is {value}, not {wanted}", hint=(near and f"did you mean {near}?") or meaning
        )
    noise = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Given value",
        "Parser key",
        "- Expected a <class 'NoneType'>",
    )
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not line.startswith(noise)]
    text = " ".join(dict.fromkeys(kept))[:300]
    return ConfigError(f"{where}{name}: {text}" if name else text, hint=meaning)


def _in_words(expected: Sequence[str]) -> list[str]:
    names = [m[1].rpartition(".")[2] for e in expected if (m := re.match(r"<class '([^']+)'>", e))]
    return [_TYPES.get(name, f"a {name}") for name in names]


def _entry_of(keys: Sequence[str], entries: Sequence[Entry], message: str) -> Entry | None:
    """The last entry that the complaint's keys lead to; of a list, the item whose value is named."""
    if not keys:
        return None

    def leads(parts: Sequence[str]) -> bool:
        rest = iter(parts)
        return all(any(part == key for part in rest) for key in keys) and parts[-1] == keys[-1]

    found = next((e for e in reversed(entries) if leads(e.parts)), None)
    if found is None or found.kind != "list":
        return found
    items = {e.value: e for e in entries if e.parts[:-1] == found.parts and e.kind == "scalar"}
    named = re.findall(r"Got value: (.*)$", message, re.MULTILINE) + re.findall(r"'([^']*)'", message)
    return next((items[value] for value in named if value in items), found)


def _meaning(parts: Sequence[str]) -> str | None:
    """What a key of ours is for, from the description that its class gives."""
    holders = {"sweep": SweepConfig, "slurm": SlurmOptions, "ray": RayOptions, "model": ScalingModule}
    holder = next((holders[p] for p in reversed(parts[:-1]) if p in holders), None)
    name = next((p for p in reversed(parts) if not p.isdigit()), "")
    text = inspect.getdoc(holder) or "" if holder is not None else ""
    match = re.search(rf"^    {re.escape(name)}: (.*(?:\n        .*)*)", text, re.MULTILINE) if name else None
    return f"{name}: {' '.join(match[1].split()).partition('; ')[0].rstrip('.')}" if match else None


def placed(error: PlanError, entries: Sequence[Entry]) -> PlanError:
    """An error about a value, such as "jobs=0 must be at least 1", with the place of the value."""
    match = re.match(r"([\w.]+)=", error.problem)
    keys = ["sweep", *match[1].split(".")] if match else []
    entry = _entry_of(keys, entries, "")
    if entry is None:
        return error
    return ConfigError(f"{entry.place}: {error.problem}", hint=error.hint or _meaning(entry.parts))
