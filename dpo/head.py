"""The fused head: log-probs of the tokens that follow, in one pass over the vocabulary.

No logits are kept. The vocabulary is read in tiles, and the gradient is formed in the same pass.

Shape legend: D nodes that predict, E scored edges, S ordered pairs of siblings, H hidden,
V vocabulary, T words of a tile.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# T x D float32 scores held at a time: the size of a CPU's cache, and 256 MiB on a GPU, where a tile
# must be enough work.
TILE_CELLS = {"cpu": 2**21, "cuda": 2**26}
LOG2_E = 1 / math.log(2)
SMALLEST_TILE = 512  # words; below it, calls cost more than they compute
ROWS_MULTIPLE = 16  # what the matrix units of CPUs and GPUs fill in any case
LIGHT = 1  # a word's even shares of the slack; all words as light as that fit into it
FOLD = 64  # words side by side: torch is slow where it reduces many short rows


class Head(NamedTuple):
    """How hidden states become logits: cap(scale * (h W^T + bias)), cap(z) = c tanh(z / c)."""

    weight: Tensor  # (V, H), frozen
    bias: Tensor | None  # (V,), frozen
    scale: float = 1.0
    softcap: float | None = None  # c; Gemma 2 has 30
    tile_cells: int | None = None  # float32 scores held at a time; None: what suits the device


def head_of(model: Any, tile_cells: int | None = None) -> Head:
    """Read a model's output head. What it cannot express, the self-check at start-up finds.

    `tile_cells` is how many float32 scores are held at a time, by default what suits the device.
    """
    linear, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, getattr(linear, "bias", None), scale, softcap, tile_cells)


def token_logps(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    node: Tensor | None = None,
    siblings: Tensor | None = None,
) -> Tensor:
    """Return (E,) float32: log softmax(z)[y] for hidden (D, H) and targets y (E,).

    `node` (E,) says which row of `hidden` predicts a target; row e without it. `siblings` (2, S)
    are the ordered pairs of targets that one row predicts. A float64 model is scored in float64.

    Take the target y out of the sum and a token's log-prob is a logistic function, just as a DPO
    pair is. With R = log sum_{v != y} exp z_v, the log-sum-exp of the rest,

        log p_y       = -softplus(R - z_y)
        d log p_y/dz  = (1 - p_y) (onehot_y - q)       1 - p_y = sigmoid(R - z_y)

    where q is the softmax over the rest alone. Both are exact for confident tokens, where forming
    onehot - p would cancel: no 1 - p is ever computed from a rounded p near 1. R is that of the
    words that are no target of the row, summed over the vocabulary once, and the row's other
    targets, joined to it one by one, since to take y out of a finished sum would cancel as well.
    """
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))  # all sums are in it
    if node is None:
        node = torch.arange(len(targets), device=targets.device)
    bias = None if head.bias is None else head.bias[targets]
    scores = (hidden[node] * head.weight[targets].to(hidden.dtype)).sum(-1)  # (E,)
    z, _ = _logits(scores, bias, head)
    others: Tensor = _OtherWords.apply(hidden, node, targets, head)  # type: ignore[no-untyped-call]
    rest = others[node]
    if siblings is not None:
        edge, sibling = siblings
        # The maximum takes no part in the gradient: R does not depend on it.
        m = rest.detach().scatter_reduce(0, edge, z.detach()[sibling], "amax")
        total = torch.exp(rest - m).index_add(0, edge, torch.exp(z[sibling] - m[edge]))
        rest = m + total.log()  # eq. (13) of docs/math.md
    return -F.softplus(rest - z)  # eq. (14) of docs/math.md


def token_logits(hidden: Tensor, words: Tensor, head: Head) -> Tensor:
    """Return (M, k) float32: the logits of k words (M, k) for each hidden state (M, H)."""
    weight = head.weight[words].to(hidden.dtype)  # (M, k, H)
    bias = None if head.bias is None else head.bias[words]
    return _logits((weight @ hidden[..., None]).squeeze(-1), bias, head)[0]


def _logits(scores: Tensor, bias: Tensor | None, head: Head) -> tuple[Tensor, Tensor | None]:
    """Return z and dz/d(scores) / scale (None stands for 1) for scores h W^T."""
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if head.scale != 1.0:
        scores = scores * head.scale
    if head.softcap is None:
        return scores, None
    t = torch.tanh(scores / head.softcap)
    return head.softcap * t, 1 - t * t  # eq. (11) of docs/math.md


class _OtherWords(torch.autograd.Function):
    """(D,): log sum_v exp z_v over the words v that are no target of a row.

    No logits are kept. For each tile of words their scores z are added to two running sums, of
    exp z_v and of exp(z_v) W_v, and the next tile overwrites them. The second sum over the first is
    the gradient, so that backward only multiplies. The sums are float32, with a running maximum m
    as in online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867).

    On a CPU the mean goes without words that rounding would swallow, an idea of Cut Cross-Entropy
    (arXiv 2411.09009): of q they have at most half an epsilon of W's dtype, all tiles together.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, node: Tensor, targets: Tensor, head: Head) -> Tensor:
        need_grad = ctx.needs_input_grad[0]
        weight, width, wide = head.weight, hidden.shape[1], hidden.dtype
        # Few sizes, since oneDNN keeps a product for each: the last row is repeated.
        rows = len(hidden) + -len(hidden) % ROWS_MULTIPLE
        filled = torch.arange(rows, device=hidden.device).clamp(max=len(hidden) - 1)
        narrow = hidden.to(weight.dtype)[filled]  # (D, H)
        m = hidden.new_full((rows,), torch.finfo(wide).min)  # in bits, as are all exponents here
        total = torch.zeros_like(m)  # sum_v 2^(z_v - m)
        mean = m.new_zeros(rows if need_grad else 0, width)
        left_out = torch.zeros_like(m)  # what `mean` lacks of `total`
        slack, light = torch.finfo(weight.dtype).eps / 2, LIGHT / len(weight)
        tile = words_in_a_tile(rows, head.tile_cells or cells_of(hidden.device.type))
        target_tile, word = targets // tile, targets % tile
        # Allocated once, since tiles of many sizes would split up the heap.
        product, scores = weight.new_empty(tile, rows), m.new_empty(tile, rows)
        for number, start in enumerate(range(0, weight.shape[0], tile)):
            part = weight[start : start + tile]  # (T, H)
            bias = None if head.bias is None else head.bias[start : start + tile, None]
            # W h^T and not h W^T: for its products a CPU then rearranges the few rows of h, not W.
            z = torch.mm(part, narrow.T, out=product[: len(part)])
            z, slope = _logits(scores[: len(part)].copy_(z), bias, head)  # (T, D)
            barred = torch.where(target_tile == number, -torch.inf, 0.0).to(wide)  # 0: elsewhere
            z.index_put_((word.clamp(max=len(part) - 1), node), barred, accumulate=True)
            fold = math.gcd(len(part), FOLD)
            flat = z.view(-1, fold * rows)
            new_m = torch.maximum(m, flat.amax(0).view(fold, rows).amax(0) * LOG2_E)
            shrink = torch.exp2(m - new_m)
            # Now exp(z) / 2^m, and 0 at the targets; exp2 is four times as fast where exp is MKL's.
            torch.add(-new_m.repeat(fold), flat, alpha=LOG2_E, out=flat).exp2_()
            sums = flat.sum(0).view(fold, rows).sum(0)
            total = total * shrink + sums
            if need_grad:
                if slope is not None:
                    sums = z.mul_(slope).sum(0)
                if hidden.is_cpu:  # elsewhere the host would wait for the device
                    left_out.mul_(shrink)
                    z, part = _words_that_count(z, sums, part, slack * total, left_out, light)
                mean.mul_(shrink[:, None]).add_(product[: len(z)].copy_(z).T @ part)
            m = new_m
        if need_grad:
            least = torch.finfo(wide).tiny  # a total of 0: every word is a target
            whole = total.clamp(min=least)[:, None]
            gradient = head.scale * mean / whole  # eq. (19) of docs/math.md
            ctx.save_for_backward(gradient[: len(hidden)])
        return (m + total.log2())[: len(hidden)] / LOG2_E  # eq. (12) of docs/math.md

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad[:, None] * gradient, None, None, None


