"""Held-out questions in words: which are kept, and what is said of each answer."""

import math

from data.encode import EncodedQuestion
from dpo import QUESTIONS, answer_key, evenly, in_words


class Letters:
    """A tokenizer whose ids are letters; 0 and 1 are control tokens."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(chr(i) for i in ids if i > 1)


def test_questions_are_taken_evenly_and_in_their_order():
    assert evenly("abcdefgh", 4) == ["a", "c", "e", "g"]
    assert evenly("abcdefg", 3) == ["a", "c", "e"]
    assert evenly("ab", 3) == ["a", "b"] and evenly("", 3) == []


def test_an_answer_has_its_text_its_kind_and_its_log_probs():
    prompt, best, wrong, right = (0, 81), (32, 65, 1), (32, 66, 67, 1), (32, 68, 1)
    q = EncodedQuestion(prompt, best, (wrong,), (right,), category="letters")
    old = {answer_key(prompt, answer): -float(i) for i, answer in enumerate(q.answers)}
    new = {key: 2 * logp for key, logp in old.items()}
    assert in_words([q], Letters(), old, new) == {
        "held_out": 1,
        "questions": [
            {
                "prompt": "Q",
                "category": "letters",
                "answers": [
                    {"text": "A", "kind": "chosen", "tokens": 3, "before": 0.0, "after": 0.0},
                    {"text": "BC", "kind": "rejected", "tokens": 4, "before": -1.0, "after": -2.0},
                    {"text": "D", "kind": "correct", "tokens": 3, "before": -2.0, "after": -4.0},
                ],
            }
        ],
    }


def test_500_are_kept_and_how_many_there_were_is_said():
    questions = [EncodedQuestion((0, 1000 + i), (65,), ((66,),)) for i in range(2 * QUESTIONS)]
    scores = {answer_key(q.prompt, a): -math.pi for q in questions for a in q.answers}
    kept = in_words(questions, Letters(), scores, scores)
    assert kept["held_out"] == 1000 and QUESTIONS == 500
    assert [q["prompt"] for q in kept["questions"]] == [chr(1000 + 2 * i) for i in range(500)]
