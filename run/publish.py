"""`python -m run publish`: share a run on the Hub, checked."""

import argparse
from pathlib import Path

from run import inputs, publishing
from run.commands import guarded


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m run publish",
        description="Check a run's merged model, then put it, the adapter, the tokenizer and the "
        "model card on the Hub in one commit. The token is HF_TOKEN or ACCESS_TOKEN, in the "
        "environment or in .env.",
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository; made if there is none")
    parser.add_argument("--adapter-only", action="store_true", help="leave the merged model out")
    parser.add_argument("--private", action="store_true", help="if the repository is made")
    parser.add_argument("--update", action="store_true", help="the repository holds files already")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    return guarded("python -m run publish", lambda stop, world: publish(args), argv)


def publish(args: argparse.Namespace) -> None:
    """Check and upload."""
    inputs.prepare_libraries()
    publishing.check_access(args.repo, args.update)
    run = inputs.finished_run(Path(args.run))
    publishing.publish(run, args.repo, args.private, args.adapter_only)
