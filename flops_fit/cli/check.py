"""``check``: whether a sweep can be trained at all, before it is paid for."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit.cli.main import GOOD, SOME_FAILED
from flops_fit.cli.sweep import quiet_libraries, sweep_options, verbosity
from flops_fit.cli.words import say
from flops_fit.errors import FlopsFitError
from flops_fit.units import format_bytes, format_count

if TYPE_CHECKING:
    from flops_fit.cli.words import Parser
    from flops_fit.study import Study
    from flops_fit.transfer import CoordinateCheck
    from flops_fit.trial import Checked


def check(words: list[str]) -> int:
    """Take two steps and an evaluation batch of the smallest and the largest size, and compare widths.

    Nothing is left on disk but the figure that was asked for.
    """
    own, rest = sweep_options("check", words, _add_options)
    if own.figure is not None and own.no_coordinates:
        raise FlopsFitError("flops-fit check: --figure draws the coordinate check, which --no-coordinates leaves out")
    from flops_fit.cli.config import SweepCLI
    from flops_fit.study import plan_study

    with verbosity(own.verbose), quiet_libraries():
        cli = SweepCLI(own.config, rest, "check")
        study = plan_study(cli.recipe, cli.sweep)
        from flops_fit.coordinates import check_coordinates
        from flops_fit.trial import check as take_steps
    checked = take_steps(study)
    with quiet_libraries():
        coordinates = None if own.no_coordinates else check_coordinates(study)
    unchecked = _unchecked(study, checked, coordinates)
    if own.figure is not None and coordinates is not None:
        _draw(coordinates, own.figure)
    # A model that has rates of its own for its parameters says that they transfer.
    code = (
        SOME_FAILED if coordinates is not None and coordinates.passed is False and coordinates.has_own_rates else GOOD
    )
    if own.json:
        told = {"schema_version": 1, "checked": [asdict(c) for c in checked], "not_checked": unchecked}
        told |= {"coordinates": None if coordinates is None else coordinates.to_dict()}
        print(json.dumps(told | {"warnings": study.plan.warnings}))
        return code
    for warning in study.plan.warnings:
        say(f"note: {warning}")
    print("\n".join(_report(study, checked)))
    if coordinates is not None:
        from flops_fit.report import coordinate_table

        print(coordinate_table(coordinates))
        if coordinates.passed is False:
            print(_advice(study, coordinates.has_own_rates))
    print("not checked: " + "; ".join(unchecked))
    return code


def _add_options(parser: Parser) -> None:
    parser.add_argument("--no-coordinates", action="store_true", help="leave the comparison of widths out")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the coordinate check: PNG, PDF or SVG")


def _draw(coordinates: CoordinateCheck, path: Path) -> None:
    from flops_fit.report import plot_coordinates

    figure = plot_coordinates(coordinates).get_figure(root=True)
    assert figure is not None
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # no such folder; no such format
        raise FlopsFitError(f"--figure {path} cannot be written: {error}") from None
    say(f"figure: {path}")


def _advice(study: Study, has_own_rates: bool) -> str:
    if has_own_rates:
        return (
            "  the model's param_groups(lr) does not keep updates alike over widths: compare initialisation,"
            " multipliers and rates of the parts named"
        )
    if study.needs_lr or study.rate_law is not None:
        return "  lr: auto finds a rate for each size; with u-muP or the like as its param_groups(lr), one would do"
    return "  let lr: auto find a rate for each size, or give the model's param_groups(lr) u-muP or the like"


def _report(study: Study, checked: list[Checked]) -> list[str]:
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
    return lines


def _unchecked(study: Study, checked: list[Checked], coordinates: CoordinateCheck | None) -> list[str]:
    """What such a check cannot see, or did not look at."""
    between = len({e.size_param_value for e in study.plan.experiments}) - len(checked)
    unchecked = ["the data beyond the first batches"]
    if coordinates is None or coordinates.passed is None:
        unchecked.insert(0, "whether the learning rate suits every size")
    if between:
        unchecked.insert(0, f"the {between} size{'s' * (between > 1)} in between")
    if study.config.launcher not in ("local", "inline"):
        unchecked.append(f"launcher {study.config.launcher} and its machines: the steps were taken on this one")
    if study.config.loggers:
        unchecked.append("the loggers beyond their names")
    return unchecked
