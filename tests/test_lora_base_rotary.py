"""Rotary frequencies that depend on a text's length: each row has those that it has alone."""

import pytest
import torch
import transformers
from conftest import SMALL, WINDOW, small_model
from families import ROTARY, drawn, length_dependent

from data import collate, question_tries
from dpo import answer_logps
from dpo.evaluation.generate import Drawing, answers
from lora import rotary_by_rows

PROMPT = (1, 5, 6)
# With the prompt 5, 12, 13, 27 and 42 tokens are fed: the window of 12 ends after the second.
ANSWERS = [tuple(range(10, 10 + n)) for n in (3, 10, 11, 25, 40)]


def own_logps(kind, answer):
    """log pi(answer | PROMPT) by the own forward of a model that has seen no other text."""
    ids = torch.tensor([[*PROMPT, *answer]])
    logps = length_dependent(kind)(ids[:, :-1]).logits[0, len(PROMPT) - 1 :].log_softmax(-1)
    return logps.gather(1, ids[0, len(PROMPT) :, None]).sum()


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("order", [1, -1])
@torch.no_grad()
def test_answers_on_both_sides_of_the_window_have_the_scores_that_they_have_alone(kind, order):
    answers = ANSWERS[::order]
    expected = torch.stack([own_logps(kind, answer) for answer in answers])
    rows = collate(question_tries(PROMPT, answers, "rows"), "rows")
    unmended, model = length_dependent(kind), length_dependent(kind)
    assert (answer_logps(unmended, rows) - expected).abs().max() > 0.01  # which would be silent
    assert rotary_by_rows(model) == 1
    for _ in range(2):  # whatever it has seen before
        torch.testing.assert_close(answer_logps(model, rows), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ROTARY)
def test_prompts_on_both_sides_of_the_window_are_answered_as_each_alone(kind):
    prompts = [(1, 5, 6), tuple(range(3, 30))]
    model = length_dependent(kind)
    rotary_by_rows(model)
    together = answers(model, prompts, 2, Drawing(max_tokens=4))
    assert together == [answers(model, [prompt], 2, Drawing(max_tokens=4))[0] for prompt in prompts]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 100.0},
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_frequencies_that_are_the_same_for_all_lengths_are_left_as_they_are(rope):
    config = transformers.LlamaConfig(**SMALL, rope_parameters=rope)
    assert rotary_by_rows(drawn(config, 0.3)) == 0


def test_models_with_a_window_of_attention_are_left_as_they_are():
    assert WINDOW < 12
    assert rotary_by_rows(small_model("gemma3")) == 0
