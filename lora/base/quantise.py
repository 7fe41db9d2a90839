"""Quantised bases by bitsandbytes: NF4 and int8, on GPUs and CPUs, and back to dense weights.

The output head and the embeddings stay as they are; the adapters are float32 as ever.
"""

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora.base.blocks import trim_memory

Quantise = Literal["none", "nf4", "int8"]


def quantisation_config(kind: Quantise) -> Any:
    """Return what `from_pretrained` takes; bitsandbytes' own defaults are not QLoRA's.

    NF4 with double quantisation and bfloat16 compute (Dettmers et al. 2023, arXiv 2305.14314).
    """
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for every int8 call
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def keep_layout(model: Any) -> None:
    """Stop 4-bit layers from repacking their weights at the first evaluation on a CPU.

    bitsandbytes 0.50 does so in place where the CPU has AVX512-BF16. Dequantising then gives
    garbage, and the next training step no gradient at all: DPO's reference pass, exactly.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def leave_the_file(model: Any) -> None:
    """Copy what stayed dense on a CPU, so that the weights' file need not stay in memory.

    Dense weights lie in the file's own pages, among those of all that was quantised.
    """
    trim_memory()  # of what quantising took
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def is_quantised(linear: nn.Linear) -> bool:
    """Tell whether the weight is stored as codes instead of numbers."""
    return not linear.weight.is_floating_point()


def dense_weight(linear: Any) -> Tensor:
    """Return the (out, in) weight that `linear` computes with, dequantised if need be."""
    dense: Tensor = linear.weight
    if not is_quantised(linear):
        return dense
    from bitsandbytes import functional

    weight = linear.weight
    if getattr(weight, "quant_state", None) is not None:
        dense = functional.dequantize_4bit(weight.data, weight.quant_state)
    else:  # int8: codes and row scales move from the weight to the layer's state at its first run
        codes = weight.CB if weight.CB is not None else linear.state.CB
        scales = weight.SCB if weight.SCB is not None else linear.state.SCB
        codes = codes if codes is not None else weight.data
        dense = functional.int8_vectorwise_dequant(codes, scales)
    return dense


def requantised(weight: Tensor, kind: Quantise) -> Tensor:
    """Return what a weight becomes when it is quantised and dequantised, as loading does."""
    from bitsandbytes import functional

    if kind == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        dense: Tensor = functional.int8_vectorwise_dequant(codes, scales)
    else:
        packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        dense = functional.dequantize_4bit(packed, state)
    return dense


def dense_linear(linear: nn.Linear, weight: Tensor) -> nn.Linear:
    """Return a plain layer with this weight and the bias of `linear`, frozen."""
    plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = linear.bias
    return plain.train(linear.training)


def dequantise(model: Any, dtype: torch.dtype) -> None:
    """Replace every quantised layer by a dense one, and forget that there was quantisation."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and is_quantised(module):
            model.set_submodule(name, dense_linear(module, dense_weight(module).to(dtype)))
    loaded = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit")
    for trace in ("hf_quantizer", "quantization_method", *loaded):
        vars(model).pop(trace, None)
    vars(model.config).pop("quantization_config", None)
