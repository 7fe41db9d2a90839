"""How many operations of an optimizer step start a kernel on a GPU, by origin, without a GPU.

    python benchmarks/launches.py

Gemma-2 9B's configuration runs forward, loss and backward on torch's meta device, which computes
nothing. An operation that reaches a device counts once, unless it only makes a view or allocates.
CUDA's dropout is one kernel each way, where the meta device has three operations. A function that
would be compiled counts once forward and once backward: tests/test_lora_base_few_kernels.py
compiles each of them and counts its kernels. A foreach call of many tensors counts once.
"""

import argparse
import random
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from one_base import GEMMA_2_9B
from torch.utils._python_dispatch import TorchDispatchMode

import data
import lora
import train
from data.encode import EncodedQuestion
from lora.casts import adapters_cast
from run.config import Config

ALLOCATES = {
    "detach", "_unsafe_view", "empty", "empty_strided", "empty_like", "new_empty", "alias",
    "new_empty_strided", "lift_fresh", "promote_types",
}  # fmt: skip
OF_DROPOUT = {"bernoulli_", "div_"}  # beside its `mul`
ORIGINS = {  # by the file and the function that an operation stands in
    "lora/base/norms.py": "norms", "lora/base/attention.py": "attention",
    "lora/layer.py": "LoRA", "lora/dropout.py": "LoRA", "lora/casts.py": "LoRA",
    "dpo/head.py": "head", "apply_rotary_pos_emb": "rotary", "rotate_half": "rotary",
    "dpo/loss.py": "loss", "dpo/losses.py": "loss", "train.py": "loss", "data/trees.py": "masks",
    "nn/modules/linear.py": "base products, gradient adds",
    "modeling_gemma2.py": "MLP, residual, rest of the body",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Count the operations that start a kernel within the block, forward and backward by origin."""

    def __init__(self):
        super().__init__()
        self.forward, self.backward = Counter(), Counter()
        self.views, self.silent = 0, False
        self.origins = {}  # of the forward operation with a sequence number, for its gradient's

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count it."""
        name = func.overloadpacket.__name__
        if func.is_view or name in ALLOCATES:
            self.views += 1
        elif not self.silent and name not in OF_DROPOUT:
            self.add()
        return func(*args, **(kwargs or {}))

    def add(self, origin=None):
        """Count a launch."""
        node = torch._C._current_autograd_node()
        if node is None:
            origin = origin or origin_of(sys._getframe(2))
            self.origins[torch.autograd._get_sequence_nr() - 1] = origin
            self.forward[origin] += 1
        else:
            origin = origin or self.origins.get(node._sequence_nr(), "base products, gradient adds")
            self.backward[origin] += 1

    def as_one(self, function):
        """Return the function as if it were one kernel forward and one backward."""
        counter, origin = self, function.__qualname__.split(".")[1].strip("_")

        class One(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *args):
                with silenced(counter), torch.enable_grad():
                    ctx.args = [a.detach().requires_grad_() if a.is_floating_point() else a
                                for a in args]  # fmt: skip
                    ctx.out = function(*ctx.args)
                counter.add(origin)
                return ctx.out.detach()

            @staticmethod
            def backward(ctx, dy):
                counter.add(origin)
                with silenced(counter):
                    grads = torch.autograd.grad(ctx.out, ctx.args, dy)
                return grads

        return One.apply

    @property
    def total(self):
        """Return the launches of the step."""
        return self.forward.total() + self.backward.total()


@contextmanager
def silenced(counter):
    """Within the block nothing is counted."""
    before, counter.silent = counter.silent, True
    try:
        yield
    finally:
        counter.silent = before


def origin_of(frame):
    """Return the origin of what a frame, or the nearest one around it, computes."""
    while frame:
        code = frame.f_code
        for name, origin in ORIGINS.items():
            if code.co_name == name or code.co_filename.endswith(name):
                return origin
        frame = frame.f_back
    return "other"


def meta_model(rank=8, dropout=0.05, **changes):
    """Return Gemma-2 9B's configuration with adapters, without weights."""
    config = transformers.Gemma2Config(**GEMMA_2_9B | changes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="eager"
        )
    model.eval().requires_grad_(False)
    lora.add_lora(model, rank, 2 * rank, dropout)
    lora.train_adapters(model)
    return model


def batch_of(questions=2, rejected=4, prompt=20, answer=10):
    """Return a step of random tokens: as many questions, with one chosen and some rejected."""
    draw = random.Random(0)

    def text(n):
        return tuple(draw.randrange(10, 9_999) for _ in range(n))

    asked = [
        EncodedQuestion(text(prompt), text(answer), tuple(text(answer) for _ in range(rejected)))
        for _ in range(questions)
    ]
    pairs = [(q, k) for q in range(questions) for k in range(rejected)]
    return next(data.step_batches(asked, pairs, 2048)).to("meta")


class Unknown:
    """A reference that knows no numbers, as the meta device."""

    def logps(self, batch):
        """Return (A,) log-probs."""
        return torch.zeros(batch.trees.answers, device="meta")


def count(model, batch, few):
    """Return the launches of a step, as layers are today or with few kernels."""
    with ExitStack() as stack:
        stack.enter_context(lora.norms_by_hand(model))
        stack.enter_context(lora.attention_by_hand(model))
        counter = Launches()
        if few:
            stack.enter_context(lora.few_kernels(model, counter.as_one))
            for parameter in lora.adapter_parameters(model):
                parameter.grad = torch.zeros_like(parameter)
        with counter, adapters_cast(model) if few else ExitStack():
            train.backward(model, batch, Unknown(), Config())
    model.zero_grad()
    return counter


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args()
    model, batch = meta_model(args.rank), batch_of()
    print(f"a step of {len(batch.chosen)} pairs, {tuple(batch.trees.tokens.shape)} tokens")
    for few in (False, True):
        found = count(model, batch, few)
        print(f"\n| {'few kernels' if few else 'as they are'} | forward | backward |")
        print("| --- | --- | --- |")
        for origin in found.forward | found.backward:
            print(f"| {origin} | {found.forward[origin]:,} | {found.backward[origin]:,} |")
        print(f"| all, {found.total:,} | {found.forward.total():,} | {found.backward.total():,} |")


if __name__ == "__main__":
    main()
