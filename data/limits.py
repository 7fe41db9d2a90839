"""Somebody else's program, as a chat template is one, in bounded time and memory.

It computes in a child process. A single operation, such as `10**(10**9)`, can take hours. Python
handles a signal only after it, while the system can end a process at any instant. To refuse such
operations while parsing would not do: two lists nested forty deep are compared in one operation,
too. A child made by `fork` starts within milliseconds, and many rows share one.
"""

import contextlib
import gc
import multiprocessing
import resource
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from data.question import DataError

SECONDS = 5.0  # of computing
ROOM = 4 * 2**30  # bytes

Item = TypeVar("Item")
Result = TypeVar("Result")


def limited(work: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """Return [work(item) for item in items]; each may take `SECONDS`, and `ROOM` more memory.

    The seconds are of computing, so that a busy machine stops nothing. What `work` changes is lost
    but for what it returns, which has to be something that pickles.

    Raises:
        DataError: the work was stopped; `what` is the message's subject.
        Exception: whatever `work` raises.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_compute, args=(work, items, ours, theirs), daemon=True)
    child.start()
    theirs.close()
    try:
        results = []
        for _ in items:
            done, result = ours.recv()
            if not done:
                raise result
            results.append(result)
        return results
    except EOFError:
        child.join()
        number = -(child.exitcode or 0)
        if number == signal.SIGPROF:
            raise DataError(f"{what} takes longer than {SECONDS:g} seconds of computing") from None
        raise DataError(f"{what} ends its process (signal {number})") from None
    except MemoryError:
        raise DataError(f"{what} wants more than {ROOM / 2**30:g} GiB of memory") from None
    finally:
        child.kill()
        child.join()
        child.close()
        ours.close()


def _compute(work: Callable[[Any], Any], items: Any, theirs: Connection, ours: Connection) -> None:
    """Send (True, result) for each item, or at last (False, error)."""
    theirs.close()  # so that nothing is sent to a parent that is gone
    gc.freeze()  # what the parent has is neither copied nor freed here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a terminal sends the parent, too
    for number in (signal.SIGTERM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    _limit_memory()
    try:
        for item in items:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            ours.send((True, work(item)))
    except BrokenPipeError:
        pass
    except Exception as error:
        error.add_note(traceback.format_exc())  # tracebacks do not pickle
        ours.send((False, error))


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # a system that does not tell, or has no limit
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        limits = [n for n in (soft, hard, used + ROOM) if n != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
