"""Attention by hand: shared keys and values are not copied, and the gradient is closed.

    Z = s Q K^T    S = c tanh(Z / c) + M    P = softmax(S) by rows    O = P V

Vaswani et al. 2017, arXiv 1706.03762; c is Gemma 2's soft cap. The queries of the heads that share
a key head (Ainslie et al. 2023, arXiv 2305.13245) are rows of one product. Written out, eager
attention and its gradient are twice as many operations, among them copies of K, V and S.

Shape legend: B rows, L queries, N keys, H query heads, K key heads, G = H / K, D a head's width.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from lora.base.layers import decoder_layers

NAME, TRIAL = "by_hand", "both"  # among the ways of attention that transformers knows
WIDTHS = 2  # of a head: longer rows keep no P, which grows with the square of a row
QUERIES = 256  # of long rows, at once
NEAR = 1e-4  # relative, in float32, where rounding is a hundred times less


class _Attention(torch.autograd.Function):
    """O = P V with its gradient in closed form; the compiler finds one by itself.

    Rows that are long for a head's width keep no P: backward forms it again from Q and K. They are
    computed by some queries at a time, and only for the keys that these may see.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, s: float, cap: float | None
    ) -> Tensor:
        ctx.s, ctx.cap = s, cap
        ctx.again = k.shape[1] > WIDTHS * k.shape[2]
        if not ctx.again:
            p, t = weights(q, k, mask, s, cap)
            ctx.save_for_backward(q, k, v, p, t)
            return p @ v
        ctx.save_for_backward(q, k, v, mask, None)
        found = (
            weights(q[:, rows], k[:, :keys], m, s, cap)[0] @ v[:, :keys]
            for rows, keys, m in parts(q, k, mask)
        )
        return torch.cat(list(found), 1)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p, t = ctx.saved_tensors
        if not ctx.again:
            return *gradients(dout, q, k, v, p, t, ctx.s), None, None, None
        mask = p
        p, dz = (q.new_zeros(*q.shape[:2], k.shape[1]) for _ in range(2))  # 0 at what is masked
        dq = torch.empty_like(q)
        for rows, keys, m in parts(q, k, mask):
            here, t = weights(q[:, rows], k[:, :keys], m, ctx.s, ctx.cap)  # the same bits as before
            slopes = scores_gradient(dout[:, rows], v[:, :keys], here, t, ctx.s)
            dq[:, rows] = slopes @ k[:, :keys]
            p[:, rows, :keys], dz[:, rows, :keys] = here, slopes
        return dq, dz.mT @ q, p.mT @ dout, None, None, None


def parts(q: Tensor, k: Tensor, mask: Tensor | None) -> Iterator[tuple[slice, int, Tensor | None]]:
    """Yield (rows of Q, N, M) of some queries at a time, of which later keys are masked.

    N is how many keys these queries may see, and M (B, 1, l, N) their mask. A token sees none that
    comes after it, so that half of all scores need not be computed. A GPU, which would have to wait
    for what the mask says, takes all queries at once.
    """
    if mask is None or mask.device.type != "cpu":
        yield slice(None), k.shape[1], mask
        return
    queries = mask.shape[2]
    groups = q.shape[1] // queries
    for start in range(0, queries, QUERIES):
        end = min(start + QUERIES, queries)
        later = mask[:, :, start:end, end:]
        keys = end if (later <= torch.finfo(mask.dtype).min).all() else k.shape[1]
        yield slice(start * groups, end * groups), keys, mask[:, :, start:end, :keys]


def by_keys(x: Tensor, keys: int) -> Tensor:
    """Return x (B, H, L, D) as (B K, L G, D): head h = k G + g reads key head k."""
    x = x.transpose(1, 2).unflatten(2, (keys, -1))  # (B, L, K, G, D)
    return x.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def by_heads(x: Tensor, keys: int, groups: int) -> Tensor:
    """Return x (B K, L G, D) as (B, H, L, D)."""
    x = x.unflatten(1, (-1, groups)).unflatten(0, (-1, keys))  # (B, K, L, G, D)
    return x.transpose(1, 2).flatten(2, 3).transpose(1, 2)


