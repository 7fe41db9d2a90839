"""Hashes that tell one base model, or one adapter, from another."""

import json
from collections.abc import Iterable
from typing import Any

import torch
import xxhash

HASHED_AT_ONCE = 2**24  # bytes


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


def base_hash(model: Any) -> str:
    """Hash every weight, dtype and setting of a model that has no adapters yet.

    Its state holds a quantised base's scales too.
    """
    settings = model.config.to_dict()
    settings.pop("transformers_version", None)  # of whoever reads it
    config = json.dumps(settings, sort_keys=True, default=str)
    return fingerprint(config, model.state_dict().items())
