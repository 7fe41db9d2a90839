"""What a step logs, by hand."""

import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from dpo import PairLog, StepLog, in_short, not_finite, spoilt, step_metrics


def test_step_metrics_average_all_pairs_and_a_tie_is_half():
    """Micro-batches of 1 and 3 pairs: the mean is over the 4 pairs, not over the 2 batches.

    Pairs 0 and 1 are of question 7, their worst margin 0, a tie; pair 2 of 8, at -4; 3 of 9, at 6.
    """
    rows = [(0.1, 1.0, 0.0), (0.2, 2.0, 2.0), (0.3, 0.0, 4.0), (0.6, 5.0, -1.0)]  # loss, r+, r-
    logs = []
    for part in (rows[:1], rows[1:]):
        loss, chosen, rejected = torch.tensor(part).T
        numbers = torch.tensor([7, 7, 8, 9])[len(logs) : len(logs) + len(part)]
        weights = torch.full((len(part),), 1 / 4)
        logs.append(
            StepLog(PairLog(loss, chosen, rejected, chosen * 10, rejected * 10, weights, numbers))
        )
    metrics = step_metrics(StepLog.joined(logs).pairs, beta=1.0)
    expected = {
        "loss": 0.3,
        "rewards/chosen": 2.0,
        "rewards/rejected": 1.25,
        "rewards/accuracies": (1 + 0.5 + 0 + 1) / 4,
        "rewards/margins": 0.75,
        "rewards/all_beaten": (0.5 + 0 + 1) / 3,
        "rewards/worst_margin": (0 - 4 + 6) / 3,
        "logps/chosen": 20.0,
        "logps/rejected": 12.5,
    }
    assert metrics == pytest.approx(expected)


def test_what_float32_rounds_off_the_log_probs_is_no_victory():
    """Log-probs of -100 are 2^-17 apart at the least; of two, 200 eps = 2.4e-5 may be rounding."""
    margins = torch.tensor([1e-5, -1e-5, 1e-4, -1e-4])
    zero, logps = torch.zeros(4), torch.full((4,), -100.0)
    log = PairLog(zero, margins, zero, logps, logps, zero + 0.25, torch.arange(4))
    metrics = step_metrics(log, beta=1.0)
    assert metrics["rewards/accuracies"] == metrics["rewards/all_beaten"] == 0.5
    for pair, won in enumerate((0.5, 0.5, 1, 0)):
        one = PairLog(*(column[[pair]] for column in log))
        for beta in (0.01, 1.0, 100.0):  # rewards are that many times the log-ratios
            scaled = one._replace(chosen_rewards=beta * one.chosen_rewards)
            assert step_metrics(scaled, beta)["rewards/accuracies"] == won


def test_the_logged_loss_is_the_weighted_one_that_was_minimised():
    loss, weights, zero = torch.tensor([1.0, 3.0]), torch.tensor([0.75, 0.25]), torch.zeros(2)
    log = PairLog(loss, zero, zero, zero, zero, weights, torch.tensor([0, 1]))
    assert step_metrics(log, beta=1.0)["loss"] == pytest.approx(0.75 + 0.75)


def part(first, count, **more):
    """The log of some pairs: in column c, pair p has the number 10 c + p."""
    pairs = torch.arange(first, first + count)
    return StepLog(PairLog(*(10.0 * c + pairs for c in range(len(PairLog._fields)))), **more)


def test_the_logs_of_parts_are_joined_in_their_order_and_their_counts_added():
    parts = [
        part(0, 2, as_pairs=50, as_tries=20, anchor=torch.tensor(0.5)),
        part(2, 1, as_pairs=7, as_tries=5, anchor=torch.tensor(0.25), stopped=15),
    ]
    whole = StepLog.joined(parts)
    for c, column in enumerate(whole.pairs):
        assert column.tolist() == [10 * c, 10 * c + 1, 10 * c + 2]
    assert whole[1:] == (57, 25, 0.75, 15)
    assert StepLog.joined(parts, stopped=2)[1:] == (
        57,
        25,
        0.75,
        15,
    )  # of two signals the larger one
    assert StepLog.joined(parts[:1], stopped=2)[1:] == (50, 20, 0.5, 2)


def test_questions_keep_their_numbers_beside_numbers_of_other_kinds():
    log = PairLog(*torch.zeros(6, 2), torch.tensor([3, 2**24]))
    assert StepLog.joined([StepLog(log)]).pairs.questions.tolist() == [3, 2**24]


def test_a_process_without_a_question_joins_with_an_empty_log():
    nothing = StepLog.joined([], stopped=2)
    assert [column.tolist() for column in nothing.pairs] == [[]] * len(PairLog._fields)
    assert nothing[1:] == (0, 0, 0.0, 2)
    whole = StepLog.joined([nothing, part(0, 2, as_pairs=50, as_tries=20)])
    assert whole.pairs.loss.tolist() == [0, 1] and whole[1:] == (50, 20, 0.0, 2)


class NobodyLooks(TorchDispatchMode):
    """Fails where a number is read on the host, for which a GPU's host would wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_spoilt_step_changes_neither_the_adapter_nor_adamw_and_nobody_waits_for_it():
    """Gradients 1, NaN and 2, as 1 and 2; and of a loss that is not finite, 3 as well."""
    found = []
    for gradients in ([1.0, math.nan, 2.0, 3.0], [1.0, 2.0]):
        parameter = torch.nn.Parameter(torch.tensor([5.0, 6.0]))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
        for gradient in gradients:
            parameter.grad = torch.full((2,), gradient)
            log = part(0, 2)
            log.pairs.loss[1] = math.inf if gradient == 3 else 0
            with NobodyLooks():
                norm = clip_grad_norm_([parameter], 10.0)
                optimizer.found_inf = spoilt(log, norm)
                optimizer.step()
                log.to("cpu", non_blocking=True)
        found.append([parameter.detach(), *optimizer.state[parameter].values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with pytest.raises(AssertionError), NobodyLooks():
        float(parameter[0])


def test_metrics_that_are_not_finite_are_named():
    assert not_finite({"loss": 1.0, "grad_norm": 2.0}) == ""
    found = not_finite({"loss": math.nan, "rewards/margins": 1.0, "grad_norm": math.inf})
    assert found == "loss, grad_norm not finite"


def test_a_step_in_a_few_words():
    assert in_short({"loss": 0.6931, "rewards/accuracies": 0.5}) == "loss 0.693, accuracy 0.50"
    assert in_short({"skipped": 3}) == "3 steps skipped"
