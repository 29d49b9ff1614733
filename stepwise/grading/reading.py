r"""Where in a text its answer stands, and what told so.

In this order: the last box that is an answer (see `stepwise.steps.extract_answer`); what follows the last `####`; "the
answer is" or "Final answer:"; an <answer> tag; the one number or formula of a concluding sentence ("Therefore, 8 are
left."); and a text of one line as it stands. Everything but the box can be switched off.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from stepwise.steps import extract_answer
from stepwise.steps.thoughts import solution_part

Source = Literal["box", "####", "answer is", "tag", "conclusion", "text", ""]


class FoundAnswer(NamedTuple):
    """An answer and how it was read: `source` is "" where none was found, with `answer` empty.

    Example:
        >>> FoundAnswer("3/4", "box").answer
        '3/4'
    """

    answer: str
    source: Source


_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_SAID = re.compile(
    r"\b(?:final |correct |the )*answer(?:\s+(?:to|for)\s[^.:\n]{1,60})?\s*(?:\*\*|__)?"
    r"\s*(?:is|are|=|:)\s*(?:\*\*|__)?\s*:?\s*(?=(\S[^\n]*))",
    re.IGNORECASE,
)
_TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL | re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<![A-Z])[.!](?=\s|\*|$)")
_SENTENCES = re.compile(r"(?:(?<=[.!?])|(?<=\\\]))\s+(?=[A-Z*\\$])")
_CONCLUDING = re.compile(
    r"\W*(?:therefore|so|thus|hence|consequently|finally|altogether|in (?:total|conclusion|all|summary)|as a result"
    r"|answer)\b",
    re.IGNORECASE,
)
_HEDGES = re.compile(
    r"\b(?:not|no|never|cannot|n't|unless|if|or|between|at least|at most|more|less|fewer|than|about|approximately|"
    r"around|roughly|almost|nearly|maybe|perhaps|guess|half|twice|times|thousand|million|billion|hundred|dozen|each|every|per|first|second|third|"
    r"one|two|three|four|five|six|seven|eight|nine|ten)\b|n't",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_NUMBER = re.compile(r"(?<![\w.,])-?\d[\d,]*(?:\.\d+)?(?![\w])%?")
_TOTAL = re.compile(r"\btotal of \\?\$?(\d[\d,]*(?:\.\d+)?)(?![\d%/.]*[%/])(?=\s+[a-z])")
_LONGEST = 400


def find_answer(text: str | None, outside_box: bool = True) -> FoundAnswer:
    r"""The answer in a text, by the order above; only boxes count where `outside_box` is False.

    Example:
        >>> find_answer("9 * 2 = 18\n#### 18")
        FoundAnswer(answer='18', source='####')
        >>> find_answer("I have no idea what to do.\n\nSorry.").source
        ''
    """
    text = text or ""
    if (answer := extract_answer(text)) is not None:
        return FoundAnswer(answer, "box")
    if not outside_box:
        return FoundAnswer("", "")
    part = solution_part(text).strip()
    if hashes := _HASHES.findall(part):
        return FoundAnswer(hashes[-1].strip(), "####")
    if said := [match for match in _SAID.finditer(part) if "boxed" not in match[1]]:
        sentence = _first_sentence(said[-1][1])
        return FoundAnswer((len(sentence.split()) > 2 and _only_value(sentence)) or sentence, "answer is")
    if tags := _TAG.findall(part):
        return FoundAnswer(tags[-1], "tag")
    if concluded := _conclusion(part):
        return FoundAnswer(concluded, "conclusion")
    whole = "" if "\\boxed" in text or "\\fbox" in text or "\n\n" in part or len(part) > 4 * _LONGEST else part
    return FoundAnswer(whole, "text" if whole else "")


def _first_sentence(text: str) -> str:
    end = _SENTENCE_END.search(text)
    sentence = (text[: end.start()] if end else text).strip(" *_")
    formula = _FORMULA.match(sentence)
    return sentence if formula is None or sentence[formula.end() :].strip() else next(filter(None, formula.groups()))


def _conclusion(part: str) -> str:
    """What a last sentence that draws a conclusion says, "" where it is not clear."""
    sentence = _SENTENCES.split(part.rsplit("\n\n", 1)[-1].strip())[-1]
    return _only_value(sentence) if _CONCLUDING.match(sentence) and len(sentence) <= _LONGEST else ""


def _only_value(sentence: str) -> str:
    """The only number, or the only formula, of a sentence; "" where it has more or takes it back."""
    sentence = sentence.replace("**", "")
    if _HEDGES.search(_FORMULA.sub(" ", sentence)):
        return ""
    if len(totals := _TOTAL.findall(sentence)) == 1:
        return str(totals[0])
    formulas = [next(filter(None, match.groups())) for match in _FORMULA.finditer(sentence)]
    outside = _FORMULA.sub(" ", sentence)
    if len(formulas) == 1 and not re.search(r"\d", outside):
        formula = formulas[0].strip()
        return "" if re.search(r"<|>|\\[lg]e|,", formula) else formula
    plain = re.sub(r"\\?\$", "", sentence)
    numbers = _NUMBER.findall(plain)
    if formulas or len(numbers) != 1 or len(re.findall(r"\d[\d,.]*", plain)) != 1:
        return ""
    return str(numbers[0]).rstrip(",")
