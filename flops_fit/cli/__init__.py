"""The command line: the edge, where errors become messages and exit codes."""

from flops_fit.cli.main import BAD_INPUT, GOOD, INTERRUPTED, SOME_FAILED, main

__all__ = ["BAD_INPUT", "GOOD", "INTERRUPTED", "SOME_FAILED", "main"]
