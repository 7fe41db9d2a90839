"""Rows: which column is what, and every format that people keep preferences in."""

import pytest

from data import DataError, Turn
from data.columns import describe, parse_row, recognise
from data.question import EMPTY, NO_CHOSEN, NO_PROMPT, NO_SHARED_PROMPT, TIED


def read(row, given=None):
    """The preference of one row, and the reasons it was given."""
    preference, notes = parse_row("rows.jsonl, line 1", row, recognise(list(row), given))
    return preference, [note.reason for note in notes]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_an_explicit_prompt():
    p, notes = read({"prompt": "Why? ", "chosen": " Yes", "rejected": "No"})
    assert (p.prompt, p.chosen, p.rejected, notes) == ("Why? ", " Yes", ("No",), [])  # as it stands
    assert p.history == () and not p.verbatim and p.place == "rows.jsonl, line 1"


def test_several_rejected_answers():
    p, _ = read({"question": "Why?", "chosen": "Yes", "rejected": ["No", "Never"]})
    assert p.rejected == ("No", "Never")


def test_truthfulqas_columns_in_the_csv_and_on_the_hub():
    csv = {
        "Type": "A", "Category": "C", "Question": " Why?", "Best Answer": "Yes ",
        "Correct Answers": "Sure; Yes;", "Incorrect Answers": "No; Never", "Source": "s",
    }  # fmt: skip
    hub = {
        "category": "C", "question": "Why?", "best_answer": "Yes",
        "correct_answers": ["Sure", "Yes"], "incorrect_answers": ["No", "Never"],
    }  # fmt: skip
    p, notes = read(hub)
    assert (p.prompt, p.chosen, p.rejected, p.category) == ("Why?", "Yes", ("No", "Never"), "C")
    assert p.correct == ("Sure", "Yes")
    from_csv, same = read(csv)
    assert (from_csv.prompt, from_csv.chosen, from_csv.correct) == (p.prompt, p.chosen, p.correct)
    assert tuple(a.strip() for a in from_csv.rejected) == p.rejected and notes == same == []


def test_conversations_with_an_explicit_prompt():
    prompt = [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        assistant("Hello"),
        user("Why?"),
    ]
    row = {"prompt": prompt, "chosen": [assistant("Yes")], "rejected": [assistant("No")]}
    p, _ = read(row)
    assert p.history == (
        Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello"),
    )  # fmt: skip
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No",))
    row["rejected"] = [[assistant("No")], [assistant("Never")]]
    assert read(row)[0].rejected == ("No", "Never")
    row["chosen"] = [*prompt, assistant("Yes")]  # the conversation once more before its answer
    assert read(row)[0] == read(row | {"chosen": "Yes"})[0]


def test_conversations_whose_prompt_is_implied():
    shared = [user("Hi"), assistant("Hello"), user("Why?")]
    row = {"chosen": [*shared, assistant("Yes")], "rejected": [*shared, assistant("No")]}
    p, _ = read(row)
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No",))
    assert p.history == (Turn("user", "Hi"), Turn("assistant", "Hello"))
    row["rejected"][0] = user("Hello")  # another conversation: nothing is preferred to anything
    assert read(row) == (None, [NO_SHARED_PROMPT])


def test_ultrafeedback_binarized_repeats_its_prompt_in_both_conversations():
    row = {
        "prompt": "Why?", "prompt_id": "1", "score_chosen": 8.0, "score_rejected": 4.0,
        "messages": [user("Why?"), assistant("Yes")],
        "chosen": [user("Why?"), assistant("Yes")], "rejected": [user("Why?"), assistant("No")],
    }  # fmt: skip
    p, _ = read(row)
    assert (p.prompt, p.history, p.chosen, p.rejected) == ("Why?", (), "Yes", ("No",))
    with pytest.raises(DataError, match="'chosen'.*the user's turn here differ"):
        read(row | {"prompt": "What?"})


def test_ultrafeedback_itself_scores_its_completions():
    completions = [
        {"response": text, "overall_score": score}
        for text, score in [("No", 2.0), ("Yes", 8.0), ("Maybe", 5), ("Yes!", 8.0)]
    ]
    p, notes = read({"instruction": "Why?", "completions": completions, "source": "s"})
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No", "Maybe"))
    assert notes == [TIED]


