"""The run that a budget calls for, from a sweep's files.

Sizes are known by the plan's own table of size and N, and nothing that a config names is imported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flops_fit.errors import DataError, FitError
from flops_fit.next_run import NextRun
from flops_fit.plan.nearest import params_at, sizes_near
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.files import read_json
from flops_fit.shapes import shapes_of
from flops_fit.units import format_count, format_flops

if TYPE_CHECKING:
    from flops_fit.fit import Prediction, ScalingAnalysis

# The largest batch that a sweep of ours takes by itself, and the fewest steps that it leaves.
_LARGEST_BATCH: Final = 2**19
_FEWEST_STEPS: Final = 1000

# Repeated more often, data are worth less (Muennighoff et al. 2023, arXiv:2305.16264).
_MOST_EPOCHS: Final = 4.0

# What a resolved config says though nobody has: Lightning's defaults, and what a run of ours sets itself.
_SAID_ANYWAY: Final[dict[str, Any]] = {
    "strategy": "auto",
    "num_nodes": 1,
    "fast_dev_run": False,
    "max_steps": -1,
    "overfit_batches": 0.0,
    "check_val_every_n_epoch": 1,
    "accumulate_grad_batches": 1,
    "inference_mode": True,
    "use_distributed_sampler": True,
    "detect_anomaly": False,
    "barebones": False,
    "sync_batchnorm": False,
    "reload_dataloaders_every_n_epochs": 0,
    "enable_autolog_hparams": True,
}
# What of a sweep's group says how a run is trained; where and when it is started is left to the reader.
_OF_A_RUN: Final = ("size_param", "width", "flops", "flops_per_param_per_token", "loggers")


def suggest(analysis: ScalingAnalysis, directory: Path | None, compute_budget: float) -> NextRun:
    """The run that a budget calls for.

    Args:
        analysis: What answers.
        directory: The sweep that it comes from, in which the model and its sizes are described; None for a table.
        compute_budget: Compute of the run [FLOPs].

    Raises:
        FitError: The analysis withholds the best size at this budget.
        DataError: The sweep's files cannot be read.
    """
    best = analysis.predict(compute_budget)
    if best.num_params is None or best.num_tokens is None:
        raise FitError(
            f"the analysis withholds the best size at {format_flops(compute_budget)} FLOPs",
            hint="ask for a budget nearer to the data, or extend the sweep",
        )
    sweep = None if directory is None else SweepDirectory(directory)
    if sweep is None or not sweep.plan_file.is_file():
        return _of_a_table(analysis, best)
    return _of_a_sweep(analysis, best, sweep)


def _of_a_table(analysis: ScalingAnalysis, best: Prediction) -> NextRun:
    assert best.num_params is not None
    assert best.num_tokens is not None
    room = max(1.0, min(best.num_tokens / _FEWEST_STEPS, _LARGEST_BATCH))
    batch = 2 ** math.floor(math.log2(room))
    steps = max(1, round(best.num_tokens / batch))
    no_model = (
        "Only a table of runs was analysed, so there is no model to configure: N, D and the steps are what to train."
        f" The batch is a proposal, the largest power of two with {_FEWEST_STEPS:,} steps or more, at most"
        f" {_LARGEST_BATCH:,}; with another batch, steps = D / batch."
    )
    return NextRun(
        compute_budget=best.compute_budget,
        num_params=round(best.num_params),
        num_params_optimal=best.num_params,
        num_tokens=batch * steps,
        steps=steps,
        batch_tokens=batch,
        prediction=best,
        caveats=(no_model, *_told(analysis, best)),
    )


def _of_a_sweep(analysis: ScalingAnalysis, best: Prediction, sweep: SweepDirectory) -> NextRun:
    assert best.num_params is not None
    wanted = best.num_params
    plan, written = sweep.plan, _written(sweep)
    group = written.get("sweep") or {}
    known = counted_sizes(sweep, analysis.n_convention)
    shapes = {e.size_param_value: e.size_arguments(plan["size_param"]) for e in sweep.experiments()}
    width = group.get("width")
    is_table = width is None and any(e.size_kwargs for e in sweep.experiments())
    candidates = sorted(known) if is_table else sizes_near(known, wanted, group.get("size_multiple"))
    size = min(candidates, key=lambda s: abs(math.log(params_at(known, s) / wanted)))
    N = round(params_at(known, size))
    batch_tokens = int(plan["batch_size"] or 1) * int(plan.get("tokens_per_sample") or 1)
    steps = max(1, round(_tokens(analysis, best.compute_budget, sweep, size, N) / batch_tokens))
    result = _a_result(sweep)
    arguments = shapes.get(size) or _shaped(plan["size_param"], size, width)
    prediction = _expected(analysis, best, N, steps * batch_tokens)
    sizes: list[Any] = [arguments if is_table else size]
    config = _config(sweep, written, group, sizes, best.compute_budget)
    caveats = [*_how_to_train(sweep, written), *_of_size(known, size, N, best, is_table=is_table)]
    caveats += _beyond_the_recipe(known, size, steps * batch_tokens, result)
    return NextRun(
        compute_budget=best.compute_budget,
        num_params=N,
        num_params_optimal=best.num_params,
        num_tokens=steps * batch_tokens,
        steps=steps,
        batch_size=plan["batch_size"],
        batch_tokens=batch_tokens,
        size=size,
        size_arguments=arguments,
        is_counted=size in known,
        prediction=prediction,
        config=config,
        trained_with=_trained_with(result, steps),
        caveats=(*caveats, *_told(analysis, best)),
    )


def counted_sizes(sweep: SweepDirectory, n_convention: str = "num_params") -> dict[int, int]:
    """N of every size that the sweep's plan has counted, by the value of the size parameter."""
    column = {e.size_param_value: getattr(e, n_convention) or e.num_params for e in sweep.experiments()}
    if n_convention == "num_params":
        left_out = sweep.plan.get("dropped") or []
        column |= {d["size"]: d["num_params"] for d in left_out if d.get("num_params") and d["size"] not in column}
    return dict(sorted(column.items()))


