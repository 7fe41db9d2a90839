"""Answers of base and tuned model: batches are single answers, adapters off is the base."""

from contextlib import nullcontext

import pytest
import torch
from conftest import randomise, small_model

from dpo import Drawing, side_by_side
from dpo.evaluation import generate
from dpo.evaluation.generate import alarms, answers, left_padded, readable, repeats
from lora import adapters_disabled, add_lora

STOP = 2
PROMPTS = [(1, 5, 6, 7), (1, 9), (1, 8, 8, 8, 8, 3), (1, 30, 31)]


@pytest.fixture
def model():
    model = small_model("llama", scale=0.5)
    add_lora(model, rank=2, alpha=4)
    randomise(model, scale=1.0)
    return model


@torch.no_grad()
def one_by_one(model, prompt, most):
    """The likeliest token after all before, again and again, without padding and cache."""
    said = []
    while len(said) < most:
        said.append(int(model(torch.tensor([[*prompt, *said]])).logits[0, -1].argmax()))
        if said[-1] == STOP:
            return tuple(said[:-1]), True
    return tuple(said), False


def test_batched_answers_are_those_of_each_prompt_alone(model, monkeypatch):
    monkeypatch.setattr(generate, "PROMPTS_AT_ONCE", 3)
    expected = [one_by_one(model, prompt, 12) for prompt in PROMPTS]
    assert answers(model, PROMPTS, STOP, Drawing(12)) == expected
    assert len({said for said, _ in expected}) > 1  # they are not all alike
    first = expected[0][0][3]  # an answer that stops: let its fourth token be the stop
    stopped = answers(model, PROMPTS[:1], first, Drawing(12))
    assert stopped == [(expected[0][0][: expected[0][0].index(first)], True)]


def test_without_adapters_it_is_the_base_that_answers(model):
    tuned = answers(model, PROMPTS, STOP, Drawing(12))
    with adapters_disabled(model):
        base = answers(model, PROMPTS, STOP, Drawing(12))
    assert base == answers(small_model("llama", scale=0.5), PROMPTS, STOP, Drawing(12))
    assert tuned != base


def test_drawn_answers_repeat_with_their_seed(model):
    def drawn(seed):
        return answers(model, PROMPTS, STOP, Drawing(12, 1.0, seed))

    assert drawn(0) == drawn(0) != drawn(1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_models_own_settings_of_generation_change_no_answer(model, temperature):
    """Samples of the policy are the policy's: no penalty of repetition, no cut-off tail."""
    plain = answers(model, PROMPTS, STOP, Drawing(12, temperature))
    own = model.generation_config
    own.repetition_penalty, own.min_p, own.no_repeat_ngram_size = 3.0, 0.3, 2
    assert answers(model, PROMPTS, STOP, Drawing(12, temperature)) == plain
    assert model.generation_config is own


def test_base_and_tuned_are_drawn_with_the_same_seed(model, tokenizer):
    """Without an effect of the adapters both say the same, whatever was drawn before."""

    def pairs(seed):
        how = Drawing(12, 1.0, seed)
        return side_by_side(model, lambda _: nullcontext(), tokenizer, PROMPTS, STOP, how)

    torch.manual_seed(9)
    first = pairs(0)
    assert all(base == tuned for base, tuned in first)
    assert pairs(0) == first != pairs(1)


def test_prompts_are_padded_on_the_left():
    ids, mask = left_padded([(1, 5), (1, 6, 7)], pad=0)
    assert ids.tolist() == [[0, 1, 5], [1, 6, 7]]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1]]


def test_four_tokens_three_times_are_a_repetition():
    """Twelve tokens of 1 2 3 4 hold it three times, eleven only twice; 6 equal ones thrice."""
    assert repeats([1, 2, 3, 4] * 3) and not repeats([1, 2, 3, 4] * 2 + [1, 2, 3])
    assert repeats([9] * 6) and not repeats([9] * 5)
    assert repeats([1, 2, 3, 4, 7, 1, 2, 3, 4, 8, 1, 2, 3, 4])  # not side by side either
    assert not repeats([]) and not repeats(range(100))


def test_alarms_name_what_is_wrong():
    assert alarms([5], "fine", stopped=True) == []
    assert alarms([], " \n", stopped=True) == ["empty"]
    assert alarms([9] * 6, "ha ha", stopped=False) == ["repeats itself", "did not end"]


def test_what_a_terminal_would_obey_is_not_printed():
    assert readable("a\x1b[31mb\nc\td é 漢") == "a?[31mb\nc\td é 漢"


def test_the_head_reads_contiguous_states_also_where_the_cache_is_tried(model):
    """Others are multiplied in a copy of the whole head."""
    strides = []
    head = model.get_output_embeddings()
    with head.register_forward_hook(lambda _, inputs, __: strides.append(inputs[0].stride())):
        answers(model, PROMPTS, STOP, Drawing(3))
    assert len(strides) > 2 and all(s[-1] == 1 and s[0] == s[1] for s in strides)


def test_a_model_that_cannot_go_on_from_its_cache_reads_the_text_again(model, monkeypatch):
    expected = answers(model, PROMPTS, STOP, Drawing(8))
    own = type(model).forward

    def forward(self, *given, past_key_values=None, **named):
        if past_key_values is not None:
            raise ValueError("only of attention layers")
        return own(self, *given, **named)

    assert generate.keeps_cache(model)
    monkeypatch.setattr(type(model), "forward", forward)
    assert not generate.keeps_cache(model)
    assert answers(model, PROMPTS, STOP, Drawing(8)) == expected
