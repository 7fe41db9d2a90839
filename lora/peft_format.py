"""Adapters on disk, in PEFT's format both ways: what is saved here loads there, and back.

Keys are `base_model.model.<module>.lora_A.weight` (r, in) and `.lora_B.weight` (out, r): A and B
transposed. The settings are in `adapter_config.json`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora.adapter import add_lora, lora_layers
from lora.errors import ModelError, reading
from lora.files import whole_folder
from lora.targets import Patterns, match_targets, short_names

PREFIX = "base_model.model."  # where PEFT's wrapper keeps the model
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

ALWAYS = {  # settings of every adapter that is written here
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none",
    "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None,
    "use_dora": False, "use_rslora": False,
}  # fmt: skip
LARGEST = 1e30  # of a scale, so that its products are finite


def _key(name: str, letter: str) -> str:
    return f"{PREFIX}{name}.lora_{letter}.weight"


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST  # 0 and below as in PEFT


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_map(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(of, value.values()))


NEEDED: dict[str, Callable[[Any], bool]] = {
    "r": _is_rank,
    "lora_alpha": _is_scale,
    "target_modules": lambda x: bool(x) and all(map(_is_name, x if type(x) is list else [x])),
}
OPTIONAL: dict[str, Callable[[Any], bool]] = {  # may be null, too
    "rank_pattern": lambda x: _is_map(x, _is_rank),
    "alpha_pattern": lambda x: _is_map(x, _is_scale),
    "lora_dropout": lambda x: type(x) in (int, float) and 0 <= x < 1,
    "use_rslora": lambda x: isinstance(x, bool),
    "base_model_name_or_path": _is_name,
    "revision": _is_name,
}
# Settings that make an adapter another function than the one computed here, where they are true ...
UNSUPPORTED = (
    "use_dora", "fan_in_fan_out", "modules_to_save", "layers_to_transform", "layers_pattern",
    "exclude_modules", "target_parameters", "trainable_token_indices", "lora_bias",
    "layer_replication", "use_qalora", "alora_invocation_tokens", "megatron_config", "use_bdlora",
    "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
# ... or have a value that is not among these; the first is meant where there is none.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),  # others change the base
}


def save_adapter(
    model: nn.Module, folder: str | Path, base_model: str, revision: str | None = None
) -> None:
    """Write the adapter of `model` as PEFT 0.21 does, float32, in one step.

    `base_model` is what `from_pretrained` can load. rsLoRA is written as plain LoRA with alpha
    sqrt(r), the same function, which every reader knows. The commonest rank and alpha are the
    file's, and layers that differ are named in its patterns.

    Raises:
        ModelError: the model has no LoRA layer.
    """
    layers = lora_layers(model)
    if not layers:
        raise ModelError("the model has no LoRA layer to save")
    rank = mode(layer.rank for layer in layers.values())
    alpha = mode(layer.alpha for layer in layers.values())
    config = {
        **ALWAYS,
        "base_model_name_or_path": base_model,
        "revision": revision,
        "r": rank,
        "rank_pattern": {n: m.rank for n, m in layers.items() if m.rank != rank},
        "lora_alpha": alpha,
        "alpha_pattern": {n: m.alpha for n, m in layers.items() if m.alpha != alpha},
        "lora_dropout": next(iter(layers.values())).dropout,
        "target_modules": short_names(model, list(layers)),
    }
    tensors = {}
    for name, layer in layers.items():
        for letter, value in (("A", layer.A), ("B", layer.B)):
            # a copy also of rank 1, and of a layer that stands at two places
            copy = value.detach().T.clone(memory_format=torch.contiguous_format)
            tensors[_key(name, letter)] = copy
    with whole_folder(Path(folder)) as new:
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (new / CONFIG).write_text(text, encoding="utf-8")


def load_adapter(model: nn.Module, folder: str | Path) -> list[str]:
    """Add the adapter saved in `folder` to `model` and return the patched modules' names.

    The tensors must be exactly those that the configuration promises: a missing, extra or wrongly
    shaped one is an error, never skipped. rsLoRA becomes plain LoRA with alpha sqrt(r).

    Raises:
        ModelError: a file is missing or damaged, a setting is not supported, or a tensor does not
            fit. No layer is replaced then.
    """
    config, tensors = read_adapter(Path(folder))
    usual = config["r"], config["lora_alpha"]
    patterns, targets = _patterns(config), config["target_modules"]
    expected = {}
    names = match_targets(model, targets)
    for name in names:
        layer: Any = model.get_submodule(name)
        rank, _ = patterns.of(name, *usual)
        expected[_key(name, "A")] = (rank, layer.in_features)
        expected[_key(name, "B")] = (layer.out_features, rank)
    actual = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wrong = sorted(k for k in expected.keys() | actual.keys() if expected.get(k) != actual.get(k))
    if wrong:
        key = next((k for k in wrong if k in expected and k in actual), wrong[0])
        made_for = config.get("base_model_name_or_path") or "another model"
        raise ModelError(
            f"{folder}, made for {made_for}, does not fit this model: {len(wrong)} tensors differ; "
            f"{key} is {actual.get(key, 'missing')} in the file and "
            f"{expected.get(key, 'unknown')} here{_hint(actual)}"
        )
    _check_ranks(folder, names, tensors)
    _check_shared(model, names, tensors)
    add_lora(model, *usual, config.get("lora_dropout") or 0.0, names, patterns)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            layer.A.copy_(tensors[_key(name, "A")].T)
            layer.B.copy_(tensors[_key(name, "B")].T)
    return names


def _check_ranks(folder: str | Path, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse ranks beyond the smaller side of their weight, which PEFT allows.

    Raises:
        ModelError: there is one.
    """
    for name in names:
        (rank, wide), (high, _) = (tensors[_key(name, letter)].shape for letter in "AB")
        if rank > min(wide, high):
            raise ModelError(
                f"{folder} has rank {rank} for {name}, whose weight is {wide} x {high}; ranks "
                "above the smaller side of a weight are not read"
            )


