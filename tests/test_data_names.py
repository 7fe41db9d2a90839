"""Names: how they are compared, and what the lists of words take for what."""

import pytest

from data.names import BAD, GOOD, NO_TEXT, beside, of_answers, plain, says, words


def test_case_spaces_and_dashes_in_a_name_do_not_matter():
    assert plain(" Best Answer ") == plain("best-answer") == plain("BEST_ANSWER") == "best_answer"
    assert plain("user  prompt") == "user_prompt"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("chosen_response", ["chosen", "response"]),
        ("chosenResponse", ["chosen", "response"]),
        ("Response A", ["response", "a"]),
        ("nonPreferred", ["nonpreferred"]),  # one word: it means the opposite of its second half
        ("non_preferred", ["nonpreferred"]),
        ("dis-preferred", ["dispreferred"]),
        ("un_chosen_answer", ["unchosen", "answer"]),
        ("canon_text", ["canon", "text"]),  # this "non" begins no word
        ("?", []),
    ],
)
def test_the_words_of_a_name(name, expected):
    assert words(name) == expected


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("chosen", True, False),
        ("y_w", True, False),
        ("y_l", False, True),
        ("good_completion", True, False),
        ("worse_reply", False, True),
        ("non-preferred output", False, True),
        ("response", False, False),  # of neither
        ("chosen_score", False, False),  # no answer
        ("chosen_rejected", False, False),  # of both
        ("", False, False),
    ],
)
def test_a_name_says_a_side_if_it_has_its_word_and_nouns_alone(name, good, bad):
    assert (says(name, GOOD), says(name, BAD)) == (good, bad)


def test_names_of_answers_whatever_they_are_worth():
    for name in ("responses", "Model Answers", "candidates", "all_generated_responses", "output"):
        assert of_answers(name), name
    for name in ("response_scores", "response_a", "model", "context", ""):
        assert not of_answers(name), name


def test_side_columns_are_known_by_their_last_word_or_by_what_they_are_about():
    for name in (
        "prompt_id", "Source", "score_A", "root_id_2", "rating of the answer", "language",
        "preference_reason", "annotator_name", "overall_preference", "created-at-timestamp",
    ):  # fmt: skip
        assert beside(name), name
    for name in ("context", "source_text", "background", "id_card", "a"):
        assert not beside(name), name


def test_numbers_dates_addresses_and_hashes_say_nothing_that_an_answer_could_rest_on():
    for text in (
        "", " ", "42", "-3.5", "12,000", "1e-5", "80%", "2024-01-31", "2024/01/31 10:00:59", "True",
        "no", "N/A", "https://example.org/a?b=c", "0123abcd", "12ab-34cd-56ef",
    ):  # fmt: skip
        assert NO_TEXT.fullmatch(text), text
    for text in ("42 bats", "No, never", "see https://example.org", "abc", "Why?", "a-b"):
        assert not NO_TEXT.fullmatch(text), text
