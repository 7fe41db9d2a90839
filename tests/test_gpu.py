"""On a CUDA GPU: the numbers of a CPU whatever computes them, and no waiting within a step."""

import json

import pytest
import torch
from conftest import QUESTIONS_CSV, randomise, relative_error, small_model
from test_data_buckets import batch_of, roomier
from test_dpo_logps import ANSWERS, OTHER, PROMPT, scores_and_gradients
from test_lora_base_quantise import ERROR

import dpo
import lora
import train
from data import question_tries
from data.trees import collate
from lora.base.quantise import dense_weight
from run.config import Config
from run.graphs import CudaGraph, Given, Graphs

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore"),  # compilers' own
]
GPU = torch.device("cuda")
TRIES = [t for p, answers in [(PROMPT, ANSWERS), OTHER] for t in question_tries(p, answers)]


def adapted(architecture="gemma2", attention="eager", **changes):
    """Heads of 32, since Triton's products have no fewer than 16."""
    model = small_model(architecture, attention, scale=0.1, head_dim=32, **changes)
    lora.add_lora(model, rank=3, alpha=6, target_modules="all-linear")
    randomise(model, scale=0.1)
    return model


def assert_equal(found, expected, within=1e-4):
    """Scores, and the gradients of all A and B."""
    assert relative_error(found[0].cpu(), expected[0].cpu()) < within
    for one, other in zip(found[1], expected[1], strict=True):
        assert relative_error(one.cpu(), other.cpu()) < within


@pytest.mark.parametrize(
    "architecture, attention",
    [("gemma2", "eager"), ("gemma3", "sdpa"), ("llama", "sdpa"), ("gemma2", "flex_attention"),
     ("gemma3", "flex_attention")],
)  # fmt: skip
def test_scores_and_gradients_are_those_of_eager_attention_on_a_cpu(architecture, attention):
    batch = collate(TRIES)
    model = adapted(architecture)
    expected = scores_and_gradients(model, dpo.answer_logps(model, batch))
    model = adapted(architecture, attention).to(GPU)
    assert_equal(scores_and_gradients(model, dpo.answer_logps(model, batch.to(GPU))), expected)
    with lora.attention_by_hand(model) as on:
        assert on == (attention == "eager")
        assert_equal(scores_and_gradients(model, dpo.answer_logps(model, batch.to(GPU))), expected)


def test_a_step_makes_the_host_wait_for_nothing():
    model = adapted().to(GPU)
    lora.train_adapters(model)
    batch = collate(TRIES).to(GPU)
    sides = torch.arange(batch.answers, device=GPU).view(2, -1)

    def step():
        logps = dpo.answer_logps(model, batch)
        anchors = torch.zeros_like(logps)
        result = dpo.dpo_loss(
            logps[sides[0]], logps[sides[1]], anchors[sides[0]], anchors[sides[1]]
        )
        result.loss.sum().backward()

    step()  # libraries wait when they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with pytest.raises(RuntimeError, match="synchroniz"):  # what it would say
            float(batch.tokens.sum())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_recorded_step_is_the_step_and_makes_the_host_wait_for_nothing():
    """But for its log, which is read afterwards."""
    config, batches = Config(), [batch_of(3, 1, 2), batch_of(2, 1)]
    model = adapted().to(GPU)
    lora.train_adapters(model)
    buckets = [roomier(batches[0])]
    known = Given(torch.linspace(-9, -4, buckets[0].answers))
    with lora.norms_by_hand(model), lora.attention_by_hand(model):
        backward = Graphs(model, config, CudaGraph(), buckets).of(train.backward)
        for batch in batches:
            logs, found = [], []
            for step, given, scores in (
                (backward, batch, known),
                (train.backward, batch.to(GPU), Given(known.scores[: batch.trees.answers].to(GPU))),
            ):
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error" if step is backward else "default")
                try:
                    logs.append(step(model, given, scores, config).pairs)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                found.append([p.grad.clone() for p in lora.adapter_parameters(model)])
                model.zero_grad()
            assert relative_error(logs[0].loss, logs[1].loss) < 1e-4
            for one, two in zip(*found, strict=True):
                assert relative_error(one, two) < 1e-3


def test_recorded_dropout_draws_anew_and_as_the_generator_says():
    model = small_model("gemma2", scale=0.1, head_dim=32).to(GPU)
    lora.add_lora(model, rank=3, alpha=6, dropout=0.3)
    randomise(model)
    lora.train_adapters(model)
    batch = batch_of(2, 1)
    buckets = [roomier(batch)]
    known = Given(torch.zeros(buckets[0].answers))
    with lora.attention_by_hand(model):
        backward = Graphs(model, Config(), CudaGraph(), buckets).of(train.backward)

        def drawn():
            backward(model, batch, known, Config())
            found = torch.cat([p.grad.flatten() for p in lora.adapter_parameters(model)])
            model.zero_grad()
            return found

        torch.manual_seed(0)
        one, two = drawn(), drawn()
        torch.manual_seed(0)
        assert not torch.equal(one, two) and torch.equal(drawn(), one)


