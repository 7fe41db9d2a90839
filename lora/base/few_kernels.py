"""A layer's small operations as few kernels: a GPU starts each kernel singly, and waits for that.

Eager, a step of Gemma-2 9B starts some seven thousand kernels, most of which take less time than
their start. Here norms, rotary positions, what attention does between its products, and an MLP's
gate are pure functions of tensors. The compiler makes each of them one kernel forward and one
backward; not compiled they are what the model computes, bit for bit.

Shape legend: B rows, L tokens in a row, N keys, H query heads, K key heads, G = H / K, D a head's
width.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lora.base import attention
from lora.base.attention import by_heads, by_keys
from lora.base.norms import Gain, gain_of

Compiler = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
PROBE = "probe"  # among the ways of attention that transformers knows


def norm(x: Tensor, g: Tensor, eps: float, rounded_first: bool) -> Tensor:
    """Return y = g x / sqrt(mean(x^2) + eps) for x (..., H), as `lora.base.norms`."""
    wide = x.float()
    n = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return g * n.to(x.dtype) if rounded_first else (n * g).to(x.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor, keys: int) -> Tensor:
    """Return x (B, L, H, D) with its rotary positions, as (B, K, L, G, D).

    Su et al. 2021, arXiv 2104.09864: the pairs (x_d, x_{d + D/2}) are turned. cos and sin are
    (B, L, D), the latter as `signed` returns it.
    """
    other = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)  # (second half, first half)
    x = x * cos[:, :, None] + other * sin[:, :, None]
    by_key: Tensor = x.unflatten(2, (keys, -1)).transpose(1, 2)
    return by_key.contiguous()


def signed(sin: Tensor) -> Tensor:
    """Return sin (B, L, D) with its first half negative."""
    first, second = sin.chunk(2, -1)
    return torch.cat((-first, second), -1)


def weights(z: Tensor, mask: Tensor | None, s: float, cap: float | None) -> Tensor:
    """Return P = softmax(c tanh(s Z / c) + M) for Z = Q K^T (B, K, L, G, N), M (B, 1, L, 1, N)."""
    z = z * s
    if cap is not None:
        z = torch.tanh(z / cap) * cap
    return (z if mask is None else z + mask).softmax(-1)


def gated(gate: Tensor, up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return activation(gate) * up, what an MLP's last product reads."""
    return activation(gate) * up


class Functions:
    """The functions above, each compiled once for each of its constants; sizes stay symbolic."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self.norm, self.turned = cache(self._norm), cache(self._turned)
        self.weights, self._gated = cache(self._weights), dict[type, Callable[..., Tensor]]()
        self._sin: Any = (None, None)  # the last one, and signed: all layers of a pass share it

    def _norm(self, eps: float, rounded_first: bool) -> Callable[..., Tensor]:
        return self.compiler(lambda x, g: norm(x, g, eps, rounded_first))

    def _turned(self, keys: int) -> Callable[..., Tensor]:
        return self.compiler(lambda x, cos, sin: turned(x, cos, sin, keys))

    def _weights(self, s: float, cap: float | None) -> Callable[..., Tensor]:
        return self.compiler(lambda z, mask: weights(z, mask, s, cap))

    def signed(self, sin: Tensor) -> Tensor:
        """Return `signed`, computed once for layers that share a sin."""
        if self._sin[0] is not sin:
            self._sin = sin, signed(sin)
        found: Tensor = self._sin[1]
        return found

    def gated(self, activation: Any) -> Callable[..., Tensor]:
        """Return `gated` with an activation; those of one type are the same."""
        kind = type(activation)
        if kind not in self._gated:
            self._gated[kind] = self.compiler(lambda gate, up: gated(gate, up, activation))
        return self._gated[kind]


PLAIN = Functions(lambda function: function)


def one_kernel(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the function compiled for tensors of all sizes, and for its own numbers alone."""
    compiled: Callable[..., Tensor] = torch.compile(function, fullgraph=True, dynamic=True)

    def called(*tensors: Tensor | None) -> Tensor:
        with torch._dynamo.config.patch(specialize_float=True):
            return compiled(*tensors)

    return called


@contextmanager
def few_kernels(model: Any, compiler: Compiler = one_kernel) -> Iterator[dict[str, int]]:
    """Within the block the model's layers compute as above; yield how many parts of each kind do.

    Which parts can is found by trial: one whose values are not bit for bit those of the functions
    is left as it is. The model's attention is to be `attention_by_hand`'s.
    """
    functions, found = Functions(compiler), {"norms": 0, "attentions": 0, "gates": 0}
    with ExitStack() as stack:
        for module in model.base_model.modules():
            kind, forward = _form_of(module, functions, model)
            if forward:
                stack.enter_context(_instead(module, forward))
                found[kind] += 1
        yield found


