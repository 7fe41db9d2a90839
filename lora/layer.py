"""LoRALinear: a frozen linear layer plus a trained low-rank delta.

    y = x W + (alpha / r) x A B        A: (in, r)   B: (r, out)   dW = (alpha / r) A B

LoRA (Hu et al. 2021, arXiv 2106.09685), section 4.1, in row-vector convention: A and B here are the
transposes of the paper's A and B, and a torch `weight` is stored as W transposed.
"""

import math

import torch
from torch import Tensor, nn

from lora.dropout import drop
from lora.errors import ModelError


class LoRALinear(nn.Module):
    """Wrap `base` (any `nn.Linear`, quantised ones too) with a trained delta.

    B starts at zero, so that A B is zero and the policy starts as its reference, bit for bit. A
    starts random (Kaiming uniform): were both zero, neither would ever get a gradient. Both are
    kept in float32 and cast to x's dtype in `forward`: bfloat16 has 8 significant bits, and
    would lose an update below 2^-9 of a weight.

    Args:
        base: the layer to wrap; its parameters are frozen.
        rank: r, from 1 to min(in, out).
        alpha: the delta is scaled by alpha / r.
        dropout: share of x dropped on the LoRA path in training, 0 <= dropout < 1.

    Raises:
        ModelError: the rank or the dropout is out of range.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        largest = min(base.in_features, base.out_features)
        if not 1 <= rank <= largest:
            raise ModelError(
                f"rank {rank} does not fit a {base.in_features} x {base.out_features} layer; "
                f"choose 1 to {largest}"
            )
        if not 0 <= dropout < 1:
            raise ModelError(f"dropout {dropout} is not a share; choose 0 <= dropout < 1")
        self.base = base.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        self.scale = alpha / rank
        self.dropout = dropout
        self.enabled = True  # switched by `adapters_disabled`
        device = base.weight.device
        self.A = nn.Parameter(torch.empty(base.in_features, rank, device=device))
        self.B = nn.Parameter(torch.zeros(rank, base.out_features, device=device))
        nn.init.kaiming_uniform_(self.A.T, a=math.sqrt(5))  # fan-in of A transposed is `in`
        self.train(base.training)  # in eval mode, without dropout, if the base is

    def forward(self, x: Tensor) -> Tensor:
        """Return x W + scale (dropout(x) A) B: x (..., in) -> (..., out), all in x's dtype."""
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        scale = self.scale
        if self.training and self.dropout:  # on the LoRA path alone: y above read the whole x
            x, kept = drop(x, self.dropout)
            scale /= kept  # what is kept is divided by the share kept, so that the mean stays
        # The scale multiplies the narrow product, never a full-width one: (N, in) @ (in, r).
        low = x.reshape(-1, x.shape[-1]) @ self.A.to(x.dtype) * scale
        # (N, out) = x W + (alpha/r) x A B, eq. (1) of docs/math.md
        return torch.addmm(y.reshape(-1, y.shape[-1]), low, self.B.to(x.dtype)).view_as(y)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return dW transposed, (out, in) float32: what is added to `base.weight` as stored."""
        dw: Tensor = (self.A @ self.B).T * self.scale  # eq. (2) of docs/math.md
        return dw

    def extra_repr(self) -> str:
        """Show the settings in `print(model)`."""
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}"
