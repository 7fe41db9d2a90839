"""The data report: figures worked out by hand, and the command that prints it."""

import json

import pytest
from conftest import ROOT, python_process, small_tokenizer

from data import Preference, TextSettings, encode, examine, read_preferences, split_by_prompt
from data.report import _scored, shortcuts
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


def report(source, split=None):
    reading = read_preferences(str(source))._replace(source="rows")
    encoding = encode(reading.preferences, small_tokenizer())
    keys = encoding.questions.column("key").tolist()
    split = split or split_by_prompt(keys, 0.5, 0)
    found = examine(reading, encoding, small_tokenizer(), split, TextSettings())
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


def test_the_split_says_what_stands_on_both_sides(source):
    _, lines, _ = report(source, split=([0, 2], [1]))  # two spellings of one prompt, torn apart
    assert lines["held out"].startswith("1 questions; 1 of their prompts and 0 of their chosen")
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
    assert shown[0] == ("example", "<s>Question: Do bats see?\\nAnswer:")
    assert shown[1][1].replace("[", "").replace("]", "") == " Bats see well</s>"
    assert shown[1][1].count("[") == len(encoding.questions[0].chosen)
    assert [heading for heading, _ in shown].count("example") == 3


def test_a_token_that_is_half_a_letter_is_shown_by_its_name():
    tokenizer = small_tokenizer()
    ids = tokenizer("🦇", add_special_tokens=False).input_ids
    assert len(ids) > 1 and "\ufffd" not in _scored(ids, tokenizer)


def test_a_long_answer_is_shown_by_its_ends():
    tokenizer = small_tokenizer()
    ids = tokenizer("a b c " * 40, add_special_tokens=False).input_ids
    assert f" ... {len(ids) - 24} more ... " in _scored(ids, tokenizer)


@pytest.fixture
def tokenizer_folder(tmp_path):
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "tokenizer"


def test_the_command_prints_it_and_trains_nothing(source, tokenizer_folder, capsys):
    argv = ["data", str(source), "--model", str(tokenizer_folder), "--eval-fraction", "0.5"]
    assert main([*argv, "--prompt-format", r"Q: {}\nA:"]) == 0
    said = capsys.readouterr().out
    assert "3 questions, 4 pairs" in said and "<s>Q: Do bats see?\\nA:" in said
    assert main([*argv, "--max-length", "3"]) == 2
    assert "--max-length is 3" in capsys.readouterr().err
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
