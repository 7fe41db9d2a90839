"""Against TRL's preprocessing: the same ids on clean rows, and which is right where it differs."""

from types import SimpleNamespace

import pytest
from conftest import CHAT_TEMPLATE, small_tokenizer

from data import Preference, TextSettings, Turn, encode
from data.columns import recognise
from data.parse import parse_row

pytestmark = pytest.mark.parity
trl = pytest.importorskip("trl")


@pytest.fixture(scope="module")
def tokenizer():
    """One that adds its own BOS, as Gemma's and Llama's do."""
    from tokenizers.processors import TemplateProcessing

    # TRL tokenizes a rendered chat as it stands, so that the template must not hold BOS as well
    made = small_tokenizer(chat_template=CHAT_TEMPLATE)
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    return made


def theirs(row, tokenizer):
    """(prompt, chosen, rejected) ids of a row as TRL's DPOTrainer prepares them."""
    from datasets import Dataset

    prepared = trl.DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer),
        Dataset.from_list([row]),
        tokenizer,
        SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start"),
        "train",
    )[0]
    return tuple(tuple(prepared[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))


def read(row):
    """The preference of one row."""
    return parse_row("row", row, recognise(list(row), [row]))[0]


def ours(row, tokenizer, template="plain"):
    preference = read(row)
    form = "{}" if template == "plain" else None
    text = TextSettings(template, prompt_format=form, answer_format=form)
    q = encode([preference], tokenizer, text).questions[0]
    return q.prompt, q.chosen, q.rejected[0]


TEXTS = [("Do bats see?", "Yes, they do", "No"), ("Who?\nSay", "The bats 🦇", "Nobody\n\nknows")]


@pytest.mark.parametrize("asked, good, bad", TEXTS)
def test_an_explicit_prompt_has_the_same_ids(tokenizer, asked, good, bad):
    row = {"prompt": f"Question: {asked}\nAnswer:", "chosen": f" {good}", "rejected": f" {bad}"}
    assert ours(row, tokenizer) == theirs(row, tokenizer)


@pytest.mark.parametrize("asked, good, bad", TEXTS)
def test_a_conversation_has_the_same_ids_up_to_its_stop_token(tokenizer, asked, good, bad):
    """TRL also scores what the template puts after the stop token, here a line break.

    A model that generates stops at the stop token: what follows is never its choice, so that it is
    not scored here. It is the same in both answers, and would only add noise to the margin.
    """

    def says(text):
        return [{"role": "assistant", "content": text}]

    prompt = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"}, {"role": "user", "content": asked},
    ]  # fmt: skip
    row = {"prompt": prompt, "chosen": says(good), "rejected": says(bad)}
    tail = tuple(tokenizer("\n", add_special_tokens=False).input_ids)
    mine, trls = ours(row, tokenizer, "chat"), theirs(row, tokenizer)
    assert mine[0] == trls[0]
    assert (mine[1] + tail, mine[2] + tail) == trls[1:]


def test_a_bos_written_in_the_text_is_doubled_by_trl_and_is_text_here(tokenizer):
    """Right is one BOS: two are a start that the model has never seen."""
    row = {"prompt": "<s>Question: Why?\nAnswer:", "chosen": " Yes", "rejected": " No"}
    assert theirs(row, tokenizer)[0].count(tokenizer.bos_token_id) == 2
    prompt = ours(row, tokenizer)[0]
    assert prompt.count(tokenizer.bos_token_id) == 1 and prompt[0] == tokenizer.bos_token_id
    assert tokenizer.decode(prompt[1:]) == row["prompt"]


def test_a_stop_token_written_in_an_answer_ends_it_for_trl_and_is_text_here(tokenizer):
    """Right is text: otherwise people's data decide where an answer ends."""
    row = {"prompt": "Why?", "chosen": " Yes</s>", "rejected": " No"}
    assert theirs(row, tokenizer)[1][-2:].count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(theirs(row, tokenizer)[1]) == " Yes</s>"
    assert tokenizer.decode(ours(row, tokenizer)[1]) == " Yes</s></s>"
    assert ours(row, tokenizer)[1].count(tokenizer.eos_token_id) == 1


def test_where_prompt_and_answer_fuse_trl_swallows_the_end_of_the_prompt():
    """Right is the prompt as it is at inference, whole and the same for every answer."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate("QA: yesno")}
    vocabulary |= {": ": len(vocabulary), "</s>": len(vocabulary) + 1}
    raw = Tokenizer(models.BPE(vocabulary, [(":", " ")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    row = {"prompt": "Q A:", "chosen": " yes", "rejected": " no"}
    letters = tuple(vocabulary[c] for c in "Q A:")
    assert theirs(row, tokenizer)[0] == letters[:-1]  # its ':' went into the answers
    assert ours(row, tokenizer)[0] == letters
    assert tokenizer.decode(ours(row, tokenizer)[1]).replace(" ", "") == "yes</s>"


def test_an_implied_prompt_swallows_shared_openings_in_trl_and_stops_at_a_word_here(tokenizer):
    """TRL cuts where the letters first differ, within a word; the same loss, other tokens."""
    row = {"chosen": "Why? Nonsense", "rejected": "Why? No"}
    extracted = trl.extract_prompt(row)
    assert (extracted["prompt"], extracted["rejected"]) == ("Why? N", "o")
    preference = read(row)
    assert (preference.prompt, preference.chosen) == ("Why?", " Nonsense")
    assert preference == Preference("Why?", " Nonsense", (" No",), verbatim=True)


def test_what_the_rows_of_a_conversation_say_is_read_the_same():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
             {"role": "user", "content": "Why?"}]  # fmt: skip
    answers = [[{"role": "assistant", "content": text}] for text in ("Yes", "No")]
    row = {"chosen": turns + answers[0], "rejected": turns + answers[1]}
    extracted = trl.extract_prompt(row)
    assert extracted["prompt"] == turns and extracted["chosen"] == answers[0]
    preference = read(row)
    history = (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert preference == Preference("Why?", "Yes", ("No",), history=history)
