"""``check``: whether a sweep can be trained at all, before it is paid for."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from flops_fit.cli.main import GOOD
from flops_fit.cli.sweep import quiet_libraries, sweep_options
from flops_fit.cli.words import say
from flops_fit.units import format_bytes, format_count

if TYPE_CHECKING:
    from flops_fit.study import Study
    from flops_fit.trial import Checked


def check(words: list[str]) -> int:
    """Take two steps and an evaluation batch of the smallest and the largest size; nothing is left on disk."""
    own, rest = sweep_options("check", words)
    from flops_fit.cli.config import SweepCLI
    from flops_fit.study import plan_study

    with quiet_libraries():
        cli = SweepCLI(own.config, rest, "check")
        study = plan_study(cli.recipe, cli.sweep)
        from flops_fit.trial import check as take_steps
    checked = take_steps(study)
    unchecked = _unchecked(study, checked)
    if own.json:
        told = {"schema_version": 1, "checked": [asdict(c) for c in checked], "not_checked": unchecked}
        print(json.dumps(told | {"warnings": study.plan.warnings}))
        return GOOD
    for warning in study.plan.warnings:
        say(f"note: {warning}")
    print("\n".join(_report(study, checked, unchecked)))
    return GOOD


def _report(study: Study, checked: list[Checked], unchecked: list[str]) -> list[str]:
    from flops_fit.trial import CHECK_STEPS

    plan = study.plan
    batch = f"{plan.batch_size} samples a step"
    lines = [f"good: {plan.model_cls_name}, its data, its loss and its evaluation work together ({batch})"]
    for c in checked:
        memory = "" if c.memory_bytes is None else f", {format_bytes(c.memory_bytes)} of memory at most"
        halved = f", in micro-batches of {c.micro_batch}" if 0 < c.micro_batch < (plan.batch_size or 0) else ""
        lines.append(
            f"  {plan.size_param} {c.size} (N = {format_count(c.num_params)}): {CHECK_STEPS} steps{halved} and an"
            f" evaluation batch on {c.device}, loss {c.loss:.4g}{memory}"
        )
    return [*lines, "not checked: " + "; ".join(unchecked)]


def _unchecked(study: Study, checked: list[Checked]) -> list[str]:
    """What such a check cannot see, or did not look at."""
    between = len({e.size_param_value for e in study.plan.experiments}) - len(checked)
    unchecked = ["whether the learning rate suits every size", "the data beyond the first batches"]
    if between:
        unchecked.insert(0, f"the {between} size{'s' * (between > 1)} in between")
    if study.config.launcher not in ("local", "inline"):
        unchecked.append(f"launcher {study.config.launcher} and its machines: the steps were taken on this one")
    if study.config.loggers:
        unchecked.append("the loggers beyond their names")
    return unchecked
