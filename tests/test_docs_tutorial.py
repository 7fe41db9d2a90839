"""The tutorial runs from end to end, and what it shows is what it computes."""

import re
import sys
from pathlib import Path

import pytest

import lora

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
from run_tutorial import TUTORIAL, code_hash, executed, read

DOCS = TUTORIAL.parent
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?![\w])")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def same_text(found, expected):
    """The same words, and numbers that are equal but for what another processor rounds."""
    assert NUMBER.sub("#", found) == NUMBER.sub("#", expected)
    numbers = (
        [float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (found, expected)
    )
    for a, b in zip(*numbers, strict=True):
        assert a == pytest.approx(b, rel=0.05, abs=0.05), (found, expected)


def test_its_outputs_are_those_of_the_code_that_it_shows():
    """`python docs/run_tutorial.py` executes it anew."""
    notebook = read()
    assert notebook.metadata["executed_sha256"] == code_hash(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {(o.output_type, o.get("name")) for cell in cells for o in cell.outputs}
    assert kinds == {("stream", "stdout"), ("display_data", None)}


def test_other_code_would_be_noticed():
    notebook = read()
    code_cells(notebook)[3].source += "\n"
    assert notebook.metadata["executed_sha256"] != code_hash(notebook)


def test_it_is_small_and_its_cells_are_short():
    assert TUTORIAL.stat().st_size < 600_000
    assert max(len(cell.source.splitlines()) for cell in code_cells(read())) <= 36
    assert sum(map(pictures, code_cells(read()))) == 6


def test_every_number_is_computed_and_none_stands_in_the_prose():
    """But those of equations, which math.md has, and those in names."""
    text = prose(read())
    equations = re.findall(r"\((\d+)\)", text)
    math = (DOCS / "math.md").read_text(encoding="utf-8")
    assert len(equations) >= 8
    for number in equations:
        assert f"**({number})**" in math
    text = re.sub(r"\$\$.*?\$\$|\$.*?\$|`.*?`|\]\(.*?\)|\(\d+\)", "", text, flags=re.S)
    for name in ("Gemma 3 270M", "MC1", "MC2", "bfloat16", "float32"):
        text = text.replace(name, "")
    assert not re.findall(r".*\d.*", text)


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)#]+)", prose(read())):
        assert (DOCS / target).exists(), target


def test_another_word_or_number_would_be_noticed():
    same_text("0.55 nats, MC1", "0.56 nats, MC1")
    for other in ("0.75 nats, MC1", "0.55 nats, MC2", "0.55 nats, MC1 0.5"):
        with pytest.raises(AssertionError):
            same_text(other, "0.55 nats, MC1")


@pytest.mark.slow
def test_it_runs_from_end_to_end_and_shows_what_is_committed():
    lora.folder_of("builtin")  # which is unpacked once, and says so
    committed, fresh = read(), executed(read())
    for old, new in zip(code_cells(committed), code_cells(fresh), strict=True):
        same_text(printed(new), printed(old))
        assert pictures(new) == pictures(old), old.id
