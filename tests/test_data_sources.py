"""Sources: every format gives the same rows, and a place for each."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import python_process, small_tokenizer
from datasets import Dataset, DatasetDict
from hub import hub

from data import DataError, load_preferences, read_preferences
from data.report import shortcuts
from data.sources import BUILTIN
from data.table import key_of

TRUTHFULQA = Path(__file__).parents[2] / "shared" / "truthfulqa" / "TruthfulQA.csv"
ROWS = [
    {"prompt": "Do bats see?", "chosen": "Yes", "rejected": "No"},
    {"prompt": "Is lead\nheavy?", "chosen": "It is, and dense", "rejected": 'No, it is "light"'},
    {"prompt": "Wer?", "chosen": "Jäger 🦇", "rejected": "אף אחד"},
]
EXPECTED = [(row["prompt"], row["chosen"], (row["rejected"],)) for row in ROWS]


COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
BY_NUMBER = {name: dict(zip("012", cells, strict=True)) for name, cells in COLUMNS.items()}


def as_json(value, **how):
    return lambda path: path.write_text(json.dumps(value, **how), encoding="utf-8")


def packed(write):
    """Return what writes with `write`, and packs that as the name says."""

    def packed_too(path):
        import pyarrow

        plain = path.with_suffix("")
        write(plain)
        kind = {".gz": "gzip", ".zst": "zstd"}[path.suffix]
        with pyarrow.output_stream(str(path), compression=kind) as file:
            file.write(plain.read_bytes())
        plain.unlink()

    return packed_too


def as_csv(path, delimiter=","):
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS = {
    "rows.csv": as_csv,
    "rows.tsv": lambda path: as_csv(path, "\t"),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
    "lines.json": lambda path: path.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8"
    ),
    "rows.jsonl": lambda path: path.write_text(
        "\n\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8"
    ),
    "indented.json": as_json(ROWS, indent=2),
    "lines-that-are-a-list.jsonl": as_json(ROWS, indent=2),
    "within-data.json": as_json({"version": 1, "data": ROWS}),
    "within-anything.json": as_json({"questions": ROWS}, indent=1),
    "columns.json": as_json(COLUMNS),
    "columns-by-number.json": as_json(BY_NUMBER),  # as pandas writes it
    "rows.csv.gz": packed(as_csv),
    "rows.tsv.zst": packed(lambda path: as_csv(path, "\t")),
    "rows.json.gz": packed(as_json(ROWS)),
    "rows.jsonl.zst": packed(
        lambda path: path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    ),
    "rows.parquet": lambda path: Dataset.from_list(ROWS).to_parquet(path),
    "saved": lambda path: Dataset.from_list(ROWS).save_to_disk(path),
    "one-split": lambda path: DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(path),
}


def triples(preferences):
    return [(p.prompt, p.chosen, p.rejected) for p in preferences]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_preferences(tmp_path, name):
    WRITERS[name](tmp_path / name)
    found = load_preferences(str(tmp_path / name))
    assert triples(found) == EXPECTED
    assert all(name in p.place for p in found)


def test_one_object_is_one_row_even_over_several_lines(tmp_path):
    for name, how in (("one.json", {}), ("lines.jsonl", {"indent": 2})):
        as_json(ROWS[0], **how)(tmp_path / name)
        assert triples(load_preferences(str(tmp_path / name))) == EXPECTED[:1]
    # lists of answers are as long as each other, and still no columns: the prompt is none
    row = {"prompt": "Why?", "chosen": ["Yes"], "rejected": ["No"]}
    as_json(row)(tmp_path / "one.json")
    assert triples(load_preferences(str(tmp_path / "one.json"))) == [("Why?", "Yes", ("No",))]


def test_messages_in_one_object_are_no_columns(tmp_path):
    """One row of two conversations of equal length, which looks like two columns of two rows."""
    asked = {"role": "user", "content": "Why?"}
    chosen, rejected = ([asked, {"role": "assistant", "content": a}] for a in ("Yes", "No"))
    as_json({"chosen": chosen, "rejected": rejected})(tmp_path / "one.json")
    assert triples(load_preferences(str(tmp_path / "one.json"))) == [("Why?", "Yes", ("No",))]


NO_ROWS = "the columns none|is empty"
PACKED = {
    "cut.jsonl.gz": (gzip.compress(json.dumps(ROWS[0]).encode() * 99)[:-20], "cannot be read"),
    "none.csv.gz": (b"prompt,chosen,rejected", "cannot be read"),
    "none.jsonl.zst": (b"{}", "cannot be read"),
    "empty.csv.gz": (gzip.compress(b""), NO_ROWS),
    "empty.jsonl.gz": (gzip.compress(b""), NO_ROWS),
    "latin-1.csv.gz": (gzip.compress(b"prompt,chosen,rejected\nJ\xe4ger,a,b\n"), "UTF-8"),
    "rows.parquet.gz": (gzip.compress(b"PAR1"), "rows are read from .csv"),
    "rows.csv.zip": (b"PK", "rows are read from .csv"),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_file_that_cannot_be_unpacked_is_named(tmp_path, name):
    content, complaint = PACKED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*({complaint})"):
        load_preferences(str(tmp_path / name))


@pytest.mark.parametrize("name", WRITERS)
def test_a_large_source_is_stored_and_reads_the_same_the_second_time(tmp_path, name, monkeypatch):
    monkeypatch.setattr("data.gather.SMALL", 0)
    WRITERS[name](tmp_path / name)
    first = read_preferences(str(tmp_path / name), folder=tmp_path / "cache")
    file, digest = sorted((tmp_path / "cache").iterdir())  # nothing half-made beside them
    assert (file.suffix, digest.suffix) == (".arrow", ".sha256")
    monkeypatch.setattr("data.gather.parse_row", None)  # the second time nothing is parsed
    second = read_preferences(str(tmp_path / name), folder=tmp_path / "cache")
    assert triples(first.preferences) == triples(second.preferences) == EXPECTED
    assert file.stat().st_mode & 0o077 == file.parent.stat().st_mode & 0o077 == 0


def test_another_content_or_reading_is_stored_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("data.gather.SMALL", 0)
    path = tmp_path / "rows.jsonl"
    WRITERS["rows.jsonl"](path)
    keys = [read_preferences(str(path), folder=tmp_path / "cache").key]
    columns = "prompt=prompt,chosen=rejected,rejected=chosen"
    keys.append(read_preferences(str(path), columns, folder=tmp_path / "cache").key)
    path.write_text(path.read_text().replace("bats", "cats"), encoding="utf-8")
    keys.append(read_preferences(str(path), folder=tmp_path / "cache").key)
    assert len(set(keys)) == 3


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "one bit", "no digest"])
def test_a_damaged_store_is_named_and_made_anew(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr("data.gather.SMALL", 0)
    WRITERS["rows.jsonl"](tmp_path / "rows.jsonl")

    def read():
        return triples(
            read_preferences(str(tmp_path / "rows.jsonl"), folder=tmp_path / "cache").preferences
        )

    read()
    (file,) = (tmp_path / "cache").glob("*.arrow")
    whole = file.read_bytes()
    flipped = bytes([whole[len(whole) // 2] ^ 1])
    contents = {
        "cut": whole[:-20], "empty": b"", "zeros": bytes(len(whole)),
        "one bit": whole[: len(whole) // 2] + flipped + whole[len(whole) // 2 + 1 :],
    }  # fmt: skip
    if damage == "no digest":
        file.with_suffix(".sha256").unlink()
    else:
        file.write_bytes(contents[damage])
    assert read() == EXPECTED
    assert f"The stored {file} is damaged" in capsys.readouterr().out
    assert file.read_bytes() == whole


def test_a_source_that_changes_while_it_is_read_is_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr("data.gather.SMALL", 0)
    path = tmp_path / "rows.jsonl"
    WRITERS["rows.jsonl"](path)

    def meanwhile(rows, label, total):
        for row in rows:
            path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
            yield row

    with pytest.raises(DataError, match="rows.jsonl changed while it was read"):
        read_preferences(str(path), folder=tmp_path / "cache", watch=meanwhile)
    assert not list((tmp_path / "cache").iterdir())


def test_a_store_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("data.gather.SMALL", 0)
    WRITERS["rows.jsonl"](tmp_path / "rows.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/cache cannot be made"):
        read_preferences(str(tmp_path / "rows.jsonl"), folder=tmp_path / "file" / "cache")


def test_two_processes_may_store_the_same_source_at_once(tmp_path):
    WRITERS["rows.jsonl"](tmp_path / "rows.jsonl")
    code = (
        "import pathlib, data.gather; data.gather.SMALL = 0\n"
        "r = data.read_preferences('rows.jsonl', folder=pathlib.Path('store'))\n"
        "print(len(r.preferences))"
    )
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: python_process(tmp_path, ["-c", code]), range(2)))
    assert [run.stdout for run in runs] == ["3\n"] * 2, [run.stderr for run in runs]


def test_what_is_stored_has_another_name_once_the_code_is_another(tmp_path, monkeypatch):
    names = []
    for code in ("a = 1", "a = 2"):
        (tmp_path / "table.py").write_text(code)
        monkeypatch.setattr("data.table.__file__", str(tmp_path / "table.py"))
        names.append(key_of("content", {"template": "plain"}))
    assert names[0] != names[1] == key_of("content", {"template": "plain"})


def test_a_killed_reading_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    monkeypatch.setattr("data.gather.SMALL", 0)
    WRITERS["rows.jsonl"](tmp_path / "rows.jsonl")

    def killed(rows, label, total):
        if label == "Gathering questions":
            raise KeyboardInterrupt
        return rows

    with pytest.raises(KeyboardInterrupt):
        read_preferences(str(tmp_path / "rows.jsonl"), folder=tmp_path / "cache", watch=killed)
    assert not list((tmp_path / "cache").iterdir())


def test_several_splits_of_a_folder_are_named(tmp_path):
    rows = Dataset.from_list(ROWS)
    DatasetDict(first=rows, second=rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="several splits.*saved/first"):
        load_preferences(str(tmp_path / "saved"))
    assert triples(load_preferences(str(tmp_path / "saved" / "second"))) == EXPECTED


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Data sets of the Hub: two splits, and one with two configurations."""
    folder = tmp_path_factory.mktemp("hub")
    rows = Dataset.from_list(ROWS)
    (folder / "two" / "data").mkdir(parents=True)
    rows.to_parquet(folder / "two" / "data" / "train-00000-of-00001.parquet")
    rows.select([0]).to_parquet(folder / "two" / "data" / "test-00000-of-00001.parquet")
    (folder / "prefs" / "easy").mkdir(parents=True)
    rows.select([1]).to_parquet(folder / "prefs" / "easy" / "test_prefs-00000-of-00001.parquet")
    rows.select([2]).to_parquet(folder / "prefs" / "easy" / "train_prefs-00000-of-00001.parquet")
    (folder / "prefs" / "README.md").write_text(
        "---\nconfigs:\n- config_name: easy\n  data_files:\n"
        "  - split: train_prefs\n    path: easy/train_prefs-*\n"
        "  - split: test_prefs\n    path: easy/test_prefs-*\n---\n"
    )
    return {"datasets/org/two": folder / "two", "datasets/org/prefs": folder / "prefs"}


