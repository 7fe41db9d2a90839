"""Share a run on the Hub, checked: `python -m dpo.publish RUN OWNER/NAME`."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    # An entry point joins the rooms; `import dpo` must not.
    from commands import guarded

    parser = argparse.ArgumentParser(
        prog="python -m dpo.publish",
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
    return guarded("python -m dpo.publish", lambda stop, world: publish(args), argv)


def publish(args: argparse.Namespace) -> None:
    """Check and upload."""
    import inputs
    import publishing

    publishing.check_access(args.repo, inputs.quiet(), args.update)
    run = inputs.finished_run(Path(args.run))
    publishing.publish(run, args.repo, args.private, args.adapter_only)


if __name__ == "__main__":
    sys.exit(main())
