"""The data report as a command: `python -m data.preferences SOURCE --model MODEL`.

It reads a source and encodes it as a run with the same flags would, prints what it understood, and
trains nothing.
"""

import io
import sys

from data.batches import split_by_prompt
from data.encode import encode, encoding_file
from data.gather import load_preferences, read_preferences
from data.question import DataError
from data.report import examine

__all__ = ["load_preferences", "main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    # An entry point joins the rooms; `import data` must not.
    import lora
    from config import UsageError, parse
    from console import print_rows, watch
    from workspace import cache_folder, hub_token

    flags = sys.argv[1:] if argv is None else argv
    does = "Report how a source is read and encoded, and what is left out; train nothing."
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot write a letter shows its code
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        config = parse(flags, "python -m data.preferences", does, positional="data")
        source = "builtin" if config.data == "auto" else config.data
        model = "builtin" if config.model == "auto" else config.model
        folder, token = cache_folder("data"), hub_token()
        reading = read_preferences(source, config.columns, token, folder, watch)
        tokenizer = lora.load_tokenizer(model, config.revision, token)
        settings = config.text_settings(tokenizer)
        file = encoding_file(folder, reading, tokenizer, settings)
        encoding = encode(reading.preferences, tokenizer, **settings, file=file, watch=watch)
        keys = encoding.questions.column("key").tolist()
        split = split_by_prompt(keys, config.eval_fraction, config.seed)
        print_rows(examine(source, reading, encoding, tokenizer, split, settings).lines)
    except KeyboardInterrupt:
        print("\npython -m data.preferences: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = None
        return 141
    except (DataError, UsageError, lora.ModelError) as error:
        if "--debug" in flags:
            raise
        print(f"python -m data.preferences: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
