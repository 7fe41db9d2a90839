"""When memory runs out: half the tokens at once, the same random numbers, the same work."""

import pytest
import torch

from dpo import Budgets, OutOfMemory, TokenBudget, restore_random
from dpo.memory import SMALLEST, is_out_of_memory

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB, max allowed: 18.13 GB)"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
]


def done_within(budget, work):
    while True:
        with budget:
            return work(budget.tokens)


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_work_is_done_again_with_half_the_tokens_until_it_fits(error, capsys):
    tried, undone = [], []

    def work(tokens):
        tried.append(tokens)
        if tokens > 300:
            raise error
        return f"done with {tokens}"

    budget = TokenBudget(1000, undo=lambda: undone.append(len(tried)))
    assert done_within(budget, work) == "done with 250"
    assert tried == [1000, 500, 250] and undone == [1, 2]  # after each failure, before the next
    assert capsys.readouterr().out == (
        "Out of memory: going on with 500 tokens at once.\n"
        "Out of memory: going on with 250 tokens at once.\n"
    )
    assert done_within(budget, work) == "done with 250"  # it stays as small as it had to become
    assert len(tried) == 4 and len(undone) == 2


def test_the_random_numbers_of_work_that_is_repeated_are_those_it_had(capsys):
    drawn = []

    def work(tokens):
        drawn.append(torch.rand(3))
        if tokens == 64:
            raise MemoryError
        return torch.rand(3)

    torch.manual_seed(5)
    torch.rand(1)  # not at the generator's beginning
    expected = torch.rand(7)
    torch.manual_seed(5)
    torch.rand(1)
    found = done_within(TokenBudget(64), work)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], expected[:3])
    assert torch.equal(found, expected[3:6])
    assert torch.equal(torch.rand(1), expected[6:])  # and goes on from there


def test_the_random_numbers_of_a_gpu_go_on_where_they_were_too(monkeypatch, capsys):
    """Apple's is played here by a list of what it was set to."""
    was_set = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.mps, "set_rng_state", was_set.append)
    done_within(TokenBudget(64), lambda tokens: hungry(tokens) if tokens == 64 else tokens)
    assert was_set == [torch.tensor([7])]
    restore_random([torch.get_rng_state()])  # saved where there was no GPU
    assert len(was_set) == 1


def hungry(tokens):
    raise MemoryError


def test_below_the_smallest_budget_it_says_what_to_change(capsys):
    tried = []
    with pytest.raises(OutOfMemory, match="even with one question at a time.*--max-length") as told:
        done_within(TokenBudget(3 * SMALLEST), lambda t: tried.append(t) or hungry(t))
    assert tried == [3 * SMALLEST, 3 * SMALLEST // 2]
    assert isinstance(told.value.__cause__, MemoryError)


def test_where_others_wait_nothing_is_tried_again():
    tried, undone = [], []
    budget = TokenBudget(1000, undo=lambda: undone.append(1), alone=False)
    with pytest.raises(OutOfMemory, match="more processes"):
        done_within(budget, lambda tokens: tried.append(tokens) or hungry(tokens))
    assert tried == [1000] and not undone and budget.tokens == 1000


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("not enough memory"), KeyboardInterrupt()]
)
def test_another_error_passes_as_it_is(error):
    def wrong(tokens):
        raise error

    budget = TokenBudget(1000, undo=hungry)
    with pytest.raises(type(error)) as raised:
        done_within(budget, wrong)
    assert raised.value is error and budget.tokens == 1000
    assert not is_out_of_memory(error) and not is_out_of_memory(None)


def test_all_budgets_become_smaller_together():
    assert Budgets(train=2048, score=4096, plain=512).fewer(4) == (512, 1024, 128, 256)
