"""How tries are packed into rows of equal length, with little padding.

Tries in one row do not see each other: each has a mask and positions of its own.
"""

import math
from collections.abc import Sequence

ROW_TOKENS = 256  # rows of short tries are about this long; attention stays cheap there
ROOM = 1.25  # rows of longer ones are at most about this many times as long as the longest
MULTIPLE = 16  # rows are padded to this: every further shape costs a CPU's library time and memory


def pack_rows(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (row, first column) for tries of these sizes, with as little padding as may be.

    For each number of rows, the longest goes first and each into the emptiest row, which keeps rows
    near one length (LPT, Graham 1969); the number of rows whose padded area is smallest is taken.
    """

    def plan(rows: int) -> tuple[int, list[tuple[int, int]]]:
        used, place = [0] * rows, [(0, 0)] * len(sizes)
        for k in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
            row = used.index(min(used))
            place[k] = (row, used[row])
            used[row] += sizes[k]
        return rows * row_length(max(used)), place

    longest = max(sizes)
    room = ROW_TOKENS if longest <= ROW_TOKENS else ROOM * longest
    fewest = math.ceil(sum(sizes) / room)
    return min(map(plan, range(fewest, 2 * fewest + 1)), key=lambda found: found[0])[1]


def row_length(longest: int) -> int:
    """Return the length of the rows, when the fullest of them has `longest` tokens."""
    return -(-longest // MULTIPLE) * MULTIPLE


def padded_tokens(sizes: Sequence[int], packed: bool = True) -> int:
    """Return about how many tokens a batch of tries of these sizes has, with its padding.

    Short tries are `packed` without much of it. Long ones, and plain rows, are padded to the
    longest of them.
    """
    longest, total = max(sizes), sum(sizes)
    if not packed:
        return len(sizes) * longest
    return total if longest <= ROW_TOKENS else -(-total // longest) * longest
