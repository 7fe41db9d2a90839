"""RMS norms' gradient in closed form: the one that autograd finds, from fewer kept bytes."""

import shutil

import pytest
import torch
from conftest import ARCHITECTURES, randomise, relative_error, small_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from data import build_trie, collate
from dpo import answer_logps
from lora import adapter_parameters, add_lora, layers_as_asked, norms_by_hand, train_adapters
from lora.base import norms
from lora.base.norms import gain_of, gradient

BATCH = collate([build_trie((1, 5, 6, 7), [(10, 11, 12, 2), (10, 13, 2), (14, 2)])])


def norms_of(model):
    return [module for module in model.modules() if "RMSNorm" in type(module).__name__]


def test_the_gradient_worked_out_by_hand():
    # x = (3, 4), g = (1, 2): mean x^2 = 25/2, rho = sqrt(2)/5.
    # y_1 = x_1 rho: dy_1/dx_1 = rho (1 - 9/25) = .64 rho, dy_1/dx_2 = -12/25 rho = -.48 rho
    # y_2 = 2 x_2 rho: dy_2/dx_1 = -.96 rho, dy_2/dx_2 = 2 rho (1 - 16/25) = .72 rho
    rho = 2**0.5 / 5
    x, g = torch.tensor([[3.0, 4.0]] * 2), torch.tensor([1.0, 2.0])
    expected = torch.tensor([[0.64, -0.48], [-0.96, 0.72]]) * rho
    found = gradient(torch.eye(2), x * rho, torch.full((2, 1), rho), g)
    torch.testing.assert_close(found, expected)
    # eps = 25/2 doubles what is under the root, in which alone x moves it: for y_1 that is
    # rho (1 - 9/50), -rho 12/50 with rho = 1/5
    found = gradient(torch.eye(2)[:1], x[:1] / 5, torch.full((1, 1), 1 / 5), g)
    torch.testing.assert_close(found, torch.tensor([[0.82, -0.24]]) / 5)


