"""Fine-tune a causal language model with DPO through LoRA, and merge.

`python train.py --rank 8 --alpha 16` does the whole job, in the order of `job` below.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

import checkpoint
import data
import dpo
import inputs
import lora
import plan
import processes
import publishing
from card import write_card
from checkpoint import Checkpoint
from commands import guarded
from config import Config, parse
from console import Progress, print_merge, print_rows, print_start, print_summary, track
from lora.merge import write_merged
from processes import World
from trackers import tracked
from workspace import Clock, Stop, Stopped, cache_folder, metrics_log, summary, write_json

TOKENS = {"train": 2048, "score": 4096, "plain": 512}  # fed at once; plain rows keep all logits


def run(config: Config, stop: Stop | None = None, world: World | None = None) -> Path:
    """Do the whole job and return the output folder."""
    world = world or World()
    with checkpoint.opened(config, world) as (folder, point):
        job(config, folder, point, stop or Stop(), world)
    if config.push_to_hub and world.first and not config.plan:
        publishing.publish(inputs.finished_run(folder), config.push_to_hub, config.private)
    return folder


def job(config: Config, folder: Path, point: Checkpoint | None, stop: Stop, world: World) -> None:
    """Do the job in `folder`, from the checkpoint on if there is one."""
    token = inputs.quiet()
    if config.push_to_hub and world.first:
        publishing.check_access(config.push_to_hub, token)
    clock = Clock(point.facts["seconds"] if point else None)

    # The questions, as token ids, some of them held out; and in which steps.
    tokenizer, questions = inputs.read_questions(config, token)
    train, held_out = questions.train, questions.held_out
    steps = data.Steps(
        train.column("pairs").tolist(), config.batch_size * config.grad_accum,
        config.epochs, config.seed, config.shuffle, config.max_steps,
    )  # fmt: skip
    planned = plan.settle(config, token, questions, steps, TOKENS, world.size)
    if config.plan:
        return print_rows(planned.lines())

    # The frozen base model, and adapters on it; it stays as it is and is the reference.
    sharded = max(world.gather(planned.shards)) > 1  # then all processes make the same passes
    base = (inputs.load_sharded if sharded else inputs.load_model)(config, token, tokenizer)
    model, device = base.model, base.model.device
    pace = partial(world.in_step, idle=partial(lora.take_part, model)) if sharded else None
    check = dpo.check_sharing(model, questions.few, questions.largest_id, base.layers)
    own = base.fingerprint or lora.base_fingerprint(model)
    fingerprints = {"data": questions.fingerprint, "base": own}
    inputs.add_adapters(config, model)
    parameters = lora.adapter_parameters(model)
    reference = lora.adapters_disabled
    if config.reference_adapter:  # the reference is the policy as it stands now
        fingerprints["base"] = lora.fingerprint(own, enumerate(parameters))
        reference = partial(lora.adapter_swapped, copy=lora.copy_adapter(model))
    cache = cache_folder("reference") / f"{fingerprints['base']}.json"
    ratios = {"A": 1.0, "B": config.lora_plus_ratio}  # LoRA+, arXiv 2402.12354: B learns faster
    groups = [{"params": lora.adapter_parameters(model, name), "name": name} for name in ratios]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    if point:
        checkpoint.check_same_run(point, config, **fingerprints)
    print_start(base, check, steps, planned.lines())
    if world.first:
        config.save(folder / "config.yaml")
    clock.lap("load")

    # The reference's log-probs, once per distinct answer; for held-out questions, "before".
    def scored(label: str, known: dpo.Scores, *sides: Any) -> dict[str, float]:
        show = partial(track, label=label, unit="answers", size=lambda batch: batch[1].answers)
        most = planned.budgets["score" if check.shared else "plain"]
        mine = dpo.asked(world.share, *sides)
        parts = world.gather(dpo.score_answers(model, mine, most, check.shared, known, show, pace))
        return {key: score for part in parts for key, score in part.items()}

    used = sorted({q for pairs in steps.from_step() for q, _ in pairs})
    sides = [(held_out, "answers"), (train.select(used), "trained")]
    scores = dpo.read_cache(cache)
    with reference(model):
        new = scored("Reference", scores, *sides[: 1 if config.reference_free else 2])
    scores |= new
    if new and world.first:
        dpo.write_cache(cache, scores)
    clock.lap("reference")

    # Where the loop starts: at the first step, or where a checkpoint stands.
    first, skipped, budget, tokens = 0, 0, planned.budgets["train"], {"as_pairs": 0, "as_tries": 0}
    copies: dict[str, list[torch.Tensor]] = {"reference": [], "best": []}  # moving; so far
    best, random = dict[str, Any](), list[torch.Tensor]()  # its step and value; generators
    if point:
        copies, random = checkpoint.unpack(point.tensors, parameters, optimizer, copies, world.rank)
        names = ("step", "skipped", "budget", "tokens", "best")
        first, skipped, budget, tokens, best = (point.facts[name] for name in names)
        print(f"Going on from {point.path}: step {first} of {steps.total}.", flush=True)

    # The loop.
    def gradients(pairs: Any, budget: int) -> tuple[torch.Tensor, int, int]:
        """Leave this process' gradients of a step in the adapters; return what is logged of it."""
        seen, as_pairs, fed = [torch.zeros(7, 0, device=device)], 0, 0
        share = (world.rank, world.size)
        cut = data.step_batches(train, pairs, budget, check.shared, config.weight_by, share)
        for batch in pace(cut, 2 if copies["reference"] else 1) if pace else cut:
            batch = batch.to(device)
            if copies["reference"]:
                with torch.no_grad(), lora.adapter_swapped(model, copies["reference"]):
                    anchors = dpo.answer_logps(model, batch.trees)  # (A,)
            else:
                known = dpo.anchors(batch.ids, None if config.reference_free else scores)
                anchors = torch.tensor(known, device=device)
            logps = dpo.answer_logps(model, batch.trees)  # (A,)
            chosen, rejected = batch.chosen, batch.rejected  # (P,)
            result = dpo.dpo_loss(
                logps[chosen], logps[rejected], anchors[chosen], anchors[rejected],
                chosen_lengths=batch.lengths[chosen], questions=batch.questions,
                rejected_lengths=batch.lengths[rejected], **config.loss_settings(),
            )  # fmt: skip
            # The weights of a step sum to 1, however micro-batches are cut.
            (result.loss @ batch.weights).backward()  # eq. (15) of docs/math.md
            columns = (logps[chosen], logps[rejected], batch.weights, batch.questions)
            seen.append(dpo.pair_columns(result, *columns))
            as_pairs, fed = as_pairs + batch.as_pairs, fed + batch.fed
            del logps, result, columns  # or bits of their graph split up the next one's memory
        return torch.cat(seen, 1).cpu(), as_pairs, fed

    def save(step: int) -> None:
        states = world.gather(processes.random_states())
        facts = {
            "config": config.settings(), **fingerprints, "tokens": tokens, "skipped": skipped,
            "budget": budget, "seconds": clock.seconds, "best": best,
        }  # fmt: skip
        if world.first:
            state = checkpoint.pack(parameters, optimizer, copies, states)
            checkpoint.save(folder, Checkpoint(step, state, facts), config.keep, log)
            dpo.draw_curves(folder, at_most_every=30)

    def evaluated(step: int) -> dict[str, float]:
        """Measure the policy on the held-out questions; keep its adapter if it is the best."""
        model.eval()
        now = dpo.measure(held_out, scored("Evaluation", {}, sides[0]))._asdict()
        lora.train_adapters(model)
        if not best or now[config.best] > best["value"]:
            best.update(step=step, metric=config.best, value=now[config.best])
            copies["best"] = lora.copy_adapter(model)
        return {f"eval/{name}": value for name, value in now.items()}

    warmup = round(config.warmup_ratio * steps.total)
    lora.train_adapters(model)
    processes.draw_own(config.seed, first, world.rank, random)
    progress = Progress("Training", steps.pairs, "pairs", done=steps.pairs_before(first))
    asked = (config.compile, config.checkpointing, steps.total, planned.packed > 0)
    layers = lora.layers_as_asked(model, *asked)
    tracker = tracked(config.tracker if world.first else "none", folder, config.settings(), first)
    with layers, metrics_log(folder if world.first else None, first) as log, tracker as report:
        clock.lap("prepare")  # the layers
        stop.patient = True
        for step, pairs in enumerate(steps.from_step(first), start=first):
            if config.reference_sync and step and step % config.reference_sync == 0:
                copies["reference"] = lora.copy_adapter(model)  # TR-DPO, arXiv 2404.09656, hard
            work = (partial(gradients, pairs), budget, optimizer.zero_grad, not sharded)
            mine, budget = dpo.within_memory(*work)
            world.sum_gradients(parameters)
            parts = world.gather((*mine, stop.received))
            metrics = dpo.step_metrics(torch.cat([part[0] for part in parts], 1))
            tokens["as_pairs"] += sum(part[1] for part in parts)
            tokens["as_tries"] += sum(part[2] for part in parts)
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
            rate = config.lr * dpo.schedule_factor(step, steps.total, warmup, config.schedule)
            metrics |= {"grad_norm": norm, "learning_rate": rate}
            if trouble := dpo.not_finite(metrics):
                trouble = f"step {step}: {trouble}; {dpo.where_not_finite(model, train, pairs)}"
                if not config.skip_nonfinite:
                    raise dpo.NumericError(f"{trouble}; try a lower --lr or --dtype float32")
                print(f"Skipped {trouble}", flush=True)
                skipped += 1
                metrics = {"skipped": skipped}
            else:
                for group in optimizer.param_groups:
                    group["lr"] = rate * ratios[group["name"]]
                optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            if config.eval_every and (done % config.eval_every == 0 or done == steps.total):
                metrics |= evaluated(done)
            report(step, metrics)
            log.write(json.dumps({"step": step, **metrics}) + "\n")
            progress.advance(len(pairs), dpo.in_short(metrics), metrics.get("loss"))
            stopped = max(part[3] for part in parts)
            if stopped or done % config.save_every == 0 or done == steps.total:
                save(done)
            if stopped:
                raise Stopped(stopped)
    stop.patient = False
    progress.close()
    clock.lap("train")

    # The adapter; what it changed, on questions it has not seen, and what that cost.
    model.eval()
    if copies["best"]:
        lora.restore_adapter(model, copies["best"])
    tuned = scored("Evaluation", {}, sides[0])
    if world.first:
        lora.save_adapter(model, folder / "adapter", base.name, base.revision)
    found = dpo.outcome_of(model, reference, tokenizer, held_out, scores, tuned, check.shared)
    if not world.first:
        return
    write_json(folder / "evaluation.json", found.results)
    write_json(folder / "samples.json", found.samples)
    dpo.draw_curves(folder)
    dpo.draw_evaluation(folder, found.results, *found.margins)
    clock.lap("evaluate")

    # The merged model.
    if config.merge:
        print_merge(write_merged(model, base, folder, config.merge_dtype, from_files=sharded))
    clock.lap("merge")
    counted = {"tokens": tokens, "skipped": skipped, "best": best}
    counted |= {"audit": questions.report.figures, "planned_memory_bytes": planned.peak}
    facts = summary(config, base.name, device, steps, clock, counted)
    write_json(folder / "summary.json", facts)
    write_card(folder)
    print_summary(folder, found, facts)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return guarded("train.py", lambda stop, world: run(parse(argv), stop, world), argv)


if __name__ == "__main__":
    sys.exit(main())
