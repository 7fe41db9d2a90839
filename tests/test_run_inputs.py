"""What a run starts from: what is said of an adapter, and what --target-modules auto became."""

import json
import os
import sys
import threading

import pytest
from conftest import small_model
from families import family_model

from lora import BUILTIN_HUB_ID, Patterns, add_lora, save_adapter
from run.config import Config
from run.inputs import (
    PRODUCTS_KEPT,
    add_adapters,
    load_tokenizer,
    of_other_base,
    prepare_libraries,
    read_questions,
)


@pytest.mark.parametrize(
    "made_for, base, other",
    [
        ("google/gemma-2-9b", "google/gemma-2-9b", False),
        ("google/gemma-2-9b", "/models/gemma-2-9b/", False),  # a copy of it
        (BUILTIN_HUB_ID, "builtin", False),
        ("google/gemma-2-9b", "google/gemma-2-9b-it", True),
        ("/models/first", "/models/second", True),
        ("google/gemma-2-9b", "builtin", True),
    ],
)
def test_an_adapter_made_for_another_base_gets_a_word(tmp_path, made_for, base, other):
    model = small_model()
    add_lora(model, 2, 4)
    save_adapter(model, tmp_path / "adapter", made_for)
    said = of_other_base(tmp_path / "adapter", base)
    assert bool(said) == other
    assert not other or (made_for in said and base in said and said.endswith("\n"))


def test_the_settings_of_a_continued_adapter_are_the_runs(tmp_path):
    """Whatever was given, the card and config.yaml tell what was trained."""
    model = small_model()
    add_lora(model, rank=3, alpha=6, dropout=0.25, patterns=Patterns({"v_proj": 2}))
    save_adapter(model, tmp_path / "adapter", "base")
    given = Config(adapter=str(tmp_path / "adapter"), rank=5, alpha=64.0, rslora=True)
    found = add_adapters(given, small_model())
    assert (found.rank, found.alpha, found.dropout, found.rslora) == (3, 6.0, 0.25, False)
    assert sorted(found.target_modules) == ["q_proj", "v_proj"]
    assert found.patterns("rank_pattern", int) == {
        f"model.layers.{i}.self_attn.v_proj": 2 for i in range(4)
    }
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps(settings | {"lora_alpha": 0})
    )
    assert add_adapters(given, small_model()) == given  # which no flag could say again


def test_a_run_that_starts_from_an_adapter_of_another_base_says_so_and_its_plan_does_not(
    tmp_path, capsys
):
    model = small_model()
    add_lora(model, 2, 4)
    save_adapter(model, tmp_path / "adapter", "google/gemma-2-9b")
    config = Config(model="google/gemma-2-9b-it", adapter=str(tmp_path / "adapter"))
    add_adapters(config, small_model().to("meta"))
    assert not capsys.readouterr().out
    add_adapters(config, small_model())
    assert capsys.readouterr().out.startswith("Note: the adapter")


@pytest.mark.parametrize(
    "family, became", [("bamba", ("q_proj", "v_proj")), ("mamba2", ("in_proj", "out_proj"))]
)
def test_the_settings_say_which_targets_auto_became(family, became):
    assert add_adapters(Config(), family_model(family)).target_modules == became


@pytest.mark.parametrize("long, kept", [(80, None), (20, str(PRODUCTS_KEPT))])
def test_for_long_questions_onednn_keeps_fewer_products(
    long, kept, model_folder, tmp_path, monkeypatch
):
    """A trie has both answers, of one token a word or more: some 40 tokens, and the prompt."""
    monkeypatch.setattr("run.inputs.LONG", long)
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "")  # so that the end of the test takes back what it becomes
    monkeypatch.delenv(name)
    row = {"prompt": "a", "chosen": "b " * 12, "rejected": "c " * 12}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    config = Config(model=str(model_folder), data=(str(tmp_path / "rows.jsonl"),), eval_fraction=0)
    prepared = read_questions(config, *load_tokenizer(config))
    assert len(prepared.train) == 1 and os.environ.get(name) == kept


def test_the_processor_is_tried_in_a_thread_that_gives_way(monkeypatch):
    """What the compiler would run into, it runs into when it is its turn."""
    seen, tried = [], threading.Event()

    def trial():
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        tried.set()
        raise RuntimeError("no compiler")

    monkeypatch.setattr("torch._inductor.cpu_vec_isa.pick_vec_isa", trial)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    prepare_libraries()
    assert not tried.wait(0.2)
    prepare_libraries(compiling=True)
    assert tried.wait(10) and os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
    assert seen == [19 if sys.platform == "linux" else own]
