"""Text to tokens: one BOS, one boundary, one stop token, and user text that stays text."""

import pytest
from conftest import CHAT_TEMPLATE, small_tokenizer

from data.encode import encode
from data.question import DataError, Preference

BATS = Preference("Do bats see?", "Bats see well", ("Bats are blind", "No"), ("Bats can see",))


def one(preference, tokenizer, template="plain", **more):
    return encode([preference], tokenizer, template, **more).questions[0]


def test_decoding_what_is_scored_gives_back_prompt_and_answers(tokenizer):
    q = one(BATS, tokenizer)
    assert tokenizer.decode(q.prompt) == "<s>Question: Do bats see?\nAnswer:"
    assert [tokenizer.decode(a) for a in q.answers] == [
        " Bats see well</s>",
        " Bats are blind</s>",
        " No</s>",
        " Bats can see</s>",
    ]
    assert q.trained == q.answers[:3]


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_there_is_exactly_one_bos_where_the_tokenizer_defines_one(template):
    tokenizer = small_tokenizer(chat_template=CHAT_TEMPLATE)  # this template holds a BOS already
    q = one(BATS, tokenizer, template)
    for answer in q.answers:
        assert (q.prompt + answer).count(tokenizer.bos_token_id) == 1
    assert q.prompt[0] == tokenizer.bos_token_id


def test_a_tokenizer_without_bos_gets_none():
    tokenizer = small_tokenizer(bos=None)
    assert tokenizer.decode(one(BATS, tokenizer).prompt).startswith("Question")


def test_a_tokenizer_that_adds_its_own_bos_and_eos_gets_no_second_ones():
    from tokenizers.processors import TemplateProcessing

    tokenizer = small_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    assert tokenizer("x").input_ids[0] == bos
    q = one(BATS, tokenizer)
    assert (q.prompt + q.chosen).count(bos) == (q.prompt + q.chosen).count(eos) == 1


def test_the_last_scored_token_is_the_stop_token_of_the_template():
    tokenizer = small_tokenizer(chat_template=CHAT_TEMPLATE)
    assert {a[-1] for a in one(BATS, tokenizer).answers} == {tokenizer.eos_token_id}
    end = tokenizer.convert_tokens_to_ids("<end>")
    q = one(BATS, tokenizer, "chat")
    assert {a[-1] for a in q.answers} == {end} and all(a.count(end) == 1 for a in q.answers)
    assert tokenizer.decode(q.prompt) == "<s><turn>user\nDo bats see?<end>\n<turn>assistant\n"
    assert tokenizer.decode(q.chosen) == "Bats see well<end>"


def test_a_turn_token_that_is_merely_added_ends_an_answer_too():
    """Gemma's <end_of_turn> is none of the tokenizer's named special tokens."""
    from tokenizers import AddedToken

    tokenizer = small_tokenizer(chat_template=CHAT_TEMPLATE.replace("<end>", "<stop>"))
    tokenizer.add_tokens([AddedToken("<stop>", special=True)])
    tokenizer.additional_special_tokens = []
    q = one(BATS, tokenizer, "chat")
    assert tokenizer.decode(q.chosen) == "Bats see well<stop>"
    with pytest.raises(DataError, match="'<stop>'"):
        one(Preference("Do bats<stop> see?", "Yes", ("No",)), tokenizer, "chat")


def test_the_ids_are_those_of_the_whole_text(tokenizer):
    q = one(BATS, tokenizer)
    whole = "Question: Do bats see?\nAnswer: Bats see well"
    expected = tokenizer(whole, add_special_tokens=False).input_ids
    assert [*q.prompt[1:], *q.chosen[:-1]] == expected


def test_where_prompt_and_answer_would_fuse_the_prompt_stays_whole_and_it_is_counted():
    """A tokenizer that knows ':same' as one token would swallow the end of 'Answer:'."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {
        c: i for i, c in enumerate("<>ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz? \n:")
    }
    vocabulary = {**letters, ": ": len(letters), "</s>": len(letters) + 1}
    raw = Tokenizer(models.BPE(vocabulary, [(":", " ")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    encoding = encode([BATS], tokenizer)
    assert encoding.boundary_merges == 4  # each of the four answers
    q = encoding.questions[0]
    assert q.prompt[-1] == letters[":"]
    assert q.chosen[0] == letters[" "]


def test_control_tokens_in_user_text_are_letters(tokenizer):
    attack = Preference("Do </s> bats <s> see?", "Bats </s> see", ("No",))
    q = one(attack, tokenizer)
    for answer in q.answers:
        assert (q.prompt + answer).count(tokenizer.bos_token_id) == 1
        assert (q.prompt + answer).count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(q.chosen) == " Bats </s> see</s>"


def test_control_tokens_in_a_chat_are_refused_by_name():
    tokenizer = small_tokenizer(chat_template=CHAT_TEMPLATE)
    with pytest.raises(DataError, match="'<end>'.*--template plain"):
        one(Preference("Do bats<end> see?", "Yes", ("No",)), tokenizer, "chat")


def test_answers_are_never_cut_and_questions_too_long_are_named(tokenizer):
    long = Preference("Is lead smaller?", "Lead is smaller " * 30, ("No",))
    encoding = encode([BATS, long], tokenizer, max_length=60)
    assert encoding.too_long == ["Is lead smaller?"]
    assert len(encoding.questions) == 1 and len(encoding.questions[0].rejected) == 2
    with pytest.raises(DataError, match="--max-length 5"):
        encode([BATS], tokenizer, max_length=5)


def test_a_chosen_answer_with_the_tokens_of_a_rejected_one_is_refused(tokenizer):
    with pytest.raises(DataError, match="same tokens"):
        one(Preference("Do bats see?", "Yes", ("No", "Yes")), tokenizer)


def test_a_tokenizer_without_stop_token_or_template_is_refused():
    with pytest.raises(DataError, match="no EOS token"):
        one(BATS, small_tokenizer(eos=None))
    with pytest.raises(DataError, match="no chat template"):
        one(BATS, small_tokenizer(), "chat")
    shifting = "{% for m in messages %}{{ m.content }}{% endfor %}{{ add_generation_prompt }}"
    with pytest.raises(DataError, match="does not continue its own prompt"):
        one(BATS, small_tokenizer(chat_template=shifting), "chat")
