"""Any text as data for a sweep: TinyStories from the hub, or files of one's own, tokenised once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from flops_fit import DataError, TokenBin
from flops_fit.examples.documents import hub_documents, input_files, read_documents
from flops_fit.examples.token_cache import TokenCache, token_cache
from flops_fit.examples.tokenizer import ByteTokenizer, Tokenizer, given_tokenizer, trained_tokenizer

_KNOWN = ("bytes", "bpe")


class TokenizedText(TokenBin):
    """Documents, each followed by a separator and packed end to end, so that nothing is padded and every token counts.

    Documents are divided into training and validation by a hash of their text. They are tokenised once, to a cache that
    later runs and other processes map into memory.

    Args:
        path: A text file, a JSONL or parquet file, a folder of such files, or several of these; None for ``dataset``.
        dataset: Name of a data set on the Hugging Face hub, read through the package ``datasets``: TinyStories (Eldan
            and Li 2023, arXiv:2305.07759) where nothing else is said.
        split: Of that data set, in the notation of ``datasets``, such as "train[:10%]".
        field: Of JSONL, parquet and hub data, what holds a document's text.
        separator: What stands between the documents of a text file, and the token that ends a document in a byte-pair
            encoding. A text without any is cut at blank lines into parts of about 16 thousand characters.
        tokenizer: "bytes"; "bpe" for a byte-pair encoding trained on the training documents; or the path of a
            ``tokenizer.json``.
        vocab_size: Of a byte-pair encoding that is trained.
        seq_len: Tokens in a window.
        batch_size: Windows an optimiser step, over all devices.
        val_windows: Windows evaluated on, evenly spaced; None for all.
        validation_share: Of the documents, how many are held out.
        cache_dir: Where tokens are kept; ``flops-fit`` in the user's cache folder when not given.

    Attributes:
        bytes_per_token: Bytes of text that a validation token stands for on average; known once ``setup`` was called.

    Raises:
        DataError: An option is out of range. Texts are read when the sweep is planned.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        dataset: str = "roneneldan/TinyStories",
        split: str = "train",
        field: str = "text",
        separator: str = "<|endoftext|>",
        tokenizer: str = "bytes",
        vocab_size: int = 4096,
        seq_len: int = 256,
        batch_size: int = 8,
        val_windows: int | None = 512,
        validation_share: float = 0.05,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__("", "", seq_len=seq_len, batch_size=batch_size, val_windows=val_windows)
        if not 0 < validation_share < 1:
            raise DataError(f"validation_share={validation_share} must lie between 0 and 1")
        if not separator:
            raise DataError("separator='' separates nothing", hint="name what stands between documents")
        self.path, self.dataset, self.split, self.field = path, dataset, split, field
        self.separator, self.tokenizer, self.vocab_size = separator, tokenizer, vocab_size
        self.validation_share, self.cache_dir = validation_share, cache_dir

    @cached_property
    def cache(self) -> TokenCache:
        """The tokens; written at the first use."""
        if self.cache_dir is None:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flops-fit" / "tokens"
        else:
            root = Path(self.cache_dir).expanduser()
        return token_cache(
            root, self._settings, self._documents, self._tokenizer, validation_share=self.validation_share
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all tokens and of how windows are cut."""
        said = (self.cache.train.sha256, self.cache.val.sha256, self.seq_len, self.val_windows)
        return hashlib.sha256(repr(said).encode()).hexdigest()

    @cached_property
    def max_token_id(self) -> int:
        """The largest id."""
        return max(self.cache.train.max_token_id, self.cache.val.max_token_id)

    def prepare_data(self) -> None:
        """Tokenise, where that was not done before."""
        cache = self.cache
        self.train, self.val = str(cache.folder / "train.bin"), str(cache.folder / "val.bin")
        self.token_type = cache.token_type
        self.bytes_per_token = cache.val.num_bytes / cache.val.num_tokens

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """Windows to be shuffled."""
        self.prepare_data()
        return super().train_dataloader()

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        """The same windows for every run."""
        self.prepare_data()
        return super().val_dataloader()

    def _documents(self) -> Iterator[str]:
        if self.path is None:
            return hub_documents(self.dataset, self.split, self.field)
        return read_documents(input_files(self.path), self.field, self.separator)

    def _tokenizer(self, training_documents: Iterable[str]) -> Tokenizer:
        if self.tokenizer == "bytes":
            return ByteTokenizer()
        if self.tokenizer == "bpe":
            return trained_tokenizer(training_documents, self.vocab_size, self.separator)
        return given_tokenizer(Path(self.tokenizer).expanduser(), self.separator)

    def _settings(self) -> dict[str, Any]:
        """What decides the tokens: files by name, length and time of change, data sets by name."""
        if self.path is None:
            texts: Any = {"dataset": self.dataset, "split": self.split, "field": self.field}
        else:
            files = [(path.resolve(), path.stat()) for path in input_files(self.path)]
            texts = [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in files]
        tokenizer: Any = self.tokenizer
        if self.tokenizer == "bpe":
            tokenizer = ["bpe", self.vocab_size]
        elif self.tokenizer not in _KNOWN:
            given = Path(self.tokenizer).expanduser()
            tokenizer = ["given", hashlib.sha256(given.read_bytes()).hexdigest() if given.is_file() else str(given)]
        return {
            "texts": texts,
            "field": self.field,
            "separator": self.separator,
            "tokenizer": tokenizer,
            "validation_share": self.validation_share,
        }
