"""Tables as people read them: rounded by their uncertainty, for the terminal and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flops_fit.fit.diagnostics import GRAVE
from flops_fit.fit.isoflop import BudgetStatus
from flops_fit.fit.noise import is_lacking
from flops_fit.fit.prediction import Warning_
from flops_fit.report.left_out import reasons
from flops_fit.report.series import FORETOLD, HEADLINE, answers, budgets_of, holdout_series
from flops_fit.units import format_count, format_flops

if TYPE_CHECKING:
    from flops_fit.fit import ScalingAnalysis

BEYOND = "beyond the data"
ASKED = "asked for"
CANDIDATES_SAY = (
    "candidates, by the budgets hidden from them: error on the largest, rms per factor e of compute, weight"
)
# Of one answer, what makes it worthless by itself.
_GRAVE_HERE = ("far_extrapolation", "size_uncertain_here")
_MOST_ROWS = 14
_UNKNOWN = (math.nan, math.nan)
# A law with as many parameters as budgets goes through all of them, and nothing says how far it is off.
_EXACT = "no budget is to spare for its interval"


def optimal(
    analysis: ScalingAnalysis, compute_budgets: Iterable[float] | None = None, *, target: float | None = None
) -> pd.DataFrame:
    """The best model for each budget, in full precision.

    Args:
        analysis: The fits.
        compute_budgets: FLOPs; None for the budgets of the data (powers of ten where there are none) and two decades
            beyond.
        target: With None: one more [FLOPs].

    Returns:
        As ``series.answers``.
    """
    if compute_budgets is None:
        largest = analysis.largest_budget
        inside = budgets_of(analysis)
        if not inside.size:
            first = math.ceil(math.log10(float(analysis.rows.C.min())))
            inside = np.array([10.0**p for p in range(first, math.floor(math.log10(largest)) + 1)] or [largest])
        compute_budgets = sorted({*inside.tolist(), 10 * largest, 100 * largest, *([] if target is None else [target])})
    return answers(analysis, np.asarray(list(compute_budgets), float))


def answer_table(
    analysis: ScalingAnalysis, compute_budgets: Iterable[float] | None = None, *, target: float | None = None
) -> pd.DataFrame:
    """``optimal`` for the eye: each answer with its 95 % interval; of many budgets an even choice."""
    frame = optimal(analysis, compute_budgets, target=target)
    asked = (frame["compute_budget"] == target).to_numpy(bool)
    if compute_budgets is None and len(frame) > _MOST_ROWS:
        beyond = int(frame["extrapolated"].sum())
        even = np.linspace(0, len(frame) - 1 - beyond, _MOST_ROWS - beyond).round().astype(int)
        kept = np.unique([*even, *range(len(frame) - beyond, len(frame)), *np.flatnonzero(asked)])
        frame, asked = frame.iloc[kept], asked[kept]
    columns = {
        "compute_budget": [format_flops(C) for C in frame["compute_budget"]],
        "num_params": _column(frame, "num_params", counted),
        "num_tokens": _column(frame, "num_tokens", counted),
        "tokens_per_param": _column(frame, "tokens_per_param", rounded),
        "loss": _column(frame, "loss", rounded),
        "": [
            ", ".join([ASKED] * bool(is_target) + [BEYOND] * bool(far))
            for is_target, far in zip(asked, frame["extrapolated"], strict=True)
        ],
    }
    return pd.DataFrame(columns)


def answer_sentence(analysis: ScalingAnalysis, target: float | None = None) -> str:
    """The answer in one sentence, with its intervals.

    Args:
        analysis: The fits.
        target: The budget to answer for [FLOPs]; None for the largest that was trained.
    """
    C = analysis.largest_budget if target is None else target
    row = answers(analysis, np.array([C])).iloc[0]
    ratio = C / analysis.largest_budget
    if abs(ratio - 1) <= 0.01:
        where = "the largest budget trained"
    elif ratio > 1:
        times = f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.1e}"
        where = f"{times} times the largest budget trained"
    else:
        where = "inside the budgets trained" if C >= float(analysis.rows.C.min()) else "below every budget trained"
    start = f"With {format_flops(C)} FLOPs, {where}, "
    if not math.isfinite(row["num_params"]):
        end = "" if not math.isfinite(row["loss"]) else f"; the lowest loss is {_said(row, 'loss', rounded)}"
        return f"{start}the best size cannot be told from these runs{end}."
    size, data = _said(row, "num_params", counted), _said(row, "num_tokens", counted)
    text = f"{start}the best model has {size} parameters and is trained on {data} {analysis.unit}"
    text += f", {_said(row, 'tokens_per_param', rounded)} per parameter"
    if not math.isfinite(row["loss"]):
        return f"{text}; what loss it reaches cannot be told from these runs."
    return f"{text}, to reach a loss of {_said(row, 'loss', rounded)}."


def warnings_first(analysis: ScalingAnalysis, target: float | None = None) -> list[tuple[Warning_, bool]]:
    """What must be known before acting on ``answer_sentence``, the gravest first, each with whether it is grave."""
    found = list(analysis.warnings)
    if target is not None:
        found += [w for w in analysis.predict(target).warnings if w not in found]
    told = [(w, w.code in GRAVE or w.code in _GRAVE_HERE) for w in found]
    return sorted(told, key=lambda pair: not pair[1])


def _said(row: pd.Series, name: str, form: Callable[[float, float, float], str]) -> str:
    return form(float(row[name]), float(row[f"{name}_low"]), float(row[f"{name}_high"]))


def _column(frame: pd.DataFrame, name: str, form: Callable[[float, float, float], str]) -> list[str]:
    return [form(*row) for row in frame[[name, f"{name}_low", f"{name}_high"]].to_numpy(float)]


def rounded(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """A number to two digits of its uncertainty, with its interval; withheld where it is missing."""
    return _with_interval(value, low, high, lambda v, digits: _fixed(v, digits))


def counted(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Same for parameters and tokens: 1.32B (1.1B to 1.6B)."""
    return _with_interval(value, low, high, format_count)


