"""`python -m run publish`: from a finished run to the Hub, checked, in one commit."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub import errors as hub
from huggingface_hub.utils import validate_repo_id

import data
import dpo
import lora
from run import card, inputs
from run.card import Check
from run.commands import parser
from run.errors import HubError, UsageError
from run.inputs import FinishedRun
from run.merge import Policy

SMALL = 2 * 10**9  # parameters of a model that is checked in float32
CHECKED = 200  # questions at most, held out if there are such
PICTURES = ("curves.png", "evaluation.png", "dial.png")
# What --update takes away where the new commit has no such file: it would be read in its place.
READ = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json",
    "adapter_config.json", "adapter/*", *PICTURES,
)  # fmt: skip


def command(argv: list[str]) -> None:
    """Check and upload what the command line names."""
    arguments = parser(
        "publish",
        "Check a run's merged model, then put it, the adapter, the tokenizer and the model card on "
        "the Hub in one commit. The token is HF_TOKEN or ACCESS_TOKEN, in the environment or .env.",
    )
    add = arguments.add_argument
    add("run", metavar="RUN", help="a run's folder")
    add("repo", metavar="OWNER/NAME", help="the repository; made if there is none")
    add("--adapter-only", action="store_true", default=None, help="leave the merged model out")
    add("--private", action="store_true", help="if the repository is made")
    add("--update", action="store_true", help="the repository holds files already")
    args = arguments.parse_args(argv)
    inputs.prepare_libraries()
    check_access(args.repo, args.update, args.private)
    run = inputs.finished_run(Path(args.run))
    publish(
        run, args.repo, private=args.private, adapter_only=args.adapter_only, update=args.update
    )


def check_access(repo: str, update: bool = False, private: bool = False) -> None:
    """Find out before any work whether the run could be published there.

    Raises:
        UsageError: there is no token or it is refused, the name is no name or is taken, or the
            repository is there and public where a private one is meant.
        HubError: the Hub does not answer.
    """
    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise hub.HFValidationError("write OWNER/NAME")
    except hub.HFValidationError as error:
        raise UsageError(f"{repo!r} is no repository's name: {error}") from None
    if not get_token():
        raise UsageError(
            "publishing needs a token that may write: set HF_TOKEN, or write HF_TOKEN=... into .env"
        )
    api, (owner, name) = HfApi(), repo.split("/")
    try:
        who = api.whoami()
        me = who["name"]
        if owner not in {me, *(org["name"] for org in who.get("orgs", []))}:
            raise UsageError(
                f"this token belongs to {me}, who may not write to {owner}; publish as {me}/{name} "
                "or use another token"
            )
        if api.repo_exists(repo):
            files = set(api.list_repo_files(repo)) - {".gitattributes"}
            if files and not update:
                raise UsageError(
                    f"{repo} exists and holds {len(files)} files; choose another name, or add a "
                    "commit to it with python -m run publish RUN REPO --update"
                )
            if private and not api.repo_info(repo).private:
                raise UsageError(
                    f"{repo} exists and is public; make it private in its settings, or leave "
                    "--private out"
                )
    except UsageError:
        raise
    except Exception as error:  # an answer may be anything, also no JSON
        raise _explained(error, repo, "nothing was done") from error


def publish(
    run: FinishedRun,
    repo: str,
    private: bool = False,
    adapter_only: bool | None = None,
    update: bool = False,
) -> str:
    """Check the files of a run, and commit them; return where they are.

    What was uploaded before an interruption is not uploaded again. Where nothing is said, the
    merged model goes along if the run made one.

    Raises:
        UsageError: the run has no merged model.
        lora.ModelError: the merged model is not base + adapter.
        HubError: the Hub refuses or does not answer.
    """
    inputs.prepare_libraries()
    merged = run.folder / "merged"
    if adapter_only is None:
        adapter_only = not run.config.merge and not merged.is_dir()
    if not adapter_only and not merged.is_dir():
        raise UsageError(
            f"{run.folder} has no merged model; add --adapter-only, or make it: "
            f"{_merge_into(merged)}"
        )
    with TemporaryDirectory() as scratch:
        check, tokenizer = checked(run, None if adapter_only else merged)
        if adapter_only:
            tokenizer.save_pretrained(scratch)
        files: dict[str, Path | bytes] = {
            "README.md": str(card.model_card(run.folder, repo, adapter_only, check)).encode(
                "utf-8", "backslashreplace"
            ),
            **{name: run.folder / name for name in PICTURES if (run.folder / name).is_file()},
            **_named(Path(scratch).iterdir() if adapter_only else _model_files(merged)),
            **_named(run.adapter.glob("adapter_*"), "" if adapter_only else "adapter/"),
        }
        # An adapter names its base for others, not by a folder here.
        model, name = run.config.model, "adapter_config.json"
        config = json.loads((run.adapter / name).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = card.base_on_hub(model) or card.public_name(model)
        files[name if adapter_only else f"adapter/{name}"] = json.dumps(config, indent=2).encode()
        size = sum(len(f) if isinstance(f, bytes) else f.stat().st_size for f in files.values())
        print(f"Publishing {len(files)} files, {size / 2**20:.1f} MiB, to {repo} ...", flush=True)
        operations: list[Any] = [CommitOperationAdd(name, path) for name, path in files.items()]
        what = "adapter and card" if adapter_only else "adapter, merged model and card"
        api, message = HfApi(), f"{run.folder.resolve().name}: {what}"
        try:
            api.create_repo(repo, private=private or None, exist_ok=True)
            old = set(api.list_repo_files(repo)) - files.keys() if update else ()
            operations += [CommitOperationDelete(name) for name in old if _is_read(name)]
            commit = api.create_commit(repo, operations, commit_message=message)
        except Exception as error:
            again = f"python -m run publish {shlex.quote(str(run.folder))} {repo}"
            flags = {"private": private, "adapter-only": adapter_only, "update": update}
            again += "".join(f" --{name}" for name, given in flags.items() if given)
            raise _explained(error, repo, f"{again} goes on from there") from error
    print(f"Published:  {commit.repo_url.url}")
    return str(commit.repo_url.url)


def checked(run: FinishedRun, merged: Path | None) -> tuple[Check, Any]:
    """Load what is published as anybody would, and measure it on held-out questions, if there are.

    Small models are read in float32, in which the same files give everybody the same figures.
    Returns the check and the tokenizer.

    Raises:
        ModelError: the merged model differs from base + adapter by more than rounding does.
    """
    config = run.config
    shape = lora.skeleton(lora.folder_of(config.model, config.revision))
    if config.quantize == "none" and sum(p.numel() for p in shape.parameters()) < SMALL:
        config = replace(config, dtype="float32")
    print("Checking the files on some questions ...", flush=True)
    tokenizer, text = inputs.load_tokenizer(config)
    prepared = inputs.read_questions(config, tokenizer, text)
    some = prepared.held_out if len(prepared.held_out) else prepared.train
    questions = list(some[:CHECKED])
    base = inputs.load_model(config)
    few = data.of_all_lengths(some)
    way = dpo.check_sharing(base.model, few, prepared.largest_id, base.layers).way
    policy = Policy.scored(base, run.adapter, [dpo.all_answers(q) for q in questions], way)
    adapter = dpo.believed(questions, policy.scores).means()
    dtype = str(base.model.dtype).removeprefix("torch.")
    if merged is None:
        return Check(dtype, len(questions), adapter), tokenizer
    del base
    own = replace(config, model=str(merged), revision=None, quantize="none")
    found, apart = policy.compared(inputs.load_model(own).model, lora.stored_dtype(merged))
    again = f"remove it, and make it again: {_merge_into(merged)}"
    apart.check(str(merged), f"nothing was published; {again}")
    means = dpo.believed(questions, found).means()
    return Check(dtype, len(questions), adapter, means, apart), tokenizer


def _merge_into(merged: Path) -> str:
    """Return the command that makes a run's merged model."""
    run, output = (shlex.quote(str(folder)) for folder in (merged.parent, merged))
    return f"python -m run merge {run} --output {output}"


