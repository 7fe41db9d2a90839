"""Answers of base and tuned model: batches are single answers, adapters off is the base."""

import inputs
import pytest
import torch
from config import Config
from conftest import randomise, small_model
from dpo.generate import alarms, answers, left_padded, readable, repeats, side_by_side

from dpo import generate, sample
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
    monkeypatch.setattr(generate, "AT_ONCE", 3)
    expected = [one_by_one(model, prompt, 12) for prompt in PROMPTS]
    assert answers(model, PROMPTS, STOP, 12) == expected
    assert len({said for said, _ in expected}) > 1  # they are not all alike
    first = expected[0][0][3]  # an answer that stops: let its fourth token be the stop
    stopped = answers(model, PROMPTS[:1], first, 12)
    assert stopped == [(expected[0][0][: expected[0][0].index(first)], True)]


def test_without_adapters_it_is_the_base_that_answers(model):
    tuned = answers(model, PROMPTS, STOP, 12)
    with adapters_disabled(model):
        base = answers(model, PROMPTS, STOP, 12)
    assert base == answers(small_model("llama", scale=0.5), PROMPTS, STOP, 12)
    assert tuned != base


def test_drawn_answers_repeat_with_their_seed(model):
    def drawn(seed):
        torch.manual_seed(seed)
        return answers(model, PROMPTS, STOP, 12, temperature=1.0)

    assert drawn(0) == drawn(0) != drawn(1)


def test_base_and_tuned_are_drawn_with_the_same_seed(model, tokenizer):
    """Without an effect of the adapters both say the same, whatever was drawn before."""
    from contextlib import nullcontext

    def pairs(seed):
        how = {"temperature": 1.0, "seed": seed}
        return side_by_side(model, lambda _: nullcontext(), tokenizer, PROMPTS, STOP, 12, **how)

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


def test_the_command_shows_both_answers_to_held_out_and_to_given_questions(finished, capsys):
    capsys.readouterr()
    assert sample.main([str(finished), "--max-tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert said.count("  base   ") == said.count("  tuned  ") == 1  # one question is held out
    assert "Question: " in said  # the prompt as it was trained on
    two = ["--prompt", "Why?", "--prompt", "How?", "--max-tokens", "5"]
    assert sample.main([str(finished), *two]) == 0
    said = capsys.readouterr().out
    assert said.index("\nWhy?") < said.index("\nHow?") and said.count("  tuned  ") == 2


def test_chat_answers_line_by_line_until_the_input_ends(finished, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Why?\n\n  How?\n"))
    assert sample.main([str(finished), "--chat", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out.count("  tuned  ") == 2


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["none"], "none is no finished run"),
        (["none", "--count", "0"], "--count"),
        (["none", "--temperature", "-1"], "--temperature"),
    ],
)
def test_wrong_arguments_end_with_one_line(argv, complaint, capsys):
    assert sample.main(argv) == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


def test_a_base_that_fits_no_single_gpu_is_looked_at_on_the_cpu(model_folder, monkeypatch, capsys):
    """Several GPUs may have trained it; its 4 layers in float32 take 60 thousand bytes and more."""
    taken = []
    monkeypatch.setattr(inputs.lora, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(inputs.lora, "load_base", lambda name, device, *how: taken.append(device))
    for free in (60_000, 2**30):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2**40))
        inputs.load_model(Config(model=str(model_folder), dtype="float32"), None)
    assert [device.type for device in taken] == ["cpu", "cuda"]
    assert "does not fit the GPU" in capsys.readouterr().out