def test_few_kernels_are_few_and_compute_the_same():
    model, batch = adapted().to(GPU), collate(TRIES).to(GPU)
    with lora.norms_by_hand(model), lora.attention_by_hand(model):
        expected = scores_and_gradients(model, dpo.answer_logps(model, batch))

        def kernels():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                dpo.answer_logps(model, batch).sum().backward()
                torch.cuda.synchronize()
            model.zero_grad()
            return len(seen.events())

        before = kernels()
        with lora.few_kernels(model):
            assert_equal(scores_and_gradients(model, dpo.answer_logps(model, batch)), expected)
            assert kernels() < 0.7 * before


@pytest.mark.parametrize("kind", ERROR)
def test_a_quantised_base_is_trained_after_an_evaluation(kind, tokenizer, tmp_path):
    small_model("gemma2", scale=0.1, hidden_size=64).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = lora.load_base(str(tmp_path), GPU, torch.bfloat16, quantise=kind).model
    whole = lora.load_base(str(tmp_path), GPU, torch.bfloat16).model
    layer = model.model.layers[0].mlp.up_proj
    before = dense_weight(layer).float()
    assert relative_error(before, whole.model.layers[0].mlp.up_proj.weight.float()) < ERROR[kind]
    lora.add_lora(model, rank=2, alpha=4, target_modules="all-linear")
    randomise(model)
    batch = collate(TRIES).to(GPU)
    with torch.no_grad(), lora.adapters_disabled(model):
        dpo.answer_logps(model, batch)
    lora.train_adapters(model)
    dpo.answer_logps(model, batch).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in lora.adapter_parameters(model))
    assert torch.equal(dense_weight(layer).float(), before)


def test_too_large_a_step_is_cut():
    asked, budget = [], dpo.TokenBudget(4096)

    def work():
        while True:
            with budget:
                asked.append(budget.tokens)
                size = 2**30 if budget.tokens <= 1024 else 2**50
                return torch.empty(size, dtype=torch.uint8, device=GPU)

    found = work()
    assert asked == [4096, 2048, 1024] and budget.tokens == 1024 and len(found) == 2**30


def of_run(model_folder, folder, device, **more):
    """Train on the questions of the tests; return the log, the evaluation and the summary."""
    (folder / "questions.csv").write_text(QUESTIONS_CSV, encoding="utf-8")
    out = train.run(
        Config(
            model=str(model_folder), data=str(folder / "questions.csv"), device=device,
            output_dir=str(folder / f"on-{device}"), dropout=0.0, **more,
        )
    )  # fmt: skip
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return log, *(
        json.loads((out / f"{name}.json").read_text()) for name in ("evaluation", "summary")
    )


def test_a_run_is_that_of_a_cpu(model_folder, private_cache, tmp_path):
    settings = {"dtype": "float32", "lr": 3e-3, "epochs": 2}
    (log, found, facts), (expected, same, _) = (
        of_run(model_folder, tmp_path, device, **settings) for device in ("cuda", "cpu")
    )
    for line, one in zip(log, expected, strict=True):
        assert line["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert line["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)
    assert expected[-1]["loss"] < expected[0]["loss"]
    assert found["after"]["mc2"] == pytest.approx(same["after"]["mc2"], abs=1e-3)
    assert torch.cuda.get_device_name() in facts["hardware"]


def test_between_its_first_step_and_its_last_a_run_waits_for_nothing(
    model_folder, private_cache, tmp_path, monkeypatch
):
    """The log of a step is read when the next one has been given to the GPU."""

    class Watched(train.Training):
        def remaining_steps(self):
            try:
                for step, pairs in super().remaining_steps():
                    alone = 0 < step < self.steps.total - 1
                    torch.cuda.set_sync_debug_mode("error" if alone else "default")
                    yield step, pairs
            finally:
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(train, "Training", Watched)
    log, *_ = of_run(model_folder, tmp_path, "cuda", epochs=3, graphs="on", save_every=999)
    assert len(log) > 5


def test_the_planned_memory_is_what_a_run_takes(tokenizer, private_cache, tmp_path):
    model = small_model(
        "gemma2", hidden_size=2048, intermediate_size=8192, head_dim=256,
        vocab_size=128_000,
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    *_, facts = of_run(tmp_path / "model", tmp_path, "cuda", dtype="bfloat16", merge=False)
    assert 0.8 < facts["planned_memory_bytes"] / facts["peak_memory_bytes"] < 1.25


@pytest.mark.parametrize("how", ["computed again", "compiled"])
def test_layers_compiled_or_computed_again_keep_gradients_and_dropout(how):
    model = small_model("gemma2", scale=0.1).to(GPU)
    lora.add_lora(model, rank=3, alpha=6, dropout=0.3)
    randomise(model, scale=0.1)
    lora.train_adapters(model)
    batches = [collate(TRIES).to(GPU), collate(TRIES[:1]).to(GPU)]

    def found():
        torch.manual_seed(0)
        return [scores_and_gradients(model, dpo.answer_logps(model, b)) for b in batches]

    expected = found()
    asked = ("on", "off") if how == "compiled" else ("off", "on")
    with lora.layers_as_asked(model, *asked, 1):
        for one, other in zip(found(), expected, strict=True):
            assert_equal(one, other)
