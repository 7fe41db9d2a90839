"""Answers that a model writes, in batches, and what is wrong with them at first sight."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from data.encode import EncodedQuestion, stop_of
from data.trees import Tokens

PROMPTS_AT_ONCE = 32
SAMPLES = 4  # of a run
GRAM, TIMES = 4, 3

# Within `reference(model)` the model is its reference: such as `lora.adapters_disabled`.
AsReference = Callable[[Any], AbstractContextManager[None]]


def repeats(tokens: Sequence[int]) -> bool:
    """Tell whether some 4 tokens in a row come 3 times or more: a sign of going round in circles.

    Runs of one token count too: 6 equal tokens hold the same 4 three times.
    """
    grams = Counter(tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1))
    return max(grams.values(), default=0) >= TIMES


def alarms(tokens: Sequence[int], text: str, stopped: bool) -> list[str]:
    """Return what is wrong with an answer at first sight; `stopped` if it ended by itself."""
    empty, looping = not text.strip(), repeats(tokens)
    found = {"empty": empty, "repeats itself": looping, "did not end": not stopped}
    return [alarm for alarm, rings in found.items() if rings]


def readable(text: str) -> str:
    """Show what a terminal would obey instead of print, such as the start of a colour, as `?`."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def left_padded(prompts: Sequence[Tokens], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask (B, L): prompts end in the last column, where answers begin."""
    padded = partial(pad_sequence, batch_first=True, padding_side="left")
    rows = [torch.tensor(prompt) for prompt in prompts]
    return padded(rows, padding_value=pad), padded([torch.ones_like(row) for row in rows])


@contextmanager
def contiguous_head(model: Any) -> Iterator[None]:
    """Within the block the output head reads contiguous hidden states.

    Those of some positions are a strided view, with which torch 2.13 multiplies a large bf16 weight
    a thousand times slower on a CPU, in gigabytes of scratch memory.
    """
    with model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0].clone(memory_format=torch.contiguous_format),)
    ):
        yield


@contextmanager
def as_it_is(model: Any) -> Iterator[None]:
    """Within the block the model's own settings of generation, as a repetition penalty, are off."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class Drawing(NamedTuple):
    """How answers are written."""

    max_tokens: int = 48
    temperature: float = 0.0  # 0 takes the likeliest token; else softmax(z / temperature) draws one
    seed: int = 0


@torch.no_grad()
def keeps_cache(model: Any) -> bool:
    """Tell by trial whether a model writes on from what it keeps of a text, as nearly all do.

    Others read all of it again for each token.
    """
    ids = torch.ones(1, 2, dtype=torch.long, device=model.device)
    some = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    try:
        with contiguous_head(model), as_it_is(model):
            model.generate(input_ids=ids, attention_mask=ids, **some)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        return False
    return True


@torch.no_grad()
def answers(
    model: Any, prompts: Sequence[Tokens], stop: int, drawing: Drawing
) -> list[tuple[Tokens, bool]]:
    """Return each prompt's answer, without its stop token, and whether it came to one.

    Prompts are token ids, the BOS included, and `stop` ends an answer. `model` is a causal language
    model of transformers, its adapters as they are switched.
    """
    drawn = {"do_sample": True, "temperature": drawing.temperature, "top_k": 0}
    how = drawn if drawing.temperature else {"do_sample": False}
    how["use_cache"] = keeps_cache(model)
    torch.manual_seed(drawing.seed)
    found: list[tuple[Tokens, bool]] = []
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        ids, mask = left_padded(prompts[first : first + PROMPTS_AT_ONCE], stop)
        with contiguous_head(model), as_it_is(model):
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
                max_new_tokens=drawing.max_tokens, eos_token_id=stop, pad_token_id=stop, **how,
            )  # fmt: skip
        for row in out[:, ids.shape[1] :].tolist():
            ended = stop in row
            found.append((tuple(row[: row.index(stop)] if ended else row), ended))
    return found


class Sample(NamedTuple):
    """What a model answered."""

    text: str
    alarms: list[str]


def samples(
    model: Any, reference: AsReference, tokenizer: Any, questions: Sequence[EncodedQuestion]
) -> list[dict[str, Any]]:
    """Return what samples.json holds: both answers to the first few of these questions."""
    some = [questions[i] for i in range(min(SAMPLES, len(questions)))]
    prompts = [q.prompt for q in some]
    pairs = side_by_side(model, reference, tokenizer, prompts, stop_of(questions))
    return [
        {
            "prompt": readable(tokenizer.decode(prompt, skip_special_tokens=True)),
            "before": before._asdict(),
            "tuned": tuned._asdict(),
        }
        for prompt, (before, tuned) in zip(prompts, pairs, strict=True)
    ]


def side_by_side(
    model: Any,
    reference: AsReference,
    tokenizer: Any,
    prompts: Sequence[Tokens],
    stop: int,
    drawing: Drawing = Drawing(),
) -> list[tuple[Sample, Sample]]:
    """Return the reference's and the tuned model's answer to each prompt, drawn with the same seed.

    Within `reference(model)` it is the reference. The arguments between are those of `answers`.
    """

    def drawn() -> list[Sample]:
        samples = []
        for ids, stopped in answers(model, prompts, stop, drawing):
            text = readable(tokenizer.decode(ids).strip())
            samples.append(Sample(text, alarms(ids, text, stopped)))
        return samples

    with reference(model):
        base = drawn()
    return list(zip(base, drawn(), strict=True))
