"""`python -m run scale`: a finished run anew, at another size of its adapter, without training."""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import dpo
import lora
from run import inputs
from run.commands import parser
from run.config import Config
from run.console import print_merge, print_next, print_outcome, watch_answers
from run.errors import UsageError
from run.folder import claimed, others_may_not_read
from run.inputs import FinishedRun
from run.merge import write_merged
from run.processes import World
from run.reference import Reference
from run.sizes import Sizes
from run.summary import write_facts, write_outcome


def command(argv: list[str]) -> None:
    """Open the run, and write the new one into its own folder."""
    arguments = parser(
        "scale",
        "Make a finished run anew at another size of its adapter, without training. Sizes are "
        "shares of what was trained, also where RUN was scaled already.",
    )
    add = arguments.add_argument
    add("run", metavar="RUN", help="a run's folder; it stays as it is")
    add("output", metavar="OUT", help="a new folder")
    add("--scale", required=True, metavar="X", help="above 0 and up to 2, or auto: the largest up "
        "to 1 that --max-drift allows")  # fmt: skip
    add("--max-drift", type=float, metavar="D", help="as for train.py; default the run's")
    add("--no-merge", action="store_true", help="leave the merged model out")
    add("--device", help="cpu, cuda, mps; default the run's")
    args = arguments.parse_args(argv)
    inputs.prepare_libraries()
    run = inputs.finished_run(Path(args.run))
    facts = _facts(run.folder)
    config = _asked_for(args, run)
    out = Path(args.output)
    if run.folder.resolve() in out.resolve().parents:
        raise UsageError(f"OUT {out} lies within {run.folder}, which stays as it is; name another")
    private = others_may_not_read(*config.sources, str(run.folder))
    with claimed(args.output, private=private, flag="OUT") as folder:
        seconds = facts["seconds"].get("evaluate", 0)
        print(f"Every size is measured again; in {args.run} it took {seconds:.0f} s.", flush=True)
        try:
            write_scaled(run, facts, config, folder)
        except BaseException:
            _emptied(folder)
            raise


def _facts(run: Path) -> dict[str, Any]:
    """Return summary.json of a run.

    Raises:
        UsageError: it cannot be read, or the run's log is missing.
    """
    try:
        facts: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = {}
    if "seconds" not in facts or not (run / "metrics.jsonl").is_file():
        raise UsageError(f"{run} is no finished run: it needs summary.json and metrics.jsonl")
    return facts


def _asked_for(args: argparse.Namespace, run: FinishedRun) -> Config:
    """Return the run's settings with the new size."""
    given = {"max_drift": args.max_drift, "device": args.device}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    merge = run.config.merge and not args.no_merge
    config = replace(run.config, scale=args.scale, merge=merge, **changes)
    config.validate()
    return config


def write_scaled(run: FinishedRun, facts: dict[str, Any], config: Config, folder: Path) -> None:
    """Write what a run of these settings leaves, from the adapter of a finished one.

    Raises:
        ModelError: base and adapter do not fit.
        NumericError: no size holds --max-drift.
    """
    tokenizer, text = inputs.load_tokenizer(config)
    prepared = inputs.read_questions(config, tokenizer, text)
    base = inputs.load_hashed(config, sharded=False)
    model = base.model
    check = dpo.check_sharing(model, prepared.check_questions, prepared.largest_id, base.layers)
    reference = _reference(config, base)
    lora.load_adapter(model, run.adapter)
    lora.scale_adapter(model, 1 / facts.get("scale", 1.0))  # what was trained is size 1
    model.eval()
    scorer = dpo.Scorer(model, check.way, watch=watch_answers)
    sizes = Sizes(scorer, reference, World(), tokenizer, prepared.held_out)
    size = sizes.chosen(config)
    found = sizes.outcome(size)
    lora.scale_adapter(model, size)
    config.save(folder / "config.yaml")
    shutil.copyfile(run.folder / "metrics.jsonl", folder / "metrics.jsonl")
    lora.save_adapter(model, folder / "adapter", base.name, base.revision)
    write_outcome(folder, found, size)
    if config.merge:
        print_merge(write_merged(model, base, tokenizer, folder, config))
    facts = {**facts, "scale": size, "merged": config.merge}
    write_facts(folder, facts)
    print_outcome(found, facts)
    print()
    print_next(folder, facts)


def _reference(config: Config, base: lora.Base) -> Reference:
    """Return the run's reference: the frozen base, or the adapter that training began with."""
    model = base.model
    if config.starts_at_reference:
        inputs.add_adapters(config, model)
    reference = Reference(config, model, base.hash)
    lora.remove_lora(model)
    return reference


def _emptied(folder: Path) -> None:
    """Remove what was written into a folder that was empty; `claimed` removes one that it made."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
