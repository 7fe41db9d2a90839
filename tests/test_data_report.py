"""The data report: figures worked out by hand, and the command that prints it."""

import json

import pytest
from conftest import ROOT, python_process, small_tokenizer

from data import (
    Preference,
    ReadSettings,
    Split,
    TextSettings,
    encode,
    examine,
    prepare,
    read_preferences,
    read_sources,
    split_by_prompt,
)
from data.report import _as_read, _scored, losses_of, shortcuts
from run.__main__ import main

ROWS = [
    {"prompt": "Do bats see?", "chosen": "Bats see well", "rejected": "No"},
    {"prompt": "Do bats see?", "chosen": "Bats see well", "rejected": "Bats see nothing"},
    {"prompt": "DO BATS SEE", "chosen": "Yes", "rejected": "Never"},
    {"prompt": "Why?", "chosen": "Not so", "rejected": "So"},
    {"prompt": "Why?", "chosen": "Not so", "rejected": ""},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    return path


PLAIN = TextSettings()


def report(source, split=None, settings=PLAIN):
    reading = read_preferences(str(source))._replace(source="rows")
    encoding = encode(reading.preferences, small_tokenizer(), settings)
    keys = encoding.questions.column("key").tolist()
    split = split or split_by_prompt(keys, 0.5, 0)
    found = examine([reading], [encoding], small_tokenizer(), split, settings)
    return found, dict(found.lines), encoding


def test_shortcuts_by_hand():
    """Longer: 'Bats see well' than 'No', shorter than 'Bats see nothing', a tie: 1.5 of 3 pairs.

    Negation: in 1 of 2 chosen answers (n't), in all three rejected ones.
    """
    style = shortcuts([
        Preference("?", "Bats see well", ("No", "Bats see nothing")),
        Preference("?", "I can't", ("I never",)),
    ])  # fmt: skip
    assert style == (1.5 / 3, 1 / 2, 3 / 3) and style.length_alone == 0.5
    style = shortcuts([Preference("?", "ab", ("abc", "abcd", "a", "known"))])
    assert style.length_alone == 0.75 and style.negation_rejected == 0  # 'known' holds no 'no'


def test_counts_by_hand(source):
    found, lines, encoding = report(source)
    assert lines["data"] == "rows: 3 questions, 4 pairs, 1.3 to a question (1 to 2)"
    questions = list(encoding.questions)
    pairs = sum(2 * len(q.prompt) + len(q.chosen) + len(r) for q in questions for r in q.rejected)
    trees = sum(len(q.prompt) + sum(map(len, q.trained)) for q in questions)
    assert found.figures["as_pairs"] == pairs and found.figures["as_trees"] == trees
    assert found.figures["as_tries"] < trees < pairs
    assert f"{pairs:,} as pairs, {trees:,} as trees" in lines["tokens"]
    assert lines["read as"] == "prompt = 'prompt', chosen = 'chosen', rejected = 'rejected'"
    assert lines["note"].startswith("empty answers, left out: 1 (") and "line 5)" in lines["note"]
    assert lines["kept"] == "5 of 5 rows (100%)"  # line 5 belongs to a question
    assert found.sources == [{"source": "rows", "questions": 3, "held_out": False}]


def test_the_split_says_what_stands_on_both_sides(source):
    _, lines, _ = report(source, split=([0, 2], [1]))  # two spellings of one prompt, torn apart
    assert lines["held out"].startswith("1 question; 1 of their prompts and 0 of their chosen")
    _, lines, _ = report(source, split=([1], [0, 0, 2]))  # what is held out is counted
    assert lines["held out"].startswith("3 questions; 2 of their prompts and 0 of their chosen")
    _, lines, _ = report(source)
    assert "; 0 of their prompts" in lines["held out"]


def test_a_prompt_under_two_system_messages_is_held_out_with_both(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "Do bats see?", "chosen": "Yes", "rejected": "No"}
    rows = [row | {"system": "Be brief."}, row | {"system": "Be rude."}, ROWS[3] | {"system": ""}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    keys = report(path, split=([0], [1]))[2].questions.column("key").tolist()
    assert keys[0] == keys[1] != keys[2]


def test_every_scored_token_stands_in_brackets(source):
    found, _, encoding = report(source)
    shown = found.lines[[heading for heading, _ in found.lines].index("example") :]
    assert shown[0] == ("example", "«<s>»Question: Do bats see?\\nAnswer:")
    assert shown[1][1].replace("[", "").replace("]", "") == " Bats see well«</s>»"
    assert shown[1][1].endswith("[«</s>»]")  # in « », where letters `</s>` have none
    assert shown[1][1].count("[") == len(encoding.questions[0].chosen)
    assert [heading for heading, _ in shown].count("example") == 3


def test_a_token_that_is_half_a_letter_is_shown_by_its_name():
    tokenizer = small_tokenizer()
    ids = tokenizer("🦇", add_special_tokens=False).input_ids
    assert len(ids) > 1 and "\ufffd" not in _scored(ids, tokenizer, set())


def test_a_long_answer_is_shown_by_its_ends():
    tokenizer = small_tokenizer()
    ids = tokenizer("a b c " * 40, add_special_tokens=False).input_ids
    assert f" ... {len(ids) - 24} more ... " in _scored(ids, tokenizer, set())
    assert _scored(ids[:24], tokenizer, set()).count("[") == 24
    assert _scored(ids, tokenizer, set(), len(ids)).count("[") == len(ids)


def test_a_control_token_is_told_from_text_that_spells_its_name():
    tokenizer = small_tokenizer()
    bos, control = tokenizer.bos_token_id, set(tokenizer.all_special_ids)
    spelt = tokenizer("<s>", add_special_tokens=False, split_special_tokens=True).input_ids
    assert _as_read([bos, *spelt, bos, bos], tokenizer, control) == "«<s>»<s>«<s>»«<s>»"


def test_rows_that_were_kept_and_rows_that_were_not(tmp_path):
    """40 rows, of which 2 are bad, 1 too long and 1 without a prompt: 36 of them, which is 90%."""
    rows = [{"prompt": f"Why {n}?", "chosen": "Yes", "rejected": "No"} for n in range(40)]
    rows[3]["chosen"] = rows[4]["chosen"] = 7
    rows[5]["prompt"] = ""
    rows[6]["chosen"] = "Yes and no " * 50
    path = tmp_path / "rows.jsonl"

    def kept():
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return report(path, settings=TextSettings(max_length=60))[0].lines

    lines = kept()
    assert ("kept", "FEW ROWS: 36 of 40 rows (90%)") in lines
    notes = [text.partition(" (")[0] for heading, text in lines if heading == "note"]
    assert notes == [
        "rows that cannot be read, left out: 2", "rows without a prompt, left out: 1",
        "questions longer than --max-length, left out: 1",
    ]  # fmt: skip
    rows[4]["chosen"] = "Yes"
    assert ("kept", "37 of 40 rows (92%)") in kept()
    for n in (3, 5, 6):
        rows[n] = {"prompt": f"Why {n}?", "chosen": "Yes", "rejected": "No"}
    assert ("kept", "every row") in kept()


def test_notes_that_cost_no_row_are_said_beside_all_of_them(source, tmp_path):
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(map(json.dumps, [ROWS[0] | {"rejected": ["No", ""]}, ROWS[3]])))
    reading = read_preferences(str(path))
    encoding = encode(reading.preferences, small_tokenizer())
    first, *noted = losses_of([reading], [encoding])
    assert first == "2 of 2 rows (100%)" and len(noted) == 1


def test_a_report_of_all_pairs_by_hand(tmp_path):
    row = {"prompt": "Why?", "responses": ["c c", "a", "b"], "scores": [1, 3, 2]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"prompt": "Who?"}))
    best, _, encoding = report(path)
    every, lines, _ = report(path, settings=TextSettings(pairs="all"))
    assert (best.figures["pairs"], every.figures["pairs"]) == (2 * 2, 2 * 3)
    assert lines["data"] == "rows: 2 questions, 6 pairs, 3.0 to a question (3 to 3)"
    assert every.figures["as_pairs"] == sum(
        6 * len(q.prompt) + 2 * sum(map(len, q.answers)) for q in encoding.questions
    )


