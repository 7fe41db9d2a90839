"""Forms: every kind of file that people keep preferences in is read right, or refused with advice.

The files in `forms/` are invented rows; their names and nesting are those of public data sets.
`READINGS` has the whole of what each of them says, and `RUNS` how it becomes text. `KINDS` has the
same kinds once more under other names. `REFUSED` has what cannot be told apart: the test takes the
advice out of each message, follows it, and expects what it promised.
"""

import gzip
import json
import re
import shlex
from pathlib import Path

import pyarrow
import pytest
from conftest import CHAT_TEMPLATE, small_tokenizer

from data import DataError, Preference, Turn, read_preferences
from data.mixture import ReadSettings, read_sources
from data.question import CONTRADICTED, NOT_A_TURN, REPEATED, TIED, TOO_LONG, UNPAIRED
from data.table import count_notes
from run.__main__ import main

FORMS = Path(__file__).with_name("forms")
TOOL_TEMPLATE = FORMS / "chatml_tools.jinja"

TIDES = (
    "Why do tides rise twice a day?",
    "The moon pulls the near ocean, and a second bulge forms on the far side.",
    "The wind pushes the sea up every morning and evening.",
)
BASIL = (
    "How should I store basil?",
    "Stand the stems in water at room temperature.",
    "Put it in the freezer door without a bag.",
)
PRIME = ("Name a prime number above ten.", "Thirteen is one.", "Fifteen is one.")
METAL = (
    "Which metal is liquid at room temperature?",
    "Mercury is liquid then.",
    "Mercury is solid; only lead is liquid then.",
)
SPIDER = ("How many legs has a spider?", "A spider has eight legs.", "A spider has six legs.")
COPPER = (
    "What colour is copper oxide on old roofs?",
    "It turns green over the years.",
    "It turns bright blue within a day.",
)
THREE, SIX = (TIDES, BASIL, PRIME), (TIDES, BASIL, PRIME, METAL, SPIDER, COPPER)
BRIEF = (Turn("system", "Answer in one short sentence."),)
LAMP = (
    '[{"function": {"description": "Switch the lamp.", "name": "lamp", "parameters": '
    '{"properties": {"on": {"type": "boolean"}}, "type": "object"}}, "type": "function"}]'
)
LAMP_ON = (
    '{"tool_calls": [{"function": {"arguments": "{\\"on\\": true}", "name": "lamp"}, "id": "1", '
    '"type": "function"}]}'
)
LAMP_OFF = LAMP_ON.replace("true", "false")
MOON = '{"reasoning_content": "Let me think of the moon."}'
NO_IDEA = '{"reasoning_content": "No idea."}'


def asks(prompt, chosen, *rejected, **more):
    return Preference(prompt, chosen, rejected, **more)


def between(three, middle, grades):
    """Three questions whose answers have three grades: `middle` lies between good and bad."""
    return [asks(p, good, middle, bad, grades=grades) for p, good, bad in three]


PLAIN_THREE = [asks(*one) for one in THREE]
PLAIN_SIX = [asks(*one) for one in SIX]
GREETED = (Turn("user", "Hello"), Turn("assistant", "Hi, what do you need?"))
GREETED_SHORTLY = (Turn("user", "Hello"), Turn("assistant", "Hi."))
CACTUS = (*BRIEF, Turn("user", "How often do I water a cactus?"),
          Turn("assistant", "Every two weeks."))  # fmt: skip
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
EXTRA_ID = "<extra_id_0>System\n\n<extra_id_1>User\n{}\n<extra_id_1>Assistant\n"

# file -> (all of its questions, what was noted: {reason: (how often, the first lines)})
READINGS = {
    "ultrafeedback_binarized.jsonl": (PLAIN_THREE, {}),
    "ultrafeedback_openbmb.jsonl": (between(THREE, "I am not sure.", (9.0, 5.0, 3.0)), {}),
    "hh_rlhf.jsonl": ([asks(*one, history=GREETED) for one in THREE], {}),
    "intel_orca_dpo_pairs.jsonl": (
        [asks(*TIDES), asks(*BASIL, history=BRIEF), asks(*PRIME, history=BRIEF)], {},
    ),
    "argilla_ultrafeedback_v1.jsonl": (PLAIN_THREE, {}),
    "tulu3_preference.jsonl": (
        [*PLAIN_THREE, asks("And in winter?", "Hardly at all.", "Twice a day.", history=CACTUS)],
        {},
    ),
    "trl_conversational_explicit.jsonl": (PLAIN_THREE, {}),
    "trl_conversational_implicit.jsonl": (PLAIN_THREE, {}),
    "trl_standard_explicit.jsonl": (
        [
            asks("The kettle on the stove is", " boiling now.", " a kind of bird."),
            asks("POST: my cat hides under the bed since we moved.\n\nTL;DR:",
                 " Cat hides since the move.", " I own a boat."),
            asks("Red and blue make", " purple.", " seven."),
        ],
        {},
    ),
    "onpolicy_with_all_responses.jsonl": (PLAIN_THREE, {}),
    "llamafactory_alpaca_no_input.jsonl": (PLAIN_THREE, {}),
    "llamafactory_alpaca_with_input.jsonl": (
        [
            asks("Translate into German.\nGood morning, neighbour.", "Guten Morgen, Nachbar.",
                 "Gute Nacht, Bruder."),
            asks("Translate into German.\nThe bread is fresh.", "Das Brot ist frisch.",
                 "Das Brett ist flach."),
            asks("Count the words.\none two three four", "Four.", "Seven."),
            asks("Give the opposite.\nnarrow", "Wide.", "Thin."),
            asks("Which season is this?\nSnow lies on the roofs.", "Winter.", "Summer."),
        ],
        {},
    ),
    "distilabel_intel_orca_input.jsonl": (
        [
            asks("Which city is the capital of Norway?", "The capital of Norway is Oslo.",
                 "The capital of Norway is Bergen.", history=BRIEF),
            asks(*SPIDER, history=BRIEF),
            asks("What is the chemical sign of iron?", "It is Fe.", "It is Ir.", history=BRIEF),
            asks("Is a whale a fish?", "No, it is a mammal.", "Yes, and it has gills.",
                 history=BRIEF),
            asks("What boils at 100 C?", "Water boils at that temperature at sea level.",
                 "Water never boils.", history=BRIEF),
        ],
        {},
    ),
    "trl_tools_column_text_answers.jsonl": (
        [
            asks("Is there a lamp tool?", "Yes, I can switch the lamp.", "No, I have no tools.",
                 tools=LAMP),
            asks("Which tools are there?", "None.", "A hammer."),
            asks("Can you see the clock?", "No.", "It is noon."),
        ],
        {},
    ),
    "pretemplated_chatml.jsonl": (
        [asks(CHATML.format(p), f"{c}<|im_end|>", f"{r}<|im_end|>") for p, c, r in THREE], {},
    ),
    "llamafactory_sharegpt.jsonl": ([asks(*one, history=GREETED_SHORTLY) for one in THREE], {}),
    "axolotl_chat_template.jsonl": ([asks(*one, history=BRIEF) for one in THREE], {}),
    "openai_fireworks_together.jsonl": (PLAIN_THREE, {}),
    "shp.jsonl": ([asks(*BASIL, "Dry it in the oven."), asks(*TIDES)], {}),
    "pku_saferlhf.jsonl": (PLAIN_THREE, {}),
    "nectar.jsonl": (between(THREE, "I would have to guess.", (-1.0, -2.0, -3.0)), {}),
    "helpsteer2_preference.jsonl": (PLAIN_THREE, {TIED: (1, [4])}),
    "stack_exchange_paired.jsonl": (PLAIN_THREE, {}),
    "kto_trl.jsonl": (PLAIN_THREE, {}),
    "kto_llamafactory.jsonl": (PLAIN_THREE, {}),
    "openai_tool_calls.jsonl": (
        [
            asks("Lights on, please.", "", "", tools=LAMP, extras=(LAMP_ON, LAMP_OFF)),
            asks("Lights on, please.", "They are on.", "I cannot.", tools=LAMP, since=(
                Turn("assistant", "", LAMP_ON), Turn("tool", "done", '{"tool_call_id": "1"}'),
            )),
            asks("Off again.", "", "No.", tools=LAMP, extras=(LAMP_OFF, "")),
        ],
        {},
    ),
    "thinking_field.jsonl": ([asks(*one, extras=(MOON, NO_IDEA)) for one in THREE], {}),
    "sharegpt_text_answers.jsonl": (PLAIN_SIX, {}),
    "object_of_columns.json": (PLAIN_SIX, {}),
    "pretemplated_extra_id.jsonl": (
        [asks(EXTRA_ID.format(p), f"{c}\n<extra_id_1>", f"{r}\n<extra_id_1>") for p, c, r in SIX],
        {},
    ),
    "one_row.jsonl": ([asks(*TIDES)], {}),
    "few_after_repetitions.jsonl": ([asks(*TIDES), asks(*BASIL)], {REPEATED: (38, [3, 5, 7])}),
    "thinking_inside_answers.jsonl": (
        [asks(p, f"<think>Let me see. {c}</think>", f"<think>Hm.</think>{r}") for p, c, r in SIX],
        {},
    ),
}  # fmt: skip


