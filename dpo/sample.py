"""What the base and the tuned model answer, side by side: `python -m dpo.sample RUN`.

One model is loaded; switching the adapters off makes it the base. Prompts become tokens as they did
in training, so that what is asked here is what was trained on.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.trees import Tokens

AT_ONCE = 16  # prompts in a batch
GRAM, TIMES = 4, 3


def repeats(tokens: Sequence[int]) -> bool:
    """Tell whether some 4 tokens in a row come 3 times or more: a sign of going round in circles.

    Runs of one token count too: 6 equal tokens hold the same 4 three times.
    """
    grams = Counter(tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1))
    return max(grams.values(), default=0) >= TIMES


def alarms(tokens: Sequence[int], text: str, stopped: bool) -> list[str]:
    """Return what is wrong with an answer at first sight; `stopped` if it ended by itself."""
    found = []
    if not text.strip():
        found.append("empty")
    if repeats(tokens):
        found.append("repeats itself")
    if not stopped:
        found.append("did not end")
    return found


def readable(text: str) -> str:
    """Show what a terminal would obey instead of print, such as the start of a colour, as `?`."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def left_padded(prompts: Sequence[Tokens], pad: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask (B, L): prompts end in the last column, where answers begin."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
    ends = torch.tensor([length - len(prompt) for prompt in prompts])
    return ids, (torch.arange(length) >= ends[:, None]).long()


@torch.no_grad()
def answers(
    model: Any, prompts: Sequence[Tokens], stop: int, most: int, temperature: float = 0.0
) -> list[tuple[Tokens, bool]]:
    """Return each prompt's answer, without its stop token, and whether it came to one.

    Args:
        model: a causal language model of transformers; its adapters as they are switched.
        prompts: token ids, the BOS included.
        stop: the token that ends an answer.
        most: tokens of an answer.
        temperature: 0 takes the likeliest token; else one is drawn from softmax(z / temperature).
    """
    drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how = drawn if temperature else {"do_sample": False}
    found: list[tuple[Tokens, bool]] = []
    for first in range(0, len(prompts), AT_ONCE):
        ids, mask = left_padded(prompts[first : first + AT_ONCE], stop)
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device),
            max_new_tokens=most, eos_token_id=stop, pad_token_id=stop, **how,
        )  # fmt: skip
        for row in out[:, ids.shape[1] :].tolist():
            ended = stop in row
            found.append((tuple(row[: row.index(stop)] if ended else row), ended))
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    # An entry point joins the rooms; `import dpo` must not.
    from commands import guarded

    parser = argparse.ArgumentParser(
        prog="python -m dpo.sample", description="Answers of the base and of the tuned model."
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="ask this; default: held-out questions"
    )
    parser.add_argument("--count", type=int, default=5, help="of held-out questions (5)")
    parser.add_argument("--chat", action="store_true", help="ask line by line; Ctrl-D ends")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer (64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, draws none")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return guarded("python -m dpo.sample", lambda stop, world: sample(args), argv)


def sample(args: argparse.Namespace) -> None:
    """Load the run and print what is asked for.

    Raises:
        UsageError: the folder holds no run, or a number is out of range.
    """
    import transformers

    import data
    import lora
    from config import UsageError, parse
    from console import watch
    from workspace import cache_folder, hub_token

    if args.count < 1 or args.max_tokens < 1 or args.temperature < 0:
        raise UsageError("--count and --max-tokens must be 1 or more, --temperature 0 or more")
    run = Path(args.run)
    if not (run / "config.yaml").is_file() or not (run / "adapter").is_dir():
        raise UsageError(f"{run} is no finished run: it needs config.yaml and adapter/")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config, token = parse(["--config", str(run / "config.yaml")]), hub_token()
    device = lora.choose_device(config.device)
    dtype = lora.choose_dtype(config.dtype, device)
    how = (config.attention, config.revision, token, config.quantize)
    base = lora.load_base(config.model, device, dtype, *how)
    model, tokenizer = base.model, base.tokenizer
    lora.load_adapter(model, run / "adapter")
    model.eval()
    settings = config.text_settings(tokenizer, lora.length_limit(model.config))

    def encoded(texts: Sequence[str]) -> list[Any]:
        asked = [data.Preference(text, "yes", ("no",)) for text in texts]
        return list(data.encode(asked, tokenizer, **settings).questions)

    def show(texts: Sequence[str], questions: Sequence[Any]) -> None:
        prompts, stop = [q.prompt for q in questions], questions[0].chosen[-1]
        torch.manual_seed(args.seed)
        limits = (stop, args.max_tokens, args.temperature)
        with lora.adapters_disabled(model):
            before = answers(model, prompts, *limits)
        torch.manual_seed(args.seed)
        after = answers(model, prompts, *limits)
        for text, *pair in zip(texts, before, after, strict=True):
            print(f"\n{text}")
            for name, (ids, stopped) in zip(("base ", "tuned"), pair, strict=True):
                said = readable(tokenizer.decode(ids).strip())
                warned = "".join(f" [{alarm}]" for alarm in alarms(ids, said, stopped))
                print(f"  {name}  {said.replace(chr(10), chr(10) + ' ' * 9)}{warned}", flush=True)

    if args.chat:
        while line := _asked():
            show([line], encoded([line]))
    elif args.prompt:
        show(args.prompt, encoded(args.prompt))
    else:
        store = cache_folder("data")
        reading = data.read_preferences(config.data, config.columns, token, store, watch)
        share, seed = config.eval_fraction, config.seed
        prepared = data.prepare(
            config.data, reading, tokenizer, settings, store, share, seed, watch
        )
        some = list(prepared.held_out)[: args.count]
        show([tokenizer.decode(q.prompt, skip_special_tokens=True) for q in some], some)


def _asked() -> str:
    """Return the next line that says something; "" at the end of the input."""
    while True:
        if sys.stdin.isatty():
            print("\n> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip():
            return line.strip()


if __name__ == "__main__":
    sys.exit(main())
