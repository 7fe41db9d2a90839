"""What is drawn into a run's folder: a whole picture, now and then, and none of nothing."""

import json
import os

import pytest
from test_dpo_evaluation_curves import log

from run.folder import cache_folder, draw_curves


def test_the_file_is_a_picture_and_no_log_is_none(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    draw_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log(range(1))))
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in log(range(9))))
    before = (tmp_path / "curves.png").read_bytes()
    draw_curves(tmp_path, at_most_every=30)  # it is young, and stays
    assert (tmp_path / "curves.png").read_bytes() == before
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes() != before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache's folder for reference scores, with a file in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder("reference")
    (folder / "scores.json").write_text("{}")
    return folder


def test_a_cache_is_its_owners_and_stays_where_it_is(cache, capsys):
    assert cache.stat().st_mode & 0o777 == 0o700
    (cache / "scores.json").chmod(0o666)  # nobody else comes as far as this file
    assert cache_folder("reference") == cache
    cache.chmod(0o755)
    (cache / "scores.json").chmod(0o644)
    assert cache_folder("reference") == cache and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", [".", "scores.json"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o722])
def test_a_cache_that_others_may_write_is_not_trusted(cache, capsys, name, mode):
    cache.chmod(0o755)
    (cache / name).chmod(mode)
    private = cache_folder("reference")
    assert private != cache and private.stat().st_mode & 0o777 == 0o700
    assert not list(private.iterdir())
    assert f"other users may write {cache / name}" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", [".", "scores.json"])
def test_a_cache_that_somebody_else_owns_is_not_trusted(cache, capsys, name):
    os.chown(cache / name, 12345, 12345)
    assert cache_folder("reference") != cache
    assert f"{cache / name} belongs to another user" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_cache_that_is_a_link_to_what_somebody_else_owns_is_not_trusted(cache, capsys, tmp_path):
    cache.rename(tmp_path / "theirs")
    os.chown(tmp_path / "theirs", 12345, 12345)
    cache.symlink_to(tmp_path / "theirs")
    assert cache_folder("reference") != cache
    assert f"{tmp_path / 'theirs'} belongs to another user" in capsys.readouterr().out
