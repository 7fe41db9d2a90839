"""Sources: TruthfulQA's columns, the built-in questions, and rows that say what is wrong."""

import re
from pathlib import Path

import pytest
from conftest import QUESTIONS_CSV

from data import DataError, load_preferences, split_by_question
from data.truthfulqa import BUILTIN, read_csv

TRUTHFULQA = Path(__file__).parents[2] / "shared" / "truthfulqa" / "TruthfulQA.csv"
HEADER = QUESTIONS_CSV.splitlines()[0]


def test_a_csv_in_truthfulqas_columns_by_hand(questions_csv):
    bats = load_preferences(str(questions_csv))[0]
    assert bats.prompt == "Do bats see?"
    assert bats.chosen == "Bats see well"
    assert bats.rejected == ("Bats are blind", "Bats see nothing")
    assert bats.correct == ("Bats can see",)  # the best answer is not listed twice
    assert bats.category == "One"


@pytest.mark.skipif(not TRUTHFULQA.exists(), reason="needs the authors' CSV beside the project")
def test_the_authors_csv_reads_whole():
    preferences = read_csv(TRUTHFULQA)
    assert len(preferences) == 637  # trailing separators in 22 of its rows make no empty answers
    assert all(p.chosen not in p.rejected and p.rejected for p in preferences)


def rows(tmp_path, *lines):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([HEADER, *lines]), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("A,C,,Yes,Yes,No,s", r"line 2: 'Question' is empty"),
        ("A,C,Why?, ,Yes,No,s", r"line 2: 'Best Answer' is empty"),
        ("A,C,Why?,Yes,Yes,No; ;Never,s", r"line 2: 'Incorrect Answers' holds an empty answer"),
        ("A,C,Why?,Yes,Yes,,s", r"line 2: no incorrect answer"),
        ("A,C,Why?,Yes,Yes,Yes,s", r"line 2: no incorrect answer differs"),
        ("A,C,Why?", r"line 2: 'Best Answer' is empty"),
        ('A,C,"Why?,Yes', r"rows.csv cannot be read as a UTF-8 CSV"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path, line, complaint):
    with pytest.raises(DataError, match=complaint):
        read_csv(rows(tmp_path, line))


def test_missing_columns_and_files_are_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("Question,Answer\nWhy?,Yes\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'Best Answer', 'Correct Answers'.*'Answer'"):
        read_csv(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="has none"):
        read_csv(path)
    path.write_text(HEADER + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no question"):
        read_csv(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_csv(path)
    with pytest.raises(DataError, match="no file"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "bom.csv"
    path.write_text(QUESTIONS_CSV, encoding="utf-8-sig")
    assert len(read_csv(path)) == 5


def test_rows_with_one_question_gather_and_contradictions_are_refused(tmp_path):
    first, second = "A,C,Why?,Yes,Yes,No,s", "A,C,Why?,Yes,Sure,No; Never,s"
    (why,) = read_csv(rows(tmp_path, first, second))
    assert why.rejected == ("No", "Never") and why.correct == ("Sure",)
    with pytest.raises(DataError, match="line 3: 'Why\\?' has another best answer"):
        read_csv(rows(tmp_path, first, "A,C,Why?,Never,Sure,No,s"))


def test_held_out_questions_are_disjoint_from_training_and_depend_on_the_seed():
    questions = list(range(100))
    train, held_out = split_by_question(questions, 0.2, seed=0)
    assert len(held_out) == 20 and sorted(train + held_out) == questions
    assert split_by_question(questions, 0.2, seed=0) == (train, held_out)
    assert split_by_question(questions, 0.2, seed=1) != (train, held_out)
    with pytest.raises(DataError, match="--eval-fraction"):
        split_by_question([1, 2], 0.1, seed=0)


NEGATION = re.compile(
    r"\b(no|not|never|none|nothing|nobody|nowhere|neither|nor|cannot|without)\b|n't", re.I
)


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


def test_the_built_in_questions_are_many_enough_and_complete():
    questions = load_preferences("builtin")
    assert len(questions) >= 120
    for q in questions:
        assert 3 <= len(q.rejected) <= 5, q.prompt
        assert len(q.correct) >= 1, q.prompt  # with the best one, two correct answers or more
        assert not set(q.rejected) & {q.chosen, *q.correct}, q.prompt
    text = BUILTIN.read_text(encoding="utf-8")
    assert text.count("https://") >= len(questions)  # each row names its source


def test_the_built_in_questions_offer_no_shortcut():
    questions = load_preferences("builtin")
    pairs = [(q.chosen, r) for q in questions for r in q.rejected]
    assert 0.4 <= share(len(c) > len(r) for c, r in pairs) <= 0.6
    assert 0.4 <= share(len(c.split()) > len(r.split()) for c, r in pairs if
                        len(c.split()) != len(r.split())) <= 0.6  # fmt: skip
    best = share(bool(NEGATION.search(q.chosen)) for q in questions)
    incorrect = share(bool(NEGATION.search(r)) for _, r in pairs)
    assert abs(best - incorrect) <= 0.1