def _tokens(analysis: ScalingAnalysis, C: float, sweep: SweepDirectory, size: int, N: float) -> float:
    """D at C FLOPs [tokens or samples]: by the model's own count, as its plan has it; by the law's where none is."""
    counted = next((e.flops_per_token for e in sweep.experiments() if e.size_param_value == size), None)
    return C / counted if counted else float(analysis.rule.tokens(C, N))


def _shaped(size_param: str, size: int, width: Mapping[str, Any] | None) -> dict[str, Any]:
    return shapes_of(size_param, None, width).arguments(size)


def _expected(analysis: ScalingAnalysis, best: Prediction, N: float, D: float) -> Prediction:
    """What the run of this size and data will do: by the surface, which knows what being off the optimum costs."""
    try:
        run = analysis.predict(params=N, tokens=D)
    except FitError:
        return best
    ci = {name: ends for name, ends in best.ci.items() if name != "loss"} | run.ci
    return dataclasses.replace(best, loss=run.loss, ci=ci)


def _written(sweep: SweepDirectory) -> dict[str, Any]:
    """What ``sweep.yaml`` holds, as data; empty for a sweep that was trained from Python."""
    import yaml

    path = sweep.path / "sweep.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="the same `flops-fit fit` writes it again") from error
    groups = content if isinstance(content, dict) else {}
    if not all(isinstance(groups.get(name), dict) for name in ("model", "data", "sweep")):
        raise DataError(f"{path} is no config of a sweep", hint="the same `flops-fit fit` writes it again")
    return groups


def _a_result(sweep: SweepDirectory) -> dict[str, Any]:
    """What the completed run with the most compute was trained with."""
    for experiment in sorted(sweep.experiments(), key=lambda e: -e.flops):
        run = sweep.run(experiment.experiment_id)
        if run.state() is RunState.COMPLETED:
            return run.result()
    return {}


def _recipe(sweep: SweepDirectory) -> dict[str, Any] | None:
    """How the sweep's runs are built, from any of their configs; None where only one process could."""
    for experiment in sweep.experiments():
        config = sweep.run(experiment.experiment_id).config
        if config.is_file():
            recipe = read_json(config).get("recipe")
            return recipe if isinstance(recipe, dict) else None
    return None


