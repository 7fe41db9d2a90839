"""Which layers get an adapter, and which have a rank or an alpha of their own."""

import contextlib
import time

import pytest
import torch
import transformers
from conftest import SMALL, randomise, small_model
from families import drawn, family_model
from torch import nn

from lora import (
    ModelError,
    Patterns,
    adapter_parameters,
    add_lora,
    left_out,
    load_adapter,
    lora_layers,
    merge_lora,
    remove_lora,
    save_adapter,
    short_names,
)
from lora.targets import as_targets, by_pattern, match_targets
from lora.trial import used_otherwise


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


def ends(names):
    return {name.rpartition(".")[2] for name in names}


def phi3():
    return drawn(transformers.Phi3Config(**SMALL), 0.3)


@pytest.mark.parametrize(
    "model, expected",
    [
        (lambda: small_model("llama"), {"q_proj", "v_proj"}),
        (lambda: family_model("qwen3_next"), {"q_proj", "v_proj"}),  # in its full attention alone
        (phi3, {"qkv_proj", "o_proj"}),
        (lambda: family_model("mamba2"), {"in_proj", "out_proj"}),
        (lambda: family_model("falcon_mamba"), {"in_proj", "x_proj", "out_proj"}),
        (
            lambda: family_model("deepseek_v3"),
            {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
        ),
    ],
    ids=["llama", "qwen3_next", "phi3", "mamba2", "falcon_mamba", "deepseek_v3"],
)
def test_auto_takes_q_and_v_or_what_the_family_has_for_attention(model, expected):
    model = model()
    names = add_lora(model, 2, 4, target_modules=as_targets(["auto"]))
    assert ends(names) == set(short_names(model, names)) == expected


def test_targets_that_a_family_does_not_have_name_those_that_it_has():
    with pytest.raises(ModelError, match=r"'q_proj' matches .*, of which auto takes o_proj, qkv_p"):
        match_targets(phi3(), ["q_proj", "v_proj"])
    with pytest.raises(ModelError, match=r"of which auto takes in_proj, out_proj$"):
        match_targets(family_model("mamba2"), ["query_key_value"])


@pytest.mark.parametrize("targets", ["auto", "all-linear"])
def test_targets_that_match_no_layer_are_an_error_of_their_name(targets):
    size = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 97}
    gpt2 = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(**size))
    with pytest.raises(ModelError, match=f"'{targets}' matches no module.* are in Conv1D"):
        match_targets(gpt2, targets)
    with pytest.raises(ModelError, match=f"'{targets}' matches no module.* are in nothing"):
        match_targets(nn.Sequential(nn.Embedding(4, 4)), targets)


def test_a_layer_that_the_model_reads_itself_is_refused_by_name_and_left_out_of_all_linear():
    model = family_model("falcon_mamba")
    with pytest.raises(ModelError, match=r"layers\.0\.mixer\.dt_proj.*reads its (weight|bias) it"):
        add_lora(model, 2, 4, target_modules=["in_proj", "dt_proj"])
    assert not lora_layers(model)
    assert "dt_proj" not in ends(add_lora(model, 2, 4, target_modules="all-linear"))
    itself = ["backbone.layers.*.mixer.A_log", "backbone.layers.*.mixer.dt_proj.weight"]
    assert list(left_out(model)) == itself
    router = family_model("llama4")
    with pytest.raises(ModelError, match=r"feed_forward\.router.*returns a tuple"):
        add_lora(router, 2, 4, target_modules=r".*router")


def test_what_is_left_out_is_counted_over_all_layers():
    """Two layers of 4 experts: a router of 4 x 32, 32 x 96 up and gate, 48 x 32 down."""
    model = drawn(
        transformers.MixtralConfig(**SMALL | {"num_hidden_layers": 2}, num_local_experts=4), 0.3
    )
    add_lora(model, 2, 4, target_modules="all-linear")
    assert left_out(model) == {
        "model.layers.*.mlp.gate.weight": 2 * 4 * 32,
        "model.layers.*.mlp.experts.gate_up_proj": 2 * 4 * 32 * 96,
        "model.layers.*.mlp.experts.down_proj": 2 * 4 * 48 * 32,
    }


class TinyMLA(nn.Module):
    """Attention of low rank, by the name that LongCat gives it."""

    def __init__(self):
        super().__init__()
        self.q_a_proj, self.o_proj = nn.Linear(4, 2), nn.Linear(2, 4)


def test_auto_finds_attention_of_low_rank_by_its_name():
    model = nn.ModuleDict({"self_attn": TinyMLA(), "down_proj": nn.Linear(4, 4)})
    assert match_targets(model, "auto") == ["self_attn.q_a_proj", "self_attn.o_proj"]


