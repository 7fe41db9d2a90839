"""The data report as a command: `python -m data.preferences SOURCE --model MODEL`.

It reads a source and encodes it as a run with the same flags would, prints what it understood, and
trains nothing.
"""

import sys

from data.gather import load_preferences, read_preferences
from data.prepare import prepare

__all__ = ["load_preferences", "main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    # An entry point joins the rooms; `import data` must not.
    import lora
    from commands import guarded
    from config import parse
    from console import print_rows, watch
    from workspace import cache_folder, hub_token

    name = "python -m data.preferences"
    does = "Report how a source is read and encoded, and what is left out; train nothing."

    def report() -> None:
        config = parse(argv, name, does, positional="data")
        source = "builtin" if config.data == "auto" else config.data
        model = "builtin" if config.model == "auto" else config.model
        folder, token = cache_folder("data"), hub_token()
        reading = read_preferences(source, config.columns, token, folder, watch)
        tokenizer, limit = lora.load_tokenizer(model, config.revision, token)
        settings = config.text_settings(tokenizer, limit)
        share, seed = config.eval_fraction, config.seed
        prepared = prepare(source, reading, tokenizer, settings, folder, share, seed, watch)
        print_rows(prepared.report.lines)

    return guarded(name, lambda stop, world: report(), argv)


if __name__ == "__main__":
    sys.exit(main())
