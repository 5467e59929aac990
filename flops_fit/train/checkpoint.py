"""Checkpoints that are whole or absent, load without unpickling code, and bring every random state back."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from flops_fit.runs.directory import RunDirectory
from flops_fit.runs.files import replacing, sync

# What a user's module may have put there (save_hyperparameters) need not be plain values, and is not needed here.
_DROPPED = ("hyper_parameters", "hparams_name", "datamodule_hyper_parameters", "datamodule_hparams_name")


# At the end of a checkpoint, as the comment of its zip archive: the checksum of all that stands before it. Those of the
# archive itself leave its directory out, where a flipped bit can change what is loaded.
_SEAL = b"flops-fit crc32 "
_SEAL_BYTES = len(_SEAL) + 8
_CHUNK = 1 << 20


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, and keeps the previous file; Lightning's own staging is not atomic.

    Args:
        logs: Files that must be on the disk before a checkpoint that counts on their rows.
    """

    def __init__(self, *logs: Path) -> None:
        super().__init__()
        self._logs = logs
        self._whole: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write ``checkpoint`` to ``path``; what was there becomes ``previous.ckpt``.

        At any moment one of the two holds a whole checkpoint: a file that this object has neither written nor loaded
        may be damaged, and does not push out the previous one.

        Raises:
            RunError: The disk does not take it; the old files are still there.
        """
        path = Path(path)
        for log in self._logs:
            sync(log)
        previous = path.with_name("previous.ckpt") if path in self._whole else None
        _write({k: v for k, v in checkpoint.items() if k not in _DROPPED}, path, previous)
        self._whole.add(path)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load, and remember that the file is whole."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        self._whole.add(Path(path))
        return checkpoint


def usable_checkpoint(run: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, None where there is none, and what had to be passed over."""
    damaged: list[str] = []
    for path in (run.checkpoint, run.previous_checkpoint):
        if not path.exists():
            continue
        problem = _damage(path)
        if problem is None:
            return path, [f"{'; '.join(damaged)}; went on from {path.name}"] if damaged else []
        damaged.append(f"{path.name} is damaged ({problem})")
    return None, [f"{'; '.join(damaged)}; started again from the beginning"] if damaged else []


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as plain values and tensors on the CPU, which are read from the disk when they are used."""
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint


def drop_optimizer_state(path: Path) -> None:
    """Keep the weights of a finished run and let go of what only a resume needs."""
    checkpoint = load_checkpoint(path)
    for key in ("optimizer_states", "lr_schedulers", "loops", "callbacks"):
        checkpoint.pop(key, None)
    _write(checkpoint, path)


def _write(checkpoint: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    with replacing(path, previous=previous) as file:
        torch.save(checkpoint, file)
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _SEAL_BYTES))  # a zip archive ends in the length of its comment, and the comment
        file.seek(0)
        checksum = _checksum(file, os.fstat(file.fileno()).st_size)
        file.seek(0, os.SEEK_END)
        file.write(_SEAL + b"%08x" % checksum)


def _checksum(file: BinaryIO, size: int) -> int:
    checksum = 0
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        checksum, size = zlib.crc32(chunk, checksum), size - len(chunk)
    return checksum


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file: cut short, emptied, or changed since it was written."""
    if path.is_dir():  # of a sharded strategy, which writes its own
        return None
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - _SEAL_BYTES
            checksum = _checksum(file, size)
            seal = file.read()
    except OSError as error:
        return str(error.strerror)
    if not seal.startswith(_SEAL):
        return "cut short or overwritten"
    return None if seal == _SEAL + b"%08x" % checksum else "its checksum is not that of what was written"


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, as plain values and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    states = {
        "python": [version, list(internal), gauss_next],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """The inverse of ``random_states``."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
