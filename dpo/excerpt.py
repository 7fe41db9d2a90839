"""A small exact part of a model: its first layers, in float32, knowing a few words only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from data.encode import EncodedQuestion


@contextmanager
def excerpt(model: Any, layers: Any, ids: Sequence[int]) -> Iterator[None]:
    """Within the block the model has but the first of its decoder `layers`, in float32.

    They are as many as it takes to have one of each kind. The model knows the tokens `ids` alone,
    by their places in it. Weights that are not numbers stay as they are. Afterwards the model is
    what it was.
    """
    count = first_of_each_kind(model, layers)
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


def first_of_each_kind(model: Any, layers: Any) -> int:
    """Return how many of the first layers have one of each kind among them.

    Layers are of one kind where their modules are, and what is written in these: GPT-Neo's say
    `attention_type`, where others have `layer_types`. Numbers that grow from layer to layer count
    the layers, and do not matter.
    """
    types = getattr(model.config.get_text_config(), "layer_types", None) or [None] * len(layers)
    written = [dict(_written_in(layer)) for layer in layers]
    keys = set[str]().union(*written)
    counting = {key for key in keys if _grow([w[key] for w in written if key in w])}
    kinds = [
        (kind, *map(type, layer.modules()), [item for item in w.items() if item[0] not in counting])
        for kind, layer, w in zip(types, layers, written, strict=True)
    ]
    return 1 + max(kinds.index(kind) for kind in kinds)


def _written_in(layer: Any) -> Iterator[tuple[str, bool | int | str | None]]:
    """Yield the names and values of what a layer's modules say in words and whole numbers."""
    for name, module in layer.named_modules():
        for key, value in vars(module).items():
            if value is None or type(value) in (bool, int, str):
                yield f"{name}.{key}", value


def _grow(values: Sequence[Any]) -> bool:
    """Tell whether these are whole numbers, each larger than the one before."""
    whole = all(type(value) is int for value in values)
    return whole and len(values) > 1 and all(after > before for before, after in pairwise(values))


def renumbered(question: EncodedQuestion, ids: Sequence[int]) -> EncodedQuestion:
    """Return the question with each token's place in `ids` instead of its id."""
    places = {id: place for place, id in enumerate(ids)}

    def of(tokens: Sequence[int]) -> tuple[int, ...]:
        return tuple(places[id] for id in tokens)

    return EncodedQuestion(
        of(question.prompt), of(question.chosen), tuple(map(of, question.rejected))
    )
