"""The standard library as text: the same everywhere, and what is held out is never trained on."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import pytest
import torch

from flops_fit.examples.text import StdlibText, Windows, _sources, stdlib_bytes

TOKENS = torch.arange(1000, dtype=torch.uint8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stdlib")
    for name in ("b.py", "a.py", "json/__init__.py", "test/test_x.py", "json/__pycache__/x.py", "a.txt", "z/y.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "_sysconfigdata_x.py").write_text("differs between machines")
    return root


def test_sources_come_in_one_order_without_what_is_not_everywhere(tree: Path) -> None:
    assert list(_sources(tree)) == [(n, n.encode()) for n in ("a.py", "b.py", "json/__init__.py", "z/y.py")]


def test_the_corpus_is_split_by_whole_files_and_stable() -> None:
    train, validation, digest = stdlib_bytes()
    assert digest == hashlib.sha256(train.numpy().tobytes() + validation.numpy().tobytes()).hexdigest()
    assert StdlibText().fingerprint == digest
    assert 4e6 < len(train) < 2e7
    assert 0.02 < len(validation) / len(train) < 0.12
    files = {content for _, content in _sources(Path(sysconfig.get_paths()["stdlib"])) if len(content) > 500}
    parts = [set(part.numpy().tobytes().split(b"\0")) for part in (train, validation)]
    assert not parts[0] & parts[1] & files
    assert len(files & (parts[0] | parts[1])) > 0.95 * len(files)


def test_windows_lie_end_to_end_and_predict_the_next_token() -> None:
    windows = Windows(TOKENS, seq_len=64)
    assert len(windows) == 15
    for i in (0, 1, 14):
        x, y = windows[i]
        assert x.dtype == y.dtype == torch.long
        assert x.tolist() == [t % 256 for t in range(64 * i, 64 * i + 64)]
        assert y[:-1].tolist() == x[1:].tolist()
    assert y[-1] == (64 * 15) % 256


def test_a_count_spreads_the_windows_evenly() -> None:
    windows = Windows(TOKENS, seq_len=64, count=5)
    assert len(windows) == 5
    assert windows.starts[0] == 0
    assert windows.starts[-1] + 65 <= len(TOKENS)
    assert windows.starts.diff().float().std() < 1
    assert len(Windows(TOKENS, seq_len=64, count=100)) == 15


@pytest.mark.parametrize("count", [None, 7])
def test_a_batch_in_one_gather_is_the_items_one_by_one(count: int | None) -> None:
    windows = Windows(TOKENS, seq_len=33, count=count)
    indices = [3, 0, 6, 3]
    for (x, y), i in zip(windows.__getitems__(indices), indices, strict=True):
        assert torch.equal(x, windows[i][0])
        assert torch.equal(y, windows[i][1])


def test_the_module_brings_the_same_evaluation_every_time() -> None:
    data = StdlibText(seq_len=32, batch_size=8, val_windows=64)
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == y.shape == (8, 32)
    first, again = ([batch for batch, _ in data.val_dataloader()] for _ in range(2))
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert torch.cat(first).shape == (64, 32)
