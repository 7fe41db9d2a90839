"""Columns: which of them is what, by names and by first rows; what nobody claims is refused."""

import pytest

from data import DataError
from data.columns import describe, key_of_value, late_column, recognise, unclaimed, value_of
from data.names import plain
from data.sample import Sample

ANSWERS = {"response_a": "Yes", "response_b": "No"}


def form(*rows, given=None, every=False):
    return recognise(list(rows[0]), rows, given, "rows.csv", every)


def columns(*rows, given=None, every=False):
    return form(*rows, given=given, every=every).columns


def refused(*rows, given=None):
    with pytest.raises(DataError) as error:
        form(*rows, given=given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "chosen, rejected",
    [
        ("chosen", "rejected"),
        ("CHOSEN ", "Rejected"),
        ("chosen_response", "rejected_response"),
        ("response_chosen", "response_rejected"),
        ("preferredOutput", "nonPreferredOutput"),
        ("y_w", "y_l"),
        ("winning_answer", "losing_answer"),
        ("best completion", "worst completion"),
        ("positive", "negative"),
        ("response_j", "response_k"),
        ("chosen_messages", "rejected_messages"),
    ],
)
def test_pairs_by_the_names_people_use(chosen, rejected):
    found = form({rejected: "No", "prompt": "Why?", chosen: "Yes"})
    assert found.kind == "pairs"
    assert found.columns == {"prompt": ("prompt",), "chosen": (chosen,), "rejected": (rejected,)}


def test_truthfulqas_columns_however_the_header_is_written():
    row = {
        "Type": "A", "Category": "C", "Question": "Why?", "Best Answer ": "Yes",
        "Correct Answers": "Sure", "Incorrect Answers": "No", "Source": "https://example.org",
    }  # fmt: skip
    assert {role: plain(name) for role, (name,) in columns(row).items()} == {
        "prompt": "question", "category": "category", "chosen": "best_answer",
        "rejected": "incorrect_answers", "correct": "correct_answers",
    }  # fmt: skip


def test_correct_answers_are_truthfulqas_alone_unless_somebody_says_so():
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No", "correct_answers": ["Yes", "Sure"]}
    assert "'correct_answers' holds text that no role claims" in refused(row)
    assert columns(row, given="correct=correct_answers")["correct"] == ("correct_answers",)


def test_numbers_called_chosen_and_rejected_say_which_of_other_columns_is_meant():
    row = {"prompt": "Why?", "response_0": "No", "response_1": "Yes", "chosen": 1, "rejected": 0}
    found = form(row, row | {"chosen": 0, "rejected": 1})
    assert found.kind == "graded"
    assert found.columns["answers"] == ("response_0", "response_1")
    assert found.columns["winner"] == ("chosen",)
    assert (found.winner["0"], found.winner["1"]) == (0, 1)


@pytest.mark.parametrize(
    "winner, first, second",
    [
        ("winner", "a", "b"),
        ("winner", "A", "B"),
        ("winner", "response_a", "response_b"),
        ("winner", "model_a", "model_b"),
        ("preference", "first", "second"),
        ("better", "Response A", "Response B"),
    ],
)
def test_a_column_that_names_the_better_of_two(winner, first, second):
    rows = [{"prompt": "Why?", **ANSWERS, winner: said} for said in (first, second, "tie")]
    found = form(*rows)
    assert found.kind == "graded"
    assert found.columns == {
        "prompt": ("prompt",), "answers": ("response_a", "response_b"), "winner": (winner,),
    }  # fmt: skip
    assert (found.winner[key_of_value(first)], found.winner[key_of_value(second)]) == (0, 1)
    assert "tie" not in found.winner


def test_columns_of_answers_are_in_the_order_of_their_suffixes():
    row = {"prompt": "Why?", "answer_2": "b", "answer_1": "a", "winner": 2}
    assert columns(row)["answers"] == ("answer_1", "answer_2")
    row = {"prompt": "Why?", "responseB": "b", "responseA": "a", "winner": "A"}
    assert columns(row)["answers"] == ("responseA", "responseB")


def test_numbers_that_are_no_suffixes_could_mean_either_answer():
    rows = [{"prompt": "Why?", **ANSWERS, "label": label} for label in (0, 1)]
    said = refused(*rows)
    assert "'label' has the values 0, 1, and nothing says which answer they mean" in said
    assert "--columns winner=label:X/Y" in said and "'response_a'" in said
    found = form(*rows, given="winner=label:1/0")
    assert found.winner == {"1": 0, "0": 1} and found.columns["winner"] == ("label",)