def notes_of(reading):
    """{reason: (how often, the lines or rows of the first ones)}"""
    found = count_notes(reading.preferences.dataset)
    return {
        reason: (count, [int(re.search(r", (?:line|row) (\d+)", place)[1]) for place in places])
        for reason, (count, places) in found.items()
    }


def test_every_file_is_in_the_table():
    files = {path.name for path in FORMS.glob("*.json*")}
    assert files == {*READINGS, "context_column.jsonl"}  # that one is refused, below


@pytest.mark.parametrize("name", READINGS)
def test_a_public_form_is_read_whole_and_right_without_a_flag(name):
    questions, notes = READINGS[name]
    reading = read_preferences(str(FORMS / name))
    assert list(reading.preferences) == questions
    assert notes_of(reading) == notes
    where = "row" if name == "object_of_columns.json" else "line"
    assert reading.preferences[0].place == f"{FORMS / name}, {where} 1"


@pytest.mark.parametrize("name", READINGS)
def test_the_right_answer_has_the_highest_grade_whatever_tells_it(name):
    for p in read_preferences(str(FORMS / name)).preferences:
        assert all(p.levels[0] > level for level in p.levels[1:])  # no correct ones beside it
        assert list(p.levels) == sorted(p.levels, reverse=True)


def test_all_answers_of_an_on_policy_set_are_read_by_their_scores_when_asked_for():
    reading = read_preferences(str(FORMS / "onpolicy_with_all_responses.jsonl"), every=True)
    assert list(reading.preferences) == between(THREE, "No idea.", (0.9, 0.1, -0.4))


