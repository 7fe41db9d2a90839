"""What rounding does to the deltas of a merge, and how far it may move the scores."""

import pytest
import torch
from conftest import small_model
from safetensors.torch import save_file

from lora import add_lora, allowed_difference, merge_rounding, stored_dtype

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    "ratio, moved, error",
    [(2.7e-4, 0.06, 0.94), (2.7e-3, 0.49, 0.51), (2.7e-2, 0.94, 0.06)],
)
def test_bfloat16_loses_small_deltas_and_the_report_says_so(ratio, moved, error):
    """At |dW| / |W| = 2.7e-4 about 94% of the weights do not move, and so on."""
    torch.manual_seed(0)
    base = torch.nn.Linear(512, 512, bias=False).bfloat16()
    base.weight.data.normal_()
    holder = torch.nn.Sequential(base)
    add_lora(holder, rank=64, alpha=64, target_modules=["0"])
    layer = holder[0]
    layer.A.data.normal_()
    layer.B.data.normal_()
    layer.B.data *= ratio * base.weight.float().norm() / layer.delta().norm()
    report = merge_rounding(holder)
    assert abs(report.changed - moved) < 0.05
    # realised - delta is a delta's size where a weight does not move
    assert (report.error > 0.5) == (error > 0.5)
    exact = merge_rounding(holder, torch.float32)
    assert exact.changed > 0.999 and exact.error < 1e-3


@pytest.mark.parametrize(
    "stored, computed, moved, allowed",
    [
        # a quarter of what the adapter moves, where that is more than rounding
        (BF16, BF16, 1.2, 0.3),
        (BF16, F32, 0.2, 0.05),
        # and at most five times what rounding moves
        (BF16, BF16, 8.0, 0.5),
        (BF16, F32, 8.0, 0.1),
        (F32, F32, 8.0, 1e-3),
        # else what the coarser of the two dtypes was seen to move: .1, .02, .001
        (BF16, BF16, 0.2, 0.1),
        (F32, BF16, 0.0, 0.1),
        (F16, F16, 0.0, 0.02),
        (F16, BF16, 0.0, 0.1),
        # and in float32 a fifth of that
        (BF16, F32, 0.0, 0.02),
        (F16, F32, 0.0, 0.004),
        (F32, F32, 0.0, 2e-4),
        (F32, F32, 4e-4, 2e-4),
    ],
)
def test_the_allowed_difference_by_hand(stored, computed, moved, allowed):
    assert allowed_difference(stored, computed, moved) == pytest.approx(allowed)


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_a_delta_that_is_left_out_or_of_the_wrong_sign_is_always_too_far(dtype):
    """It moves the scores by all that the adapter moves them by, or by twice as much."""
    for moved in (0.5, 1.0, 100.0):
        assert allowed_difference(dtype, dtype, moved) < moved


def test_the_stored_dtype_is_that_of_the_largest_tensor(tmp_path):
    few, many = torch.zeros(3, dtype=F32), torch.zeros(4, 2, dtype=BF16)
    save_file({"a": few, "b": many}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(99, dtype=F16)}, tmp_path / "model-2.safetensors")
    assert stored_dtype(tmp_path) == BF16
    small_model().save_pretrained(tmp_path / "whole")
    assert stored_dtype(tmp_path / "whole") == F32
