"""What a command says in one line instead of a traceback."""

import argparse
import difflib
import itertools
import signal
import sys
from collections.abc import Iterable
from typing import Any, NoReturn


class UsageError(ValueError):
    """A flag or a configuration file is wrong; the message names it and says what to do."""


class HubError(RuntimeError):
    """The Hub cannot be reached, or failed; the message says what to do."""


class ProcessDied(RuntimeError):
    """Another process of the run is gone; the message says how to go on."""


class Stopped(BaseException):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing every flag before it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown flags before others can be missed, since a mistyped one is what is missed.

        Raises:
            UsageError: there is an unknown flag.
        """
        known = [s for a in self._actions for s in a.option_strings]
        for word in itertools.takewhile("--".__ne__, sys.argv[1:] if args is None else args):
            flag = word.partition("=")[0]
            if flag.startswith("--") and " " not in word and flag not in known:
                raise UsageError(f"there is no flag {flag}{closest(flag, known)} (see --help)")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError` of one line."""
        raise UsageError(f"{message} (see --help)")


def closest(name: object, names: Iterable[str]) -> str:
    """Ask whether one of the names was meant; "" if none is near."""
    near = difflib.get_close_matches(str(name), list(names), 1)
    return f"; did you mean {near[0]}?" if near else ""