def _config(
    sweep: SweepDirectory, written: dict[str, Any], group: dict[str, Any], sizes: list[Any], compute_budget: float
) -> dict[str, Any]:
    """For a sweep from YAML the config of the one run; for one from Python, arguments of ``find_optimal``."""
    folder = f"{sweep.path}_C{format_flops(compute_budget)}"
    if written:
        trainer = written.get("trainer") or {}
        trainer = {k: v for k, v in trainer.items() if k not in _SAID_ANYWAY or v != _SAID_ANYWAY[k]}
        kept = {name: group[name] for name in _OF_A_RUN if group.get(name) is not None}
        run = {"compute_budgets": [float(compute_budget)], "sizes": sizes, "min_steps": 1, "output_dir": folder}
        if "width" in kept and isinstance(sizes[0], dict):
            del kept["width"]
        return {"model": written["model"], "data": written["data"], "trainer": trainer, "sweep": kept | run}
    plan, recipe = sweep.plan, _recipe(sweep) or {}
    named = {k: recipe.get(k) for k in ("loss_fn", "dataset", "val_dataset", "module_cls")}
    arguments = {"model_cls": recipe.get("model_cls") or plan["model_cls_name"], "model_size_param": plan["size_param"]}
    arguments |= {"model_kwargs": plan["model_kwargs"]} | {k: v for k, v in named.items() if v is not None}
    arguments |= {"compute_budgets": [float(compute_budget)], "sizes": sizes, "batch_size": plan["batch_size"]}
    arguments |= recipe.get("module_kwargs") or {}
    trainer = recipe.get("trainer_kwargs")
    arguments |= {"flops": plan["flops_rule"]} | ({"trainer": trainer} if trainer else {})
    return {"find_optimal": arguments | {"min_steps": 1, "output_dir": folder}}


def _trained_with(result: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The sweep's recipe, its warm-up for so many steps."""
    if not result:
        return {}
    share = None
    if result.get("warmup_steps") and result.get("horizon_steps"):
        share = result["warmup_steps"] / result["horizon_steps"]
    schedule = str(result.get("schedule"))
    if share is not None:
        schedule += f" after a warm-up of {max(1, round(share * steps)):,} steps ({share:.0%})"
    clip = result.get("clip")
    told = {
        "peak lr": result.get("lr"),
        "schedule": schedule,
        "optimizer": result.get("optimizer"),
        "clipping": None if clip is None else f"{clip:g}, by {result.get('clip_algorithm')}",
        "precision": result.get("precision"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _how_to_train(sweep: SweepDirectory, written: dict[str, Any]) -> list[str]:
    if written:
        return [
            "`flops-fit plan --config THIS_FILE` builds the model and shows its N, steps and cost; `flops-fit fit"
            " --config THIS_FILE` trains it, with the same batch, rate, schedule and evaluation as the sweep."
            f" `flops-fit validate {sweep.path} --compute C` does that in the sweep's own folder and compares.",
            "Modules that it names are looked for in this file's folder and in the working directory.",
        ]
    return [
        "The sweep was trained from Python: these are arguments of flops_fit.find_optimal, classes and functions by"
        " their names; anything that you passed besides stays as it was."
    ]


def _of_size(known: Mapping[int, float], size: int, N: float, best: Prediction, *, is_table: bool) -> list[str]:
    assert best.num_params is not None
    off = N / best.num_params - 1
    if is_table:
        largest, smallest = max(known.values()), min(known.values())
        if not smallest <= best.num_params <= largest:
            return [
                f"The sweep's table of sizes ends at {format_count(largest if off < 0 else smallest)}: this row is the"
                f" nearest, and {abs(off):.0%} off the optimum. Put a row of the right size under `sizes`."
            ]
    found = [f"The nearest size that can be built is {off:+.0%} off the optimum."] if abs(off) > 0.02 else []
    if size not in known:
        ends = f"{format_count(min(known.values()))} to {format_count(max(known.values()))}"
        where = "between sizes that were" if min(known) < size < max(known) else "extrapolated from those that were"
        found.append(f"N of this size was not counted: it is estimated, {where} ({ends}). Check it before paying.")
    return found


def _beyond_the_recipe(
    known: Mapping[int, float], size: int, num_tokens: float, result: Mapping[str, Any]
) -> list[str]:
    found = []
    if result and size > max(known):
        found.append(
            f"Batch and peak rate are the sweep's, whose largest size was {max(known)}. Whether they suit this size"
            " the law does not say: a rate transfers only under a parametrisation made for that, and larger runs"
            " usually bear a larger batch."
        )
    epochs = result.get("epochs")
    if epochs:
        passes = num_tokens * epochs / result["num_tokens"]
        if passes > 1:
            worth = ", for which data are worth less than new ones" if passes > _MOST_EPOCHS else ""
            found.append(f"The training data is seen {passes:.3g} times{worth}; the forecast takes every token as new.")
    return found


def _told(analysis: ScalingAnalysis, best: Prediction) -> list[str]:
    """What the prediction, then the analysis, warns of."""
    beyond = best.extrapolation
    said = [f"This is {beyond:.3g} times the largest budget that was trained."] if beyond > 1.01 else []
    # What planning advised is about the sweep that was, not about this run.
    texts = [w.message for w in (*best.warnings, *analysis.warnings) if w.code != "plan"]
    return said + [text[:1].upper() + text[1:].rstrip(".") + "." for text in dict.fromkeys(texts)]
