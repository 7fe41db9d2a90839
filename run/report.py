"""`report.html`: what a run did to its model, as one page; `python -m run report` makes it anew.

Everything in it is read from the run's folder, as far as it is there. Its words stand in
`report.html.jinja`, its looks in `report.css`, and `report.js` draws what moves: the dial, the
questions, the curves. It needs no server and no network. What comes from data, models or their
answers is shown and never obeyed: the template escapes it, the script sets it as text, and the
browser is told to run this one script alone.

Charts are SVG that the script draws: they follow the colours of the page, are sharp in print, and
tests look into them. The small libraries for charts draw pixels, and are longer than all of this.
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
from markupsafe import Markup

import dpo
import lora
from run import contents
from run.card import settings_of
from run.commands import parser
from run.contents import Run
from run.errors import UsageError
from run.folder import others_may_not_read

HERE = Path(__file__).parent
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


def read_run(folder: Path) -> Run:
    """Read what a run left so far.

    Raises:
        UsageError: it has no config.yaml, or a file is not what a run writes.
    """
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} is no run: it has no config.yaml")
    found: dict[str, Any] = {}
    for name in ("summary", "evaluation", "samples", "questions"):
        path = folder / f"{name}.json"
        with lora.reading(f"{path} cannot be read", UsageError):
            kind = list if name == "samples" else dict
            found[name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else kind()
            if not isinstance(found[name], kind):
                raise ValueError(f"it holds no {'list' if kind is list else 'object'}")
    path = folder / "metrics.jsonl"
    with lora.reading(f"{path} cannot be read", UsageError):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        log = [json.loads(line) for line in lines if line.endswith("}")]  # a kill cuts the last one
    with lora.reading(f"{folder / 'config.yaml'} cannot be read", UsageError):
        config = settings_of(folder)
    return Run(folder.resolve().name, config, found["summary"], found["evaluation"],
               found["samples"], found["questions"], log)  # fmt: skip


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
    script, style = (_own(HERE / f"report.{kind}") for kind in ("js", "css"))
    dials = contents.dials(runs)
    asked = contents.questions(runs, most)
    moving = {
        "dial": contents.dial_panels(runs),
        "sizes": contents.sizes(runs),
        "curves": contents.curve_panels(runs),
        "questions": contents.shortened(asked, longest),
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["cut"] = partial(contents.cut, longest=longest)
    text: str = environment.get_template("report.html.jinja").render(
        script=script, style=style, policy=_policy(script, style), moving=in_script(moving),
        runs=list(zip(contents.titles(runs), runs, strict=True)), contents=contents, dials=dials,
        asked=asked,
    )  # fmt: skip
    return text


def in_script(value: Any) -> Markup:
    """Return JSON that can end no script element; a number that is not finite is null."""
    return Markup(json.dumps(_finite(value), ensure_ascii=False).translate(ESCAPES))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _own(path: Path) -> Markup:
    """Return a file of ours, to stand in the page as it is."""
    return Markup(path.read_text(encoding="utf-8"))


def _policy(script: str, style: str) -> str:
    """Return the Content-Security-Policy by which a browser obeys these two texts alone."""

    def only(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {only(script)}; style-src {only(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
