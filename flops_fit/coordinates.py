"""The coordinate check of a sweep, or of any model class: does one learning rate serve all its widths?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flops_fit.errors import FlopsFitError, PlanError
from flops_fit.plan.count import constructor
from flops_fit.shapes import Shapes, shapes_of
from flops_fit.train.coordinates import measure, parameter_shapes, sets_own_rates
from flops_fit.train.module import ScalingModule, check_loss
from flops_fit.train.recipe import PythonRecipe
from flops_fit.transfer import TOLERANCE, CoordinateCheck, why_no_widths, width_ratio

if TYPE_CHECKING:
    from torch import nn

    from flops_fit.study import Study
    from flops_fit.train.recipe import Recipe

STEPS = 4
SEEDS = (0, 1, 2)
NUM_SIZES = 4
# Slopes over less are told by the noise of single layers.
_LEAST_SPAN = 4.0
_GPU = ("auto", "gpu", "cuda")


def coordinate_check(
    model_cls: Callable[..., nn.Module],
    size_param: str,
    model_kwargs: dict[str, Any] | None = None,
    *,
    sizes: Sequence[int] | Sequence[Mapping[str, Any]],
    dataset: Any,
    loss_fn: Callable[..., Any] | None = None,
    lr: float,
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    module_cls: type[ScalingModule] | None = None,
    steps: int = STEPS,
    seeds: Sequence[int] = SEEDS,
    tolerance: float = TOLERANCE,
    accelerator: str = "cpu",
) -> CoordinateCheck:
    """Whether a few steps move every part of a network by as much at any width, as one learning rate for all needs.

    ``flops_fit.report.plot_coordinates`` draws what it returns, ``coordinate_table`` writes it.

    Args:
        model_cls: Class or factory function of an ``nn.Module``, its ``param_groups(lr)`` among what is checked.
        size_param: The argument of it that sets its width.
        model_kwargs: Other arguments of the model.
        sizes: At least four widths, best over a factor of eight: values of the size parameter, or rows of arguments.
        dataset: As ``find_optimal`` takes it.
        loss_fn: ``(outputs, targets) -> scalar``.
        lr: Peak learning rate.
        batch_size: Samples a step; the loader's own, or 16.
        weight_decay: AdamW's.
        module_cls: A subclass of ``ScalingModule`` to train with.
        steps: Optimiser steps.
        seeds: Every size is started from each.
        tolerance: Powers of the width up to here, either way, pass.
        accelerator: "cpu", or "gpu" where there is one.

    Raises:
        PlanError: A model cannot be built or trained, or there are too few sizes.
        DataError: The data is not what a model can be trained on.
    """
    if loss_fn is not None:
        check_loss(loss_fn)
    shapes = shapes_of(size_param, sizes)
    constructor(model_cls, shapes, model_kwargs or {})
    recipe = PythonRecipe(
        model_cls=model_cls,
        model_kwargs=dict(model_kwargs or {}),
        loss_fn=loss_fn,
        dataset=dataset,
        batch_size=batch_size,
        module_cls=module_cls or ScalingModule,
        module_kwargs={"lr": lr, "weight_decay": weight_decay},
        trainer_kwargs={"accelerator": accelerator},
    )
    return _checked(
        recipe,
        shapes,
        sorted(shapes.values or ()),
        lr=lr,
        batch_size=batch_size or recipe.data().batch_size or 16,
        steps=steps,
        seeds=seeds,
        tolerance=tolerance,
    )


def check_coordinates(study: Study) -> CoordinateCheck:
    """The coordinate check of a sweep, over widths among its sizes; beyond them where they span too little.

    Raises:
        PlanError: A size cannot be trained.
    """
    plan, config = study.plan, study.config
    shapes = shapes_of(config.size_param, config.sizes, config.width)
    planned = sorted({e.size_param_value: e.num_params for e in plan.experiments}.items(), key=lambda item: item[1])
    module = study.recipe.module()
    assert plan.batch_size is not None
    return _checked(
        study.recipe,
        shapes,
        _chosen([size for size, _ in planned], shapes, module),
        lr=_rate(study, module),
        batch_size=plan.batch_size,
    )


def _rate(study: Study, module: ScalingModule) -> float:
    """The one rate to check: that which is given, or found for the smallest size, or a usual one."""
    smallest = min(study.tried().plan.experiments, key=lambda e: e.num_params)
    return module.lr if smallest.lr is None else smallest.lr


def _chosen(planned: Sequence[int], shapes: Shapes, module: ScalingModule) -> list[int]:
    """Four of the planned sizes, evenly over their widths; twice the largest and so on where they are too few."""
    sizes = list(planned)
    found = [parameter_shapes(module, shapes.arguments(size)) for size in sizes]
    if shapes.table is None and why_no_widths([found[0], found[-1]] if len(found) > 1 else found) is None:
        while len(sizes) < NUM_SIZES or width_ratio(found[0], found[-1]) < _LEAST_SPAN:
            try:
                found.append(parameter_shapes(module, shapes.arguments(2 * sizes[-1])))
            except Exception:  # the model's: it has no such size
                break
            sizes.append(2 * sizes[-1])
    logs = np.log([width_ratio(found[0], other) for other in found])
    wanted = np.linspace(logs[0], logs[-1], NUM_SIZES)
    chosen = {int(np.abs(logs - w).argmin()) for w in wanted}
    return [size for i, size in enumerate(sizes) if i in chosen]


def _checked(
    recipe: Recipe,
    shapes: Shapes,
    sizes: Sequence[int],
    *,
    lr: float,
    batch_size: int,
    steps: int = STEPS,
    seeds: Sequence[int] = SEEDS,
    tolerance: float = TOLERANCE,
) -> CoordinateCheck:
    if not 0 < tolerance or steps < 1 or not seeds:
        raise PlanError(f"tolerance={tolerance} and steps={steps} must be positive, and seeds={seeds!r} not empty")
    arguments = [shapes.arguments(size) for size in sizes]
    found = [parameter_shapes(recipe.module(), size) for size in arguments]
    reason = why_no_widths(found)
    if reason is None and len(sizes) < NUM_SIZES:
        reason = f"it takes {NUM_SIZES} widths, and there are {len(sizes)}"
    check = CoordinateCheck(
        size_param=shapes.size_param,
        sizes=tuple(sizes),
        widths=tuple(width_ratio(found[0], other) for other in found),
        lr=lr,
        steps=steps,
        seeds=tuple(seeds),
        tolerance=tolerance,
        has_own_rates=sets_own_rates(recipe.module(), arguments[0], arguments[-1]),
        not_applicable=reason,
    )
    if reason is not None:
        return check
    try:
        coordinates = measure(
            recipe.module,
            recipe.data(),
            arguments,
            found,
            lr=lr,
            batch_size=batch_size,
            steps=steps,
            seeds=seeds,
            device=_device(recipe.trainer().get("accelerator")),
        )
    except FlopsFitError:
        raise
    except Exception as error:  # the model's, the loss's or the data's
        name = type(error).__name__
        raise PlanError(
            f"coordinate check of {shapes.size_param} {sizes[0]} to {sizes[-1]}: {name}: {error}"
        ) from error
    return dataclasses.replace(check, coordinates=tuple(coordinates))


def _device(accelerator: Any) -> torch.device:
    """Where runs will be trained, if this machine has that."""
    return torch.device("cuda" if accelerator in _GPU and torch.cuda.is_available() else "cpu")
