"""What a model believes, measured: `python -m dpo.evaluate RUN|MODEL`.

A run is measured on the questions that it held out, with its adapter off and on. Any other model is
measured on all questions of --data, or on those that a run with this --eval-fraction and --seed
would hold out.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

AT_ONCE = {True: 4096, False: 512}  # tokens fed; plain rows keep all their logits


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    # An entry point joins the rooms; `import dpo` must not.
    from commands import guarded

    parser = argparse.ArgumentParser(
        prog="python -m dpo.evaluate",
        description="MC1, MC2, pair accuracy and their like, with 95% intervals.",
    )
    parser.add_argument(
        "target", metavar="RUN|MODEL", help="a run's folder, or a model's, or its id"
    )
    parser.add_argument("--adapter", metavar="DIR", help="measure with this adapter, and without")
    parser.add_argument("--data", help="questions; default: held out by the run, else auto")
    parser.add_argument("--columns", help="as for train.py")
    parser.add_argument(
        "--eval-fraction", type=float, help="only the share of --data that a run would hold out"
    )
    parser.add_argument("--seed", type=int, default=0, help="of that split (0)")
    parser.add_argument(
        "--prompt", choices=("plain", "truthfulqa"), default="plain",
        help="the run's own text, or TruthfulQA's six examples before each question",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--device", help="cpu, cuda, mps; default the run's, else auto")
    parser.add_argument("--output", metavar="FILE.json", help="write the figures here as well")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return guarded("python -m dpo.evaluate", lambda stop, world: evaluate(args), argv)


def evaluate(args: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        UsageError: a flag does not fit.
    """
    import dpo
    import inputs
    import lora
    from config import Config, UsageError
    from console import print_measures, track
    from data.encode import without_stop
    from data.templates import TRUTHFULQA_PROMPT
    from workspace import write_json

    token, target = inputs.quiet(), Path(args.target)
    if (target / "config.yaml").is_file():
        run = inputs.finished_run(target)
        config, adapter = run.config, args.adapter or run.adapter
    else:
        config, adapter = Config(model=args.target), args.adapter
    given = {name: getattr(args, name) for name in ("data", "columns", "dtype", "device")}
    config = replace(config, **{name: value for name, value in given.items() if value})
    own = not args.data and (target / "config.yaml").is_file()
    if args.eval_fraction is not None:
        if own:
            raise UsageError("--eval-fraction is the run's own; it goes with --data")
        config = replace(config, eval_fraction=args.eval_fraction, seed=args.seed)
    if args.prompt == "truthfulqa":
        config = replace(
            config, template="plain", prompt_format=TRUTHFULQA_PROMPT, answer_format=" {}"
        )
    config.validate()

    reading = inputs.read(config, token)
    tokenizer, limit = inputs.load_tokenizer(config, token)
    prepared = inputs.prepare(config, reading, tokenizer, limit)
    base = inputs.load_model(config, token, tokenizer)
    some = own or args.eval_fraction is not None
    questions: list[Any] = list(prepared.held_out if some else prepared.every)
    if args.prompt == "truthfulqa":  # whose authors score an answer without its end
        questions = [without_stop(q) for q in questions]
    check = dpo.check_sharing(base.model, prepared.few, prepared.largest_id, base.layers)
    if adapter:
        lora.load_adapter(base.model, adapter)
        base.model.eval()

    def believed(label: str) -> dpo.Beliefs:
        asked = dpo.asked(lambda items: items, (questions, "answers"))
        show = partial(track, label=label, unit="answers", size=lambda batch: batch[1].answers)
        scores = dpo.score_answers(
            base.model, asked, AT_ONCE[check.shared], check.shared, watch=show
        )
        return dpo.believed(questions, scores)

    with lora.adapters_disabled(base.model):
        before = believed("Base" if adapter else "Model")
    after = believed("Adapter") if adapter else before
    results = dpo.compare(before, after, [q.category for q in questions])
    if not adapter:
        results = {
            "questions": results["questions"],
            "model": results["before"],
            "intervals": {"model": dpo.intervals(before, before)["before"]},
        }
    results = {"target": args.target, "data": config.data, "prompt": args.prompt, **results}
    print_measures(results)
    if args.output:
        write_json(Path(args.output), results)


if __name__ == "__main__":
    sys.exit(main())
