"""What the runs of a sweep recorded beside their results: training curves, environments, the config."""

from __future__ import annotations

import pandas as pd

from flops_fit.errors import DataError
from flops_fit.runs.directory import RunState, SweepDirectory
from flops_fit.runs.files import read_json

_COLUMNS = ["run_id", "num_params", "num_tokens", "flops", "loss"]


def read_curves(sweep: SweepDirectory) -> pd.DataFrame:
    """Training losses along every completed run, from ``metrics.csv``; a file that cannot be read is passed over.

    Returns:
        run_id, num_params, num_tokens, flops, loss (of a training batch).
    """
    parts = []
    for experiment in sweep.experiments():
        run = sweep.run(experiment.experiment_id)
        if run.state() is not RunState.COMPLETED:
            continue
        try:
            log = pd.read_csv(run.metrics, usecols=["num_tokens", "train_loss"])
        except (OSError, ValueError):
            continue
        log = log[(log["num_tokens"] > 0) & (log["train_loss"] > 0)]
        parts.append(
            pd.DataFrame(
                {
                    "run_id": experiment.experiment_id,
                    "num_params": experiment.num_params,
                    "num_tokens": log["num_tokens"],
                    "flops": log["num_tokens"] * experiment.flops_per_token,
                    "loss": log["train_loss"],
                }
            )
        )
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)


def read_environments(sweep: SweepDirectory) -> list[dict[str, object]]:
    """What ``env.json`` of every run holds, of those that have one that can be read."""
    found = []
    for experiment in sweep.experiments():
        try:
            found.append(read_json(sweep.run(experiment.experiment_id).path / "env.json"))
        except DataError:
            continue
    return found


def read_config(sweep: SweepDirectory) -> str | None:
    """The text of ``sweep.yaml``; None where there is none, as of sweeps started from Python."""
    try:
        return (sweep.path / "sweep.yaml").read_text(errors="replace")
    except OSError:
        return None