def test_the_safer_answer_is_read_when_asked_for(tmp_path):
    lines = (FORMS / "pku_saferlhf.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows[0]["safer_response_id"] = 1  # the first row's better answer is not its safer one
    path = write(tmp_path, rows)
    reading = read_preferences(path, "winner=safer_response_id")
    prompt, better, safer = TIDES
    assert triples(reading) == [(prompt, safer, better), BASIL, PRIME]
    assert triples(read_preferences(path)) == [TIDES, BASIL, PRIME]


def conversation(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


RATED = {  # columns of two of the Hub's data sets, by their cards, that no file of `forms/` has
    "argilla/ultrafeedback-binarized-preferences-cleaned": lambda prompt, chosen, rejected: {
        "source": "evol_instruct", "prompt": prompt, "chosen": conversation(prompt, chosen),
        "chosen-rating": 5.0, "chosen-model": "m1", "rejected": conversation(prompt, rejected),
        "rejected-rating": 3.75, "rejected-model": "m2",
    },
    "argilla/dpo-mix-7k": lambda prompt, chosen, rejected: {
        "dataset": "capybara", "chosen": conversation(prompt, chosen),
        "rejected": conversation(prompt, rejected), "chosen_rating": 5.0, "rejected_rating": 4.0,
    },
}  # fmt: skip
NAMED = {
    "HuggingFaceH4/ultrafeedback_binarized": "ultrafeedback_binarized.jsonl",
    "Intel/orca_dpo_pairs": "intel_orca_dpo_pairs.jsonl",
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": "tulu3_preference.jsonl",
    "Anthropic/hh-rlhf": "hh_rlhf.jsonl",
    "PKU-Alignment/PKU-SafeRLHF": "pku_saferlhf.jsonl",
}


def test_every_data_set_that_the_guide_names_has_rows_here():
    guide = (FORMS.parents[1] / "docs" / "guide.md").read_text(encoding="utf-8")
    table = guide.split("### Data sets of the Hub\n")[1].split("\n### ")[0]
    named = re.findall(r"^\| `([\w.-]+/[\w.-]+)", table, re.MULTILINE)
    assert set(named) == {*RATED, *NAMED}
    assert set(NAMED.values()) <= set(READINGS)  # each of which is read right, above


@pytest.mark.parametrize("name", RATED)
def test_conversations_with_their_ratings_are_read_without_a_flag(name, tmp_path):
    path = write(tmp_path, [RATED[name](*one) for one in THREE])
    assert list(read_preferences(path).preferences) == PLAIN_THREE


def form(name):
    return str(FORMS / name)


def test_several_forms_of_the_same_questions_meet_in_them():
    names = ["stack_exchange_paired.jsonl", "kto_trl.jsonl", "hh_rlhf.jsonl", "shp.jsonl"]
    reading = read_sources([form(name) for name in names])
    greeted = [asks(*one, history=GREETED) for one in THREE]  # another history: other questions
    basil = asks(*BASIL, "Dry it in the oven.")
    assert list(reading.preferences) == [asks(*TIDES), basil, asks(*PRIME), *greeted]
    assert count_notes(reading.preferences.dataset)[REPEATED][0] == 3 + 2
    assert reading.parts == tuple((form(n), k) for n, k in zip(names, (3, 3, 3, 2), strict=True))


def test_what_columns_say_is_said_to_the_sources_that_have_them():
    given = ReadSettings(columns="context=-,winner=safer_response_id")
    names = ("context_column.jsonl", "pku_saferlhf.jsonl", "one_row.jsonl")
    reading = read_sources([form(name) for name in names], given)
    assert list(reading.preferences) == PLAIN_SIX
    assert "not read: 'context'" in reading.columns
    assert "winner = 'safer_response_id'" in reading.columns


# What the command says of each file, and the text that is trained on.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tokenizer without a chat template, which knows the control tokens of two families."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = small_tokenizer()
    more = ["<turn>", "<end>", "<|im_start|>", "<|im_end|>", "<extra_id_0>", "<extra_id_1>"]
    tokenizer.add_special_tokens({"additional_special_tokens": more})
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return folder


def shown(said):
    """[(heading, text)] of what the command printed."""
    lines = [line for line in said.splitlines() if line[:12].strip()]
    return [(line[:12].strip(), line[12:]) for line in lines]


def text_of(brackets):
    """What the scored tokens say: `[ The][ moon][«</s>»]`."""
    return brackets[1:-1].replace("][", "")


ALL = ("--eval-fraction", "0")
TOOLS = (*ALL, "--chat-template", str(TOOL_TEMPLATE))
QUESTION, BOS = "Question: {}\\nAnswer:", "«<s>»"
SHORTLY = "Answer in one short sentence.\\n\\n"
TURN, END = "«<|im_start|>»{}\\n", "«<|im_end|>»"
ASKED = TURN.format("user") + "{}" + END + "\\n" + TURN.format("assistant")
LAMP_SYSTEM = TURN.format("system") + "Tools: lamp" + END + "\\n"


def plainly(one, before=""):
    """Prompt, chosen and first rejected answer as the plain template has them."""
    prompt, chosen, rejected = one
    asked = BOS + before + QUESTION.format(prompt)
    return asked, f" {chosen}«</s>»", f" {rejected}«</s>»"


def joined(prompt, chosen, rejected, stop="«</s>»", bos=BOS):
    return bos + prompt, chosen + stop, rejected + stop


PLAIN = plainly(TIDES)
CALL = '<call>{"arguments": {"on": %s}, "name": "lamp"}</call>'

# (file, flags, questions, pairs, the first question's texts)
RUNS = [
    ("ultrafeedback_binarized.jsonl", ALL, 3, 3, PLAIN),
    ("ultrafeedback_openbmb.jsonl", ALL, 3, 6, plainly((*TIDES[:2], "I am not sure."))),
    ("ultrafeedback_openbmb.jsonl", (*ALL, "--pairs", "all"), 3, 9,
     plainly((*TIDES[:2], "I am not sure."))),
    ("hh_rlhf.jsonl", ALL, 3, 3,
     plainly(TIDES, QUESTION.format("Hello") + " Hi, what do you need?\\n\\n")),
    ("intel_orca_dpo_pairs.jsonl", ALL, 3, 3, PLAIN),
    ("argilla_ultrafeedback_v1.jsonl", ALL, 3, 3, PLAIN),
    ("tulu3_preference.jsonl", ALL, 4, 4, PLAIN),
    ("trl_conversational_explicit.jsonl", ALL, 3, 3, PLAIN),
    ("trl_conversational_implicit.jsonl", ALL, 3, 3, PLAIN),
    ("trl_standard_explicit.jsonl", (*ALL, "--template", "none"), 3, 3,
     joined("The kettle on the stove is", " boiling now.", " a kind of bird.")),
    ("trl_standard_explicit.jsonl", (*ALL, "--template", "raw"), 3, 3,
     joined("The kettle on the stove is", " boiling now.", " a kind of bird.")),
    ("onpolicy_with_all_responses.jsonl", ALL, 3, 3, PLAIN),
    ("onpolicy_with_all_responses.jsonl", (*ALL, "--pairs", "all"), 3, 9,
     plainly((*TIDES[:2], "No idea."))),
    ("onpolicy_with_all_responses.jsonl", (*ALL, "--loss", "ranking"), 3, 9,
     plainly((*TIDES[:2], "No idea."))),
    ("llamafactory_alpaca_no_input.jsonl", ALL, 3, 3, PLAIN),
    ("llamafactory_alpaca_with_input.jsonl", ALL, 5, 5,
     plainly(("Translate into German.\\nGood morning, neighbour.", "Guten Morgen, Nachbar.",
              "Gute Nacht, Bruder."))),
    ("distilabel_intel_orca_input.jsonl", ALL, 5, 5,
     plainly(("Which city is the capital of Norway?", "The capital of Norway is Oslo.",
              "The capital of Norway is Bergen."), SHORTLY)),
    ("trl_tools_column_text_answers.jsonl", TOOLS, 3, 3,
     joined(LAMP_SYSTEM + ASKED.format("Is there a lamp tool?"), "Yes, I can switch the lamp.",
            "No, I have no tools.", END, "")),
    ("pretemplated_chatml.jsonl", (*ALL, "--template", "raw"), 3, 3,
     joined(ASKED.format(TIDES[0]), *TIDES[1:], END)),
    ("pretemplated_chatml.jsonl", (*ALL, "--template", "none"), 3, 3,
     joined(CHATML.format(TIDES[0]).replace("\n", "\\n"), *(f"{a}<|im_end|>" for a in TIDES[1:]))),
    ("llamafactory_sharegpt.jsonl", ALL, 3, 3,
     plainly(TIDES, QUESTION.format("Hello") + " Hi.\\n\\n")),
    ("axolotl_chat_template.jsonl", ALL, 3, 3, plainly(TIDES, SHORTLY)),
    ("openai_fireworks_together.jsonl", ALL, 3, 3, PLAIN),
    ("openai_fireworks_together.jsonl", TOOLS, 3, 3,
     joined(ASKED.format(TIDES[0]), *TIDES[1:], END, "")),
    ("shp.jsonl", ALL, 2, 3, plainly(BASIL)),
    ("pku_saferlhf.jsonl", ALL, 3, 3, PLAIN),
    ("nectar.jsonl", ALL, 3, 6, plainly((*TIDES[:2], "I would have to guess."))),
    ("nectar.jsonl", (*ALL, "--pairs", "all"), 3, 9,
     plainly((*TIDES[:2], "I would have to guess."))),
    ("helpsteer2_preference.jsonl", ALL, 3, 3, PLAIN),
    ("stack_exchange_paired.jsonl", ALL, 3, 3, PLAIN),
    ("kto_trl.jsonl", ALL, 3, 3, PLAIN),
    ("kto_llamafactory.jsonl", ALL, 3, 3, PLAIN),
    ("openai_tool_calls.jsonl", TOOLS, 3, 3,
     joined(LAMP_SYSTEM + ASKED.format("Lights on, please."), CALL % "true", CALL % "false", END,
            "")),
    ("thinking_field.jsonl", TOOLS, 3, 3,
     joined(ASKED.format(TIDES[0]), f"<think>Let me think of the moon.</think>\\n{TIDES[1]}",
            f"<think>No idea.</think>\\n{TIDES[2]}", END, "")),
    ("sharegpt_text_answers.jsonl", ALL, 6, 6, PLAIN),
    ("object_of_columns.json", ALL, 6, 6, PLAIN),
    ("pretemplated_extra_id.jsonl", (*ALL, "--template", "raw"), 6, 6,
     joined("«<extra_id_0>»System\\n\\n«<extra_id_1>»User\\n" + TIDES[0]
            + "\\n«<extra_id_1>»Assistant\\n", *TIDES[1:], "\\n«<extra_id_1>»")),
    ("one_row.jsonl", ALL, 1, 1, PLAIN),
    ("few_after_repetitions.jsonl", ALL, 2, 2, PLAIN),
    ("thinking_inside_answers.jsonl", ALL, 6, 6,
     plainly((TIDES[0], f"<think>Let me see. {TIDES[1]}</think>",
              f"<think>Hm.</think>{TIDES[2]}"))),
    ("thinking_inside_answers.jsonl", TOOLS, 6, 6,
     joined(ASKED.format(TIDES[0]), f"<think>Let me see. {TIDES[1]}</think>",
            f"<think>Hm.</think>{TIDES[2]}", END, "")),
    ("context_column.jsonl", (*ALL, "--columns", "context=-"), 6, 6, PLAIN),
    ("context_column.jsonl", (*ALL, "--columns", "prompt=prompt+context"), 6, 6,
     plainly((f"{TIDES[0]}\\nFrom a handbook: {TIDES[1]}", *TIDES[1:]))),
]  # fmt: skip


def run_name(run):
    return " ".join((run[0], *(Path(flag).name for flag in run[1][2:])))


def test_the_command_is_run_on_every_file():
    assert {run[0] for run in RUNS} == {*READINGS, "context_column.jsonl"}


@pytest.mark.parametrize("run", RUNS, ids=run_name)
def test_the_command_shows_a_form_as_it_is_trained_on(run, model, capsys):
    name, flags, questions, pairs, texts = run
    assert main(["data", str(FORMS / name), "--model", str(model), *flags]) == 0
    said = shown(capsys.readouterr().out)
    counted = (
        f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((questions, "question"), (pairs, "pair"))
    )
    assert f"{name}: {', '.join(counted)}" in dict(said)["data"]
    first = [heading for heading, _ in said].index("example")
    (_, prompt), (_, chosen), (_, rejected) = said[first : first + 3]
    assert (prompt, text_of(chosen), text_of(rejected)) == texts


def template(folder, text):
    path = folder / "template.jinja"
    path.write_text(text, encoding="utf-8")
    return str(path)


FORGETS = CHAT_TEMPLATE.replace("m.content | trim", "m.content.split('</think>')[-1] | trim")

# (file, flags, template or none, what the one line says)
STOPPED = [
    ("pretemplated_chatml.jsonl", ALL, None, "line 1: the text looks templated already.*--template "
     "raw reads.*--template none"),
    ("pretemplated_chatml.jsonl", ALL, CHAT_TEMPLATE, "the text looks templated already"),
    ("pretemplated_extra_id.jsonl", ALL, None, "line 1: the text looks templated already.*"
     "--template raw"),
    ("openai_tool_calls.jsonl", ALL, None, "line 1: .*plain has no form for tools.*--template chat "
     "with a model whose chat template has one"),
    ("openai_tool_calls.jsonl", ALL, CHAT_TEMPLATE, "line 1: .*no form for 'tools'.*give one "
     "with --chat-template FILE"),
    ("trl_tools_column_text_answers.jsonl", ALL, CHAT_TEMPLATE, "line 1: .*no form for 'tools'"),
    ("thinking_field.jsonl", ALL, CHAT_TEMPLATE, "line 1: .*no form for 'reasoning_content'"),
    ("thinking_field.jsonl", ALL, None, "line 1: .*no form for tools.*or reasoning_content"),
    ("thinking_inside_answers.jsonl", ALL, FORGETS, "no question is left.*rewrites.*: 12"),
    ("one_row.jsonl", (), None, "of 1 question leaves.*--eval-fraction 0 to train on all of them"),
    ("few_after_repetitions.jsonl", (), None, "^[^;]*; pairs that came before, counted once: 38 .*;"
     " --eval-fraction 0.2 of 2 questions"),
    ("context_column.jsonl", ALL, None, "'context' holds text that no role claims"),
]  # fmt: skip


@pytest.mark.parametrize("name, flags, chat, says", STOPPED)
def test_what_a_form_cannot_be_trained_with_is_said_in_one_line(
    name, flags, chat, says, model, tmp_path, capsys
):
    given = ("--chat-template", template(tmp_path, chat)) if chat else ()
    assert main(["data", str(FORMS / name), "--model", str(model), *flags, *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and re.search(says, err), err


def test_text_that_goes_on_with_its_prompt_names_the_flag_that_may_be_meant(model, capsys):
    path = FORMS / "trl_standard_explicit.jsonl"
    assert main(["data", str(path), "--model", str(model), *ALL]) == 0
    assert "answers begin with a space" in (said := capsys.readouterr().out)
    assert "--template none joins them to it as they stand" in said


def test_an_answer_that_the_template_rewrites_is_left_out_and_not_its_file(model, tmp_path, capsys):
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in SIX]
    tea = {"prompt": "Is tea wet?", "chosen": "<think>a</think>Yes.", "rejected": "No."}
    argv = ["data", write(tmp_path, [*rows, tea]), "--model", str(model), *ALL]
    argv += ["--chat-template", template(tmp_path, FORGETS)]
    assert main(argv) == 0
    said = dict(shown(capsys.readouterr().out))
    assert ": 6 questions, 6 pairs" in said["data"]
    assert said["note"].startswith("answers that the chat template rewrites, left out")
    assert ": 1 (" in said["note"] and "line 7 '<think>a</think>Yes.'" in said["note"]
    assert main([*argv, "--rewritten", "keep"]) == 0  # as the note says
    said = shown(capsys.readouterr().out)
    assert ": 7 questions, 7 pairs" in dict(said)["data"]
    assert text_of([text for heading, text in said if heading == "chosen"][-1]) == "Yes.«<end>»"


def test_a_question_that_is_too_long_is_named_and_the_others_are_kept(model, tmp_path, capsys):
    story = "A long story about lead and feathers. " * 20
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in THREE]
    rows[1]["prompt"] = story + rows[1]["prompt"]
    assert main(["data", write(tmp_path, rows), "--model", str(model), *ALL, "--max-length",
                 "200"]) == 0  # fmt: skip
    said = dict(shown(capsys.readouterr().out))
    assert ": 2 questions, 2 pairs" in said["data"]
    assert said["note"].startswith(TOO_LONG) and "line 2 'A long story" in said["note"]


# The same kinds under other names. The middle row always has the better answer in second place.

WHY, WHAT, WHO = ("Why?", "Yes.", "No."), ("What?", "This.", "That."), ("Who?", "She.", "It.")
ROWS = (WHY, WHAT, WHO)


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def triples(reading):
    """(prompt, chosen, rejected ...) of every question."""
    return [(p.prompt, p.chosen, *p.rejected) for p in reading.preferences]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def each(make):
    """A row for each of the three questions."""
    return [make(*one) for one in ROWS]


def two(first, second, winner, says_first, says_second, **more):
    """Rows with two answers and a column that says which is the better one."""
    rows = []
    for (prompt, good, bad), says in zip(ROWS, (says_first, says_second, says_first), strict=True):
        swapped = says == says_second
        answers = {first: bad if swapped else good, second: good if swapped else bad}
        rows.append({"prompt": prompt, **answers, winner: says, **more})
    return rows


def parts(text):
    return [{"type": "text", "text": text}]


HI = (Turn("user", "Hi"), Turn("assistant", "Hello"))
BE_KIND = (Turn("system", "Be kind."),)
THREE_PLAIN = [asks(*one) for one in ROWS]
TWO_OF_THREE = [asks(*WHY), asks(*WHO)]
GRADED = [asks(p, good, "Hm.", bad, grades=(0.9, 0.5, 0.1)) for p, good, bad in ROWS]
MODELS = [
    {"question": p, "response_a": a, "response_b": b, "model_a": x, "model_b": y, "winner": "owl"}
    for p, a, b, x, y in [
        ("Why?", "Yes.", "No.", "owl", "cat"),
        ("What?", "That.", "This.", "cat", "owl"),
        ("Who?", "She.", "It.", "owl", "cat"),
    ]
]


def pair_names(good, bad):
    return each(lambda p, c, r: {"prompt": p, bad: r, good: c})


# kind -> (rows, questions, notes)
KINDS = {
    # other names of the two answers
    "good and bad": (pair_names("good", "bad"), THREE_PLAIN, {}),
    "y_w and y_l": (pair_names("y_w", "y_l"), THREE_PLAIN, {}),
    "winning and losing": (pair_names("winning_response", "losing_response"), THREE_PLAIN, {}),
    "positive and negative": (pair_names("positive", "negative"), THREE_PLAIN, {}),
    "better and worse": (pair_names("Better Answer", "Worse Answer"), THREE_PLAIN, {}),
    "camel case": (pair_names("preferredOutput", "nonPreferredOutput"), THREE_PLAIN, {}),
    "preferred and dispreferred": (pair_names("preferred", "dispreferred"), THREE_PLAIN, {}),
    "accepted and rejected": (pair_names("accepted", "rejected"), THREE_PLAIN, {}),
    # other roles, parts, texts of JSON
    "prompter and bot": (
        each(lambda p, c, r: {
            "dialogue": [{"from": "system", "value": "Be kind."}, {"from": "prompter", "value": p}],
            "chosen": {"from": "bot", "value": c}, "rejected": {"from": "bot", "value": r},
        }),
        [asks(*one, history=BE_KIND) for one in ROWS], {},
    ),
    "roles in capitals": (
        each(lambda p, c, r: {
            "messages": [{"role": "Human", "content": p}],
            "chosen": [{"role": "Model", "content": c}], "rejected": [{"role": "AI", "content": r}],
        }),
        THREE_PLAIN, {},
    ),
    "messages in parts": (
        each(lambda p, c, r: {
            "prompt": [user(parts(p))], "chosen": [assistant(parts(c))],
            "rejected": [assistant(parts(r))],
        }),
        THREE_PLAIN, {},
    ),
    "conversations as JSON text": (
        each(lambda p, c, r: {
            "chosen": json.dumps([user(p), assistant(c)]),
            "rejected": json.dumps([user(p), assistant(r)]),
        }),
        THREE_PLAIN, {},
    ),
    "messages as JSON text, answers as texts": (
        each(lambda p, c, r: {
            "messages": json.dumps([user("Hi"), assistant("Hello"), user(p)]), "chosen": c,
            "rejected": r,
        }),
        [asks(*one, history=HI) for one in ROWS], {},
    ),
    "a field called reasoning": (
        each(lambda p, c, r: {
            "prompt": p, "chosen": [{**assistant(c), "reasoning": "Let me think of the moon."}],
            "rejected": [{**assistant(r), "reasoning": "No idea."}],
        }),
        [asks(*one, extras=(MOON, NO_IDEA)) for one in ROWS], {},
    ),
    # where earlier turns stand
    "pairs of earlier turns": (
        each(lambda p, c, r: {
            "instruction": p, "history": [["Hi", "Hello"]], "chosen": c, "rejected": r,
        }),
        [asks(*one, history=HI) for one in ROWS], {},
    ),
    "messages of earlier turns": (
        each(lambda p, c, r: {
            "system_prompt": "Be kind.", "query": p, "chat_history": [user("Hi"),
            assistant("Hello")], "chosen": c, "rejected": r,
        }),
        [asks(*one, history=(*BE_KIND, *HI)) for one in ROWS], {},
    ),
    "a transcript as the prompt": (
        each(lambda p, c, r: {
            "prompt": f"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {p}\n\nAssistant:",
            "chosen": c, "rejected": r,
        }),
        [asks(*one, history=HI) for one in ROWS], {},
    ),
    "a transcript with two answers in a row": (
        [
            *each(lambda p, c, r: {
                "chosen": f"\n\nHuman: {p}\n\nAssistant: {c}",
                "rejected": f"\n\nHuman: {p}\n\nAssistant: {r}",
            }),
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nAssistant: How are you?",
             "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nAssistant: Go away."},
        ],
        THREE_PLAIN, {NOT_A_TURN: (1, [4])},
    ),
    "an input that only some rows have": (
        [{"instruction": p, "input": i, "chosen": c, "rejected": r}
         for (p, c, r), i in zip(ROWS, ("", "narrow", None), strict=True)],
        [asks(*WHY), asks("What?\nnarrow", "This.", "That."), asks(*WHO)], {},
    ),
    # a column that says which of two answers won
    "letters": (two("response_a", "response_b", "winner", "A", "B"), THREE_PLAIN, {}),
    "an index from 0": (two("answer_0", "answer_1", "better", 0, 1), THREE_PLAIN, {}),
    "an index from 1": (two("answer_1", "answer_2", "label", 1, 2), THREE_PLAIN, {}),
    "an index as text": (two("answer_1", "answer_2", "winner", "1", "2"), THREE_PLAIN, {}),
    "an index that is a float": (two("answer_1", "answer_2", "best", 1.0, 2.0), THREE_PLAIN, {}),
    "a choice as text": (two("response_1", "response_2", "choice", "1", "2"), THREE_PLAIN, {}),
    "a column's name": (two("output_1", "output_2", "preferred", "output_1", "output_2"),
                        THREE_PLAIN, {}),
    "first and second": (two("reply_1", "reply_2", "preference", "first", "second"),
                         THREE_PLAIN, {}),
    "the model's letter": (two("response_a", "response_b", "winner", "model_a", "model_b",
                               model_a="owl", model_b="cat"), THREE_PLAIN, {}),
    "the model's name": (MODELS, THREE_PLAIN, {}),
    "the better text once more": (
        each(lambda p, c, r: {"prompt": p, "response_1": r, "response_2": c, "chosen_response": c}),
        THREE_PLAIN, {},
    ),
    "a sign": (two("response_1", "response_2", "overall_preference", -3, 1), THREE_PLAIN, {}),
    "ties between": (
        [*two("response_a", "response_b", "winner", "A", "B")[::2],
         {"prompt": "Or?", "response_a": "So.", "response_b": "Not.", "winner": "tie"},
         {"prompt": "If?", "response_a": "So.", "response_b": "Not.", "winner": "both bad"},
         {"prompt": "But?", "response_a": "So.", "response_b": "Not.", "winner": None}],
        TWO_OF_THREE, {TIED: (3, [3, 4, 5])},
    ),
    "an arena's conversations": (
        [{"model_a": "owl", "model_b": "cat", "winner": w, "language": "English", "turn": 1,
          "conversation_a": [user(p), assistant(a)], "conversation_b": [user(p), assistant(b)]}
         for p, a, b, w in [("Why?", "Yes.", "No.", "model_a"), ("What?", "This.", "That.", "tie"),
                            ("Who?", "It.", "She.", "model_b")]],
        TWO_OF_THREE, {TIED: (1, [2])},
    ),
    # scores and ranks
    "scores in columns": (
        each(lambda p, c, r: {"prompt": p, "response_a": r, "response_b": c, "score_a": 1,
                              "score_b": 4.5}),
        THREE_PLAIN, {},
    ),
    "ratings in columns, as text": (
        each(lambda p, c, r: {"prompt": p, "answer_1": r, "answer_2": c, "rating_1": "1",
                              "rating_2": "4"}),
        THREE_PLAIN, {},
    ),
    "ranks in columns": (
        each(lambda p, c, r: {"prompt": p, "answer_1": r, "answer_2": c, "rank_1": 2,
                              "rank_2": 1}),
        THREE_PLAIN, {},
    ),
    "a list of ranks": (
        each(lambda p, c, r: {"question": p, "responses": [r, c, "Hm."], "ranks": [3, 1, 2]}),
        [asks(p, c, "Hm.", r, grades=(-1.0, -2.0, -3.0)) for p, c, r in ROWS], {},
    ),
    "a list of rewards": (
        each(lambda p, c, r: {"question": p, "candidates": [r, c, "Hm."],
                              "rewards": [0.1, 0.9, 0.5]}),
        GRADED, {},
    ),
    "ranks inside the answers, as text": (
        each(lambda p, c, r: {"prompt": p, "answers": [{"text": r, "rank": "2"},
                                                       {"text": c, "rank": "1"}]}),
        THREE_PLAIN, {},
    ),
    "rewards below 0 inside the answers": (
        each(lambda p, c, r: {"prompt": p, "outputs": [{"content": r, "reward": -3},
                                                       {"content": c, "reward": -1}]}),
        THREE_PLAIN, {},
    ),
    "two answers with the best score": (
        [{"prompt": "Why?", "responses": ["No.", "Yes.", "Sure."], "scores": [1, 5, 5]}],
        [asks("Why?", "Yes.", "No.", correct=("Sure.",))], {},
    ),
    "answers that all tie": (
        [*each(lambda p, c, r: {"prompt": p, "responses": [r, c], "scores": [1, 2]}),
         {"prompt": "Or?", "responses": ["So.", "Not."], "scores": [2, 2]}],
        THREE_PLAIN, {TIED: (1, [4])},
    ),
    "a place in a list": (
        [{"prompt": p, "options": [c, r] if i == 0 else [r, c], "choice": i}
         for (p, c, r), i in zip(ROWS, (0, 1, 0), strict=True)],
        THREE_PLAIN, {},
    ),
    # one answer a row
    "thumbs": (
        [{"query": p, "answer": a, "thumbs": t} for p, c, r in ROWS
         for a, t in ((r, "bad"), (c, "good"))],
        THREE_PLAIN, {},
    ),
    "labels 1 and 0": (
        [{"prompt": p, "response": a, "label": t} for p, c, r in ROWS for a, t in ((r, 0), (c, 1))],
        THREE_PLAIN, {},
    ),
    "labels of conversations": (
        [{"conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": a}],
          "kto_tag": t} for p, c, r in ROWS for a, t in ((r, False), (c, True))],
        THREE_PLAIN, {},
    ),
    "ratings of one prompt": (
        [{"prompt": "Why?", "completion": a, "rating": n}
         for a, n in (("No.", 1), ("Yes.", 3), ("Hm.", 2))],
        [asks("Why?", "Yes.", "Hm.", "No.", grades=(3.0, 2.0, 1.0))], {},
    ),
    "labels that only some prompts have both of": (
        [{"prompt": p, "completion": a, "label": t}
         for p, a, t in (("Why?", "Yes.", True), ("Who?", "She.", True), ("What?", "This.", True),
                         ("Who?", "It.", False), ("Why?", "No.", False), ("Or?", "So.", False))],
        TWO_OF_THREE, {UNPAIRED: (2, [3, 6])},
    ),
    "an answer with both labels": (
        [{"prompt": "Why?", "completion": a, "label": t}
         for a, t in (("Hm.", True), ("Hm.", False), ("No.", False), ("Yes.", True))],
        [asks(*WHY)], {CONTRADICTED: (1, [1])},
    ),
    # beside the answers
    "tools as a list": (
        each(lambda p, c, r: {"functions": json.loads(LAMP), "prompt": [user(p)],
                              "chosen": [assistant(c)], "rejected": [assistant(r)]}),
        [asks(*one, tools=LAMP) for one in ROWS], {},
    ),
    "tools inside the input": (
        each(lambda p, c, r: {"input": {"messages": [user(p)], "tools": json.loads(LAMP)},
                              "preferred_output": [assistant(c)],
                              "non_preferred_output": [assistant(r)]}),
        [asks(*one, tools=LAMP) for one in ROWS], {},
    ),
    "text that is about the preference": (
        [{**row, "annotator_comment": f"about {i}", "id": f"x{i}", "score_chosen": 8,
          "url": f"https://example.org/{i}"} for i, row in enumerate(pair_names("chosen",
                                                                               "rejected"))],
        THREE_PLAIN, {},
    ),
    "a column that says the same in each row": (
        [{**row, "task": "Answer the question."} for row in pair_names("chosen", "rejected")],
        THREE_PLAIN, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kinds_under_other_names_are_read_alike(kind, tmp_path):
    rows, questions, notes = KINDS[kind]
    reading = read_preferences(write(tmp_path, rows))
    assert list(reading.preferences) == questions
    assert notes_of(reading) == notes


def test_scores_grade_the_answers_asked_for_also_where_the_chosen_one_is_a_text(tmp_path):
    rows = each(lambda p, c, r: {
        "prompt": p, "chosen": c, "rejected": r, "responses": [r, c, "Hm."],
        "scores": [0.1, 0.9, 0.5],
    })  # fmt: skip
    path = write(tmp_path, rows)
    assert list(read_preferences(path).preferences) == THREE_PLAIN
    assert list(read_preferences(path, every=True).preferences) == GRADED


PAIRS = pair_names("chosen", "rejected")
COLUMNS = {name: [row[name] for row in PAIRS] for name in ("prompt", "chosen", "rejected")}
BY_NUMBER = {name: dict(enumerate(cells)) for name, cells in COLUMNS.items()}
LINES = "\n".join(map(json.dumps, PAIRS)).encode()
CSV = "\n".join(["prompt,chosen,rejected", *(",".join(one) for one in ROWS)]).encode()


def zstd(content):
    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    "name, content",
    [
        ("columns.json", json.dumps(COLUMNS).encode()),
        ("pretty.json", json.dumps(COLUMNS, indent=1).encode()),
        ("pandas.json", json.dumps(BY_NUMBER).encode()),
        ("data.json", json.dumps({"version": "1.0", "data": PAIRS}).encode()),
        ("pretty-data.json", json.dumps({"data": PAIRS}, indent=2).encode()),
        ("train.json", json.dumps({"train": PAIRS}).encode()),
        ("list.json", json.dumps(PAIRS).encode()),
        ("rows.jsonl", LINES),
        ("rows.jsonl.gz", gzip.compress(LINES)),
        ("rows.jsonl.zst", zstd(LINES)),
        ("list.json.gz", gzip.compress(json.dumps(PAIRS, indent=2).encode())),
        ("rows.csv", CSV),
        ("rows.csv.gz", gzip.compress(CSV)),
        ("rows.tsv.zst", zstd(CSV.replace(b",", b"\t"))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip writes the time
)  # fmt: skip
def test_rows_are_the_same_however_a_file_holds_them(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert triples(read_preferences(str(tmp_path / name))) == [WHY, WHAT, WHO]


def test_a_winner_in_a_csv_is_text_and_means_the_same(tmp_path):
    lines = ["prompt,response_1,response_2,winner", "Why?,Yes.,No.,1", "What?,That.,This.,2"]
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    assert triples(read_preferences(str(tmp_path / "rows.csv"))) == [WHY, WHAT]


# What cannot be told apart: the message names the file and the column, and its advice works.


def advices(message):
    """What stands after each `--columns`, as a shell would read it."""
    words = shlex.split(message.replace("'", '"'))
    given = [words[i + 1] for i, word in enumerate(words) if word == "--columns"]
    return [advice.rstrip(",;") for advice in given]


def beside(**columns):
    """The three pairs with further columns of text."""
    return [
        {**row, **{name: f"{text} {i}." for name, text in columns.items()}}
        for i, row in enumerate(PAIRS, start=1)
    ]


def with_text(*texts):
    """The three questions, these texts on lines of their own after the prompt."""
    return [
        ("\n".join([p, *(f"{text} {i}." for text in texts)]), c, r)
        for i, (p, c, r) in enumerate(ROWS, start=1)
    ]


BEGUN = each(lambda p, c, r: {"about": f"On {p}", "chosen": f"So: {c}", "rejected": f"So: {r}"})

# kind -> (rows, words of the message, {advice: (what is filled in by hand, what it promised)})
REFUSED = {
    "a text beside the prompt": (beside(context="Book"), ["'context' holds text"], {
        "prompt=prompt+context": ("", with_text("Book")),
        "context=-": ("", [*ROWS]),
    }),
    "the first steps of an answer": (beside(initial_reason_steps="Step"),
                                     ["'initial_reason_steps' holds text"], {
        "prompt=prompt+initial_reason_steps": ("", with_text("Step")),
        "initial_reason_steps=-": ("", [*ROWS]),
    }),
    "two texts beside the prompt": (beside(passage="Book", hint="Hint"),
                                    ["'passage', 'hint' hold text"], {
        "prompt=prompt+passage+hint": ("", with_text("Book", "Hint")),
        "passage=-,hint=-": ("", [*ROWS]),
    }),
    "a name of two words": (beside(**{"Source Passage": "Book"}), ["'Source Passage' holds text"], {
        "prompt=prompt+Source Passage": ("", with_text("Book")),
        "Source Passage=-": ("", [*ROWS]),
    }),
    "a text beside an implied prompt": (BEGUN, ["'about' holds text"], {
        "prompt=about": ("", [(f"On {p}", f"So: {c}", f"So: {r}") for p, c, r in ROWS]),
        "about=-": ("", [("So:", f" {c}", f" {r}") for _, c, r in ROWS]),
    }),
    "a text beside messages": (
        each(lambda p, c, r: {"messages": [user(p)], "facts": f"On {p}", "chosen": c,
                              "rejected": r}),
        ["'facts' holds text"], {"facts=-": ("", [*ROWS])},
    ),
    "documents beside the prompt": (
        [{**row, "documents": [f"Book {i}.", "Map."]} for i, row in enumerate(PAIRS)],
        ["'documents' holds text"], {"documents=-": ("", [*ROWS])},
    ),
    "0 and 1 of answers a and b": (
        two("response_a", "response_b", "winner", 0, 1), ["'winner' has the values 0, 1"],
        {"winner=winner:X/Y": ("", [*ROWS])},
    ),
    "1 and 0 of answers a and b": (
        two("response_a", "response_b", "labels", 1, 0), ["'labels' has the values 0, 1"],
        {"winner=labels:X/Y": ("", [*ROWS])},
    ),
    "0 and 1 of answers 1 and 2": (
        two("response_1", "response_2", "label", 0, 1), ["'label' has the values 0, 1"],
        {"winner=label:X/Y": ("", [*ROWS])},
    ),
    "true and false": (
        two("response_a", "response_b", "preferred", True, False), ["'preferred' has the values"],
        {"winner=preferred:X/Y": ("", [*ROWS])},
    ),
    "words that name none": (
        two("response_a", "response_b", "verdict", "up", "down"), ["'verdict' has the values"],
        {"winner=verdict:X/Y": ("", [*ROWS])},
    ),
    "always the same place in a list": (
        each(lambda p, c, r: {"prompt": p, "candidates": [r, c], "best": 1}),
        ["'best' has the values 1"], {"winner=best:X/Y": ("winner=best:0/1", [*ROWS])},
    ),
    "two columns that disagree": (
        [{**row, "best_response_id": 1 - row["better_response_id"]}
         for row in two("response_0", "response_1", "better_response_id", 0, 1)],
        ["'better_response_id' and 'best_response_id' disagree"], {
            "winner=better_response_id": ("", [*ROWS]),
            "winner=best_response_id": ("", [(p, r, c) for p, c, r in ROWS]),
        },
    ),
    "answers that nothing known grades": (
        two("response_0", "response_1", "safer_response_id", 0, 1),
        ["no column is known to say how good the answers in 'response_0', 'response_1' are"],
        {"answers=response_0+response_1,winner=COLUMN": (
            "answers=response_0+response_1,winner=safer_response_id", [*ROWS])},
    ),
    "scores named after the answers": (
        each(lambda p, c, r: {"prompt": p, "response_1": r, "response_2": c,
                              "response_1_quality": 2, "response_2_quality": 3}),
        ["the answers in 'response_1', 'response_2' are", "or scores= or ranks="],
        {"answers=response_1+response_2,winner=COLUMN": (
            "answers=response_1+response_2,scores=response_1_quality+response_2_quality",
            [*ROWS])},
    ),
    "a list that nothing known grades": (
        each(lambda p, c, r: {"prompt": p, "responses": [r, c], "places": [2, 1]}),
        ["no column is known to say how good the answers in 'responses' are", "or ranks="],
        {"answers=responses,winner=COLUMN": ("answers=responses,ranks=places", [*ROWS])},
    ),
    "two texts that no name tells apart": (
        each(lambda p, c, r: {"ask": p, "left": r, "right": c}),
        ["columns 'ask', 'left', 'right'", "do not tell the chosen answer from the rejected"],
        {"prompt=...,chosen=...,rejected=...": ("prompt=ask,chosen=right,rejected=left",
                                                [*ROWS])},
    ),
}  # fmt: skip


def filled_in(advice, message, rows):
    """The advice with values for X and Y: those of rows whose better answer is the one named."""
    named = re.search(
        r"X stands in rows whose better answer is '(\w+)', and Y .* '(\w+)'$", message
    )
    if not (advice.endswith(":X/Y") and named):
        return advice
    winner = advice.removeprefix("winner=").removesuffix(":X/Y")
    right = {chosen for _, chosen, _ in ROWS}
    x, y = (next(row[winner] for row in rows if row[name] in right) for name in named.groups())
    return f"winner={winner}:{x}/{y}"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_nobody_could_be_sure_of_is_refused_with_advice_that_works(kind, tmp_path):
    rows, words, promised = REFUSED[kind]
    path = write(tmp_path, rows)
    with pytest.raises(DataError) as refused:
        read_preferences(path)
    message = str(refused.value)
    assert "\n" not in message and path in message
    assert all(word in message for word in words), message
    assert advices(message) == list(promised)
    for advice, (filled, questions) in promised.items():
        assert (
            triples(read_preferences(path, filled or filled_in(advice, message, rows))) == questions
        ), advice


def test_a_place_in_a_list_is_asked_for_by_the_answers_and_not_by_their_list(tmp_path):
    rows = each(lambda p, c, r: {"prompt": p, "candidates": [r, c], "best": 1})
    with pytest.raises(DataError) as refused:
        read_preferences(write(tmp_path, rows))
    assert "whose better answer is 'candidates'" not in str(refused.value)


def test_one_answer_a_row_with_an_unknown_mark_is_told_how_to_say_so(tmp_path):
    rows = [{"prompt": p, "response": a, "chosen": t} for p, c, r in ROWS
            for a, t in ((r, False), (c, True))]  # fmt: skip
    path = write(tmp_path, rows)
    with pytest.raises(DataError, match="completion=A,label=B for one answer"):
        read_preferences(path)
    assert triples(read_preferences(path, "completion=response,label=chosen")) == [*ROWS]


@pytest.mark.parametrize("labels", [(True, True, True), (True, False, True)])
def test_labels_without_a_prompt_that_has_both_are_refused_by_the_name_of_kto(labels, tmp_path):
    rows = [
        {"prompt": p, "completion": c, "label": label}
        for (p, c, _), label in zip(ROWS, labels, strict=True)
    ]
    path = write(tmp_path, rows)
    with pytest.raises(DataError) as refused:
        read_preferences(path)
    assert str(refused.value) == (
        f"{path} holds no question with answers to compare: single answers with a label are data "
        "for KTO, and of its 3 prompts none has a better and a worse one (answers whose prompt has "
        "none of another label, left out: 3); bring rows with both"
    )
    rows.append({"prompt": "Why?", "completion": "No.", "label": False})  # one with both
    assert triples(read_preferences(write(tmp_path, rows))) == [WHY]


def test_messages_written_as_python_are_refused_and_read_as_json(tmp_path):
    talks = each(lambda p, c, r: {"chosen": [user(p), assistant(c)],
                                  "rejected": [user(p), assistant(r)]})  # fmt: skip
    written = [{name: str(talk) for name, talk in row.items()} for row in talks]
    with pytest.raises(DataError, match="line 1, column 'chosen'.*keep them as lists, or as JSON"):
        read_preferences(write(tmp_path, written))
    for keep in (lambda talk: talk, json.dumps):
        rows = [{name: keep(talk) for name, talk in row.items()} for row in talks]
        assert triples(read_preferences(write(tmp_path, rows))) == [*ROWS]


# Text that comes late, after the rows that a source is recognised by.


@pytest.fixture
def two_rows_tell(monkeypatch):
    monkeypatch.setattr("data.sources.FIRST_ROWS", 2)


LATE = [WHY, WHAT, ("Who?\nBook 3.", "She.", "It.")]


@pytest.mark.parametrize("filled, questions", [("prompt=prompt+context", LATE),
                                               ("context=-", [*ROWS])])  # fmt: skip
def test_a_column_that_comes_late_can_be_given_a_role(filled, questions, tmp_path, two_rows_tell):
    path = write(tmp_path, [*PAIRS[:2], beside(context="Book")[2]])
    with pytest.raises(DataError) as refused:
        read_preferences(path)
    message = str(refused.value)
    assert f"{path}, line 3: 'context' holds text" in message and "context=-" in message
    assert triples(read_preferences(path, filled)) == questions


@pytest.mark.parametrize("filled, questions", [("prompt=prompt+context", LATE),
                                               ("context=-", [*ROWS])])  # fmt: skip
def test_a_column_whose_text_comes_late_can_be_given_a_role(
    filled, questions, tmp_path, two_rows_tell
):
    path = write(tmp_path, [*({**row, "context": None} for row in PAIRS[:2]),
                            beside(context="Book")[2]])  # fmt: skip
    with pytest.raises(DataError) as refused:
        read_preferences(path)
    message = str(refused.value)
    assert f"{path}, line 3: 'context' holds text" in message
    assert advices(message) == ["prompt=prompt+context", "context=-"]
    assert triples(read_preferences(path, filled)) == questions


@pytest.mark.parametrize("late", ["Book 3.", ["Book 3."], {"passage": "Book 3."}])
def test_text_that_comes_late_is_never_left_unread(late, tmp_path, two_rows_tell):
    rows = [{**row, "context": None} for row in PAIRS[:2]] + [{**PAIRS[2], "context": late}]
    with pytest.raises(DataError, match="line 3: 'context' holds text"):
        read_preferences(write(tmp_path, rows))


# No preference is turned round: what says which answer is the worse one is no winner.


@pytest.mark.parametrize(
    "rows",
    [
        two("response_a", "response_b", "not_preferred", "B", "A"),
        two("response_a", "response_b", "less_preferred", "B", "A"),
        two("response_0", "response_1", "least_preferred_response", 1, 0),
        two("response_0", "response_1", "worst_choice", 1, 0),
        two("response_a", "response_b", "loser", "B", "A"),
        two("response_a", "response_b", "worse_response", "B", "A"),
        two("response_a", "response_b", "verdict", "B is worse", "A is worse"),
        each(lambda p, c, r: {"prompt": p, "response_1": c, "response_2": r,
                              "toxicity_score_1": 0.1, "toxicity_score_2": 0.8}),
    ],
    ids=lambda rows: list(rows[0])[3],
)  # fmt: skip
def test_a_column_that_names_the_worse_answer_turns_nothing_round(rows, tmp_path):
    try:
        found = triples(read_preferences(write(tmp_path, rows)))
    except DataError as refused:
        assert "--columns" in str(refused)
    else:
        assert found == [*ROWS]


@pytest.mark.parametrize("columns", [None, "completion=response,label=rank"])
def test_a_rank_of_one_answer_a_row_is_best_where_it_is_1(columns, tmp_path):
    rows = [{"prompt": p, "response": a, "rank": n} for p, c, r in ROWS
            for a, n in ((r, 2), (c, 1))]  # fmt: skip
    try:
        found = triples(read_preferences(write(tmp_path, rows), columns))
    except DataError as refused:
        assert "rank" in str(refused)
    else:
        assert found == [*ROWS]


@pytest.mark.parametrize(
    "role, questions",
    [
        ("prompt=ask", [asks(p, c, r) for p, c, r in ROWS]),
        ("prompt=ask,system=manner", [asks(*one, history=BE_KIND) for one in ROWS]),
        ("prompt=ask,category=topic", [asks(*one, category="talk") for one in ROWS]),
        ("prompt=ask,history=before", [asks(*one, history=HI) for one in ROWS]),
        ("prompt=ask,tools=lamps", [asks(*one, tools=LAMP) for one in ROWS]),
    ],
)
def test_every_role_can_be_given_by_name(role, questions, tmp_path):
    rows = each(lambda p, c, r: {
        "ask": p, "manner": "Be kind.", "topic": "talk", "before": [["Hi", "Hello"]],
        "lamps": json.loads(LAMP), "chosen": c, "rejected": r,
    })  # fmt: skip
    reading = read_preferences(write(tmp_path, rows), role)
    assert list(reading.preferences) == questions
