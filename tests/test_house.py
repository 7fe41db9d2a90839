"""The house: imports go one way, the path that teaches is short, documents lead into the code."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from dpo import PairLog, step_metrics
from dpo.losses import FORMULAS

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "data": {"data"},
    "lora": {"lora"},
    "dpo": {"dpo", "data"},
    "run": {"run", "dpo", "lora", "data"},
}
LOCAL = {*ALLOWED, "train"}
PROGRAM = [ROOT / "train.py", *(path for room in ALLOWED for path in (ROOT / room).rglob("*.py"))]
PATH_THAT_TEACHES = (
    "train.py", "data/trees.py", "dpo/logps.py", "dpo/loss.py", "lora/layer.py", "lora/adapter.py",
    "lora/merging.py",
)  # fmt: skip
BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.Match)


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def imports(tree):
    """Every top-level name that a module imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "rooms import each other by name"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way_without_exceptions(room):
    for path in (ROOT / room).rglob("*.py"):
        used = set(imports(parsed(path))) & LOCAL
        assert used <= ALLOWED[room], f"{path} imports {used - ALLOWED[room]}"


def test_the_walk_would_notice_a_broken_rule():
    assert "lora" in set(imports(ast.parse("def f():\n    from lora.layer import LoRALinear")))


def test_train_is_the_only_module_beside_the_rooms():
    assert [path.name for path in ROOT.glob("*.py")] == ["train.py"]


def test_no_room_needs_trl_or_peft():
    for path in PROGRAM:
        assert not {"trl", "peft"} & set(imports(parsed(path))), path


def test_no_list_repeats_what_a_room_imports():
    for path in PROGRAM:
        assert "__all__" not in path.read_text(encoding="utf-8"), path


def written_elsewhere(tree):
    """What a module assigns to in another one: `module.NAME = ...` or `IMPORTED["key"] = ...`."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else targets
        for target in targets:
            owner = target
            while isinstance(owner, ast.Attribute | ast.Subscript):
                owner = owner.value
            if owner is not target and isinstance(owner, ast.Name) and owner.id in imported:
                yield ast.unparse(target)


def test_no_module_writes_what_belongs_to_another():
    assert list(written_elsewhere(ast.parse("from a import T\nT['meta'] = 1"))) == ["T['meta']"]
    allowed = {"os.environ['HF_TOKEN']", "sys.stdout", "sys.excepthook"}  # the process's own
    for path in PROGRAM:
        assert set(written_elsewhere(parsed(path))) <= allowed, path


def test_the_contents_page_and_the_path_that_teaches_are_short():
    assert lines(ROOT / "train.py") <= 160
    assert sum(lines(ROOT / name) for name in PATH_THAT_TEACHES) <= 900


def nesting(node, depth=0):
    """How many blocks the innermost statement of a function is within; `elif` adds none."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            continue
        chained = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        inner = depth + (isinstance(child, BLOCKS) and not chained)
        deepest = max(deepest, nesting(child, inner))
    return deepest


def parameters(function):
    """(all but self, how many of them are tensors)."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    given = [p for p in given if p.arg not in ("self", "cls", "ctx")]
    return len(given), sum("Tensor" in ast.unparse(p.annotation or p) for p in given)


def functions():
    for path in PROGRAM:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}: {node.name}", node


def test_no_function_is_longer_than_60_lines():
    long = [name for name, f in functions() if f.end_lineno - f.lineno + 1 > 60]
    assert not long


def test_no_function_nests_deeper_than_3_blocks():
    code = "def f():\n for a in b:\n  if a:\n   pass\n  elif b:\n   with c: pass"
    assert nesting(ast.parse(code).body[0]) == 3
    assert not [name for name, f in functions() if nesting(f) > 3]


def test_more_than_6_parameters_are_for_pure_maths_alone():
    """Which is where most of them are tensors."""
    for name, function in functions():
        count, tensors = parameters(function)
        assert count <= 6 or tensors > count / 2, name


def test_train_has_no_closures():
    for function in ast.walk(parsed(ROOT / "train.py")):
        if isinstance(function, ast.FunctionDef):
            inner = [n for n in ast.walk(function) if isinstance(n, ast.FunctionDef)]
            assert inner == [function]


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


@pytest.mark.parametrize("document", ["docs/guide.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md"])
def test_every_file_that_a_document_links_is_there(document):
    path = ROOT / document
    for target in re.findall(r"\]\(((?!http|#)[^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_equation_leads_to_its_line_and_every_such_line_to_its_equation():
    text = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
    numbers = re.findall(r"\*\*\((\d+)\)\*\* \[`\w+`\]\([^)]+\.py#L\d+\)", text)
    code = "".join(path.read_text(encoding="utf-8") for path in PROGRAM)
    named = re.findall(r"eq\. \((\d+)\) of docs/math\.md", code)
    assert sorted(map(int, numbers)) == sorted(map(int, named)) == list(range(1, 26))


def test_an_equation_is_linked_by_the_function_that_holds_its_line():
    text = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
    links = re.findall(r"\*\*\(\d+\)\*\* \[`(\w+)`\]\(\.\./([^)]+\.py)#L(\d+)\)", text)
    assert len(links) == 25
    for name, file, line in links:
        holders = [
            node.name
            for node in ast.walk(parsed(ROOT / file))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and node.lineno <= int(line) <= node.end_lineno
        ]
        assert name in holders, (name, file, line)


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
    log = PairLog(*torch.zeros(7, 1))
    for name in [*step_metrics(log, 1.0), "anchor", "grad_norm", "learning_rate"]:
        assert f"`{name}`" in text, name


def test_the_readme_is_short_and_names_the_path_that_teaches():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for name in PATH_THAT_TEACHES:
        assert f"({name}" in text, name


def test_contributing_has_a_word_for_every_file():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in PROGRAM:
        listed = re.search(rf"^ *{re.escape(path.name)} ", text, re.M)
        assert listed or path.name == "__init__.py", path


def test_installing_puts_no_module_into_site_packages():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"] == {"packages": [], "py-modules": []}
