"""How this room complains."""

from collections.abc import Iterator
from contextlib import contextmanager

from lora.files import FULL


class ModelError(Exception):
    """The base model or an adapter cannot be used as asked; the message says what to do."""


@contextmanager
def reading(what: str, kind: type[Exception] = ModelError) -> Iterator[None]:
    """Turn whatever a library raises over somebody's file into one error, which names the file.

    Libraries promise no list of what they raise over files that nobody should have made. What is
    not the file's fault passes: a signal, or a disk without room for a copy of it.

    Args:
        what: the beginning of the message: the file, and what cannot be done with it.
        kind: of the error; one that is raised within the block passes as it is.

    Raises:
        kind: something was raised within the block.
    """
    try:
        yield
    except (kind, ModelError):
        raise
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in FULL
        if full or not is_failure(error):
            raise
        raise kind(f"{what}: {reason(error)}") from error


def is_failure(error: BaseException) -> bool:
    """Tell whether something went wrong, and nobody asked to stop; libraries in Rust panic."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason(error: BaseException) -> str:
    """Return the first line of what an error says, with its kind where the words need it.

    A line that ends in a colon goes on in the next one.
    """
    first, *rest = str(error).strip().splitlines() or [""]
    if first.endswith(":") and rest:
        first += f" {rest[0].strip()}"
    if first and isinstance(error, OSError | ValueError | ImportError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
