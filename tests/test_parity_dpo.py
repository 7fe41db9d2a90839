"""Parity with TRL: every loss that both have, and whole training steps from the same adapter."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from conftest import randomise, relative_error, small_model, small_tokenizer

from data import Preference, encode, step_batches
from dpo import Constants, answer_logps, dpo_loss, loss_terms
from lora import add_lora, save_adapter
from lora.adapter import lora_layers

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
trl = pytest.importorskip("trl", reason="needs the extra [parity]")
peft = pytest.importorskip("peft")

PAIRS, BETA = 6, 0.3
THEIR_NAMES = {
    "exo": "exo_pair", "nca": "nca_pair", "bco": "bco_pair", "sppo": "sppo_hard",
    "apo-zero": "apo_zero", "apo-down": "apo_down", "sigmoid-norm": "sigmoid_norm",
}  # fmt: skip


def their_loss(
    token_logps, mask, reference, name, smoothing=0.0, divergence="reverse_kl", coef=0.5
):
    """TRL's loss of a batch whose model gives these log-probs for each token: (2P, L - 1).

    `name` is one of ours, or a mixture.
    """
    terms = loss_terms(name)
    zeros = torch.zeros_like(token_logps)
    outputs = SimpleNamespace(
        log_probs=token_logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    me = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x
        ),
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, use_weighting=False,
        f_divergence_type=divergence, f_alpha_divergence_coef=coef, beta=BETA,
        label_smoothing=smoothing, loss_types=[THEIR_NAMES.get(name, name) for name in terms],
        loss_weights=[*terms.values()],
        args=SimpleNamespace(discopop_tau=0.05), _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:PAIRS],
        "ref_rejected_logps": reference[PAIRS:],
    }
    return trl.DPOTrainer._compute_loss(me, lambda **_: outputs, inputs, False)


def batch(seed):
    """Random log-probs of 2P answers of different lengths: tokens, mask, reference sums."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (2 * PAIRS,), generator=generator)
    mask = (torch.arange(10) >= 1) & (torch.arange(10) <= lengths[:, None])  # a prompt of one token
    logps = -torch.rand(2 * PAIRS, 9, generator=generator) * 4 * mask[:, 1:]
    reference = logps.sum(1) + torch.randn(2 * PAIRS, generator=generator) * 3
    return logps, mask.long(), reference, lengths


def our_loss(logps, reference, lengths, name, smoothing=0.0, **more):
    policy = logps.sum(1)
    return dpo_loss(
        policy[:PAIRS], policy[PAIRS:], reference[:PAIRS], reference[PAIRS:], BETA, name, smoothing,
        chosen_lengths=lengths[:PAIRS], rejected_lengths=lengths[PAIRS:], **more,
    ).loss.mean()  # fmt: skip


CASES = [
    *((name, 0.0) for name in ("sigmoid", "hinge", "ipo", "robust", "nca", "bco", "sppo")),
    *((name, 0.0) for name in ("apo-zero", "apo-down", "discopop", "sigmoid-norm")),
    ("robust", 0.2),
    ("exo", 1e-3),
    ("exo", 0.2),
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name, smoothing", CASES)
def test_every_loss_that_both_have_is_the_same(name, smoothing, seed):
    logps, mask, reference, lengths = batch(seed)
    ours = our_loss(logps, reference, lengths, name, smoothing)
    theirs = their_loss(logps, mask, reference, name, smoothing)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "robust", "discopop", "sigmoid-norm"])
@pytest.mark.parametrize(
    "mine, theirs, alpha",
    [
        ("forward-kl", "forward_kl", 0.5),
        ("js", "js_divergence", 0.5),
        ("alpha", "alpha_divergence", 0.3),
    ],
)
def test_every_divergence_that_both_have_is_the_same(name, mine, theirs, alpha):
    """TRL's coefficient is one less our alpha, which is the paper's."""
    logps, mask, reference, lengths = batch(0)
    ours = our_loss(logps, reference, lengths, name, divergence=mine, divergence_alpha=alpha)
    other = their_loss(logps, mask, reference, name, divergence=theirs, coef=1 - alpha)
    if (name, mine) == ("discopop", "forward-kl"):  # a weight of 0 times e^-m, which is infinite
        assert other.isnan() and ours.isfinite()
    else:
        assert float(ours) == pytest.approx(float(other), rel=1e-5, abs=1e-6)