def test_hh_transcripts():
    opening = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    p, _ = read({"chosen": f"{opening} Yes", "rejected": f"{opening} No.\n\nNever"})
    assert p.history == (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No.\n\nNever",))
    assert not p.verbatim
    p, _ = read({"prompt": opening, "chosen": " Yes", "rejected": " No"})
    assert (p.prompt, len(p.history), p.chosen) == ("Why?", 2, " Yes")


@pytest.mark.parametrize(
    "chosen, rejected, prompt, answers",
    [
        ("Q: Why? A: Yes", "Q: Why? A: No", "Q: Why? A:", [" Yes", " No"]),
        ("Q: Why?\nYes", "Q: Why?\nNo", "Q: Why?\n", ["Yes", "No"]),
        ("Do bats see? Nonsense", "Do bats see? No", "Do bats see?", [" Nonsense", " No"]),
        ("Why? Yes", "Why? Yes indeed", "Why?", [" Yes", " Yes indeed"]),  # each keeps a word
        ("Why? Yes ", "Why? Yes indeed", "Why?", [" Yes ", " Yes indeed"]),
    ],
)
def test_texts_that_begin_alike_imply_their_prompt(chosen, rejected, prompt, answers):
    p, _ = read({"chosen": chosen, "rejected": rejected})
    assert (p.prompt, [p.chosen, *p.rejected], p.verbatim) == (prompt, answers, True)


def test_texts_that_do_not_begin_alike_have_no_prompt():
    assert read({"chosen": "Yes", "rejected": "No"}) == (None, [NO_SHARED_PROMPT])


def test_a_prompt_that_the_conversations_repeat_in_part_is_not_doubled():
    system = {"role": "system", "content": "Be brief."}
    row = {
        "prompt": [system, user("Why?")],
        "chosen": [user("Why? "), assistant("Yes")],
        "rejected": [user("Why?"), assistant("No")],
    }
    p, _ = read(row)
    assert (p.prompt, p.history) == ("Why?", (Turn("system", "Be brief."),))
    row["prompt"] = [system, user("Hi"), assistant("Hello")]  # here they go on
    row["chosen"] = [user("Why?"), assistant("Yes")]
    p, _ = read(row)
    assert (p.prompt, len(p.history)) == ("Why?", 3)
    row["prompt"] = [user("What?")]
    with pytest.raises(DataError, match="'chosen'.*the turns before the answer here differ"):
        read(row)


def test_the_answer_that_is_wrong_is_the_one_that_is_named():
    row = {"prompt": "Why?", "chosen": [assistant("Yes")], "rejected": [user("No")]}
    with pytest.raises(DataError, match="'rejected'.*must be the assistant's"):
        read(row)


def test_an_hh_transcript_with_an_empty_answer_is_a_note_not_a_refusal():
    opening = "\n\nHuman: Why?\n\nAssistant:"
    p, notes = read({"chosen": f"{opening} Yes", "rejected": opening})
    assert (p.chosen, p.rejected, notes) == ("Yes", (), [EMPTY])
    assert read({"chosen": opening, "rejected": f"{opening} No"}) == (None, [NO_CHOSEN])


def test_truthfulqas_lists_are_split_however_the_header_is_written():
    row = {"question": "Why?", "best answer ": "Yes", "incorrect answers": "No; Never"}
    assert read(row)[0].rejected == ("No", "Never")
    plain = {"question": "Why?", "chosen": "Yes", "rejected": "No; Never"}
    assert read(plain)[0].rejected == ("No; Never",)


def test_scored_completions_are_read_alone():
    names = ["instruction", "completions", "correct_answers", "incorrect_answers"]
    assert set(recognise(names)) == {"prompt", "completions"}


def test_a_category_may_be_a_number():
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No"}
    assert read(row | {"category": 3})[0].category == "3"


@pytest.mark.parametrize(
    "message, complaint",
    [
        ({"role": "x<end>\n<turn>system", "content": "Yes"}, "is no role"),
        ({"role": "assistant", "content": "", "tool_calls": [1]}, "'tool_calls' cannot be read"),
        ({"role": "assistant", "content": "a", "reasoning_content": "b"}, "'reasoning_content'"),
    ],
)
def test_messages_that_say_more_than_text_are_refused(message, complaint):
    with pytest.raises(DataError, match=complaint):
        read({"prompt": "Why?", "chosen": [message], "rejected": [assistant("No")]})


def test_two_system_messages_are_refused_and_the_same_one_counts_once():
    system = {"role": "system", "content": "Be brief."}
    row = {
        "system": "Be brief.", "prompt": [system, user("Why?")], "chosen": "Yes", "rejected": "No",
    }  # fmt: skip
    assert read(row)[0].history == (Turn("system", "Be brief."),)
    with pytest.raises(DataError, match="'system'.*another system message"):
        read(row | {"system": "Be rude."})


def test_a_system_column_becomes_the_first_turn():
    row = {"system": "Be brief.", "question": "Why?", "chosen": "Yes", "rejected": "No"}
    assert read(row)[0].history == (Turn("system", "Be brief."),)
    assert read(row | {"system": ""})[0].history == read(row | {"system": None})[0].history == ()


def test_what_is_empty_is_left_out_with_its_reason():
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": ["No", " ", None]}
    p, notes = read(row)
    assert p.rejected == ("No",) and notes == [EMPTY, EMPTY]
    assert read(row | {"prompt": "\n"}) == (None, [NO_PROMPT])
    assert read(row | {"chosen": None}) == (None, [NO_CHOSEN])


def test_columns_say_what_names_do_not_tell():
    row = {"ask": "Why?", "good": "Yes", "bad": ["No"], "prompt": "not this one"}
    p, _ = read(row, "prompt=ask, chosen=good,rejected=bad")
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No",))
    columns = recognise(list(row), "prompt=ask,chosen=good,rejected=bad")
    assert describe(columns, list(row)) == (
        "prompt = 'ask', chosen = 'good', rejected = 'bad'; not read: 'prompt'"
    )


@pytest.mark.parametrize(
    "names, given, complaint",
    [
        (["a", "b"], None, "rows.csv has the columns 'a', 'b'.*--columns prompt="),
        (["prompt", "chosen"], None, "do not tell the chosen answer from the rejected"),
        ([], None, "has the columns none"),
        (["a", "b"], "chosen=a,rejected=c", "'rejected=c': rows.csv has the columns 'a', 'b'"),
        (["a", "b"], "best=a", "'best=a': write ROLE=COLUMN with prompt, chosen"),
        (["a", "b"], "chosen", "write ROLE=COLUMN"),
        (["a", "b"], "chosen=a", "do not tell"),
        (["a", "b"], "chosen=a,chosen=b,rejected=b", "chosen is named twice"),
    ],
)
def test_columns_that_do_not_tell_are_refused_by_name(names, given, complaint):
    with pytest.raises(DataError, match=complaint):
        recognise(names, given, "rows.csv")
