"""The table of architectures: some families are tried anew, and the document has their rows."""

import pytest

from benchmarks.architectures import DOCUMENT, LEFT_OUT, READ, TRIED, examine, line

SOME = (  # one of each way, and of each kind that was mended
    "smollm3", "phimoe", "inkling_text", "doge", "jetmoe", "gpt_neo", "roberta", "rwkv",
    "recurrent_gemma", "gemma3",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of families, about their own configurations
@pytest.mark.parametrize("family", SOME)
def test_the_row_of_a_family_is_what_trying_it_gives(family):
    assert line(examine(family)) in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_the_document_has_every_family_and_nothing_in_it_is_wrong():
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| ")][2:]
    families = [row[0].removeprefix("| ") for row in rows]
    assert families == TRIED and len(families) >= 30
    said = {row[1] for row in rows}
    assert all(read in READ.values() or read.startswith("refused: ") for read in said), said
    assert set(READ.values()) < said
    assert all(name in text for names in LEFT_OUT.values() for name in names.split())
