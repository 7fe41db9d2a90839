"""`python -m run COMMAND`: what can be done with a run, a model, or data."""

if __name__ == "__main__":
    from run import leaving  # noqa: F401  at a signal, while libraries load for seconds

import importlib
import sys

from run.commands import guarded
from run.errors import UsageError, closest

COMMANDS = {
    "data": "report how a source is read and encoded, and what is left out",
    "evaluate": "measure a run or any model: MC1, MC2, pair accuracy, with intervals",
    "sample": "answers of the base and of the tuned model, side by side; a chat",
    "scale": "make a finished run anew at another size of its adapter, without training",
    "merge": "merge an adapter into its base, a shard at a time",
    "report": "the page of a run in your browser, made anew; or of several side by side",
    "publish": "check a run, and put it on the Hub in one commit",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that is named first; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    named = " ".join(["python -m run", *argv[:1]])
    return guarded(named, lambda stop, world: command(argv), argv)


def command(argv: list[str]) -> None:
    """Do what the command does, or list the commands.

    Raises:
        UsageError: there is no such command.
    """
    name, *rest = argv or ["--help"]
    if name in COMMANDS:
        importlib.import_module(f"run.{name}").command(rest)
    elif name in ("-h", "--help"):
        print("python -m run COMMAND ...; --help after a command says more\n")
        print("\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))
    else:
        raise UsageError(f"there is no such command{closest(name, COMMANDS)} (see --help)")


if __name__ == "__main__":
    sys.exit(main())
