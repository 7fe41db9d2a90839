"""Fine-tune a causal language model with DPO through LoRA, and merge.

`python train.py --rank 8 --alpha 16` does the whole job: `backward` is all of DPO, `loop` takes the
steps, and `train` tells the job in order. What differs from the paper changes no number:

1. Answers to one question share their computation: data are token tries, never padded pairs.
2. The reference scores each answer once, before the loop, and its scores are kept on disk.
3. A step is cut into micro-batches by tokens. Its pairs' weights sum to 1 however it is cut.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

import data
import dpo
import lora
from dpo import PairLog, StepLog, answer_logps, dpo_loss, schedule_factor, step_metrics
from run import inputs, publish
from run.checkpoint import Checkpoint, opened
from run.commands import Stop, guarded
from run.config import Config, parse
from run.console import print_merge, print_rows, print_start, print_summary
from run.measuring import Clock
from run.merge import write_merged
from run.plan import settled
from run.processes import World
from run.reference import Reference
from run.summary import write_outcome, write_summary
from run.training import Run, Training


def backward(
    model: Any, batch: data.PairBatch, reference: Reference, loss: Mapping[str, Any]
) -> StepLog:
    """Add the gradient of a micro-batch's loss to the adapters: this is all of DPO."""
    reference_logps = reference.logps(batch)  # (A,) log pi_ref(y|x), which has no gradient
    logps = answer_logps(model, batch.trees)  # (A,) log pi(y|x), the policy
    chosen, rejected = batch.chosen, batch.rejected  # (P,) each: places among the A answers
    pairs = dpo_loss(
        logps[chosen], logps[rejected], reference_logps[chosen], reference_logps[rejected],
        chosen_lengths=batch.lengths[chosen], rejected_lengths=batch.lengths[rejected],
        questions=batch.questions, **loss,
    )  # fmt: skip
    (pairs.loss @ batch.weights).backward()  # eq. (15) of docs/math.md
    columns = (*pairs, logps[chosen], logps[rejected], batch.weights, batch.questions)
    return StepLog(PairLog(*(c.detach() for c in columns)), batch.as_pairs, batch.fed)


def accumulate(training: Training, pairs: Sequence[data.Pair]) -> StepLog:
    """Leave the gradient of a whole step in the adapters, micro-batch by micro-batch."""
    model, reference = training.model, training.reference
    loss = training.run.config.loss_settings()
    while True:  # again with half the tokens at once, where memory runs out
        with training.budget:
            batches = training.micro_batches(pairs)
            logs = [backward(model, batch, reference, loss) for batch in batches]
            return StepLog.joined(logs, training.run.stop.received)


def loop(training: Training, optimizer: torch.optim.Optimizer) -> None:
    """Take every optimizer step that is left."""
    config, total = training.run.config, training.steps.total
    parameters = lora.adapter_parameters(training.model)
    for step, pairs in training.steps_left():
        training.reference.follow(step)  # a moving one becomes the policy; a frozen one stays
        log = training.add_up(accumulate(training, pairs))  # of all processes
        norm = clip_grad_norm_(parameters, config.max_grad_norm)
        rate = config.lr * schedule_factor(step, total, config.warmup_ratio, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        metrics = step_metrics(log.pairs) | {"grad_norm": float(norm), "learning_rate": rate}
        if trouble := dpo.not_finite(metrics):
            metrics = training.skip(step, pairs, trouble)  # or the run ends here
        else:
            optimizer.step()
        optimizer.zero_grad()
        training.after(log, metrics)  # logs the step; evaluates, saves and stops when it is time


def train(run: Run, resumed: Checkpoint | None) -> None:
    """Do the whole job in the run's folder, from a checkpoint on if there is one."""
    config = inputs.chosen(run.config)

    # The questions, as token ids, some of them held out; and which pairs make which step.
    tokenizer, text = inputs.load_tokenizer(config)
    questions = inputs.read_questions(config, tokenizer, text)
    print_rows(questions.report.lines)
    steps = inputs.steps_of(config, questions.train)
    plan = settled(config, questions, steps, run.world)
    if config.plan:
        return print_rows(plan.lines())
    config = replace(config, template=text.template, checkpointing=plan.checkpointing)

    # The frozen base, and adapters on it. With the adapters off it is the reference.
    base = inputs.load_hashed(config, sharded=plan.shards > 1)
    model = base.model
    check = dpo.check_sharing(model, questions.check_questions, questions.largest_id, base.layers)
    inputs.add_adapters(config, model)
    reference = Reference(config, model, base.hash)
    a, b = (lora.adapter_parameters(model, name) for name in "AB")
    faster = config.lora_plus_ratio  # LoRA+, arXiv 2402.12354: B learns faster than A
    groups = [{"params": a, "ratio": 1.0}, {"params": b, "ratio": faster}]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    training = Training(run._replace(config=config), reference, questions, steps, plan, check)
    print_start(base, check, steps, plan.lines())
    training.resume(optimizer, resumed)
    run.clock.lap("load")

    # The reference's log-probs, once per distinct answer; of held-out questions they are "before".
    reference.score(training.scorer, run.world, questions, steps)
    run.clock.lap("reference")

    with training.begun():
        loop(training, optimizer)
    finish(training, base, tokenizer)


def finish(training: Training, base: lora.Base, tokenizer: Any) -> None:
    """Leave the adapter, what it changed on questions it has not seen, and the merged model."""
    run, model = training.run, base.model
    model.eval()
    training.best.restore()
    if run.world.first:
        lora.save_adapter(model, run.folder / "adapter", base.name, base.revision)
    found = training.outcome(tokenizer)  # all processes score
    if not run.world.first:
        return
    write_outcome(run.folder, found)
    run.clock.lap("evaluate")
    if run.config.merge:
        print_merge(write_merged(model, base, tokenizer, run.folder, run.config.merge_dtype))
    run.clock.lap("merge")
    print_summary(run.folder, found, write_summary(training, base))


def run(config: Config, stop: Stop | None = None, world: World = World()) -> Path:
    """Do the whole job and return the output folder."""
    inputs.prepare_libraries()
    if config.push_to_hub and world.first:
        publish.check_access(config.push_to_hub)
    with opened(config, world) as (folder, resumed):
        train(Run(config, folder, world, stop or Stop(), Clock()), resumed)
    if config.push_to_hub and world.first and not config.plan:
        publish.publish(inputs.finished_run(folder), config.push_to_hub, config.private)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return guarded("train.py", lambda stop, world: run(parse(argv), stop, world), argv)


if __name__ == "__main__":
    sys.exit(main())
