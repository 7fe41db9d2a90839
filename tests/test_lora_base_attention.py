"""Attention by hand: eager attention's values and gradients, without its copies."""

import math
import sys

import pytest
import torch
from conftest import ARCHITECTURES, randomise, relative_error, small_model
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from data import build_trie, collate
from dpo import answer_logps
from lora import adapter_parameters, add_lora, attention_by_hand, layers_as_asked, train_adapters
from lora.base.attention import NAME, by_hand, by_heads, by_keys, gradients, is_as_above, weights

TRIES = collate(
    [build_trie((1, 5, 6, 7), [(10, 11, 12, 2), (10, 13, 2)]), build_trie((1, 8), [(9, 2), (4, 2)])]
)
ROWS = collate([build_trie((1, 5, 6), [(10, 11, 2)]), build_trie((1, 5), [(9, 2)])], "rows")


def test_the_gradient_worked_out_by_hand():
    """One query, two keys of width 1: P = (3/4, 1/4), since the scores differ by log 3.

    With q = log 3, k = (1, 0), v = (2, 6), s = 1: O = 3/2 + 6/4 = 3. For dO = 1 dP = v = (2, 6),
    rowsum(dP P) = 3, dS = (3/4 (2 - 3), 1/4 (6 - 3)) = (-3/4, 3/4).
    """
    q, k, v = torch.tensor([[[math.log(3)]]]), torch.tensor([[[1.0], [0.0]]]), torch.ones(1, 2, 1)
    v = torch.tensor([[[2.0], [6.0]]])
    p, t = weights(q, k, None, 1.0)
    torch.testing.assert_close(p, torch.tensor([[[0.75, 0.25]]]))
    torch.testing.assert_close(p @ v, torch.tensor([[[3.0]]]))
    assert t is None
    dq, dk, dv = gradients(torch.ones(1, 1, 1), q, k, v, p, t, 1.0)
    torch.testing.assert_close(dq, torch.tensor([[[-0.75]]]))  # dS K
    torch.testing.assert_close(dk, math.log(3) * torch.tensor([[[-0.75], [0.75]]]))  # dS^T Q
    torch.testing.assert_close(dv, torch.tensor([[[0.75], [0.25]]]))  # P^T dO
    # Capped, the same slopes are multiplied by 1 - tanh^2: .64 where tanh(Z / c) is .6.
    dq, dk, _ = gradients(torch.ones(1, 1, 1), q, k, v, p, torch.full((1, 1, 2), 0.6), 0.5)
    torch.testing.assert_close(dq, torch.tensor([[[-0.75]]]) * 0.64 * 0.5)
    torch.testing.assert_close(dk, math.log(3) * torch.tensor([[[-0.75], [0.75]]]) * 0.64 * 0.5)


def test_a_head_reads_the_key_head_of_its_group_and_finds_its_place_again():
    x = torch.arange(2 * 6 * 3 * 2).view(2, 6, 3, 2)  # 6 heads, 2 key heads: 3 a group
    rows = by_keys(x, 2)
    assert rows.shape == (4, 9, 2)
    for row, head, token in ((0, 4, 2), (1, 0, 1), (1, 5, 0)):
        key, group = divmod(head, 3)
        assert torch.equal(rows[2 * row + key, 3 * token + group], x[row, head, token])
    assert torch.equal(by_heads(rows, 2, 3), x)


