"""Regional torch.compile: one decoder layer's graph, shared by all layers."""

import gc
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Literal

import torch

from lora.base.layers import decoder_layers
from lora.errors import ModelError

Compile = Literal["auto", "on", "off"]

OPTIONS = {
    "fallback_random": True,  # dropout decides as in the layers as they are
    "cpp.use_decompose_tanh": True,  # by exp, in a third of the time; off by some 1e-7
}
# Gemma 3 270M on 2 cores: 20 s of compiling, .03 s less a step of 8 pairs; benchmarks/RESULTS.md
PAYS_FROM_STEPS = 1000


@contextmanager
def layers_compiled(model: Any, asked: Compile, steps: int) -> Iterator[bool]:
    """Compile the decoder layers for the block, which makes `steps` steps; yield whether.

    `auto` compiles on a CPU with a C++ compiler from 1,000 steps on, where it was measured to pay.
    Sizes stay symbolic, since every micro-batch has another. Random numbers are those of the layers
    as they are, so that dropout takes the same decisions; torch 2.11 draws them in another order.

    Raises:
        ModelError: `on` where there is no C++ compiler, or no layers to compile.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    on_cpu, layers = model.device.type == "cpu", decoder_layers(model)
    able = len(layers) > 0 and (compiler is not None or not on_cpu)
    able &= not any(hasattr(layer, "unshard") for layer in layers)  # FSDP2 gathers around a layer
    if asked == "on" and not able:
        lacking = "a C++ compiler such as g++" if len(layers) else "a model with a list of layers"
        raise ModelError(f"--compile on needs {lacking}; leave it out")
    on = asked == "on" or (asked == "auto" and able and on_cpu and steps >= PAYS_FROM_STEPS)
    if on:
        gc.freeze()  # else compiling brings on full collections in the steps, .3 s each
        for layer in layers:
            layer.compile(dynamic=True, options=OPTIONS)
        # Else the first layer, whose input no gradient goes back from, would be compiled by itself.
        hook = model.get_input_embeddings().register_forward_hook(_as_later_inputs)
    # Where nobody asked for it, a compiler that fails leaves the layers as they are.
    patch = torch._dynamo.config.patch(suppress_errors=asked == "auto") if on else nullcontext()
    try:
        with patch:
            yield on
    finally:
        if on:
            gc.unfreeze()
            hook.remove()
        for layer in layers:
            layer._compiled_call_impl = None  # what `Module.compile` sets; it has no opposite


def try_processor_ahead() -> None:
    """Let the compiler find out what the processor can do, in a thread, while files are read.

    It compiles small programs for that, 9 s of one core, once on a machine. They give way to all
    else on Linux, where a thread has a priority of its own.
    """

    def found_out() -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        with suppress(Exception):  # then the compiler finds out itself, and says what is wrong
            from torch._inductor.cpu_vec_isa import pick_vec_isa

            pick_vec_isa()

    threading.Thread(target=found_out, daemon=True).start()


def _as_later_inputs(_: Any, __: Any, embedded: torch.Tensor) -> torch.Tensor:
    """Give the first layer an input that has a gradient in training, as all others have."""
    return embedded.requires_grad_() if torch.is_grad_enabled() else embedded