def _fixed(value: float, digits: int) -> str:
    """A number to so many significant digits, without exponent where it is of everyday size."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    magnitude = math.floor(math.log10(abs(value)))
    return f"{value:.{max(0, digits - 1 - magnitude)}f}" if -4 <= magnitude <= 6 else f"{value:.{digits - 1}e}"


def _with_interval(value: float, low: float, high: float, form: Callable[[float, int], str]) -> str:
    if not math.isfinite(value):
        return "withheld"
    half = (high - low) / 2
    if not (math.isfinite(half) and half > 0 and value != 0):
        return form(value, 4)
    digits = 2 + math.floor(math.log10(abs(value))) - math.floor(math.log10(half))
    digits = min(max(digits, 2), 8)
    # To the same place as the value, but an end that is far larger needs no more digits than three.
    magnitudes = (math.log10(abs(v)) - math.log10(abs(value)) if v else -math.inf for v in (low, high))
    places = (digits + math.floor(max(m, -digits) + 0.5) for m in magnitudes)
    ends = (form(v, min(max(2, n), max(digits, 3))) for v, n in zip((low, high), places, strict=True))
    return f"{form(value, digits)} ({' to '.join(ends)})"


def isoflop_table(analysis: ScalingAnalysis) -> pd.DataFrame:
    """The optimum of every budget, or why it has none."""
    rows = []
    for b in analysis.isoflop.budgets if analysis.isoflop else ():

        def pm(value: float | None, se: float | None) -> str:
            return "" if value is None else f"{format_count(value)}" + ("" if not se else f" ±{100 * se:.2g}%")

        loss = "" if b.loss is None else f"{b.loss:.4f}" + ("" if not b.loss_se else f" ±{b.loss_se:.1g}")
        rows.append(
            {
                "compute_budget": format_flops(b.compute_budget),
                "runs": str(b.n_runs),
                "sizes": str(b.n_sizes),
                "num_params": pm(b.num_params, b.log_n_se),
                "num_tokens": pm(b.num_tokens, b.log_d_se),
                "loss": loss,
                "status": str(b.status) + (", lowest run at the edge" if b.argmin_at_edge else ""),
            }
        )
    return pd.DataFrame(rows)


def parameter_table(analysis: ScalingAnalysis) -> pd.DataFrame:
    """Every fitted parameter and exponent with its 95 % interval; an irreducible loss only where it is determined."""
    rows: list[dict[str, str]] = []
    if analysis.parametric is not None:
        law = analysis.parametric.law
        a, b = law.exponents(analysis.rule)
        values = {"E": law.E, "A": law.A, "B": law.B, "alpha": law.alpha, "beta": law.beta, "a": a, "b": b}
        meaning = {"a": "N_opt ~ C^a", "b": "D_opt ~ C^b"}
        for name, value in values.items():
            said = rounded(float(value), *analysis.ci.get("parametric", {}).get(name, _UNKNOWN))
            rows.append({"method": "surface", "parameter": name, "value": said, "": meaning.get(name, "")})
        if any(warning.code == "E_not_identified" for warning in analysis.warnings):
            rows[0] |= {"value": "withheld", "": "the runs do not determine an irreducible loss"}
        elif str(analysis.parametric.status) != "converged":
            rows[0][""] = f"the fit is {str(analysis.parametric.status).replace('_', ' ')}"
    if analysis.isoflop is not None:
        for name, fit in (("N_opt", analysis.isoflop.N_opt), ("D_opt", analysis.isoflop.D_opt)):
            if fit is not None:
                interval = analysis.ci.get(name, {}).get("exponent")
                said = "withheld" if interval is None else rounded(float(fit.law.exponent), *interval)
                note = _EXACT if interval is None else f"R² {fit.r_squared:.4f}" if fit.r_squared is not None else ""
                rows.append({"method": "parabola", "parameter": f"exponent of {name}", "value": said, "": note})
    if analysis.frontier is not None:
        intervals = analysis.ci.get("L_opt", {})
        status = str(analysis.frontier.status)
        exact = "" if "exponent" in intervals or status == "gamma given" else _EXACT
        for name, value, is_known, note in (
            ("l_inf", analysis.frontier.l_inf, status == "identified", analysis.frontier.reason or status),
            ("exponent", -analysis.frontier.gamma, not exact, exact),
        ):
            said = rounded(value, *intervals.get(name, _UNKNOWN)) if is_known else "withheld"
            rows.append({"method": "frontier", "parameter": f"{name} of L_opt", "value": said, "": note})
    return pd.DataFrame(rows)


def candidate_table(analysis: ScalingAnalysis) -> pd.DataFrame:
    """What hidden budgets say for each form: its error on the largest, its rms per factor e of compute, its weight."""
    told, combination = holdout_series(analysis), analysis.combination
    rows = []
    for name in combination.forms:
        row: dict[str, str] = {"candidate": name}
        for answer, short in zip(FORETOLD, ("N", "loss"), strict=True):
            scored = combination.scores[answer][name]
            row[f"{short} error"] = _largest_error(told, name, answer)
            row[f"{short} rms"] = "" if scored.rms is None else f"{100 * scored.rms:.2g}%"
            row[f"{short} weight"] = f"{combination.weights(answer).get(name, 0.0):.2f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _largest_error(told: pd.DataFrame, name: str, answer: str) -> str:
    if told.empty:
        return ""
    mine = told[(told["candidate"] == name) & (told["answer"] == answer) & (told["hidden"] == told["hidden"].max())]
    return "" if mine.empty else f"{100 * mine.loc[mine['visible'].idxmax(), 'error']:+.2g}%"


def holdout_line(analysis: ScalingAnalysis) -> str:
    """How the headline did on the largest budget, in one line."""
    if analysis.holdout is None:
        return "no hold-out: at least three budgets are needed"
    largest, told = analysis.holdout.largest, holdout_series(analysis)
    names = {"loss": "loss", "num_params": "N_opt"}
    errors = [f"{said} {e}" for answer, said in names.items() if (e := _largest_error(told, HEADLINE, answer))]
    where = f"{format_flops(largest.hidden)} FLOPs, {largest.hidden / largest.visible:.3g}x beyond the rest"
    return f"hold-out of the largest budget ({where}): forecast off by " + (", ".join(errors) or "nothing to compare")


def noise_line(analysis: ScalingAnalysis) -> str | None:
    """What repeats with further seeds say of the noise, and of the surface by its measure; None without repeats."""
    noise, lack = analysis.noise, analysis.lack_of_fit
    if noise is None:
        return None
    low, high = noise.interval
    told = (
        f"noise between seeds: {100 * noise.sd:.2g} % of the loss ({100 * low:.2g} to {100 * high:.2g}),"
        f" {noise.degrees_of_freedom} degrees of freedom, from {noise.n_cells} cells up to"
        f" {format_flops(noise.largest_compute)} FLOPs"
    )
    if lack is None:
        return told
    verdict = "more" if is_lacking(lack) else "no more"
    return f"{told}; the surface misses cells by {verdict} than that (F = {lack.statistic:.2g}, p = {lack.p_value:.2g})"


def as_text(table: pd.DataFrame) -> str:
    """A table for the terminal; text left, so that intervals stand under each other."""
    if table.empty:
        return ""
    cells = [[str(c) for c in table.columns], *(list(row) for row in table.astype(str).to_numpy())]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def data_line(analysis: ScalingAnalysis) -> str:
    """What was fitted, in one line."""
    budgets = budgets_of(analysis)
    C = budgets if budgets.size else analysis.rows.C
    shared = f" at {budgets.size} budgets" if budgets.size else ""
    text = f"{analysis.n_runs} runs{shared}, {format_flops(C.min())} to {format_flops(C.max())} FLOPs"
    return text + (f"; {len(analysis.excluded)} left out" if analysis.excluded else "")


def answer_text(analysis: ScalingAnalysis) -> str:
    """The whole answer for a terminal: data, table, hold-out, fits, what was left out, warnings."""
    parts = [
        data_line(analysis),
        holdout_line(analysis),
        f"answered by {analysis.headline.method}: {analysis.headline.why}",
        *([said] if (said := noise_line(analysis)) else []),
        "",
        as_text(answer_table(analysis)),
    ]
    parts += ["", CANDIDATES_SAY, as_text(candidate_table(analysis)), "", as_text(parameter_table(analysis))]
    budgets = isoflop_table(analysis)
    if not budgets.empty:
        thin = budgets["status"] == str(BudgetStatus.TOO_FEW_SIZES)
        parts += ["", as_text(budgets[~thin])]
        parts += [f"{thin.sum()} more budgets have too few sizes for a minimum"] if thin.any() else []
    if analysis.excluded:
        parts += ["", "left out:", *(f"  {reason}" for reason in reasons(analysis))]
    parts += [f"no {method}: {why}" for method, why in analysis.missing.items()]
    if analysis.warnings:
        parts += ["", *(f"warning: {w}" for w in analysis.warnings)]
    return "\n".join(parts)