@pytest.mark.parametrize("batch", [TRIES, ROWS], ids=["tries", "rows"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_gradients_are_those_of_eager_attention(architecture, batch):
    model = small_model(architecture)
    add_lora(model, rank=4, alpha=8, dropout=0.3)
    randomise(model)
    train_adapters(model)

    def step():
        torch.manual_seed(3)
        logps = answer_logps(model, batch)
        logps.square().sum().backward()
        found = torch.cat([p.grad.flatten() for p in adapter_parameters(model)])
        model.zero_grad()
        return logps.detach(), found

    plain, expected = step()
    with attention_by_hand(model) as on:
        assert on and model.config._attn_implementation == NAME
        logps, found = step()
    assert relative_error(logps, plain) < 1e-6
    assert not torch.equal(found, expected)  # it was another way
    assert relative_error(found, expected) < 1e-5
    assert torch.equal(step()[1], expected)  # as they were again
    with layers_as_asked(model, "off", "on", 1):  # computed again backward
        assert relative_error(step()[1], expected) < 1e-5


@pytest.mark.parametrize("cap", [None, 5.0])
def test_in_bfloat16_it_is_as_near_the_truth_as_eager_attention(cap):
    torch.manual_seed(0)
    module = nn.Module()
    module.num_key_value_groups = 4
    q, k, v = (torch.randn(2, heads, 60, 32) for heads in (8, 2, 2))
    mask = torch.full((2, 1, 60, 60), torch.finfo(torch.bfloat16).min).triu(1)
    given = [x.bfloat16() for x in (q, k, v)]
    dout = torch.randn(2, 60, 8, 32).bfloat16()

    def run(attention, dtype):
        q, k, v = (x.to(dtype).requires_grad_() for x in given)
        out = attention(module, q, k, v, mask.to(dtype), scaling=0.3, softcap=cap)[0]
        return [x.double() for x in (out, *torch.autograd.grad(out, (q, k, v), dout.to(dtype)))]

    truth = run(eager_attention_forward, torch.float32)
    theirs = run(eager_attention_forward, torch.bfloat16)
    for mine, other, exact in zip(run(by_hand, torch.bfloat16), theirs, truth, strict=True):
        assert relative_error(mine, exact) < 1.3 * relative_error(other, exact) < 0.02
    for mine, exact in zip(run(by_hand, torch.float32), truth, strict=True):
        assert relative_error(mine, exact) < 1e-5


def test_it_keeps_neither_copies_of_the_keys_nor_scores_in_float32():
    module = nn.Module()
    module.num_key_value_groups = 4
    q, k, v = (torch.ones(1, h, 64, 32).bfloat16().requires_grad_() for h in (4, 1, 1))
    mask = torch.zeros(1, 1, 64, 64).bfloat16()

    def kept(attention, q=q, k=k, v=v):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = attention(module, q, k, v, mask, scaling=0.3)
        return sum(sizes.values()), out

    least = 2 * (q.numel() + k.numel() + v.numel() + 4 * 64 * 64)  # Q, K, V and P
    assert kept(by_hand)[0] == least < kept(eager_attention_forward)[0] / 2
    # More keys than twice a head's width: the mask, which all layers share, and not P.
    few = [x[..., :31].contiguous().detach().requires_grad_() for x in (q, k, v)]
    assert kept(by_hand, *few)[0] == 2 * (sum(x.numel() for x in few) + 64 * 64)


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_formed_again_give_the_gradient_bit_for_bit(cap, dtype):
    torch.manual_seed(0)
    module = nn.Module()
    module.num_key_value_groups = 4
    given = [torch.randn(2, heads, 60, 8).to(dtype).requires_grad_() for heads in (8, 2, 2)]
    mask = torch.full((2, 1, 60, 60), torch.finfo(dtype).min, dtype=dtype).triu(1)
    dout = torch.randn(2, 60, 8, 8).to(dtype)

    out = by_hand(module, *given, mask, scaling=0.3, softcap=cap)[0]
    found = torch.autograd.grad(out, given, dout)
    q, k, v = (x.detach() for x in (by_keys(given[0], 2), *(x.flatten(0, 1) for x in given[1:])))
    p, t = weights(q, k, mask, 0.3, cap)
    rows = by_keys(dout.transpose(1, 2), 2)
    dq, dk, dv = gradients(rows, q, k, v, p, t, 0.3)
    assert torch.equal(by_keys(found[0], 2), dq)
    assert torch.equal(found[1].flatten(0, 1), dk) and torch.equal(found[2].flatten(0, 1), dv)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_some_queries_at_a_time_see_the_keys_up_to_their_own(cap, monkeypatch):
    """60 queries by 25: 25 x 25 + 25 x 50 + 10 x 60 scores of 60 x 60, for each head."""
    torch.manual_seed(0)
    given = [torch.randn(2, heads, 60, 8).requires_grad_() for heads in (8, 2, 2)]
    mask = torch.full((2, 1, 60, 60), torch.finfo(torch.float32).min).triu(1)
    dout, formed = torch.randn(2, 60, 8, 8), []

    def counted(*some):
        formed.append(weights(*some)[0].numel())
        return weights(*some)

    def run():
        formed.clear()
        out = by_hand(nn.Module(), *given, mask, scaling=0.3, softcap=cap)[0]
        return [out, *torch.autograd.grad(out, given, dout)]

    monkeypatch.setattr("lora.base.attention.weights", counted)
    whole = run()
    monkeypatch.setattr("lora.base.attention.QUERIES", 25)
    some = run()
    assert sum(formed) == 2 * 16 * (25 * 25 + 25 * 50 + 10 * 60)  # forward and backward
    for one, other in zip(some, whole, strict=True):
        assert relative_error(one, other) < 1e-6
    mask[0, 0, 3, 59] = 0.0  # a token that sees a later one: its part takes all keys
    seeing = run()
    assert sum(formed) == 2 * 16 * (25 * 60 + 25 * 50 + 10 * 60)
    assert relative_error(seeing[0], whole[0]) > 1e-4
    monkeypatch.setattr("lora.base.attention.QUERIES", 60)
    for one, other in zip(seeing, run(), strict=True):
        assert relative_error(one, other) < 1e-6


@pytest.mark.parametrize("architecture", ["gpt_oss", "gpt_neox", "sdpa"])
def test_other_attention_is_left_as_it_is(architecture):
    """GPT-OSS's sinks take part in the softmax, GPT-NeoX has no key heads to share."""
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    if architecture == "gpt_oss":
        config = transformers.GptOssConfig(
            **small, num_key_value_heads=2, head_dim=8, intermediate_size=16, num_local_experts=2
        )
    elif architecture == "gpt_neox":
        config = transformers.GPTNeoXConfig(**small, intermediate_size=16)
    else:
        config = ARCHITECTURES["llama"]()
    how = "sdpa" if architecture == "sdpa" else "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=how)
    with attention_by_hand(model) as on:
        assert not on
        assert model.config._attn_implementation == how


def test_one_wrong_value_shows_in_the_trial(monkeypatch):
    module = small_model("gemma2").model.layers[0].self_attn
    assert is_as_above(module)
    monkeypatch.setattr(
        "lora.base.attention.weights",
        lambda *given: weights(*given[:4]),  # without the cap
    )
    assert not is_as_above(module)


@pytest.mark.parametrize("what", ["a bias", "a mask for each head"])
def test_attention_whose_calls_bring_more_stays_eager(what, monkeypatch):
    """As Inkling's positions and Doge's masks, which no trial of the function alone shows."""
    model = small_model("llama")
    modules = sys.modules[type(model).__module__]
    plain = modules.eager_attention_forward

    def eager(module, q, k, v, mask, bias=None, **how):
        return plain(module, q, k, v, mask if bias is None else mask + bias, **how)

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **more):
        hidden = hidden_states
        sloped = torch.linspace(-1, 1, 4)[None, :, None, None] * torch.arange(hidden.shape[1])
        given = {"bias": sloped} if what == "a bias" else {}
        mask = attention_mask if given else attention_mask + sloped
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        q, k, v = (
            p(hidden).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        chosen = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager)
        out, _ = chosen(self, q, k, v, mask, scaling=self.scaling, **given)
        return self.o_proj(out.reshape(*hidden.shape[:-1], -1)), None

    monkeypatch.setattr(modules, "eager_attention_forward", eager)
    monkeypatch.setattr(modules.LlamaAttention, "forward", forward)
    expected = answer_logps(model, TRIES)
    assert all(is_as_above(layer.self_attn) for layer in model.model.layers)
    with attention_by_hand(model) as on:
        assert not on
        torch.testing.assert_close(answer_logps(model, TRIES), expected)


def test_what_it_returns_can_be_viewed_as_eager_attention_can():
    """JetMoE goes on with a view, where each head has keys of its own."""
    q, k, v = torch.randn(3, 1, 4, 6, 8)
    for keys in (2, 4):
        out, _ = by_hand(nn.Module(), q, k[:, :keys], v[:, :keys], None)
        assert out.shape == (1, 6, 4, 8) and out.is_contiguous()