@contextmanager
def _instead(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block the module has another forward; an instance's goes before its class's."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before:
            module.forward = before


def _form_of(module: Any, functions: Functions, model: Any) -> tuple[str, Any]:
    """Return a module's kind, and how it computes by `functions`; None where it cannot."""
    if "RMSNorm" in type(module).__name__:
        gain = gain_of(module)
        return "norms", gain and partial(_norm, functions, gain, module.forward)
    if hasattr(module, "num_key_value_groups"):
        form = _attention_form(module, model)
        return "attentions", form and partial(_attention, module, form, functions)
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return "gates", _gates_alike(module, model) and partial(_mlp, module, functions)
    return "", None


def _norm(functions: Functions, gain: Gain, own: Any, x: Tensor, *more: Any) -> Tensor:
    if more or x.shape[-1] != gain.g.numel():
        y: Tensor = own(x, *more)
        return y
    return functions.norm(gain.eps, gain.rounded_first)(x, gain.g)


def _mlp(module: Any, functions: Functions, x: Tensor) -> Tensor:
    gate, up = module.gate_proj(x), module.up_proj(x)
    y: Tensor = module.down_proj(functions.gated(module.act_fn)(gate, up))
    return y


class _Form(NamedTuple):
    """How a module of attention computes."""

    s: float  # what multiplies Q K^T
    cap: float | None  # c


def _attention(
    module: Any, form: _Form, functions: Functions, hidden_states: Tensor, **given: Any
) -> tuple[Tensor, None]:
    q, k, v = _projected(module, hidden_states)
    (cos, sin), mask = given["position_embeddings"], given["attention_mask"]
    (rows, length, keys, _), groups = k.shape, q.shape[2] // k.shape[2]
    turn, sin = functions.turned(keys), functions.signed(sin)
    q, k = (turn(x, cos, sin).flatten(2, 3).flatten(0, 1) for x in (q, k))  # (B K, L G, D)
    z = (q @ k.mT).view(rows, keys, length, groups, length)
    p = functions.weights(form.s, form.cap)(z, None if mask is None else mask[:, :, :, None])
    out = p.flatten(2, 3).flatten(0, 1) @ by_keys(v.transpose(1, 2), keys)
    return module.o_proj(by_heads(out, keys, groups).transpose(1, 2).flatten(2)), None


def _projected(module: Any, x: Tensor) -> list[Tensor]:
    """Return Q (B, L, H, D), K and V (B, L, K, D), with norms where the module has some."""
    found = []
    for name in "qkv":
        y = getattr(module, f"{name}_proj")(x).unflatten(-1, (-1, module.head_dim))
        of_heads = getattr(module, f"{name}_norm", None)
        found.append(of_heads(y) if of_heads is not None else y)
    return found


def _keep(module: Any, q: Tensor, k: Tensor, v: Tensor, _: Any, **given: Any) -> tuple[Any, None]:
    """Keep what a way of attention is given, and return Q as its output."""
    module.seen = q, k, v, given
    return q.transpose(1, 2), None


AttentionInterface.register(PROBE, _keep)


@torch.no_grad()
def _attention_form(module: Any, model: Any) -> _Form | None:
    """Return the form whose Q, K, V and output are bit for bit those of a module of attention."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if before != attention.NAME:
        return None
    config._attn_implementation = PROBE
    try:
        x = _probe(model, config.hidden_size)
        cos, sin = (_probe(model, module.head_dim) + shift for shift in (0, 1))
        with _undropped(module):
            own, _ = module(x, position_embeddings=(cos, sin), attention_mask=None)
            q, k, v = _projected(module, x)
            seen_q, seen_k, seen_v, given = module.seen
            keys = k.shape[2]
            out = module.o_proj(seen_q.transpose(1, 2).flatten(2))
        ours = *(turned(x, cos, signed(sin), keys).flatten(2, 3)[0] for x in (q, k)), v[0], out
        theirs = *(by_keys(x, keys) for x in (seen_q, seen_k)), seen_v[0].transpose(0, 1), own
        alike = x.is_meta or all(map(torch.equal, ours, theirs))
        return _Form(given["scaling"], given.get("softcap")) if alike else None
    except Exception:  # whatever it is, the module has more to it
        return None
    finally:
        config._attn_implementation = before
        vars(module).pop("seen", None)


@torch.no_grad()
def _gates_alike(module: Any, model: Any) -> bool:
    """Tell whether an MLP's own forward is what `gated` computes, bit for bit."""
    try:
        x = _probe(model, model.config.get_text_config().hidden_size)
        with _undropped(module):
            return x.is_meta or torch.equal(module(x), _mlp(module, PLAIN, x))
    except Exception:  # whatever it is, the module has more to it
        return False


def _probe(model: Any, width: int) -> Tensor:
    """Return some x (1, 3, width) as a model reads it."""
    steps = torch.arange(3 * width, device=model.device, dtype=torch.float32)
    return (3 * torch.sin(steps)).view(1, 3, width).to(model.dtype)


@contextmanager
def _undropped(module: nn.Module) -> Iterator[None]:
    """Within the block the module drops nothing."""
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True