def cells_of(device: str) -> int:
    """Return how many float32 scores suit a kind of device."""
    return TILE_CELLS.get(device, TILE_CELLS["cuda"])


def words_in_a_tile(rows: int, cells: int) -> int:
    """Return T, a power of 2, such that T words x D rows are about `cells` scores."""
    return max(SMALLEST_TILE, 1 << max(cells // rows, 1).bit_length() - 1)


def _words_that_count(
    z: Tensor, sums: Tensor, part: Tensor, slack: Tensor, left_out: Tensor, light: float
) -> tuple[Tensor, Tensor]:
    """Return the rows of z (T, D) and of part (T, H) that the product z^T @ part needs.

    The sum of the others is added to `left_out` (D,), which stays within `slack` (D,). Where it
    could not, or where more than half are needed, all are returned. `sums` (D,) are z's own. A word
    matters by itself if it holds more than `light` of the rows' slacks, on average.
    """
    heavy = (z @ (1 / slack) > light * len(slack)).nonzero().squeeze(1)
    # Few sizes again: powers of 2, then sixteenths of the tile.
    step = min(-(-len(part) // 16), max(128, 1 << len(heavy).bit_length()))
    needed = -(-len(heavy) // step) * step
    if needed <= len(part) // 2:
        words = F.pad(heavy, (0, needed - len(heavy)))  # with word 0 ...
        few = z.index_select(0, words)
        few[len(heavy) :] = 0  # ... which counts nothing there
        others = sums - few.sum(0)
        if (left_out + others <= slack).all():
            left_out += others
            return few, part.index_select(0, words)
    return z, part
