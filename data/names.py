"""What columns are called in the data sets people use: lists of words, and how they are met."""

import re
import shlex
from collections.abc import Iterable

# The prompt, the likeliest name first. The last ones are prompts only where no other is there.
PROMPTS = (
    "prompt", "question", "instruction", "query", "user_prompt", "prompt_messages", "messages",
    "conversations", "conversation", "dialogue", "input", "context", "history", "post",
)  # fmt: skip
SYSTEMS = (
    "system", "system_prompt", "system_message", "sys_prompt", "system_instruction", "preamble",
)  # fmt: skip
HISTORIES = ("history", "chat_history")
TOOLS = ("tools", "functions")
TRUTHFULQA = {
    "chosen": ("best_answer",), "rejected": ("incorrect_answers",),
    "correct": ("correct_answers",),
}  # fmt: skip

# A name is a chosen answer's if it has words of GOOD and else only NOUNS; likewise the others.
GOOD = frozenset(
    "chosen preferred accepted accept winning winner win better best positive pos good selected "
    "w".split()
)
BAD = frozenset(
    "rejected reject declined nonpreferred dispreferred unpreferred unchosen losing loser lose "
    "worse worst negative neg bad incorrect l".split()
)
ANSWERS = frozenset(
    "response responses answer answers output outputs completion completions reply replies "
    "generation generations candidate candidates".split()
)
NOUNS = ANSWERS | frozenset(
    "text message messages conversation summary summaries option options sample samples y ref "
    "choice choices".split()
)
OF_ANSWERS = frozenset("all model human generated candidate sampled llm ai assistant".split())
ALSO = {  # Stack Exchange's pairs, and right against wrong
    "chosen": ("response_j", "correct", "correct_answer", "correct_response"),
    "rejected": ("response_k", "wrong", "wrong_answer", "incorrect_response"),
}
SINGLE = ("completion", "response", "answer", "output", "reply", "messages", "conversations")

RANKS = frozenset(("rank", "ranks"))
SCORES = frozenset(
    "score scores rating ratings reward rewards grade grades votes upvotes winner".split()
)
# Words of a score that say whose or which it is. Any other, as `toxicity`, might turn it round.
OF_SCORES = frozenset(
    "overall avg average mean total final all is rm pm human llm gpt gpt4 judge model models "
    "helpfulness quality preference preferred elo normalized".split()
)
OVERALL = frozenset("overall total final".split())
LABELS = SCORES | frozenset("label labels tag desirable thumbs good kto up preferred".split())
FIRST_LABELS = ("label", "labels", "kto_tag")  # before any other
WORSE = frozenset(
    "not less least worse worst rejected bad lost loser loses losing dispreferred negative".split()
)
WINNERS = (  # the likeliest first
    "better", "winner", "preferred", "preference", "best", "chosen", "choice", "selected", "label",
    "labels", "vote", "verdict", "judgement", "judgment",
)  # fmt: skip
SIGNED = frozenset(("preference_strength", "overall_preference"))  # below 0: the first answer
ORDINALS = {"first": 0, "left": 0, "second": 1, "right": 1}
VERDICT = NOUNS | OF_ANSWERS | frozenset("the is was better best wins won preferred chosen".split())
TIES = frozenset("tie ties tied both bothbad neither equal equally draw same none na".split())
TEXT_KEYS = ("response", "text", "content", "completion", "output", "generated_text", "answer")
GRADE_KEYS = ("overall_score", "score", "rank", "rating", "reward", "grade", "preferred", "chosen")
TRUE = frozenset("true good desirable chosen yes up positive thumbs_up".split())
FALSE = frozenset("false bad undesirable rejected no down negative thumbs_down".split())

