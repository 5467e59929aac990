"""Micro-batches that fit into memory: how many a step is cut into, remembered with the run."""

from __future__ import annotations

from contextlib import suppress

from flops_fit.errors import DataError, RunError
from flops_fit.runs.directory import RunDirectory
from flops_fit.runs.files import read_json, write_json


class MicroBatches:
    """How many micro-batches each process cuts its part of a step into; never fewer than once were needed.

    Args:
        run: The run, in whose directory that is remembered.
        batch: Global batch [samples].
        world: Processes that train the run.
        accumulate: What the user asked for.

    Attributes:
        accumulate: Micro-batches a step and process.
    """

    def __init__(self, run: RunDirectory, batch: int, world: int, accumulate: int) -> None:
        self.batch, self.world = batch, world
        self._run, self._file = run, run.path / "micro_batches.json"
        self.accumulate = max(accumulate, self._remembered())

    @property
    def size(self) -> int:
        """Samples in a micro-batch."""
        return self.batch // (self.world * self.accumulate)

    def halve(self) -> None:
        """Make them half as large.

        Raises:
            RunError: They cannot be halved.
        """
        if self.size % 2:
            raise RunError(
                f"{self._run.run_id}: out of memory with a micro-batch of {self.size} samples, which cannot be halved",
                hint="train on a larger or on several devices, or leave this size out",
            )
        self.accumulate *= 2
        write_json(self._file, {"accumulate": self.accumulate})

    def are_too_large(self) -> bool:
        """Whether another process of the run has found that they must be smaller."""
        return self._remembered() > self.accumulate

    def _remembered(self) -> int:
        with suppress(DataError, ValueError):
            if self._file.exists():
                return int(read_json(self._file).get("accumulate", 1))
        return 1
