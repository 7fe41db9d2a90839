"""Somebody else's program, as a chat template is one, in bounded time and memory."""

import contextlib
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from data.question import DataError

SECONDS = 5.0  # of computing
ROOM = 4 * 2**30  # bytes


@contextmanager
def limited(what: str) -> Iterator[Callable[[], object]]:
    """Stop a computation that takes longer than `SECONDS` or wants `ROOM` more memory.

    What is yielded is called before each of several computations, and starts the clock anew. The
    clock counts seconds of computing, so that a busy machine stops nothing. It is a signal, which
    reaches the main thread alone: elsewhere time has no limit.

    Raises:
        DataError: the computation is stopped; `what` is the message's subject.
    """
    try:
        with _clock() as anew, _memory():
            yield anew
    except TimeoutError:
        raise DataError(f"{what} takes longer than {SECONDS:g} seconds of computing") from None
    except MemoryError:
        raise DataError(f"{what} wants more than {ROOM / 2**30:g} GiB of memory") from None


@contextmanager
def _clock() -> Iterator[Callable[[], object]]:
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ring(*_: Any) -> NoReturn:
        raise TimeoutError

    def anew(seconds: float = SECONDS) -> object:
        return signal.setitimer(signal.ITIMER_VIRTUAL, seconds)

    before = signal.signal(signal.SIGVTALRM, ring)
    try:
        anew()
        yield anew
    finally:
        anew(0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        used = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        limits = [n for n in (soft, hard, used + ROOM) if n != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    except (OSError, ValueError):  # a system that does not tell, or knows no such limit
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
