"""Importing this lets SIGINT and SIGTERM end the process at once and without a word, by 128 + n.

It is for the seconds in which libraries load, and for those when all is done: nothing is at stake
then. A library that cannot be loaded is one line. In between `run.commands` takes over. It imports
nothing of ours, so that programs can import it before anything else.
"""

import os
import signal
import sys
from typing import Any, NoReturn


def _leave(number: int, _: Any) -> NoReturn:
    os._exit(128 + number)


for _number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(_number) is not signal.SIG_IGN:  # nohup and the like want it so
        signal.signal(_number, _leave)


def _say(kind: type[BaseException], error: BaseException, _: Any) -> None:
    said = " ".join(f"{kind.__name__}: {error}".split())
    print(
        f"{sys.argv[0]}: a library cannot be loaded: {said}; pip install -c constraints.txt -e . "
        "installs what is needed, and --debug shows more",
        file=sys.stderr,
    )


if "--debug" not in sys.argv:
    sys.excepthook = _say