def test_trl_ignores_label_smoothing_in_its_sigmoid_loss():
    logps, mask, reference, lengths = batch(0)
    theirs = [float(their_loss(logps, mask, reference, "sigmoid", e)) for e in (0.0, 0.2)]
    assert theirs[0] == theirs[1]
    ours = [float(our_loss(logps, reference, lengths, "sigmoid", e)) for e in (0.0, 0.2)]
    assert ours[0] == pytest.approx(theirs[0]) and ours[1] != pytest.approx(theirs[0])


def test_trls_sft_term_averages_over_the_tokens_of_a_batch_and_ours_over_each_answer():
    logps, mask, reference, lengths = batch(0)
    theirs = float(their_loss(logps, mask, reference, "sft"))
    chosen = lengths[:PAIRS].float()
    assert theirs == pytest.approx(float(-logps[:PAIRS].sum() / chosen.sum()))
    ours = our_loss(logps, reference, lengths, "sigmoid", sft_weight=1.0)
    ours = float(ours - our_loss(logps, reference, lengths, "sigmoid"))
    assert ours == pytest.approx(float((-logps[:PAIRS].sum(1) / chosen).mean()), rel=1e-5)


@pytest.mark.parametrize(
    "mixture", ["sigmoid=0.8,bco=0.2", "hinge=2,ipo=0.5,apo-zero=1", "sigmoid,sigmoid-norm=3"]
)
def test_a_mixture_is_that_of_trl(mixture):
    logps, mask, reference, lengths = batch(0)
    ours = our_loss(logps, reference, lengths, mixture)
    theirs = their_loss(logps, mask, reference, mixture)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def means(logps, lengths):
    """(chosen, rejected) log-probs a token, as TRL's trainers of CPO and ORPO take them."""
    found = logps.sum(1) / lengths
    return found[:PAIRS], found[PAIRS:]


def their_cpo_loss(chosen, rejected, loss_type, gamma=0.5):
    from trl.experimental.cpo import CPOTrainer

    me = SimpleNamespace(
        alpha=0.0, beta=BETA, loss_type=loss_type, simpo_gamma=gamma, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    return CPOTrainer.cpo_loss(me, chosen, rejected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.7])
def test_simpo_is_that_of_trls_cpo_trainer_with_the_same_gamma(gamma):
    """Each pair's loss. TRL divides gamma by beta and multiplies by beta again."""
    logps, _, reference, lengths = batch(1)
    theirs, *_ = their_cpo_loss(*means(logps, lengths), "simpo", gamma)
    policy, constants = logps.sum(1), Constants(simpo_gamma=gamma)
    ours = dpo_loss(
        policy[:PAIRS], policy[PAIRS:], reference[:PAIRS], reference[PAIRS:], BETA, "simpo",
        chosen_lengths=lengths[:PAIRS], rejected_lengths=lengths[PAIRS:], constants=constants,
    ).loss  # fmt: skip
    torch.testing.assert_close(ours, theirs)


def test_the_odds_ratio_of_orpo_is_that_of_trl():
    """TRL returns beta log sigma(log odds ratio); what is left of our loss is -log pi(y+) / |y+|.

    TRL takes that term over the prompt's tokens too, and over all tokens of a batch at once.
    """
    from trl.experimental.orpo import ORPOTrainer

    logps, _, reference, lengths = batch(2)
    chosen, rejected = means(logps, lengths)
    me = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    theirs, *_ = ORPOTrainer.odds_ratio_loss(me, chosen, rejected)
    ours = our_loss(logps, reference, lengths, "orpo")
    assert float(ours) == pytest.approx(float((-chosen - theirs).mean()), rel=1e-6)


def test_cpo_is_dpo_without_a_reference_and_the_sft_term():
    """TRL's CPO adds the mean over a batch's tokens; ours each answer's own. The rest is equal."""
    logps, _, reference, lengths = batch(3)
    sums = logps.sum(1)
    theirs, *_ = their_cpo_loss(sums[:PAIRS], sums[PAIRS:], "sigmoid")
    none = torch.zeros_like(reference)
    ours = our_loss(logps, none, lengths, "sigmoid", sft_weight=1.0)
    chosen, _ = means(logps, lengths)
    assert float(ours) == pytest.approx(float((theirs - chosen).mean()), rel=1e-6)


