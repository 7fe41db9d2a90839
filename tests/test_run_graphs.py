"""A recorded step is the step itself, bit for bit, on every batch of its bucket."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from conftest import relative_error
from test_data_buckets import adapted, batch_of, roomier
from test_run_checkpoint import After
from torch.fx.experimental.proxy_tensor import make_fx

import dpo
import lora
import train
from data.buckets import nothing, padded
from run.config import Config
from run.errors import Stopped, UsageError
from run.graphs import Given, Graphs, Packed, why_not

BATCHES = [batch_of(3, 1, 2), batch_of(1, 1), batch_of(4), batch_of(2, 2, 1)]
BUCKET = roomier(BATCHES[0], 0, 32).joined(roomier(BATCHES[3]))
NODES = []  # of the recorded steps


def by_fx(step, tensors):
    """Record operations as nodes of a graph, as CUDA would: Python runs but once."""
    graph = make_fx(lambda *_: step())(*tensors)
    NODES.append(len(graph.graph.nodes))
    return torch.no_grad()(lambda: graph(*tensors))


@pytest.fixture(autouse=True)
def head_of_a_gpu(monkeypatch):
    """On a CPU alone the head looks at values, to leave out words that do not count."""
    monkeypatch.setattr("dpo.head._words_that_count", lambda z, sums, part, *_: (z, part))


class Known:
    """A reference that scores answers by their number."""

    def logps(self, batch):
        return -9 + 0.1 * torch.arange(len(batch.lengths))


def step_of(backward, model, batch, config):
    """A step's log and its gradients."""
    torch.manual_seed(0)
    log = backward(model, batch, Known(), config)
    found = [p.grad.clone() for p in lora.adapter_parameters(model)]
    model.zero_grad()
    return log, found


def unrecorded(model, batch, config):
    """What a recorded step does, with nothing recorded."""
    for parameter in lora.adapter_parameters(model):
        parameter.grad = torch.zeros_like(parameter)
    with lora.few_kernels(model, lambda function: function), lora.adapters_cast(model):
        torch.manual_seed(0)
        log = train.backward(model, padded(batch, BUCKET), Known(), config)
    found = [p.grad.clone() for p in lora.adapter_parameters(model)]
    model.zero_grad()
    return log, found


@pytest.fixture(scope="module")
def models():
    found = {a: adapted(a, torch.float32, num_hidden_layers=2) for a in ("llama", "gemma2")}
    for model in found.values():
        for layer in lora.lora_layers(model).values():
            layer.dropout = 0.2
    return found


def losses():
    """Every loss; those that are written like another take their time with the slow tests."""
    quick = ("sigmoid", "group", "ranking")
    return [
        n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in get_args(dpo.Loss)
    ]


@pytest.mark.parametrize("loss", losses())
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_replayed_step_is_the_step_bit_for_bit(architecture, loss, models):
    model = models[architecture]
    config = Config(loss=loss, label_smoothing=0.1 if loss == "exo" else 0.0, sft_weight=0.2)
    graphs = Graphs(model, config, by_fx, [BUCKET])
    with lora.norms_by_hand(model), lora.attention_by_hand(model):
        backward = graphs.of(train.backward)
        assert list(graphs.recorded) == [BUCKET] and NODES.pop() > 500
        for batch in BATCHES:
            log, gradients = step_of(backward, model, batch, config)
            expected, own = unrecorded(model, batch, config)
            assert all(map(torch.equal, gradients, own))
            pairs = len(batch.chosen)
            for one, two in zip(log.pairs, expected.pairs, strict=True):
                assert torch.equal(one, two[:pairs].float())
            assert torch.equal(log.anchor, expected.anchor)
            assert (log.as_pairs, log.as_tries) == (batch.as_pairs, batch.fed)


def test_a_recorded_step_is_that_of_the_layers_as_they_are(models):
    """Where nothing is dropped, since padding has draws of its own."""
    model, config = models["gemma2"], Config()
    layers = lora.lora_layers(model).values()
    for layer in layers:
        layer.dropout = 0.0
    backward = Graphs(model, config, by_fx, [BUCKET]).of(train.backward)
    for batch in BATCHES:
        log, found = step_of(backward, model, batch, config)
        expected, own = step_of(train.backward, model, batch, config)
        assert relative_error(log.pairs.loss, expected.pairs.loss) < 1e-6
        for one, two in zip(found, own, strict=True):
            assert relative_error(one, two) < 2e-6
    for layer in layers:
        layer.dropout = 0.2


def test_micro_batches_add_up_and_what_has_no_bucket_is_computed_as_it_is(models):
    model, config = models["llama"], Config()
    for layer in lora.lora_layers(model).values():
        layer.dropout = 0.0
    graphs = Graphs(model, config, by_fx, [roomier(BATCHES[1])])
    backward = graphs.of(train.backward)
    expected = [
        sum(parts)
        for parts in zip(*(step_of(train.backward, model, b, config)[1] for b in
                           (BATCHES[0], BATCHES[1], BATCHES[1])), strict=True)
    ]  # fmt: skip
    for batch in (BATCHES[0], BATCHES[1], BATCHES[1]):  # the first is too large for the bucket
        backward(model, batch, Known(), config)
    for parameter, whole in zip(lora.adapter_parameters(model), expected, strict=True):
        assert relative_error(parameter.grad, whole) < 1e-5
    model.zero_grad()  # as the optimizer does; what was there must not come back
    _, again = step_of(backward, model, BATCHES[1], config)
    _, once = step_of(train.backward, model, BATCHES[1], config)
    for one, two in zip(again, once, strict=True):
        assert relative_error(one, two) < 1e-5


