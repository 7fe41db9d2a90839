"""Files and folders that are complete or absent, whatever happens while they are written."""

import os

import pytest

from lora import whole, whole_folder, write_text


def test_a_folder_is_whole_or_absent(tmp_path):
    target = tmp_path / "x"
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as new:
        (new / "half").write_text("...")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):
        with whole_folder(target) as new:
            (new / "file").write_text(content)
    assert (target / "file").read_text() == "second"
    with pytest.raises(OSError), whole_folder(target) as new:
        raise OSError("disk full")
    assert (target / "file").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_interrupt_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    target = tmp_path / "x"
    with whole_folder(target) as new:
        (new / "file").write_text("first")
    real, calls = os.replace, []

    def interrupted(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, destination)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as new:
        (new / "file").write_text("second")
    assert (target / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def made(kind, new, content):
    """Write a file, or a folder that holds one."""
    if kind == "folder":
        new.mkdir()
        new = new / "file"
    new.write_text(content)


def content(kind, path):
    return (path / "file" if kind == "folder" else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_or_a_folder_takes_its_name_when_it_is_complete_and_not_before(tmp_path, kind):
    target = tmp_path / "in" / "x"  # a folder that is made for it
    for text in ("first", "second"):
        before = content(kind, target) if target.exists() else None
        with whole(target) as new:
            assert not new.exists() and new.name == target.name
            made(kind, new, text)
            assert (content(kind, target) if target.exists() else None) == before
        assert content(kind, target) == text
        assert [p.name for p in target.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("stood", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_where_the_body_raises_what_stood_there_stands_there_still(tmp_path, kind, stood, error):
    target = tmp_path / "x"
    if stood:
        made(kind, target, "first")
    with pytest.raises(error), whole(target) as new:
        made(kind, new, "half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["x"] * stood
    assert not stood or content(kind, target) == "first"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_cannot_be_flushed_does_not_take_the_name(tmp_path, kind, monkeypatch):
    """As on a disk that is full, which some systems say as late as here."""

    def full(handle):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"), whole(tmp_path / "x") as new:
        made(kind, new, "...")
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_replaced_in_one_step(tmp_path):
    for text in ("one\n", "two: é\n"):
        write_text(tmp_path / "x.json", text)
        assert (tmp_path / "x.json").read_text(encoding="utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("name", ["model", "old"])
def test_a_folder_takes_the_place_of_a_file_and_of_a_folder_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_text("a file")
    for content in ("first", "second"):
        with whole_folder(tmp_path / name) as new:
            (new / "content").write_text(content)
        assert (tmp_path / name / "content").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == [name]
