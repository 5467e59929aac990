"""The folder is whole, the page needs nothing else, and no name in it can run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from flops_fit.errors import DataError
from flops_fit.fit import ScalingAnalysis
from flops_fit.report import figures, save_report
from flops_fit.report.checklist import ASK, checklist
from flops_fit.report.html import render_page

EVIL = "<script>alert(1)</script>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(analysis: ScalingAnalysis) -> str:
    return render_page(analysis, figures(analysis)[2:4], command=f"flops-fit report {EVIL}")


def test_the_page_runs_nothing_and_fetches_nothing(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    kinds = [tag for tag, _ in tags.seen]
    assert not {"script", "link", "iframe", "object"} & set(kinds)
    assert kinds.count("img") == 2
    sources = [attrs["src"] or "" for _, attrs in tags.seen if "src" in attrs]
    assert all(s.startswith("data:image/svg+xml;base64,") for s in sources)
    assert not re.search(r"\son\w+=", re.sub(r'src="[^"]*"', "", page))
    assert EVIL not in page
    assert page.count("&lt;script&gt;") == 2


def test_the_page_holds_warnings_answers_and_what_was_left_out(page: str, analysis: ScalingAnalysis) -> None:
    assert page.count('class="warning"') == len(analysis.warnings)
    for words in ("Compute-optimal models", "beyond the data", "diverged", "2502.18969", "Hold-out of the largest"):
        assert words in page, words


def test_the_checklist_answers_from_the_analysis_and_asks_for_the_rest(analysis: ScalingAnalysis) -> None:
    answers = checklist(analysis, "flops-fit analyze runs.csv").set_index("question")["answer"]
    assert answers["command"] == "flops-fit analyze runs.csv"
    assert answers["models trained"].startswith("29 runs of ")
    assert answers["runs left out"] == "1 x diverged"
    assert answers["data set and tokenizer"] == ASK
    assert (answers.str.len() > 0).all()


def test_a_folder_that_cannot_be_written_is_told(analysis: ScalingAnalysis, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        save_report(analysis, tmp_path / "file" / "report")


@pytest.mark.slow
def test_the_folder_is_whole_and_the_same_bytes_each_time(analysis: ScalingAnalysis, tmp_path: Path) -> None:
    first, second = (save_report(analysis, tmp_path / name).parent for name in ("one", "two"))
    files = {str(p.relative_to(first)): p.read_bytes() for p in first.rglob("*") if p.is_file()}
    drawn = ("isoflop", "optimum", "frontier", "residuals", "holdout")
    assert set(files) == {"report.html", "optimal.csv", "runs.csv"} | {
        f"figures/{name}.{suffix}" for name in drawn for suffix in ("png", "pdf", "csv")
    }
    for name, content in files.items():
        assert (second / name).read_bytes() == content, name
    optimal = pd.read_csv(first / "optimal.csv")
    assert optimal["num_params"].iloc[0] == analysis.predict(float(optimal["compute_budget"].iloc[0])).num_params
    assert (optimal["schema_version"] == 1).all()
    assert len(pd.read_csv(first / "runs.csv")) == analysis.n_runs
