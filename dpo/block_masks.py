"""Which blocks of 128 x 128 tokens flex attention reads, straight from where subtrees end.

Token i sees token j where j <= i < ends[j], and within a window where positions[i] - positions[j]
is below it. No mask (B, L, L) is made. Shape legend: B rows, L tokens in a row, T blocks of a row.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # tokens; what flex attention's kernels are made for


def tree_block_mask(positions: Tensor, ends: Tensor, window: int | None = None) -> BlockMask:
    """Return what `create_block_mask` would for `ancestor_mask`, for positions and ends (B, L)."""
    some, full = blocks_seen(positions, ends, window)
    listed = [_listed(some & ~full), _listed(full)]
    return BlockMask.from_kv_blocks(
        *listed[0], *listed[1], BLOCK, partial(_seen, positions, ends, window),
        (ends.shape[1], ends.shape[1]),
    )  # fmt: skip


def blocks_seen(positions: Tensor, ends: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Return (B, T, T) bool: does any token of block i see one of block j, and do all see all?

    Of the columns j that reach into a block of queries, ends[j] > 128 i, the block's first
    ends[j] - 128 i tokens see j; all of them, where it ends beyond the block. A window lets those
    see it that are near enough: the nearest of them, and all if the farthest is.
    """
    length = ends.shape[1]
    more = -length % BLOCK
    column = torch.arange(length + more, device=ends.device)
    ends = F.pad(ends, (0, more))  # 0: a column that is none is seen by none
    positions = F.pad(positions, (0, more))
    queries = positions.unflatten(1, (-1, BLOCK))  # (B, T, 128)
    start = column[::BLOCK, None]  # (T, 1): the first token of a block
    seeing = (ends[:, None] - start).clamp(0, BLOCK)  # (B, T, L): how many of block i see j
    before = column < start + BLOCK  # (T, L): columns of later blocks are seen by none
    seen = (seeing > 0) & before
    whole = (seeing == BLOCK) & (column < start)
    if window is not None:
        nearest = queries.cummin(-1).values.gather(2, (seeing - 1).clamp(min=0))
        own = (start <= column) & before & (ends[:, None] > column)  # a token sees itself
        seen &= (nearest - positions[:, None] < window) | own
        whole &= queries.amax(-1, keepdim=True) - positions[:, None] < window
    some, full = (x.unflatten(2, (-1, BLOCK)) for x in (seen, whole))  # (B, T, T, 128)
    return some.any(-1), full.all(-1)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, 1, T) how many blocks of keys each block of queries has, and (B, 1, T, T) which.

    Those that it has come first, in their order.
    """
    count = blocks.sum(-1, dtype=torch.int32)
    order = blocks.int().argsort(stable=True, dim=-1, descending=True).int()
    return count[:, None], order[:, None]


def _seen(
    positions: Tensor, ends: Tensor, window: int | None,
    row: Tensor, head: Tensor, i: Tensor, j: Tensor,
) -> Tensor:  # fmt: skip
    """Answer what flex attention asks: may token i of a row attend to token j?"""
    seen = (j <= i) & (i < ends[row, j])
    return seen if window is None else seen & (positions[row, i] - positions[row, j] < window)
