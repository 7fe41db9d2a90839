"""Gathering: rows with one prompt become one question, and each rule leaves its note."""

import json

import pytest

from data import DataError, Preference, load_preferences, read_preferences
from data.gather import loosely, settle, text_key
from data.question import (
    BAD_ROW,
    CONTRADICTED,
    NO_PAIR,
    ON_BOTH_SIDES,
    REPEATED,
    SAME_AS_CHOSEN,
    UNPAIRED,
    BadRows,
)
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


def graded(answers, grades, place=""):
    """A preference of answers from the best to the worst."""
    return Preference("Why?", answers[0], tuple(answers[1:]), grades=tuple(grades), place=place)


def test_graded_answers_of_several_rows_stand_in_the_order_of_their_grades():
    rows = [graded("ABC", [3, 2, 1]), graded("AD", [3, 1.5])]
    ((question, notes),) = settle(rows)
    assert (question.answers, question.grades, notes) == (("A", "B", "D", "C"), (3, 2, 1.5, 1), [])


def test_a_row_without_grades_leaves_two_levels():
    ((question, _),) = settle([graded("ABC", [3, 2, 1]), Preference("Why?", "A", ("D",))])
    assert (question.rejected, question.grades) == (("B", "C", "D"), ())
    assert question.levels == (1, 0, 0, 0)


def test_no_other_rows_grade_puts_a_rejected_answer_above_the_chosen_one():
    """Two judges, two scales: both say that A is the best."""
    ((question, _),) = settle([graded("ABC", [3, 2, 1]), graded("ADE", [10, 9, 8])])
    assert question.chosen == "A" and {*question.rejected} == {*"BCDE"}
    assert question.levels[0] > max(question.levels[1:])
    equal = Preference("Why?", "A", ("D", "E"), correct=("F",), grades=(10, 9, 8, 10))
    ((question, _),) = settle([graded("ABC", [3, 2, 1]), equal])
    assert question.correct == ("F",) and question.levels[0] == question.levels[-1]


# Single answers with a grade: data for KTO


def single(*rows):
    """(question, reasons) of rows (answer, grade)."""
    preferences = [
        Preference("Why?", answer, (), grades=(grade,), place=f"line {number}")
        for number, (answer, grade) in enumerate(rows, start=1)
    ]
    ((question, notes),) = settle(preferences)
    return question, [tuple(note) for note in notes]


def test_single_answers_of_a_prompt_make_one_question():
    question, notes = single(("Yes", 1), ("No", 0), ("Sure", 1), ("Never", 0), ("No", 0))
    assert (question.chosen, question.rejected) == ("Yes", ("No", "Never"))
    assert (question.correct, question.grades) == (("Sure",), ())
    assert notes == [(REPEATED, "line 5")]


def test_single_answers_of_more_than_two_grades_keep_them():
    question, notes = single(("a", 1), ("b", 3), ("c", 2), ("d", 1))
    assert (question.answers, question.grades) == (("b", "c", "a", "d"), (3, 2, 1, 1))
    assert notes == []


def test_a_single_answer_of_two_grades_contradicts_itself():
    question, notes = single(("Yes", 1), ("Yes", 0), ("No", 0), ("Sure", 1))
    assert (question.chosen, question.rejected, question.correct) == ("Sure", ("No",), ())
    assert notes == [(CONTRADICTED, "line 1")]
    question, notes = single(("Yes", 1), ("Yes", 0))
    assert question.rejected == () and notes == [(CONTRADICTED, "line 1")]


def test_of_several_raters_of_an_answer_the_mean_counts():
    question, notes = single(("Yes", 5), ("Hm", 3), ("Yes", 4), ("No", 1), ("No", 2))
    assert (question.answers, question.grades) == (("Yes", "Hm", "No"), (4.5, 3, 1.5))
    assert notes == []


def test_single_answers_of_one_grade_alone_have_nothing_to_compare_with():
    question, notes = single(("Yes", 1), ("Sure", 1))
    assert question.rejected == ()
    assert notes == [(UNPAIRED, "line 1"), (UNPAIRED, "line 2")]


def test_a_file_of_single_answers_is_read_by_prompt(tmp_path):
    rows = [("Why?", "Yes", True), ("Who?", "Bats", True), ("Why?", "No", False)]
    names = ("prompt", "completion", "label")
    path = write(tmp_path, [dict(zip(names, row, strict=True)) for row in rows])
    reading = read_preferences(path)
    (why,) = reading.preferences
    assert (why.prompt, why.chosen, why.rejected) == ("Why?", "Yes", ("No",))
    assert {r: n for r, (n, _) in count_notes(reading.preferences.dataset).items()} == {UNPAIRED: 1}
    assert reading.rows == 3
    path = write(tmp_path, [{"prompt": p, "completion": "Yes", "label": 1} for p in ("a", "b")])
    with pytest.raises(DataError, match="data for KTO, and of its 2 prompts none has a better"):
        read_preferences(path)


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


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
    # `Why?` has lines 1, 3 and 6, `What?` two questions of one line each, `Who?` none
    assert reading.rows == 6
    assert reading.preferences.dataset.data.column("rows").to_pylist() == [3, 1, 1, 1]
    assert reading.preferences.column("rows").tolist() == [3]


def test_answers_that_differ_in_their_calls_alone_count_their_own_rows(tmp_path):
    def call(name):
        return {"role": "assistant", "content": "", "tool_calls": [{"name": name}]}

    rows = [{"prompt": "Why?", "chosen": [call(name)], "rejected": "No"} for name in "abc"]
    reading = read_preferences(write(tmp_path, rows))
    assert len(reading.preferences) == reading.rows == 3
    assert reading.preferences.column("rows").tolist() == [1, 1, 1]