def test_true_and_false_could_mean_either_answer():
    rows = [{"prompt": "Why?", **ANSWERS, "preferred": said} for said in (True, False)]
    assert "nothing says which answer they mean" in refused(*rows)


def test_shps_labels_are_1_where_a_is_preferred():
    rows = [
        {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": label,
         "score_A": 3 + label, "score_B": 4 - label}
        for label in (0, 1)
    ]  # fmt: skip
    found = form(*rows)
    assert found.winner == {"1": 0, "0": 1} and found.columns["prompt"] == ("history",)


def test_a_signed_preference_is_below_0_for_the_first_answer():
    rows = [
        {"context": "Why?", "response1": "a", "response2": "b", "overall_preference": number}
        for number in (-3, 0, 2)
    ]
    found = form(*rows)
    assert found.winner == {"-": 0, "+": 1}
    assert found.columns["prompt"] == ("context",)  # where no likelier one is


def test_a_winner_may_be_the_name_of_an_author_or_the_answers_own_text():
    row = {"prompt": "Why?", **ANSWERS, "model_a": "bat-1", "model_b": "bat-2", "winner": "bat-2"}
    found = form(row, row | {"winner": "bat-1"})
    assert (found.winner, found.named) == ({}, ("model_a", "model_b"))
    assert set(found.wanted(list(row))) == set(row)
    found = form({"prompt": "Why?", **ANSWERS, "better": "No"})
    assert (found.winner, found.named) == ({}, ())
    assert "nothing says" in refused({"prompt": "Why?", **ANSWERS, "better": "Maybe"})


def test_two_columns_that_disagree_about_the_winner_are_named():
    row = {"prompt": "Why?", **ANSWERS, "winner": "a", "preferred": "b"}
    said = refused(row)
    assert "'winner' and 'preferred' disagree" in said
    assert "--columns winner=winner or --columns winner=preferred" in said
    assert columns(row | {"preferred": "a"})["winner"] == ("winner",)
    assert columns(row, given="winner=preferred")["winner"] == ("preferred",)


def test_places_in_a_list_are_counted_from_what_the_values_show():
    rows = [{"prompt": "Why?", "responses": ["a", "b", "c"], "best": place} for place in (0, 2)]
    assert form(*rows).winner == {"0": 0, "1": 1, "2": 2}
    rows = [{"prompt": "Why?", "responses": ["a", "b", "c"], "best": place} for place in (1, 3)]
    assert form(*rows).winner == {"1": 0, "2": 1, "3": 2}
    unclear = [{"prompt": "Why?", "responses": ["a", "b", "c"], "best": place} for place in (1, 2)]
    assert "'best' has the values 1, 2" in refused(*unclear)  # from 0 or from 1?


@pytest.mark.parametrize(
    "grades, role",
    [("scores", "scores"), ("ratings", "scores"), ("rank", "ranks"), ("ranks", "ranks")],
)
def test_a_list_of_answers_with_a_list_of_grades(grades, role):
    row = {"prompt": "Why?", "responses": ["a", "b"], grades: [1, 2]}
    found = form(row)
    assert found.kind == "graded"
    assert found.columns == {"prompt": ("prompt",), "answers": ("responses",), role: (grades,)}


def test_a_column_of_answers_has_its_column_of_grades():
    row = {"prompt": "Why?", **ANSWERS, "score_b": 2, "score_a": 1}
    assert columns(row)["scores"] == ("score_a", "score_b")
    del row["score_b"]
    said = refused(row)
    assert "how good the answers in 'response_a', 'response_b' are" in said
    assert "--columns answers=response_a+response_b,winner=COLUMN" in said


def test_a_list_of_objects_with_grades_of_their_own():
    row = {"instruction": "Why?", "completions": [{"response": "a", "overall_score": 1}]}
    found = form(row)
    assert found.kind == "graded"
    assert found.columns == {"prompt": ("instruction",), "answers": ("completions",)}


def test_all_pairs_are_made_of_the_list_where_a_row_has_a_pair_too():
    row = {
        "prompt": "Do bats see?", "chosen": "They do", "rejected": "They are blind",
        "responses": ["They do", "Some do", "They are blind"], "scores": [3, 2, 1],
    }  # fmt: skip
    assert form(row).kind == "pairs"
    found = form(row, every=True)
    assert found.kind == "graded" and found.columns["answers"] == ("responses",)
    assert form({k: row[k] for k in ("prompt", "chosen", "rejected")}, every=True).kind == "pairs"


