"""The base model: the built-in one for real, devices, dtypes, and the choice of a default."""

import gc
import os

import gguf
import numpy as np
import pytest
import torch
from conftest import small_model, small_tokenizer

from data import EncodedQuestion, encode, load_preferences, of_all_lengths
from dpo import check_sharing
from lora import ModelError, choose_device, choose_dtype, choose_model, load_base, load_tokenizer
from lora.base.folders import builtin_folder, gguf_once
from lora.base.loading import choose_attention


@pytest.fixture(scope="module")
def gemma():
    """Gemma 3 270M as converted from the package, in the precision that the run takes."""
    device = torch.device("cpu")
    return load_base("builtin", device, choose_dtype("auto", device))


@pytest.fixture(scope="module")
def gemmas():
    """Its tokenizer."""
    return load_tokenizer("builtin")[0]


@torch.no_grad()
def test_the_built_in_model_is_a_language_model_that_knows_paris(gemma, gemmas):
    prompt = gemmas("Question: What is the capital of France?\nAnswer:").input_ids
    assert prompt[0] == gemmas.bos_token_id
    logits = gemma.model(torch.tensor([prompt])).logits[0, -1]
    assert gemmas.decode(logits.argmax()) == " Paris"


def test_the_built_in_model_is_frozen_tied_and_can_be_saved(gemma, tmp_path):
    model = gemma.model
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight.data_ptr() == embeddings.weight.data_ptr()
    assert not hasattr(model.config, "quantization_config")
    folder = builtin_folder()
    assert gemma.name == str(folder)
    assert "terms" in (folder / "NOTICE").read_text()


def test_the_built_in_model_reads_tries_of_the_built_in_questions(gemma, gemmas):
    encoding = encode(load_preferences("builtin")[:20], gemmas)
    assert encoding.boundary_merges == 0 and not encoding.notes
    check = check_sharing(gemma.model, of_all_lengths(encoding.questions))
    assert check.way == "tries", check.reason


def test_real_gemma_tokens_decode_back_and_controls_stay_text(gemmas):
    tokenizer = gemmas
    q: EncodedQuestion = encode(load_preferences("builtin")[:1], tokenizer).questions[0]
    assert tokenizer.decode(q.prompt).startswith("<bos>Question: ")
    assert all(a[-1] == tokenizer.eos_token_id and a.count(a[-1]) == 1 for a in q.answers)


def test_a_gguf_file_is_read_once_and_as_its_own_library_reads_it(tmp_path, monkeypatch):
    path, opened = tmp_path / "small.gguf", []
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_token_list(["<bos>", "tree", "\u2581leaf"])
    writer.add_tensor("weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = gguf.GGUFReader(path)
    memmap = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *a, **k: opened.append(a) or memmap(*a, **k))
    with gguf_once():
        ours = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is ours and len(opened) == 1
    assert gguf.GGUFReader is type(theirs) and not isinstance(ours.data, memmap)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        assert ours.fields[name].contents() == field.contents()
    assert (ours.tensors[0].data == theirs.tensors[0].data).all()


def test_a_tokenizer_without_its_copy_of_the_words_is_whole(gemmas, tmp_path):
    assert not {"_vocab", "_merges"} & vars(gemmas).keys()
    assert len(gemmas.get_vocab()) == len(gemmas) == 262_144
    gemmas.save_pretrained(tmp_path)
    file = "tokenizer.json"
    assert (tmp_path / file).read_bytes() == (builtin_folder() / file).read_bytes()


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="half a minute; CI does it")
def test_a_conversion_leaves_one_whole_folder(tmp_path):
    folder = builtin_folder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_the_default_model_depends_on_gpu_memory_and_token(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr("lora.base.loading.get_token", lambda: "token")
    assert choose_model(torch.device("cpu"))[0] == "builtin"
    for free, token, expected in [
        (20 << 30, "token", "builtin"),
        (40 << 30, None, "builtin"),
        (40 << 30, "token", "google/gemma-2-9b"),
    ]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        monkeypatch.setattr("lora.base.loading.get_token", lambda token=token: token)
        name, why = choose_model(gpu)
        assert name == expected and why


def test_the_dtype_is_bfloat16_where_the_processor_computes_in_it(monkeypatch):
    cpu = torch.device("cpu")
    for capability, expected in [("avx512_bf16", torch.bfloat16), ("avx2", torch.float32)]:
        capabilities = {capability: True}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c, raising=False)
        assert choose_dtype("auto", cpu) == expected
    assert choose_dtype("float16", cpu) == torch.float16


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ModelError, match="--device warp"):
        choose_device("warp")
    assert choose_device("cpu") == torch.device("cpu")


def test_no_garbage_is_looked_for_in_a_tokenizer():
    whole = []

    def count(phase, info):
        if info["generation"] == 2:
            whole.append(phase)

    gc.callbacks.append(count)
    try:
        tokenizer, _ = load_tokenizer("builtin")
    finally:
        gc.callbacks.remove(count)
    assert len(tokenizer) > 200_000 and not whole
    assert gc.isenabled()
    with pytest.raises(ModelError):
        load_tokenizer("/nowhere")
    assert gc.isenabled()


def test_a_tokenizer_of_the_tests_is_like_the_real_one(gemmas):
    assert small_tokenizer()("a</s>b", split_special_tokens=True).input_ids.count(2) == 0
    assert gemmas("a<eos>b", split_special_tokens=True).input_ids.count(1) == 0


def test_attention_is_chosen_by_device_and_soft_capping():
    """Flex attention has no backward on a CPU, which the first step would find out too late."""
    plain, capped = small_model("llama").config, small_model("gemma2").config
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_attention("auto", plain, cpu) == choose_attention("auto", capped, gpu) == "eager"
    assert choose_attention("auto", plain, gpu) == choose_attention("sdpa", plain, cpu) == "sdpa"
    assert choose_attention("flex", capped, gpu) == "flex_attention"
    with pytest.raises(ModelError, match="--attention flex trains on CUDA alone"):
        choose_attention("flex", capped, cpu)
