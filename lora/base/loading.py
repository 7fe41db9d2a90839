"""The frozen base model: its weights, tokenizer, dtype, attention and device.

Weights are read from safetensors only, and code that comes with a model never runs.
"""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import get_token
from torch import nn

from lora.base.folders import FILES, folder_of
from lora.base.layers import decoder_layers
from lora.base.quantise import Quantise, keep_layout, leave_the_file, quantisation_config
from lora.base.rotary import rotary_by_rows
from lora.errors import ModelError, reading, reason
from lora.files import expanded

HEADLINE = "google/gemma-2-9b"
SIZES = {  # of a model, least and most: planning with others would never end
    "max_position_embeddings": (2, 2**31), "vocab_size": (1, 2**24), "hidden_size": (1, 2**20),
    "num_hidden_layers": (1, 10_000),
}  # fmt: skip
HEADLINE_BYTES = 28 * 2**30  # its weights in bfloat16, 18.5 GB, and room to train


class Base(NamedTuple):
    """A loaded base model and what to record about it."""

    model: Any  # transformers.PreTrainedModel
    name: str  # what `from_pretrained` can load again
    revision: str | None
    folder: Path  # of its files
    hash: str = ""  # of its weights and settings, where somebody asked for it

    @property
    def layers(self) -> nn.ModuleList:
        """Return the decoder layers."""
        return decoder_layers(self.model)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device asked for; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        ModelError: there is no such device here.
    """
    if name != "auto":
        try:
            torch.zeros(1, device=name).item()  # the meta device keeps no numbers
            return torch.device(name)
        except Exception as error:
            raise ModelError(f"--device {name} cannot be used here ({reason(error)})") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype asked for; `auto` is bfloat16 where the processor computes in it."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    native = any(capabilities.get(k) for k in ("amx_bf16", "avx512_bf16", "bf16"))
    return torch.bfloat16 if native or device.type == "mps" else torch.float32


def choose_model(device: torch.device) -> tuple[str, str]:
    """Return (model, why): the headline model where GPU memory and a token allow it."""
    if device.type != "cuda":
        return "builtin", "no CUDA GPU here"
    if torch.cuda.mem_get_info(device)[0] < HEADLINE_BYTES:
        return "builtin", f"the GPU has less than {HEADLINE_BYTES >> 30} GiB free"
    if not get_token():
        return "builtin", "no Hub token in HF_TOKEN, ACCESS_TOKEN or .env"
    return HEADLINE, "a GPU with enough memory and a Hub token"


def load_base(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "auto",
    revision: str | None = None,
    quantise: Quantise = "none",
) -> Base:
    """Load a causal language model in `dtype` onto `device`, frozen and in eval mode.

    `name` is `builtin`, a folder, or a Hub id, of which `revision` is a branch, tag or commit. For
    `attention` see `choose_attention`. With `quantise`, bitsandbytes stores the linear layers in 4
    bits (nf4) or 8 (int8).

    Raises:
        ModelError: it does not exist, cannot be reached, is gated, or holds no safetensors.
    """
    from transformers import AutoModelForCausalLM

    local = name == "builtin" or expanded(name).is_dir()
    if local and revision:
        raise ModelError(f"--revision {revision} is for models of the Hub, and {name} is local")
    folder = folder_of(name, revision, FILES)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"--model {name} has no *.safetensors weights; other formats are not read")
    more: dict[str, Any] = {}
    if quantise != "none":
        more["quantization_config"] = quantisation_config(quantise)
    if quantise != "none" or device.type == "cuda":  # weights go there straight from the file
        more["device_map"] = {"": device}
    config = _configuration(folder)
    with reading(f"--model {name} cannot be loaded"):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=choose_attention(attention, config, device),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **more,
        )
    absent = sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])])
    if absent:  # transformers would go on with random weights there
        raise ModelError(
            f"--model {name} is incomplete: {len(absent)} weights are missing or misshaped, the "
            f"first is {absent[0]}"
        )
    if "device_map" not in more:
        model = model.to(device)
    keep_layout(model)
    if quantise != "none":
        leave_the_file(model)
    rotary_by_rows(model)
    model.eval().requires_grad_(False)
    return Base(model, str(folder) if local else name, revision, folder)


def skeleton(
    folder: Path,
    dtype: torch.dtype | None = None,
    attention: str = "eager",
    device: torch.device | None = None,
) -> Any:
    """Return a model without weights, on torch's meta device: its names, shapes and operations.

    Raises:
        ModelError: the folder has no configuration that can be read.
    """
    from transformers import AutoModelForCausalLM

    config = _configuration(folder)
    with reading(f"the base {folder} cannot be read"):
        how = choose_attention(attention, config, device or torch.device("cpu"))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=how)
    return model.eval().requires_grad_(False)


def _configuration(folder: Path) -> Any:
    """Return a model's configuration, in which the sizes are such as a model may have.

    Raises:
        ModelError: config.json cannot be read, or has another size.
    """
    from transformers import AutoConfig

    with reading(f"{folder / 'config.json'} cannot be used"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for name, (least, most) in SIZES.items():
            size = getattr(config.get_text_config(), name, None)
            if size is not None and not (type(size) is int and least <= size <= most):
                raise ValueError(f"{name} is {size!r:.40}, which no model has")
        return config


def choose_attention(name: str, config: Any, device: torch.device) -> str:
    """Return transformers' name for how attention is computed.

    `auto` is eager on CPUs, which is faster for short rows, and for soft-capped attention, which
    fused kernels do not know; else sdpa. `flex` knows it, leaves out what a mask hides, and keeps
    no L x L scores.

    Raises:
        ModelError: flex attention away from CUDA, where it has no backward.
    """
    if name == "flex":
        if device.type != "cuda":
            raise ModelError("--attention flex trains on CUDA alone; leave it out here")
        return "flex_attention"
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    chosen = "eager" if device.type == "cpu" or capped else "sdpa"
    return chosen if name == "auto" else name


def load_tokenizer(name: str, revision: str | None = None) -> tuple[Any, int | None]:
    """Return a model's tokenizer, and how many tokens the model reads at most, if it says so.

    Raises:
        ModelError: as `load_base`.
    """
    from transformers import AutoTokenizer

    folder = folder_of(name, revision)
    collecting = gc.isenabled()
    gc.disable()  # half a million merges hold no garbage, and looking for it takes over a second
    try:
        config = _configuration(folder)
        with reading(f"--model {name} has no tokenizer that can be read"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if not isinstance(longest := tokenizer.model_max_length, int | float):
                raise ValueError(f"model_max_length is {longest!r}, which is no length")
        for copy in ("_vocab", "_merges"):  # which the backend has too: 146 MiB of Gemma's
            vars(tokenizer).pop(copy, None)
        return tokenizer, getattr(config.get_text_config(), "max_position_embeddings", None)
    finally:
        if collecting:
            gc.enable()