# Whole steps: the same adapter, the same pairs, float32, no dropout.

QUESTIONS = [
    Preference("Do bats see?", "Bats see well", ("Bats are blind", "Bats see nothing", "No")),
    Preference("What is heavier?", "Both weigh the same", ("The lead", "The feathers")),
    Preference("Is lead smaller?", "Lead is smaller, and denser", ("No",)),
]


@pytest.fixture(params=["llama", "gemma2"])
def both(request, tmp_path):
    """Our model and TRL's trainer around PEFT's, from one adapter; the questions as ids."""
    from datasets import Dataset

    tokenizer = small_tokenizer(bos=None)

    def fresh():
        return small_model(request.param, scale=0.1, vocab_size=len(tokenizer))

    ours = fresh()
    add_lora(ours, rank=2, alpha=4)
    randomise(ours, scale=0.1)
    save_adapter(ours, tmp_path / "adapter", base_model="some/base")
    # TRL makes an adapter that goes on from a saved one its own reference; ours is the base. So it
    # gets a new one, whose reference is the base, and then the saved weights.
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    rows = [
        {"prompt": f"Question: {q.prompt}\nAnswer:", "chosen": f" {q.chosen}", "rejected": f" {r}"}
        for q in QUESTIONS
        for r in q.rejected
    ]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, bf16=False, beta=0.1,
        per_device_train_batch_size=6, gradient_checkpointing=False, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        fresh(), args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=config,
    )  # fmt: skip
    weights = peft.load_peft_weights(str(tmp_path / "adapter"))
    peft.set_peft_model_state_dict(trainer.model, weights)
    encoded = encode(QUESTIONS, tokenizer)
    return ours, trainer, list(encoded.questions)


ALL = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]


def our_step(model, questions, reference):
    """Loss of all pairs in one trie batch, its gradients left in the adapters."""
    (batch,) = step_batches(questions, ALL, 10_000)
    logps = answer_logps(model, batch.trees)
    chosen, rejected = batch.chosen, batch.rejected
    loss = dpo_loss(logps[chosen], logps[rejected], reference[chosen], reference[rejected]).loss
    loss = loss @ batch.weights
    loss.backward()
    return float(loss.detach())


def their_step(trainer):
    rows = [trainer.train_dataset[i] for i in range(len(ALL))]
    trainer.model.eval()  # no dropout anywhere
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    return float(loss.detach())


def paired(ours, trainer):
    """(our parameter, theirs transposed) for every A and B, by name."""
    theirs = dict(trainer.model.named_parameters())
    for name, layer in lora_layers(ours).items():
        for letter in "AB":
            key = f"base_model.model.{name}.lora_{letter}.default.weight"
            yield getattr(layer, letter), theirs[key]


def reference_of(model, questions):
    from lora import adapters_disabled

    (batch,) = step_batches(questions, ALL, 10_000)
    with torch.no_grad(), adapters_disabled(model):
        return answer_logps(model, batch.trees)


def test_a_step_has_the_same_loss_and_the_same_gradients(both):
    ours, trainer, questions = both
    reference = reference_of(ours, questions)
    mine, theirs = our_step(ours, questions, reference), their_step(trainer)
    assert mine == pytest.approx(theirs, abs=1e-6)
    pairs = list(paired(ours, trainer))
    assert len(pairs) == 16  # 4 layers, q and v, A and B
    for a, b in pairs:
        assert relative_error(a.grad, b.grad.T) < 1e-5


def test_twenty_steps_stay_together(both):
    ours, trainer, questions = both
    reference = reference_of(ours, questions)
    mine = torch.optim.AdamW([a for a, _ in paired(ours, trainer)], lr=1e-3)
    theirs = torch.optim.AdamW([b for _, b in paired(ours, trainer)], lr=1e-3)
    losses = []
    for _ in range(20):
        losses.append((our_step(ours, questions, reference), their_step(trainer)))
        for optimizer in (mine, theirs):
            optimizer.step()
            optimizer.zero_grad()
    assert all(abs(a - b) < 1e-4 for a, b in losses), losses
    assert losses[-1][0] < losses[0][0] - 0.01  # it did train
    for a, b in paired(ours, trainer):
        assert relative_error(a.detach(), b.detach().T) < 1e-4
