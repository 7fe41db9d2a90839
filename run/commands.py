"""What every command does around its work: signals, one line for an error, the exit status."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError

from data import DataError
from dpo import NumericError, OutOfMemory
from lora import ModelError
from run import processes
from run.errors import HubError, Parser, ProcessDied, Stopped, UsageError

BAD_INPUT = (UsageError, DataError, ModelError)
FAILED = (NumericError, OutOfMemory, HubError, ProcessDied, OSError, SafetensorError)


class Stop:
    """SIGINT and SIGTERM while a run goes on, as a context.

    Where the run is `patient`, between whose steps it can be saved, the first signal is only noted
    for it to see; a second one, or any signal elsewhere, leaves at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self.patient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        if self.received or not self.patient:
            raise Stopped(number)
        self.received = number
        print("\nFinishing this step, to save it; once more leaves at once.", flush=True)


def guarded(
    name: str, work: Callable[[Stop, processes.World], Any], argv: list[str] | None = None
) -> int:
    """Do the work; return 0, 2 for bad input, 1 for what failed, 128 + n for signal n.

    An error is one line; `--debug` shows where it came from. Of several processes the first speaks.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot write a letter shows its code
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    world = processes.World()
    try:
        with Stop() as stop:
            world = processes.join()
            if not world.first:
                sys.stdout = open(os.devnull, "w", encoding="utf-8")
            work(stop, world)
            world.leave()
        return 0
    except (Stopped, KeyboardInterrupt) as error:
        number = error.number if isinstance(error, Stopped) else 2
        _say(name, world, f"stopped by {error}" if number != 2 else "interrupted")
        return 128 + number
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
        return 141
    except (*BAD_INPUT, *FAILED) as error:
        if debug:
            raise
        said = str(error)
        if isinstance(error, OSError):
            said = (
                f"{error.filename or 'a file'} cannot be written or read: {error.strerror or error}"
            )
        _say(name, world, said)
        return 2 if isinstance(error, BAD_INPUT) else 1


def _say(name: str, world: processes.World, text: str) -> None:
    if world.first:
        print(f"{name}: {text}", file=sys.stderr, flush=True)


def parser(name: str, does: str) -> Parser:
    """Return the parser of `python -m run NAME`, for its arguments to be added."""
    made = Parser(prog=f"python -m run {name}", description=does, allow_abbrev=False)
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    return made
