"""Several sources as one: their shares, and questions that stand in more than one of them."""

import json

import pytest

from data import DataError, ReadSettings, read_sources
from data.question import BAD_ROW, CONTRADICTED, NO_PAIR, REPEATED, UNPAIRED
from data.table import count_notes


def write(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pair(prompt, chosen="Yes", rejected="No"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def triples(reading):
    return [(p.prompt, p.chosen, p.rejected) for p in reading.preferences]


def counted(reading):
    return {reason: n for reason, (n, _) in count_notes(reading.preferences.dataset).items()}


@pytest.fixture
def ten(tmp_path):
    return write(tmp_path, "ten.jsonl", [pair(f"Ten {n}?") for n in range(10)])


@pytest.fixture
def four(tmp_path):
    return write(tmp_path, "four.jsonl", [pair(f"Four {n}?") for n in range(4)])


def test_one_source_without_a_share_is_that_source(ten):
    reading = read_sources([ten])
    assert reading.source == ten and reading.parts == ()
    assert len(reading.preferences) == reading.rows == 10


def test_sources_follow_each_other_whole_where_no_share_is_said(ten, four):
    reading = read_sources([four, ten])
    assert [p for p, _, _ in triples(reading)] == [
        *(f"Four {n}?" for n in range(4)), *(f"Ten {n}?" for n in range(10)),
    ]  # fmt: skip
    assert reading.parts == ((four, 4), (ten, 10)) and reading.rows == 14
    assert reading.source == f"{four} (4) + {ten} (10)"
    assert reading.columns.count("prompt = 'prompt'") == 2


@pytest.mark.parametrize(
    "share, count",
    [("0.5", 5), (".5", 5), ("0.26", 3), ("0.04", 1), ("1.0", 10), ("7", 7), ("10", 10), ("2", 2)],
)
def test_a_share_is_a_fraction_or_a_number_of_questions(ten, four, share, count):
    for sources in ([f"{ten}:{share}"], [f"{ten}:{share}", four]):
        reading = read_sources(sources)
        asked = [p for p, _, _ in triples(reading) if p.startswith("Ten")]
        assert len(asked) == count and asked == sorted(asked)  # each once, in their order
        assert reading.parts[0] == (ten, count)
        assert reading.rows == count + 4 * (len(sources) - 1)


@pytest.mark.parametrize("share", ["0", "1", "1.5", "0.0", "2.0"])
def test_shares_that_could_mean_two_things_are_refused(ten, four, share):
    with pytest.raises(DataError, match=f"ten.jsonl:{share}: write a share above 0.*ten.jsonl:0.5"):
        read_sources([f"{ten}:{share}", four])


def test_more_questions_than_there_are_cannot_be_drawn(ten, four):
    with pytest.raises(DataError, match="ten.jsonl:11: it has 10 questions; ask for less"):
        read_sources([four, f"{ten}:11"])


def test_a_file_whose_name_ends_like_a_share_is_that_file(tmp_path):
    path = write(tmp_path, "rows:5", [pair("Why?")])
    with pytest.raises(DataError, match="rows:5: rows are read from"):  # and not: no file `rows`
        read_sources([path])
    path = write(tmp_path, "rows:5.jsonl", [pair("Why?")])
    assert triples(read_sources([path])) == [("Why?", "Yes", ("No",))]


def test_the_seed_draws_a_share_and_nothing_else_does(ten, four):
    def drawn(seed, *sources):
        found = triples(read_sources(sources, ReadSettings(seed=seed)))
        return [p for p, _, _ in found if p.startswith("Ten")]

    first = drawn(0, f"{ten}:4")
    assert first == drawn(0, f"{ten}:4") == drawn(0, four, f"{ten}:4") == drawn(0, f"{ten}:0.4")
    assert len({tuple(drawn(seed, f"{ten}:4")) for seed in range(8)}) > 4
    assert set(first) < set(drawn(0, f"{ten}:6"))  # a larger share of one seed holds the smaller


def test_a_question_that_two_sources_have_is_one(tmp_path):
    a = write(tmp_path, "a.jsonl", [pair("Why?"), pair("Who?", "Bats", "Lead")])
    b = write(tmp_path, "b.jsonl", [pair("Why?", "Yes", ["Never", "No"]), pair("Why?", "Sure")])
    reading = read_sources([a, b])
    assert triples(reading) == [
        ("Why?", "Yes", ("No", "Never")), ("Why?", "Sure", ("No",)), ("Who?", "Bats", ("Lead",)),
    ]  # fmt: skip
    assert counted(reading) == {REPEATED: 1} and reading.rows == 4
    assert reading.preferences.column("rows").tolist() == [2, 1, 1]
    assert reading.parts == ((a, 2), (b, 2))


def test_sources_that_disagree_contradict_each_other(tmp_path):
    a = write(tmp_path, "a.jsonl", [pair("Why?", "Yes", ["No", "Never"]), pair("Who?")])
    b = write(tmp_path, "b.jsonl", [pair("Why?", "No", "Yes"), pair("How?")])
    reading = read_sources([a, b])
    assert triples(reading) == [
        ("Why?", "Yes", ("Never",)), ("Who?", "Yes", ("No",)), ("How?", "Yes", ("No",)),
    ]  # fmt: skip
    assert counted(reading) == {CONTRADICTED: 2, NO_PAIR: 1}
    places = count_notes(reading.preferences.dataset)[CONTRADICTED][1]
    assert {place.rpartition("/")[2] for place in places} == {"a.jsonl, line 1", "b.jsonl, line 1"}


def test_pairs_grades_and_single_answers_mix(tmp_path):
    a = write(tmp_path, "a.jsonl", [pair("Why?", "Yes", "No")])
    b = write(tmp_path, "b.jsonl", [
        {"prompt": "Who?", "responses": ["b", "a", "c"], "scores": [2, 3, 1]},
    ])  # fmt: skip
    c = write(tmp_path, "c.jsonl", [
        {"prompt": "Why?", "completion": "Never", "label": False},
        {"prompt": "Why?", "completion": "Yes", "label": True},
    ])  # fmt: skip
    reading = read_sources([a, b, c])
    assert triples(reading) == [("Why?", "Yes", ("No", "Never")), ("Who?", "a", ("b", "c"))]
    assert [p.levels for p in reading.preferences] == [(1, 0, 0), (3, 2, 1)]
    assert reading.rows == 4 and not counted(reading)


def test_what_a_source_leaves_out_is_noted_once(tmp_path, four):
    a = write(tmp_path, "a.jsonl", [
        pair("Good?"), pair("Why?", "Yes", "Yes"), pair("Who?", "A", "B"), pair("Who?", "B", "A"),
    ])  # fmt: skip
    alone, mixed = read_sources([a]), read_sources([a, four])
    assert counted(alone) == {"rejected answers equal to the chosen one, left out": 1,
                              CONTRADICTED: 2, NO_PAIR: 3}  # fmt: skip
    assert counted(mixed) == counted(alone)
    assert (alone.rows, mixed.rows) == (4, 8)


def test_single_answers_without_a_partner_are_noted_once(tmp_path, four):
    a = write(tmp_path, "a.jsonl", [
        {"prompt": p, "completion": c, "label": label}
        for p, c, label in (("Why?", "Yes", 1), ("Why?", "No", 0), ("Who?", "Bats", 1))
    ])  # fmt: skip
    assert counted(read_sources([a])) == counted(read_sources([a, four])) == {UNPAIRED: 1}


def test_bad_rows_are_counted_by_source(tmp_path, four):
    rows = [pair(f"Why {n}?", "Yes" if n else 3) for n in range(20)]
    reading = read_sources([write(tmp_path, "a.jsonl", rows), four])
    assert counted(reading) == {BAD_ROW: 1} and (len(reading.preferences), reading.rows) == (23, 24)
    bad = write(tmp_path, "bad.jsonl", rows[:19])  # 1 of 19, of this source alone
    with pytest.raises(DataError, match="bad.jsonl, line 1, .*1 of 19 rows cannot be read"):
        read_sources([bad, four])
    with pytest.raises(DataError, match="a.jsonl, line 1, column 'chosen'"):
        read_sources([str(tmp_path / "a.jsonl"), four], ReadSettings(skip_bad=False))


def test_columns_are_said_to_the_sources_that_have_them(tmp_path, four):
    other = write(
        tmp_path, "other.jsonl", [{"ask": "Why?", "fine": "Yes", "poor": "No", "x": "y z"}]
    )
    said = "prompt=ask,chosen=fine,rejected=poor,x=-"
    reading = read_sources([other, four], ReadSettings(said))
    assert triples(reading)[0] == ("Why?", "Yes", ("No",)) and len(reading.preferences) == 5
    assert "prompt = 'ask'" in reading.columns and "prompt = 'prompt'" in reading.columns
    for item in ("prompt=none", "none=-", "winner=none:1/2"):
        with pytest.raises(DataError, match=f"{item}.*: none of .*four.jsonl has such a column"):
            read_sources([other, four], ReadSettings(f"{said},{item}"))


def test_all_pairs_are_asked_of_every_source(tmp_path, four):
    said = ("They do", "Some do", "They are blind")
    row = pair("Do bats see?", said[0], said[2]) | {"responses": [*said], "scores": [3, 2, 1]}
    a = write(tmp_path, "a.jsonl", [row])
    best, every = (read_sources([a, four], ReadSettings(every=e)) for e in (False, True))
    assert best.preferences[0].answers == (said[0], said[2])
    assert every.preferences[0].answers == said


def test_sources_with_nothing_to_train_on_together_are_named(tmp_path):
    a = write(tmp_path, "a.jsonl", [pair("Why?", "Yes", "No")])
    b = write(tmp_path, "b.jsonl", [pair("Why?", "No", "Yes")])
    with pytest.raises(DataError, match=r"a.jsonl \(1\) \+ .*b.jsonl \(1\) hold no question"):
        read_sources([a, b])


def test_large_sources_are_stored_together_and_read_the_same_again(
    ten, four, tmp_path, monkeypatch
):
    small = read_sources([f"{ten}:4", four])
    monkeypatch.setattr("data.gather.SMALL", 0)
    store = tmp_path / "store"
    first = read_sources([f"{ten}:4", four], folder=store)
    assert small.small and not first.small
    assert triples(first) == triples(small) and first.parts == small.parts
    kept = sorted(path.name for path in store.iterdir())
    assert len(kept) == 6 and not [name for name in kept if "rows" in name]  # 3 tables, 3 digests

    for name in ("data.gather.parse_row", "data.mixture.gathered"):  # nothing is done again
        monkeypatch.setattr(name, None)
    again = read_sources([f"{ten}:4", four], folder=store)
    assert (triples(again), again.key, again.rows) == (triples(first), first.key, first.rows)
    monkeypatch.undo()


def test_a_stored_mixture_is_named_by_its_sources_their_shares_and_its_seed(
    ten, four, tmp_path, monkeypatch
):
    monkeypatch.setattr("data.gather.SMALL", 0)
    store = tmp_path / "store"

    def keep(seed, *sources):
        reading = read_sources(sources, ReadSettings(seed=seed), folder=store)
        return reading.key, triples(reading)

    found = [
        keep(0, f"{ten}:4", four), keep(1, f"{ten}:4", four), keep(0, f"{ten}:5", four),
        keep(0, ten, four), keep(0, four, ten), keep(0, f"{ten}:4"),
    ]  # fmt: skip
    assert len({key for key, _ in found}) == 6
    for i, sources in ((0, (f"{ten}:4", four)), (2, (f"{ten}:5", four)), (3, (ten, four))):
        fresh = triples(read_sources(sources, ReadSettings(seed=0)))
        assert found[i][1] == keep(0, *sources)[1] == fresh
    assert found[1][1] == triples(read_sources([f"{ten}:4", four], ReadSettings(seed=1)))
