"""A small exact part of a model: its first layers, in float32, knowing a few words only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data.encode import EncodedQuestion


@contextmanager
def excerpt(model: Any, layers: Any, ids: Sequence[int]) -> Iterator[None]:
    """Within the block the model is its first layers, of each kind at least one, in float32.

    It knows the tokens `ids` alone, by their places in it. Where weights are not numbers they stay
    as they are. Afterwards the model is what it was.

    Args:
        model: a causal language model of transformers.
        layers: its decoder layers, a list of modules.
        ids: of the tokens.
    """
    types = getattr(model.config.get_text_config(), "layer_types", None) or [None] * len(layers)
    kinds = [(kind, *map(type, layer.modules())) for kind, layer in zip(types, layers, strict=True)]
    count = 1 + max(map(kinds.index, set(kinds)))
    others = list(layers[count:])
    head = model.get_output_embeddings()
    by_token = [model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)]
    del layers[count:]
    weights = [(p, p.data) for p in model.parameters() if p.is_floating_point()]
    try:
        for parameter, data in weights:
            words = any(parameter is known for known in by_token)
            parameter.data = (data[list(ids)] if words else data).float()
        yield
    finally:
        layers.extend(others)
        for parameter, data in weights:
            parameter.data = data


def renumbered(question: EncodedQuestion, ids: Sequence[int]) -> EncodedQuestion:
    """Return the question with each token's place in `ids` instead of its id."""
    places = {id: place for place, id in enumerate(ids)}

    def of(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(places[id] for id in tokens)

    return EncodedQuestion(
        of(question.prompt), of(question.chosen), tuple(map(of, question.rejected))
    )
