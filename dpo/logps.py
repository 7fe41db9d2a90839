"""log pi(y|x) of every answer in a `TreeBatch`.

The model's body (all but its head) reads the tries under a tree mask, which gives each node the
hidden state that it would have in its own text, or plain rows of one answer each. `dpo.head` then
scores the tokens that follow, without keeping logits. Every token of an answer is scored, its stop
token included, and none of the prompt's.

Shape legend: B rows, L tokens in a row, D nodes that predict, E scored edges, A answers, H hidden.
"""

from typing import Any

import torch
from torch import Tensor

from data.trees import TreeBatch, ancestor_mask
from dpo.block_masks import tree_block_mask
from dpo.head import head_of, token_logps


def answer_logps(model: Any, batch: TreeBatch, tile_cells: int | None = None) -> Tensor:
    """Return (A,) float32: log pi(y|x) of each answer, summed over its tokens, in nats.

        log pi(y|x) = sum_t log softmax(z_t)[y_t]

    z_t are the logits at the node before y_t. `model` is a causal language model of transformers,
    with or without LoRA layers; the gradient flows to whatever of its body is trained. `tile_cells`
    bounds the head's memory, see `head_of`.
    """
    return over_paths(edge_logps(model, batch, tile_cells), batch)


def over_paths(edges: Tensor, batch: TreeBatch) -> Tensor:
    """Return (A,): the sum over each answer's edges of (E,) log-probs."""
    sums: Tensor = torch.zeros(batch.answers, device=edges.device, dtype=edges.dtype)
    return sums.index_add(0, batch.path_answers, edges[batch.path_edges])  # eq. (4) of docs/math.md


def edge_logps(model: Any, batch: TreeBatch, tile_cells: int | None = None) -> Tensor:
    """Return (E,) float32: the log-prob of each distinct answer token, given its path."""
    if batch.way == "logits":
        return own_scores(model, batch).gather(1, batch.edge_token[:, None]).squeeze(1)
    hidden, head = predicting(model, batch), head_of(model, tile_cells)
    return token_logps(hidden, batch.edge_token, head, batch.edge_node, batch.siblings)


def predicting(model: Any, batch: TreeBatch) -> Tensor:
    """Return (D, H): the hidden states of the nodes that a token follows."""
    read = {"attention_mask": not_padding(batch)}
    if batch.way == "tries":
        masks = attention_masks(model, batch)
        read = {"attention_mask": masks, "position_ids": batch.positions}
    hidden: Tensor = model.base_model(
        input_ids=batch.tokens, use_cache=False, **read
    ).last_hidden_state  # (B, L, H)
    return hidden.flatten(0, 1)[batch.nodes]


def own_scores(model: Any, batch: TreeBatch) -> Tensor:
    """Return (E, V) float32: log softmax of the model's own logits before each token.

    This scores rows of one answer each, whatever the architecture. All logits (B, L, V) are kept,
    so that it is the slow way.
    """
    seen = not_padding(batch)
    logits: Tensor = model(input_ids=batch.tokens, attention_mask=seen, use_cache=False).logits
    return logits.flatten(0, 1)[batch.edge_from].float().log_softmax(-1)


def not_padding(batch: TreeBatch) -> Tensor:
    """Return (B, L) int64: 1 at the tokens of rows of one answer each, 0 where they are padded."""
    column = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)  # (L,)
    followed = batch.ends > column + 1  # (B, L): all tokens of a row but its last; no padding
    lengths = followed.sum(1, keepdim=True) + 1  # (B, 1)
    return (column < lengths).long()


def attention_masks(model: Any, batch: TreeBatch) -> Any:
    """Return additive masks (B, 1, L, L): 0 where token i may see token j, else very negative.

    An architecture with layer types gets one for each, by name; others get one tensor, windowed if
    all their layers are. Flex attention gets a BlockMask in place of each, and leaves out the
    blocks in which no token sees another.
    """
    config = model.config.get_text_config()
    flex = getattr(config, "_attn_implementation", None) == "flex_attention"

    def mask_for(window: int | None) -> Any:
        if flex:
            return tree_block_mask(batch.positions, batch.ends, window)
        mask = ancestor_mask(batch.positions, batch.ends, window)[:, None]
        least = torch.finfo(model.dtype).min  # not -inf: a row that sees nothing would be NaN
        zero = torch.zeros((), dtype=model.dtype, device=mask.device)
        return torch.where(mask, zero, least)

    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if not types:
        return mask_for(window)
    return {t: mask_for(window if t == "sliding_attention" else None) for t in set(types)}
