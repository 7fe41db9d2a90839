"""Adding adapters to a model, switching them off, saving and loading them in PEFT's format."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora.files import written_whole
from lora.layer import LoRALinear, ModelError

PREFIX = "base_model.model."  # PEFT's: where its wrapper keeps the model


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
) -> list[str]:
    """Freeze `model`, wrap every linear layer whose name ends in a target, return their names.

    A target matches a whole module name or its last parts: `v_proj`, `layers.0.self_attn.v_proj`.

    Raises:
        ModelError: a target matches nothing or no linear layer, an adapter is there already, or the
            rank does not fit. No layer is replaced then.
    """
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise ModelError("the model already has LoRA layers; merge them before adding others")
    modules = dict(model.named_modules())
    found: dict[str, LoRALinear] = {}
    for target in target_modules:
        names = [n for n in modules if n == target or n.endswith(f".{target}")]
        if not names:
            linear = sorted(
                {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, nn.Linear)}
            )
            raise ModelError(
                f"--target-modules {target!r} matches no module; linear layers here end in "
                f"{', '.join(linear) or 'nothing: there are none'}"
            )
        for name in names:
            base = modules[name]
            if not isinstance(base, nn.Linear):
                raise ModelError(
                    f"--target-modules {target!r} matches {name}, a {type(base).__name__}; "
                    "LoRA wraps nn.Linear layers"
                )
            if name not in found:
                found[name] = LoRALinear(base, rank, alpha, dropout)
    model.requires_grad_(False)
    for name, layer in found.items():
        model.set_submodule(name, layer)
    return list(found)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return {module name: layer} of every LoRALinear in the model."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return every A and B: all that is trained."""
    return [p for layer in lora_layers(model).values() for p in (layer.A, layer.B)]


def train_adapters(model: nn.Module) -> None:
    """Switch LoRA dropout on and keep the base in eval mode.

    Dropout of the base itself would differ between policy and reference, which share it.
    """
    model.eval()
    for layer in lora_layers(model).values():
        layer.training = True  # and not its base


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Within the block the model is its frozen base in eval mode: the DPO reference.

    Nests, and restores every layer's switch and every module's mode also when the body raises.
    """
    switches = [(layer, layer.enabled) for layer in lora_layers(model).values()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for layer, _ in switches:
            layer.enabled = False
        model.eval()
        yield
    finally:
        for layer, enabled in switches:
            layer.enabled = enabled
        for module, training in modes:
            module.training = training


def save_adapter(
    model: nn.Module, folder: str | Path, base_model: str, revision: str | None = None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` as PEFT 0.21 does.

    Keys are `base_model.model.<module>.lora_A.weight` (r, in) and `.lora_B.weight` (r, out
    transposed: (out, r)), float32. `base_model` is what `from_pretrained` can load.

    Raises:
        ModelError: the model has no LoRA layer.
    """
    layers = lora_layers(model)
    if not layers:
        raise ModelError("the model has no LoRA layer to save")
    first = next(iter(layers.values()))
    config = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": first.alpha,
        "lora_dropout": first.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": first.rank,
        "revision": revision,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.A.detach().T.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.B.detach().T.contiguous()
    text = json.dumps(config, indent=2, sort_keys=True)
    with written_whole(Path(folder)) as new:
        save_file(tensors, new / "adapter_model.safetensors", metadata={"format": "pt"})
        (new / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, folder: str | Path) -> list[str]:
    """Add the adapter saved in `folder` to `model` and return the patched modules' names.

    The tensors must be exactly those that the configuration promises: a missing, extra or wrongly
    shaped one is an error, never skipped.

    Raises:
        ModelError: a file is missing or damaged, a setting is not supported, or a tensor does not
            fit. No layer is replaced then.
    """
    folder = Path(folder)
    config, tensors = _read(folder)
    expected: dict[str, tuple[int, int]] = {}
    for name in _matching(model, config["target_modules"]):
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Linear):
            expected[f"{PREFIX}{name}.lora_A.weight"] = (config["r"], layer.in_features)
            expected[f"{PREFIX}{name}.lora_B.weight"] = (layer.out_features, config["r"])
    actual = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wrong = sorted(k for k in expected.keys() | actual.keys() if expected.get(k) != actual.get(k))
    if wrong:
        key = wrong[0]
        raise ModelError(
            f"{folder} does not fit this model: {len(wrong)} tensors differ; the first, {key}, is "
            f"{actual.get(key, 'missing')} in the file and {expected.get(key, 'unknown')} here"
        )
    names = add_lora(
        model, config["r"], config["lora_alpha"], config["lora_dropout"], config["target_modules"]
    )
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            layer.A.copy_(tensors[f"{PREFIX}{name}.lora_A.weight"].T)
            layer.B.copy_(tensors[f"{PREFIX}{name}.lora_B.weight"].T)
    return names


def _matching(model: nn.Module, targets: Sequence[str]) -> list[str]:
    return [
        n for n, _ in model.named_modules() if any(n == t or n.endswith(f".{t}") for t in targets)
    ]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and validate both files of an adapter."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is no adapter: {error.filename or error} is missing") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter in {folder} cannot be read: {error}") from error
    for key in ("r", "lora_alpha", "target_modules"):
        if not config.get(key):
            raise ModelError(f"{folder}/adapter_config.json lacks {key!r}, and guessing is unsafe")
    unsupported = [
        key
        for key in ("use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save", "rank_pattern",
                    "alpha_pattern", "layers_to_transform")
        if config.get(key)
    ]  # fmt: skip
    if config.get("bias", "none") != "none":
        unsupported.append("bias")
    if unsupported or not isinstance(config["target_modules"], list):
        what = ", ".join(unsupported) or "target_modules that are not a list"
        raise ModelError(f"{folder}/adapter_config.json uses {what}, which is not supported")
    config.setdefault("lora_dropout", 0.0)
    return config, tensors
