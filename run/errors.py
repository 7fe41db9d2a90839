"""What a command says in one line instead of a traceback."""

import argparse
import difflib
import signal
from collections.abc import Iterable
from typing import NoReturn


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

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError` of one line."""
        wrong = message.partition("unrecognized arguments: ")[2].split(" ")[0]
        flags = [s for a in self._actions for s in a.option_strings]
        raise UsageError(f"{message}{closest(wrong, flags) if wrong else ''} (see --help)")


def closest(name: object, names: Iterable[str]) -> str:
    """Ask whether one of the names was meant; "" if none is near."""
    near = difflib.get_close_matches(str(name), list(names), 1)
    return f"; did you mean {near[0]}?" if near else ""
