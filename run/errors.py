"""What a command says in one line instead of a traceback."""

import signal


class UsageError(ValueError):
    """A flag or a configuration file is wrong; the message names it and says what to do."""


class HubError(RuntimeError):
    """The Hub cannot be reached, or failed; the message says what to do."""


class ProcessDied(RuntimeError):
    """Another process of the run is gone; the message says how to go on."""


class Stopped(BaseException):
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
