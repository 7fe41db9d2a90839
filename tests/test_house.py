"""The house: imports go one way, and the contents page stays one."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from dpo import step_metrics
from dpo.loss import FORMULAS

ROOT = Path(__file__).parents[1]
ALLOWED = {"data": {"data"}, "lora": {"lora"}, "dpo": {"dpo", "data"}}
ENTRY_POINTS = {
    "data/preferences.py",
    "dpo/evaluate.py",
    "dpo/publish.py",
    "dpo/sample.py",
}  # commands join the rooms; nothing may import one
LOCAL = {"data", "lora", "dpo", *(p.stem for p in ROOT.glob("*.py"))}


def imports(source):
    """Every top-level name that a module imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "rooms import each other by name"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room):
    for path in (ROOT / room).glob("*.py"):
        if str(path.relative_to(ROOT)) in ENTRY_POINTS:
            continue
        used = set(imports(path.read_text(encoding="utf-8"))) & LOCAL
        assert used <= ALLOWED[room], f"{path.name} imports {used - ALLOWED[room]}"


def test_nothing_imports_an_entry_point():
    modules = {name.removesuffix(".py").replace("/", ".") for name in ENTRY_POINTS}
    for path in [*ROOT.glob("*.py"), *(p for room in ALLOWED for p in (ROOT / room).glob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not froms & modules, path


def test_the_walk_would_notice_a_broken_rule():
    assert "lora" in set(imports("def f():\n    from lora.layer import LoRALinear"))


def test_no_room_needs_trl_or_peft():
    for path in [*ROOT.glob("*.py"), *(p for room in ALLOWED for p in (ROOT / room).glob("*.py"))]:
        assert not {"trl", "peft"} & set(imports(path.read_text(encoding="utf-8"))), path


DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "math.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_where_they_say(document):
    """`python docs/refresh_links.py` sets them right."""
    sys.path.insert(0, str(ROOT / "docs"))
    from refresh_links import refreshed

    text = document.read_text(encoding="utf-8")
    assert refreshed(document) == text
    targets = re.findall(r"\]\(((?!http)[^)#]+)", text)
    assert len(targets) >= 8
    for target in targets:
        assert (document.parent / target).exists(), target


def test_every_equation_leads_to_its_line_and_every_such_line_to_its_equation():
    text = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
    numbers = re.findall(r"\*\*\((\d+)\)\*\* \[`\w+`\]\([^)]+\.py#L\d+\)", text)
    code = [*ROOT.glob("*.py"), *(p for room in ALLOWED for p in (ROOT / room).glob("*.py"))]
    named = re.findall(
        r"eq\. \((\d+)\) of docs/math\.md",
        "".join(path.read_text(encoding="utf-8") for path in code),
    )
    assert sorted(map(int, numbers)) == sorted(map(int, named)) == list(range(1, 22))


def test_every_symbol_of_the_mathematics_is_in_the_code_by_its_name():
    text = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \$.*?\| .*?\| (.*?) \| \[.*?\]\((.*?)\) \|$", text, re.M)
    assert len(rows) >= 18
    for names, path in rows:
        code = (ROOT / "docs" / path).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", code), f"{name} in {path}"


def test_every_loss_and_metric_is_explained():
    text = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
    for formula in FORMULAS.values():
        assert f"[`{formula.__name__}`]" in text
    columns = torch.zeros(7, 1)
    for name in [*step_metrics(columns), "grad_norm", "learning_rate"]:
        assert f"`{name}`" in text, name


def test_the_readmes_tree_names_every_file():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.py"), *(p for room in ALLOWED for p in (ROOT / room).glob("*.*"))]:
        listed = re.search(rf"^ *{re.escape(path.name)} ", text, re.M)
        assert listed or path.name == "__init__.py", path


def test_installing_puts_no_module_into_site_packages():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"] == {"packages": [], "py-modules": []}


def test_the_contents_page_is_short():
    assert len((ROOT / "train.py").read_text(encoding="utf-8").splitlines()) <= 250
