"""The hashes of a base model and of its parts: anything that is another gives another one."""

import torch
from conftest import small_model

from lora import base_hash, fingerprint


def test_a_weight_is_hashed_in_parts_and_each_part_counts(monkeypatch):
    weight = torch.arange(1000, dtype=torch.bfloat16)
    whole = fingerprint("", [("w", weight)])
    monkeypatch.setattr("lora.base.fingerprint.HASHED_AT_ONCE", 64)
    assert fingerprint("", [("w", weight)]) == whole
    for place in (0, 31, 32, 500, 999):  # 32 of them are a part
        changed = weight.clone()
        changed[place] += 8
        assert fingerprint("", [("w", changed)]) != whole
    assert fingerprint("", [("v", weight)]) != whole != fingerprint("a", [("w", weight)])


def test_a_changed_weight_dtype_or_setting_has_another_hash():
    model = small_model()
    name = base_hash(model)
    assert base_hash(small_model()) == name
    weight = model.model.layers[3].mlp.down_proj.weight
    weight.data[5, 7] += 2**-10
    assert base_hash(model) != name
    half = small_model()
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    assert base_hash(half) != name
    assert base_hash(small_model(rms_norm_eps=1e-4)) != name
