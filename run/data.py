"""`python -m run data`: how a source is read and encoded, and what is left out of it."""

from dataclasses import replace
from typing import Any

from run import inputs
from run.config import parse
from run.console import print_rows

DOES = "Report how a source is read and encoded, and what is left out; train nothing."


def command(argv: list[str]) -> None:
    """Read and encode a source as a run with the same flags would; print what was understood."""
    inputs.prepare_libraries()
    config = parse(argv, "python -m run data", DOES, positional="data")
    auto = [name for name in ("data", "model") if getattr(config, name) == "auto"]
    builtin: Any = dict.fromkeys(auto, "builtin")  # nothing is asked of the Hub
    config = replace(config, **builtin)
    tokenizer, text = inputs.load_tokenizer(config)
    print_rows(inputs.read_questions(config, tokenizer, text).report.lines)
