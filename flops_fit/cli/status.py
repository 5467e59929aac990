"""``status``: reads files, nothing else."""

from __future__ import annotations

import json
import socket
from collections import Counter
from pathlib import Path
from typing import Any

from flops_fit.cli.main import GOOD
from flops_fit.cli.words import parser_of
from flops_fit.errors import DataError
from flops_fit.runs.directory import RunDirectory, RunState, SweepDirectory
from flops_fit.sweep.orchestrator import progress


def status(words: list[str]) -> int:
    """Tell the state of every run, and how much of the compute is done."""
    parser = parser_of("status")
    parser.add_argument("directory", help="the sweep's output_dir")
    own = parser.parse_args(words)
    sweep = SweepDirectory(Path(own.directory))
    experiments = sweep.experiments()
    runs = [{"run_id": e.experiment_id, "flops": e.flops} | _of(sweep.run(e.experiment_id)) for e in experiments]
    counts = Counter(str(r["state"]) for r in runs)
    now = progress(sweep, experiments)
    if own.json:
        head = {"schema_version": 1, "counts": counts, "done_flops": now.done_flops, "total_flops": now.total_flops}
        print(json.dumps(head | {"runs": runs}))
        return GOOD
    width = max(len(str(r["run_id"])) for r in runs)
    for row in runs:
        note = str(row["note"]).partition("\n")[0]  # hints and the like are in the state file
        print(f"{row['run_id']:<{width}}  {row['state']:<11}  {note}".rstrip())
    share = now.done_flops / now.total_flops
    print(", ".join(f"{n} {state}" for state, n in counts.items()) + f"; {share:.0%} of the FLOPs done")
    return GOOD


def _of(run: RunDirectory) -> dict[str, Any]:
    """State, loss and a note, which also says what is wrong with the run's files: the others are told all the same."""
    state = run.state()
    if state is RunState.COMPLETED:
        try:
            result = run.result()
        except DataError as error:
            return {"state": state.value, "loss": None, "note": error.problem}
        told = [f"loss {result['loss']:.4f}", *result.get("notes", ())]
        return {"state": state.value, "loss": result["loss"], "note": "; ".join(told)}
    details = run.details()
    told = [str(details["error"])] if details.get("error") else [f"step {details['step']}"] if "step" in details else []
    if state is RunState.RUNNING and details.get("host") != socket.gethostname():
        told.append(f"on {details.get('host')}")
    if state is RunState.INTERRUPTED and not run.is_writable:
        told.append(f"{run.path} cannot be written")
    return {"state": state.value, "loss": None, "note": "; ".join([*told, *run.notes()])}
