"""What is kept of an exception that ended a run, and by which two runs are seen to have failed alike."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from flops_fit.errors import FlopsFitError
from flops_fit.runs.files import disk_error

# Frames of these say where a mistake was noticed, not where it was made.
_LIBRARIES = sys.stdlib_module_names | {
    "torch",
    "lightning",
    "pytorch_lightning",
    "torchmetrics",
    "numpy",
    "jsonargparse",
}
# What torch's embedding says of an index that it has no row for.
_NO_ROW = "index out of range in self"
# Full, over quota, read-only, broken, gone: the disk's fault and not the code's.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


def failure_details(error: Exception) -> dict[str, Any]:
    """What ``state.json`` holds of a failure: message, traceback, and cause."""
    message = str(error) if isinstance(error, FlopsFitError) else f"{type(error).__name__}: {error}"
    if isinstance(error, IndexError) and str(error) == _NO_ROW:
        message += " (a token id is not smaller than the model's vocabulary: an embedding has no row for it)"
    trace = "".join(traceback.format_exception(error))
    return {"error": message, "traceback": trace, "cause": cause_of(error)}


def cause_of(error: Exception) -> str | None:
    """The type and place of an exception, the same in every run that fails alike.

    None for what is a run's or the machine's own: memory that was too small for it, a disk that was full.
    """
    disk = disk_error(error)
    if any(map(is_out_of_memory, _causes(error))) or (disk is not None and disk.errno in _DISK):
        return None
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _LIBRARIES
    ]
    file, line = frames[-1] if frames else ("?", 0)
    return f"{type(error).__name__} at {file}:{line}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
