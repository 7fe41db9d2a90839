"""Neutral text: four kinds, each with a perplexity that can be worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import TEXT, small_model, small_tokenizer

import lora
from data import Way
from dpo import Budgets, Scorer, answer_key, rise, scoring_batches
from dpo.evaluation import neutral
from dpo.evaluation.neutral import KINDS, neutral_texts, paragraphs, perplexities, perplexity


def scored(model, texts, **how):
    every = [part for kind in texts.values() for part in kind]
    return Scorer(model, joined=False, **how).scores("", [every])


def test_there_are_about_1000_tokens_of_each_kind_in_paragraphs_that_all_differ(monkeypatch):
    """Counted with the built-in model's tokenizer. Two equal ones would be one score."""
    monkeypatch.setattr(neutral, "FOLDER", Path(neutral.__file__).with_name("neutral"))
    assert sorted(path.stem for path in neutral.FOLDER.iterdir()) == sorted(KINDS)
    tokenizer, _ = lora.load_tokenizer("builtin")
    texts = neutral_texts(tokenizer)
    assert list(texts) == list(KINDS)
    for parts in texts.values():
        lengths = [len(answer) for _, (answer,) in parts]
        assert 900 <= sum(lengths) <= 1100 and max(lengths) < 200
        assert {prompt for prompt, _ in parts} == {(tokenizer.bos_token_id,)}
    every = [answer for parts in texts.values() for _, (answer,) in parts]
    assert len(set(every)) == len(every) == 45


def test_a_tokenizer_of_letters_reads_the_first_paragraphs_alone(monkeypatch):
    """Of 2,900 tokens a kind, as many paragraphs as 1,200 tokens hold."""
    monkeypatch.setattr(neutral, "FOLDER", Path(neutral.__file__).with_name("neutral"))
    tokenizer = small_tokenizer()
    for kind, parts in neutral_texts(tokenizer).items():
        text = (neutral.FOLDER / f"{kind}.txt").read_text(encoding="utf-8")
        every = paragraphs(text, tokenizer)
        assert parts == every[: len(parts)] and 2 <= len(parts) < len(every)
        read, more = (sum(len(a) for _, (a,) in every[:n]) for n in (len(parts), len(parts) + 1))
        assert read <= 1200 < more


def test_perplexities_by_hand():
    """Prose: tokens 2 + 1, log-probs -(2 ln 2) and -(ln 4): exp(4 ln 2 / 3) = 2^(4/3).

    Code: one token of log-prob -3 ln 2, so 8. Both together: 7 ln 2 over 4 tokens, 2^(7/4).
    """
    texts = {"prose": [((1,), [(5, 6)]), ((1,), [(7,)])], "code": [((1,), [(8,)])]}
    scores = {
        answer_key((1,), (5, 6)): -2 * math.log(2),
        answer_key((1,), (7,)): -math.log(4),
        answer_key((1,), (8,)): -3 * math.log(2),
    }
    assert perplexities(texts, scores) == {
        "prose": pytest.approx(2 ** (4 / 3)), "code": pytest.approx(8)
    }  # fmt: skip
    assert perplexity([*texts["prose"], *texts["code"]], scores) == pytest.approx(2**1.75)


def test_a_text_that_is_all_but_impossible_has_a_finite_perplexity():
    assert math.isfinite(perplexity([((1,), [(5,)])], {answer_key((1,), (5,)): -1e6}))


def test_the_largest_rise_by_hand():
    """20 -> 21 is 5%, 10 -> 12 is 20%, 4 -> 3 is -25%; what is no number holds no limit."""
    before = {"prose": 20.0, "dialogue": 10.0, "code": 4.0}
    assert rise(before, {"prose": 21.0, "dialogue": 12.0, "code": 3.0}) == pytest.approx(0.2)
    assert rise(before, {name: 0.9 * value for name, value in before.items()}) < 0
    assert math.isnan(rise(before, {"prose": 20.0, "dialogue": math.nan, "code": 4.0}))


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    tokenizer = small_tokenizer()
    model = small_model("llama", vocab_size=len(tokenizer))
    model.lm_head.weight.data.zero_()
    texts = neutral_texts(tokenizer)
    found = perplexities(texts, scored(model, texts))
    assert found == {kind: pytest.approx(len(tokenizer), rel=1e-5) for kind in KINDS}


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("bos", ["<s>", None])
def test_perplexity_by_the_models_own_loss(bos, way):
    """exp of the mean over all scored tokens, of paragraphs that do not see each other."""
    tokenizer = small_tokenizer(bos=bos)
    model = small_model("gemma2", vocab_size=len(tokenizer))
    total, count = 0.0, 0
    for paragraph in TEXT:
        start = [] if bos is None else [tokenizer.bos_token_id]
        ids = torch.tensor([start + tokenizer(paragraph, add_special_tokens=False).input_ids])
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    parts = paragraphs("\n\n".join(TEXT), tokenizer)
    found = perplexity(parts, scored(model, {"text": parts}, way=way))
    assert found == pytest.approx(math.exp(total / count), rel=1e-5)


def test_paragraphs_are_tries_of_their_own_that_meet_in_large_batches():
    """Behind one BOS they would be a single trie, whose attention grows with its square."""
    parts = [((1,), [(5, 6, 7 + i)]) for i in range(6)]
    ((_, trees),) = scoring_batches({}, parts, 4096, joined=False)
    assert (trees.tokens > 0).sum() == 6 * 3  # BOS, 5, 6; nothing is shared
    ((_, joined),) = scoring_batches({}, parts, 4096)
    assert (joined.tokens > 0).sum() == 1 + 2
    few = list(scoring_batches({}, parts, 8, joined=False))
    assert [len(keys) for keys, _ in few] == [2, 2, 2]  # a budget holds, too
    twice = list(scoring_batches({}, parts * 2, 4096, joined=False))
    assert [len(keys) for keys, _ in twice] == [6]  # and what comes again is scored once
    model = small_model()
    whole = Scorer(model).scores("", [parts])
    apart = replace(Scorer(model, budgets=Budgets(score=8)), joined=False).scores("", [parts])
    assert whole == pytest.approx(apart, rel=1e-5)


def test_a_model_that_reads_few_tokens_reads_the_beginning_of_each_paragraph():
    tokenizer = small_tokenizer()
    text = "Do bats see?\n\n" + "The lead is smaller. " * 9
    (whole, long), (same, cut) = paragraphs(text, tokenizer), paragraphs(text, tokenizer, 20)
    assert same == whole and len(whole[1][0]) < 19
    assert cut == (long[0], [long[1][0][:19]]) and len(long[1][0]) > 19
