"""Is a proposal one step in the solver's voice?

A small critic that is asked for a step often writes about one instead: an instruction, a remark on the attempt, the
whole attempt with the prompt's own marks, a torn sentence, or the wrong step again. None of that can stand in a
solution. The check reads words only; whether the step is right is for others to say. Words that the problem has too
count for nothing.

`python -m evals.form` measures it on labelled proposals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from stepwise.steps import split_steps

_CODE = r"(?ms)^ *```(?! *output)[^\n]*\n.*?^ *```"
_OUTPUT = re.compile(
    rf"{_CODE}.*?(?:^ *```+ *output|^\W*(?:the )?(?:expected )?output\b[^\n]{{0,60}}:"
    r"|\boutput (?:is|of|will|would)\b|\b(?:run|running|execute|executing)\b[^\n.]{0,40}\b(?:code|script|program)\b"
    r"|\b(?:code|script|program)\b[^\n.]{0,20}\b(?:gives|outputs|prints|returns)\b)",
    re.IGNORECASE,
)
_WRITTEN = r"\b(?:steps?|attempts?|calculations?|solution|statement|line|sentence|equation|error|mistake|answer)\b"
_EDITS = r"(?:replace|rewrite|revise|correct|fix|modify|change|update|amend)\b"
_EDITING = r"\b(?:replac|rewrit|revis|correct|fix|modify|chang|updat|amend|remov|delet)\w*\b"
_TELLS = {
    "it has the prompt's own marks": (r"(?m)^\W*\[\d+\]", r"\[\d+\](?= [A-Z])", r"(?m)^#\w+:"),
    "it is an instruction": (
        rf"^\W*(?:please |(?:you|we) should )?{_EDITS}",
        rf"{_EDITING}[^.\n]{{0,40}}{_WRITTEN}",
        rf"{_WRITTEN}[^.\n]{{0,60}}\b(?:should|must|needs? to|has to) (?:be|read|say|instead|not)\b",
        r"\bshould (?:have been|read|say|instead)\b",
        r"\byour? (?:should|need|must|can)\b",
    ),
    "it speaks of the attempt or the reference": (
        r"\b(?:the|this|that|an?|your|previous|original|given) (?:attempt|reference|author|solver|student)\b",
        r"\breference (?:solution|answer)\b",
        r"\b(?:wrong|incorrect|previous|original|missed|missing) (?:step|idea)\b",
        r"\bincorrect(?:ly)?\b",
        r"\b(?:the|an?) (?:error|mistake)\b",
        r"\bstep \d+ (?:is|was|has|should|of|in)\b|\bin step \d",
        r"\b(?:idea|insight) (?:that )?(?:was|is) missed\b",
    ),
}
_LOWER = re.compile(r"[\s*_\"'(]*[a-z]{2,}\b(?!\s*[=(_^{])")  # a word, not a variable or a function
_ARTICLE = re.compile(r"^(?:the|this|that|an?) ")
_ITEM = re.compile(r"(?m)^\W*(?:step \d+|\d{1,2}[.)](?!\d)|[-*•] )", re.IGNORECASE)
_OWNER = re.compile(
    r"\b([A-Z][a-z]{2,})(?: now)? (?:owns|has|had|gets|got|buys|bought|sells|sold|pays|paid|needs|earns|eats|ate|saves"
    r"|spends|spent|wants|keeps)\b"
)
_NOBODY = frozenset(
    "each every everyone everybody nobody someone somebody anybody one another this that which who what neither either "  # noqa: SIM905
    "she her his its our they there the then now half both all some most many nothing everything two three four five "
    "six seven eight nine ten".split()
)


def form_fault(content: str, *, problem: str = "", prefix: Sequence[str] = (), wrong: str = "") -> str:
    """Why `content` is not one step of a solution to `problem` after the steps `prefix`, "" where nothing is found.

    `wrong` is the step that it is to replace.

    >>> form_fault("Replace the step by 41 - 4 = 37.")
    'it is an instruction'
    >>> form_fault("I take the 4 away: 41 - 4 = 37.", wrong="41 - 4 = 39.")
    ''
    """
    known = " ".join((problem, *prefix)).lower()
    for fault, patterns in _TELLS.items():
        for match in (m for pattern in patterns for m in re.finditer(pattern, content, re.IGNORECASE)):
            if _ARTICLE.sub("", match[0].lower()) not in known:
                return fault
    if invented_output(content):
        return "it has code with an invented output"
    if _steps_in(content) > 1:
        return "it is several steps"
    if any(_same(content, step) for step in (wrong, *prefix, problem)):
        return "it repeats a step of the attempt, or the problem"
    if _LOWER.match(content) and (wrong or prefix) and not any(map(_LOWER.match, (wrong, *prefix))):
        return "it begins in the middle of a sentence"
    for match in _OWNER.finditer(content):
        if match[1].lower() not in known and match[1].lower() not in _NOBODY:
            return "it names somebody who is not in the problem"
    return ""


def invented_output(text: str) -> bool:
    r"""Whether code is followed by what it is said to print, which nobody computed.

    >>> invented_output("```python\nprint(2 + 2)\n```\n```output\n5\n```")
    True
    """
    return "```" in text and _OUTPUT.search(text) is not None


def _steps_in(content: str) -> int:
    """Paragraphs, a formula and its lead-in counted once, or items of a list, whichever are more."""
    paragraphs = split_steps(content)
    joined = sum(
        after.lstrip().startswith(("\\[", "$$")) or before.rstrip().endswith((":", ","))
        for before, after in pairwise(paragraphs)
    )
    return max(len(paragraphs) - joined, len(_ITEM.findall(content)))


def _same(content: str, step: str) -> bool:
    """Whether `content` has the numbers of `step` and hardly a word that is not in it."""
    a, b = (re.findall(r"[a-z]+|\d+(?:\.\d+)?", _ITEM.sub("", text).lower()) for text in (content, step))
    numbers = [{word for word in words if word[0].isdigit()} for words in (a, b)]
    return bool(a) and numbers[0] == numbers[1] and sum(word in b for word in a) >= 0.85 * len(a)
