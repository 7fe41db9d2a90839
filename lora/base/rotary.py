"""Rotary frequencies that depend on a text's length, of each row by itself.

`dynamic` and `longrope` turn all positions of a batch by the frequencies of its longest row, and
`dynamic` those of the longest row that it has ever seen. An answer's score would depend on what
else is in its batch. Here each row has the frequencies that its text has alone.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

FAR = 2**24  # a position beyond every window


def rotary_by_rows(model: Any) -> int:
    """Give each row of a batch its own rotary frequencies, for good; return how many modules do so.

    The model is one that has read no text yet, since `dynamic` remembers the longest. Which modules
    need it is found by trial. Rows of which nothing but a mask (B, L) is given have positions of
    their own as well, counted from their first token.
    """
    named = [m for m in model.modules() if "Rotary" in type(m).__name__]
    found = [m for m in named if depends_on_length(m)]
    for module in found:
        module.forward = partial(_by_rows, module)
    if found:
        body = getattr(model, "base_model", model)  # which the head's model calls, and so do tries
        body.register_forward_pre_hook(_with_positions, with_kwargs=True)
    return len(found)


@torch.no_grad()
def depends_on_length(rotary: nn.Module) -> bool:
    """Tell whether near positions are turned otherwise where a far one is beside them.

    Some modules turn the layers of each type in a way of its own, and are called with the type.
    """
    kinds = getattr(rotary, "rope_type", None)
    calls: list[tuple[str, ...]] = [(kind,) for kind in kinds] if isinstance(kinds, dict) else [()]
    try:
        return any(_turns_otherwise(rotary, *call) for call in calls)
    except Exception:  # it is called otherwise, or has no weights yet
        return False


def _turns_otherwise(rotary: nn.Module, *layer_type: str) -> bool:
    near, far = (
        _turned(rotary, torch.zeros(1), torch.tensor([[0, 1, last]]), *layer_type)
        for last in (2, FAR)
    )
    return any(not torch.equal(n[:, :2], f[:, :2]) for n, f in zip(near, far, strict=True))


def _turned(
    rotary: nn.Module, x: Tensor, positions: Tensor, *given: Any, **named: Any
) -> tuple[Tensor, ...]:
    """Return what the module would return, cos and sin, had it never seen another text."""
    alone = copy.copy(rotary)
    alone._buffers = dict(rotary._buffers)  # where `dynamic` would keep what it found
    out = type(rotary).forward(alone, x, positions, *given, **named)
    return out if isinstance(out, tuple) else (out,)


def _by_rows(rotary: nn.Module, x: Tensor, position_ids: Tensor, *given: Any, **named: Any) -> Any:
    rows = [_turned(rotary, x, row[None], *given, **named) for row in position_ids]
    joined = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
    return joined if len(joined) > 1 else joined[0]


def _with_positions(_: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Add the positions of each row's tokens to a call that has but their mask; padding has 0."""
    mask = named.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2 and named.get("position_ids") is None:
        named["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0) * mask.long()
    return given, named
