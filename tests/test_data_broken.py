"""Broken inputs: each gives the right reading or one error that names file, row and column.

`READ` has the preferences that a source gives, and the notes that it leaves; `REFUSED` has the
error. Nothing is skipped in silence, and nothing ends in a traceback.
"""

import datetime
import json
import os
import re

import pytest
from conftest import small_tokenizer

from data import (
    DataError,
    TextSettings,
    encode,
    examine,
    load_preferences,
    read_preferences,
    split_by_prompt,
)
from data.question import (
    CONTRADICTED,
    EMPTY,
    NO_CHOSEN,
    NO_PAIR,
    NO_PROMPT,
    NO_SHARED_PROMPT,
    NOT_A_TURN,
    REPEATED,
    SAME_AS_CHOSEN,
    TIED,
)
from data.table import count_notes

HEADER = "prompt,chosen,rejected\n"
TRUTHFULQA = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"


def line(**row):
    """One good row, changed."""
    return json.dumps({"prompt": "Why?", "chosen": "Yes", "rejected": "No"} | row) + "\n"


def triple(chosen="Yes", *rejected, prompt="Why?"):
    return (prompt, chosen, rejected or ("No",))


def turns(*said):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def winner(won, **row):
    """One row of two answers, of which one won."""
    two = {"prompt": "Good?", "response_a": "Yes", "response_b": "No", "winner": won}
    return json.dumps(two | row) + "\n"


GOOD = line(prompt="Good?")
FINE = triple(prompt="Good?")
MEGABYTE = "word " * 200_000
DEEP = '[{"role": ' + "[" * 2000

