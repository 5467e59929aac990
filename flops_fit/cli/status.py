"""``status``: reads files, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flops_fit.cli.main import GOOD
from flops_fit.cli.words import parser_of
from flops_fit.runs.directory import RunDirectory, RunState, SweepDirectory
from flops_fit.sweep.orchestrator import progress


def status(words: list[str]) -> int:
    """Tell the state of every run, and how much of the compute is done."""
    parser = parser_of("status")
    parser.add_argument("directory", help="the sweep's output_dir")
    own = parser.parse_args(words)
    sweep = SweepDirectory(Path(own.directory))
    experiments = sweep.experiments()
    now = progress(sweep, experiments)
    runs = [{"run_id": e.experiment_id, "flops": e.flops} | _of(sweep.run(e.experiment_id)) for e in experiments]
    counts = {state.value: n for state, n in now.counts.items()}
    if own.json:
        head = {"schema_version": 1, "counts": counts, "done_flops": now.done_flops, "total_flops": now.total_flops}
        print(json.dumps(head | {"runs": runs}))
        return GOOD
    width = max(len(str(r["run_id"])) for r in runs)
    for row in runs:
        print(f"{row['run_id']:<{width}}  {row['state']:<11}  {row['note']}".rstrip())
    share = now.done_flops / now.total_flops
    print(", ".join(f"{n} {state}" for state, n in counts.items()) + f"; {share:.0%} of the FLOPs done")
    return GOOD


def _of(run: RunDirectory) -> dict[str, Any]:
    state = run.state()
    if state is RunState.COMPLETED:
        loss = run.result()["loss"]
        return {"state": state.value, "loss": loss, "note": f"loss {loss:.4f}"}
    details = run.details()
    note = details.get("error") or (f"step {details['step']}" if "step" in details else "")
    return {"state": state.value, "loss": None, "note": str(note)}
