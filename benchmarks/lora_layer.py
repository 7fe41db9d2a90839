"""One LoRA layer, forward and backward: ours against PEFT's, time and bytes saved for backward.

    pip install -e '.[bench]'
    python benchmarks/lora_layer.py

Both wrap the same frozen square layer, in turns; the base layer alone stands beside them.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import peft
import torch

from lora import LoRALinear, choose_device, choose_dtype

RANK, ALPHA = 8, 16


def layers(width, dropout, device, dtype):
    def base():
        linear = torch.nn.Linear(width, width, bias=False, device=device, dtype=dtype)
        return linear.requires_grad_(False)

    ours = LoRALinear(base(), RANK, ALPHA, dropout).train()
    holder = torch.nn.Sequential(base())
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=["0"])
    theirs = peft.get_peft_model(holder, config).train()
    return {"base": base(), "ours": ours, "PEFT": theirs}


def step(layer, x, gradient):
    layer(x).backward(gradient)


def saved_bytes(layer, x):
    """Bytes that autograd keeps for backward, parameters and x itself left out."""
    known = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    known.add(x.untyped_storage().data_ptr())
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    del y
    return sum(kept.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--widths", type=int, nargs="+", default=[576, 2048, 3584])
    parser.add_argument("--repetitions", type=int, default=15)
    args = parser.parse_args()
    device = choose_device()
    dtype = choose_dtype("auto", device)
    print(
        f"{device}, {dtype}, {torch.get_num_threads()} threads, {args.tokens} tokens, rank {RANK}; "
        f"torch {torch.__version__}, peft {peft.__version__}"
    )
    for width in args.widths:
        for dropout in (0.0, 0.05):
            x = torch.randn(1, args.tokens, width, device=device, dtype=dtype, requires_grad=True)
            gradient = torch.randn_like(x)
            candidates = layers(width, dropout, device, dtype)
            times = {name: [] for name in candidates}
            calls = max(2, int(2e7 / width**2))
            for _ in range(args.repetitions):
                for name, layer in candidates.items():
                    step(layer, x, gradient)
                    started = time.perf_counter()
                    for _ in range(calls):
                        step(layer, x, gradient)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    times[name].append((time.perf_counter() - started) / calls * 1e3)
            ratios = sorted(p / o for p, o in zip(times["PEFT"], times["ours"], strict=True))
            kept = {name: saved_bytes(layer, x) for name, layer in candidates.items()}
            print(
                f"width {width}, dropout {dropout}: "
                + ", ".join(f"{n} {statistics.median(t):.3f} ms" for n, t in times.items())
                + f"; PEFT / ours {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}); bytes saved: "
                + ", ".join(f"{n} {b:,}" for n, b in kept.items()),
                flush=True,
            )


if __name__ == "__main__":
    main()
