"""Merge an adapter into its base on disk, a shard at a time.

    python -m lora.merge RUN_OR_ADAPTER --output DIR [--base original|dequantized]
                         [--merge-dtype float32|bfloat16|float16]

Needs little more memory than the largest shard, then one model at a time for the check.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from lora.adapter import adapters_disabled
from lora.base import Base, builtin_folder, load_base, model_folder, skeleton
from lora.files import written_whole
from lora.layer import ModelError
from lora.merging import (
    Rounding,
    RoundingSums,
    merge_lora,
    merge_rounding,
    rounding_explains,
    save_merged,
    stored_dtype,
)
from lora.peft_format import load_adapter, patched_names, read_adapter, saved_delta
from lora.quantise import Quantise, requantised

INDEX = "model.safetensors.index.json"
SIDE_FILES = ("*.json", "*.model", "*.txt", "*.jinja", "NOTICE*", "LICENSE*")
PROMPTS = (
    "Question: What is the capital of France?\nAnswer: Paris is the capital of France.",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Question: Do bats see?\nAnswer: Bats have working eyes, and many of them see well.",
)


def merge_files(
    base: Path,
    adapter: Path,
    output: Path,
    dtype: torch.dtype | None = None,
    quantise: Quantise = "none",
) -> tuple[Rounding, float]:
    """Write base + adapter to `output`, checked, complete or not at all.

    Each patched weight becomes round(W + dW), added in float32 and rounded once. With `quantise`,
    every W that training had quantised is replaced by what dequantising gives, which is the policy
    that was trained and evaluated.

    Returns:
        What the rounding did to the deltas, and the mean difference to base + adapter over a few
        prompts, in nats a token.

    Raises:
        ModelError: base and adapter do not fit, a file is damaged, or the check fails. What stood
            at `output` before stands there still.
    """
    model = skeleton(base)  # to check names and shapes against
    if getattr(model.config, "quantization_config", None):
        raise ModelError(
            f"the base {base} is stored quantised; name the model it was made from in the "
            "adapter's base_model_name_or_path"
        )
    load_adapter(model, adapter)  # on the meta device: checks every name and shape
    config, tensors = read_adapter(adapter)
    patched = set(patched_names(tensors))
    linear = _quantised_names(model) if quantise != "none" else set()
    sums = RoundingSums()
    with written_whole(output) as new:
        merged: set[str] = set()
        total = 0
        for shard in tqdm(_shards(base), "Merging", unit=" shards", disable=None):
            weights = {}
            for key, weight in _tensors(shard):
                name = key.removesuffix(".weight")
                target = dtype or weight.dtype
                if name in linear:
                    weight = requantised(weight, quantise)
                if name in patched:
                    delta = saved_delta(config, tensors, name)
                    rounded = (weight.float() + delta).to(target)
                    sums.add(weight, delta, rounded)
                    weight = rounded
                    merged.add(name)
                weights[key] = weight.to(target) if weight.is_floating_point() else weight
                total += weights[key].numel() * weights[key].element_size()
            save_file(weights, new / shard.name, metadata={"format": "pt"})
        if missing := sorted(patched - merged):
            raise ModelError(f"{base} has no weight for {missing[0]}, which the adapter changes")
        _copy_side_files(base, new, dtype, total)
        difference = _check(base, adapter, new, quantise)
    return sums.result(), difference


def write_merged(
    model: Any, base: Base, run: Path, dtype: str = "auto", from_files: bool = False
) -> Rounding:
    """Merge the model's adapter and write RUN/merged; return what the rounding did to the deltas.

    Args:
        model: with its adapter, which is taken into its weights.
        base: what the model was made from.
        run: the run's folder, which holds the adapter.
        dtype: of the merged model; `auto` is the base's own.
        from_files: merge the files of base and adapter instead, for a model split over processes.
    """
    stored = None if dtype == "auto" else getattr(torch, dtype)
    if from_files:
        return merge_files(base.folder, run / "adapter", run / "merged", stored)[0]
    rounding = merge_rounding(model, stored)
    save_merged(merge_lora(model, stored), base, run / "merged")
    return rounding


def _quantised_names(model: Any) -> set[str]:
    """Return the linear layers that bitsandbytes quantises: all but the output head."""
    head = model.get_output_embeddings()
    names = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    return {name.removesuffix(".base") for name in names}


def _shards(base: Path) -> list[Path]:
    if (base / INDEX).is_file():
        names = set(json.loads((base / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{base / INDEX} names files outside its folder")
        return [base / name for name in sorted(names)]
    return sorted(base.glob("*.safetensors"))


def _tensors(shard: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(shard, framework="pt") as file:
            for key in file.keys():
                yield key, file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{shard} cannot be read: {error}") from error


def _copy_side_files(base: Path, new: Path, dtype: torch.dtype | None, total: int) -> None:
    """Copy tokenizer, generation settings and notices; write the configuration of a dense model."""
    for pattern in SIDE_FILES:
        for file in base.glob(pattern):
            shutil.copyfile(file, new / file.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if dtype:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(dtype).removeprefix("torch.")
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if (new / INDEX).is_file():
        index = json.loads((new / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {"total_size": total}
        (new / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _check(base: Path, adapter: Path, merged: Path, quantise: Quantise) -> float:
    """Return the mean difference between merged and base + adapter, in nats a token.

    Raises:
        ModelError: it is larger than rounding explains.
    """
    cpu, stored = torch.device("cpu"), stored_dtype(merged)

    def scores(loaded: Base) -> Tensor:
        found = []
        for prompt in PROMPTS:
            ids = torch.tensor([loaded.tokenizer(prompt).input_ids])
            logps = loaded.model(ids).logits[0, :-1].float().log_softmax(-1)
            found.append(logps.gather(1, ids[0, 1:, None]).squeeze(1))
        return torch.cat(found)

    policy = load_base(str(base), cpu, stored_dtype(base), quantise=quantise)
    load_adapter(policy.model, adapter)
    expected = scores(policy)
    with adapters_disabled(policy.model):
        moved = float((scores(policy) - expected).abs().mean())
    del policy
    difference = float((scores(load_base(str(merged), cpu, stored)) - expected).abs().mean())
    # a quantised base computes in bfloat16
    computed = torch.bfloat16 if quantise != "none" else stored_dtype(base)
    tolerance = rounding_explains(stored, computed, moved)
    if not difference <= tolerance:
        raise ModelError(
            f"the merged model differs from base + adapter by {difference:.3g} nats a token, more "
            f"than the {tolerance:g} that rounding explains; nothing was written"
        )
    return difference


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lora.merge",
        description="Merge an adapter into its base, a shard at a time, and check the result.",
    )
    parser.add_argument("adapter", metavar="RUN_OR_ADAPTER", help="a run's folder, or an adapter's")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--base",
        choices=("original", "dequantized"),
        default="dequantized",
        help="for a run with --quantize: the weights before quantisation, or those it trained on",
    )
    parser.add_argument("--merge-dtype", choices=("float32", "bfloat16", "float16"))
    args = parser.parse_args(argv)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    try:
        if Path(args.output).exists():
            raise ModelError(f"--output {args.output} exists; name another or remove it first")
        run = Path(args.adapter)
        adapter = run / "adapter" if (run / "adapter").is_dir() else run
        config, _ = read_adapter(adapter)
        name = config.get("base_model_name_or_path")
        if not isinstance(name, str) or not name:
            raise ModelError(f"{adapter}/adapter_config.json names no base model")
        base = builtin_folder() if name == "builtin" else model_folder(name, config.get("revision"))
        quantise: Quantise = "none"
        if args.base == "dequantized" and (run / "config.yaml").is_file():
            settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
            quantise = settings.get("quantize", "none")
        dtype = getattr(torch, args.merge_dtype) if args.merge_dtype else None
        rounding, difference = merge_files(base, adapter, Path(args.output), dtype, quantise)
    except ModelError as error:
        print(f"lora.merge: {error}", file=sys.stderr)
        return 2
    print(
        f"Merged into {args.output}: {rounding.changed:.0%} of the patched weights moved; rounding "
        f"changed their deltas by {rounding.error:.0%}; {difference:.2g} nats a token from "
        "base + adapter"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
