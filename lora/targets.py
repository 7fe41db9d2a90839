"""Which layers get an adapter, by PEFT's rules of naming."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import regex
from torch import nn

from lora.errors import ModelError
from lora.layer import LoRALinear

Targets = str | Sequence[str]  # names, or one regular expression, or "all-linear"
Value = TypeVar("Value")
SECONDS = 0.05  # of computing that one match may take, where microseconds are usual


class Patterns(NamedTuple):
    """How single layers differ from the rank and the alpha of all.

    A pattern is the last parts of a layer's name, or a regular expression for them.
    """

    rank: Mapping[str, int] | None = None
    alpha: Mapping[str, float] | None = None
    rslora: bool = False  # scale by alpha / sqrt(r): Kalajdzievski 2023, arXiv 2312.03732

    def of(self, name: str, rank: int, alpha: float) -> tuple[int, float]:
        """Return a layer's own (r, alpha), where the delta is scaled by alpha / r.

        rsLoRA is the plain form with alpha sqrt(r).
        """
        r, a = by_pattern(name, self.rank, rank), by_pattern(name, self.alpha, alpha)
        return r, a * (r**0.5 if self.rslora else 1.0)


def as_targets(names: Sequence[str]) -> Targets:
    """Read a command line's names: one that is no plain name is a regular expression."""
    (first, *rest) = names
    if not rest and (first == "all-linear" or not re.fullmatch(r"[\w.]+", first)):
        return first
    return list(names)


def match_targets(model: nn.Module, targets: Targets) -> list[str]:
    """Return the names of the linear layers that `targets` means, in the model's order.

    A list matches whole names or their last parts (`v_proj`, `layers.0.self_attn.v_proj`); a
    string is a regular expression for whole names; `all-linear` is every linear layer but the
    output head.

    Raises:
        ModelError: a target matches nothing, a module that cannot have an adapter, or never ends.
    """
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise ModelError("the model already has LoRA layers; merge them before adding others")
    modules = dict(model.named_modules())
    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    linear = [n for n, m in modules.items() if isinstance(m, nn.Linear) and m is not head]
    if targets == "all-linear":
        matches = {"all-linear": set(linear)}
    elif isinstance(targets, str):
        matches = {targets: {n for n in modules if _matches(targets, n)}}
    else:
        matches = {t: {n for n in modules if n == t or n.endswith(f".{t}")} for t in targets}
    for target, names in matches.items():
        if not names and targets != "all-linear":
            ends = sorted({n.rpartition(".")[2] for n in linear})
            raise ModelError(
                f"--target-modules {target!r} matches no module; linear layers here end in "
                f"{', '.join(ends) or 'nothing: there are none'}"
            )
    found = set[str]().union(*matches.values())
    for name in found:
        module = modules[name]
        if module is head:
            raise ModelError(
                f"--target-modules reaches the output head {name}: scores are read off its weight "
                "itself, often tied to the embeddings, so an adapter there is not supported"
            )
        if not isinstance(module, nn.Linear):
            raise ModelError(
                f"--target-modules reaches {name}, a {type(module).__name__}; LoRA here wraps "
                "nn.Linear layers, not embeddings or whole blocks"
            )
    return [n for n in modules if n in found]


def by_pattern(name: str, patterns: Mapping[str, Value] | None, default: Value) -> Value:
    """Return the value of the first pattern that matches the last parts of `name`."""
    for pattern, value in (patterns or {}).items():
        if _matches(rf"(.*\.)?({pattern})", name, shown=pattern):
            return value
    return default


def _matches(pattern: str, name: str, shown: str = "") -> bool:
    """Tell whether a regular expression, which may be a stranger's, matches a whole name.

    Raises:
        ModelError: it is none, or tries so many ways that it would never end.
    """
    try:
        return bool(regex.fullmatch(pattern, name, timeout=SECONDS))
    except (regex.error, RecursionError, MemoryError, OverflowError) as error:
        said = f"is no regular expression: {error}"
    except TimeoutError:
        said = f"takes too long on {name}; write it without a repetition within a repetition"
    raise ModelError(f"the pattern {shown or pattern!r} of layers {said}")