def _check_shared(model: Any, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse an adapter that gives layers with one weight several deltas, which no merge can have.

    Raises:
        ModelError: there are such layers.
    """
    first: dict[int, str] = {}
    for name in names:
        twin = first.setdefault(id(model.get_submodule(name).weight), name)
        for letter in "AB":
            if not torch.equal(tensors[_key(name, letter)], tensors[_key(twin, letter)]):
                raise ModelError(
                    f"the adapter differs between {twin} and {name}, which share one weight in "
                    "this model; train it again here"
                )


def saved_delta(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return dW of one module of a saved adapter: (out, in) float32, scale (A B) transposed."""
    rank, alpha = _patterns(config).of(name, config["r"], config["lora_alpha"])
    a, b = (tensors[_key(name, letter)].float().T for letter in "AB")
    delta: Tensor = (a @ b).T * (alpha / rank)
    return delta


def _patterns(config: Mapping[str, Any]) -> Patterns:
    rslora = bool(config.get("use_rslora"))
    return Patterns(config.get("rank_pattern"), config.get("alpha_pattern"), rslora)


def _hint(keys: Any) -> str:
    if any("_orig_mod." in key for key in keys):
        return "; its keys hold `_orig_mod.`: it was saved from a compiled model, save the original"
    if any(".lora_A." in k and not k.endswith(".lora_A.weight") for k in keys):
        return "; its keys hold an adapter's name: save it by PEFT's save_pretrained"
    if any("embed_tokens" in key or "lm_head" in key for key in keys):
        return "; it holds embeddings or a head, which are not supported"
    return ""


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the validated settings and the tensors of a saved adapter.

    Raises:
        ModelError: a file is missing or damaged, or a setting is missing or not supported.
    """
    if missing := next((n for n in (CONFIG, WEIGHTS) if not (folder / n).is_file()), None):
        there = f"{missing} is missing" if folder.is_dir() else "there is no such folder"
        inside = folder / "adapter"
        meant = f"; it is a run's folder, of which {inside} is the adapter" * inside.is_dir()
        raise ModelError(f"{folder} is no adapter: {there}{meant}")
    with reading(f"the adapter in {folder} cannot be read"):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    where = folder / CONFIG
    if not isinstance(config, dict):
        raise ModelError(f"{where} holds no settings")
    for key, fits in {**NEEDED, **OPTIONAL}.items():
        value = config.get(key)
        if value is None and key in NEEDED:
            raise ModelError(f"{where} lacks {key!r}, and guessing is unsafe")
        if value is not None and not fits(value):
            raise ModelError(f"{where}: {key!r} is {value!r:.60}, which is no value for it")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            kind = "is not finite" if tensor.is_floating_point() else f"is of {tensor.dtype}"
            raise ModelError(f"{folder / WEIGHTS}: {name} {kind}; save the adapter again")
    unsupported = [key for key in UNSUPPORTED if config.get(key)]
    for key, plain in PLAIN.items():
        if config.get(key, plain[0]) not in plain:
            unsupported.append(f"{key} {config[key]}")
    if unsupported:
        raise ModelError(f"{where} uses {', '.join(unsupported)}, which is not supported")
    return config, tensors
