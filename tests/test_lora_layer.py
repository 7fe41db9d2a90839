"""LoRALinear against numbers worked out by hand: y = x W + (alpha / r) x A B."""

import pytest
import torch
from conftest import randomise, small_model

from lora import LoRALinear, ModelError, add_lora
from lora.adapter import adapter_parameters
from lora.dropout import drop


def layer_2x2(alpha=2.0):
    """W = [[1, 0], [0, 1]], A = [1 2]^T, B = [3 4], alpha / r = 2 / 1."""
    base = torch.nn.Linear(2, 2, bias=False)
    base.weight.data.copy_(torch.eye(2))
    layer = LoRALinear(base, rank=1, alpha=alpha)
    layer.A.data.copy_(torch.tensor([[1.0], [2.0]]))
    layer.B.data.copy_(torch.tensor([[3.0, 4.0]]))
    return layer


def test_the_delta_by_hand():
    """dW = 2 [1 2]^T [3 4] = [[6, 8], [12, 16]] as (in, out); stored as (out, in)."""
    assert layer_2x2().delta().tolist() == [[6, 12], [8, 16]]


def test_alpha_is_divided_by_the_rank_once():
    """r = 2, alpha = 4: dW = 2 [[1, 1], [2, 0]] [[3, 4], [1, 0]] = 2 [[4, 4], [6, 8]]."""
    layer = LoRALinear(torch.nn.Linear(2, 2, bias=False), rank=2, alpha=4.0)
    layer.A.data.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    layer.B.data.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    assert layer.delta().tolist() == [[8, 12], [8, 16]]
    x = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(layer(x) - layer.base(x), torch.tensor([[8.0, 8.0]]))


def test_the_output_by_hand():
    """x = [1 1]: x W = [1 1]; x A = 3; 2 * 3 * [3 4] = [18 24]; y = [19 25]."""
    assert layer_2x2()(torch.ones(1, 2)).tolist() == [[19, 25]]
    assert layer_2x2(alpha=1.0)(torch.ones(1, 2)).tolist() == [[10, 13]]


def test_the_gradients_by_hand():
    """With g = dL/dy = [1 0] and x = [1 1], s = 2:

    dA = s x^T g B^T = 2 [1 1]^T * 3 = [6 6]^T        dB = s (x A)^T g = 2 * 3 * [1 0] = [6 0]
    dx = g W^T + s g B^T A^T = [1 0] + 2 * 3 * [1 2] = [7 12]
    """
    layer, x = layer_2x2(), torch.ones(1, 2, requires_grad=True)
    layer(x)[0, 0].backward()
    assert layer.A.grad.tolist() == [[6], [6]]
    assert layer.B.grad.tolist() == [[6, 0]]
    assert x.grad.tolist() == [[7, 12]]
    assert layer.base.weight.grad is None


def test_the_gradients_in_float64():
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(5, 4).double(), rank=2, alpha=3.0).double()
    layer.B.data.normal_()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.A, layer.B))


def test_a_new_adapter_changes_no_bit_of_the_logits():
    model = small_model("gemma2")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        before = model(tokens).logits
        add_lora(model, rank=4, alpha=8)
        assert torch.equal(model(tokens).logits, before)


def test_a_is_uniform_within_one_over_sqrt_in_and_b_is_zero():
    layer = LoRALinear(torch.nn.Linear(64, 32), rank=8, alpha=16)
    assert layer.A.shape == (64, 8) and layer.B.shape == (8, 32)
    assert 0.9 / 8 < layer.A.abs().max() <= 1 / 8
    assert not layer.B.any()