# What stands beside a preference and is no part of it, by the last word of its name. Of SIDE the
# values are short; what is said about a preference may be long.
SIDE = frozenset(
    "id ids uuid guid hash sha sha1 sha256 md5 index idx source sources dataset datasets origin "
    "subset split config model models generator provider language languages lang locale category "
    "categories type domain tag tags url urls link date time timestamp created updated author "
    "authors annotator annotators worker license version status order turns labels label".split()
)
ABOUT = frozenset(
    "metadata meta critique critiques feedback annotation annotations principle rationale "
    "rationales".split()
)
ABOUT_ANYWHERE = frozenset("preference annotator judge labelling labeling".split())
MEDIA = frozenset("image images picture pictures photo photos video videos audio audios".split())
OTHER_ANSWERS = GOOD | BAD | NOUNS | frozenset("reference target gold solution".split())

# Text that says nothing which an answer could rest on: numbers, dates, addresses, hashes.
NO_TEXT = re.compile(
    r"\s*([-+]?[\d.,]+(e[-+]?\d+)?%?|true|false|yes|no|null|none|nan|n/?a|https?://\S+"
    r"|\d{4}[-/]\d{1,2}[-/]\d{1,2}\S*( [\d:.]+)?|[0-9a-f]{8,}|[0-9a-f]+(-[0-9a-f]+){2,})?\s*",
    re.IGNORECASE,
)


def plain(name: str) -> str:
    """Return a name as the lists here have it."""
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def words(name: str) -> list[str]:
    """Return the words of a name; `nonPreferred` and `non_preferred` are one."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", name)
    return re.findall(r"[^\W_]+", re.sub(r"\b(non|dis|un)_", r"\1", plain(parted)))


def says(name: str, side: frozenset[str]) -> bool:
    """Tell whether a name is that of answers of one side: `chosen_response`, `y_w`."""
    found = set(words(name))
    return bool(found & side) and found <= side | NOUNS


def of_answers(name: str, nouns: frozenset[str] = NOUNS) -> bool:
    """Tell whether a name is that of answers, whatever they are worth."""
    found = set(words(name))
    return bool(found & nouns) and found <= nouns | OF_ANSWERS


def stem(name: str) -> tuple[str, str]:
    """Return ('response', 'a') of `response_a`, `Response A` and `responseA`."""
    if re.search(r"[a-z][A-Z]$", name.strip()):
        return plain(name)[:-1], name.strip()[-1].lower()
    parted = re.fullmatch(r"(.*?[a-z])(?:_?(\d{1,2})|_([a-z]))", plain(name))
    return (parted[1], parted[2] or parted[3]) if parted else (plain(name), "")


def grades(name: str, meant: frozenset[str]) -> bool:
    """Tell whether a name is that of scores, ranks or labels, as `meant`, a better answer's first.

    A score of something else than how good an answer is, as of its toxicity, is none.
    """
    found = set(words(name))
    return bool(found & meant) and found <= meant | OF_SCORES | NOUNS


def grade_keys(keys: Iterable[str]) -> list[str]:
    """Return those of an answer's keys that are grades, one of the whole answer first."""
    found = [key for key in keys if key in GRADE_KEYS or grades(key, SCORES | RANKS)]
    return sorted(found, key=lambda key: not set(words(key)) & OVERALL)


def is_tie(value: str) -> bool:
    """Tell whether a winner's value says that nobody won."""
    found = words(value)
    return bool(set(found) & TIES) or found in (["n", "a"], ["no", "preference"])


def flag(columns: str) -> str:
    """Return the flag that says this of columns, as a shell reads it."""
    return f"--columns {shlex.quote(columns)}"


def beside(name: str, short: bool = True) -> bool:
    """Tell whether a name is that of a well-known side column; `short`: its values are, too."""
    found = words(name)
    if len(found) > 1 and len(found[-1]) == 1:  # `score_A`, `root_id_2`
        found.pop()
    if plain(name) in SIGNED:
        return True
    if not found:  # of no letter: what it holds must say what it is
        return False
    marked = bool(found[-1] in ABOUT or set(found) & (ABOUT_ANYWHERE | SCORES | RANKS))
    return marked or (short and found[-1] in SIDE)
