"""The pages of the documentation as blocks that can be run.

What a fenced block is decides its language and its title:

    ```yaml title="sweep.yaml"     a file of that name, beside the others of the page
    ```bash                        commands, in a shell of their own in the page's folder
    ```python                      code; all such blocks of a page share their names
    ```yaml                        keys of a sweep, which the parser of `flops-fit plan` must take
    ```text title="output"         what the block before it prints, numbers aside and perhaps shortened
    ```text                        no code

A comment before a block changes that, and its text says why:

    <!-- not run: REASON -->       the block is not run (or an output not compared)
    <!-- in tests: THIS -> THAT --> the block is run with THAT in the place of THIS, to take less time
    <!-- before: CODE -->          python that is run first, such as what stands for the reader's own model
    <!-- exit code: N -->          what the last command ends with, where that is not 0

and one at the top of a page, `<!-- goes on from: PAGE -->`, that its reader has followed another page first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = ("bash", "python")
KINDS = ("not run", "in tests", "before", "exit code")
LANGUAGES = ("bash", "python", "yaml", "csv", "json", "text")

_FENCE = re.compile(r'^( *)```(\w*) *(?:title="([^"]+)")?(.*)$')
_NOTE = re.compile(r"<!-- *([\w ]+?) *: *(.*?) *-->", re.DOTALL)
_NUMBER = re.compile(r"[-+±]?(?:\d[\d.,]*)(?:e[-+]?\d+)?[kMBTx%]?")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block.

    Attributes:
        where: File and line, for messages.
        language: After the fence.
        title: The file it is, or "output"; None for neither.
        code: Its text.
        notes: Kind and text of the comments before it.
    """

    where: str
    language: str
    title: str | None
    code: str
    notes: tuple[tuple[str, str], ...]

    def noted(self, kind: str) -> list[str]:
        """Texts of its comments of one kind."""
        return [text for k, text in self.notes if k == kind]

    @property
    def as_tested(self) -> str:
        """The text with its replacements."""
        code = self.code
        for note in self.noted("in tests"):
            this, arrow, that = note.partition(" -> ")
            assert arrow, f"{self.where}: write `in tests: THIS -> THAT`, not {note!r}"
            assert this in code, f"{self.where}: {this!r} is to be replaced and is not there"
            code = code.replace(this, that)
        return code


def pages() -> list[Path]:
    """README and every page of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def page_before(page: Path) -> Path | None:
    """The page that a page goes on from."""
    found = re.match(r"<!-- goes on from: (\S+) -->", page.read_text())
    return None if found is None else (page.parent / found[1]).resolve()


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text().splitlines()
    start: int | None = None
    above, i = 0, 0  # line after the last block; this line
    for i, line in enumerate(lines):
        found = _FENCE.match(line)
        if start is None and found:
            indent, language, title, rest = found.groups()
            where = f"{page.relative_to(ROOT)}:{i + 1}"
            assert language in LANGUAGES, f"{where}: a block needs a language of {LANGUAGES}, not {language!r}"
            assert not rest.strip(), f"{where}: what is {rest.strip()!r}?"
            notes = tuple(_NOTE.findall(_comments_at_end("\n".join(lines[above:i]))))
            unknown = [kind for kind, _ in notes if kind not in KINDS]
            assert not unknown, f"{where}: comments before a block are {KINDS}, not {unknown}"
            start = i + 1
        elif start is not None and line.strip() == "```":
            code = "\n".join(text.removeprefix(indent) for text in lines[start:i]) + "\n"
            yield Block(where=where, language=language, title=title, code=code, notes=notes)
            start, above = None, i + 1
    assert start is None, f"{page}: a block does not end"


def _comments_at_end(text: str) -> str:
    """The comments that stand directly before a block."""
    found = re.search(r"((?:<!--(?:(?!-->).)*-->\s*)+)\Z", text, re.DOTALL)
    return found[1] if found else ""


def missing_line(expected: str, printed: str) -> str | None:
    """The first line that is not printed in its turn, numbers and spacing aside; `[...]` stands for any."""
    rest = iter([_without_numbers(line) for line in printed.splitlines()])
    for line in expected.splitlines():
        wanted = _without_numbers(line)
        if wanted and wanted != "[...]" and wanted not in rest:
            return line
    return None


def _without_numbers(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line.expandtabs()).split())