def test_dropout_draws_anew_at_every_replay_and_as_the_generator_says(models):
    model, config = models["gemma2"], Config()
    for layer in lora.lora_layers(model).values():
        layer.dropout = 0.3
    backward = Graphs(model, config, by_fx, [BUCKET]).of(train.backward)

    def found():
        backward(model, BATCHES[0], Known(), config)
        gradients = [p.grad.clone() for p in lora.adapter_parameters(model)]
        model.zero_grad()
        return torch.cat([g.flatten() for g in gradients])

    torch.manual_seed(3)
    one, two = found(), found()
    torch.manual_seed(3)
    assert not torch.equal(one, two) and torch.equal(found(), one)


def test_a_packed_batch_is_what_it_was():
    batch = padded(BATCHES[0], BUCKET)
    packed, logps = Packed(padded(nothing(BUCKET.words), BUCKET)), Known().logps(batch)
    same, scores = packed.unpack(packed.pack(batch, logps))
    assert torch.equal(scores, logps) and torch.equal(same.weights, batch.weights)
    assert torch.equal(same.anchors.logps, batch.anchors.logps)
    for one, two in zip(same.trees, batch.trees, strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def fails(step, tensors):
    raise RuntimeError("operation not permitted when stream is capturing")


def test_a_step_that_cannot_be_recorded_is_made_as_ever_or_refused(models, capsys):
    model, config = models["llama"], Config()
    graphs = Graphs(model, config, fails, [BUCKET])
    backward = graphs.of(train.backward)
    assert "Graphs: none" in capsys.readouterr().out and not graphs.recorded
    one, two = (step_of(b, model, BATCHES[0], config)[1] for b in (backward, train.backward))
    assert all(map(torch.equal, one, two))
    with pytest.raises(UsageError, match="--graphs on: a step cannot be recorded"):
        Graphs(model, replace(config, graphs="on"), fails, [BUCKET]).of(train.backward)


def test_the_first_lines_say_why_steps_are_not_recorded():
    gpu, config = torch.device("cuda"), Config(checkpointing="off", graphs="auto")
    assert not why_not(config, gpu, "tries", 1)
    assert "CUDA" in why_not(config, torch.device("cpu"), "tries", 1)
    for changes, said in (
        ({"graphs": "off"}, "--graphs auto records"),
        ({"checkpointing": "on"}, "--checkpointing on"),
        ({"quantize": "nf4"}, "--quantize nf4"), ({"reference_sync": 3}, "--reference-sync"),
    ):  # fmt: skip
        assert said in why_not(replace(config, **changes), gpu, "tries", 1)
    assert "rows" in why_not(config, gpu, "rows", 1) and "--shard" in why_not(
        config, gpu, "tries", 2
    )


def test_a_given_reference_says_what_it_was_given():
    assert torch.equal(Given(torch.ones(2)).logps(BATCHES[0]), torch.ones(2))


def as_it_is(step, tensors):
    """Record nothing, and make the step again each time."""
    return step


@pytest.fixture
def run(model_folder, questions_csv, private_cache, plain_pictures, tmp_path):
    """Run with some settings into a folder of that name; return its log."""

    def run(name, stop=None, **more):
        folder = tmp_path / name
        settings = {
            "model": str(model_folder), "data": str(questions_csv), "dtype": "float32",
            "device": "cpu", "epochs": 3, "lr": 1e-3, "merge": False, "batch_size": 4,
            "grad_accum": 1, "save_every": 2, "output_dir": str(folder), "scale": "1",
            "threads": "1", "anchor_tokens": 3, "eval_fraction": 0.2,
        }  # fmt: skip
        train.run(Config(**(settings | more)), stop)
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.fixture
def recorded(monkeypatch):
    """Steps are made as on a GPU, with padded batches."""
    monkeypatch.setattr("run.training.why_not", lambda *_: "")
    monkeypatch.setattr("run.training.CudaGraph", lambda: as_it_is)


def test_a_run_of_recorded_steps_learns_what_a_run_does(run, request):
    plain = run("plain", dropout=0.0)
    request.getfixturevalue("recorded")
    for one, other in zip(run("recorded", dropout=0.0), plain, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "anchor", "logps/chosen"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5)


def test_a_run_of_recorded_steps_goes_on_with_its_own_buckets(run, recorded, monkeypatch, tmp_path):
    whole, stop, metrics = run("whole", dropout=0.3), After(1), dpo.step_metrics

    def counted(log, beta):
        stop.steps += 1
        return metrics(log, beta)

    monkeypatch.setattr(dpo, "step_metrics", counted)
    with pytest.raises(Stopped):
        run("halves", stop=stop, dropout=0.3)
    monkeypatch.setattr("run.training.buckets_of", None)  # never asked again
    halves = run("halves", dropout=0.3, resume=str(tmp_path / "halves"))
    assert halves == whole
