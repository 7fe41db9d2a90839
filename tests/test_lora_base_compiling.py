"""Compiled layers: the very gradients of the layers as they are, dropout included."""

import gc
import shutil

import pytest
import torch
from conftest import randomise, relative_error, small_model

import lora
from data.trees import build_trie, collate
from dpo import answer_logps
from lora import ModelError, add_lora, decoder_layers
from lora.adapter import adapter_parameters
from lora.base.compiling import PAYS_FROM_STEPS, layers_compiled


def gradients(model, tries):
    """The adapters' gradients of two micro-batches of different sizes."""
    torch.manual_seed(0)
    parameters = adapter_parameters(model)
    for trie in tries:
        answer_logps(model, collate([trie])).sum().backward()
    found = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    return found


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_layers_give_the_same_gradients_with_dropout():
    """Torch 2.11 draws the random numbers of a layer in another order."""
    model = small_model("gemma2", scale=0.1)
    add_lora(model, rank=2, alpha=4, dropout=0.3 if torch.__version__ >= (2, 13) else 0.0)
    randomise(model, scale=0.1)
    lora.train_adapters(model)
    tries = [build_trie((1, 5, 6), [(7, 8, 2), (7, 9, 2)]), build_trie((1, 5), [(7, 2), (9, 8, 2)])]
    plain = gradients(model, tries)
    frames, stats = (torch._dynamo.utils.counters[name] for name in ("frames", "stats"))
    before, graphs = frames["ok"], stats["unique_graphs"]
    with layers_compiled(model, "on", steps=1) as on, lora.attention_by_hand(model) as by_hand:
        compiled = gradients(model, tries)
    assert on and by_hand and frames["ok"] > before  # something was compiled
    assert stats["unique_graphs"] == graphs + 1  # once for all layers, the first one included
    assert not torch._dynamo.utils.counters["graph_break"]
    for a, b in zip(compiled, plain, strict=True):
        assert relative_error(a, b) < 1e-5
    done = frames["total"]
    assert all(map(torch.equal, gradients(model, tries), plain))  # as they were again
    assert frames["total"] == done


def test_auto_compiles_where_it_pays_and_off_never(monkeypatch):
    model = small_model("llama")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for asked, steps, expected in (
        ("auto", PAYS_FROM_STEPS - 1, False),
        ("auto", PAYS_FROM_STEPS, True),
        ("off", PAYS_FROM_STEPS, False),
        ("on", 1, True),
    ):
        with layers_compiled(model, asked, steps) as on:
            assert on == expected == (gc.get_freeze_count() > 0)
        assert gc.get_freeze_count() == 0
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with layers_compiled(model, "auto", PAYS_FROM_STEPS) as on:
        assert not on


def test_layers_that_processes_gather_are_not_compiled():
    model = small_model("llama")
    model.model.layers[0].unshard = None  # what FSDP2 gives a module
    with layers_compiled(model, "auto", PAYS_FROM_STEPS) as on:
        assert not on


def test_on_without_a_compiler_says_what_is_needed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ModelError, match=r"needs a C\+\+ compiler"):
        with layers_compiled(small_model("llama"), "on", steps=1):
            pass


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "qwen3"])
def test_the_layers_of_an_architecture_are_found(architecture):
    model = small_model(architecture)
    layers = decoder_layers(model)
    assert len(layers) == model.config.num_hidden_layers
    assert all("DecoderLayer" in type(layer).__name__ for layer in layers)
