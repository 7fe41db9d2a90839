"""Rows: every format that people keep preferences in, and what is left out of them."""

import json

import pytest

from data import DataError, Turn
from data.columns import recognise
from data.parse import parse_row
from data.question import EMPTY, NO_CHOSEN, NO_PROMPT, NO_SHARED_PROMPT, NOT_A_TURN, TIED


def read(row, given=None, first_rows=None, every=False):
    """The preference of one row, and the reasons it was given."""
    form = recognise(list(row), first_rows or [row], given, "rows.jsonl", every)
    preference, notes = parse_row("rows.jsonl, line 1", row, form)
    assert all(note.place == "rows.jsonl, line 1" for note in notes)
    return preference, [note.reason for note in notes]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "Be brief."}


# A chosen answer and rejected ones


def test_an_explicit_prompt():
    p, notes = read({"prompt": "Why? ", "chosen": " Yes", "rejected": "No"})
    assert (p.prompt, p.chosen, p.rejected, notes) == ("Why? ", " Yes", ("No",), [])  # as it stands
    assert p.history == () and not p.verbatim and p.place == "rows.jsonl, line 1"
    assert p.grades == () and p.levels == (1, 0)


def test_several_rejected_answers():
    p, _ = read({"question": "Why?", "chosen": "Yes", "rejected": ["No", "Never"]})
    assert p.rejected == ("No", "Never") and p.grades == ()


def test_answers_may_be_messages_or_text_each_for_itself():
    row = {"prompt": "Why?", "chosen": assistant("Yes"), "rejected": ["No", assistant("Never")]}
    p, _ = read(row)
    assert (p.chosen, p.rejected) == ("Yes", ("No", "Never"))


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
    assert p.correct == ("Sure", "Yes") and p.levels == (1, 0, 0, 1, 1)
    from_csv, same = read(csv)
    assert (from_csv.prompt, from_csv.chosen, from_csv.correct) == (p.prompt, p.chosen, p.correct)
    assert from_csv.rejected == p.rejected and notes == same == []


def test_truthfulqas_lists_are_split_however_the_header_is_written():
    row = {"question": "Why?", "best answer ": "Yes", "incorrect answers": "No; Never"}
    assert read(row)[0].rejected == ("No", "Never")
    plain = {"question": "Why?", "chosen": "Yes", "rejected": "No; Never"}
    assert read(plain)[0].rejected == ("No; Never",)


def test_a_prompt_of_several_columns_has_each_on_a_line_of_its_own():
    row = {"instruction": "Add.", "input": "2 and 2", "chosen": "4", "rejected": "5"}
    assert read(row)[0].prompt == "Add.\n2 and 2"
    assert read(row | {"input": " "}, first_rows=[row])[0].prompt == "Add."
    joined = {"passage": "Bats fly.", "prompt": "Who?", "chosen": "Bats", "rejected": "Lead"}
    assert read(joined, "prompt=passage+prompt")[0].prompt == "Bats fly.\nWho?"


# Conversations


def test_conversations_with_an_explicit_prompt():
    prompt = [SYSTEM, user("Hi"), assistant("Hello"), user("Why?")]
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


def test_a_conversation_kept_as_json_text_is_the_conversation():
    row = {"prompt": [SYSTEM, user("Why?")], "chosen": [assistant("Yes")], "rejected": "No"}
    as_text = {name: json.dumps(v) if name != "rejected" else v for name, v in row.items()}
    assert read(as_text)[0] == read(row)[0]
    assert read(as_text)[0].history == (Turn("system", "Be brief."),)


def test_conversations_whose_prompt_is_implied():
    shared = [user("Hi"), assistant("Hello"), user("Why?")]
    row = {"chosen": [*shared, assistant("Yes")], "rejected": [*shared, assistant("No")]}
    p, _ = read(row)
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No",))
    assert p.history == (Turn("user", "Hi"), Turn("assistant", "Hello"))
    row["rejected"][0] = user("Hello")  # another conversation: nothing is preferred to anything
    assert read(row) == (None, [NO_SHARED_PROMPT])


