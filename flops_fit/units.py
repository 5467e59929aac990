"""Amounts as people write them: "3e18", "10 PF-days", "85M", "20B", "20x", "45min"."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Self

_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SECONDS |= {"sec": 1.0, "second": 1.0, "m": 60.0, "minute": 60.0, "hr": 3600.0, "hour": 3600.0, "day": 86400.0}

# One PF-day is 1e15 FLOP/s held for a day (Kaplan et al. 2020, arXiv:2001.08361, section 1.3).
_RATES = {"g": "giga", "t": "tera", "p": "peta", "e": "exa", "z": "zetta"}
_FLOPS = {f"{p}flop": s for p, s in _SCALES.items() if p not in ("k", "b")} | {"": 1.0}
_FLOPS |= {f"{p}{w}-day": 86400 * _SCALES[p] for p in _RATES for w in ("f", "flop", "flops", "flop/s")}
_FLOPS |= {f"{word}flop{w}-day": 86400 * _SCALES[p] for p, word in _RATES.items() for w in ("", "s", "/s")}
_COUNTS = {p: s for p, s in _SCALES.items() if p in ("", "k", "m", "b", "g", "t")}

# Commas only between groups of three: "1,5" is one and a half to half of the world, and must not be read as fifteen.
_AMOUNT = re.compile(
    r"\s*([+-]?(?:(?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*)(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*([a-z][a-z/ -]*)?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of amount: its name, an example, what each unit is worth, and the units that a message offers."""

    what: str
    example: str
    units: dict[str, float]
    offered: str


_COMPUTE = _Kind(
    "an amount of compute", "1e18 or '10 PF-days'", _FLOPS, "FLOP, GFLOP, TFLOP, PFLOP, EFLOP, ZFLOP, PF-days, EF-days"
)
_COUNT = _Kind("a count", "85M or 1.3e9", _COUNTS, "k, M, B, T")
_TIME = _Kind("a time", "45min or 2h", _SECONDS | {"": 1.0}, "s, min, h, days")
_RATIO = _Kind("a number of tokens for each parameter", "20x or 20", {"x": 1.0, "": 1.0}, "x")


def _parse(text: str | float, kind: _Kind) -> float:
    if isinstance(text, bool) or not isinstance(text, (str, Real)):
        raise ValueError(f"{text!r} is not {kind.what}; write for example {kind.example}")
    if isinstance(text, Real):
        return float(text)
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {kind.what}; write for example {kind.example}")
    unit = re.sub(r"[ -]+", "-", (match[2] or "").strip().lower())
    for spelling in (unit, unit.removesuffix("s")):
        if spelling in kind.units:
            return float(match[1].replace("_", "").replace(",", "")) * kind.units[spelling]
    raise ValueError(f"{text!r} is not {kind.what}: unknown unit {unit!r}; {_advice(unit, kind)}")


def _advice(unit: str, kind: _Kind) -> str:
    """What to write instead of a unit that this kind of amount has not."""
    here = f"write for example {kind.example}" if kind is _RATIO else f"the units here are {kind.offered}"
    for other in (_COMPUTE, _COUNT, _TIME, _RATIO):
        if other is not kind and unit and {unit, unit.removesuffix("s")} & set(other.units):
            return f"that would be {other.what}; {here}"
    if kind is _RATIO:
        return here
    close = difflib.get_close_matches(unit, [u for u in kind.units if u], n=1)
    meant = f"did you mean {_spelled(close[0])!r}?" if close else f"write for example {kind.example};"
    return f"{meant} the units are {kind.offered}"


def _spelled(unit: str) -> str:
    """A unit as people write it: PF-day, EFLOP."""
    stem, dash, day = unit.partition("-")
    return (stem.upper() if re.fullmatch(r"[gtpezmy]?f(lops?(/s)?)?", stem) else stem) + dash + day


def parse_flops(text: str | float) -> float:
    """Read an amount of compute: "3e18", "10 PF-days", "2 EFLOP" [FLOPs].

    Raises:
        ValueError: The text is no amount, or its unit is unknown.
    """
    return _parse(text, _COMPUTE)


def parse_count(text: str | float) -> float:
    """Read a number of parameters, tokens or samples: "85M", "1.3B", "20B tokens".

    Raises:
        ValueError: The text is no number, or its unit is unknown.
    """
    if isinstance(text, str):
        text = re.sub(r"\s*(tokens?|params?|parameters?|samples?|images?)\s*$", "", text, flags=re.IGNORECASE)
    return _parse(text, _COUNT)


def parse_ratio(text: str | float) -> float:
    """Read tokens for each parameter, as the field names an amount of data: "20x", 20 [tokens per parameter].

    Raises:
        ValueError: The text is no number, or its unit is another.
    """
    return _parse(text, _RATIO)


def parse_duration(text: str | float) -> float:
    """Read a time: "45min", "2h", 90 [seconds].

    Raises:
        ValueError: The text is no time, or its unit is unknown.
    """
    return _parse(text, _TIME)


def format_count(value: float, digits: int = 3) -> str:
    """Write a number of parameters or tokens briefly: 85M, 1.32B, 9.1k."""
    if not math.isfinite(value):
        return str(value)
    scale, suffix = 1.0, ""
    for suffix_, scale_ in (("k", 1e3), ("M", 1e6), ("B", 1e9), ("T", 1e12)):
        # A value that rounds up to 1000 of one unit is written as 1 of the next.
        if abs(value) >= scale_ * (1 - 0.5 * 10.0**-digits):
            scale, suffix = scale_, suffix_
    scaled = value / scale
    if abs(scaled) >= 1e4 or 0 < abs(scaled) < 1e-3:
        return f"{scaled:.{digits - 1}e}{suffix}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(scaled)))) if scaled else 0
    text = f"{scaled:.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + suffix


def format_flops(value: float, digits: int = 3) -> str:
    """Write an amount of compute as the field does: 2e+10, 3.16e+18."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{exponent}"


def format_bytes(value: float) -> str:
    """Write an amount of memory briefly: 640 MB, 1.5 GB."""
    for suffix, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.{0 if value >= 100 * scale else 1}f} {suffix}"
    return f"{value:.0f} B"


def format_duration(seconds: float) -> str:
    """Write a time briefly: 45 s, 2 min 05 s, 3 h 20 min."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Flops(float):
    """An amount of compute [FLOPs]; made from a number or from text such as "10 PF-days"."""

    def __new__(cls, value: str | float) -> Self:
        return super().__new__(cls, parse_flops(value))


class Seconds(float):
    """A time [seconds]; made from a number or from text such as "45min"."""

    def __new__(cls, value: str | float) -> Self:
        return super().__new__(cls, parse_duration(value))


class Count(int):
    """A whole number of parameters, tokens, samples or steps; made from a number or from text such as "85M"."""

    def __new__(cls, value: str | float) -> Self:
        number = parse_count(value)
        if not math.isfinite(number) or number != math.floor(number):
            raise ValueError(f"{str(value)!r} is not a whole number; write for example 150 or 85M")
        return super().__new__(cls, number)