# name -> (content, preferences, reasons of its notes)
READ = {
    # CSV
    "bom.csv": (b"\xef\xbb\xbf" + HEADER.encode() + b"Why?,Yes,No\n", [triple()], []),
    "crlf.csv": (f"{HEADER}Why?,Yes,No\r\n".encode(), [triple()], []),
    "only-cr.csv": (HEADER.replace("\n", "\r") + "Why?,Yes,No\r", [triple()], []),
    "no-final-newline.csv": (f"{HEADER}Why?,Yes,No", [triple()], []),
    "blank-lines.csv": (f"{HEADER}\nWhy?,Yes,No\n\n", [triple()], []),
    "quotes.csv": (f'{HEADER}"Why, ""really""?",Yes,No\n', [triple(prompt='Why, "really"?')], []),
    "newline-in-a-cell.csv": (f'{HEADER}"Why\nso?",Yes,No\n', [triple(prompt="Why\nso?")], []),
    "numbers.csv": (f"{HEADER}2+2?,4,5\n", [triple("4", "5", prompt="2+2?")], []),
    "leading-zeros.csv": (f"{HEADER}Why?,007,1e5\n", [triple("007", "1e5")], []),
    "words-for-nothing.csv": (f"{HEADER}Why?,None,NA\n", [triple("None", "NA")], []),
    "null-nan.csv": (f"{HEADER}Why?,null,NaN\n", [triple("null", "NaN")], []),
    "true-false.csv": (f"{HEADER}Why?,True,False\n", [triple("True", "False")], []),
    "dates.csv": (f"{HEADER}When?,2020-01-01,1999\n", [triple("2020-01-01", "1999", prompt="When?")], []),
    "formulas.csv": (f"{HEADER}Why?,=1+1,-1\n", [triple("=1+1", "-1")], []),
    "outer-spaces.csv": (f"{HEADER} Why? , Yes,No \n", [triple(" Yes", "No ", prompt=" Why? ")], []),
    "upper-case-header.csv": ("Prompt,CHOSEN,Rejected\nWhy?,Yes,No\n", [triple()], []),
    "spaces-in-header.csv": ("prompt , chosen,rejected \nWhy?,Yes,No\n", [triple()], []),
    "many-columns.csv": ("id,prompt,chosen,rejected,x\n1,Why?,Yes,No,9\n", [triple()], []),
    "megabyte.csv": (f"{HEADER}Why?,{MEGABYTE},No\n", [triple(MEGABYTE)], []),
    "empty-chosen.csv": (f"{HEADER}Why?,,No\nGood?,Yes,No\n", [FINE], [NO_CHOSEN]),
    "empty-prompt.csv": (f"{HEADER},Yes,No\nGood?,Yes,No\n", [FINE], [NO_PROMPT]),
    "empty-rejected.csv": (f"{HEADER}Why?,Yes,\nGood?,Yes,No\n", [FINE], [EMPTY, NO_PAIR]),
    "spaces-only.csv": (f'{HEADER}Why?,"  ",No\nGood?,Yes,No\n', [FINE], [NO_CHOSEN]),
    "same.csv": (f"{HEADER}Why?,Yes,Yes\nGood?,Yes,No\n", [FINE], [SAME_AS_CHOSEN, NO_PAIR]),
    "repeated.csv": (f"{HEADER}Why?,Yes,No\nWhy?,Yes,No\n", [triple()], [REPEATED]),
    "both-ways.csv": (
        f"{HEADER}Why?,Yes,No\nWhy?,No,Yes\nGood?,Yes,No\n", [FINE],
        [CONTRADICTED, CONTRADICTED, NO_PAIR, NO_PAIR],
    ),
    "a-tab.tsv": ("prompt\tchosen\trejected\nWhy, so?\tYes\tNo\n", [triple(prompt="Why, so?")], []),
    "truthfulqa.csv": (f"{TRUTHFULQA}A,C,Why?,Yes,Yes; Sure,No; ;Never;,s\n",
                       [triple("Yes", "No", "Never")], [EMPTY]),
    # JSON and JSONL
    "bom.jsonl": (b"\xef\xbb\xbf" + line().encode(), [triple()], []),
    "bom.json": (b"\xef\xbb\xbf[" + line().encode() + b"]", [triple()], []),
    "lines-called.json": (line() + GOOD, [triple(), FINE], []),
    "spaces-first.json": (f"\n\n  [{line()}]", [triple()], []),
    "missing-optional.jsonl": (line(category="c") + GOOD, [triple(), FINE], []),
    "null-chosen.jsonl": (line(chosen=None) + GOOD, [FINE], [NO_CHOSEN]),
    "null-prompt.jsonl": (line(prompt=None) + GOOD, [FINE], [NO_PROMPT]),
    "null-in-a-list.jsonl": (line(rejected=["No", None]), [triple()], [EMPTY]),
    "no-rejected.jsonl": (line(rejected=[]) + GOOD, [FINE], [NO_PAIR]),
    "nul-character.jsonl": (line(chosen="Y\0es"), [triple("Y\0es")], []),
    "right-to-left.jsonl": (line(chosen="כן \u202eabc", rejected="לא"), [triple("כן \u202eabc", "לא")], []),
    "emoji.jsonl": (line(chosen="👩‍👩‍👧‍👦🏳️‍🌈", rejected="🇫🇷"), [triple("👩‍👩‍👧‍👦🏳️‍🌈", "🇫🇷")], []),
    "combining.jsonl": (line(chosen="e\u0301", rejected="é"), [triple("e\u0301", "é")], []),
    "line-separators.jsonl": (line(chosen="a\u2028b\u2029c\x85d"), [triple("a\u2028b\u2029c\x85d")], []),
    "raw-line-separators.jsonl": (
        '{"prompt": "Why?", "chosen": "a\u2028b\x85c", "rejected": "No"}\n', [triple("a\u2028b\x85c")], [],
    ),
    "surrogate-pair.jsonl": (
        b'{"prompt": "Why?", "chosen": "\\ud83e\\udd87", "rejected": "No"}\n', [triple("🦇")], [],
    ),
    "zero-width.jsonl": (line(chosen="\u200b", rejected="No"), [triple("\u200b")], []),
    "private-use.jsonl": (line(chosen="\ue000 <end>"), [triple("\ue000 <end>")], []),
    "megabyte.jsonl": (line(rejected=MEGABYTE), [triple("Yes", MEGABYTE)], []),
    "template.jsonl": (line(chosen="<end_of_turn>\n<start_of_turn>user"),
                       [triple("<end_of_turn>\n<start_of_turn>user")], []),
    "bos.jsonl": (line(prompt="<bos><s>"), [triple(prompt="<bos><s>")], []),
    "jinja.jsonl": (line(chosen="{{ bos_token }}{% raw %}"), [triple("{{ bos_token }}{% raw %}")], []),
    "format.jsonl": (line(chosen="{} {0} %s \\n"), [triple("{} {0} %s \\n")], []),
    "list-as-text.jsonl": (line(chosen='["a", "b"]'), [triple('["a", "b"]')], []),
    "messages-as-text.csv": (
        f"""{HEADER}Why?,"[{{""role"": ""assistant"", ""content"": ""Yes""}}]",No\n""", [triple()], [],
    ),
    "mixed-list.jsonl": (line(rejected=["No", {"role": "assistant", "content": "x"}]),
                         [triple("Yes", "No", "x")], []),
    "object.jsonl": (line(chosen={"text": "Yes"}), [triple()], []),
    "json-answers.jsonl": (
        line(chosen='{"content": "Yes"}', rejected=['{"value": 3}', '[{"value": 3}]']),
        [triple('{"content": "Yes"}', '{"value": 3}', '[{"value": 3}]')], [],
    ),
    "deep-text.jsonl": (line(chosen=DEEP), [triple(DEEP)], []),
    "odd-category.jsonl": (line(category=["c"]), [triple()], []),
    "late-system.jsonl": (line() * 120 + line(system="s"), [triple(), triple()], [REPEATED] * 119),
    "user-last.jsonl": (
        line(prompt=turns("Why?"), chosen=turns("Yes"), rejected=turns("No")) + GOOD, [FINE], [NOT_A_TURN],
    ),
    "assistant-asks.jsonl": (line(prompt=turns("Hi", "Why?")) + GOOD, [FINE], [NOT_A_TURN]),
    "tie.jsonl": (winner("a") + winner("tie", prompt="Why?"), [FINE], [TIED]),
    "no-shared-prompt.jsonl": (
        '{"chosen": "Yes", "rejected": "No"}\n{"chosen": "Good? Yes", "rejected": "Good? No"}\n',
        [("Good?", " Yes", (" No",))], [NO_SHARED_PROMPT],
    ),
}  # fmt: skip


