"""Point the links of README.md and docs/math.md at the lines they mean.

A link [`name`](file) or [`name`](file#L1) leads to the line that defines `name`; behind the number
of an equation, **(6)** [`name`](file), to the line of that file which names the equation.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\*\*\((\d+)\)\*\* )?\[`(\w+)`\]\(([^)#]+\.py)(?:#L\d+)?\)")


def line_of(path: Path, name: str, equation: str | None) -> int:
    """Return the number of the line meant.

    Raises:
        SystemExit: there is no such line.
    """
    wanted = rf"eq\. \({equation}\) of docs/math\.md" if equation else rf"\s*(def|class) {name}\b"
    find = re.search if equation else re.match
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if find(wanted, line):
            return number
    raise SystemExit(f"{path} has no line for {f'eq. ({equation})' if equation else name}")


def refreshed(document: Path) -> str:
    """Return the document with every link to a line of code set right."""

    def right(link: re.Match[str]) -> str:
        before, equation, name, target = link.groups()
        number = line_of(document.parent / target, name, equation)
        return f"{before or ''}[`{name}`]({target}#L{number})"

    return LINK.sub(right, document.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for document in (ROOT / "README.md", ROOT / "docs" / "math.md"):
        document.write_text(refreshed(document), encoding="utf-8")
