"""What the documentation says is done: every block of code on every page, and the site itself.

How a block is marked, and what is done with it, is told in ``pages.py``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, RUN, Block, blocks_of, missing_line, page_before, pages

from flops_fit.cli.main import VERBS, main

NAMES = [str(page.relative_to(ROOT)) for page in pages()]
_SHELL = re.compile(r"[|&;<>$`*]|\|\||&&")


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_code_that_is_run_or_says_why_not(name: str) -> None:
    printing = False
    for block in blocks_of(ROOT / name):
        assert block.as_tested
        assert all(block.noted("not run")), f"{block.where}: say why it is not run"
        if block.title == "output":
            assert printing or block.noted("not run"), f"{block.where}: no block before it prints this"
        printing |= block.language in RUN and not block.noted("not run")


def test_every_warning_is_explained() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "flops_fit").rglob("*.py"))
    codes = set(re.findall(r"Warning_\(\s*\"(\w+)\"", sources)) | {"no_budgets"}
    told = set(re.findall(r"`(\w+)`", (ROOT / "docs/how-to/report.md").read_text()))
    assert len(codes) > 20
    assert codes <= told, "docs/how-to/report.md does not explain these warnings"


def test_every_verb_is_in_the_readme() -> None:
    told = set(re.findall(r"^\| `(\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert set(VERBS) <= told


def test_what_an_output_says_is_compared_without_its_numbers() -> None:
    printed = "20 runs\n6e+11  59.6k (49.8k to 68.5k)  ok\nend"
    assert missing_line("19 runs\n[...]\n2e+10 9.9k (8.7k to 12k)   ok", printed) is None
    assert missing_line("20 runs\n6e+11  59.6k  ok", printed) == "6e+11  59.6k  ok"
    assert missing_line("end\n20 runs", printed) == "20 runs"


@pytest.fixture(scope="session")
def folder_after(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Follows a page, once, and gives the folder in which its reader then is."""
    done: dict[Path, Path | BaseException] = {}

    def follow(page: Path) -> Path:
        if page not in done:
            folder = tmp_path_factory.mktemp(page.stem) / "reader"
            try:
                before = page_before(page)
                if before is None:
                    for shipped in ("configs", "examples", "benchmarks"):
                        shutil.copytree(ROOT / shipped, folder / shipped)
                else:
                    shutil.copytree(follow(before), folder)
                _follow(page, folder)
                done[page] = folder
            except BaseException as error:
                done[page] = error
        found = done[page]
        if isinstance(found, BaseException):
            raise found
        return found

    return follow


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_a_page_does_what_the_page_says(name: str, folder_after: Callable[[Path], Path]) -> None:
    assert folder_after(ROOT / name).is_dir()


def _follow(page: Path, folder: Path) -> None:
    """Do what a page says, block by block."""
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    with contextlib.chdir(folder), _own_modules(folder):
        for block in blocks_of(page):
            if block.noted("not run"):
                continue
            for code in block.noted("before"):
                exec(compile(code, block.where, "exec"), names)
            if block.title == "output":
                line = missing_line(block.code, printed)
                assert line is None, f"{block.where}: not printed:\n{line}\n\nbut\n{printed}"
            elif block.title:
                Path(block.title).parent.mkdir(parents=True, exist_ok=True)
                Path(block.title).write_text(block.as_tested)
            elif block.language == "bash":
                printed = _commands(block)
            elif block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(compile(block.as_tested, block.where, "exec"), names)
                printed = out.getvalue()
            elif block.language == "yaml":
                _check_keys(block)


@contextlib.contextmanager
def _own_modules(folder: Path) -> Iterator[None]:
    """A page's own my_model.py is not the next page's."""
    path, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
                del sys.modules[name]


def _commands(block: Block) -> str:
    """Run commands; those of flops-fit alone in this process, which has its imports behind it."""
    lines = block.as_tested.replace("\\\n", " ").strip().splitlines()
    (wanted,) = block.noted("exit code") or ["0"]
    if not all(line.startswith("flops-fit ") and not _SHELL.search(line) for line in lines):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        command = ["bash", "-eo", "pipefail", "-c", block.as_tested]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        assert done.returncode == int(wanted), f"{block.where}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        for line in lines:
            code = _exit_code(shlex.split(line, comments=True)[1:])
            assert code == (int(wanted) if line == lines[-1] else 0), f"{block.where}: {code}\n{out.getvalue()}"
    return out.getvalue()


def _exit_code(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def _check_keys(block: Block) -> None:
    """Keys of a sweep, stacked on a whole one, are known and of the right type."""
    from flops_fit.cli.config import SweepCLI
    from flops_fit.cli.sweep import quiet_libraries

    Path("some_keys.yaml").write_text(block.as_tested)
    with quiet_libraries():
        assert SweepCLI([Path("configs/smoke.yaml"), Path("some_keys.yaml")], [], "plan").sweep, block.where


@pytest.mark.slow
def test_the_site_builds_and_asks_nothing_of_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the site is built with flops-fit[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    built = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    assert len(built) >= len(NAMES)
    for page, text in built.items():
        # What a browser fetches by itself; a link is followed by its reader alone.
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=[\"']?([^\"'\s>]+)", text)
        fetched += re.findall(r"<link\b(?![^>]*canonical)[^>]*?\bhref=[\"']?([^\"'\s>]+)", text)
        assert fetched
        foreign = [url for url in fetched if re.match(r"(?:https?:)?//", url)]
        assert not foreign, f"{page.relative_to(tmp_path)} fetches {foreign}"
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text()), sheet
