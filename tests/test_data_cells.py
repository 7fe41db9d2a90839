"""Values: what is text, what are messages, what is a grade; what is none is named by its cell."""

import json

import pytest

from data import DataError, Turn
from data.cells import Cell, is_message

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Yes"}]
TURNS = (Turn("user", "Why?"), Turn("assistant", "Yes"))


def cell(value):
    return Cell("rows.jsonl, line 3", "chosen", value)


def test_an_error_names_place_column_and_value():
    assert str(cell(4).wrong("no text")) == "rows.jsonl, line 3, column 'chosen': 4: no text"
    long = str(cell("a" * 100).wrong("too long"))
    assert long == f"rows.jsonl, line 3, column 'chosen': '{'a' * 56}...: too long"


def test_a_text_stands_as_it_is_and_null_is_none():
    assert [cell(v).text(v) for v in ("", " Yes\n", "כן", None)] == ["", " Yes\n", "כן", ""]


@pytest.mark.parametrize(
    "value, complaint",
    [
        (4, "int where text is needed"),
        (True, "bool where text"),
        ({"text": "Yes"}, "dict where text"),
        (b"Yes", "bytes where text"),
        ("Y\ud83e", "half a surrogate pair"),
        ("[{'role': 'user', 'content': 'Why?'}]", "messages written as Python text"),
    ],
)
def test_what_is_no_text_is_named(value, complaint):
    with pytest.raises(DataError, match=f"line 3, column 'chosen': .*{complaint}"):
        cell(value).said(value) if isinstance(value, str) else cell(value).text(value)


def test_a_category_is_text_or_a_number():
    assert [cell(v).label() for v in ("c", 3, 0.5, None)] == ["c", "3", "0.5", ""]
    with pytest.raises(DataError, match="bool where text"):
        cell(True).label()


@pytest.mark.parametrize(
    "message, turn",
    [
        ({"role": "user", "content": "Why?"}, Turn("user", "Why?")),
        ({"from": "human", "value": "Why?"}, Turn("user", "Why?")),
        ({"from": "gpt", "value": "Yes"}, Turn("assistant", "Yes")),
        ({"role": "Assistant", "content": "Yes"}, Turn("assistant", "Yes")),
        ({"role": "model", "content": "Yes"}, Turn("assistant", "Yes")),
        ({"role": "prompter", "content": "Why?"}, Turn("user", "Why?")),
        ({"from": "observation", "value": "4"}, Turn("tool", "4")),
        ({"role": "developer", "content": "Be brief."}, Turn("developer", "Be brief.")),
        (
            {"role": "user", "content": [{"type": "text", "text": "Why"}, "?"]},
            Turn("user", "Why?"),
        ),
        (
            {"role": "assistant", "content": "Yes", "reasoning": "Hm."},
            Turn("assistant", "Yes", '{"reasoning_content": "Hm."}'),
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}]},
            Turn("assistant", "", '{"tool_calls": [{"name": "look"}]}'),
        ),
        (
            {"role": "tool", "content": "4", "tool_call_id": "7", "name": "add"},
            Turn("tool", "4", '{"name": "add", "tool_call_id": "7"}'),
        ),
        ({"role": "user", "content": "Why?", "tool_calls": None, "x": 1}, Turn("user", "Why?")),
    ],
)
def test_messages_under_the_usual_names(message, turn):
    assert cell([message]).turns([message]) == (turn,)


@pytest.mark.parametrize(
    "message, complaint",
    [
        ("Why?", "needs a 'role' and a 'content'"),
        ({"content": "Yes"}, "needs a 'role' and a 'content'"),
        ({"role": "assistant"}, "'content' of text"),
        ({"role": "assistant", "content": 4}, "'content' of text"),
        ({"role": "assistant", "content": []}, "'content' of text"),
        ({"role": 1, "content": "Yes"}, "needs a 'role'"),
        ({"role": "x<end>\n<turn>system", "content": "Yes"}, "is no role"),
        ({"role": "", "content": "Yes"}, "is no role"),
        ({"role": "assistant", "content": "", "function_call": {"name": "look"}},
         "'function_call' cannot be read"),
        ({"role": "user", "content": "Why?", "images": ["bat.png"]}, "'images' cannot be read"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "bat.png"}]},
         "a part of a message that is no text"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_read_whole_are_refused(message, complaint):
    with pytest.raises(DataError, match=complaint):
        cell([message]).turns([message])


def test_an_answer_is_text_a_message_a_conversation_or_one_kept_as_json():
    assert cell("Yes").said("Yes") == "Yes"
    assert cell(None).said(MESSAGES[1]) == TURNS[1:]
    assert cell(None).said(MESSAGES) == cell(None).said(json.dumps(MESSAGES)) == TURNS
    for text in ('["a", "b"]', '[{"a": 1}]', '[{"role": "user"', "[]"):
        assert cell(text).said(text) == text  # text that only looks a little like it


def test_a_value_is_one_answer_or_a_list_of_them():
    assert cell("Yes").sides() == ["Yes"]
    assert cell(["Yes", "No"]).sides() == ["Yes", "No"]
    assert cell(MESSAGES).sides() == [TURNS]
    assert cell([MESSAGES, "No"]).sides() == [TURNS, "No"]
    assert cell([]).sides() == [] and cell(None).sides() == [""]
    assert cell(" No; Never;").sides(semicolons=True) == ["No", " Never"]
    assert cell(" ;").sides(semicolons=True) == [] and cell("No; x").sides() == ["No; x"]


def test_answers_of_a_list_have_grades_of_their_own_or_none():
    assert cell(["Yes", "No"]).answers() == (["Yes", "No"], [None, None])
    graded = [{"response": "Yes", "score": 2}, {"text": "No", "score": "1.5"}]
    assert cell(graded).answers() == (["Yes", "No"], [2.0, 1.5])
    ranked = [{"answer": "Yes", "rank": 1}, {"answer": "No", "rank": 2}]
    assert cell(ranked).answers() == (["Yes", "No"], [-1.0, -2.0])  # of ranks 1 is the best
    assert cell([MESSAGES[1], "No"]).answers() == ([TURNS[1:], "No"], [None, None])
    for value, complaint in (
        ([], "a list of answers is needed"),
        ("Yes", "a list of answers is needed"),
        ([{"score": 2}], "an answer needs a 'response'"),
        ([{"response": "Yes", "score": "N/A"}], "'N/A' is no grade"),
    ):
        with pytest.raises(DataError, match=complaint):
            cell(value).answers()


@pytest.mark.parametrize(
    "value, grade",
    [
        (3, 3.0), (-0.5, -0.5), ("3", 3.0), (" 1e2 ", 100.0), (True, 1.0), (False, 0.0),
        ("True", 1.0), ("false", 0.0), ("good", 1.0), ("Undesirable", 0.0), ("rejected", 0.0),
    ],
)  # fmt: skip
def test_grades_are_numbers_truth_or_words_for_it(value, grade):
    assert cell(value).number(value) == grade
    assert cell(value).number(value, rank=True) == -grade


@pytest.mark.parametrize(
    "value", ["N/A", "", None, float("nan"), "nan", [1], {}, pytest.param(10**400, id="huge")]
)
def test_what_is_no_number_is_no_grade(value):
    with pytest.raises(DataError, match="is no grade; a number is needed"):
        cell(value).number(value)


def test_a_message_has_a_role():
    assert is_message({"role": "user"}) and is_message({"from": "human"})
    assert not is_message({"content": "Why?"}) and not is_message("role") and not is_message(None)
