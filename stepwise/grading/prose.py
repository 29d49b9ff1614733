"""Which texts are prose, and no answer."""

from __future__ import annotations

import re

_NO_GOLD = re.compile(
    r"nan|null|n/?a|unknown|tbd|todo|see .*|(?:a |the )?proof(?: .*)?|answer|solution|no answer|omitted"
)
_PROSE = re.compile(r"(?<![A-Za-z\\{])[A-Za-z]{2,}(?![A-Za-z}])")
_WORDS = re.compile(r"\\text\s*\{([^{}]*)\}|((?=.*[A-Za-z]{2})[A-Za-z][A-Za-z'\- ]*[A-Za-z])")


def plain_words(text: str) -> str:
    r"""The words of a text in lower case, without `\text`, quotes and full stops.

    >>> plain_words(r"\text{No solution.}")
    'no solution'
    """
    return re.sub(r"[\s\"'.]+", " ", re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)).strip().casefold()


def is_prose(text: str) -> bool:
    """Whether it has four words or more.

    >>> is_prose("x + y"), is_prose("so we are done here")
    (False, True)
    """
    return len(_PROSE.findall(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text))) >= 4


def is_no_gold(text: str) -> bool:
    """Whether a gold answer is none: a sentence with a number or a conclusion in it, or a placeholder.

    >>> is_no_gold("nan"), is_no_gold("So we are done here"), is_no_gold("42")
    (True, True, False)
    """
    words = plain_words(text)
    says = re.search(r"\d|\b(?:answer|solution|therefore|we|so)\b", words)
    sentence = says is not None and (is_prose(text) or _WORDS.fullmatch(text) is not None) and len(words.split()) >= 3
    return sentence or _NO_GOLD.fullmatch(words) is not None
