"""What a notebook shows of a plan, a result and a prediction: small, escaped, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import flops_fit
from flops_fit.experiment import Experiment, SweepPlan
from flops_fit.fit import Warning_
from flops_fit.report.tables import answer_text
from flops_fit.result import Result
from flops_fit.units import format_flops

EVIL = "<script>alert('1')</script>"


def tags(html: str) -> set[str]:
    """Every tag in a piece of HTML; all that are opened are closed."""
    parser, seen, depth = HTMLParser(), set(), 0

    def opened(tag: str, attrs: object) -> None:
        nonlocal depth
        seen.add(tag)
        depth += 1

    def closed(tag: str) -> None:
        nonlocal depth
        depth -= 1

    parser.handle_starttag, parser.handle_endtag = opened, closed  # type: ignore[method-assign]
    parser.feed(html)
    assert depth == 0
    return seen


@pytest.fixture(scope="module")
def result() -> Result:
    C = np.repeat([1e17, 1e18, 1e19], 5)
    N = np.sqrt(C / 120) * np.tile(np.geomspace(0.3, 3, 5), 3)
    loss = 1.8 + 480 * N**-0.35 + 2100 * (C / 6 / N) ** -0.37
    return flops_fit.analyze(pd.DataFrame({"num_params": N, "num_tokens": C / 6 / N, "loss": loss}), n_bootstrap=20)


def test_a_plan_shows_its_budgets_and_not_every_run() -> None:
    runs = [
        Experiment(
            experiment_id=f"{C}{n}",
            compute_budget=C,
            size_param_value=n,
            num_params=1000 * n,
            num_tokens=int(C / 6000 / n),
            flops_per_token=6e3 * n,
        )
        for C in (1e12, 1e13)
        for n in range(10, 60)
    ]
    plan = SweepPlan(
        experiments=runs,
        size_param=EVIL,
        model_cls_name=EVIL,
        model_kwargs={},
        compute_budgets=[1e12, 1e13],
        warnings=[EVIL],
    )
    html = plan._repr_html_()
    assert html.count("<tr>") == 3
    assert tags(html) <= {"p", "b", "div", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert "10 to 59" in html
    assert "100 runs, 5.5e+14 FLOPs in all" in html

    title, _, columns, *budgets, note = str(plan).splitlines()
    assert "100 runs, 5.5e+14 FLOPs in all" in title
    assert note == f"note: {EVIL}"
    assert [row.split()[:5] for row in budgets] == [[C, "50", "10", "to", "59"] for C in ("1e+12", "1e+13")]
    assert {len(row) for row in budgets} == {len(columns)}
    assert repr(plan) == f"<SweepPlan of {title}>"


def test_a_prediction_shows_intervals_and_what_to_know(result: Result) -> None:
    said = result.predict(1e21)
    html = replace(said, warnings=(Warning_("x", EVIL),), loss=None)._repr_html_()
    assert "script" not in tags(html)
    for text in ("1e+21", " to ", "withheld", "100 times the largest budget trained"):
        assert text in html


def test_the_budget_that_an_answer_calls_for_has_its_interval(result: Result) -> None:
    said = result.predict(params=2e9)
    low, high = said.ci["compute_budget"]
    assert str(said).startswith(f"C = {format_flops(said.compute_budget)} ({format_flops(low)} to ")
    assert f"({format_flops(low)} to {format_flops(high)})" in said._repr_html_()
    unbounded = replace(said, ci={"compute_budget": (low, np.inf)})
    assert f"({format_flops(low)} or more) FLOPs" in str(unbounded)


def test_a_result_shows_its_answer_first(result: Result) -> None:
    analysis = replace(result.analysis, warnings=(Warning_("x", EVIL),), unit=EVIL)
    html = replace(result, analysis=analysis)._repr_html_()
    assert "script" not in tags(html)
    assert html.startswith("<p><b>With 1e+19 FLOPs, the largest budget trained, the best model has ")
    assert html.index("<table") < html.index("[x]")


def test_what_is_printed_is_an_answer_and_no_dump_of_arrays(result: Result) -> None:
    assert str(result) == answer_text(result.analysis)
    assert repr(result.analysis) == "<ScalingAnalysis of 15 runs up to 1e+19 FLOPs, answered by combination>"
    assert repr(result).startswith("Result(")
    assert max(map(len, (repr(result), repr(result.analysis)))) < 1000


def test_neither_needs_torch_nor_matplotlib() -> None:
    code = "import sys, flops_fit.result, flops_fit.report.tables, flops_fit.experiment, flops_fit.fit.prediction\n"
    code += "assert not {'torch', 'matplotlib', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
