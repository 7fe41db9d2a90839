"""`report.html`: what a run did to its model, as one page; `python -m run report` makes it anew.

Everything in it is read from the run's folder, as far as it is there. `run/page/` says what stands
in it. There `page.html.jinja` has its words, `page.css` its looks, and `page.js` draws what moves:
the dial, the questions, the curves. It needs no server and no network. What comes from data, models
or their answers is shown and never obeyed: the template escapes it, the script sets it as text, and
the browser is told to run this one script alone.

Charts are SVG that the script draws: they follow the colours of the page, are sharp in print, and
tests look into them. A canvas, which small libraries like uPlot draw on, gives none of that.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import dpo
import lora
from run.commands import parser
from run.errors import UsageError
from run.folder import others_may_not_read
from run.page import beliefs, charts, tables
from run.page.reading import Run, read_run, titles

HERE = Path(__file__).with_name("page")
LIMIT = 5 * 10**6  # bytes of a page
LONGEST = 4000  # characters of a text that are shown; fewer where the page would be too large
ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def command(argv: list[str]) -> None:
    """Write the page of one run into its folder, or that of several where it is asked for."""
    arguments = parser(
        "report",
        "Make a run's report.html anew, or one page of several runs side by side: their tables, "
        "their curves, and the questions on which they differ.",
    )
    add = arguments.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder, also of one that goes on")
    add("--output", metavar="FILE.html", help="default: report.html in the folder of RUN; of "
        "several, comparison.html here")  # fmt: skip
    args = arguments.parse_args(argv)
    folders = [Path(run) for run in args.runs]
    beside = Path("comparison.html") if len(folders) > 1 else folders[0] / "report.html"
    output = Path(args.output) if args.output else beside
    if output.is_dir():
        raise UsageError(f"--output {output} is a folder; name a file in it")
    with lora.reading("the report cannot be made", UsageError):
        write_report(*folders, output=output)
    print(f"Written to {output}; open it in a browser")


def write_report(*folders: Path, output: Path | None = None) -> None:
    """Write the page of these runs, by default into the folder of the first.

    Raises:
        UsageError: a folder holds no run, or something that no run wrote.
    """
    text = page([read_run(folder) for folder in folders])
    with lora.whole(output or folders[0] / "report.html") as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")
        if others_may_not_read(*map(str, folders)):
            new.chmod(0o600)


def page(runs: Sequence[Run]) -> str:
    """Return the page of a run, or of several side by side, in at most 5 MB.

    Where it would be larger, texts are cut shorter, and then fewer questions are shown.
    """
    kept = [len(run.questions.get("questions", [])) for run in runs]
    longest, most = LONGEST, min(dpo.QUESTIONS, *kept)
    while True:
        text = _page(runs, longest, most)
        if len(text.encode("utf-8", "backslashreplace")) <= LIMIT or most <= 1:
            return text
        longest, most = (longest // 2, most) if longest > 100 else (longest, most // 2)


def _page(runs: Sequence[Run], longest: int, most: int) -> str:
    """Return the page with at most so many questions, and so many characters of a text."""
    script, style = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    dials = charts.dials(runs)
    asked = beliefs.questions(runs, most)
    moving = {
        "dial": charts.dial_panels(runs),
        "sizes": charts.sizes(runs),
        "curves": charts.curve_panels(runs),
        "questions": beliefs.shortened(asked, longest),
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["cut"] = partial(tables.cut, longest=longest)
    text: str = environment.get_template("page.html.jinja").render(
        script=script, style=style, policy=_policy(script, style), moving=in_script(moving),
        runs=list(zip(titles(runs), runs, strict=True)), tables=tables, dials=dials,
        asked=asked,
    )  # fmt: skip
    return text


def in_script(value: Any) -> str:
    """Return JSON that can end no script element; a number that is not finite is null."""
    return json.dumps(_finite(value), ensure_ascii=False).translate(ESCAPES)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _policy(script: str, style: str) -> str:
    """Return the Content-Security-Policy by which a browser obeys these two texts alone."""

    def only(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {only(script)}; style-src {only(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