def test_dropout_acts_on_the_lora_path_alone_and_is_right_on_average():
    torch.manual_seed(0)
    layer = LoRALinear(torch.nn.Linear(16, 8), rank=4, alpha=8, dropout=0.5)
    layer.B.data.normal_()
    x = torch.randn(1, 16)
    whole = layer.eval()(x)
    path = whole - layer.base(x)
    layer.train()
    samples = torch.stack([layer(x) for _ in range(20_000)])
    assert (samples.mean(0) - whole).norm() < 0.02 * path.norm()  # E[out] is the eval output
    layer.B.data.zero_()
    assert torch.equal(layer(x), layer.base(x))  # nothing of the base path is dropped
    assert torch.equal(layer.eval()(x), layer.base(x))


def test_dropout_drops_its_share_everywhere_alike():
    torch.manual_seed(0)
    x, kept = drop(torch.ones(1000, 1001), 0.05)
    assert kept == 1 - round(0.05 * 65536) / 65536
    assert set(x.unique().tolist()) == {0, 1}
    # 1,001,000 draws: the share's standard deviation is .0002, a quarter's .0004
    assert abs(x.mean() - kept) < 1e-3
    flat = x.flatten()
    for i in range(4):  # the four decisions of a random number
        assert abs(flat[i::4].mean() - kept) < 2e-3
    together = (flat[0:-4:4] * flat[1:-4:4]).mean()  # independent of each other
    assert abs(together - kept**2) < 2e-3


def test_nearly_everything_may_be_dropped_and_x_may_have_any_shape():
    layer = LoRALinear(torch.nn.Linear(4, 3), rank=2, alpha=4, dropout=0.999999).train()
    for shape in [(4,), (2, 4), (2, 3, 4)]:
        y = layer(torch.ones(shape))
        assert y.shape == (*shape[:-1], 3) and y.isfinite().all()


def test_the_masters_are_float32_and_move_by_tiny_steps_under_a_bfloat16_base():
    layer = LoRALinear(torch.nn.Linear(8, 8).bfloat16(), rank=2, alpha=4)
    assert layer.A.dtype == layer.B.dtype == torch.float32
    layer.B.data.fill_(1.0)  # in bfloat16, 1 - 1e-6 is 1
    optimizer = torch.optim.SGD([layer.B], lr=1e-6)
    y = layer(torch.ones(1, 8, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    optimizer.step()
    assert layer.B.grad.dtype == torch.float32 and not (layer.B == 1).any()


@pytest.mark.parametrize(
    "rank, dropout, complaint",
    [(0, 0.0, "rank 0.*choose 1 to 4"), (5, 0.0, "rank 5"), (2, 1.0, "dropout 1.0"),
     (2, -0.1, "dropout -0.1")],
)  # fmt: skip
def test_values_out_of_range_are_refused(rank, dropout, complaint):
    with pytest.raises(ModelError, match=complaint):
        LoRALinear(torch.nn.Linear(4, 8), rank, 1.0, dropout)


def test_the_base_stays_and_every_a_and_b_moves_within_two_steps():
    """B is zero at first, so that A has no gradient until the second step."""
    model = small_model("gemma3")
    frozen = {n: p.clone() for n, p in model.named_parameters()}
    add_lora(model, rank=2, alpha=4)
    parameters = adapter_parameters(model)
    start = [p.clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        model(torch.arange(1, 9)[None]).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all((p != s).any() for p, s in zip(parameters, start, strict=True))
    for name, weight in model.named_parameters():
        if not name.endswith((".A", ".B")):
            assert torch.equal(weight, frozen[name.replace(".base.", ".")])
            assert not weight.requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_give_the_same_gradients(reentrant):
    def gradients(checkpointing):
        model = small_model("llama")
        add_lora(model, rank=2, alpha=4)
        randomise(model)
        if checkpointing:
            old = "gradient_checkpointing_enable"  # its name before transformers 5.2x
            getattr(model, "activation_checkpointing_enable", getattr(model, old))(
                {"use_reentrant": reentrant}
            )
            model.enable_input_require_grads()  # a frozen input would drop all reentrant gradients
        model.train()
        model(torch.arange(1, 9)[None], use_cache=False).logits.square().mean().backward()
        return [p.grad for p in adapter_parameters(model)]

    for with_, without in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(with_, without)
