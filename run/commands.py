"""What every command does around its work: signals, one line for an error, the exit status."""

import contextlib
import io
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from data import DataError
from dpo import NumericError, OutOfMemory
from lora import ModelError, is_failure, reason
from run import folder, processes
from run.errors import HubError, Parser, ProcessDied, Stopped, UsageError

BAD_INPUT = (UsageError, DataError, ModelError)
FAILED = (NumericError, OutOfMemory, HubError, ProcessDied, OSError)
OURS = Path(__file__).parents[1]


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

    An error is one line; `--debug` shows where it came from. Of several processes the first speaks,
    unless an error may be another one's alone.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # closed by who started it
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
    except BaseException as error:
        if debug or not is_failure(error):
            raise
        if isinstance(error, (OutOfMemory, OSError)):  # which others may not share
            world = processes.World()
        if isinstance(error, OSError):
            _say(name, world, folder.write_refused(error))
            if error.filename is None:  # it may be the output that has no room
                sys.stdout = open(os.devnull, "w", encoding="utf-8")
        elif isinstance(error, (*BAD_INPUT, *FAILED)):
            _say(name, world, str(error))
        else:  # each process speaks for itself
            _say(name, processes.World(), _unforeseen(error))
        return 2 if isinstance(error, BAD_INPUT) else 1


def _say(name: str, world: processes.World, text: str) -> None:
    """Print one line, in which nothing that somebody wrote moves the cursor."""
    if world.first:
        line = " ".join(text.splitlines())
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
        print(f"{name}: {shown}", file=sys.stderr, flush=True)


def _unforeseen(error: BaseException) -> str:
    """Say in one line what nobody foresaw, and write all that is known of it into a file."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if OURS in Path(frame.filename).parents and "site-packages" not in frame.filename
    ]
    at = f"{Path(own[-1].filename).relative_to(OURS)}, line {own[-1].lineno}" if own else ""
    doing = f"{own[-1].name} failed ({at})" if own else "failed"
    text = "".join(traceback.format_exception(error))
    for place in (folder.cache_folder("errors"), Path(tempfile.gettempdir())):
        path = place / f"{datetime.now():%Y-%m-%d-%H%M%S}-{os.getpid()}.txt"
        with contextlib.suppress(OSError):
            path.touch(mode=0o600, exist_ok=False)  # it may quote what is nobody's business
            path.write_text(f"{sys.argv}\n{sys.version}\n{text}", "utf-8", "backslashreplace")
            return f"{doing}: {reason(error)}; the full text is in {path}"
    return f"{doing}: {reason(error)}; --debug shows the full text"


def parser(name: str, does: str) -> Parser:
    """Return the parser of `python -m run NAME`, for its arguments to be added."""
    made = Parser(prog=f"python -m run {name}", description=does, allow_abbrev=False)
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    return made