@pytest.mark.parametrize("label", [True, 1, "good", 0.5])
def test_one_answer_a_row_with_a_label(label):
    found = form({"prompt": "Why?", "completion": "Yes", "label": label})
    assert found.kind == "single"
    assert found.columns == {"prompt": ("prompt",), "completion": ("completion",),
                             "label": ("label",)}  # fmt: skip


def test_alpacas_input_belongs_to_its_instruction():
    row = {"instruction": "Add.", "input": "2 and 2", "chosen": "4", "rejected": "5"}
    assert columns(row)["prompt"] == ("instruction", "input")
    assert columns(row | {"input": ""})["prompt"] == ("instruction", "input")
    row = {"prompt": "Add 2 and 2.", "input": "2 and 2", "chosen": "4", "rejected": "5"}
    assert "'input' holds text" in refused(row | {"input": "3 and 3"})  # not in the prompt


def test_system_history_tools_and_category_stand_beside_the_prompt():
    row = {
        "question": "Why?", "system_prompt": "Be brief.", "history": [["Hi", "Hello"]],
        "tools": [{"name": "look"}], "category": "c", "chosen": "Yes", "rejected": "No",
    }  # fmt: skip
    assert list(columns(row).items()) == [
        ("prompt", ("question",)), ("system", ("system_prompt",)), ("history", ("history",)),
        ("tools", ("tools",)), ("category", ("category",)), ("chosen", ("chosen",)),
        ("rejected", ("rejected",)),
    ]  # fmt: skip


def test_a_prompt_that_is_empty_in_the_first_rows_gives_way_to_one_that_is_not():
    row = {"prompt": "", "question": "Why?", "chosen": "Yes", "rejected": "No"}
    assert columns(row)["prompt"] == ("question",)
    assert columns(row | {"question": ""})["prompt"] == ("prompt",)


def test_the_messages_within_an_object_are_the_prompt():
    inside = {"messages": [{"role": "user", "content": "Why?"}], "tools": [{"name": "look"}]}
    row = {"input": inside, "chosen": "Yes", "rejected": "No"}
    assert columns(row)["prompt"] == ("input.messages",)
    assert columns(row)["tools"] == ("input.tools",)
    row = {"data": inside, "chosen": "Yes", "rejected": "No"}
    given = columns(row, given="prompt=data.messages,tools=data.tools")
    assert given["prompt"] == ("data.messages",)
    assert value_of(row, "data.messages") == inside["messages"]
    assert value_of(row, "data.none") is None and value_of(row, "chosen.none") is None
    assert value_of({"a.b": 1, "a": {"b": 2}}, "a.b") == 1  # a column of that very name


# What no role claims


CONTEXT = {"prompt": "Who?", "context": "Bats fly.", "chosen": "Bats", "rejected": "Lead"}


def test_text_that_no_role_claims_is_refused_with_both_ways_on():
    said = refused(CONTEXT)
    assert said == (
        "rows.csv: 'context' holds text that no role claims, and an answer may rest on it; join it "
        "to the prompt: --columns prompt=prompt+context, or say that it is not read: --columns "
        "context=-"
    )
    assert columns(CONTEXT, given="prompt=prompt+context")["prompt"] == ("prompt", "context")
    assert "context" not in form(CONTEXT, given="context=-").wanted(list(CONTEXT))
    two = CONTEXT | {"passage": "Lead is heavy."}
    assert "'context', 'passage' hold text" in refused(two)
    assert "--columns context=-,passage=-" in refused(two)


def test_text_without_any_prompt_may_be_the_prompt():
    said = refused({"passage": "Bats fly.", "chosen": "Bats", "rejected": "Lead"})
    assert "make it the prompt: --columns prompt=passage" in said
    lists = Sample(["passage"], [{"passage": ["Bats fly.", "Lead is heavy."]}])
    assert unclaimed(["passage"], {}, lists).endswith("read: --columns passage=-")


@pytest.mark.parametrize(
    "value", [3, 0.5, True, None, "", "42", "2024-01-31", "https://example.org", "Who?", "Bats", []]
)
def test_what_says_nothing_more_than_the_row_is_left_unread(value):
    assert form(CONTEXT | {"context": value}).kind == "pairs"


def test_well_known_side_columns_are_left_unread():
    row = {k: v for k, v in CONTEXT.items() if k != "context"}
    for name in ("source", "prompt_id", "annotator_note", "model", "score_chosen"):
        assert name not in form(row | {name: "some words"}).wanted([*row, name])


def test_text_that_only_a_few_rows_have_is_text_all_the_same():
    assert "'context' holds text" in refused(*[CONTEXT | {"context": None}] * 99, CONTEXT)


