"""Column names and cells: what strangers write is found, what is no number is told."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from flops_fit.errors import DataError
from flops_fit.runs.columns import ALIASES, find_columns, nearest, read_numbers, squeeze


def test_no_alias_means_two_things() -> None:
    aliases = [a for names in ALIASES.values() for a in names]
    assert len(aliases) == len(set(aliases))
    assert all(squeeze(a) == a for a in aliases)
    assert all(squeeze(ours) in names for ours, names in ALIASES.items())


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            ["Model Size", "Training Tokens", "Training FLOP", "loss"],
            {"num_params": "Model Size", "num_tokens": "Training Tokens", "flops": "Training FLOP", "loss": "loss"},
        ),
        (
            ["source", "dataset", "model", "condition", "experiment", "tokens", "params", "budget", "loss"],
            {"num_tokens": "tokens", "num_params": "params", "compute_budget": "budget", "loss": "loss"},
        ),
        (
            ["Name", "parameter_count", "throughput/total_tokens", "eval/paloma/macro_loss", "throughput/total_gflops"],
            {
                "run_id": "Name",
                "num_params": "parameter_count",
                "num_tokens": "throughput/total_tokens",
                "loss": "eval/paloma/macro_loss",
                "flops": "throughput/total_gflops",
            },
        ),
        (
            "run_name run_id run_state budget params_planned tokens_planned batch lr beta2 parameter_count total_tokens"
            " total_gflops achieved_flops cd_val_loss eval_step".split(),
            {
                "run_id": "run_id",
                "state": "run_state",
                "compute_budget": "budget",
                "num_params": "parameter_count",
                "num_tokens": "total_tokens",
                "flops": "total_gflops",
                "loss": "cd_val_loss",
            },
        ),
        (
            "model_tag flops_budget depth val_bpb tokens_trained params_wte params_lm_head params_transformer"
            " params_total".split(),
            {
                "run_id": "model_tag",
                "compute_budget": "flops_budget",
                "loss": "val_bpb",
                "num_tokens": "tokens_trained",
                "num_params_matmul": "params_transformer",
                "num_params_non_embedding": "params_transformer",
                "num_params_total": "params_total",
            },
        ),
        (
            ["run_name", "width", "depth", "params_active_precise", "tokens", "step", "final_loss", "num_nodes"],
            {
                "run_id": "run_name",
                "num_params": "params_active_precise",
                "num_tokens": "tokens",
                "loss": "final_loss",
            },
        ),
        (["N", "D", "loss"], {"num_params": "N", "num_tokens": "D", "loss": "loss"}),
    ],
    ids=["epoch", "open-athena", "wandb", "marinfold", "nanochat", "gemstones", "records"],
)
def test_published_headers_are_understood(header: list[str], expected: dict[str, str]) -> None:
    assert {ours: column.name for ours, column in find_columns(header, {}).items()} == expected


def test_units_in_column_names_scale_the_cells() -> None:
    found = find_columns(["Params (M)", "tokens [billions]", "compute (PF-days)", "Loss (bits)"], {})
    assert found["num_params"].scale == 1e6
    assert found["num_tokens"].scale == 1e9
    assert found["flops"].scale == 86400e15
    assert found["loss"].loss_unit == "bits"
    assert find_columns(["total_gflops"], {})["flops"].scale == 1e9
    assert find_columns(["N (total)"], {})["num_params"].scale == 1


def test_a_choice_beats_the_aliases() -> None:
    found = find_columns(["loss", "eval/c4", "N"], {"loss": "eval/c4"})
    assert found["loss"].name == "eval/c4"


def test_the_better_alias_wins_and_the_other_is_named() -> None:
    found = find_columns(["train_loss", "val_loss"], {})["loss"]
    assert (found.name, found.rivals) == ("val_loss", ("train_loss",))


def test_two_equally_good_columns_are_a_question() -> None:
    with pytest.raises(DataError, match=r"which column is loss: 'eval/a/loss', 'eval/b/loss'\? Say --map loss=NAME"):
        find_columns(["eval/a/loss", "eval/b/loss", "N", "D"], {})


def test_wrong_choices_are_told_together() -> None:
    with pytest.raises(DataError) as caught:
        find_columns(["tokens", "eval/loss"], {"loss": "eval/los", "num_param": "tokens"})
    message = str(caught.value)
    assert "did you mean 'eval/loss'?" in message
    assert "no quantity is called 'num_param'; did you mean 'num_params'?" in message
    assert "columns seen: 'tokens', 'eval/loss'" in message


def test_nearest_finds_a_misspelling_and_nothing_far() -> None:
    assert nearest("num_params", ["colour", "nparms"]) == "nparms"
    assert nearest("loss", ["colour", "width"]) is None


@pytest.mark.parametrize(
    ("cell", "ours", "value"),
    [
        ("1.3B", "num_params", 1.3e9),
        ("20B tokens", "num_tokens", 20e9),
        (" 1e18 ", "flops", 1e18),
        ("10 PF-days", "flops", 10 * 86400e15),
        ("2 EFLOP", "compute_budget", 2e18),
        ("1,300,000", "num_params", 1.3e6),
        (np.int64(7), "num_tokens", 7.0),
        ("2.31", "loss", 2.31),
    ],
)
def test_cells_with_units(cell: object, ours: str, value: float) -> None:
    numbers = read_numbers([cell, "1.5"], ours)
    assert numbers.values[0] == value
    assert not numbers.bad


@pytest.mark.parametrize("blank", [None, "", " ", "NaN", "n/a", "null", pd.NA, pd.NaT, float("nan")])
def test_blanks_are_missing_not_wrong(blank: object) -> None:
    numbers = read_numbers(["1", blank], "num_params")
    assert math.isnan(numbers.values[1])
    assert not numbers.bad


@pytest.mark.parametrize(
    ("cell", "ours", "message"),
    [
        ("many", "num_params", "'many' is not a count"),
        ("3 PD-days", "flops", "did you mean 'PF-day'"),
        ("2.3B", "loss", "'2.3B' is not a number"),
        ("2,31", "loss", "write decimals with a point"),
        ("1,30", "num_params", "no thousands separators"),
        (True, "num_params", "True is not a number"),
        ([1], "loss", r"\[1\] is not a number"),
        (10**400, "num_params", "too large"),
        (pd.Timestamp(2020, 1, 1), "num_tokens", "not a number"),
        ("9" * 100_000 + "x", "num_tokens", "not a number"),
    ],
)
def test_what_is_no_number_is_told(cell: object, ours: str, message: str) -> None:
    numbers = read_numbers(["1", cell], ours)
    assert list(numbers.bad) == [1]
    assert pd.Series([numbers.bad[1]]).str.contains(message).all(), numbers.bad[1]


def test_decimal_commas_where_the_file_has_them() -> None:
    assert read_numbers(["2,31", "1,5"], "loss", decimal_comma=True).values.tolist() == [2.31, 1.5]


def test_a_frame_of_flags_or_dates_is_no_number() -> None:
    assert read_numbers(pd.Series([True, False]), "loss").bad
    assert read_numbers(pd.Series(pd.to_datetime(["2020-01-01"])), "loss").bad
    assert read_numbers(pd.Series([1, None], dtype="Int64"), "num_params").values[0] == 1
