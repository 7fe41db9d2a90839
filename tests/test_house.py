"""The house: imports go one way, and the contents page stays one."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"data": {"data"}, "lora": {"lora"}, "dpo": {"dpo", "data"}}
ENTRY_POINTS = {"data/preferences.py"}  # commands join the rooms; nothing may import one
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


def test_the_readmes_links_lead_where_they_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\[([^\]]+)\]\(((?!http)[^)#]+)(?:#L(\d+))?\)", text)
    assert len(links) >= 8
    for name, path, line in links:
        assert (ROOT / path).exists(), path
        if line:
            target = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1]
            assert re.match(rf"(def|class) {name.strip('`')}\b", target), f"{path}#L{line}"


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
