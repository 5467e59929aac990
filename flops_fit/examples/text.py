"""Real text that every machine with Python already has: the standard library's own sources, as bytes."""

from __future__ import annotations

import hashlib
import logging
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

logger = logging.getLogger(__name__)

# Tests, tables and bundled copies: not present, or not the same, on every platform.
_SKIPPED = frozenset(
    "site-packages dist-packages __pycache__ test tests idlelib idle_test lib2to3 ensurepip encodings pydoc_data"
    " turtledemo".split()
)
_VALIDATION_SHARE = 16  # one file in so many


def _sources(root: Path) -> Iterator[tuple[str, bytes]]:
    """(relative name, content) of every .py file, in an order that is the same everywhere."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if s not in _SKIPPED and not s.startswith("config-"))
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path.read_bytes()


@cache
def stdlib_bytes() -> tuple[Tensor, Tensor, str]:
    """The corpus as (train, validation) uint8 tensors and its SHA-256; whole files, split by a hash of their path."""
    parts: dict[bool, bytearray] = {False: bytearray(), True: bytearray()}
    for name, content in _sources(Path(sysconfig.get_paths()["stdlib"])):
        held_out = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % _VALIDATION_SHARE == 0
        parts[held_out] += content + b"\0"
    digest = hashlib.sha256(parts[False] + parts[True]).hexdigest()
    train, validation = (torch.frombuffer(parts[held_out], dtype=torch.uint8) for held_out in (False, True))
    logger.info("text: %d training bytes, %d validation bytes, sha256 %s", len(train), len(validation), digest[:12])
    return train, validation, digest


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of ``seq_len`` tokens and the tokens that follow each of them.

    Args:
        tokens: Token ids, one dimension.
        seq_len: Length of a window.
        count: Take so many, evenly spaced; None for all, end to end.
    """

    def __init__(self, tokens: Tensor, seq_len: int, count: int | None = None) -> None:
        self.tokens, self.seq_len = tokens, seq_len
        available = (len(tokens) - 1) // seq_len
        self.starts = torch.arange(available) * seq_len
        if count is not None and count < available:
            self.starts = torch.linspace(0, len(tokens) - seq_len - 2, count, dtype=torch.float64).long()
        self._offsets = torch.arange(seq_len + 1)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        window = self.tokens[start : start + self.seq_len + 1].long()
        return window[:-1], window[1:]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A whole batch in one gather: the loader's own fast path."""
        windows = self.tokens[self.starts[indices][:, None] + self._offsets].long()
        return [(window[:-1], window[1:]) for window in windows]


class StdlibText(pl.LightningDataModule):
    """Bytes of the Python standard library: about 8 MB to train on, a fixed evenly spaced set to evaluate on.

    The corpus differs between Python versions, and so do the constants of a law fitted to it.

    Args:
        seq_len: Bytes a window.
        batch_size: Windows an optimiser step, over all devices.
        val_windows: Windows in the validation set.

    Attributes:
        bytes_per_token: A token is a byte.
    """

    bytes_per_token = 1.0

    def __init__(self, seq_len: int = 64, batch_size: int = 4, val_windows: int = 512) -> None:
        super().__init__()
        self.seq_len, self.batch_size, self.val_windows = seq_len, batch_size, val_windows

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the corpus."""
        return stdlib_bytes()[2]

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Windows end to end, to be shuffled."""
        return DataLoader(Windows(stdlib_bytes()[0], self.seq_len), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The same windows for every run."""
        windows = Windows(stdlib_bytes()[1], self.seq_len, count=self.val_windows)
        return DataLoader(windows, batch_size=64)
