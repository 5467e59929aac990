"""From text to token ids: bytes as they are, or a byte-pair encoding that is trained or given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flops_fit import DataError

Ids = NDArray[np.unsignedinteger[Any]]

_EXTRA = "pip install 'flops-fit[examples]', or take tokenizer='bytes', which needs nothing"


class Tokenizer(Protocol):
    """Turns documents into ids.

    Attributes:
        vocab_size: Ids it may give: 0 to vocab_size - 1.
        separator: The id that ends a document.
    """

    vocab_size: int
    separator: int

    def encode(self, documents: Sequence[str]) -> Iterator[Ids]:
        """The ids of each document, without a separator."""


class ByteTokenizer:
    """A token is a byte of UTF-8; byte 0, which no text has, ends a document."""

    vocab_size = 256
    separator = 0

    def encode(self, documents: Sequence[str]) -> Iterator[Ids]:
        """The bytes of each document."""
        for document in documents:
            yield np.frombuffer(document.encode(), dtype=np.uint8)


class SubwordTokenizer:
    """A tokenizer of the package ``tokenizers``.

    Args:
        tokenizer: A ``tokenizers.Tokenizer``.
        separator: Its token that ends a document.
        where: What it is, for messages.

    Raises:
        DataError: It has no such token.
    """

    def __init__(self, tokenizer: Any, separator: str, where: str) -> None:
        found = tokenizer.token_to_id(separator)
        if found is None:
            special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
            raise DataError(
                f"{where} has no token {separator!r}, which is to end every document",
                hint=f"name one that it has: separator=... ({', '.join(special[:8]) or 'it has no special token'})",
            )
        self._tokenizer = tokenizer
        self.separator = int(found)
        # Ids may have gaps: the largest one decides how many rows an embedding needs.
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, documents: Sequence[str]) -> Iterator[Ids]:
        """The ids of each document; what it adds on its own account, such as a beginning, is left out."""
        for encoding in self._tokenizer.encode_batch(list(documents), add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.uint32)

    def to_json(self) -> str:
        """All of it, as ``tokenizer.json`` holds it."""
        return str(self._tokenizer.to_str(pretty=True))


def given_tokenizer(path: Path, separator: str) -> SubwordTokenizer:
    """A tokenizer from a ``tokenizer.json``.

    Raises:
        DataError: It cannot be read, or has no separator.
    """
    tokenizers = _package()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the tokenizer {path} cannot be read: {error}",
            hint="tokenizer is 'bytes', 'bpe', or the path of a tokenizer.json",
        ) from None
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing more special
        raise DataError(f"{path} is no tokenizer.json of the package tokenizers: {error}") from None
    return SubwordTokenizer(tokenizer, separator, str(path))


def trained_tokenizer(documents: Iterable[str], vocab_size: int, separator: str) -> SubwordTokenizer:
    """Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over bytes, as GPT-2's, so that no text is unknown.

    Raises:
        DataError: The vocabulary has no room for the bytes.
    """
    tokenizers = _package()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise DataError(
            f"vocab_size={vocab_size} of a byte-pair encoding must be larger than {len(alphabet)}: every byte and the"
            " separator are tokens of it",
            hint="take 1024 or more, or tokenizer='bytes'",
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[separator], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return SubwordTokenizer(tokenizer, separator, "the byte-pair encoding")


def _package() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            "a byte-pair encoding needs the package tokenizers, which is not installed", hint=_EXTRA
        ) from None
    return tokenizers
