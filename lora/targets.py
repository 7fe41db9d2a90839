"""Which layers get an adapter, by PEFT's rules of naming."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import regex
from torch import nn

from lora.errors import ModelError
from lora.layer import LoRALinear
from lora.trial import used_otherwise

Targets = str | Sequence[str]  # names, or one regular expression, or one of these two:
ALL, AUTO = "all-linear", "auto"
USUAL = ("q_proj", "v_proj")
Value = TypeVar("Value")
SECONDS = 0.05  # of computing that one match may take, where microseconds are usual
LETTERS, REPEATED = 2**16, 2**16  # of a pattern, and in all its {n} together: compiled in seconds


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
    if not rest and (first in (AUTO, ALL) or not re.fullmatch(r"[\w.]+", first)):
        return first
    return list(names)


def match_targets(model: nn.Module, targets: Targets) -> list[str]:
    """Return the names of the linear layers that `targets` means, in the model's order.

    A list matches whole names or their last parts (`v_proj`, `layers.0.self_attn.v_proj`); a
    string is a regular expression for whole names; `all-linear` is every linear layer but the
    output head; `auto` is q_proj and v_proj or, where a model has no such layers, all those of its
    attention or of what it has in its place. The latter two leave out layers that the model does
    not just call.

    Raises:
        ModelError: a target matches nothing, a module that cannot have an adapter, or never ends.
    """
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise ModelError("the model already has LoRA layers; merge them before adding others")
    modules = dict(model.named_modules())
    head = head_of(model)
    linear = [n for n, m in modules.items() if isinstance(m, nn.Linear) and m is not head]
    if targets == ALL:
        matches = {ALL: set(linear)}
    elif targets == AUTO:
        matches = {AUTO: _attention(modules, linear)}
    elif isinstance(targets, str):
        matches = {targets: {n for n in modules if _matches(targets, n)}}
    else:
        matches = {t: {n for n in modules if n == t or n.endswith(f".{t}")} for t in targets}
    for target, names in matches.items():
        if not names:
            raise ModelError(
                f"--target-modules {target!r} matches no module; {_what_there_is(modules, linear)}"
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
    reached = [name for name in modules if name in found]
    otherwise = used_otherwise(model, reached)
    if otherwise and targets not in (ALL, AUTO):
        name, how = next(iter(otherwise.items()))
        raise ModelError(
            f"--target-modules reaches {name}, where an adapter would be passed by: {how}; leave "
            "it out"
        )
    return [name for name in reached if name not in otherwise]


def short_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the last parts of some modules' names; the whole names where others end like them."""
    ends = {name.rpartition(".")[2] for name in names}
    others = {name for name, _ in model.named_modules()} - set(names)
    return sorted(names if any(n.rpartition(".")[2] in ends for n in others) else ends)


def head_of(model: Any) -> Any:
    """Return a language model's output head, None of any other module."""
    return getattr(model, "get_output_embeddings", lambda: None)()


def _attention(modules: Mapping[str, nn.Module], linear: Sequence[str]) -> set[str]:
    """Return q_proj and v_proj, if there are both, or all linear layers of what mixes tokens."""
    usual = {end: {n for n in linear if n.endswith(f".{end}")} for end in USUAL}
    if all(usual.values()):
        return set[str]().union(*usual.values())
    mixing = [n for n, m in modules.items() if re.search("Attention|Mixer|MLA", type(m).__name__)]
    return {n for n in linear if any(n.startswith(f"{mixer}.") for mixer in mixing)}


def _what_there_is(modules: Mapping[str, nn.Module], linear: Sequence[str]) -> str:
    """Say which targets a model has, or why it has none."""
    if not linear:
        holders = {type(m).__name__ for m in modules.values() if _holds_matrices(m)}
        return (
            "this model has no nn.Linear layers, which LoRA here wraps; its weights are in "
            f"{', '.join(sorted(holders)) or 'nothing'}, so choose another model"
        )
    ends, own = (
        ", ".join(sorted({n.rpartition(".")[2] for n in names}))
        for names in (linear, _attention(modules, linear))
    )
    return f"linear layers here end in {ends}" + (f", of which auto takes {own}" if own else "")


def left_out(model: nn.Module) -> dict[str, int]:
    """Return the matrices without an adapter beside those that have one, and their parameters.

    They are those of layers that the model does not just call, of routers, of experts in one piece.
    A name has `*` for any number.
    """
    bases = {id(m.base) for m in model.modules() if isinstance(m, LoRALinear)}
    bases |= {id(head_of(model))}
    found = Counter[str]()
    for name, module in model.named_modules():
        if id(module) in bases or not _holds_matrices(module):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                found[re.sub(r"\.\d+\.", ".*.", f"{name}.{own}")] += parameter.numel()
    return dict(found)


def _holds_matrices(module: nn.Module) -> bool:
    """Tell whether a module has matrices, and is no embedding, convolution or adapter."""
    usual = isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d | LoRALinear)
    return not usual and any(p.dim() > 1 for p in module.parameters(recurse=False))


def check_ranks(layers: Mapping[str, nn.Linear], ranks: Mapping[str, int]) -> None:
    """Refuse ranks above the smaller side of their layer, and name the pattern that would help.

    Raises:
        ModelError: some layers are too small.
    """
    largest = {n: min(layer.in_features, layer.out_features) for n, layer in layers.items()}
    small = [n for n in layers if ranks[n] > largest[n]]
    if small:
        first = layers[small[0]]
        patterns = {f"{n.rpartition('.')[2]}={largest[n]}" for n in small}
        raise ModelError(
            f"rank {ranks[small[0]]} does not fit a {first.in_features} x {first.out_features} "
            f"layer; choose 1 to {min(largest.values())}, which fits all layers, or for {small[0]} "
            f"and its like --rank-pattern {' '.join(sorted(patterns))}"
        )


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
        return bool(compiled(pattern).fullmatch(name, timeout=SECONDS))
    except ModelError as error:
        said = str(error)
    except TimeoutError:
        said = f"takes too long on {name}; write it without a repetition within a repetition"
    raise ModelError(f"the pattern {(shown or pattern)[:200]!r} of layers {said}")


@cache
def compiled(pattern: str) -> regex.Pattern[str]:
    """Compile a regular expression, which may be a stranger's.

    Raises:
        ModelError: it is none, or one that would take minutes to compile.
    """
    counts = (int(n[:9]) for n in re.findall(r"(\d+)\}", pattern))
    if len(pattern) > LETTERS or math.prod(max(n, 1) for n in counts) > REPEATED:
        raise ModelError("is too long, or repeats too much; write it with fewer letters and {n}")
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, MemoryError, OverflowError) as error:
        raise ModelError(f"is no regular expression: {error}") from None