# name -> (content, what the error says)
REFUSED = {
    "empty.csv": (b"", "empty.csv is empty"),
    "header-only.csv": (HEADER, "header-only.csv holds no question"),
    "empty.jsonl": (b"", "is empty"),
    "blank.jsonl": ("\n\n", "the columns none"),
    "empty-prompt-list.jsonl": (line(prompt=[]), "no question to train on: rows without a prompt"),
    "empty-list.json": ("[]", "the columns none"),
    "latin-1.csv": (HEADER.encode() + b"Why?,J\xe4ger,No\n", "cannot be read as a UTF-8 CSV: .*position 29"),
    "latin-1.jsonl": (b'{"prompt": "J\xe4ger"}\n', "is no UTF-8 text"),
    "utf-16.csv": ((HEADER + "Why?,Yes,No\n").encode("utf-16"), "cannot be read as a UTF-8 CSV"),
    "utf-16-no-bom.csv": ((HEADER + "Why?,Yes,No\n").encode("utf-16-le"), "line 2: a NUL byte"),
    "nul.csv": (f"{HEADER}Why?,Y\0es,No\n", "line 2: a NUL byte"),
    "binary.csv": (bytes(range(256)), "cannot be read as a UTF-8 CSV"),
    "too-many-cells.csv": (f"{HEADER}Why?,Yes,No,4\n", r"line 2: 4 cells under 3 columns \('prompt'"),
    "too-few-cells.csv": (f"{HEADER}Good?,Yes,No\nWhy?,Yes\n", "line 3: 2 cells under 3 columns"),
    "unquoted-comma.csv": (f"{HEADER}Why, so?,Yes,No\n", "line 2: 4 cells"),
    "open-quote.csv": (f'{HEADER}Why?,"Yes,No\n', "not a valid CSV .*check the quotes"),
    "text-after-quote.csv": (f'{HEADER}"Why"?,Yes,No\n', "line 2: not a valid CSV"),
    "twice.csv": ("prompt,chosen,chosen,rejected\nWhy?,a,b,c\n", "two columns are called 'chosen'"),
    "semicolons.csv": ("prompt;chosen;rejected\nWhy?;Yes;No\n", "line 2: .* separated by ';'"),
    "semicolons-and-commas.csv": (
        "prompt;chosen;rejected\nWhy, now?;Yes, it is;No\n", "line 2: .* separated by ';'"
    ),
    "no-header.csv": ("Why?,Yes,No\n", "the columns 'Why\\?', 'Yes', 'No'"),
    "no-rejected.csv": ("prompt,chosen\nWhy?,Yes\n", "do not tell the chosen"),
    "messages-as-python.csv": (
        f"""{HEADER}Why?,"[{{'role': 'assistant', 'content': 'Yes'}}]",No\n""",
        "line 2, column 'chosen': .*messages written as Python text",
    ),
    "number.jsonl": (
        GOOD + line(chosen=4), r"line 2, column 'chosen': 4: int where text is needed \(1 of 2 rows",
    ),
    "float.jsonl": (line(rejected=0.5), "column 'rejected': 0.5: float"),
    "true.jsonl": (line(prompt=True), "column 'prompt': True: bool"),
    "nan.jsonl": ('{"prompt": "Why?", "chosen": NaN, "rejected": "No"}', "column 'chosen': nan: float"),
    "strange-object.jsonl": (line(chosen={"colour": "red"}), "column 'chosen': .*dict where text"),
    "number-in-list.jsonl": (line(rejected=["No", 3]), "column 'rejected': .*int where text"),
    "object-in-list.jsonl": (line(rejected=["No", {"colour": "x"}]), "dict where text"),
    "nested-lists.jsonl": (line(rejected=[[["No"]]]), "a message needs a 'role'"),
    "two-chosen.jsonl": (line(chosen=["Yes", "Sure"]), "column 'chosen': .*one chosen answer"),
    "no-chosen.jsonl": (line(chosen=[]), "column 'chosen': .*one chosen answer"),
    "category.jsonl": (line(category="c") * 2 + line(category=["c"]), "column 'category': .*list where text"),
    "misspelt.jsonl": (GOOD + '{"prompt": "Why?", "chosn": "Yes", "rejected": "No"}', "line 2: no 'chosen'"),
    "late-column.jsonl": (
        line() * 1001 + line(system="s"), "line 1002: .*'system'",
    ),
    "unclaimed.jsonl": (line(context="Bats fly."), "'context' holds text that no role claims"),
    "unclear-winner.jsonl": (winner(0) + winner(1), "'winner' has the values 0, 1, and nothing says"),
    "no-answer-won.jsonl": (winner("a") + winner("c"), "'winner' has the values a, c, and nothing says"),
    "long-winner.jsonl": (winner(MEGABYTE) + winner("a"), "'winner' has the values .*, and nothing says"),
    "deep-value.jsonl": (
        line()[:-2] + ', "extra": ' + "[" * 900 + '"words"' + "]" * 900 + "}\n", "deep-value",
    ),
    "long-number.jsonl": ("[" + "9" * 5000 + "]", "not valid JSON"),
    "half-surrogate.jsonl": (
        b'{"prompt": "Why?", "chosen": "\\ud83e", "rejected": "No"}', "half a surrogate pair",
    ),
    "not-json.jsonl": (GOOD + "{prompt: Why?}\n", "line 2: not valid JSON"),
    "cut-off.jsonl": (GOOD + line()[:20], "line 2: not valid JSON"),
    "cut-off.json": (f"[{line()}", "cut-off.json: not valid JSON"),
    "list-line.jsonl": (GOOD + '["Why?", "Yes", "No"]\n', "line 2: .* is no object"),
    "number-row.json": ("[3]", "row 1: 3 is no object"),
    "twice.jsonl": ('{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}', "'prompt' comes twice"),
    "deep.jsonl": ("[" * 100_000 + "\n", "not valid JSON"),
    "role-missing.jsonl": (line(chosen=[{"content": "Yes"}]), "a message needs a 'role'"),
    "null-content.jsonl": (line(chosen=[{"role": "assistant", "content": None}]), "'content' of text"),
    "nobody-answers.jsonl": (
        line(prompt=turns("Why?"), chosen=turns("Yes"), rejected=turns("No")),
        "no question to train on: rows whose turns do not lead from a user's to an answer, left out: 1",
    ),
    "nobody-asks.jsonl": (
        line(prompt=turns("Hi", "Why?")),
        "no question to train on: rows whose turns do not lead from a user's to an answer, left out: 1",
    ),
    "scores.jsonl": (
        '{"instruction": "Why?", "completions": [{"response": "a", "overall_score": "N/A"}]}',
        "column 'completions': .*: 'N/A' is no grade; a number is needed",
    ),
    "huge-score.jsonl": (
        '{"instruction": "Why?", "completions": [{"response": "a", "score": 1' + "0" * 400 + "}]}",
        "column 'completions': .*is no grade; a number is needed",
    ),
    "completions.jsonl": (
        '{"instruction": "Why?", "completions": []}', "'completions' do not tell the chosen",
    ),
    "nothing-left.jsonl": (line(chosen="No"), "no question to train on: rejected answers equal"),
    "not-parquet.parquet": (b"PAR1 not really", "not-parquet.parquet could not be read as Parquet"),
    "empty.parquet": (b"", "empty.parquet is empty"),
    "rows.xlsx": (b"PK", "rows are read from .csv"),
}  # fmt: skip


