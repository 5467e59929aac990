"""The text that Slurm is given: options of sbatch, and the script of a task."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from flops_fit.sweep.config import SlurmOptions

# A run is asked to save this long before its time is up [seconds].
NOTICE_SECONDS = 90
_LAST_WRITES_SECONDS = 300
# In full: the last task of an array has the array's own id.
_TASK = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'

_SCRIPT = """\
#!/bin/bash
# One task of a sweep, as submitted by flops-fit:
# {submitted_as}
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {runs_file})
exec >>"${{run:?has no line in the list}}/run.log" 2>&1
cd {working_directory} || exit 1
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"
{setup}
stop() {{
    is_asked=1
    {ask} 2>/dev/null
}}
# USR1: the time is nearly up. TERM: scancel, or a preemption, after which Slurm itself queues the task again.
trap 'is_late=1; stop' USR1
trap stop TERM
{train} &
train=$!
is_asked=1
while [ -n "$is_asked" ]; do # a signal ends the wait before the run has ended
    is_asked=
    wait "$train"
    code=$?
done
# What became of the run is what it says itself: of several tasks, one that ends badly after the save hides its code.
if [ -n "$is_late" ] && grep -q '"state": "interrupted"' "$run/state.json"; then
    scontrol requeue {task}
fi
exit "$code"
"""


def sbatch_options(options: SlurmOptions, *, devices: int, num_nodes: int, gpus: int) -> list[str]:
    """Options of sbatch that do not depend on the run."""
    tasks = devices if num_nodes > 1 else 1
    chosen = [f"--nodes={num_nodes}", f"--ntasks-per-node={tasks}"]
    if options.cpus is not None:
        chosen.append(f"--cpus-per-task={options.cpus * devices // tasks}")
    if gpus:
        chosen.append(f"--gres=gpu:{gpus}")
    if options.partition is not None:
        chosen.append(f"--partition={options.partition}")
    if options.time_limit is not None:
        minutes, seconds = divmod(round(options.time_limit), 60)
        chosen.append(f"--time={minutes}:{seconds:02d}")
    if options.memory is not None:
        chosen.append(f"--mem={options.memory}")
    return [*chosen, "--requeue", "--open-mode=append", f"--signal=B:USR1@{NOTICE_SECONDS}", *options.extra]


def batch_script(
    *,
    runs_file: Path,
    working_directory: Path,
    submitted_as: str,
    options: SlurmOptions,
    num_nodes: int,
) -> str:
    """The script of every task.

    Args:
        runs_file: Folders of the runs, one a line; a task takes the line of its index.
        working_directory: Where the sweep was started; its config may name files from there.
        submitted_as: For the reader.
        options: What a run asks of Slurm.
        num_nodes: Nodes that train one run.
    """
    train = f'{shlex.quote(sys.executable)} -m flops_fit run "$run"'
    if num_nodes > 1:
        # Lightning finds its ranks in what srun sets. To be killed at once by a rank that has ended first would cost
        # the others their last writes; not to be killed at all would leave them waiting for a rank that has died.
        flags = f'--kill-on-bad-exit=0 --wait={_LAST_WRITES_SECONDS} --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}"'
        train = f"srun {flags} {train}"
        # Given to srun, or as TERM, the signal would end the tasks by force.
        ask = f"scancel --signal=INT {_TASK}"
    else:
        ask = 'kill -TERM "$train"'
    return _SCRIPT.format(
        submitted_as=" ".join(submitted_as.splitlines()),
        runs_file=shlex.quote(str(runs_file)),
        working_directory=shlex.quote(str(working_directory)),
        threads=options.cpus or 1,
        setup="\n".join(options.setup),
        ask=ask,
        task=_TASK,
        train=train,
    )
