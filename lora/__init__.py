"""The frozen base model and its hand-written low-rank adapters. Imports nothing local."""

from lora.adapter import (
    adapter_parameters,
    adapter_swapped,
    adapters_disabled,
    add_lora,
    copy_adapter,
    lora_layers,
    remove_lora,
    train_adapters,
)
from lora.base import (
    GEMMA_TERMS,
    Base,
    choose_device,
    choose_dtype,
    choose_model,
    length_limit,
    load_base,
    load_tokenizer,
)
from lora.compiling import Compile, layers_compiled
from lora.layer import LoRALinear, ModelError
from lora.merging import merge_lora, merge_rounding, merged_weight, save_merged
from lora.peft_format import load_adapter, save_adapter
from lora.targets import as_targets

__all__ = [
    "GEMMA_TERMS",
    "Base",
    "Compile",
    "LoRALinear",
    "ModelError",
    "adapter_parameters",
    "adapter_swapped",
    "adapters_disabled",
    "add_lora",
    "as_targets",
    "choose_device",
    "choose_dtype",
    "choose_model",
    "copy_adapter",
    "layers_compiled",
    "length_limit",
    "load_adapter",
    "load_base",
    "load_tokenizer",
    "lora_layers",
    "merge_lora",
    "merge_rounding",
    "merged_weight",
    "remove_lora",
    "save_adapter",
    "save_merged",
    "train_adapters",
]