def _model_files(merged: Path) -> list[Path]:
    """Return the files of a merged model, and nothing else that somebody put beside them."""
    index = merged / lora.INDEX
    return [*lora.weight_files(merged), *[index] * index.is_file(), *lora.files_beside(merged)]


def _named(paths: Iterable[Path], prefix: str = "") -> dict[str, Path | bytes]:
    return {prefix + path.name: path for path in sorted(paths) if path.is_file()}


def _is_read(name: str) -> bool:
    """Tell whether loading a model would read a file of a repository, in any of its forms."""
    return any(fnmatch(name, form) and name.count("/") == form.count("/") for form in READ)


def _explained(error: Exception, repo: str, again: str) -> Exception:
    """Return the error that says to a person what the Hub meant."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return UsageError("the Hub does not accept this token; make a new one in its settings")
    if status == 403:
        return UsageError(f"this token may not write to {repo}; it needs the right to write there")
    if status == 409:
        return HubError(f"{repo} is being made or changed at this moment; wait a little; {again}")
    cause: BaseException | None = error
    said: list[str] = []
    while cause is not None:
        said.append((str(cause).strip() or type(cause).__name__).splitlines()[0])
        unanswered = isinstance(cause, hub.HTTPError) and not hasattr(cause, "response")
        if unanswered or isinstance(cause, hub.OfflineModeIsEnabled):
            return HubError(f"the Hub cannot be reached ({said[-1]}); {again}")
        cause = cause.__cause__ or cause.__context__
    why = ": ".join(dict.fromkeys((said[0], said[-1])))
    return HubError(f"publishing to {repo} failed: {why}; {again}")
