"""Binary token files: both forms, windows that are a function of their index, and files that are not whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import flops_fit
from flops_fit import DataError, TokenBin
from flops_fit.examples import GPT, next_token_loss
from flops_fit.train.data import sweep_data
from flops_fit.train.token_bin import MAGICS, TokenWindows, open_token_file, open_token_files

TOKENS = np.random.default_rng(0).integers(0, 200, 5000)


def bare(path: Path, tokens: np.ndarray = TOKENS, token_type: str = "uint16") -> Path:
    tokens.astype(f"<{np.dtype(token_type).str[1:]}").tofile(path)
    return path


def with_header(
    path: Path,
    tokens: np.ndarray = TOKENS,
    *,
    magic: int = MAGICS[1],
    width: int = 2,
    said: int | None = None,
    count: int | None = None,
    version: int = 1,
) -> Path:
    header = np.zeros(256, "<i4")
    header[:4] = magic, version, len(tokens) if count is None else count, width if said is None else said
    path.write_bytes(header.tobytes() + tokens.astype(f"<u{width}").tobytes())
    return path


def windows(path: Path, seq_len: int = 32, **options: int | None) -> TokenWindows:
    return TokenWindows([open_token_file(path)], seq_len, **options)


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:700]], ids=["long", "shorter than a header"])
def test_every_form_gives_the_same_tokens(tmp_path: Path, tokens: np.ndarray) -> None:
    forms = [
        open_token_file(bare(tmp_path / "a.bin", tokens)),
        open_token_file(bare(tmp_path / "b.bin", tokens, "uint32"), "uint32"),
        open_token_file(with_header(tmp_path / "c.bin", tokens, magic=MAGICS[0], said=0)),
        open_token_file(with_header(tmp_path / "d.bin", tokens)),
        open_token_file(with_header(tmp_path / "e.bin", tokens, width=4)),
    ]
    for file in forms:
        assert file.count == len(tokens)
        assert np.array_equal(file.tokens(), tokens)


def test_ids_beyond_16_bits_are_kept(tmp_path: Path) -> None:
    file = open_token_file(with_header(tmp_path / "a.bin", TOKENS + 100_000, width=4))
    assert np.array_equal(file.tokens(), TOKENS + 100_000)


def test_windows_lie_end_to_end_and_their_targets_come_next(tmp_path: Path) -> None:
    found = windows(bare(tmp_path / "a.bin"))
    assert len(found) == (5000 - 1) // 32
    inputs = torch.cat([found[i][0] for i in range(len(found))])
    targets = torch.cat([found[i][1] for i in range(len(found))])
    assert inputs.dtype == targets.dtype == torch.int64
    assert np.array_equal(inputs, TOKENS[: len(inputs)])
    assert np.array_equal(targets, TOKENS[1 : len(inputs) + 1])


def test_no_window_reaches_into_the_next_file(tmp_path: Path) -> None:
    parts = [TOKENS[:100], TOKENS[100:130], TOKENS[130:1000]]  # the second is too short for any
    for i, part in enumerate(parts):
        bare(tmp_path / f"{i}.bin", part)
    files = open_token_files(str(tmp_path / "*.bin"), "tokens")
    for seed in (None, 0):
        found = TokenWindows(files, 32, seed=seed)
        assert len(found) == 3 + 27
        starts = [part[i : i + 33].tolist() for part in parts for i in range(len(part) - 32)]
        assert all([*x.tolist(), int(y[-1])] in starts for x, y in (found[i] for i in range(len(found))))


def test_random_windows_begin_anywhere_and_are_the_same_again(tmp_path: Path) -> None:
    path = bare(tmp_path / "a.bin", np.arange(5000))
    found = windows(path, seed=0)
    assert len(found) == len(windows(path))
    starts = [int(found[i][0][0]) for i in range(len(found))]
    assert len({start % 32 for start in starts}) > 16
    assert max(starts) <= 5000 - 33
    assert max(starts) - min(starts) > 4500
    assert starts == [int(windows(path, seed=0)[i][0][0]) for i in range(len(found))]


def test_a_count_spreads_windows_over_the_whole(tmp_path: Path) -> None:
    found = windows(bare(tmp_path / "a.bin", np.arange(5000)), count=10)
    starts = np.array([int(found[i][0][0]) for i in range(len(found))])
    assert len(found) == 10
    assert starts[0] == 0
    assert np.ptp(np.diff(starts)) <= 32
    assert starts[-1] > 4000
    assert len(windows(tmp_path / "a.bin", count=10_000)) == len(windows(tmp_path / "a.bin"))


@pytest.mark.parametrize("order", ["contiguous", "random"])
def test_two_readings_give_the_same_batches_from_any_step_on(tmp_path: Path, order: str) -> None:
    bare(tmp_path / "train.bin")
    bare(tmp_path / "val.bin", TOKENS[::-1])

    def batches(start: int) -> list[list[int]]:
        module = TokenBin(str(tmp_path / "train.bin"), str(tmp_path / "val.bin"), 32, 4, order=order)
        data = sweep_data(module)
        assert data.is_ordered_here
        loader = data.batches(4, 60, seed=1, start=start, rank=0, world=1, accumulate=1)
        assert isinstance(loader, DataLoader)
        return [x.flatten().tolist() for x, _ in loader]

    assert batches(0)[25:] == batches(25)


def test_the_fingerprint_says_what_is_read_and_how(tmp_path: Path) -> None:
    def fingerprint(**changes: object) -> str:
        arguments = {"train": str(tmp_path / "train.bin"), "val": str(tmp_path / "val.bin"), "seq_len": 32}
        return TokenBin(**arguments | changes).fingerprint

    bare(tmp_path / "train.bin")
    bare(tmp_path / "val.bin", TOKENS[::-1])
    first = fingerprint()
    assert fingerprint() == fingerprint(batch_size=3) == first
    assert len({first, fingerprint(seq_len=16), fingerprint(order="random"), fingerprint(val_windows=3)}) == 4
    bare(tmp_path / "val.bin", np.roll(TOKENS[::-1], 1))
    assert fingerprint() != first


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        sweep_data(TokenBin(train=str(path), val=str(path.parent / "val.bin"), seq_len=32, **options))
    return str(caught.value)


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    bare(tmp_path / "val.bin")
    path = tmp_path / "train.bin"
    assert "there is no file" in refusal(path)
    assert str(path) in refusal(path)
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    path.write_bytes(bytes(4001))
    assert "4,001 bytes, which are no whole number of uint16 tokens" in refusal(path)
    assert "counts 5,000 tokens of 2 bytes, and the file holds 4,000" in refusal(
        with_header(path, TOKENS[:4000], count=5000)
    )
    with_header(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert "counts 5,000 tokens of 2 bytes, and the file holds 4,999.5" in refusal(path)
    assert "header of version 2" in refusal(with_header(path, version=2))
    assert "3 bytes a token" in refusal(with_header(path, said=3))
    assert "too few for one window: 20 in the longest file, and seq_len=32 needs 33" in refusal(bare(path, TOKENS[:20]))


def test_every_broken_file_is_named(tmp_path: Path) -> None:
    bare(tmp_path / "val.bin")
    (tmp_path / "train_1.bin").write_bytes(b"")
    bare(tmp_path / "train_2.bin")
    (tmp_path / "train_3.bin").write_bytes(bytes(3))
    message = refusal(tmp_path / "train_*.bin")
    assert "train_1.bin" in message
    assert "train_2.bin" not in message
    assert "train_3.bin" in message


def test_what_is_trained_on_is_not_evaluated_on(tmp_path: Path) -> None:
    bare(tmp_path / "val.bin")
    bare(tmp_path / "train.bin")
    assert "val.bin is both trained and evaluated on" in refusal(tmp_path / "*.bin")


def test_options_are_checked() -> None:
    with pytest.raises(DataError, match="seq_len=0, batch_size=-1 must be positive"):
        TokenBin("a", "b", seq_len=0, batch_size=-1)
    with pytest.raises(DataError, match="order='shuffled' is none of contiguous, random"):
        TokenBin("a", "b", order="shuffled")


def test_a_vocabulary_smaller_than_the_tokens_is_refused_when_planning(tmp_path: Path) -> None:
    tokens = TOKENS.copy()
    tokens[4321] = 250  # one rare token, in no first batch
    data = TokenBin(str(bare(tmp_path / "train.bin", tokens)), str(bare(tmp_path / "val.bin")), 32, 4)
    assert data.max_token_id == 250

    def plan(vocab_size: int) -> object:
        return flops_fit.find_optimal(
            model_cls=GPT,
            model_size_param="d_model",
            model_kwargs={"n_layer": 1, "vocab_size": vocab_size, "seq_len": 32},
            dataset=data,
            loss_fn=next_token_loss,
            compute_budgets=[1e9],
            sizes=[8, 16],
            output_dir=tmp_path / "out",
            train=False,
        )

    with pytest.raises(DataError, match="token id 250, and the model's embedding has 250 rows, for ids 0 to 249"):
        plan(250)
    plan(251)


@pytest.mark.slow
def test_token_files_are_trained_on_from_python(tmp_path: Path) -> None:
    data = TokenBin(str(with_header(tmp_path / "train.bin")), str(bare(tmp_path / "val.bin")), 32, 4, bytes_per_token=2)
    result = flops_fit.find_optimal(
        model_cls=GPT,
        model_size_param="d_model",
        model_kwargs={"n_layer": 1, "seq_len": 32},
        dataset=data,
        loss_fn=next_token_loss,
        compute_budgets=[1e8, 2e8],
        sizes=[4, 6, 8],
        lr=0.7,
        min_steps=20,
        output_dir=tmp_path / "out",
        launcher="inline",
    )
    assert len(result.analysis.runs) == 6
