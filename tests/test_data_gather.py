"""Gathering: rows with one prompt become one question, and each rule leaves its note."""

import json

import pytest

from data import DataError, Preference, load_preferences, read_preferences
from data.gather import loosely, settle, text_key
from data.question import CONTRADICTED, NO_PAIR, ON_BOTH_SIDES, REPEATED, SAME_AS_CHOSEN
from data.table import count_notes


def settled(*rows, prompt="Why?"):
    """[(chosen, rejected, reasons)] of rows (chosen, rejected ...)."""
    preferences = [Preference(prompt, chosen, tuple(rejected)) for chosen, *rejected in rows]
    return [
        (p.chosen, p.rejected, [note.reason for note in notes]) for p, notes in settle(preferences)
    ]


def test_rows_with_the_same_chosen_answer_join():
    assert settled(("Yes", "No"), ("Yes", "Never", "Not")) == [("Yes", ("No", "Never", "Not"), [])]


def test_two_chosen_answers_are_two_questions():
    assert settled(("Yes", "No"), ("Sure", "No")) == [("Yes", ("No",), []), ("Sure", ("No",), [])]


def test_a_ranking_is_no_contradiction():
    assert settled(("A", "B"), ("B", "C")) == [("A", ("B",), []), ("B", ("C",), [])]


def test_a_pair_preferred_both_ways_is_left_out_on_both_sides():
    assert settled(("A", "B", "C"), ("B", "A")) == [
        ("A", ("C",), [CONTRADICTED]),
        ("B", (), [CONTRADICTED, NO_PAIR]),
    ]


def test_a_repeated_pair_counts_once():
    assert settled(("A", "B", "B"), ("A", "B")) == [("A", ("B",), [REPEATED, REPEATED])]


def test_an_answer_equal_to_the_chosen_one_says_nothing():
    assert settled(("A", "A", "B")) == [("A", ("B",), [SAME_AS_CHOSEN])]
    assert settled(("A", "A")) == [("A", (), [SAME_AS_CHOSEN, NO_PAIR])]


def test_an_answer_among_the_correct_and_the_rejected_is_trained_against():
    p = Preference("Why?", "A", ("B", "C"), correct=("A", "C", "D"))
    ((question, notes),) = settle([p])
    assert (question.rejected, question.correct) == (("B", "C"), ("C", "D"))
    assert [note.reason for note in notes] == [ON_BOTH_SIDES]


ROWS = [
    ("Why?", "Yes", "No"),
    ("What?", "This", "That"),
    ("Why?", "Yes", "Never"),
    ("Who?", "", "She"),
    ("What?", "That", "This"),
    ("Why?", "Yes", "Yes"),
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) for row in ROWS
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("small", [True, False])
def test_rows_of_a_prompt_meet_wherever_they_stand_and_every_row_is_accounted_for(
    rows, tmp_path, small, monkeypatch
):
    if not small:
        monkeypatch.setattr("data.gather.SMALL", 0)
        monkeypatch.setattr("data.table.ROWS_AT_ONCE", 2)
    reading = read_preferences(str(rows), folder=tmp_path / "cache")
    (why,) = reading.preferences
    assert (why.prompt, why.chosen, why.rejected) == ("Why?", "Yes", ("No", "Never"))
    assert why.place.endswith("line 1") and reading.small == small
    notes = count_notes(reading.preferences.dataset)
    assert {reason: count for reason, (count, _) in notes.items()} == {
        SAME_AS_CHOSEN: 1,
        CONTRADICTED: 2,
        NO_PAIR: 2,
        "rows whose chosen answer is empty, left out": 1,
    }
    assert [p.rpartition(" ")[2] for p in notes[CONTRADICTED][1]] == ["2", "5"]


def test_keys_that_collide_join_nothing_that_differs(rows, monkeypatch):
    apart = load_preferences(str(rows))
    monkeypatch.setattr("data.gather.text_key", lambda text: 7)
    assert load_preferences(str(rows)) == apart


def test_a_source_with_nothing_to_train_on_says_why(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Why?", "chosen": "Yes", "rejected": "Yes"}\n')
    with pytest.raises(
        DataError,
        match="no question to train on: rejected answers equal to the chosen one, left out: 1",
    ):
        load_preferences(str(path))


def test_the_same_texts_in_two_conversations_are_two_prompts(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"question": "Why?", "chosen": "Yes", "rejected": "No"}
    lines = [row | {"system": "Be brief."}, row | {"system": "Be rude."}]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert len(load_preferences(str(path))) == 2


def test_prompts_are_compared_without_case_spacing_and_punctuation_for_the_split():
    assert loosely("Do  BATS see?\n") == loosely("do bats: see") != loosely("do bats seem")
    assert loosely("?!") != loosely("...")  # nothing but punctuation stays itself
    assert 0 <= text_key("Why?") < 2**63 and text_key("Why?") != text_key("Why")
