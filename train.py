"""Fine-tune a causal language model with DPO through LoRA, and merge.

`python train.py --rank 8 --alpha 16` does the whole job. `backward` is all of DPO; `train` is the
job in the order in which it happens, with the loop in plain sight. What is not the paper's:

1. Answers to one question share their computation (`data.trees`); no pair is ever padded.
2. The reference scores each answer once and is not computed again (`run.reference`).
3. A step is cut into micro-batches by tokens, and its pairs' weights sum to 1 however it is cut.
4. Other losses, moving references, stopping and going on: none of it changes what stands here.
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
from run import checkpoint, inputs, publish
from run.checkpoint import Checkpoint
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
    """Add the gradient of a micro-batch's DPO loss to the adapters: this is all of DPO."""
    reference_logps = reference.logps(batch)  # (A,) log pi_ref(y|x), no gradient
    logps = answer_logps(model, batch.trees)  # (A,) log pi(y|x), the policy
    chosen, rejected = batch.chosen, batch.rejected  # (P,) each: their places among the A answers
    pairs = dpo_loss(
        logps[chosen], logps[rejected], reference_logps[chosen], reference_logps[rejected],
        chosen_lengths=batch.lengths[chosen], rejected_lengths=batch.lengths[rejected],
        questions=batch.questions, **loss,
    )  # fmt: skip
    (pairs.loss @ batch.weights).backward()  # eq. (15) of docs/math.md
    columns = (*pairs, logps[chosen], logps[rejected], batch.weights, batch.questions)
    return StepLog(PairLog(*(c.detach() for c in columns)), batch.as_pairs, batch.fed)


def accumulate(training: Training, pairs: Sequence[data.Pair], reference: Reference) -> StepLog:
    """Leave the gradient of a whole step in the adapters, micro-batch by micro-batch."""
    model, loss = training.model, training.run.config.loss_settings()
    while True:  # once more with half the tokens at once, where memory runs out
        with training.budget:
            batches = training.micro_batches(pairs)
            logs = [backward(model, batch, reference, loss) for batch in batches]
            return StepLog.joined(logs, training.run.stop.received)


def train(run: Run, resumed: Checkpoint | None) -> None:
    """Do the whole job in the run's folder, from a checkpoint on if there is one."""
    config, world, clock = inputs.chosen(run.config), run.world, run.clock

    # The questions, as token ids, some of them held out; and which pairs make which step.
    tokenizer, text = inputs.load_tokenizer(config)
    questions = inputs.read_questions(config, tokenizer, text)
    print_rows(questions.report.lines)
    steps = inputs.steps_of(config, questions.train)
    plan = settled(config, questions, steps, world)
    if config.plan:
        return print_rows(plan.lines())
    config = replace(config, template=text.template, checkpointing=plan.checkpointing)

    # The frozen base, and adapters on it: with the adapters off it is the reference.
    base = (inputs.load_sharded if plan.shards > 1 else inputs.load_model)(config)
    model = base.model
    check = dpo.check_sharing(model, questions.check_questions, questions.largest_id, base.layers)
    base_hash = base.fingerprint or lora.base_fingerprint(model)
    inputs.add_adapters(config, model)
    parameters = lora.adapter_parameters(model)
    reference = Reference(config, model, base_hash)
    ratios = {"A": 1.0, "B": config.lora_plus_ratio}  # LoRA+, arXiv 2402.12354: B learns faster
    groups = [
        {"params": lora.adapter_parameters(model, name), "ratio": ratios[name]} for name in ratios
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    training = Training(run._replace(config=config), model, questions, steps, plan, check.shared)
    training.survive(optimizer, reference, resumed)
    print_start(base, check, steps, plan.lines())
    if world.first:
        config.save(run.folder / "config.yaml")
    clock.lap("load")

    # The reference's log-probs, once per distinct answer; of held-out questions they are "before".
    used = sorted({q for pairs in steps.from_step() for q, _ in pairs})
    reference.score(training.scorer, world, questions.held_out, questions.train.select(used))
    clock.lap("reference")

    warmup = round(config.warmup_ratio * steps.total)
    with training.begun():
        for step, pairs in training.steps_left():
            reference.follow(step)  # TR-DPO moves it; the frozen one stays
            log = training.add_up(accumulate(training, pairs, reference))
            norm = clip_grad_norm_(parameters, config.max_grad_norm)
            rate = config.lr * schedule_factor(step, steps.total, warmup, config.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["ratio"]
            metrics = step_metrics(log.pairs)
            metrics |= {"grad_norm": float(norm), "learning_rate": rate}
            if trouble := dpo.not_finite(metrics):
                metrics = training.skip(step, pairs, trouble)  # or the end
            else:
                optimizer.step()
            optimizer.zero_grad()
            training.after(log, metrics)  # log it; evaluate, save, stop when it is time

    # The adapter; what it changed on questions it has not seen, and what that cost.
    model.eval()
    training.best.restore()
    tuned = training.held_out_scores()
    if world.first:
        lora.save_adapter(model, run.folder / "adapter", base.name, base.revision)
    found = dpo.outcome_of(
        training.scorer, reference.switched_on, tokenizer, questions.held_out,
        reference.scores, tuned,
    )  # fmt: skip
    if not world.first:
        return
    write_outcome(run.folder, found)
    clock.lap("evaluate")

    # The merged model: W + dW, rounded once.
    if config.merge:
        print_merge(write_merged(model, base, tokenizer, run.folder, config.merge_dtype))
    clock.lap("merge")
    print_summary(run.folder, found, write_summary(training, base))


def run(config: Config, stop: Stop | None = None, world: World | None = None) -> Path:
    """Do the whole job and return the output folder."""
    world = world or World()
    inputs.prepare_libraries()
    if config.push_to_hub and world.first:
        publish.check_access(config.push_to_hub)
    with checkpoint.opened(config, world) as (folder, resumed):
        train(Run(config, folder, world, stop or Stop(), Clock()), resumed)
    if config.push_to_hub and world.first and not config.plan:
        publish.publish(inputs.finished_run(folder), config.push_to_hub, config.private)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return guarded("train.py", lambda stop, world: run(parse(argv), stop, world), argv)


if __name__ == "__main__":
    sys.exit(main())