def weights(
    q: Tensor, k: Tensor, mask: Tensor | None, s: float, cap: float | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return P (B K, L G, N) and tanh(Z / c) likewise, None without a cap.

    Q is (B K, L G, D), K is (B K, N, D), and the mask M (B, 1, L, N) is that of all heads.
    """
    scores = (q @ k.mT).mul_(s)
    t = None
    if cap is not None:
        t = torch.tanh(scores / cap)
        scores = t * cap
    if mask is not None:
        rows, _, length, keys = mask.shape
        scores.view(rows, -1, length, q.shape[1] // length, keys).add_(mask[:, :, :, None])
    return scores.softmax(-1), t  # summed in float32 also where it returns bfloat16


def gradients(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor, t: Tensor | None, s: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dL/dQ, dL/dK and dL/dV for dL/dO (B K, L G, D); V (B K, N, D), others as in `weights`.

    dV = P^T dO    dP = dO V^T    dS = P (dP - rowsum(dP P))    dZ = (1 - tanh^2(Z / c)) dS
    dQ = s dZ K    dK = s dZ^T Q
    """
    dz = scores_gradient(dout, v, p, t, s)
    return dz @ k, dz.mT @ q, p.mT @ dout


def scores_gradient(dout: Tensor, v: Tensor, p: Tensor, t: Tensor | None, s: float) -> Tensor:
    """Return s dZ, (B K, L G, N); the arguments are those of `gradients`."""
    dp = dout @ v.mT
    dz = torch._softmax_backward_data(dp, p, -1, p.dtype).mul_(s)  # eq. (21) of docs/math.md
    return dz if t is None else dz * (1 - t * t)


def by_hand(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,  # dropout is 0, since the base stays in eval mode
) -> tuple[Tensor, None]:
    """Return O (B, L, H, D), as transformers asks for it, and no weights.

    Q is (B, H, L, D), K and V are (B, K, N, D), and M is (B, 1, L, N).
    """
    keys, groups = key.shape[1], query.shape[1] // key.shape[1]
    s = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = by_keys(query, keys), key.flatten(0, 1), value.flatten(0, 1)
    if torch.compiler.is_compiling():
        out = weights(q, k, attention_mask, s, softcap)[0] @ v
    else:  # PyTorch gives `apply` no types
        out = _Attention.apply(q, k, v, attention_mask, s, softcap)  # type: ignore[no-untyped-call]
    # contiguous, as eager attention returns it, since some models go on with a view
    return by_heads(out, keys, groups).transpose(1, 2).contiguous(), None


def both(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **how: Any) -> Any:
    """Return a module's own eager attention, if `by_hand` has the same values in this call.

    Raises:
        ValueError: it has others, as where a call brings a bias, or a mask for each head.
    """
    eager = sys.modules[type(module).__module__].eager_attention_forward
    given = q.float(), k.float(), v.float(), None if mask is None else mask.float()
    expected, _ = eager(module, *given, **how)
    found, _ = by_hand(module, *given, **how)
    if not (found - expected).norm() <= NEAR * expected.norm():  # nor NaN
        raise ValueError("the model's attention is more than what is computed by hand")
    return expected.to(q.dtype), None


for _name, _attention in ((NAME, by_hand), (TRIAL, both)):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, eager_mask)


@contextmanager
def attention_by_hand(model: Any) -> Iterator[bool]:
    """Within the block eager attention is computed as above, if all layers' is; yield whether.

    Which is found by trial: a module whose own eager attention has other values has something more,
    such as GPT-OSS's sinks. So has a model whose calls bring more, such as Inkling's position bias,
    which shows as it reads some tokens.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    layers = decoder_layers(model)
    found = [m for m in layers.modules() if hasattr(m, "num_key_value_groups")]
    on = before == "eager" and len(found) >= len(layers) > 0 and all(map(is_as_above, found))
    try:
        on = on and is_called_as_above(model)
        config._attn_implementation = NAME if on else before
        yield on
    finally:
        config._attn_implementation = before


@torch.no_grad()
def is_called_as_above(model: Any) -> bool:
    """Tell whether `by_hand` computes each call that the model makes as it reads eight tokens."""
    config = model.config.get_text_config()
    config._attn_implementation = TRIAL
    tokens = torch.arange(8, device=model.device)[None]
    read = {"attention_mask": torch.ones_like(tokens), "use_cache": False}
    try:
        with torch.compiler.set_stance("force_eager"):  # layers may be compiled already
            model.base_model(input_ids=tokens, **read)
    except Exception:  # whatever it is, eager attention computes it
        return str(model.device) == "meta"  # which has no values to compare, only bytes to plan
    return True


@torch.no_grad()
def is_as_above(module: Any) -> bool:
    """Tell whether a module's own eager attention is what `by_hand` computes."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        return False
    groups, cap = module.num_key_value_groups, getattr(module, "attn_logit_softcapping", None)
    q, k, v = (torch.sin(1.7 * torch.arange(n * 12.0)).view(1, n, 3, 4) for n in (2 * groups, 2, 2))
    given = q, k, v.flip(2), torch.full((1, 1, 3, 3), torch.finfo(q.dtype).min).triu(1)
    how = {"scaling": 0.3} | ({"softcap": cap} if cap else {})
    try:
        expected = eager(module, *given, dropout=0.0, **how)[0]
        return torch.allclose(by_hand(module, *given, **how)[0], expected, atol=1e-5)
    except Exception:  # whatever it is, the module has more to it
        return False
