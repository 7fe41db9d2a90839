"""What the guide says of other machines, and the Dockerfile, agree with README and program."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import python_process

from run.config import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTALL, RUN = re.search(r"^(pip install .*) && (python train\.py .*)$", README, re.M).groups()
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
ELSEWHERE = GUIDE.split("\n## Elsewhere\n")[1].split("\n## ")[0]


def instructions(name):
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.M)


def test_the_image_installs_and_runs_what_the_readme_says():
    (installing,) = instructions("RUN")
    assert installing.replace(" --no-cache-dir", "") == INSTALL
    (entry,), (arguments,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert " ".join([*json.loads(entry), *json.loads(arguments)]) == RUN


@pytest.mark.slow
def test_what_the_image_copies_is_enough_for_a_run(model_folder, questions_csv, tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    for line in instructions("COPY"):
        *sources, target = line.split()
        for source in sources:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, app / target)
    assert (app / "pyproject.toml").is_file() and not (app / ".env").exists()
    argv = ["train.py", "--data", str(questions_csv), "--model", str(model_folder), "--plan"]
    done = python_process(app, argv, PYTHONPATH=str(app))
    assert done.returncode == 0, done.stderr
    assert "5 questions" in done.stdout


def test_every_place_installs_as_the_readme_does():
    installs = re.findall(r"pip install [^&\n]*", ELSEWHERE)
    assert [line.strip() for line in installs] == [INSTALL] * 3


@pytest.mark.parametrize("line", re.findall(r"python train\.py ([^\n\"]*)", ELSEWHERE))
def test_its_flags_exist(line):
    given = shlex.split(line.replace("recipes/", f"{ROOT}/recipes/"))
    assert vars(parse(given)) != vars(parse([]))


def test_every_part_says_what_was_tried_of_it():
    parts = ELSEWHERE.split("\n### ")[1:]
    assert len(parts) == 6
    for part in parts:
        assert re.search(r"^(Tried: |Not tried[.:])", part, re.M), part
