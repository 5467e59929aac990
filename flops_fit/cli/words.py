"""What the verbs share: a parser with short messages, amounts with units, chatter on standard error."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from flops_fit.cli.main import VERBS
from flops_fit.errors import FlopsFitError
from flops_fit.redaction import redacted_words


class Parser(argparse.ArgumentParser):
    """One message and the way to more, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise FlopsFitError(f"{self.prog}: {message}", hint=f"`{self.prog} --help` shows the options")


def parser_of(verb: str, *, json: bool = True) -> Parser:
    """A verb's parser, with ``--json`` where it answers."""
    parser = Parser(prog=f"flops-fit {verb}", description=VERBS[verb][1], allow_abbrev=False)
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


def say(text: str) -> None:
    """Chatter: results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)
