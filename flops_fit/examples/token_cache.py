"""Documents, tokenised once: memory-mapped training and validation tokens in a folder that is whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from flops_fit import DataError
from flops_fit.examples.tokenizer import Ids, SubwordTokenizer, Tokenizer

logger = logging.getLogger(__name__)

# What is written changes with this.
_VERSION = 1
_AT_ONCE = 1000
# A process that has written nothing for so long is not coming back [seconds].
_ABANDONED = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """Training or validation tokens.

    Attributes:
        documents: Documents in it.
        num_bytes: Of their text, in UTF-8.
        num_tokens: Of theirs, each document's separator among them.
        max_token_id: The largest id.
        sha256: Of the ids as they are written.
    """

    documents: int
    num_bytes: int
    num_tokens: int
    max_token_id: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """Tokens on disk.

    Attributes:
        folder: Where ``train.bin`` and ``val.bin`` are.
        token_type: How an id is written: uint16 or uint32, little-endian.
        vocab_size: Ids the tokenizer may give.
        train: What is trained on.
        val: What is held out.
    """

    folder: Path
    token_type: Literal["uint16", "uint32"]
    vocab_size: int
    train: Part
    val: Part


def is_held_out(document: str, share: float) -> bool:
    """Whether a document is validation data: a function of its text, so that no copy of it is on the other side."""
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def token_cache(
    root: Path,
    settings: Callable[[], dict[str, Any]],
    documents: Callable[[], Iterator[str]],
    tokenizer: Callable[[Iterable[str]], Tokenizer],
    *,
    validation_share: float,
) -> TokenCache:
    """The tokens of these documents, from the cache or made now.

    Tokens are written to a folder of their own, which is renamed once it is whole: a process that is killed leaves
    nothing that another one would take for tokens, and of two that write at once one is the first.

    Args:
        root: Folder of all caches.
        settings: What decides the tokens, as plain values; asked for again when they are written.
        documents: Reads all documents, from the first one on.
        tokenizer: The tokenizer, given the training documents, should it be trained on them.
        validation_share: Of the documents, how many are held out.

    Raises:
        DataError: Nothing can be written there, the documents changed meanwhile, or one side has none.
    """
    decided = settings()
    folder = root / _key(decided)
    if not folder.is_dir():
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root)
            made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
        except OSError as error:
            raise _cannot_write(root, error) from None
        try:
            _write(made, decided, documents, tokenizer, validation_share)
            if settings() != decided:
                raise DataError("the texts changed while they were read", hint="start again when they are complete")
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                _rename(made, folder)
        except OSError as error:
            raise _cannot_write(root, error) from None
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return _read(folder)


def _key(settings: dict[str, Any]) -> str:
    text = json.dumps(settings | {"version": _VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rename(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # where it is, another process was the first
            raise


def _remove_abandoned(root: Path) -> None:
    for left in root.glob(".*-*"):
        with contextlib.suppress(OSError):
            newest = max(p.stat().st_mtime for p in (left, *left.iterdir()))
            if newest < time.time() - _ABANDONED:
                shutil.rmtree(left)


def _cannot_write(root: Path, error: OSError) -> DataError:
    return DataError(
        f"tokens cannot be written to {root}: {error.strerror or error}",
        hint="give cache_dir=...: a folder with room for two bytes a token",
    )


def _write(
    folder: Path,
    settings: dict[str, Any],
    documents: Callable[[], Iterator[str]],
    make_tokenizer: Callable[[Iterable[str]], Tokenizer],
    share: float,
) -> None:
    logger.info("tokenising, once, to %s", folder.parent)
    tokenizer = make_tokenizer(d for d in documents() if not is_held_out(d, share))
    token_type = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    dtype = np.dtype(token_type).newbyteorder("<")
    with (folder / "train.bin").open("wb") as train, (folder / "val.bin").open("wb") as val:
        writers = {False: _Writer(train, dtype, tokenizer.separator), True: _Writer(val, dtype, tokenizer.separator)}
        left = iter(documents())
        while some := list(islice(left, _AT_ONCE)):
            for document, ids in zip(some, tokenizer.encode(some), strict=True):
                writers[is_held_out(document, share)].add(document, ids)
        for file in (train, val):
            file.flush()
            os.fsync(file.fileno())
    parts = {name: writers[held_out].part() for name, held_out in (("train", False), ("val", True))}
    if not all(part.documents for part in parts.values()):
        total = sum(part.documents for part in parts.values())
        raise DataError(
            f"of {total} documents, {parts['train'].documents} fall to training and {parts['val'].documents} to"
            f" validation at validation_share={share:g}",
            hint="bring more documents, or another share; long texts are cut into parts at blank lines",
        )
    if isinstance(tokenizer, SubwordTokenizer):
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    about = {"settings": settings, "token_type": token_type, "vocab_size": tokenizer.vocab_size}
    about |= {name: asdict(part) for name, part in parts.items()}
    with (folder / "about.json").open("w", encoding="utf-8") as text:
        json.dump(about, text, indent=1)
        text.flush()
        os.fsync(text.fileno())
    logger.info("tokenised: %s training tokens, %s validation tokens", *(f"{p.num_tokens:,}" for p in parts.values()))


class _Writer:
    """Appends documents to one file, each with its separator."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], separator: int) -> None:
        self._file, self._dtype = file, dtype
        self._separator = np.array([separator], dtype=dtype).tobytes()
        self._largest = separator
        self._documents = self._bytes = self._tokens = 0
        self._digest = hashlib.sha256()

    def add(self, document: str, ids: Ids) -> None:
        written = ids.astype(self._dtype).tobytes() + self._separator
        self._file.write(written)
        self._digest.update(written)
        self._documents += 1
        self._bytes += len(document.encode())
        self._tokens += len(ids) + 1
        self._largest = max(self._largest, int(ids.max(initial=0)))

    def part(self) -> Part:
        return Part(
            documents=self._documents,
            num_bytes=self._bytes,
            num_tokens=self._tokens,
            max_token_id=self._largest,
            sha256=self._digest.hexdigest(),
        )


def _read(folder: Path) -> TokenCache:
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        cache = TokenCache(
            folder=folder,
            token_type=about["token_type"],
            vocab_size=about["vocab_size"],
            train=Part(**about["train"]),
            val=Part(**about["val"]),
        )
        width = np.dtype(cache.token_type).itemsize
        whole = all(
            (folder / f"{name}.bin").stat().st_size == width * part.num_tokens
            for name, part in (("train", cache.train), ("val", cache.val))
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the tokens in {folder} cannot be read: {error}", hint=f"remove {folder}") from None
    if not whole:
        raise DataError(f"the tokens in {folder} are not those that were written", hint=f"remove {folder}")
    return cache