@pytest.mark.parametrize("kind", [Gemma3RMSNorm, LlamaRMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_how_a_module_multiplies_is_found_by_trial(kind, dtype):
    norm = kind(3, eps=0.5).to(dtype)
    norm.weight.data = torch.tensor([0.5, -2.0, 0.0], dtype=dtype)
    gain = gain_of(norm)
    gemma = kind is Gemma3RMSNorm  # which stores g - 1
    assert gain.g.tolist() == ([1.5, -1.0, 1.0] if gemma else [0.5, -2.0, 0.0])
    assert (gain.eps, gain.rounded_first) == (0.5, not gemma)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_stay_and_every_gradient_is_the_same(architecture):
    model = small_model(architecture)
    for norm in norms_of(model):  # as stored they are all 0, or all 1
        nn.init.normal_(norm.weight, mean=norm.weight.mean().item(), std=0.3)
    add_lora(model, rank=4, alpha=8, dropout=0.3)
    randomise(model)
    train_adapters(model)

    def step():
        torch.manual_seed(3)
        logps = answer_logps(model, BATCH)
        logps.square().sum().backward()
        found = torch.cat([p.grad.flatten() for p in adapter_parameters(model)])
        model.zero_grad()
        return logps.detach(), found

    plain, expected = step()
    with norms_by_hand(model) as taken:
        assert taken == len(norms_of(model)) > 4
        logps, found = step()
    assert torch.equal(logps, plain)
    assert not torch.equal(found, expected)  # it was another way
    assert relative_error(found, expected) < 1e-6
    assert torch.equal(step()[1], expected)  # as they were again
    with layers_as_asked(model, "off", "on", 1):  # norms by hand that are computed again backward
        assert relative_error(step()[1], expected) < 1e-6


@pytest.mark.parametrize("kind", [Gemma3RMSNorm, LlamaRMSNorm])
def test_in_bfloat16_values_are_the_same_and_the_gradient_as_near_the_truth_as_autograd(kind):
    torch.manual_seed(0)
    norm = kind(640)
    nn.init.normal_(norm.weight, mean=norm.weight.mean().item(), std=0.3)
    exact = kind(640)
    exact.weight.data = norm.weight.data.bfloat16().float()
    norm = norm.bfloat16()
    x, dy = torch.randn(2, 50, 640).bfloat16()

    def autograd(norm, x, dy):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = norm(x)
        return y.detach(), torch.autograd.grad(y, x, dy)[0], sum(kept.values())

    _, truth, _ = autograd(exact, x.float(), dy.float())
    y, theirs, kept = autograd(norm, x, dy)
    with norms_by_hand(norm) as taken:
        assert taken == 1
        mine, found, fewer = autograd(norm, x, dy)
    assert torch.equal(mine, y)
    assert fewer <= 4 * (x.numel() + 50 + 640) < kept / 1.4  # n, rho and g; theirs keep x too
    assert found.dtype == torch.bfloat16
    assert relative_error(found.float(), truth) <= relative_error(theirs.float(), truth) * 1.01
    assert relative_error(found.float(), truth) < 2**-8


@pytest.mark.parametrize("kind", [Gemma3RMSNorm, LlamaRMSNorm])
def test_of_many_values_x_is_kept_and_n_formed_again_bit_for_bit(kind, monkeypatch):
    torch.manual_seed(0)
    norm = kind(64).bfloat16()
    nn.init.normal_(norm.weight, mean=norm.weight.mean().item(), std=0.3)
    x, dy = torch.randn(2, 50, 64).bfloat16()

    def gradient_and_bytes(few):
        monkeypatch.setattr(norms, "FEW", few)
        sizes, leaf = [], x.clone().requires_grad_()

        def pack(tensor):
            sizes.append(tensor.nbytes)
            return tensor

        with norms_by_hand(norm), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = norm(leaf)
        return torch.autograd.grad(y, leaf, dy)[0], max(sizes)

    (expected, n), (found, kept) = gradient_and_bytes(x.numel()), gradient_and_bytes(x.numel() - 1)
    assert (n, kept) == (4 * x.numel(), 2 * x.numel())
    assert torch.equal(found, expected)
    x = x.float()  # of which n is as large as x
    norm.float()
    dy = dy.float()
    assert gradient_and_bytes(0)[1] == 4 * x.numel()


class CentredRMSNorm(LlamaRMSNorm):
    """Named like one, and takes the mean off."""

    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class AnotherRMSNorm(LlamaRMSNorm):
    """Named like one, and nearly one."""

    def forward(self, x):
        return super().forward(x) * 1.001


class WithoutGain(nn.Module):
    """As Gemma 3n has some."""

    eps = 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@pytest.mark.parametrize("kind", [CentredRMSNorm, AnotherRMSNorm])
def test_a_norm_with_other_values_is_left_as_it_is(kind):
    model = nn.ModuleList([kind(8), LlamaRMSNorm(8), nn.LayerNorm(8)])
    with norms_by_hand(model) as taken:
        assert taken == 1
        assert ["forward" in vars(module) for module in model] == [False, True, False]


def test_a_norm_without_a_gain_is_left_as_it_is():
    assert gain_of(WithoutGain()) is None


class GatedRMSNorm(LlamaRMSNorm):
    """As Mamba 2 has: the gate is optional, and a trial without one succeeds."""

    def forward(self, x, gate=None):
        return super().forward(x if gate is None else x * gate.sigmoid())


class NeedsGateRMSNorm(LlamaRMSNorm):
    """As Qwen3-Next has: a trial without the gate fails."""

    def forward(self, x, gate):
        return super().forward(x) * gate.sigmoid()


class WeightlessRMSNorm(WithoutGain, nn.Module):
    """As Falcon-Mamba has: a weight of ones that it does not read, of another width than x."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class HasNoOpinionRMSNorm(LlamaRMSNorm):
    """A norm whose trial fails in a way that nobody foresaw."""

    def forward(self, x):
        raise ZeroDivisionError if x.dim() < 3 else KeyError("full_attention")


def test_what_a_model_gives_beside_x_is_left_to_the_norm_itself():
    model = nn.ModuleList([GatedRMSNorm(8), NeedsGateRMSNorm(8), HasNoOpinionRMSNorm(8)])
    x, gate = torch.randn(2, 8), torch.randn(2, 8)
    expected = [norm(x, gate) for norm in model[:2]] + [model[0](x, gate=gate), model[0](x)]
    with norms_by_hand(model) as taken:
        assert taken == 1  # the first, where it is called with x alone
        found = [norm(x, gate) for norm in model[:2]] + [model[0](x, gate=gate), model[0](x)]
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("width", [2, 16])
def test_an_x_of_another_width_than_the_trials_is_left_to_the_norm_itself(width):
    norm, x = WeightlessRMSNorm(8), torch.randn(3, width)
    expected = norm(x)
    with norms_by_hand(norm) as taken:
        assert taken == 1
        assert torch.equal(norm(x), expected)


def test_on_the_meta_device_a_norm_that_wants_a_gate_is_left_as_it_is():
    model = nn.ModuleList([NeedsGateRMSNorm(8), LlamaRMSNorm(8)]).to("meta")
    with norms_by_hand(model) as taken:
        assert taken == 1


def test_compiled_layers_keep_their_norms(monkeypatch):
    model = small_model("gemma3")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for compiled, checkpointing, changed in (("on", "off", False), ("off", "on", True)):
        with layers_as_asked(model, compiled, checkpointing, 1):
            assert all(("forward" in vars(norm)) == changed for norm in norms_of(model))
    assert not any("forward" in vars(norm) for norm in norms_of(model))
