"""The rates of public examples: the largest for a model's size, and the one line above it."""

import re

import pytest
from conftest import ROOT

from run.config import Config
from run.inputs import remarks
from run.rates import SMALL, USUAL, largest_rate, remark

GEMMA_2_9B = 9_241_705_984
SIXTEEN_B = 16_000_000_000


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [
        (268_098_176, None),  # the built-in model
        (399_999_999, None),
        (400_000_000, 2e-4),
        (GEMMA_2_9B, 2e-4),
        (12_000_000_000, 2e-4),
        (12_000_000_001, 5e-6),
        (SIXTEEN_B, 5e-6),
        (70_000_000_000, 5e-6),  # larger than any example: the largest one's
    ],
)
def test_the_largest_rate_is_that_of_the_models_size(parameters, rate):
    assert largest_rate(parameters) == rate


def test_a_rate_above_it_gets_one_line_with_how_many_times_it_is():
    """5e-4 / 2e-4 = 2.5, 2e-4 / 5e-6 = 40."""
    assert remark(5e-4, GEMMA_2_9B) == (
        "--lr 0.0005 is 2.5 times what the examples for models of some 9.2 billion parameters take "
        "(up to 0.0002, most 5e-06; docs/guide.md); watch the drift"
    )
    assert remark(2e-4, SIXTEEN_B) == (
        "--lr 0.0002 is 40 times what the examples for models of some 16 billion parameters take "
        "(up to 5e-06; docs/guide.md); watch the drift"
    )


def test_at_it_below_it_and_for_small_models_nothing_is_said():
    assert remark(2e-4, GEMMA_2_9B) == remark(5e-7, GEMMA_2_9B) == ""
    assert remark(1.0, 268_098_176) == ""


def test_the_first_lines_have_the_reference_and_then_the_rate_if_it_is_high():
    low, high = (Config(lr=rate, anchor_weight=0) for rate in (2e-4, 1e-3))
    assert remarks(low, GEMMA_2_9B) == [("reference", "the frozen base")]
    (_, (heading, text)) = remarks(high, GEMMA_2_9B)
    assert heading == "note" and text.startswith("--lr 0.001 is 5 times what")


def test_the_numbers_are_those_of_the_guides_table():
    """Its rows by size and rate; torchtune's are in it, and are not counted."""
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    table = guide.split("### Rates for larger models")[1].split("## ")[0]
    found = re.findall(r"^\| [^|]*?([\d.]+)B \| (\de-\d) \| `([^`]+)`", table, re.M)
    rows = [(float(size) * 1e9, float(rate), repo) for size, rate, repo in found]
    assert len(rows) == 12 and min(size for size, _, _ in rows) > SMALL
    counted = [(size, rate) for size, rate, repo in rows if repo != "pytorch/torchtune"]
    for size, _ in counted:
        band = largest_rate(int(size))
        assert band == max(rate for s, rate in counted if largest_rate(int(s)) == band)
    usual = {repo for _, rate, repo in rows if rate == USUAL}
    assert len(usual) == 4 and len({repo for *_, repo in rows} - usual - {"pytorch/torchtune"}) == 2
