"""What a run starts from: what is said of an adapter, and what --target-modules auto became."""

import pytest
from conftest import small_model
from families import family_model

from lora import BUILTIN_HUB_ID, add_lora, save_adapter
from run.config import Config
from run.inputs import add_adapters, of_other_base


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
