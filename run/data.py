"""`python -m run data`: how a source is read and encoded, and what is left out of it."""

from dataclasses import replace
from typing import Any

from run import inputs
from run.commands import guarded
from run.config import parse
from run.console import print_rows

NAME = "python -m run data"
DOES = "Report how a source is read and encoded, and what is left out; train nothing."


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return guarded(NAME, lambda stop, world: report(argv), argv)


def report(argv: list[str] | None) -> None:
    """Read and encode a source as a run with the same flags would, and print what was understood.

    Raises:
        UsageError: a flag is wrong.
    """
    inputs.prepare_libraries()
    config = parse(argv, NAME, DOES, positional="data")
    names: dict[str, Any] = {
        name: "builtin" for name in ("data", "model") if getattr(config, name) == "auto"
    }
    config = replace(config, **names)
    tokenizer, text = inputs.load_tokenizer(config)
    print_rows(inputs.read_questions(config, tokenizer, text).report.lines)
