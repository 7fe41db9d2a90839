"""RMS norms by hand: they keep n or, where that takes more memory, x; the gradient is closed.

    y = g * n,  n = rho x,  rho = 1 / sqrt(mean(x^2) + eps)      over the last dimension; g: (H,)

Zhang and Sennrich 2019, arXiv 1910.07467. Autograd takes a norm apart into some twenty operations
on float32 copies of x, and keeps two of them; Gemma 3 270M has 109 norms in a step.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FEW = 2**18  # values of which n is kept even if x is half as large: to form it again takes time


class Gain(NamedTuple):
    """How a norm's module multiplies n, which is float32."""

    g: Tensor  # (H,), frozen
    eps: float
    rounded_first: bool  # Llama rounds n to x's dtype and multiplies then, Gemma multiplies first


class _RMSNorm(torch.autograd.Function):
    """y = g * n and its gradient with respect to x, (..., H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Gain) -> Tensor:
        wide = x.float()
        rho = torch.rsqrt(wide.square().mean(-1, keepdim=True) + gain.eps)  # (..., 1)
        n = wide * rho
        again = x.element_size() < n.element_size() and x.numel() > FEW
        ctx.save_for_backward(x if again else n, rho, gain.g)
        ctx.again, ctx.dtype = again, x.dtype
        return gain.g * n.to(x.dtype) if gain.rounded_first else (n * gain.g).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        kept, rho, g = ctx.saved_tensors
        n = kept.float() * rho if ctx.again else kept  # the same bits
        return gradient(dy, n, rho, g).to(ctx.dtype), None


def gradient(dy: Tensor, n: Tensor, rho: Tensor, g: Tensor) -> Tensor:
    """Return dL/dx of y = g n, (..., H) float32, for dy = dL/dy and float32 n and rho (..., 1).

    dL/dx = rho (g dy - n mean(n g dy)), since dn/dx = rho (I - n n^T / H).
    """
    dn = dy * g.float()  # (..., H) float32
    along = (dn * n).mean(-1, keepdim=True)  # (..., 1)
    return dn.addcmul_(n, along, value=-1).mul_(rho)  # eq. (20) of docs/math.md


@contextmanager
def norms_by_hand(model: nn.Module, on: bool = True) -> Iterator[int]:
    """Within the block the model's RMS norms are computed as above, if `on`; yield how many are.

    How a module multiplies is found by trial: one that cannot be called with x alone, or whose
    values are not bit for bit those of a form above, is left as it is, and so are those whose
    weights are split among processes. Where the model calls a norm otherwise than in the trial,
    with a gate beside x or an x of another width, the norm's own forward computes it.
    """
    norms: Iterable[Any] = (m for m in model.modules() if on and "RMSNorm" in type(m).__name__)
    taken = []
    for norm in norms:
        if "forward" not in vars(norm) and (gain := gain_of(norm)):
            norm.forward = partial(_called, norm.forward, gain)  # goes before its class's
            taken.append(norm)
    try:
        yield len(taken)
    finally:
        for norm in taken:
            vars(norm).pop("forward", None)


def _called(own: Callable[..., Tensor], gain: Gain, *given: Any, **named: Any) -> Tensor:
    as_tried = len(given) == 1 and not named and given[0].shape[-1] == gain.g.numel()
    return _by_hand(given[0], gain) if as_tried else own(*given, **named)


def _by_hand(x: Tensor, gain: Gain) -> Tensor:
    y: Tensor = _RMSNorm.apply(x, gain)  # type: ignore[no-untyped-call]
    return y


@torch.no_grad()
def gain_of(norm: Any) -> Gain | None:
    """Return the form that gives the values of `norm` bit for bit; None where none does."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if eps is None or weight is None or hasattr(weight, "full_tensor"):
        return None
    forms = [
        Gain(1.0 + weight.float(), eps, False),  # Gemma stores g - 1
        Gain(weight, eps, True),
        Gain(weight.float(), eps, False),
    ]
    steps = torch.arange(2 * weight.numel(), device=weight.device, dtype=torch.float32)
    probe = (3 * torch.sin(steps)).view(2, -1).to(weight.dtype)  # (2, H)
    try:
        expected = norm(probe)
        if weight.is_meta:  # of which the plan asks the bytes alone
            return forms[0]
        return next((form for form in forms if torch.equal(_by_hand(probe, form), expected)), None)
    except Exception:  # whatever it is, the norm is no norm of x alone
        return None
