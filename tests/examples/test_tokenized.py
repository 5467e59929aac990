"""Text of any kind becomes the same tokens every time, and no document is on both sides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flops_fit import DataError
from flops_fit.examples import TokenizedText
from flops_fit.examples.documents import input_files, read_documents
from flops_fit.examples.token_cache import is_held_out

STORIES = [
    f"Once upon a time there was a {animal} no. {i}. ÄÖÜ {'la ' * (i % 50)}"
    for i in range(400)
    for animal in ("cat", "dog")
]
SEPARATOR = "<|endoftext|>"


def as_text(folder: Path, stories: list[str] = STORIES) -> Path:
    path = folder / "stories.txt"
    path.write_text(f"\n{SEPARATOR}\n".join(stories))
    return path


def as_jsonl(folder: Path, stories: list[str] = STORIES) -> Path:
    path = folder / "stories.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": story}) + "\n" for i, story in enumerate(stories)))
    return path


def as_parquet(folder: Path, stories: list[str] = STORIES) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": stories, "id": range(len(stories))}), folder / "stories.parquet")
    return folder / "stories.parquet"


FORMS = [as_text, as_jsonl, as_parquet]
TOKENIZERS = ["bytes", "bpe"]


def tokenized(path: Path | list[str] | None, cache: Path, **options: object) -> TokenizedText:
    if options.get("tokenizer") == "bpe" and sys.modules.get("tokenizers", tokenized) is not None:
        pytest.importorskip("tokenizers")
    where = path if path is None or isinstance(path, list) else str(path)
    data = TokenizedText(where, cache_dir=str(cache), **{"seq_len": 32, "vocab_size": 300} | options)
    data.prepare_data()
    return data


def tokens(data: TokenizedText) -> tuple[np.ndarray, np.ndarray]:
    return data.train_files[0].tokens(), data.val_files[0].tokens()


def refusal(path: Path | None, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        tokenized(path, Path("unused") if path is None else path.parent / "cache", **options)
    return str(caught.value)


@pytest.mark.parametrize("write", FORMS)
def test_every_form_of_file_holds_the_same_documents(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = read_documents([write(tmp_path)], "text", SEPARATOR)
    assert [document.strip() for document in found] == [story.strip() for story in STORIES]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_two_readings_give_the_same_tokens(tmp_path: Path, tokenizer: str) -> None:
    path = as_jsonl(tmp_path)
    first, again = (tokenized(path, tmp_path / name, tokenizer=tokenizer) for name in ("a", "b"))
    assert first.cache.folder != again.cache.folder
    assert first.fingerprint == again.fingerprint
    assert all(map(np.array_equal, tokens(first), tokens(again)))
    other = tokenized(as_text(tmp_path), tmp_path / "a", tokenizer=tokenizer, validation_share=0.2)
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_tokens_are_the_documents_and_nothing_else(tmp_path: Path, tokenizer: str) -> None:
    """No padding, no document twice, none on both sides: what is decoded is what was written."""
    data = tokenized(as_jsonl(tmp_path, STORIES + STORIES[:50]), tmp_path / "cache", tokenizer=tokenizer)
    if tokenizer == "bpe":
        from tokenizers import Tokenizer

        whole = Tokenizer.from_file(str(data.cache.folder / "tokenizer.json"))
        end = whole.token_to_id(SEPARATOR)
    else:
        end = 0
    sides = []
    for part, ids in zip((data.cache.train, data.cache.val), tokens(data), strict=True):
        assert part.num_tokens == len(ids)
        assert ids[-1] == end
        pieces = np.split(ids, np.flatnonzero(ids == end) + 1)[:-1]
        texts = [
            whole.decode(p[:-1].tolist()) if tokenizer == "bpe" else bytes(p[:-1].tolist()).decode() for p in pieces
        ]
        assert part.documents == len(texts)
        assert part.num_bytes == sum(len(text.encode()) for text in texts)
        sides.append(texts)
    assert sorted(sides[0] + sides[1]) == sorted(STORIES + STORIES[:50])
    assert not set(sides[0]) & set(sides[1])
    assert all(is_held_out(text, 0.05) for text in sides[1])
    assert 10 < len(sides[1]) < 80


def test_bytes_per_token_is_that_of_the_held_out_text(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    for tokenizer, low, high in (("bytes", 0.95, 1.0), ("bpe", 1.5, 50)):
        data = tokenized(path, tmp_path / "cache", tokenizer=tokenizer)
        data.setup("fit")
        ids = tokens(data)[1]
        text = [story for story in STORIES if is_held_out(story, 0.05)]
        assert data.bytes_per_token == pytest.approx(sum(len(s.encode()) for s in text) / len(ids))
        assert low < data.bytes_per_token < high
        assert data.max_token_id == max(part.max() for part in tokens(data))


def test_a_tokenizer_that_is_given_is_used(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    trained = tokenized(path, tmp_path / "cache", tokenizer="bpe")
    given = tokenized(path, tmp_path / "cache", tokenizer=str(trained.cache.folder / "tokenizer.json"))
    assert given.fingerprint == trained.fingerprint
    assert given.cache.folder != trained.cache.folder


def test_targets_follow_their_inputs(tmp_path: Path) -> None:
    data = tokenized(as_jsonl(tmp_path), tmp_path / "cache")
    ids = torch.from_numpy(tokens(data)[0].astype(np.int64))
    x, y = data.train_dataloader().dataset[3]
    assert torch.equal(x, ids[96:128])
    assert torch.equal(y, ids[97:129])


def test_a_long_text_is_cut_at_blank_lines(corpora: Path, tmp_path: Path) -> None:
    path = corpora / "gutenberg_selections.txt"
    parts = list(read_documents([path], "text", SEPARATOR))
    assert "".join(parts) == path.read_text(encoding="utf-8")
    assert all(2**14 <= len(part) < 3 * 2**14 for part in parts[:-1])
    at_blank_lines = [not part.splitlines()[-1].strip() for part in parts[:-1]]
    assert np.mean(at_blank_lines) > 0.9  # a poem may have none for long
    assert all(part.endswith("\n") for part in parts[:-1])
    (tmp_path / "line.txt").write_text("wörd " * 100_000)
    assert "".join(read_documents([tmp_path / "line.txt"], "text", SEPARATOR)) == "wörd " * 100_000


def test_real_text_is_split_as_asked(corpora: Path, tmp_path: Path) -> None:
    data = tokenized(corpora / "gutenberg_selections.txt", tmp_path, validation_share=0.05)
    train, val = data.cache.train, data.cache.val
    assert train.num_bytes + val.num_bytes == (corpora / "gutenberg_selections.txt").stat().st_size
    assert 0.02 < val.num_bytes / train.num_bytes < 0.1
    blocks = [{part.tobytes() for part in np.array_split(ids, len(ids) // 1024)} for ids in tokens(data)]
    assert not blocks[0] & blocks[1]


def test_a_folder_is_all_its_files_in_one_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "a/d.jsonl", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    found = [path.relative_to(tmp_path).as_posix() for path in input_files(tmp_path)]
    assert found == ["a/c.txt", "a/d.jsonl", "b.txt"]


def test_a_cache_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    first = tokenized(path, tmp_path / "cache")
    written = (first.cache.folder / "train.bin").stat().st_mtime_ns
    again = tokenized(path, tmp_path / "cache")
    assert again.cache == first.cache
    assert (again.cache.folder / "train.bin").stat().st_mtime_ns == written
    path.write_text(path.read_text() + json.dumps({"text": "and one more"}) + "\n")
    assert tokenized(path, tmp_path / "cache").cache.folder != first.cache.folder


@pytest.mark.slow
def test_a_process_that_was_killed_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    """Killed in the middle of the writing: its folder has another name, and goes when it is old."""
    path = as_jsonl(tmp_path)
    program = (
        "import os, signal, flops_fit.examples.token_cache as c, flops_fit.examples as e\n"
        "add, n = c._Writer.add, [0]\n"
        "def killing(*a):\n"
        "    n[0] += 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if n[0] > 300 else add(*a)\n"
        "c._Writer.add = killing\n"
        f"e.TokenizedText({str(path)!r}, seq_len=32, cache_dir={str(tmp_path / 'cache')!r}).prepare_data()\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name.startswith(".")
    data = tokenized(path, tmp_path / "cache")
    assert data.cache.train.documents + data.cache.val.documents == len(STORIES)
    assert left.is_dir()  # its process may be at work
    old = time.time() - 2 * 24 * 3600
    for part in (*left.iterdir(), left):
        os.utime(part, (old, old))
    tokenized(path, tmp_path / "cache", validation_share=0.1)
    assert not left.exists()


@pytest.mark.slow
def test_of_processes_that_write_at_once_all_read_the_same(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path, STORIES * 5)
    program = (
        "import flops_fit.examples as e\n"
        f"d = e.TokenizedText({str(path)!r}, seq_len=32, cache_dir={str(tmp_path / 'cache')!r})\n"
        "d.prepare_data(); print(d.fingerprint)"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0] for process in both}
    assert len(said) == 1
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [tokenized(path, tmp_path / "cache").cache.folder.name]


def test_tokens_that_were_cut_short_are_refused(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    folder = tokenized(path, tmp_path / "cache").cache.folder
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2])
    assert f"the tokens in {folder} are not those that were written" in refusal(path)


def test_texts_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    assert f"there is no file or folder {path}" in refusal(path)
    path.write_text("")
    assert f"{path} holds no text" in refusal(path)
    path.write_bytes(b"x" * 2**20 + "naïve".encode("latin1"))
    assert f"{path} is not UTF-8: byte 1,048,578" in refusal(path)
    assert "iconv" in refusal(path)
    path.write_text("short")
    assert "of 1 documents, 1 fall to training and 0 to validation" in refusal(path)
    (tmp_path / "empty").mkdir()
    assert "holds no text" in refusal(tmp_path / "empty")


def test_jsonl_and_parquet_without_the_field_are_told(tmp_path: Path) -> None:
    for write in FORMS[1:]:
        message = refusal(write(tmp_path), field="story")
        assert "there is no field 'story'; there is" in message
        assert "text" in message
        assert "id" in message
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text": 3}\n')
    assert f"{path}, line 2: the field 'text' holds int, not text" in refusal(path)
    path.write_text('{"text": "a"}\n\nno json\n')
    assert f"{path}, line 3: no JSON" in refusal(path)
    path.write_text('["a"]\n')
    assert "line 1: list, not an object" in refusal(path)
    path.rename(tmp_path / "bad.parquet")
    assert "bad.parquet is no parquet file" in refusal(tmp_path / "bad.parquet")


def test_a_corpus_smaller_than_a_window_is_refused(tmp_path: Path) -> None:
    data = tokenized(as_jsonl(tmp_path, STORIES[:60]), tmp_path / "cache", seq_len=100_000)
    with pytest.raises(DataError, match="the training tokens are too few for one window"):
        data.train_dataloader()
    with pytest.raises(DataError, match="the validation tokens are too few for one window"):
        data.val_dataloader()


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    for options in ({"validation_share": 0}, {"validation_share": 1.0}, {"separator": ""}, {"seq_len": 0}):
        with pytest.raises(DataError):
            TokenizedText(str(tmp_path), **options)
    path = as_jsonl(tmp_path)
    assert "vocab_size=200 of a byte-pair encoding must be larger than 256" in refusal(
        path, tokenizer="bpe", vocab_size=200
    )
    assert "tokenizer is 'bytes', 'bpe', or the path" in refusal(path, tokenizer="bype")
    assert "no tokenizer.json" in refusal(path, tokenizer=str(path))


def test_without_the_packages_local_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "give path=...: a text, JSONL or parquet file" in refusal(None)
    assert "tokenizer='bytes', which needs nothing" in refusal(as_jsonl(tmp_path), tokenizer="bpe")


@pytest.mark.slow
def test_data_sets_come_through_the_package_datasets_and_need_a_network_once(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "stories").mkdir()
    path = as_jsonl(tmp_path / "stories")
    program = (
        "import sys, flops_fit.examples as e\n"
        "d = e.TokenizedText(dataset=sys.argv[1], seq_len=32, cache_dir=sys.argv[2]); d.prepare_data()\n"
        "print(d.fingerprint)"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}

    def read(name: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-W", "ignore", "-c", program, name, str(tmp_path / "cache")]
        return subprocess.run(words, capture_output=True, text=True, env=offline)

    assert read(str(tmp_path / "stories")).stdout.strip() == tokenized(path, tmp_path / "other").fingerprint
    refused = read("roneneldan/TinyStories").stderr
    assert "the data set roneneldan/TinyStories (split train) cannot be loaded" in refused
    assert "give path=...: a text, JSONL or parquet file" in refused
