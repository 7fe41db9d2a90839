"""`python -m run sample`: what the base and the tuned model answer, side by side.

One model is loaded; switching the adapters off makes it the base. Prompts become tokens as they did
in training, so that what is asked here is what was trained on.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data
import dpo
import lora
from run import inputs
from run.commands import parser
from run.errors import UsageError


def command(argv: list[str]) -> None:
    """Load the run and print what is asked for."""
    arguments = parser("sample", "Answers of the base and of the tuned model.")
    add = arguments.add_argument
    add("run", metavar="RUN", help="a run's folder")
    add("--prompt", action="append", metavar="TEXT", help="ask this; default: held-out questions")
    add("--count", type=int, default=5, help="of held-out questions (5)")
    add("--chat", action="store_true", help="ask line by line; Ctrl-D ends")
    add("--max-tokens", type=int, default=64, help="of an answer (64)")
    add("--temperature", type=float, default=0.0, help="0, the default: the likeliest token")
    add("--seed", type=int, default=0, help="of the drawing, above temperature 0 (0)")
    args = arguments.parse_args(argv)
    if args.count < 1 or args.max_tokens < 1 or args.temperature < 0:
        raise UsageError("--count and --max-tokens must be 1 or more, --temperature 0 or more")
    inputs.prepare_libraries()
    run = inputs.finished_run(Path(args.run))
    tokenizer, text = inputs.load_tokenizer(run.config)
    model = inputs.load_model(run.config).model
    lora.load_adapter(model, run.adapter)
    model.eval()
    if alone := inputs.base_alone(run.config):
        print(alone, flush=True)
    drawing = dpo.Drawing(args.max_tokens, args.temperature, args.seed)

    def answers(questions: Sequence[data.EncodedQuestion]) -> Any:
        prompts, stop = [q.prompt for q in questions], data.stop_of(questions)
        return dpo.side_by_side(model, lora.adapters_disabled, tokenizer, prompts, stop, drawing)

    if args.chat:
        while line := _asked():
            try:
                _show([line], answers(_encoded([line], tokenizer, text)))
            except data.DataError as error:  # too long, perhaps; the next may be shorter
                print(f"  {error}", flush=True)
        return
    if args.prompt:
        _show(args.prompt, answers(_encoded(args.prompt, tokenizer, text)))
    else:
        read = inputs.read_questions(run.config, tokenizer, text)
        asked = read.held_out if len(read.held_out) else read.train
        questions = list(asked[: args.count])
        texts = [tokenizer.decode(q.prompt, skip_special_tokens=True) for q in questions]
        _show(texts, answers(questions))
    print(f"\nPublish it:  python -m run publish {shlex.quote(args.run)} OWNER/NAME")


def _encoded(
    prompts: Sequence[str], tokenizer: Any, text: data.TextSettings
) -> list[data.EncodedQuestion]:
    """Return prompts as token ids; the answers that a question needs are never read."""
    asked = [data.Preference(prompt, "yes", ("no",)) for prompt in prompts]
    strict = text._replace(truncate="never", skip_bad=False)  # none is left out
    return list(data.encode(asked, tokenizer, strict).questions)


def _show(texts: Sequence[str], answers: Sequence[tuple[dpo.Sample, dpo.Sample]]) -> None:
    """Print what the base and the tuned model answered."""
    for text, pair in zip(texts, answers, strict=True):
        print(f"\n{dpo.readable(text)}")
        for name, (said, alarms) in zip(("base ", "tuned"), pair, strict=True):
            warned = "".join(f" [{alarm}]" for alarm in alarms)
            print(f"  {name}  {said.replace(chr(10), chr(10) + ' ' * 9)}{warned}", flush=True)


def _asked() -> str:
    """Return the next line that says something; "" at the end of the input."""
    while True:
        if sys.stdin.isatty():
            print("\n> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip():
            return line.strip()
