"""The runs table of a sweep: one row a run, rebuilt from the run directories at any time."""

from __future__ import annotations

import pandas as pd

from flops_fit.errors import DataError
from flops_fit.experiment import Experiment
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.files import SCHEMA_VERSION, write_atomic

COLUMNS = (
    "run_id compute_budget size num_params num_params_matmul num_params_total num_params_non_embedding"
    " num_tokens flops unique_tokens loss loss_unit seed state"
).split()


# Of a result, what the table says otherwise, or what says nothing about a run.
_NOT_SHOWN = {"experiment_id", "size_param_value", "schema_version", "metrics_sha256"}


def read_runs(sweep: SweepDirectory) -> pd.DataFrame:
    """All planned runs; ``loss`` is missing where the state is not completed.

    Beside the columns named in ``COLUMNS``: every further validation metric, and whatever single value a run's result
    holds, such as its throughput.

    Raises:
        DataError: A completed run's files are not whole; all such runs are named.
    """
    rows, problems, hints = [], [], []
    unit = sweep.plan.get("unit", "tokens")
    for experiment in sweep.experiments():
        try:
            rows.append(_row(sweep, experiment, unit))
        except DataError as error:
            problems.append(error.problem)
            hints.append(error.hint or "")
    if problems:
        raise DataError("; ".join(problems), hint=hints[0])
    table = pd.DataFrame(rows)
    further = [c for c in table.columns if c not in COLUMNS]
    return table.reindex(columns=[*COLUMNS, *further]).assign(schema_version=SCHEMA_VERSION)


def _row(sweep: SweepDirectory, experiment: Experiment, unit: str) -> dict[str, object]:
    run = sweep.run(experiment.experiment_id)
    state = run.state()
    row: dict[str, object] = {
        "run_id": experiment.experiment_id,
        "compute_budget": experiment.compute_budget,
        "size": experiment.size_param_value,
        "num_params": experiment.num_params,
        "num_params_matmul": experiment.num_params_matmul,
        "num_params_total": experiment.num_params_total,
        "num_params_non_embedding": experiment.num_params_non_embedding,
        "num_tokens": experiment.num_tokens,
        "flops": experiment.flops,
        "loss_unit": f"nats/{unit.removesuffix('s')}",
        "seed": experiment.seed,
        "state": state.value,
    }
    if state is RunState.COMPLETED:
        result = run.result()
        row |= {k: result[k] for k in ("num_tokens", "flops", "unique_tokens", "loss")}
        row |= {k: v for k, v in result["metrics"].items() if k not in row}
        recorded = {k: v for k, v in result.items() if v is None or isinstance(v, (bool, int, float, str))}
        row |= {k: v for k, v in recorded.items() if k not in row and k not in _NOT_SHOWN}
    return row


def write_runs(sweep: SweepDirectory, table: pd.DataFrame) -> None:
    """Write ``runs.csv``, atomically."""
    write_atomic(sweep.path / "runs.csv", table.to_csv(index=False))
