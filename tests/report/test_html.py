"""The folder is whole, the page needs nothing else, and no name in it can run."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from flops_fit.errors import DataError
from flops_fit.fit import ScalingAnalysis, Warning_
from flops_fit.report import Recorded, save_report
from flops_fit.report.checklist import ASK, checklist
from flops_fit.report.html import render_page
from flops_fit.report.markdown import render_markdown
from flops_fit.report.plots import panels, sheets
from flops_fit.report.rendering import inline_svg, lay_out

EVIL = "<script>alert(1)</script>"
QUOTES = "\"'><img src=x onerror=alert(2)>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def hostile() -> Recorded:
    """Names from users and files, every one of them bad."""
    environment = {"versions": {"torch": EVIL}, "python": QUOTES, "command": [EVIL], "git": {"commit": EVIL}}
    return Recorded(
        name=QUOTES,
        command=f"flops-fit report {EVIL}",
        config=f"name: {EVIL}\n</pre>{QUOTES}",
        plan={"model_cls_name": EVIL, "model_kwargs": {QUOTES: EVIL}, "size_param": EVIL, "basis": {"data": EVIL}},
        table=pd.DataFrame({"optimizer": [EVIL], "lr": [0.1], "device_name": [QUOTES], "loss_unit": [EVIL]}),
        environments=(environment | {"cpu": EVIL},),
        mapping={"loss": EVIL},
        notes=(QUOTES,),
    )


@pytest.fixture(scope="module")
def page(analysis: ScalingAnalysis) -> str:
    drawn = []
    for sheet in sheets(analysis)[1:3]:
        figures = list(panels(sheet))[:1]
        for figure in figures:
            lay_out(figure)
        drawn.append((sheet, [inline_svg(figure, sheet.name, sheet.title) for figure in figures]))
    return render_page(analysis, drawn, recorded=hostile())


def test_the_page_runs_nothing_and_fetches_nothing(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    kinds = [tag for tag, _ in tags.seen]
    assert not {"script", "link", "iframe", "object", "img", "embed", "form", "a"} & set(kinds)
    assert kinds.count("svg") == 2
    for _, attrs in tags.seen:
        assert not any(name.startswith("on") or name in ("src", "href", "action") for name in attrs), attrs
        assert (attrs.get("xlink:href") or "#").startswith("#"), attrs
    assert EVIL not in page
    assert page.count("&lt;script&gt;") > 8
    assert "@import" not in page


def test_ids_of_figures_are_all_different(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 20
    used = set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', page))
    assert {a or b for a, b in used} <= set(ids)


def test_the_page_holds_warnings_answers_and_what_was_left_out(page: str, analysis: ScalingAnalysis) -> None:
    assert page.count('<p class="warning') == len(analysis.warnings)
    for words in ("With 1e+19 FLOPs, the largest budget trained", "beyond the data", "diverged", "2502.18969"):
        assert words in page, words


def test_warnings_stand_before_everything_else(analysis: ScalingAnalysis) -> None:
    told = (Warning_("simulated", f"20 runs are {EVIL}"), Warning_("minimum_at_edge", "move the sizes"))
    warned = render_page(replace(analysis, warnings=told), [], target=1e24)
    assert 0 < warned.index("Do not act on this alone: </b>1e+24 FLOPs lie") < warned.index("Note: ")
    assert "With 1e+24 FLOPs, 100,000 times the largest budget trained" in warned
    assert 0 < warned.index("Note: </b>20 runs are &lt;script") < warned.index("<table")
    assert 0 < warned.index("Do not act on this alone: </b>move the sizes") < warned.index("<table")


def test_text_to_paste_is_as_tame(analysis: ScalingAnalysis) -> None:
    text = render_markdown(analysis, recorded=hostile())
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", outside)
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    widths = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert set(widths) <= set(range(3, 10))


def test_no_fence_is_closed_by_what_it_holds(analysis: ScalingAnalysis) -> None:
    text = render_markdown(analysis, recorded=Recorded(config="a: ```\n````\nb: 1"))
    assert "`````yaml\na: ```\n````\nb: 1\n`````" in text


def test_the_checklist_answers_from_the_analysis_and_asks_for_the_rest(analysis: ScalingAnalysis) -> None:
    answers = checklist(analysis, Recorded(command="flops-fit analyze runs.csv")).set_index("question")["answer"]
    assert answers["command"] == "flops-fit analyze runs.csv"
    assert answers["models trained"].startswith("29 runs of ")
    assert answers["runs left out"] == "1 x diverged"
    assert answers["data set"] == answers["optimizer"] == ASK
    assert (answers.str.len() > 0).all()


def test_the_checklist_is_filled_in_from_the_runs(analysis: ScalingAnalysis) -> None:
    table = pd.DataFrame(
        {
            "optimizer": "AdamW",
            "lr": [0.7, 0.7],
            "schedule": "linear",
            "horizon_steps": [300, 900],
            "warmup_steps": [30, 90],
            "batch_tokens": 256,
            "evaluation_tokens": 8192,
            "seconds": [1800.0, 5400.0],
            "world_size": [2, 2],
            "flops": [1e15, 3e15],
            "device_name": "H100",
            "loss_unit": "nats/token",
        }
    )
    plan = {"model_cls_name": "GPT", "model_kwargs": {"n_layer": 2}, "size_param": "d_model", "flops_rule": "counted"}
    env = {"versions": {"torch": "2.9"}, "git": {"commit": "abc", "is_dirty": True}, "python": "3.11"}
    recorded = Recorded(table=table, plan=plan, environments=(env, env))
    answers = checklist(analysis, recorded).set_index("question")["answer"]
    assert answers["architecture and shape"] == "GPT(n_layer=2), its size set by d_model"
    assert answers["schedule"] == "linear, over each run's own 300, 900 steps, 30, 90 of them warm-up"
    assert answers["time of devices"] == "4 h 00 min of training for 4e+15 FLOPs"
    assert answers["source in training"] == "git commit abc, with changes that were not committed"
    assert answers["versions in training"] == "torch 2.9, Python 3.11"
    assert ASK not in answers[["optimizer", "peak learning rate", "batch", "devices", "evaluation set"]].tolist()


def test_a_folder_that_cannot_be_written_is_told(analysis: ScalingAnalysis, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        save_report(analysis, tmp_path / "file" / "report")


def test_a_reference_that_is_none_is_told(analysis: ScalingAnalysis, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'chinchila' is no reference law"):
        save_report(analysis, tmp_path / "report", references=["chinchila"])
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_the_folder_is_whole_and_the_same_bytes_each_time(analysis: ScalingAnalysis, tmp_path: Path) -> None:
    first, second = (save_report(analysis, tmp_path / name).parent for name in ("one", "two"))
    files = {str(p.relative_to(first)): p.read_bytes() for p in first.rglob("*") if p.is_file()}
    drawn = {sheet.name: sheet for sheet in sheets(analysis)}
    assert set(drawn) == {"isoflop", "optimum", "frontier", "residuals", "surface", "holdout", "leave_out"}
    names = {f"{name}_{panel}" if panel else name for name, sheet in drawn.items() for panel in sheet.panels}
    assert set(files) == {"report.html", "report.md", "optimal.csv", "runs.csv", "left_out.csv"} | {
        f"figures/{name}.{suffix}" for name in names for suffix in ("png", "pdf")
    } | {f"figures/{name}.csv" for name in drawn}
    for name, content in files.items():
        assert (second / name).read_bytes() == content, name
    optimal = pd.read_csv(first / "optimal.csv")
    assert optimal["num_params"].iloc[0] == analysis.predict(float(optimal["compute_budget"].iloc[0])).num_params
    assert (optimal["schema_version"] == 1).all()
    assert len(pd.read_csv(first / "runs.csv")) == analysis.n_runs
