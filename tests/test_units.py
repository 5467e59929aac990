"""Amounts as people write them are read; what cannot be meant is refused with the nearest unit."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flops_fit.units import (
    Flops,
    Seconds,
    format_count,
    format_duration,
    format_flops,
    parse_count,
    parse_duration,
    parse_flops,
)

PF_DAY = 8.64e19


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("3e18", 3e18),
        ("3E18", 3e18),
        ("+1.5e+18", 1.5e18),
        (" 1e18 ", 1e18),
        (".5e18", 5e17),
        ("1e18 FLOPs", 1e18),
        ("1e18flop", 1e18),
        ("2 EFLOP", 2e18),
        ("2 EFLOPs", 2e18),
        ("300 TFLOP", 3e14),
        ("1 ZFLOP", 1e21),
        ("10 PF-days", 10 * PF_DAY),
        ("10 PF-day", 10 * PF_DAY),
        ("10 pf days", 10 * PF_DAY),
        ("10PF-days", 10 * PF_DAY),
        ("3640 petaflop/s-days", 3640 * PF_DAY),
        ("1 exaflop-day", 1000 * PF_DAY),
        ("1 PFLOPS-day", PF_DAY),
        ("1_000_000", 1e6),
        ("1,000,000 flops", 1e6),
        (3e18, 3e18),
        (10**18, 1e18),
        (np.float32(2.0), 2.0),
        (np.int64(10**17), 1e17),
        (Fraction(1, 2), 0.5),
    ],
)
def test_every_spelling_of_compute(text: str | float, flops: float) -> None:
    assert parse_flops(text) == pytest.approx(flops)
    assert type(parse_flops(text)) is float
    assert Flops(text) == parse_flops(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("85M", 85e6),
        ("85m", 85e6),
        ("1.3B", 1.3e9),
        ("20B tokens", 20e9),
        ("20 B Tokens", 20e9),
        ("1.4T", 1.4e12),
        ("7G", 7e9),
        ("124M params", 124e6),
        ("124M parameters", 124e6),
        ("50k images", 5e4),
        ("1 sample", 1),
        ("12,800", 12800),
        (85_000_000, 85e6),
    ],
)
def test_every_spelling_of_a_count(text: str | float, count: float) -> None:
    assert parse_count(text) == pytest.approx(count)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45min", 2700),
        ("45 m", 2700),
        ("2h", 7200),
        ("2 hours", 7200),
        ("1.5 days", 129600),
        ("90", 90),
        ("90 s", 90),
        ("30 sec", 30),
        ("2 mins", 120),
        ("1 hr", 3600),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_every_spelling_of_a_time(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert Seconds(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "much", "e18", "1.2.3", "1e", "--5", "1h30min", "0x10", "nan", "inf", "1,5"])
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    for parse, example in ((parse_flops, "1e18"), (parse_count, "85M"), (parse_duration, "45min")):
        with pytest.raises(ValueError, match=example) as caught:
            parse(text)
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", [True, None, [1e18], b"1e18"])
def test_what_is_neither_text_nor_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not an amount of compute"):
        parse_flops(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parse", "text", "nearest"),
    [
        (parse_flops, "10 PF-dayz", "PF-day"),
        (parse_flops, "1 exflop", "EFLOP"),
        (parse_duration, "3 minuts", "minute"),
        (parse_duration, "3 dys", "day"),
    ],
)
def test_a_unit_nearly_right_is_suggested(parse: object, text: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        parse(text)  # type: ignore[operator]


def test_counts_are_no_amount_of_compute() -> None:
    with pytest.raises(ValueError, match="unknown unit 'b'"):
        parse_flops("7B")
    with pytest.raises(ValueError, match="unknown unit 'pf-days'"):
        parse_count("10 PF-days")


def test_numbers_pass_as_they_are_so_that_who_asked_can_say_what_is_wrong() -> None:
    assert parse_flops(-1.0) == -1.0
    assert parse_flops("-3e18") == -3e18
    assert math.isnan(parse_flops(math.nan))
    assert parse_count(math.inf) == math.inf


@given(st.floats(1e-3, 1e30), st.integers(2, 8))
def test_what_is_written_reads_back(value: float, digits: int) -> None:
    assert parse_flops(format_flops(value, digits)) == pytest.approx(value, rel=0.6 * 10.0 ** (1 - digits))
    if value < 1e16:
        assert parse_count(format_count(value, digits)) == pytest.approx(value, rel=0.6 * 10.0 ** (1 - digits))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (7.25, "7.25"),
        (0.1234, "0.123"),
        (999, "999"),
        (999.4, "999"),
        (999.9, "1k"),
        (1000, "1k"),
        (9_123, "9.12k"),
        (999_999, "1M"),
        (85e6, "85M"),
        (123.4e6, "123M"),
        (1.32e9, "1.32B"),
        (1.4e12, "1.4T"),
        (1e15, "1000T"),
        (-85e6, "-85M"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_counts_are_written_briefly(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e10, "2e+10"),
        (3.1623e18, "3.16e+18"),
        (9.999e17, "1e+18"),
        (1e18, "1e+18"),
        (5, "5e+00"),
        (0, "0"),
        (-3e18, "-3e+18"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
    ],
)
def test_compute_is_written_as_the_field_does(value: float, text: str) -> None:
    assert format_flops(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (360_000, "100 h 00 min"),
        (math.inf, "unknown"),
        (math.nan, "unknown"),
    ],
)
def test_times_are_written_briefly(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