def test_text_that_mostly_repeats_the_row_may_differ_in_a_twentieth():
    rows = [CONTEXT | {"prompt": f"Who is {n}?", "passage": f"Who is {n}?"} for n in range(20)]
    rows = [{name: v for name, v in row.items() if name != "context"} for row in rows]
    rows[7]["passage"] = "Bats fly."
    assert form(*rows).kind == "pairs"
    rows[8]["passage"] = "Lead is heavy."
    assert "'passage' holds text" in refused(*rows)


def test_text_that_is_the_same_in_nearly_every_row_tells_no_answer_apart():
    plain = {k: v for k, v in CONTEXT.items() if k != "context"}
    rows = [plain | {"passage": "Bats fly."}] * 9 + [plain | {"passage": "Lead is heavy."}]
    assert form(*rows).kind == "pairs"
    assert "'passage' holds text" in refused(*rows[8:])


def test_columns_without_any_text_yet_are_watched():
    row = CONTEXT | {"context": None, "source": None}
    found = form(row)
    assert found.wanted(list(CONTEXT)) == ["prompt", "chosen", "rejected", "context"]


def test_a_column_that_later_rows_bring_counts_if_it_has_text_that_matters():
    known = {"prompt", "chosen", "rejected"}
    assert late_column({"prompt": "a", "hint": "Bats fly."}, known) == "hint"
    for more in ({"hint": "42"}, {"hint": None}, {"source": "A book"}, {"responses": ["a", "b"]}):
        assert late_column({"prompt": "a"} | more, known) is None


# What somebody says


def test_columns_say_what_names_do_not_tell():
    row = {"ask": "Why?", "fine": "Yes", "poor": ["No"], "note": "Hm."}
    given = "prompt=ask, chosen=fine,rejected=poor,note=-"
    found = form(row, given=given)
    assert found.columns == {"prompt": ("ask",), "chosen": ("fine",), "rejected": ("poor",)}
    assert describe(found, list(row)) == (
        "prompt = 'ask', chosen = 'fine', rejected = 'poor'; not read: 'note'"
    )


def test_roles_that_are_not_said_are_found_by_name():
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No", "fine": "Sure"}
    found = form(row, given="chosen=fine,chosen=-")
    assert found.columns == {"prompt": ("prompt",), "chosen": ("fine",), "rejected": ("rejected",)}


def test_a_description_says_what_a_winners_values_mean():
    row = {"prompt": "Why?", **ANSWERS, "label": 1, "id": 3}
    found = form(row, given="winner=label:1/0")
    assert describe(found, list(row)) == (
        "prompt = 'prompt', answers = 'response_a' + 'response_b', winner = 'label' "
        "(0: 'response_b', 1: 'response_a'); not read: 'id'"
    )


@pytest.mark.parametrize(
    "names, given, complaint",
    [
        (["a", "b"], None, "rows.csv.* the columns 'a', 'b'.*--columns prompt="),
        (["prompt", "chosen"], None, "do not tell the chosen answer from the rejected"),
        (["prompt", "passage", "score"], None, "completion=A,label=B"),
        ([], None, "the columns none"),
        (["a", "b"], "chosen=a,rejected=c", "'rejected=c': rows.csv has the columns 'a', 'b'"),
        (["a", "b"], "best=a", "'best=a': write ROLE=COLUMN with prompt, system"),
        (["a", "b"], "chosen", "write ROLE=COLUMN"),
        (["a", "b"], "chosen=", "write ROLE=COLUMN"),
        (["a", "b"], "chosen=a", "do not tell"),
        (["a", "b"], "chosen=a,chosen=b,rejected=b", "chosen is named twice"),
        (["a", "b"], "answers=a+b,winner=a:x", "write winner=COLUMN:FIRST/SECOND"),
        (["a", "b", "c", "d"], "answers=a+b,scores=c+d,winner=c", "scores and winner both say"),
    ],
)
def test_columns_that_do_not_tell_are_refused_by_name(names, given, complaint):
    with pytest.raises(DataError, match=complaint):
        recognise(names, [], given, "rows.csv")


@pytest.mark.parametrize("name, value", [("has_image", True), ("num_images", 2), ("images", [])])
def test_a_flag_or_a_number_of_pictures_stops_nobody(name, value):
    row = {"prompt": "Who?", "chosen": "Bats", "rejected": "Lead"}
    assert columns(row | {name: value}) == columns(row)
    with pytest.raises(DataError, match="'image' may hold pictures"):
        form(row | {"image": "bat.png"})


