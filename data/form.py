"""How the rows of a source are read."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Columns = dict[str, tuple[str, ...]]  # role -> its columns; of several the texts are joined
Values = tuple[str, ...]  # of a winner's column: what stands for the first answer, the second, ...


class Form(NamedTuple):
    """How the rows of a source are read."""

    kind: Literal["pairs", "graded", "single"]
    columns: Columns
    winner: Mapping[str, int] = {}  # what its column says -> which answer is the better one
    named: tuple[str, ...] = ()  # columns with the names of the answers' authors, one of which won
    silent: tuple[tuple[str, str], ...] = ()  # columns of no role, and the only text that they had
    ties: bool = False  # any other value of the winner's column is a tie
    repeated: bool = False  # every answer's text begins with the prompt's
    listed: tuple[str, ...] = ()  # columns whose texts are JSON lists of texts
    unread: tuple[str, ...] = ()  # columns that are not to be read

    def wanted(self, columns: Sequence[str]) -> list[str]:
        """Return those of a source's columns that are read, or watched, each once."""
        used = [name for several in self.columns.values() for name in several]
        named = (*used, *self.named, *(name for name, _ in self.silent))
        return list(dict.fromkeys(n if n in columns else n.partition(".")[0] for n in named))
