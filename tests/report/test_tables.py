"""Numbers are rounded by their uncertainty; nothing that was left out goes unsaid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from flops_fit.fit import Excluded, ScalingAnalysis, analyze_runs
from flops_fit.report.left_out import excluded_table, left_out_table, reasons
from flops_fit.report.tables import (
    answer_table,
    answer_text,
    as_text,
    candidate_table,
    counted,
    isoflop_table,
    optimal,
    parameter_table,
    rounded,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rounded(2.3145678, 2.3012, 2.3267), "2.315 (2.301 to 2.327)"),
        (rounded(0.5139, 0.47, 0.56), "0.514 (0.470 to 0.560)"),
        (rounded(18.123, 9, 31), "18 (9.0 to 31)"),
        (rounded(2.3145678), "2.315"),
        (rounded(math.nan), "withheld"),
        (counted(1.3172e9, 1.12e9, 1.58e9), "1.32B (1.12B to 1.58B)"),
        (counted(8.512e7), "85.12M"),
    ],
)
def test_rounding_by_uncertainty(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("value", [1e-12, 3e-5, 0.7, 1.0, 123456.0, 4e11, 7e25])
def test_any_size_of_number_can_be_written(value: float) -> None:
    for text in (rounded(value, 0.9 * value, 1.2 * value), counted(value, 0.9 * value, 1.2 * value)):
        assert len(text) < 55
    assert rounded(value, 0.0, value)


@pytest.mark.parametrize(("value", "low", "high"), [(1e200, 1e-200, 1e201), (1e-200, 0.0, 1e200), (1.0, 5e-324, 1e300)])
def test_an_end_may_be_any_number_of_decades_away(value: float, low: float, high: float) -> None:
    for form in (rounded, counted):
        assert " to " in form(value, low, high)


def test_the_answer_table_has_the_budgets_and_two_decades_beyond(analysis: ScalingAnalysis) -> None:
    table = answer_table(analysis)
    assert len(table) == 7
    assert table[""].tolist() == [""] * 5 + ["beyond the data"] * 2
    assert " to " in table["num_params"][0]
    assert optimal(analysis)["num_params"].iloc[0] == analysis.predict(1e17).num_params


def test_of_many_budgets_an_even_choice_is_shown(sweep: Callable[..., pd.DataFrame]) -> None:
    many = analyze_runs(sweep(budgets=20, sizes=3), n_bootstrap=20)
    table = answer_table(many)
    assert len(table) <= 14
    assert table["compute_budget"].is_unique
    assert table[""].tolist()[-2:] == ["beyond the data"] * 2


def test_without_budgets_powers_of_ten_are_answered(sweep: Callable[..., pd.DataFrame]) -> None:
    rng = np.random.default_rng(1)
    frame = sweep(budgets=1, sizes=40)
    frame["num_tokens"] *= np.exp(rng.uniform(-3, 3, len(frame)))
    table = optimal(analyze_runs(frame.assign(compute_budget=np.nan), n_bootstrap=20))
    assert len(table) >= 3


def test_fits_are_listed_with_their_intervals(analysis: ScalingAnalysis) -> None:
    table = parameter_table(analysis).set_index("parameter")
    for name in ("E", "A", "B", "alpha", "beta", "a", "b", "exponent of N_opt", "exponent of D_opt"):
        assert " to " in table.loc[name, "value"], name
    assert isoflop_table(analysis)["status"].str.startswith("ok").all()
    assert "surface" in candidate_table(analysis)["candidate"].tolist()


def test_no_exponent_is_stated_without_an_interval(sweep: Callable[..., pd.DataFrame]) -> None:
    for budgets, parameters in (3, ("exponent of L_opt",)), (2, ("exponent of N_opt", "exponent of D_opt")):
        table = parameter_table(analyze_runs(sweep(budgets=budgets), n_bootstrap=20)).set_index("parameter")
        for name in parameters:
            assert table.loc[name, ["value", ""]].tolist() == ["withheld", "no budget is to spare for its interval"]


def test_the_text_says_everything(analysis: ScalingAnalysis) -> None:
    text = answer_text(analysis)
    assert text.startswith("29 runs at 5 budgets, 1e+17 to 1e+19 FLOPs; 1 left out")
    assert "hold-out of the largest budget" in text.splitlines()[1]
    assert f"answered by {analysis.headline.method}" in text
    assert "<script>alert(1)</script>: diverged" in text
    for warning in analysis.warnings:
        assert warning.message in text
    assert excluded_table(analysis)["reason"].tolist() == ["diverged"]


def test_runs_left_out_for_one_reason_are_told_together(analysis: ScalingAnalysis) -> None:
    repeated = [("a1", "4.05"), ("b", "9e+03"), ("c", "44"), ("d", "5")]
    excluded = [Excluded(run, f"repeats its data {n} times, 3.2M tokens") for run, n in repeated]
    excluded += [Excluded("e", "not final: its state is 'v2 7'"), Excluded("f", "not final: its state is 'v2 8'")]
    told = [str(reason) for reason in reasons(dataclasses.replace(analysis, excluded=tuple(excluded)))]
    assert told == [
        "a1, b, c and 1 more: repeats its data 4.05 to 9e+03 times, 3.2M tokens",
        "e, f: not final: its state is 'v2 7 to 8'",
    ]


def test_of_many_reasons_the_first_are_shown_and_no_run_is_lost(analysis: ScalingAnalysis) -> None:
    excluded = tuple(Excluded(f"run{i}", f"state {chr(97 + i)}") for i in range(24))
    table = left_out_table(dataclasses.replace(analysis, excluded=excluded))
    assert table["runs"].astype(int).sum() == 24
    assert table["reason"].iloc[-1] == "other reasons: see left_out.csv"


def test_columns_stand_under_each_other(analysis: ScalingAnalysis) -> None:
    lines = as_text(answer_table(analysis)).splitlines()
    places = {line.index(line.split()[1]) for line in lines}
    assert len(places) == 1
