"""How many threads compute on a CPU: as many as make a small step fastest here and now.

OpenMP's threads wait for one another at each of some thousand small operations of a step. Where
something else computes on one of the cores, all of them wait for that one.
"""

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

FASTER = 0.9  # of the seconds: less of a gain is noise, and no reason for fewer threads
WINDOW = 8  # steps, of which the median counts
SLOWER = 3.0  # times as many seconds a token as before are worth a word


def fastest(step: Callable[[], Any], times: int = 3) -> int:
    """Find the number of threads with which `step` takes the least time; use and return it.

    From as many as there are it is halved, as long as that is faster. The best of some times
    counts, since the first one also makes what later ones find.
    """
    count = torch.get_num_threads()
    if count == 1:
        return 1

    def seconds() -> float:
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            step()
            taken.append(time.perf_counter() - started)
        return min(taken)

    best = seconds()
    while count > 1:
        torch.set_num_threads(count // 2)
        found = seconds()
        if found > FASTER * best:
            torch.set_num_threads(count)
            break
        count, best = count // 2, found
    return count


class Pace:
    """Notice once when steps have become much slower than they were."""

    def __init__(self) -> None:
        self.last = deque[float](maxlen=WINDOW)
        self.usual = float("inf")  # seconds a token: the least median so far
        self.noticed = False

    def slower(self, seconds: float, tokens: int) -> float:
        """Return how many times as long steps take now; 0 unless that is much, and for once."""
        self.last.append(seconds / tokens)
        if len(self.last) < WINDOW or self.noticed:
            return 0.0
        now = median(self.last)
        self.usual = min(self.usual, now)
        self.noticed = now > SLOWER * self.usual
        return now / self.usual if self.noticed else 0.0