def source(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return str(path)


def test_there_are_more_than_a_hundred_of_them():
    assert len(READ) + len(REFUSED) > 100


@pytest.mark.parametrize("name", READ)
def test_the_right_reading_with_a_note_for_everything_left_out(tmp_path, name):
    content, expected, reasons = READ[name]
    reading = read_preferences(source(tmp_path, name, content))
    assert [(p.prompt, p.chosen, p.rejected) for p in reading.preferences] == expected
    notes = count_notes(reading.preferences.dataset)
    assert sorted(r for r, (count, _) in notes.items() for _ in range(count)) == sorted(reasons)
    for _, places in notes.values():
        assert all(re.match(rf".*{name}, (line|row) \d+", place) for place in places)


@pytest.mark.parametrize("name", REFUSED)
def test_one_clear_error_that_names_the_place(tmp_path, name):
    content, complaint = REFUSED[name]
    with pytest.raises(DataError, match=complaint) as error:
        load_preferences(source(tmp_path, name, content))
    message = str(error.value)
    assert name in message and "\n" not in message and len(message) < 600


@pytest.mark.parametrize("name", [n for n in READ if "megabyte" not in n])
def test_what_was_read_encodes_and_is_reported(tmp_path, name):
    """Whatever the text, its scored tokens decode to it, and a report can be printed."""
    reading = read_preferences(source(tmp_path, name, READ[name][0]))
    tokenizer = small_tokenizer()
    encoding = encode(reading.preferences, tokenizer)
    for p, q in zip(reading.preferences, encoding.questions, strict=True):
        space = "" if p.verbatim else " "
        assert [tokenizer.decode(a) for a in q.trained] == [
            f"{space}{text}</s>" for text in (p.chosen, *p.rejected)
        ]
    split = split_by_prompt(encoding.questions.column("key").tolist(), 0, 0)
    report = examine([reading], [encoding], tokenizer, split, TextSettings())
    assert all("\n" not in text for _, text in report.lines)
    for reason in READ[name][2]:
        assert any(reason in text for _, text in report.lines)


def parquet(path, rows, **more):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, **more), path)
    return str(path)


