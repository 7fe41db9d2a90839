"""`python -m run evaluate`: what a model believes, measured.

A run is measured on the questions that it held out, with its adapter off and on. Any other model is
measured on all questions of --data, or on those that a run with this --eval-fraction and --seed
would hold out.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import data
import dpo
import lora
from data.encode import without_stop
from data.templates import TRUTHFULQA_PROMPT
from run import inputs
from run.commands import parser
from run.config import Config
from run.console import print_measures, watch_answers
from run.errors import UsageError
from run.folder import write_json


def command(argv: list[str]) -> None:
    """Measure and print."""
    arguments = parser("evaluate", "MC1, MC2, pair accuracy and their like, with 95% intervals.")
    add = arguments.add_argument
    add("target", metavar="RUN|MODEL", help="a run's folder, or a model's, or its id")
    add("--adapter", metavar="DIR", help="measure with this adapter, and without")
    add("--data", nargs="+", help="questions; default: held out by the run, else auto")
    add("--columns", help="as for train.py")
    add("--eval-fraction", type=float, help="only the share of --data that a run would hold out")
    add("--seed", type=int, default=0, help="of that split, and of a share of --data (0)")
    add(
        "--prompt", choices=("plain", "truthfulqa"), default="plain",
        help="the run's own text, or TruthfulQA's six examples before each question",
    )  # fmt: skip
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"))
    add("--device", help="cpu, cuda, mps; default the run's, else auto")
    add("--output", metavar="FILE.json", help="write the figures here as well")
    args = arguments.parse_args(argv)
    inputs.prepare_libraries()
    config, adapter, held_out = _asked_for(args)
    tokenizer, text = inputs.load_tokenizer(config)
    prepared = inputs.read_questions(config, tokenizer, text)
    questions = list(prepared.held_out if held_out else prepared.every)
    if not questions:
        raise UsageError(f"{args.target} held no questions out; name some with --data")
    if args.prompt == "truthfulqa":  # whose authors score an answer without its end
        questions = [without_stop(q) for q in questions]
    base = inputs.load_model(config)
    model = base.model
    check = dpo.check_sharing(model, prepared.check_questions, prepared.largest_id, base.layers)
    if adapter:
        lora.load_adapter(model, adapter)
        print(inputs.of_other_base(adapter, config.model), end="")
        model.eval()
    scorer = dpo.Scorer(model, check.way, watch=watch_answers)
    with lora.adapters_disabled(model):
        before = _believed(scorer, "Base" if adapter else "Model", questions)
    after = _believed(scorer, "Adapter", questions) if adapter else before
    results = dpo.compare(before, after, [q.category for q in questions])
    if not adapter:
        results = {
            "questions": results["questions"],
            "model": results["before"],
            "intervals": {"model": dpo.intervals(before, before)["before"]},
        }
    results = {
        "target": args.target,
        "data": ", ".join(config.data),
        "prompt": args.prompt,
        **results,
    }
    print_measures(results)
    if alone := inputs.base_alone(config):
        print(alone)
    if args.output:
        write_json(Path(args.output), results)


def _asked_for(args: argparse.Namespace) -> tuple[Config, str | Path | None, bool]:
    """Return the settings, the adapter, and whether held-out questions alone are meant."""
    config, adapter, target = Config(model=args.target), args.adapter, Path(args.target)
    if finished := (target / "config.yaml").is_file():
        run = inputs.finished_run(target)
        config, adapter = run.config, args.adapter or run.adapter
    given = {name: getattr(args, name) for name in ("data", "columns", "dtype", "device")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value}
    if args.data:
        changes |= {"data": tuple(args.data), "eval_data": (), "columns": args.columns}
        changes |= {"seed": args.seed}  # of a share of them, and of the split
    own = finished and not args.data
    if args.eval_fraction is not None:
        if own:
            raise UsageError("--eval-fraction is the run's own; it goes with --data")
        changes |= {"eval_fraction": args.eval_fraction}
    elif not own:
        changes |= {"eval_fraction": 0.0, "eval_every": None}  # all of them
    if args.prompt == "truthfulqa":
        changes |= {
            "template": "plain", "prompt_format": TRUTHFULQA_PROMPT, "answer_format": " {}",
            "chat_template": None, "template_kwargs": (),
        }  # fmt: skip
    config = replace(config, **changes)
    config.validate()
    return inputs.resolve_auto(config), adapter, own or args.eval_fraction is not None


def _believed(scorer: dpo.Scorer, label: str, questions: list[data.EncodedQuestion]) -> dpo.Beliefs:
    """Score every answer of the questions, and measure."""
    scores = scorer.scores(label, [[dpo.all_answers(q) for q in questions]])
    return dpo.believed(questions, scores)
