"""What the base and the tuned model answer, side by side: `python -m dpo.sample RUN`.

One model is loaded; switching the adapters off makes it the base. Prompts become tokens as they did
in training, so that what is asked here is what was trained on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    # An entry point joins the rooms; `import dpo` must not.
    from commands import guarded

    parser = argparse.ArgumentParser(
        prog="python -m dpo.sample", description="Answers of the base and of the tuned model."
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="ask this; default: held-out questions"
    )
    parser.add_argument("--count", type=int, default=5, help="of held-out questions (5)")
    parser.add_argument("--chat", action="store_true", help="ask line by line; Ctrl-D ends")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, draws none")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return guarded("python -m dpo.sample", lambda stop, world: sample(args), argv)


def sample(args: argparse.Namespace) -> None:
    """Load the run and print what is asked for.

    Raises:
        UsageError: the folder holds no run, or a number is out of range.
    """
    import data
    import dpo
    import inputs
    import lora
    from config import UsageError

    if args.count < 1 or args.max_tokens < 1 or args.temperature < 0:
        raise UsageError("--count and --max-tokens must be 1 or more, --temperature 0 or more")
    run, token = inputs.finished_run(Path(args.run)), inputs.quiet()
    base = inputs.load_model(run.config, token)
    model, tokenizer = base.model, base.tokenizer
    lora.load_adapter(model, run.adapter)
    model.eval()
    settings = run.config.text_settings(tokenizer, lora.length_limit(model.config))

    def encoded(texts: Sequence[str]) -> list[Any]:
        asked = [data.Preference(text, "yes", ("no",)) for text in texts]
        return list(data.encode(asked, tokenizer, **settings).questions)

    def show(texts: Sequence[str], questions: Sequence[Any]) -> None:
        pairs = dpo.side_by_side(
            model, lora.adapters_disabled, tokenizer, [q.prompt for q in questions],
            questions[0].chosen[-1], args.max_tokens, args.temperature, args.seed,
        )  # fmt: skip
        for text, pair in zip(texts, pairs, strict=True):
            print(f"\n{text}")
            for name, (said, alarms) in zip(("base ", "tuned"), pair, strict=True):
                warned = "".join(f" [{alarm}]" for alarm in alarms)
                print(f"  {name}  {said.replace(chr(10), chr(10) + ' ' * 9)}{warned}", flush=True)

    if args.chat:
        while line := _asked():
            show([line], encoded([line]))
    elif args.prompt:
        show(args.prompt, encoded(args.prompt))
    else:
        some = list(inputs.held_out(run.config, base, token))[: args.count]
        show([tokenizer.decode(q.prompt, skip_special_tokens=True) for q in some], some)
    if not args.chat:
        print(f"\nPublish it:  python -m dpo.publish {args.run} OWNER/NAME")


def _asked() -> str:
    """Return the next line that says something; "" at the end of the input."""
    while True:
        if sys.stdin.isatty():
            print("\n> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip():
            return line.strip()


if __name__ == "__main__":
    sys.exit(main())
