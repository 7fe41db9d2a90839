"""Merge an adapter into the files of its base, a shard at a time.

That needs little more memory than the largest shard.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from lora.adapter import lora_layers
from lora.base.folders import INDEX, builtin_folder, copy_beside, model_folder, weight_files
from lora.base.loading import load_base, skeleton
from lora.base.quantise import Quantise, requantised
from lora.errors import ModelError, reading
from lora.files import whole_folder
from lora.merging import merge_lora
from lora.peft_format import load_adapter, read_adapter, saved_delta
from lora.rounding import Rounding, RoundingSums, merge_rounding, stored_dtype


def merge_files(
    base: Path,
    adapter: Path,
    output: Path,
    dtype: torch.dtype | None = None,
    quantise: Quantise = "none",
    check: Callable[[Path], None] = lambda merged: None,
) -> Rounding:
    """Write base + adapter to `output`, complete or not at all; return what rounding did.

    Each patched weight becomes round(W + dW), added in float32 and rounded once. With `quantise`,
    every W that training had quantised is replaced by what dequantising gives, which is the policy
    that was trained and evaluated. `check` is given the merged folder before it takes its place,
    and refuses it by raising.

    Raises:
        ModelError: base and adapter do not fit, or a file is damaged. What stood at `output` before
            stands there still.
    """
    model = skeleton(base)  # to check names and shapes against
    if getattr(model.config, "quantization_config", None):
        raise ModelError(
            f"the base {base} is stored quantised; name the model it was made from in the "
            "adapter's base_model_name_or_path"
        )
    head = model.get_output_embeddings()  # the one linear layer that bitsandbytes leaves as it is
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    quantised = set[str]() if quantise == "none" else linear
    patched = set(load_adapter(model, adapter))  # on the meta device: checks names and shapes
    layers = lora_layers(model)  # one at two places is stored under one name, or both
    config, tensors = read_adapter(adapter)
    stored = {key.removesuffix(".weight") for shard in weight_files(base) for key in _keys(shard)}
    found = {layers[name] for name in patched & stored}
    if any(layer not in found for layer in layers.values()):  # files with names of another time
        return _merge_loaded(base, adapter, output, dtype, quantise, check)
    sums, total = RoundingSums(), 0
    with whole_folder(output) as new:
        for shard in tqdm(weight_files(base), "Merging", unit=" shards", disable=None):
            weights = {}
            for key, weight in _tensors(shard):
                name = key.removesuffix(".weight")
                trained = requantised(weight, quantise) if name in quantised else weight
                delta = saved_delta(config, tensors, name) if name in patched else None
                weights[key] = _added(trained, delta, dtype or weight.dtype, sums)
            total += sum(weight.nbytes for weight in weights.values())
            save_file(weights, new / shard.name, metadata={"format": "pt"})
        copy_beside(base, new)
        _describe(base, new, dtype, total)
        check(new)
    return sums.result()


def _merge_loaded(
    base: Path,
    adapter: Path,
    output: Path,
    dtype: torch.dtype | None,
    quantise: Quantise,
    check: Callable[[Path], None],
) -> Rounding:
    """Merge as `merge_files`, for bases whose files name other layers than the model has.

    transformers renames them as it loads. The whole base is loaded for it.
    """
    model = load_base(str(base), torch.device("cpu"), stored_dtype(base), quantise=quantise).model
    load_adapter(model, adapter)
    rounding = merge_rounding(model, dtype)
    with whole_folder(output) as new:
        merge_lora(model, dtype).save_pretrained(new)
        copy_beside(base, new)
        check(new)
    return rounding


def _added(weight: Tensor, delta: Tensor | None, dtype: torch.dtype, sums: RoundingSums) -> Tensor:
    """Return round(W + dW) in `dtype` and count its rounding; integers stay as they are."""
    if delta is None:
        return weight.to(dtype) if weight.is_floating_point() else weight
    if weight.shape != delta.shape:
        raise ModelError(
            f"the base's files hold a weight of shape {tuple(weight.shape)} where its config.json "
            f"promises {tuple(delta.shape)}; download the model again"
        )
    merged = (weight.float() + delta).to(dtype)
    sums.add(weight, delta, merged)
    return merged


def base_of(adapter: Path) -> Path:
    """Return the folder of the base model that a saved adapter names.

    Raises:
        ModelError: there is no adapter, it names no base, or the base cannot be had.
    """
    config, _ = read_adapter(adapter)
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{adapter}/adapter_config.json names no base model")
    return builtin_folder() if name == "builtin" else model_folder(name, config.get("revision"))


def _keys(shard: Path) -> list[str]:
    with reading(f"{shard} cannot be read"), safe_open(shard, framework="pt") as file:
        return list(file.keys())


def _tensors(shard: Path) -> Iterator[tuple[str, Tensor]]:
    with reading(f"{shard} cannot be read"), safe_open(shard, framework="pt") as file:
        for key in file.keys():
            yield key, file.get_tensor(key)


def _describe(base: Path, new: Path, dtype: torch.dtype | None, total: int) -> None:
    """Write the configuration of a dense model, and the index of its shards with their size."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if dtype:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(dtype).removeprefix("torch.")
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (base / INDEX).is_file():
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {"total_size": total}
        (new / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
