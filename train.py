"""Fine-tune a causal language model with DPO through LoRA, and merge.

`python train.py --rank 8 --alpha 16` does the whole job, in the order of `run` below.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

import data
import dpo
import lora
from config import Config, UsageError, parse
from console import Progress, print_plan, print_summary, track, watch
from workspace import Clock, cache_folder, hub_token, new_folder, peak_memory, write_json

TOKENS = {"train": 2048, "score": 4096, "plain": 512}  # fed at once; plain rows keep all logits


def run(config: Config) -> Path:
    """Do the whole job and return the output folder."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = new_folder(config.output_dir)
    token = hub_token()
    torch.manual_seed(config.seed)
    clock = Clock()

    # The questions. What `auto` stands for is settled here, so that config.yaml repeats the run.
    if config.data == "auto":
        config.data, why = data.choose_source()
        print(f"Data: {config.data}, since {why}; --data chooses other questions.", flush=True)
    store = cache_folder("data")  # for what is too large to be read anew every time
    reading = data.read_preferences(config.data, config.columns, token, store, watch)

    # The frozen base model.
    device = lora.choose_device(config.device)
    if config.model == "auto":
        config.model, why = lora.choose_model(device, token)
        print(f"Model: {config.model}, since {why}; --model chooses another.", flush=True)
    dtype = lora.choose_dtype(config.dtype, device)
    base = lora.load_base(
        config.model, device, dtype, config.attention, config.revision, token, config.quantize
    )
    model = base.model
    if "gemma" in model.config.model_type:
        print(lora.GEMMA_TERMS)

    # Questions -> token ids, some of them held out.
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    settings = config.text_settings(base.tokenizer, limit)
    file = data.encoding_file(store, reading, base.tokenizer, settings)
    encoding = data.encode(reading.preferences, base.tokenizer, **settings, file=file, watch=watch)
    questions = encoding.questions
    split = data.split_by_prompt(
        questions.column("key").tolist(), config.eval_fraction, config.seed
    )
    train, held_out = map(questions.select, split)
    report = data.examine(config.data, reading, encoding, base.tokenizer, split, settings)

    # Adapters on the base, which stays as it is and is the reference.
    check = dpo.check_sharing(model, data.of_all_lengths(questions), encoding.largest_id)
    fingerprint = dpo.base_fingerprint(model)
    if config.adapter:
        lora.load_adapter(model, config.adapter)
    else:
        lora.add_lora(
            model,
            config.rank,
            config.alpha,
            config.dropout,
            lora.as_targets(config.target_modules),
            config.rslora,
            config.patterns("rank_pattern", int),
            config.patterns("alpha_pattern", float),
        )
    if config.reference_adapter:  # the reference is the policy as it stands now
        fingerprint = dpo.base_fingerprint(model)
    cache = cache_folder("reference") / f"{fingerprint}.json"
    parameters = lora.adapter_parameters(model)
    steps = data.Steps(
        train.column("pairs").tolist(), config.batch_size * config.grad_accum,
        config.epochs, config.seed, config.shuffle, config.max_steps,
    )  # fmt: skip
    print_plan(base, report, check, steps)
    new_folder(str(folder)).mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.yaml")
    clock.lap("load")

    # The reference's log-probs, once per distinct answer; for held-out questions, "before".
    def asked() -> Iterator[tuple[Any, Any]]:
        return ((q.prompt, q.answers) for q in held_out)

    def wanted() -> Iterator[tuple[Any, Any]]:
        yield from asked()
        if not config.reference_free:
            yield from ((q.prompt, q.trained) for q in train.select(used))

    def anchor(prompt: Any, answer: Any) -> float:
        return 0.0 if config.reference_free else scores[dpo.answer_key(prompt, answer)]

    used = sorted({q for pairs in steps.from_step() for q, _ in pairs})
    budget = TOKENS["score"] if check.shared else TOKENS["plain"]
    show = partial(track, unit="answers", size=lambda batch: batch[1].answers)
    scores = dpo.read_cache(cache)
    with nullcontext() if config.reference_adapter else lora.adapters_disabled(model):
        new = dpo.score_answers(
            model, wanted, budget, check.shared, scores, partial(show, label="Reference")
        )
    scores |= new
    if new:
        try:
            dpo.write_cache(cache, scores)
        except OSError as error:
            print(f"The reference is not cached: {error}", flush=True)
    before = dpo.evaluate(held_out, scores)
    clock.lap("reference")

    # The loop.
    ratios = {"A": 1.0, "B": config.lora_plus_ratio}  # LoRA+, arXiv 2402.12354: B learns faster
    groups = [{"params": lora.adapter_parameters(model, name), "name": name} for name in ratios]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    warmup = round(config.warmup_ratio * steps.total)
    moved: list[torch.Tensor] = []  # the adapter that is the reference once it moves
    lora.train_adapters(model)
    tokens = {"as_pairs": 0, "as_tries": 0}
    progress = Progress("Training", steps.pairs, "pairs")
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as log:
        for step, pairs in enumerate(steps.from_step()):
            if config.reference_sync and step and step % config.reference_sync == 0:
                moved = lora.copy_adapter(model)  # TR-DPO, arXiv 2404.09656, hard update
            seen = []
            batches = data.step_batches(
                train, pairs, TOKENS["train"], check.shared, config.weight_by
            )
            for batch in (batch.to(device) for batch in batches):
                if moved:
                    with torch.no_grad(), lora.adapter_swapped(model, moved):
                        anchors = dpo.answer_logps(model, batch.trees)  # (A,)
                else:
                    anchors = torch.tensor([anchor(*ids) for ids in batch.ids], device=device)
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
                tokens["as_pairs"] += batch.as_pairs
                tokens["as_tries"] += batch.fed
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            if not norm.isfinite():
                raise dpo.NumericError(
                    f"the gradient of step {step} is not finite, so training stopped before it; "
                    "try a lower --lr or --dtype float32"
                )
            rate = config.lr * dpo.schedule_factor(step, steps.total, warmup, config.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate * ratios[group["name"]]
            optimizer.step()
            optimizer.zero_grad()
            metrics = dpo.step_metrics(torch.cat(seen, 1))
            metrics |= {"grad_norm": float(norm), "learning_rate": rate}
            log.write(json.dumps({"step": step, **metrics}) + "\n")
            log.flush()
            accuracy = metrics["rewards/accuracies"]
            progress.advance(len(pairs), f"loss {metrics['loss']:.3f}, accuracy {accuracy:.2f}")
    progress.close()
    clock.lap("train")

    # What it changed, on questions it has not seen.
    model.eval()
    after_scores = dpo.score_answers(
        model, asked, budget, check.shared, watch=partial(show, label="Evaluation")
    )
    after = dpo.evaluate(held_out, after_scores)
    results = {"questions": len(held_out), "before": before._asdict(), "after": after._asdict()}
    write_json(folder / "evaluation.json", results)
    clock.lap("evaluate")

    # The adapter, and the merged model.
    lora.save_adapter(model, folder / "adapter", base.name, base.revision)
    if config.merge:
        merge_dtype = None if config.merge_dtype == "auto" else getattr(torch, config.merge_dtype)
        rounding = lora.merge_rounding(model, merge_dtype)
        lora.save_merged(lora.merge_lora(model, merge_dtype), base, folder / "merged")
        print(
            f"Merged: {rounding.changed:.0%} of the patched weights moved; "
            f"rounding changed their deltas by {rounding.error:.0%}."
        )
    clock.lap("merge")
    busy = clock.seconds["reference"] + clock.seconds["train"]
    summary = {
        "pairs": steps.pairs,
        "steps": steps.total,
        "seconds": clock.seconds,
        "pairs_per_second": steps.pairs / busy,
        "peak_memory_bytes": peak_memory(device),
        "tokens": tokens,
        "model": base.name,
        "data": config.data,
        "merged": config.merge,
    }
    write_json(folder / "summary.json", summary)
    print_summary(folder, results, summary)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    try:
        run(parse(argv))
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted; the run's folder holds what was finished", file=sys.stderr)
        return 130
    except (UsageError, data.DataError, lora.ModelError, dpo.NumericError) as error:
        if debug:
            raise
        print(f"train.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, dpo.NumericError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
