"""Puts the program's own help on the page of the command line, so that it is never behind the program."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from flops_fit.cli.main import VERBS

_HERE = "<!-- the help of every verb -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark by a section a verb."""
    if _HERE not in markdown:
        return markdown
    sections = (f"### {verb}\n\n```text\n{_help(verb)}\n```\n" for verb in VERBS)
    return markdown.replace(_HERE, "\n".join(sections))


def _help(verb: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flops_fit", verb, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
    )
    return done.stdout.strip()
