"""Block masks straight from `ends`: those of `create_block_mask`, block for block."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from data import ancestor_mask, build_trie, collate
from dpo.block_masks import blocks_seen, tree_block_mask


def long_trie(prompt, *answers, start=2):
    """A trie of a prompt and answers of these lengths, which part at their second token."""
    texts = [(start, *range(100 * k, 100 * k + n)) for k, n in enumerate(answers, start=1)]
    return build_trie(tuple(range(1, prompt + 1)), texts)


BATCHES = {
    "one long path": [long_trie(200, 500)],
    "branches of many blocks": [long_trie(150, 300, 40, 260)],
    "several rows, some of them short": [
        long_trie(40, 130, 7),
        long_trie(10, 3),
        long_trie(300, 9),
    ],
    "a single block": [long_trie(5, 9, 4)],
    "a whole number of blocks": [long_trie(128, 129)],
}


@pytest.mark.parametrize("window", [None, 1, 5, 128, 129, 200, 300, 5000])
@pytest.mark.parametrize("name", BATCHES)
def test_the_blocks_are_those_of_create_block_mask(name, window):
    trees = collate(BATCHES[name])
    mask = ancestor_mask(trees.positions, trees.ends, window)
    rows, length, _ = mask.shape
    expected = create_block_mask(
        lambda row, _, i, j: mask[row, i, j], rows, None, length, length, "cpu"
    )
    found = tree_block_mask(trees.positions, trees.ends, window)
    assert found.shape == expected.shape and found.seq_lengths == expected.seq_lengths
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, own = (getattr(m, f"{kind}_num_blocks") for m in (expected, found))
        assert torch.equal(counts, own) and counts.dtype == own.dtype
        listed, ours = (getattr(m, f"{kind}_indices") for m in (expected, found))
        used = torch.arange(listed.shape[-1]) < counts[..., None]
        assert torch.equal(listed[used], ours[used])
    index = (torch.arange(n) for n in (rows, 1, length, length))
    asked = torch.meshgrid(*index, indexing="ij")
    assert torch.equal(found.mask_mod(*asked)[:, 0], mask)


def test_blocks_by_hand():
    """A prompt of 128 tokens and two answers, of which 128 and 5 are fed.

    The second block sees the whole prompt, the third too, but nothing of the first answer.
    """
    trees = collate([build_trie(tuple(range(128)), [tuple(range(129)), (5, 6, 7, 8, 9, 4)])])
    some, full = blocks_seen(trees.positions, trees.ends, None)
    assert some.tolist() == [[[True, False, False], [True, True, False], [True, False, True]]]
    assert full.tolist() == [[[False] * 3, [True, False, False], [False] * 3]]
