"""`python -m run merge`: merge an adapter into its base, a shard at a time."""

import argparse
import sys
from pathlib import Path

import torch
import transformers

from run import inputs
from run.commands import guarded
from run.errors import UsageError
from run.merging import merge_from_files, saved_base


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m run merge",
        description="Merge an adapter into its base, a shard at a time, and check the result.",
    )
    parser.add_argument("adapter", metavar="RUN_OR_ADAPTER", help="a run's folder, or an adapter's")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--base",
        choices=("original", "dequantized"),
        default="dequantized",
        help="for a run with --quantize: the weights before quantisation, or those it trained on",
    )
    parser.add_argument("--merge-dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return guarded("python -m run merge", lambda stop, world: merge(args), argv)


def merge(args: argparse.Namespace) -> None:
    """Merge, check and say what rounding did.

    Raises:
        UsageError: the output exists.
        ModelError: as `merge_from_files`.
    """
    inputs.prepare_libraries()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    output = Path(args.output)
    if output.exists():
        raise UsageError(f"--output {output} exists; name another or remove it first")
    adapter, base, quantise = saved_base(Path(args.adapter))
    if args.base == "original":
        quantise = "none"
    dtype = getattr(torch, args.merge_dtype) if args.merge_dtype else None
    rounding, difference = merge_from_files(base, adapter, output, dtype, quantise)
    print(
        f"Merged into {output}: {rounding.changed:.0%} of the patched weights moved; rounding "
        f"changed their deltas by {rounding.error:.0%}; {difference.found:.2g} nats a token from "
        "base + adapter"
    )