@pytest.mark.parametrize("name", ["背景", "Контекст", "", "--"])
def test_a_name_in_any_script_hides_no_text(name):
    row = {key: value for key, value in CONTEXT.items() if key != "context"}
    assert f"{name!r} holds text" in refused(row | {name: "Bats fly."})
    assert form(row | {name: 3}).kind == "pairs"  # as the index that pandas writes


def by(first, second, won):
    """Two answers, who wrote them, and the author of the better one."""
    return {**ANSWERS, "prompt": "Why?", "model_a": first, "model_b": second, "winner": won}


def test_the_names_of_a_rows_own_authors_come_before_places():
    """Answer B is better in both rows; its author is called `model_a` in the first."""
    shuffled = by("model_b", "model_a", "model_a"), by("model_a", "model_b", "model_b")
    found = form(*shuffled)
    assert (found.winner, found.named) == ({}, ("model_a", "model_b"))
    places = by("gpt", "llama", "model_b"), by("llama", "gpt", "model_a")
    assert form(*places).winner == {"a": 0, "b": 1, "model_a": 0, "model_b": 1}


@pytest.mark.parametrize(
    "chosen, rejected",
    [("gpt", "llama"), ("Response A", "Response B"), ("a", "b"), ("response_a", "response_b")],
)
def test_columns_that_point_at_other_answers_are_no_answers(chosen, rejected):
    row = {k: v for k, v in by("gpt", "llama", "").items() if k != "winner"}
    found = form(row | {"chosen": chosen, "rejected": rejected})
    assert found.columns["answers"] == ("response_a", "response_b")
    assert found.columns["winner"] == ("chosen",)


@pytest.mark.parametrize("name", ["overall_preference", "preference_strength"])
def test_a_sign_that_is_never_below_zero_is_asked_for(name):
    rows = [{"prompt": "Why?", **ANSWERS, name: number} for number in (1, 2)]
    assert f"{name!r} has the values 1, 2" in refused(*rows)
    assert form(*rows, rows[0] | {name: -1}).winner == {"-": 0, "+": 1}


@pytest.mark.parametrize(
    "good, bad, better, worse",
    [("score_chosen", "score_rejected", 8, 2), ("chosen-rating", "rejected-rating", "4.5", "3"),
     ("rank_chosen", "rank_rejected", 1, 2)],
)  # fmt: skip
def test_grades_that_mostly_turn_the_pairs_round_are_refused_with_both_ways_on(
    good, bad, better, worse
):
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No"}
    right = row | {good: better, bad: worse}
    wrong = row | {good: worse, bad: better}
    assert form(right, right, wrong).kind == "pairs"  # as noise of people has it
    said = refused(right, wrong, wrong)
    assert f"{good!r} is the worse one in 2 of 3 rows, beside {bad!r}" in said
    assert "--columns chosen=chosen,rejected=rejected, or the other way round" in said
    given = "chosen=rejected,rejected=chosen"
    assert said.endswith(given) and columns(wrong, given=given)["chosen"] == ("rejected",)


def test_labels_that_mostly_turn_round_another_grade_are_refused():
    """Among answers to one prompt: 1 stands for toxic here."""
    rows = [
        {"prompt": "Why?", "response": text, "label": label, "reward": reward}
        for text, label, reward in (("Yes", 0, 3.1), ("No", 1, -2.0))
    ]
    assert "'label' and 'reward' disagree" in refused(*rows)
    assert columns(*rows, given="label=reward")["label"] == ("reward",)
    assert columns(*({**row, "label": 1 - row["label"]} for row in rows))["label"] == ("label",)


def test_the_value_that_names_the_better_answer_within_an_object_is_named():
    row = {"prompt": "Why?", **ANSWERS, "preference": {"selected": "left"}}
    assert "--columns winner=preference.selected" in refused(row)
    assert columns(row, given="winner=preference.selected")["winner"] == ("preference.selected",)


@pytest.mark.parametrize("odd", ["[]", "[null]", '["No", null]', ' [ "No" ]', "No"])
def test_one_odd_cell_leaves_a_column_of_lists_what_it_is(odd):
    rows = [{"prompt": "Why?", "chosen": "Yes", "rejected": '["No", "Never"]'}] * 19
    assert form(*rows, rows[0] | {"rejected": odd}).listed == ("rejected",)


@pytest.mark.parametrize("odd", ["""["It isn't", 'No']""", "['No'\n 'Never']", """['No', "a's"]"""])
def test_lists_as_python_writes_them_are_refused_beside_those_of_json(odd):
    rows = [{"prompt": "Why?", "chosen": "Yes", "rejected": '["No", "Never"]'}] * 19
    assert "lists written as Python text" in refused(*rows, rows[0] | {"rejected": odd})
