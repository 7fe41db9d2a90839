"""`python -m run COMMAND`: what can be done with a run, a model, or data."""

import importlib
import sys

COMMANDS = {
    "data": "report how a source is read and encoded, and what is left out",
    "evaluate": "measure a run or any model: MC1, MC2, pair accuracy, with intervals",
    "sample": "answers of the base and of the tuned model, side by side; a chat",
    "merge": "merge an adapter into its base, a shard at a time",
    "publish": "check a run, and put it on the Hub in one commit",
}


def main(argv: list[str]) -> int:
    """Run the command named first; return the exit status."""
    if argv and argv[0] in COMMANDS:
        return int(importlib.import_module(f"run.{argv[0]}").main(argv[1:]))
    lines = [f"  {name:<10}{text}" for name, text in COMMANDS.items()]
    usage = "\n".join(["usage: python -m run COMMAND ... (--help of each says more)", "", *lines])
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    wrong = f"unknown command {argv[0]!r}" if argv else "a command is needed"
    print(f"python -m run: {wrong}\n\n{usage}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
