"""Token ids in binary files, memory-mapped, as data for a sweep.

Two forms are known by themselves. Bare: nothing but ids, little-endian, two bytes each, as nanoGPT's ``prepare.py``
writes ``train.bin`` and ``val.bin``. With a header: 256 little-endian int32 (magic number, version 1, count of tokens,
bytes per token), then the ids; magic 20240520 as llm.c and modded-nanogpt write GPT-2 tokens, in two bytes, and
278895051, whose fourth word says two or four (documented on NVIDIA NeMo AutoModel's page "nanogpt_dataset").
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flops_fit.errors import DataError

TokenType = Literal["uint16", "uint32"]
WindowOrder = Literal["contiguous", "random"]
MAGICS = (20240520, 278895051)

_HEADER_BYTES = 256 * 4
_VERSION = 1
# Enough of a file to tell it from another one: so many places, so many tokens at each.
_PLACES, _AT_EACH = 16, 2**13
# Of larger files, a sample is looked at for the largest id [tokens].
_LOOKED_AT = 2**28
_EVALUATED_AT_ONCE = 2**13


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """A file of token ids.

    Attributes:
        path: Where it is.
        offset: Where its ids begin [bytes].
        count: Ids in it.
        token_type: How each is written.
    """

    path: Path
    offset: int
    count: int
    token_type: TokenType

    def tokens(self) -> NDArray[np.unsignedinteger]:
        """The ids, memory-mapped."""
        dtype = np.dtype(self.token_type).newbyteorder("<")
        return np.memmap(self.path, dtype=dtype, mode="r", offset=self.offset, shape=(self.count,))


def open_token_file(path: Path, token_type: TokenType = "uint16") -> TokenFile:
    """What a file holds, by its header or, without one, by its size.

    Args:
        path: The file.
        token_type: How ids are written where no header says it.

    Raises:
        DataError: It cannot be read, is empty, or is not of the size that its form asks for.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = np.frombuffer(file.read(_HEADER_BYTES), dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint="check the path and its permissions") from None
    if not size:
        raise DataError(f"{path} is empty", hint="write the tokens again: a copy or a download was cut short")
    words = head[:16].view("<i4") if len(head) == _HEADER_BYTES else np.zeros(4, np.int32)
    if words[0] in MAGICS:
        return _with_header(path, size, *(int(word) for word in words))
    width = np.dtype(token_type).itemsize
    if size % width:
        raise DataError(
            f"{path} has {size:,} bytes, which are no whole number of {token_type} tokens, and it begins with none of"
            f" the headers that are known (magic {' or '.join(map(str, MAGICS))})",
            hint="the file is cut short or is no file of tokens; token_type says how ids without a header are written",
        )
    return TokenFile(path=path, offset=0, count=size // width, token_type=token_type)


def _with_header(path: Path, size: int, magic: int, version: int, count: int, width: int) -> TokenFile:
    if version != _VERSION:
        raise DataError(f"{path} has a header of version {version}; only version {_VERSION} is known")
    width = 2 if magic == MAGICS[0] and not width else width
    if width not in (2, 4):
        raise DataError(f"{path}: its header says {width} bytes a token; 2 and 4 are known")
    held = (size - _HEADER_BYTES) / width
    if count < 1 or held != count:
        raise DataError(
            f"{path}: its header counts {count:,} tokens of {width} bytes, and the file holds {held:,.6g}",
            hint="the file is cut short or was not finished: copy, download or write it again",
        )
    return TokenFile(path=path, offset=_HEADER_BYTES, count=count, token_type="uint16" if width == 2 else "uint32")


def open_token_files(
    where: str | Path | Sequence[str | Path], what: str, token_type: TokenType = "uint16"
) -> list[TokenFile]:
    """The files that a path, a glob pattern, or several of them name; sorted within each.

    Raises:
        DataError: Nothing is there, or a file is not whole; every broken file is named.
    """
    paths: list[Path] = []
    for pattern in [where] if isinstance(where, (str, Path)) else where:
        # A path may hold characters that a pattern would read otherwise.
        whole = Path(pattern).expanduser()
        found = [whole] if whole.is_file() else [Path(p) for p in sorted(glob.glob(str(whole))) if Path(p).is_file()]
        if not found:
            raise DataError(
                f"{what}: there is no file {whole} (in {Path.cwd()})",
                hint="give the path of a file of tokens, a pattern such as data/train_*.bin, or a list of them",
            )
        paths += found
    if not paths:
        raise DataError(f"{what}: no file is named", hint="give at least one path")
    files, problems = [], []
    for path in dict.fromkeys(paths):
        try:
            files.append(open_token_file(path, token_type))
        except DataError as error:
            problems.append(error)
    if problems:
        raise DataError(f"{what}: " + "; ".join(e.problem for e in problems[:5]), hint=problems[0].hint)
    return files


class TokenWindows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of ``seq_len`` tokens, each with the tokens that follow every one of them: (inputs, targets), int64.

    A window is a function of its index alone, and none reaches from one file into the next.

    Args:
        files: Where the tokens are.
        seq_len: Tokens in a window.
        count: Take so many, evenly spaced; None for all.
        seed: None for windows that lie end to end; a seed for windows that begin anywhere, as many as would lie end
            to end.
    """

    def __init__(
        self, files: Sequence[TokenFile], seq_len: int, *, count: int | None = None, seed: int | None = None
    ) -> None:
        self.seq_len = seq_len
        self._files = [file for file in files if file.count > seq_len]
        self._mapped: list[NDArray[np.unsignedinteger] | None] = [None] * len(self._files)
        fits = np.array([(file.count - 1) // seq_len for file in self._files], dtype=np.int64)
        available = int(fits.sum())
        self._length = available if count is None else min(count, available)
        self._available, self._spread = available, self._length < available
        self._starts: NDArray[np.int64] | None = None
        if seed is None:
            self._ends = np.cumsum(fits)
        else:
            self._ends = np.cumsum([file.count - seq_len for file in self._files])
            if available:
                self._starts = np.random.default_rng(seed).integers(self._ends[-1], size=available)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self._length:
            raise IndexError(f"window {index} of {self._length}")
        if self._spread:
            index = index * self._available // self._length
        place = index if self._starts is None else int(self._starts[index])
        i = int(np.searchsorted(self._ends, place, side="right"))
        start = place - (int(self._ends[i - 1]) if i else 0)
        start *= self.seq_len if self._starts is None else 1
        window = torch.from_numpy(self._tokens(i)[start : start + self.seq_len + 1].astype(np.int64))
        return window[:-1], window[1:]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """A whole batch: the loader's own fast path."""
        return [self[i] for i in indices]

    def _tokens(self, i: int) -> NDArray[np.unsignedinteger]:
        mapped = self._mapped[i]
        if mapped is None:  # only when it is read, in whichever process that is
            mapped = self._mapped[i] = self._files[i].tokens()
        return mapped


class TokenBin(pl.LightningDataModule):
    """Tokenised text in memory-mapped ``.bin`` files.

    Targets are the inputs shifted by one; every token counts, so padding must not be in the files. The order in which
    windows are trained on is the sweep's, as for any data set with a length, so that a resumed run goes on exactly.

    Args:
        train: Training file, glob pattern, or several of them.
        val: Validation files likewise.
        seq_len: Tokens in a window.
        batch_size: Windows an optimiser step, over all devices.
        val_windows: Windows evaluated on, evenly spaced; None for all.
        order: Training windows that lie end to end, or that begin anywhere.
        token_type: How ids are written in files without a header.
        bytes_per_token: Bytes of text that a token of the validation files stands for on average, where known:
            gives bits per byte.

    Raises:
        DataError: An option is out of range. Files are looked at when the sweep is planned.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str],
        seq_len: int = 1024,
        batch_size: int = 8,
        val_windows: int | None = 512,
        order: WindowOrder = "contiguous",
        token_type: TokenType = "uint16",
        bytes_per_token: float | None = None,
    ) -> None:
        super().__init__()
        numbers = {"seq_len": seq_len, "batch_size": batch_size, "val_windows": val_windows or 1}
        bad = [f"{k}={v}" for k, v in numbers.items() if v < 1]
        if bad:
            raise DataError(f"{', '.join(bad)} must be positive")
        for name, value, known in (("order", order, WindowOrder), ("token_type", token_type, TokenType)):
            if value not in get_args(known):
                raise DataError(f"{name}={value!r} is none of {', '.join(get_args(known))}")
        self.train, self.val = train, val
        self.seq_len, self.batch_size, self.val_windows = seq_len, batch_size, val_windows
        self.order, self.token_type, self.bytes_per_token = order, token_type, bytes_per_token

    @cached_property
    def train_files(self) -> list[TokenFile]:
        """The training files."""
        return open_token_files(self.train, "training tokens", self.token_type)

    @cached_property
    def val_files(self) -> list[TokenFile]:
        """The validation files, none of which is a training file."""
        files = open_token_files(self.val, "validation tokens", self.token_type)
        shared = {file.path.resolve() for file in files} & {file.path.resolve() for file in self.train_files}
        if shared:
            raise DataError(
                f"{', '.join(sorted(map(str, shared)))} is both trained and evaluated on",
                hint="name other files in val, or a pattern in train that leaves them out",
            )
        return files

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the files' lengths, of their tokens at many places, and of how windows are cut."""
        settings = (self.seq_len, self.val_windows, self.order)
        digest = hashlib.sha256(repr(settings).encode())
        for files in (self.train_files, self.val_files):
            for file in files:
                digest.update(f"{file.count} {file.token_type};".encode())
                for tokens in _sampled(file, _PLACES, _AT_EACH):
                    digest.update(tokens.tobytes())
            digest.update(b"|")
        return digest.hexdigest()

    @cached_property
    def max_token_id(self) -> int:
        """The largest id; of very large files, the largest in an evenly spaced sample."""
        files = [*self.train_files, *self.val_files]
        share = min(1.0, _LOOKED_AT / sum(file.count for file in files))
        at_each = 2**20
        largest = 0
        for file in files:
            places = max(1, round(share * file.count / at_each)) if share < 1 else -(-file.count // at_each)
            for tokens in _sampled(file, places, at_each):
                largest = max(largest, int(tokens.max()))
        return largest

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Windows to be shuffled."""
        seed = 0 if self.order == "random" else None
        windows = TokenWindows(self.train_files, self.seq_len, seed=seed)
        return DataLoader(self._checked(windows, self.train_files, "training"), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The same windows for every run."""
        windows = TokenWindows(self.val_files, self.seq_len, count=self.val_windows)
        at_once = max(1, _EVALUATED_AT_ONCE // self.seq_len)
        return DataLoader(self._checked(windows, self.val_files, "validation"), batch_size=at_once)

    def _checked(self, windows: TokenWindows, files: Sequence[TokenFile], what: str) -> TokenWindows:
        if not len(windows):
            longest = max(file.count for file in files)
            raise DataError(
                f"the {what} tokens are too few for one window: {longest:,} in the longest file, and seq_len="
                f"{self.seq_len:,} needs {self.seq_len + 1:,}",
                hint="lower seq_len, or bring more data",
            )
        return windows


def _sampled(file: TokenFile, places: int, at_each: int) -> Iterator[NDArray[np.unsignedinteger]]:
    """Stretches of a file, evenly spaced; all of it where they would overlap."""
    tokens = file.tokens()
    if places * at_each >= file.count:
        places, at_each = -(-file.count // at_each), at_each
        starts = np.arange(places) * at_each
    else:
        starts = np.linspace(0, file.count - at_each, places).astype(np.int64)
    for start in starts:
        yield tokens[start : start + at_each]
