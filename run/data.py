"""`python -m run data`: how a source is read and encoded, and what is left out of it."""

from dataclasses import replace

from run import inputs
from run.config import parse
from run.console import print_rows

DOES = "Report how a source is read and encoded, and what is left out; train nothing."


def command(argv: list[str]) -> None:
    """Read and encode a source as a run with the same flags would; print what was understood."""
    inputs.prepare_libraries()
    config = parse(argv, "python -m run data", DOES, positional="data")
    if config.model == "auto":  # nothing is asked of the Hub
        config = replace(config, model="builtin")
    named = tuple("builtin" if name == "auto" else name for name in config.data)
    config = replace(config, data=named)
    tokenizer, text = inputs.load_tokenizer(config)
    print_rows(inputs.read_questions(config, tokenizer, text).report.lines)