def test_several_sources_and_a_held_out_one_are_each_named(source, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps(ROWS[3]) + "\n" + json.dumps(ROWS[3] | {"prompt": "How?"}))
    settings = ReadSettings(seed=0)
    reading = read_sources([f"{source}:2", "builtin:3"], settings)
    found = prepare(
        reading,
        small_tokenizer(),
        TextSettings(),
        Split(0.5, 0, read_sources([str(held)])),
        tmp_path,
    )
    assert [(s["questions"], s["held_out"]) for s in found.report.sources] == [
        (2, False), (3, False), (2, True),
    ]  # fmt: skip
    lines = dict(found.report.lines)
    assert f"{source} (2) + builtin (3), held out: {held}: 7 questions" in lines["data"]
    assert (len(found.train), len(found.held_out)) == (5, 2)
    assert lines["held out"].startswith("2 questions; ")


@pytest.mark.parametrize(
    "settings, said",
    [
        (TextSettings(), "plain, 'Question: {}\\nAnswer:' then ' {}'"),
        (TextSettings(prompt_format="Q {}"), "plain, 'Q {}' then ' {}'"),
        (TextSettings("none"), "as it stands, nothing between prompt and answer"),
        (TextSettings("raw"), "as it stands, control tokens in it obeyed"),
    ],
)
def test_the_report_says_how_a_preference_becomes_text(source, settings, said):
    assert report(source, settings=settings)[1]["text"] == said