def test_a_parquet_file_is_the_one_named_as_it_is_now(tmp_path):
    row = {"prompt": "Why?", "chosen": "Yes", "rejected": "No"}
    parquet(tmp_path / "x1.parquet", [row | {"chosen": "from x1"}])
    path = tmp_path / "x[1].parquet"  # no pattern
    stamp = (1, 1)
    for chosen in ("first", "second"):  # rewritten under the same time
        parquet(path, [row | {"chosen": chosen}])
        os.utime(path, stamp)
        assert [p.chosen for p in load_preferences(str(path))] == [chosen]
    with pytest.raises(DataError, match="holds no question"):
        import pyarrow

        strings = pyarrow.schema([(name, pyarrow.string()) for name in row])
        load_preferences(parquet(tmp_path / "none.parquet", [], schema=strings))


def test_parquet_columns_of_other_types(tmp_path):
    import pyarrow

    row = {"prompt": "Why?", "chosen": "Yes", "rejected": ["No", None], "metadata": [("k", 1)]}
    schema = pyarrow.schema([
        ("prompt", pyarrow.large_string()), ("chosen", pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
        ("rejected", pyarrow.large_list(pyarrow.string())),
        ("metadata", pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    ])  # fmt: skip
    (p,) = load_preferences(parquet(tmp_path / "odd.parquet", [row], schema=schema))
    assert (p.chosen, p.rejected) == ("Yes", ("No",))
    for value in (b"Yes", datetime.date(2020, 1, 1)):
        path = parquet(tmp_path / "bad.parquet", [row | {"chosen": value, "metadata": None}])
        with pytest.raises(DataError, match="bad.parquet, row 1, column 'chosen': .* where text"):
            load_preferences(path)


def test_a_saved_folder_is_read_whatever_format_it_was_left_in(tmp_path):
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": "Why?", "chosen": "Yes", "rejected": ["No"]}])
    rows.with_format("numpy", columns=["prompt"]).save_to_disk(tmp_path / "saved")
    (p,) = load_preferences(str(tmp_path / "saved"))
    assert (p.chosen, p.rejected) == ("Yes", ("No",))


def test_a_folder_that_is_none_of_ours_and_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="a folder must come from save_to_disk"):
        load_preferences(str(tmp_path))
    for name in (
        "none.csv",
        "none.parquet",
        "a b c",
        "../none/x/y",
        "owner/name/more",
        "~nobody-here/x.csv",
    ):
        with pytest.raises(DataError, match="there is no file"):
            load_preferences(name)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match="could not be read"):
        load_preferences(str(tmp_path))
