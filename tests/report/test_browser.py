"""The page in a real browser: it fits a screen and a phone, runs nothing, asks for nothing, and has no complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape
from pathlib import Path

import pandas as pd
import pytest

from flops_fit.fit import analyze_runs
from flops_fit.report import Recorded
from flops_fit.report.html import render_page
from flops_fit.report.plots import panels, sheets
from flops_fit.report.rendering import inline_svg, lay_out

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Tries every way out of the text it stands in; what runs, changes the page's title.
EVIL = (
    "\"'></title></style></pre></td></svg><script>document.title='ran'</script><img src=x onerror=document.title='ran'>"
)
LONG = "a_name_without_any_end_" * 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open the page in"),
]


@pytest.fixture(scope="module")
def page(sweep: Callable[..., pd.DataFrame]) -> str:
    frame = sweep()
    frame["run_id"] = [f"{EVIL} {LONG} {i}" for i in range(len(frame))]
    analysis = analyze_runs(frame, n_bootstrap=50, unit=EVIL)
    drawn = []
    for sheet in sheets(analysis)[:2]:
        figures = list(panels(sheet))
        for figure in figures:
            lay_out(figure)
        drawn.append((sheet, [inline_svg(f, str(f.get_label()), EVIL) for f in figures]))
    recorded = Recorded(
        name=EVIL + LONG,
        command=f"flops-fit report {EVIL} {LONG}",
        config=f"{LONG}: {EVIL}\n" * 3,
        plan={"model_cls_name": LONG, "model_kwargs": {LONG: EVIL}},
        notes=(EVIL, LONG),
    )
    return render_page(analysis, drawn, recorded=recorded)


def opened(page: str, folder: Path) -> tuple[str, str]:
    """The page's document after loading, and what the browser logged."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    assert BROWSER is not None
    quiet = "--disable-background-networking --disable-component-update --disable-sync --no-first-run --disable-quic"
    options = f"--headless --no-sandbox --disable-gpu {quiet} --enable-logging=stderr --dump-dom".split()
    # Nothing resolves: whatever the page asked the network for would be an error on its console.
    options += [f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [BROWSER, *options, "--window-size=1600,2000", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return done.stdout, done.stderr


def test_it_runs_nothing_and_has_no_complaint(page: str, tmp_path: Path) -> None:
    document, log = opened(page, tmp_path)
    title = re.search(r"<title>(.*?)</title>", document, re.DOTALL)
    assert title is not None
    assert title[1].startswith("Scaling analysis of ")
    assert "<script" not in document
    assert document.count("<svg") == 4
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []


@pytest.mark.parametrize("width", [1400, 400])
def test_it_scrolls_down_and_never_aside(page: str, tmp_path: Path, width: int) -> None:
    # No window is as narrow as a phone, but a frame is; the page in it keeps its own rules.
    frame = f'<iframe style="width: {width}px; height: 2000px; border: 0" srcdoc="{escape(page)}"></iframe>'
    measure = (
        "<script>onload = () => { const frame = document.querySelector('iframe'), root = frame.contentDocument;"
        " document.title = [root.documentElement.scrollWidth, frame.contentWindow.innerWidth].join('/') }</script>"
    )
    document, _ = opened(f"<!DOCTYPE html><title></title>{frame}{measure}", tmp_path)
    title = re.search(r"<title>(\d+)/(\d+)</title>", document)
    assert title is not None, document[:300]
    assert int(title[2]) == width
    assert int(title[1]) <= width
