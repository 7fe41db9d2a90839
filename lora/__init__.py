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
from lora.base.acceleration import layers_as_asked
from lora.base.attention import attention_by_hand
from lora.base.blocks import bytes_of_blocks, trim_memory, weights_in_blocks
from lora.base.checkpointing import layers_checkpointed
from lora.base.compiling import layers_compiled, try_processor_ahead
from lora.base.few_kernels import few_kernels
from lora.base.fingerprint import base_hash, fingerprint
from lora.base.folders import (
    BUILTIN_HUB_ID,
    GEMMA_TERMS,
    INDEX,
    NOTICES,
    builtin_path,
    copy_beside,
    files_beside,
    folder_of,
    weight_files,
)
from lora.base.layers import decoder_layers
from lora.base.loading import (
    Base,
    choose_device,
    choose_dtype,
    choose_model,
    load_base,
    load_tokenizer,
    skeleton,
)
from lora.base.norms import norms_by_hand
from lora.base.rotary import rotary_by_rows
from lora.base.sharding import load_sharded, take_part
from lora.casts import adapters_cast
from lora.errors import ModelError, is_failure, reading, reason
from lora.files import FULL, expanded, whole, whole_folder, write_text, writing
from lora.layer import LoRALinear
from lora.merge_files import base_of, merge_files
from lora.merging import merge_lora, merged_weight, save_merged
from lora.peft_format import load_adapter, read_adapter, save_adapter
from lora.rounding import Rounding, allowed_difference, merge_rounding, stored_dtype
from lora.scaling import adapter_scaled, scale_adapter
from lora.targets import Patterns, as_targets, by_pattern, left_out, short_names
