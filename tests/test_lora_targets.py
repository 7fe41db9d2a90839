"""Which layers get an adapter, and which have a rank or an alpha of their own."""

import contextlib
import time

import pytest
from conftest import small_model

from lora import ModelError, Patterns, add_lora, lora_layers
from lora.targets import as_targets, by_pattern, match_targets


def test_targets_by_name_by_regular_expression_and_all_linear():
    model = small_model("llama")
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert len(match_targets(model, "all-linear")) == 4 * len(linear)  # and not the head
    assert set(match_targets(model, as_targets(linear))) == set(match_targets(model, "all-linear"))
    assert match_targets(model, as_targets([r".*\.1\..*(q|v)_proj"])) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ]
    assert match_targets(model, ["layers.1.self_attn.q_proj"]) == [
        "model.layers.1.self_attn.q_proj"
    ]


def test_a_pattern_gives_layers_their_own_rank_and_alpha():
    model = small_model("llama")
    add_lora(model, 4, 8, patterns=Patterns({"v_proj": 2}, {r"layers\.0\..*": 1}))
    ranks = {n: (m.rank, m.scale) for n, m in lora_layers(model).items()}
    assert ranks["model.layers.0.self_attn.q_proj"] == (4, 1 / 4)
    assert ranks["model.layers.0.self_attn.v_proj"] == (2, 1 / 2)
    assert ranks["model.layers.1.self_attn.v_proj"] == (2, 8 / 2)
    assert by_pattern("layers.0.v_proj", {"proj": 1}, 5) == 5  # a part of a name is no name


def test_rslora_is_lora_with_alpha_times_the_root_of_the_rank():
    model = small_model("llama")
    add_lora(model, rank=4, alpha=6, patterns=Patterns({"v_proj": 9}, rslora=True))
    layers = lora_layers(model)
    assert layers["model.layers.0.self_attn.q_proj"].scale == 6 / 2  # alpha / sqrt(r)
    assert layers["model.layers.0.self_attn.v_proj"].scale == pytest.approx(6 / 3)


def test_a_layers_own_rank_and_alpha_by_hand():
    """The first pattern that matches the last parts of a name counts, whole parts alone."""
    patterns = Patterns({"v_proj": 2, r"layers\.0\..*": 9}, {"layers.1.v_proj": 5.0})
    assert patterns.of("model.layers.0.v_proj", 4, 8.0) == (2, 8.0)
    assert patterns.of("model.layers.0.q_proj", 4, 8.0) == (9, 8.0)
    assert patterns.of("model.layers.1.v_proj", 4, 8.0) == (2, 5.0)
    assert patterns.of("model.layers.1.q_proj", 4, 8.0) == (4, 8.0)
    assert patterns.of("model.layers.11.my_v_proj", 4, 8.0) == (4, 8.0)
    assert Patterns().of("anything", 4, 8.0) == (4, 8.0)


def test_rslora_multiplies_a_layers_own_alpha_by_the_root_of_its_own_rank():
    """alpha / sqrt(r) = (alpha sqrt(r)) / r: of 9 and 6 that is 18 / 9, of 4 and 5 it is 10 / 4."""
    patterns = Patterns({"v_proj": 9}, {"q_proj": 5.0}, rslora=True)
    assert patterns.of("layers.0.v_proj", 4, 6.0) == (9, 18.0)
    assert patterns.of("layers.0.q_proj", 4, 6.0) == (4, 10.0)
    assert patterns.of("layers.0.o_proj", 4, 6.0) == (4, 12.0)


@pytest.mark.parametrize(
    "pattern, said",
    [
        (r"((\w|\.|_|[a-z])*)*[A-Z]", "takes too long"),
        (r"(([a-z0-9_.])*|(\w|\.)*)*[!?]", "matches no module"),
        (r"(\w+\.?)+!", "matches no module"),
        (r"(.*.*.*.*.*.*)*[xyz]{3}", "matches no module"),
        ("(" * 400 + "a", "is no regular expression"),
    ],
)
def test_a_pattern_that_never_ends_or_is_none_is_refused_at_once(pattern, said):
    """Python's own `re` would take years over the first four."""
    begun = time.process_time()
    with pytest.raises(ModelError, match=said):
        match_targets(small_model(), pattern)
    with contextlib.suppress(ModelError):  # one that matches nothing is none of a layer's
        name = "model.layers.0.self_attn.q_proj_and_a_longer_name"
        assert Patterns({pattern: 4}).of(name, 8, 16.0) == (8, 16.0)
    assert time.process_time() - begun < 5