def test_sharegpts_turns_and_its_answers_of_one_message():
    row = {
        "conversations": [{"from": "system", "value": "Be brief."},
                          {"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Yes"}, "rejected": {"from": "gpt", "value": "No"},
    }  # fmt: skip
    p, _ = read(row)
    assert (p.history, p.prompt) == ((Turn("system", "Be brief."),), "Why?")
    assert (p.chosen, p.rejected) == ("Yes", ("No",))


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


def test_a_prompt_that_the_conversations_repeat_in_part_is_not_doubled():
    row = {
        "prompt": [SYSTEM, user("Why?")],
        "chosen": [user("Why? "), assistant("Yes")],
        "rejected": [user("Why?"), assistant("No")],
    }
    p, _ = read(row)
    assert (p.prompt, p.history) == ("Why?", (Turn("system", "Be brief."),))
    row["prompt"] = [SYSTEM, user("Hi"), assistant("Hello")]  # here they go on
    row["chosen"] = [user("Why?"), assistant("Yes")]
    p, _ = read(row)
    assert (p.prompt, len(p.history)) == ("Why?", 3)
    row["prompt"] = [user("What?")]
    with pytest.raises(DataError, match="'chosen'.*the turns before the answer here differ"):
        read(row)


def test_turns_that_do_not_lead_from_a_users_to_an_answer_are_left_out():
    row = {"prompt": "Why?", "chosen": [assistant("Yes")], "rejected": [user("No")]}
    assert read(row) == (None, [NOT_A_TURN])  # a rejected answer that is the user's
    assert read(row | {"chosen": [user("Yes")]}) == (None, [NOT_A_TURN])
    row["rejected"] = [assistant("No")]
    assert read(row)[1] == []
    two = [user("Hi"), assistant("Why?")]
    assert read(row | {"prompt": two}) == (None, [NOT_A_TURN])  # two of the assistant's
    assert read(row | {"prompt": [SYSTEM]}) == (None, [NOT_A_TURN])  # nobody asks
    assert read(row | {"prompt": [assistant("Hi")]}) == (None, [NOT_A_TURN])


def test_two_system_messages_are_refused_and_the_same_one_counts_once():
    row = {
        "system": "Be brief.", "prompt": [SYSTEM, user("Why?")], "chosen": "Yes", "rejected": "No",
    }  # fmt: skip
    assert read(row)[0].history == (Turn("system", "Be brief."),)
    with pytest.raises(DataError, match="'system'.*another system message"):
        read(row | {"system": "Be rude."})


def test_a_system_column_becomes_the_first_turn():
    row = {"system": "Be brief.", "question": "Why?", "chosen": "Yes", "rejected": "No"}
    assert read(row)[0].history == (Turn("system", "Be brief."),)
    assert read(row | {"system": ""})[0].history == read(row | {"system": None})[0].history == ()
    named = {"role_play": "Be brief.", "question": "Why?", "chosen": "Yes", "rejected": "No"}
    assert read(named, "system=role_play")[0].history == (Turn("system", "Be brief."),)


def test_a_history_is_messages_or_pairs_of_what_was_asked_and_answered():
    row = {"question": "Why?", "history": [["Hi", "Hello"]], "chosen": "Yes", "rejected": "No"}
    turns = (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert read(row)[0].history == turns
    messages = row | {"history": [user("Hi"), assistant("Hello")]}
    assert read(messages, "history=history")[0].history == turns
    assert read(row | {"history": None}, first_rows=[row])[0].history == ()
    with pytest.raises(DataError, match="'history'.*a list of messages, or of pairs"):
        read(row | {"history": "Hi"}, first_rows=[row])


def test_tools_their_calls_and_their_results_are_kept():
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    row = {
        "prompt": [user("Why?"), assistant(None, tool_calls=[call]),
                   {"role": "tool", "content": "dark", "name": "look"}],
        "tools": [{"name": "look"}], "chosen": [assistant("Yes", reasoning_content="Hm.")],
        "rejected": [assistant("No")],
    }  # fmt: skip
    p, _ = read(row)
    assert (p.prompt, p.history, p.tools) == ("Why?", (), '[{"name": "look"}]')
    assert p.since == (
        Turn("assistant", "", json.dumps({"tool_calls": [call]}, sort_keys=True)),
        Turn("tool", "dark", '{"name": "look"}'),
    )
    assert p.extras == ('{"reasoning_content": "Hm."}', "")
    assert read(row | {"tools": '[{"name": "look"}]'})[0].tools == p.tools
    assert read(row | {"tools": None})[0].tools == read(row | {"tools": "[]"})[0].tools == ""
    for tools, complaint in (("{", "no valid JSON"), ({"name": "look"}, "a list of functions")):
        with pytest.raises(DataError, match=f"'tools'.*{complaint}"):
            read(row | {"tools": tools}, first_rows=[row])


def test_an_answer_may_be_a_call_without_a_word():
    call = assistant("", tool_calls=[{"name": "look"}])
    p, notes = read({"prompt": "Why?", "chosen": [call], "rejected": [assistant("No")]})
    assert (p.chosen, p.extras, notes) == ("", ('{"tool_calls": [{"name": "look"}]}', ""), [])


# HH, and texts that begin alike


def test_hh_transcripts():
    opening = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
    p, _ = read({"chosen": f"{opening} Yes", "rejected": f"{opening} No.\n\nNever"})
    assert p.history == (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No.\n\nNever",))
    assert not p.verbatim
    p, _ = read({"prompt": opening, "chosen": " Yes", "rejected": " No"})
    assert (p.prompt, len(p.history), p.chosen) == ("Why?", 2, " Yes")


def test_an_hh_transcript_with_an_empty_answer_is_a_note_not_a_refusal():
    opening = "\n\nHuman: Why?\n\nAssistant:"
    p, notes = read({"chosen": f"{opening} Yes", "rejected": opening})
    assert (p.chosen, p.rejected, notes) == ("Yes", (), [EMPTY])
    assert read({"chosen": opening, "rejected": f"{opening} No"}) == (None, [NO_CHOSEN])


def test_an_hh_transcript_that_ends_with_the_human_is_left_out():
    """Some of HH-RLHF's do: nobody answered."""
    opening = "\n\nHuman: Why?\n\nAssistant: Yes"
    unanswered = {"chosen": f"{opening}\n\nHuman: Sure?", "rejected": f"{opening}\n\nHuman: No?"}
    assert read(unanswered) == (None, [NOT_A_TURN])


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


# Graded answers


def test_scores_grade_a_list_of_answers():
    row = {
        "prompt": "Why?",
        "responses": ["No", "Yes", "Maybe", "Yes!"],
        "scores": [2, 8.0, "5", 8],
    }
    p, notes = read(row)
    assert (p.chosen, p.rejected, p.correct, notes) == ("Yes", ("Maybe", "No"), ("Yes!",), [])
    assert p.grades == p.levels == (8, 5, 2, 8)  # of answers, in their order


def test_of_ranks_1_is_the_best():
    row = {"prompt": "Why?", "responses": ["No", "Yes", "Maybe"], "ranks": [3, 1, 2]}
    p, _ = read(row)
    assert (p.chosen, p.rejected, p.grades) == ("Yes", ("Maybe", "No"), (-1, -2, -3))


def test_two_levels_need_no_grades():
    row = {"prompt": "Why?", "responses": ["No", "Yes", "Never"], "scores": [0, 9, 0]}
    p, _ = read(row)
    assert (p.chosen, p.rejected, p.grades, p.levels) == ("Yes", ("No", "Never"), (), (1, 0, 0))


def test_ultrafeedback_itself_scores_its_completions():
    completions = [
        {"response": text, "overall_score": score}
        for text, score in [("No", 2.0), ("Yes", 8.0), ("Maybe", 5), ("Yes!", 8.0)]
    ]
    p, notes = read({"instruction": "Why?", "completions": completions, "source": "s"})
    assert (p.prompt, p.chosen, p.rejected, p.correct) == (
        "Why?",
        "Yes",
        ("Maybe", "No"),
        ("Yes!",),
    )
    assert notes == []
    with pytest.raises(DataError, match="'completions'.*an answer has no 'overall_score'"):
        read({"instruction": "Why?", "completions": [*completions, {"response": "So"}]})


def test_grades_as_many_as_answers():
    row = {"prompt": "Why?", "responses": ["Yes", "No"], "scores": [1, 0]}
    for scores in ([1], [1, 2, 3], 1, None):
        with pytest.raises(DataError, match="column 'scores': .*2 answers need as many scores"):
            read(row | {"scores": scores}, first_rows=[row])
    pair = {"prompt": "Why?", "response_a": "No", "response_b": "Yes", "score_a": 1, "score_b": 2}
    p, _ = read(pair)
    assert (p.chosen, p.rejected) == ("Yes", ("No",))


def test_answers_alike_in_their_grade_are_left_out_as_tied():
    row = {"prompt": "Why?", "responses": ["Yes", "No"], "scores": [1, 1]}
    assert read(row) == (None, [TIED])
    row = {"prompt": "Why?", "responses": ["Yes", ""], "scores": [1, 0]}
    assert read(row) == (None, [EMPTY, TIED])  # nothing is left to compare with


@pytest.mark.parametrize(
    "winner, chosen",
    [("a", "Yes"), ("B", "No"), ("response_b", "No"), ("tie", None), (None, None),
     ("tie (bothbad)", None), ("", None)],
)  # fmt: skip
def test_the_winner_of_two_answers(winner, chosen):
    row = {"prompt": "Why?", "response_a": "Yes", "response_b": "No", "winner": winner}
    known = [row | {"winner": "a"}, row | {"winner": "response_b"}]
    p, notes = read(row, first_rows=known)
    assert (p and p.chosen, notes) == (chosen, [] if chosen else [TIED])


def test_a_winner_that_names_no_answer_is_an_error():
    row = {"prompt": "Why?", "response_a": "Yes", "response_b": "No", "winner": "a"}
    with pytest.raises(DataError, match="line 1, column 'winner': 'c': it names none of the ans"):
        read(row | {"winner": "c"}, first_rows=[row])
    ranked = {"prompt": "Why?", "responses": ["Yes", "No", "So"], "best": 0}
    known = [ranked, ranked | {"best": 2}]
    assert read(ranked | {"best": 1}, first_rows=known)[0].chosen == "No"
    with pytest.raises(DataError, match="'best': 2: there are only 2 answers"):
        read(ranked | {"responses": ["Yes", "No"], "best": 2}, first_rows=known)


def test_what_a_winners_values_mean_may_be_said():
    row = {"prompt": "Why?", "response_a": "Yes", "response_b": "No", "label": 1.0}
    assert read(row, "winner=label:1/0")[0].chosen == "Yes"
    assert read(row, "winner=label:0/1")[0].chosen == "No"


def test_shps_labels_and_a_signed_preference():
    row = {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}
    assert read(row)[0].chosen == "a" and read(row | {"labels": 0})[0].chosen == "b"
    row = {"prompt": "Why?", "response1": "a", "response2": "b", "overall_preference": -2}
    known = [row | {"overall_preference": number} for number in (-3, 0, 2)]
    for number, chosen in ((-2, "a"), (3, "b")):
        assert read(row | {"overall_preference": number}, None, known)[0].chosen == chosen
    assert read(row | {"overall_preference": 0}, None, known) == (None, [TIED])


def test_the_winner_by_its_authors_name_or_by_its_own_text():
    row = {"prompt": "Why?", "response_a": "Yes", "response_b": "No", "model_a": "bat-1",
           "model_b": "bat-2", "winner": "bat-2"}  # fmt: skip
    assert read(row)[0].chosen == "No"
    text = {"prompt": "Why?", "answer_1": "Yes", "answer_2": "No", "better": "Yes"}
    assert read(text)[0].chosen == "Yes"


def test_all_pairs_read_the_list_and_not_the_pair_beside_it():
    best, middle, worst = "They do", "Some do", "They are blind"
    row = {"prompt": "Do bats see?", "chosen": best, "rejected": worst,
           "responses": [worst, best, middle], "scores": [1, 3, 2]}  # fmt: skip
    assert read(row)[0].answers == (best, worst)
    p, _ = read(row, every=True)
    assert (p.answers, p.grades) == ((best, middle, worst), (3, 2, 1))


def test_a_single_answer_has_its_grade_and_no_rejected_one():
    row = {"prompt": "Why?", "completion": "Yes", "label": True}
    p, notes = read(row)
    assert (p.chosen, p.rejected, p.grades, notes) == ("Yes", (), (1,), [])
    assert read(row | {"label": "rejected"})[0].grades == (0,)
    assert read(row | {"completion": " "}) == (None, [EMPTY])
    with pytest.raises(DataError, match="column 'label': None: None is no grade"):
        read(row | {"label": None}, first_rows=[row])
    turns = {"messages": [user("Why?"), assistant("Yes")], "label": False}
    p, _ = read(turns)
    assert (p.prompt, p.chosen, p.grades) == ("Why?", "Yes", (0,))


# What is missing


def test_what_is_empty_is_left_out_with_its_reason():
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": ["No", " ", None]}
    p, notes = read(row)
    assert p.rejected == ("No",) and notes == [EMPTY, EMPTY]
    assert read(row | {"prompt": "\n"}) == (None, [NO_PROMPT])
    assert read(row | {"chosen": None}) == (None, [NO_CHOSEN])
    assert read(row | {"prompt": []}) == (None, [NO_PROMPT])


def test_a_row_without_a_column_that_it_needs_is_named():
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No", "category": "c"}
    form = recognise(list(row), [row], None, "rows.jsonl")
    with pytest.raises(DataError, match="line 7: no 'chosen', which is the chosen; add it"):
        parse_row("rows.jsonl, line 7", {"prompt": "Why?", "rejected": "No"}, form)
    del row["category"]  # this one may be missing
    assert parse_row("x", row, form)[0].category == ""


def test_a_category_may_be_a_number():
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No"}
    assert read(row | {"category": 3})[0].category == "3"


def test_columns_say_what_names_do_not_tell():
    row = {"ask": "Why?", "good": "Yes", "bad": ["No"], "prompt": "not this one"}
    p, _ = read(row, "prompt=ask, chosen=good,rejected=bad,prompt=-")
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No",))


# Grades that could be turned round


def test_one_grade_orders_all_answers_of_a_list_whatever_the_order_of_their_keys():
    items = [{"text": "A", "score": 0.2, "rank": 2}, {"text": "B", "rank": 1, "score": 0.9}]
    p, _ = read({"prompt": "Why?", "answers": items})
    assert (p.chosen, p.rejected) == ("B", ("A",))
    items[1].pop("score")
    with pytest.raises(DataError, match="an answer has no 'score'"):
        read({"prompt": "Why?", "answers": items})


def test_grades_in_the_answers_and_a_winner_beside_them_must_agree():
    items = [{"response": "A", "overall_score": 1.0}, {"response": "B", "overall_score": 9.0}]
    row = {"prompt": "Why?", "completions": items, "best": 1}
    assert read(row)[0].chosen == "B"
    with pytest.raises(DataError, match="disagree about which answer is better"):
        read(row | {"best": 0})


def test_signed_preferences_and_authors_names_are_compared_with_scores_too():
    row = {"prompt": "Why?", "response_1": "A", "response_2": "B", "score_1": 1, "score_2": 5}
    assert read(row | {"preference_strength": 2}, first_rows=[
        row | {"preference_strength": 2},
        row | {"preference_strength": -1, "score_1": 7},
    ])[0].chosen == "B"  # fmt: skip
    with pytest.raises(DataError, match="disagree"):
        read(row | {"preference_strength": -2})
    named = {"prompt": "Why?", "response_a": "A", "response_b": "B", "model_a": "x",
             "model_b": "y", "winner": "x", "score_a": 1, "score_b": 5}  # fmt: skip
    with pytest.raises(DataError, match="disagree"):
        read(named)


def test_where_one_author_wrote_both_answers_its_name_is_no_winner():
    first = [{"prompt": "Why?", "response_a": "A", "response_b": "B", "model_a": "x",
              "model_b": "y", "winner": "x"}]  # fmt: skip
    assert read(first[0] | {"model_b": "x"}, first_rows=first) == (None, [TIED])


def test_a_flag_that_says_who_wrote_an_answer_is_no_label():
    with pytest.raises(DataError, match="do not tell"):
        read({"prompt": "Why?", "response": "A", "is_human": True})


@pytest.mark.parametrize("values", ["1/1", "-/2", "1", "1/"])
def test_values_that_name_no_two_answers_are_refused(values):
    row = {"prompt": "Why?", "response_a": "A", "response_b": "B", "vote": 1}
    with pytest.raises(DataError, match="write winner=COLUMN:FIRST/SECOND"):
        read(row, f"winner=vote:{values}")


# Text that could be cut, doubled or added


def test_semicolons_part_truthfulqas_own_list_alone():
    row = {"question": "Why?", "best_answer": "Yes", "rejected": "No; never"}
    assert read(row)[0].rejected == ("No; never",)


def test_a_prompt_that_every_answer_repeats_is_cut_off():
    row = {"prompt": "Q: Why? A:", "response_a": "Q: Why? A: Yes", "response_b": "Q: Why? A: No",
           "winner": "a"}  # fmt: skip
    p, _ = read(row)
    assert (p.prompt, p.chosen, p.rejected) == ("Q: Why? A:", " Yes", (" No",))


def test_nulls_that_arrow_puts_into_objects_are_dropped():
    call = {"function": {"name": "lamp", "arguments": {"on": True, "town": None}}, "id": None}
    tools = [{"function": {"name": "lamp", "strict": None}}]
    row = {
        "tools": tools, "prompt": "Why?", "chosen": [assistant(None, tool_calls=[call])],
        "rejected": "No",
    }  # fmt: skip
    p, _ = read(row)
    assert json.loads(p.tools) == [{"function": {"name": "lamp"}}]
    call = {"function": {"name": "lamp", "arguments": {"on": True}}}
    assert json.loads(p.extras[0]) == {"tool_calls": [call]}


@pytest.mark.parametrize("calls", ["lamp", ["lamp"], [{"id": 1}], [{"function": {"name": None}}]])
def test_calls_of_another_shape_are_refused(calls):
    row = {"prompt": "Why?", "chosen": [assistant("", tool_calls=calls)], "rejected": "No"}
    with pytest.raises(DataError, match="tool_calls are a list"):
        read(row)


def test_what_stands_beside_a_prompt_within_its_object_is_not_lost():
    row = {"input": {"messages": [user("Why?")], "context": "Bats fly."}, "chosen": "Yes",
           "rejected": "No"}  # fmt: skip
    with pytest.raises(DataError, match="'input.context' holds text"):
        read(row)
    assert read(row, "input.context=-")[0].prompt == "Why?"
    form = recognise(list(row), [row], "input.context=-")
    assert form.wanted(["input", "chosen", "rejected"]) == ["input", "chosen", "rejected"]


def test_a_transcript_beside_its_prompt_is_no_answer():
    """As the whole conversation, and as what goes on after the prompt."""
    said = {
        "chosen": "\n\nHuman: Why?\n\nAssistant: Yes",
        "rejected": "\n\nHuman: Why?\n\nAssistant: No",
    }
    goes_on = {"chosen": "\n\nAssistant: Yes", "rejected": "\n\nAssistant: No"}
    for row in (
        {"prompt": "Why?", **said},
        {"prompt": "\n\nHuman: Why?", **goes_on},
    ):
        p, notes = read(row)
        assert (p.prompt, p.chosen, p.rejected, notes) == ("Why?", "Yes", ("No",), [])
    p, _ = read({"prompt": "Say 'Assistant: hi'.", "chosen": "Assistant: hi", "rejected": "No"})
    assert p.chosen == "Assistant: hi"  # one answer alone says it


def test_an_answer_that_repeats_its_prompt_may_differ_in_white_space():
    exact = {"prompt": "Why?", "chosen": "Why? Yes", "rejected": "Why? No"}
    row = {"prompt": " Why? ", "chosen": "Why? Yes", "rejected": "Why? No"}
    p, _ = read(row, first_rows=[exact, row])
    assert (p.chosen, p.rejected) == (" Yes", (" No",))


def test_earlier_turns_that_are_there_already_are_not_read_twice():
    earlier = [user("Hi"), assistant("Hello")]
    whole = {
        "prompt": "Why?", "chosen": [*earlier, user("Why?"), assistant("Yes")],
        "rejected": [*earlier, user("Why?"), assistant("No")],
    }  # fmt: skip
    given = (Turn("user", "Hi"), Turn("assistant", "Hello"))
    for row in (
        whole | {"history": earlier},
        {
            "messages": [*earlier, user("Why?")],
            "history": [["Hi", "Hello"]],
            "chosen": "Yes",
            "rejected": "No",
        },
        {"prompt": "Why?", "history": [["Hi", "Hello"]], "chosen": "Yes", "rejected": "No"},
    ):
        assert read(row)[0].history == given
    row = {"prompt": [SYSTEM, user("Why?")], "history": earlier, "chosen": "Yes", "rejected": "No"}
    assert read(row)[0].history == (Turn("system", "Be brief."), *given)


def test_what_a_model_thought_is_kept_or_refused():
    row = {"prompt": "Why?", "chosen": [assistant("Yes", thinking="Hm.")], "rejected": "No"}
    assert json.loads(read(row)[0].extras[0]) == {"reasoning_content": "Hm."}
    for more in ({"reasoning_details": [{"text": "Hm."}]}, {"videos": ["a.mp4"]}):
        with pytest.raises(DataError, match="cannot be read; put it in 'content'"):
            read(row | {"chosen": [assistant("Yes", **more)]})
    image = {"type": "image_url", "text": "", "image_url": "a.png"}
    with pytest.raises(DataError, match="a part of a message that is no text"):
        read(row | {"prompt": [user([{"type": "text", "text": "Why?"}, image])]})


def test_messages_kept_as_text_are_known_whatever_key_comes_first():
    chosen = json.dumps([{"id": 1, **user("Why?")}, {"id": 2, **assistant("Yes")}])
    rejected = json.dumps([{"id": 1, **user("Why?")}, {"id": 2, **assistant("No")}])
    p, _ = read({"prompt": "Why?", "chosen": chosen, "rejected": rejected})
    assert (p.prompt, p.chosen, p.rejected) == ("Why?", "Yes", ("No",))
    with pytest.raises(DataError, match="written as Python text"):
        read({"prompt": "Why?", "chosen": str(json.loads(chosen)), "rejected": rejected})
    for text in ('{"from": "Bonn", "to": "Ulm"}', "{'name': 'Ann', 'role': 'admin'}"):
        assert read({"prompt": "Why?", "chosen": text, "rejected": "No"})[0].chosen == text


def test_the_better_answers_own_text_may_sound_like_a_tie():
    row = {"prompt": "Why?", "response_1": "Both are equal.", "response_2": "Heads.",
           "preferred_response": "Both are equal."}  # fmt: skip
    p, notes = read(row)
    assert (p.chosen, p.rejected, notes) == ("Both are equal.", ("Heads.",), [])


def test_a_text_in_a_column_of_lists_is_a_bad_row():
    rows = [{"prompt": "Why?", "chosen": "Yes", "rejected": '["No"]'}] * 19
    bad = rows[0] | {"rejected": "No"}
    with pytest.raises(DataError, match="a JSON list of texts is needed"):
        read(bad, first_rows=[*rows, bad])