class Grouped(nn.Linear):
    """As DeepSeek-V4's: a block of the weight for each group of x, which is no product x W."""

    def forward(self, x):
        blocks = self.weight.view(2, -1, self.in_features)
        return torch.einsum("...gi,goi->...go", x.unflatten(-1, (2, -1)), blocks).flatten(-2)


def test_a_linear_layer_that_computes_something_else_than_a_product_gets_no_adapter():
    model = small_model("llama")
    model.model.layers[1].mlp.down_proj = Grouped(24, 32, bias=False)  # of 2 x 24
    assert len(match_targets(model, "all-linear")) == 4 * 7 - 4  # all of that name
    with pytest.raises(ModelError, match="something else than a product with its weight"):
        match_targets(model, ["down_proj"])


class Reader(nn.Module):
    """Calls one layer, multiplies by another's weight, and asks a third for its size."""

    device = "cpu"

    def __init__(self):
        super().__init__()
        self.called, self.read, self.asked = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, input_ids, use_cache):
        x = torch.ones(1, 4)
        return self.asked(self.called(x) @ self.read.weight)[:, : self.asked.out_features]


@pytest.mark.parametrize("fails", [False, True])
def test_what_a_model_does_with_its_layers_is_seen_in_a_trial_that_leaves_it_as_it_was(fails):
    model = Reader()
    before = list(model.modules())
    if fails:
        model.called.forward = lambda x: 1 / 0
    found = used_otherwise(model, ["called", "read", "asked"])
    assert list(model.modules()) == before
    itself = "the model reads its {} itself"
    reads = {"read": itself.format("weight"), "asked": itself.format("out_features")}
    assert found == ({} if fails else reads)


def test_layers_too_small_for_the_rank_are_named_with_the_patterns_that_would_help():
    model = family_model("qwen3_next")
    with pytest.raises(ModelError, match="rank 2 .* 32 x 1 layer.*shared_expert_gate=1"):
        add_lora(model, 2, 4, target_modules="all-linear")
    assert not lora_layers(model)
    with pytest.raises(ModelError, match=r"--rank-pattern in_proj_ba=8 shared_expert_gate=1$"):
        add_lora(model, 9, 4, target_modules=["in_proj_ba", "shared_expert_gate", "q_proj"])
    patterns = Patterns({"shared_expert_gate": 1})
    assert "shared_expert_gate" in ends(add_lora(model, 2, 4, 0.0, "all-linear", patterns))


@pytest.mark.parametrize("rank", [1, 2])
def test_layers_that_share_a_weight_share_its_adapter(tmp_path, rank):
    """Zamba 2 has one attention block at several depths. A of rank 1 is its own transpose."""
    model = family_model("zamba2")
    ids = torch.arange(3, 20)[None]
    before = model(ids).logits
    names = add_lora(model, rank, 4)
    assert len(names) == 4 and len(set(lora_layers(model).values())) == 2
    assert len(adapter_parameters(model)) == 4
    randomise(model)
    save_adapter(model, tmp_path / "adapter", "base")
    policy = model(ids).logits
    assert not torch.allclose(policy, before)
    other = family_model("zamba2")
    assert load_adapter(other, tmp_path / "adapter") == names
    assert torch.equal(other(ids).logits, policy)
    remove_lora(other)
    assert torch.equal(other(ids).logits, before)
    merge_lora(model).save_pretrained(tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(ids).logits, policy, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_gives_one_weight_two_deltas_is_refused(tmp_path):
    model = family_model("zamba2", tie_word_embeddings=False)
    for name in ("q_proj", "v_proj"):  # as in a model that ties nothing
        layer = model.model.layers[2].shared_transformer.self_attn.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight.clone())
    add_lora(model, 2, 4)
    randomise(model)
    save_adapter(model, tmp_path, "base")
    with pytest.raises(ModelError, match="share one weight"):
        load_adapter(family_model("zamba2"), tmp_path)


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


def test_a_pattern_is_compiled_once_however_many_there_are(monkeypatch):
    """An adapter may have one for each of a thousand layers, more than libraries remember."""
    import regex

    real, seen = regex.compile, []
    monkeypatch.setattr(regex, "compile", lambda p: seen.append(p) or real(p))
    patterns = {f"own{i}.proj": i for i in range(600)}
    for i in range(20):
        assert Patterns(rank=patterns).of(f"layers.own{i}.proj", 8, 1.0)[0] == i
    for i in range(20):
        assert Patterns(rank=patterns).of(f"layers.own{i}.proj", 8, 1.0)[0] == i
    assert len(seen) == len(set(seen)) <= 600