# Bad rows


def bad_rows(folder, count, bad):
    """A file of `count` rows, of which those on the lines `bad` cannot be read."""
    rows = [
        {"prompt": f"Why {n}?", "chosen": n if n in bad else "Yes", "rejected": "No"}
        for n in range(1, count + 1)
    ]
    return write(folder, rows)


@pytest.mark.parametrize("count, bad", [(20, {3}), (60, {1, 30, 60}), (140, set(range(1, 8)))])
def test_up_to_a_twentieth_of_bad_rows_is_left_out_each_with_its_reason(tmp_path, count, bad):
    reading = read_preferences(bad_rows(tmp_path, count, bad))
    assert len(reading.preferences) == count - len(bad) and reading.rows == count
    ((reason, (left_out, places)),) = count_notes(reading.preferences.dataset).items()
    assert (reason, left_out) == (BAD_ROW, len(bad))
    first = min(bad)
    assert places[0].endswith(
        f"rows.jsonl, line {first}: column 'chosen': {first}: int where text is needed"
    )


@pytest.mark.parametrize(
    "count, bad, counted", [(19, {3}, "1 of 19"), (60, {7, 8, 9, 60}, "4 of 60")]
)
def test_more_than_a_twentieth_stops_with_the_first(tmp_path, count, bad, counted):
    first = min(bad)
    with pytest.raises(DataError) as error:
        read_preferences(bad_rows(tmp_path, count, bad))
    assert str(error.value).endswith(
        f"rows.jsonl, line {first}, column 'chosen': {first}: int where text is needed "
        f"({counted} rows cannot be read; --bad-rows skip leaves out up to 5%)"
    )


def test_a_bad_row_stops_the_run_where_none_may_be_left_out(tmp_path):
    with pytest.raises(DataError, match=r"line 3, column 'chosen': 3: int where text is needed$"):
        read_preferences(bad_rows(tmp_path, 20, {3}), skip_bad=False)


def test_where_no_row_can_be_read_the_first_says_why(tmp_path):
    with pytest.raises(DataError, match=r"line 1, column 'chosen': 1: int where text is needed$"):
        read_preferences(bad_rows(tmp_path, 3, {1, 2, 3}))


def test_a_long_source_of_bad_rows_is_not_read_to_its_end():
    bad = BadRows(skip=True)
    bad.rows = 10_000
    for number in range(500):
        bad.note(DataError(f"line {number}: no text"), f"line {number}")
    with pytest.raises(DataError, match=r"line 0: no text \(501 of 10,000 rows cannot be read"):
        bad.note(DataError("line 500: no text"), "line 500")


def test_damaged_lines_and_records_are_bad_rows_too(tmp_path):
    good = "".join(json.dumps({"prompt": f"{n}?", "chosen": "a", "rejected": "b"}) + "\n"
                   for n in range(19))  # fmt: skip
    for damaged, said in (("{no json\n", "not valid JSON"), ('["a"]\n', "is no object")):
        for text in (damaged + good, good + damaged)[damaged.startswith("[") :]:
            (tmp_path / "rows.jsonl").write_text(text)
            reading = read_preferences(str(tmp_path / "rows.jsonl"))
            assert len(reading.preferences) == 19
            (place,) = count_notes(reading.preferences.dataset)[BAD_ROW][1]
            assert said in place
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\nWhy?,a\n" + "Who?,a,b\n" * 19)
    reading = read_preferences(str(tmp_path / "rows.csv"))
    assert "2 cells under 3 columns" in count_notes(reading.preferences.dataset)[BAD_ROW][1][0]


# Text that only later rows bring


@pytest.mark.parametrize("empty", [{"context": None}, {}], ids=["empty before", "absent before"])
@pytest.mark.parametrize("value", ["Bats fly.", ["Bats fly."], {"text": "Bats fly."}])
def test_text_that_later_rows_bring_is_not_left_unread(tmp_path, monkeypatch, empty, value):
    monkeypatch.setattr("data.sources.FIRST_ROWS", 2)
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No"}
    path = write(tmp_path, [row | empty, row | empty, row | {"context": value}])
    with pytest.raises(DataError, match=r"line 3: .*'context'.*context=-"):
        read_preferences(path)
    assert len(read_preferences(path, "context=-").preferences) == 1


@pytest.mark.parametrize("empty", [{"context": None}, {}], ids=["empty before", "absent before"])
@pytest.mark.parametrize("value", ["42", " ", 3, None])
def test_what_later_rows_bring_without_text_stops_nothing(tmp_path, monkeypatch, empty, value):
    monkeypatch.setattr("data.sources.FIRST_ROWS", 2)
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No"}
    path = write(tmp_path, [row | empty, row | empty, row | {"context": value}])
    assert len(read_preferences(path).preferences) == 1


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


def test_text_that_comes_late_beside_messages_is_not_offered_to_be_joined(tmp_path, monkeypatch):
    """Text and messages cannot be joined; the one way that is named is followed."""
    monkeypatch.setattr("data.sources.FIRST_ROWS", 1)
    asked = [{"role": "user", "content": "Why?"}]
    row = {"prompt": asked, "chosen": "Yes", "rejected": "No"}
    path = tmp_path / "rows.jsonl"
    late = row | {"rejected": "Never", "notes": "Bats fly."}
    path.write_text("\n".join(map(json.dumps, [row, late])))
    with pytest.raises(DataError, match="line 2: 'notes' holds text") as refused:
        load_preferences(str(path))
    assert "join" not in str(refused.value) and str(refused.value).endswith("--columns notes=-")
    (p,) = load_preferences(str(path), "notes=-")
    assert (p.prompt, p.rejected) == ("Why?", ("No", "Never"))
