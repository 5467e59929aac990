"""What the verbs share: a parser with short messages and short help, amounts with units, nearest names."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from flops_fit.cli.main import EXAMPLES, VERBS
from flops_fit.cli.terminal import say
from flops_fit.errors import FlopsFitError
from flops_fit.redaction import redacted_words

__all__ = ["Parser", "amount", "command_line", "nearest", "parser_of", "say"]

_NUMBERS = {"int": "a whole number, such as 4", "float": "a number, such as 2.5"}


class Parser(argparse.ArgumentParser):
    """One message and the way to more, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        problem, hint = self._told(message)
        raise FlopsFitError(problem, hint=hint or f"`{self.prog} --help` shows the options")

    def _told(self, message: str) -> tuple[str, str | None]:
        """argparse's complaint in plain words, and what was probably meant."""
        if match := re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.DOTALL):
            return self.unknown(match[1])
        if match := re.fullmatch(r"argument ([^:]+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            choices = [c.strip(" '") for c in match[3].split(",")]
            near = nearest(match[2], choices)
            return f"{_last(match[1])} {match[2]!r} is none of {', '.join(choices)}", near and f"did you mean {near}?"
        if match := re.fullmatch(r"argument ([^:]+): invalid (\w+) value: '(.*)'", message):
            return f"{_last(match[1])} {match[3]!r} is not {_NUMBERS.get(match[2], 'right')}", None
        if match := re.fullmatch(r"the following arguments are required: (.*)", message):
            return f"{_needed(match[1])} is needed", _example_of(self.prog)
        if match := re.fullmatch(r"argument ([^:]+): (.*)", message, re.DOTALL):
            if match[2] == "expected one argument":
                return f"{_last(match[1])} needs a value", _example_of(self.prog)
            problem, _, hint = match[2].partition("; ")  # an amount's units
            return f"{_last(match[1])}: {problem}", hint or None
        return message, None

    def unknown(self, word: str, also: Iterable[str] = ()) -> tuple[str, str | None]:
        """What is to be said about a word that is none of ours.

        Args:
            word: The word.
            also: Further options that there are.
        """
        if not word.startswith("-"):
            return f"{word!r} is one word too many", _example_of(self.prog)
        name = word.partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings] + list(also)
        first, dot, rest = name.partition(".")
        near = nearest(first, [option for option in known if option.startswith("--")])
        near = near and near + dot + rest
        return f"there is no option {name}", near and f"did you mean {near}?"

    def format_help(self) -> str:
        """As argparse, with a usage line that fits on one."""
        needed = [str(a.metavar or a.dest).upper() for a in self._actions if not a.option_strings]
        self.usage = " ".join([self.prog, *needed, "[options]"])
        return super().format_help()


class _Help(argparse.HelpFormatter):
    """Fills paragraphs and leaves alone what is indented: examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(line if line.startswith(" ") else fill(line, width, indent) for line in text.split("\n"))


def parser_of(verb: str, *, json: bool = True) -> Parser:
    """A verb's parser, with ``--json`` where it answers."""
    examples = "\n".join(f"  flops-fit {verb} {words}" for words in EXAMPLES.get(verb, ()))
    parser = Parser(
        prog=f"flops-fit {verb}",
        description=VERBS[verb][1].partition(": `")[0].capitalize() + ".",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    if json:
        parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser


def amount(parse: Callable[[str], float]) -> Callable[[str], float]:
    """An argparse type of one of the parsers in ``flops_fit.units``."""

    def convert(text: str) -> float:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def command_line(verb: str, words: Sequence[str]) -> str:
    """The command as it can be given again in a shell, without what looks like a credential."""
    return shlex.join(["flops-fit", verb, *redacted_words(words)])


def nearest(word: str, known: Iterable[Any], cutoff: float = 0.65) -> str | None:
    """The name that was probably meant; None where none is near."""
    names = {str(name).lower(): str(name) for name in known}
    close = difflib.get_close_matches(word.lower(), sorted(names), n=1, cutoff=cutoff)
    return names[close[0]] if close else None


def _last(spellings: str) -> str:
    """--output of --output/-o."""
    return max(spellings.split("/"), key=len)


def _needed(names: str) -> str:
    return names if names.startswith("-") else names.upper()


def _example_of(prog: str) -> str | None:
    """The shortest sound command of a verb."""
    words = EXAMPLES.get(prog.rpartition(" ")[2])
    return f"for example `{prog} {words[0]}`" if words else None
