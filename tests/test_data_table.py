"""A table: rows in Arrow, read when they are asked for, some of them, in any order."""

import pytest

from data import read_preferences


@pytest.fixture
def table(questions_csv):
    return read_preferences(str(questions_csv)).preferences


def test_a_table_shows_some_of_its_rows_in_any_order(table):
    prompts = [p.prompt for p in table]
    assert [p.prompt for p in table.select([3, 0])] == [prompts[3], prompts[0]]
    assert [p.prompt for p in table[1:3]] == prompts[1:3] == [table[i].prompt for i in (1, 2)]
    assert len(table.select([3, 0]).select([1])) == 1
    assert table.select([3, 0]).select([1])[0].prompt == prompts[0]
    with pytest.raises(IndexError):
        table[5]


@pytest.mark.parametrize("at_once", [2, 1000])
def test_a_mapped_table_shows_what_a_function_makes_of_each_item(table, at_once, monkeypatch):
    monkeypatch.setattr("data.table.ROWS_AT_ONCE", at_once)
    expected = [(p.prompt, len(p.rejected)) for p in table]
    mapped = table.map(lambda p: (p.prompt, len(p.rejected)))
    assert list(mapped) == expected and len(mapped) == 5
    assert mapped[3] == expected[3] and list(mapped[1:3]) == expected[1:3]
    assert list(table.select([3, 0]).map(len_of_prompt)) == [len(expected[i][0]) for i in (3, 0)]
    assert list(mapped.select([3, 0])) == [expected[3], expected[0]]
    assert list(mapped.map(lambda item: item[1])) == [count for _, count in expected]
    assert mapped.place(2) == table.place(2)  # the rows are the same


def len_of_prompt(preference):
    return len(preference.prompt)


def test_a_function_is_asked_for_no_more_items_than_are_looked_at(table):
    looked_at = []
    mapped = table.map(lambda p: looked_at.append(p.prompt))
    assert len(mapped) == 5 and not looked_at
    mapped[2], mapped[4]
    assert looked_at == [table[2].prompt, table[4].prompt]