def test_answers_that_go_on_with_the_prompt_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Bats {n}", "chosen": " see", "rejected": " fly"} for n in range(2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    advice = "--template none joins them to it as they stand"
    assert any(advice in text for _, text in report(path)[0].lines)
    as_it_stands = report(path, settings=TextSettings("none"))[0]
    assert not any(advice in text for _, text in as_it_stands.lines)
    path.write_text("\n".join(map(json.dumps, [rows[0], rows[1] | {"chosen": "see"}])))
    assert not any(advice in text for _, text in report(path)[0].lines)


@pytest.fixture
def tokenizer_folder(tmp_path):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "tokenizer"


def test_the_command_prints_it_and_trains_nothing(source, tokenizer_folder, capsys):
    argv = ["data", str(source), "--model", str(tokenizer_folder), "--eval-fraction", "0.5"]
    assert main([*argv, "--prompt-format", r"Q: {}\nA:"]) == 0
    said = capsys.readouterr().out
    assert "3 questions, 4 pairs" in said and "«<s>»Q: Do bats see?\\nA:" in said
    assert main([*argv, "--max-length", "3"]) == 2
    assert "at most 3 tokens are read (--max-length)" in capsys.readouterr().err
    assert (
        main(["data", "none.csv"]) == 2 and "there is no file none.csv" in capsys.readouterr().err
    )
    assert main(["data", str(source), "--model", "none", "--columns", "chosen=x"]) == 2


def test_the_command_starts_cleanly(source, tokenizer_folder, tmp_path):
    argv = ["-m", "run", "data", str(source), "--model", str(tokenizer_folder)]
    done = python_process(tmp_path, [*argv, "--eval-fraction", "0.5"])
    assert done.returncode == 0 and done.stderr == "", done.stderr
    done = python_process(tmp_path, [*argv, "--no-such-flag"])
    assert done.returncode == 2 and "--no-such-flag" in done.stderr
    assert "Traceback" not in done.stderr and (ROOT / "run" / "data.py").exists()
