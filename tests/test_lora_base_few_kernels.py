"""Few kernels: a layer's small operations as pure functions, and how many launches are left."""

import shutil
import sys

import pytest
import torch
from conftest import ROOT, randomise, relative_error, small_model

import lora
from data.trees import build_trie, collate
from dpo import answer_logps
from lora.adapter import adapter_parameters
from lora.base.few_kernels import Functions, gated, norm, one_kernel, turned, weights

TRIES = [build_trie((1, 5, 6), [(7, 8, 2), (7, 9, 2)]), build_trie((1, 5), [(7, 2), (9, 8, 2)])]


def adapted(architecture, dropout=0.0, **changes):
    model = small_model(architecture, **changes)
    lora.add_lora(model, rank=2, alpha=3, dropout=dropout, target_modules="all-linear")
    randomise(model)
    lora.train_adapters(model)
    return model


def found(model):
    """Scores, and the gradients of all A and B."""
    torch.manual_seed(0)
    logps = answer_logps(model, collate(TRIES))
    for parameter in adapter_parameters(model):
        parameter.grad = torch.zeros_like(parameter)
    logps.sum().backward()
    return [logps.detach(), *(p.grad for p in adapter_parameters(model))]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "qwen2", "qwen3", "mistral"])
def test_scores_are_bit_for_bit_those_of_the_layers_and_gradients_equal(architecture):
    model = adapted(architecture, dropout=0.2)
    parts = {"norms": 17 if architecture in ("gemma2", "gemma3") else 9}
    parts["norms"] += 8 if architecture in ("gemma3", "qwen3") else 0
    with lora.attention_by_hand(model):
        expected = found(model)
        with lora.few_kernels(model, lambda function: function) as taken:
            ours = found(model)
        assert taken == parts | {"attentions": 4, "gates": 4}
        assert torch.equal(ours[0], expected[0])
        for one, other in zip(ours[1:], expected[1:], strict=True):
            assert relative_error(one, other) < 1e-5
        assert all(map(torch.equal, found(model), expected))  # as they were again


def test_several_rows_are_turned_and_attend_each_by_itself():
    model = adapted("gemma2")
    tries = [build_trie((1, *range(3, 40)), [(7, k, 2), (k, 9, 2)]) for k in range(10, 30)]
    assert len(collate(tries).tokens) > 1
    with torch.no_grad(), lora.attention_by_hand(model):
        expected = answer_logps(model, collate(tries))
        with lora.few_kernels(model, lambda function: function):
            assert torch.equal(answer_logps(model, collate(tries)), expected)


def test_a_part_that_computes_something_more_is_left_as_it_is(monkeypatch):
    model = adapted("qwen3")
    layer = model.model.layers[0]
    mlp, attention = layer.mlp.forward, layer.self_attn.forward
    monkeypatch.setattr(layer.mlp, "forward", lambda x: 1.01 * mlp(x))
    monkeypatch.setattr(
        layer.self_attn, "forward", lambda *x, **y: (1.01 * attention(*x, **y)[0], 0)
    )
    with lora.attention_by_hand(model):
        with lora.few_kernels(model, lambda function: function) as taken:
            assert taken == {"norms": 17, "attentions": 3, "gates": 3}
    with lora.few_kernels(model, lambda function: function) as taken:  # sdpa's, or own attention
        assert taken["attentions"] == 0


def test_casts_of_all_adapters_are_those_of_each():
    """With a scale that is a power of 2, folding it into B changes no bit."""
    model = adapted("gemma2", dropout=0.2).to(torch.bfloat16)
    for layer in lora.lora_layers(model).values():
        layer.A.data, layer.B.data = layer.A.float(), layer.B.float()
        layer.scale = 2.0
    torch.manual_seed(0)
    expected = found(model)
    with lora.adapters_cast(model):
        ours = found(model)
    assert torch.equal(ours[0], expected[0])
    for one, other in zip(ours[1:], expected[1:], strict=True):
        assert one.dtype == torch.float32 and relative_error(one, other) < 0.02


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_gradients_of_casts_are_added_to_those_that_were_there(scale):
    model = adapted("llama", dropout=0.3)
    for layer in lora.lora_layers(model).values():
        layer.scale = scale
    expected = found(model)[1:]
    with lora.adapters_cast(model):
        found(model)
    with lora.adapters_cast(model):
        torch.manual_seed(0)
        answer_logps(model, collate(TRIES)).sum().backward()
    for parameter, once in zip(adapter_parameters(model), expected, strict=True):
        assert relative_error(parameter.grad, 2 * once) < 1e-5


