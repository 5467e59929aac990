"""What a plan costs in time, memory and money: numbers in, numbers out."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flops_fit.errors import PlanError
from flops_fit.experiment import Experiment, SweepPlan

# What the estimate of memory leaves out, for whoever reads it.
MEMORY_IS_WITHOUT = "activations, the batch, and what torch itself takes"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeTiming:
    """What was measured of one size.

    Attributes:
        step_seconds: Of one optimiser step, beside the other runs that are trained at the same time.
        other_seconds: Of a whole run beyond its steps: start, building, evaluation, its last checkpoint and record.
        memory_bytes: The most it took, of a GPU's memory or else of the main memory; None where that is not known.
    """

    step_seconds: float
    other_seconds: float
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCost:
    """What one run will cost.

    Attributes:
        experiment_id: The run.
        deviation: Its FLOPs over its budget, less one: whole batches do not hit a budget exactly.
        seconds: From its start to its result.
        memory_bytes: That it needs on each device.
        epochs: Passes over the training data; None where their length is not known.
        lr: Its highest peak learning rate; None where that is not known.
    """

    experiment_id: str
    deviation: float
    seconds: float
    memory_bytes: int
    epochs: float | None = None
    lr: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """How a sweep will be trained.

    Attributes:
        jobs: Runs at a time.
        devices: Devices that train one run.
        price_per_hour: Of one device; None where nobody asked.
        samples_in_pass: Training samples; None where they have no end.
        lr: From size to the highest peak learning rate.
        seconds_around: Before the first run starts and after the last has ended: planning, start-up, fits, report.
    """

    jobs: int = 1
    devices: int = 1
    price_per_hour: float | None = None
    samples_in_pass: int | None = None
    lr: Mapping[int, float] | None = None
    seconds_around: float = 0.0

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.devices < 1:
            raise PlanError(f"jobs={self.jobs} and devices={self.devices} must be at least 1")
        if self.price_per_hour is not None and not 0 <= self.price_per_hour < math.inf:
            raise PlanError(f"price_per_hour={self.price_per_hour} must be a number, and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepCost:
    """What a whole sweep will cost.

    Attributes:
        runs: Every run, in the plan's order.
        circumstances: How it will be trained.
        is_measured: Whether time and memory were measured, and not assumed and estimated.
        source: Where the times come from, in words.
        wall_seconds: From the command to the report.
        probe: The runs of a learning-rate probe, which come before the others.
    """

    runs: tuple[RunCost, ...]
    circumstances: Circumstances
    is_measured: bool
    source: str
    wall_seconds: float
    probe: tuple[RunCost, ...] = ()

    @property
    def device_hours(self) -> float:
        """Hours of all devices together while they train [hours]."""
        return math.fsum(run.seconds for run in [*self.runs, *self.probe]) * self.circumstances.devices / 3600

    @property
    def price(self) -> float | None:
        """Of the device-hours; a device that waits for the others' end is not paid for."""
        hourly = self.circumstances.price_per_hour
        return None if hourly is None else hourly * self.device_hours

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as ``plan --json`` prints them."""
        return {
            "runs": [asdict(run) for run in self.runs],
            "probe": [asdict(run) for run in self.probe],
            "jobs": self.circumstances.jobs,
            "devices_per_run": self.circumstances.devices,
            "is_measured": self.is_measured,
            "source": self.source,
            "memory_is_without": None if self.is_measured else MEMORY_IS_WITHOUT,
            "wall_seconds": self.wall_seconds,
            "seconds_around": self.circumstances.seconds_around,
            "device_hours": self.device_hours,
            "price_per_hour": self.circumstances.price_per_hour,
            "price": self.price,
        }


def assumed_cost(
    plan: SweepPlan, circumstances: Circumstances, *, flops_per_second: float, source: str, precision: str
) -> SweepCost:
    """The cost at a rate that somebody has assumed.

    Args:
        plan: The runs.
        circumstances: How they will be trained.
        flops_per_second: That one device sustains [FLOP/s].
        source: Where that rate comes from.
        precision: The Trainer's, which decides how much memory a parameter takes.
    """
    if not 0 < flops_per_second < math.inf:
        raise PlanError(f"a device of {flops_per_second} FLOP/s trains nothing", hint="give a positive number")
    rate = flops_per_second * circumstances.devices
    return _cost(
        plan,
        circumstances,
        seconds=lambda e: e.flops / rate,
        memory=lambda e: memory_estimate(e.num_params_total or e.num_params, precision),
        is_measured=False,
        source=source,
    )


def measured_cost(
    plan: SweepPlan, circumstances: Circumstances, timings: Mapping[int, SizeTiming], *, source: str, precision: str
) -> SweepCost:
    """The cost by what a few steps of every size took.

    Args:
        plan: The runs; their steps must be known.
        circumstances: How they will be trained.
        timings: Of every size in the plan.
        source: Where the timings come from.
        precision: For the memory of sizes of which it was not measured.
    """

    def seconds(e: Experiment) -> float:
        assert e.steps is not None
        timing = timings[e.size_param_value]
        return timing.other_seconds + e.steps * timing.step_seconds

    def memory(e: Experiment) -> int:
        known = timings[e.size_param_value].memory_bytes
        return known or memory_estimate(e.num_params_total or e.num_params, precision)

    return _cost(plan, circumstances, seconds=seconds, memory=memory, is_measured=True, source=source)


def _cost(
    plan: SweepPlan,
    circumstances: Circumstances,
    *,
    seconds: Callable[[Experiment], float],
    memory: Callable[[Experiment], int],
    is_measured: bool,
    source: str,
) -> SweepCost:
    in_pass, lr = circumstances.samples_in_pass, circumstances.lr or {}

    def cost(e: Experiment, lr: float | None) -> RunCost:
        return RunCost(
            experiment_id=e.experiment_id,
            deviation=e.flops / e.compute_budget - 1,
            seconds=seconds(e),
            memory_bytes=memory(e),
            epochs=e.num_tokens / (plan.tokens_per_sample * in_pass) if in_pass else None,
            lr=lr,
        )

    runs = tuple(cost(e, lr.get(e.size_param_value)) for e in plan.experiments)
    probe = tuple(cost(e, e.lr) for e in plan.probe)
    # A sweep starts the run of the most FLOPs first, whatever its time turns out to be.
    order = sorted(range(len(runs)), key=lambda i: -plan.experiments[i].flops)
    trained = packed([runs[i].seconds for i in order], circumstances.jobs)
    trained += packed(sorted((run.seconds for run in probe), reverse=True), circumstances.jobs)
    return SweepCost(
        runs=runs,
        circumstances=circumstances,
        is_measured=is_measured,
        source=source,
        wall_seconds=trained + circumstances.seconds_around,
        probe=probe,
    )


def packed(seconds: Sequence[float], jobs: int) -> float:
    """When the last of these runs ends, each started in its turn as soon as one of ``jobs`` places is free."""
    ends = [0.0] * min(jobs, max(1, len(seconds)))
    for length in seconds:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def memory_estimate(num_params: int, precision: str) -> int:
    """Weights, gradients and AdamW's two moments [bytes]; ``MEMORY_IS_WITHOUT`` says what else there is.

    With mixed precision all four are kept in 32 bits; ``bf16-true`` and the like keep them in their own.
    """
    width = 4
    if precision.startswith("64"):
        width = 8
    elif precision in ("bf16-true", "16-true", "bf16-full"):
        width = 2
    return 4 * width * num_params