REPORTS = """
import sys
from run.__main__ import main
for source in sys.argv[2:]:
    for stream in (sys.stdout, sys.stderr):
        print("--", source, file=stream, flush=True)
    status = main(["data", source, "--model", sys.argv[1], "--eval-fraction", "0.5"])
    print("status", status, flush=True)
"""


def reports(tmp_path, endpoint, *sources, **environment):
    """Run the data report on Hub ids, with a small tokenizer; return what it said of each."""
    small_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "llama"}')
    argv = ["-c", REPORTS, str(tmp_path / "tokenizer"), *sources]
    done = python_process(tmp_path, argv, endpoint, **environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    streams = [stream.split("-- ")[1:] for stream in (done.stdout, done.stderr)]
    return ["".join(both) for both in zip(*streams, strict=True)]


def test_data_sets_of_the_hub_with_their_configurations_and_splits(repositories, tmp_path):
    sources = ("org/two", "org/two::test", "org/prefs", "org/prefs:hard", "org/absent")
    with hub(repositories) as (endpoint, _):
        train, test, several, hard, absent = reports(tmp_path, endpoint, *sources)
    assert "org/two: 3 questions" in train and "status 0" in train  # the split `train`, of two
    assert "of 1 question leaves" in test  # one question only
    assert "name one: org/prefs::train_prefs, org/prefs::test_prefs" in several
    assert "hard" in hard and "easy" in hard
    assert "the data set org/absent of the Hub could not be read" in absent
    assert all("status 2" in said for said in (test, several, hard, absent))


def test_a_private_data_set_needs_its_token(repositories, tmp_path):
    with hub(repositories, gated=["datasets/org/two"]) as (endpoint, _):
        (said,) = reports(tmp_path, endpoint, "org/two")
        assert "status 2" in said and said.count("org/two") > 1
        (said,) = reports(tmp_path, endpoint, "org/two", ACCESS_TOKEN="hf_right")
        assert "org/two: 3 questions" in said and "hf_right" not in said


@pytest.mark.skipif(not TRUTHFULQA.exists(), reason="needs the authors' CSV beside the project")
def test_the_authors_csv_reads_whole():
    preferences = load_preferences(str(TRUTHFULQA))
    assert len(preferences) == 637  # trailing separators in 22 of its rows make no empty answers
    assert all(p.chosen not in p.rejected and p.rejected for p in preferences)


def test_the_built_in_questions_are_many_enough_and_complete():
    questions = load_preferences("builtin")
    assert len(questions) >= 500
    for q in questions:
        assert 3 <= len(q.rejected) <= 5, q.prompt
        assert len(q.correct) >= 1, q.prompt  # with the best one, two correct answers or more
        assert not set(q.rejected) & {q.chosen, *q.correct}, q.prompt
    text = BUILTIN.read_text(encoding="utf-8")
    assert text.count("https://") >= len(questions)  # each row names its source


def test_the_built_in_questions_offer_no_shortcut():
    style = shortcuts(load_preferences("builtin"))
    assert style.length_alone <= 0.6
    assert abs(style.negation_chosen - style.negation_rejected) <= 0.1