def test_the_reference_pass_reads_no_adapter_within_casts():
    model = adapted("llama")
    batch = collate(TRIES)
    with torch.no_grad(), lora.adapters_disabled(model):
        expected = answer_logps(model, batch)
        with lora.adapters_cast(model):
            assert torch.equal(answer_logps(model, batch), expected)


def test_a_step_of_gemma_2_9b_starts_fewer_than_3000_kernels():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from launches import batch_of, count, meta_model

    batch = batch_of()
    models = [meta_model(num_hidden_layers=layers) for layers in (2, 3)]
    for few, least, most in ((False, 6_800, 7_300), (True, 2_500, 3_000)):
        two, three = (count(model, batch, few).total for model in models)
        assert least < two + 40 * (three - two) <= most  # all 42 layers are alike


@pytest.fixture
def kernels(monkeypatch):
    """How many kernels the compiler made, a number for every graph."""
    from torch._inductor.scheduler import Scheduler

    counts, codegen = [], Scheduler.codegen

    def counted(scheduler):
        counts.append(len(scheduler.nodes))  # fused by now: each is a kernel
        return codegen(scheduler)

    monkeypatch.setattr(Scheduler, "codegen", counted)
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield counts


X, G = torch.randn(1, 48, 64), torch.rand(64)
COS, SIN = torch.randn(2, 1, 48, 16).unbind()
MASK = torch.zeros(1, 1, 48, 1, 48)
CASES = {
    "norm": (norm, (1e-6, False), (X, G), "norm"),
    "norm of Llama": (norm, (1e-6, True), (X, G), "norm"),
    "turned": (turned, (2,), (torch.randn(1, 48, 4, 16), COS, SIN), "turned"),
    "weights": (weights, (0.3, 5.0), (torch.randn(1, 2, 48, 2, 48), MASK), "weights"),
    "weights without a cap": (
        weights,
        (0.3, None),
        (torch.randn(1, 2, 48, 2, 48), MASK),
        "weights",
    ),
    "gated": (gated, (torch.nn.GELU(approximate="tanh"),), (X, X + 1), "gated"),
}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("name", CASES)
def test_a_compiled_function_is_one_kernel_each_way_for_all_lengths(name, kernels):
    function, constants, given, made = CASES[name]
    plain = partial_behind(function, constants)
    compiled = getattr(Functions(one_kernel), made)(*constants)
    for length in (48, 32, 80):
        one, other = (
            gradients(f, [shortened(x, length) for x in given]) for f in (compiled, plain)
        )
        for a, b in zip(one, other, strict=True):
            assert relative_error(a, b) < 1e-5
    # Nothing was compiled anew for other lengths. A CPU's compiler cuts a softmax in two.
    assert kernels == [2 if function is weights else 1, 1]


def partial_behind(function, constants):
    return lambda *given: function(*given, *constants)


def shortened(x, length):
    """The same for rows of another length."""
    for dim, size in enumerate(x.shape):
        if size == 48:
            x = torch.cat([x, x], dim).narrow(dim, 0, length)
    return x.contiguous()


def gradients(function, given):
    given = [x.clone().requires_grad_(k == 0 or x.shape == given[0].shape) for k, x in
             enumerate(given)]  # fmt: skip
    out = function(*given)
    torch.manual_seed(1)
    out.backward(torch.randn_like(out))
    return [out.detach(), *(x.grad for x in given if x.requires_grad)]
