"""The frozen base model and its hand-written low-rank adapters. Imports nothing local."""

from lora.adapter import (
    adapter_parameters,
    adapter_swapped,
    adapters_disabled,
    add_lora,
    copy_adapter,
    lora_layers,
    remove_lora,
    restore_adapter,
    train_adapters,
)
from lora.attention import attention_by_hand
from lora.base import (
    BUILTIN_HUB_ID,
    GEMMA_TERMS,
    Base,
    base_fingerprint,
    builtin_path,
    choose_device,
    choose_dtype,
    choose_model,
    fingerprint,
    folder_of,
    length_limit,
    load_base,
    load_tokenizer,
    skeleton,
)
from lora.checkpointing import Checkpointing, layers_as_asked, layers_checkpointed
from lora.compiling import Compile, decoder_layers, layers_compiled
from lora.layer import LoRALinear, ModelError
from lora.merging import (
    TOLERANCE,
    Rounding,
    merge_lora,
    merge_rounding,
    merged_weight,
    save_merged,
    stored_dtype,
)
from lora.norms import norms_by_hand
from lora.packing import packed, packed_bytes
from lora.peft_format import load_adapter, save_adapter
from lora.sharding import Shard, load_sharded, take_part
from lora.targets import as_targets

__all__ = [
    "BUILTIN_HUB_ID",
    "GEMMA_TERMS",
    "TOLERANCE",
    "Base",
    "Checkpointing",
    "Compile",
    "LoRALinear",
    "ModelError",
    "Rounding",
    "Shard",
    "adapter_parameters",
    "adapter_swapped",
    "adapters_disabled",
    "add_lora",
    "as_targets",
    "attention_by_hand",
    "base_fingerprint",
    "builtin_path",
    "choose_device",
    "choose_dtype",
    "choose_model",
    "copy_adapter",
    "decoder_layers",
    "fingerprint",
    "folder_of",
    "layers_as_asked",
    "layers_checkpointed",
    "layers_compiled",
    "length_limit",
    "load_adapter",
    "load_base",
    "load_sharded",
    "load_tokenizer",
    "lora_layers",
    "merge_lora",
    "merge_rounding",
    "merged_weight",
    "norms_by_hand",
    "packed",
    "packed_bytes",
    "remove_lora",
    "restore_adapter",
    "save_adapter",
    "save_merged",
    "skeleton",
    "stored_dtype",
    "take_part",
    "train_adapters",
]
