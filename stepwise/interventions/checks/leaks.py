r"""Does an intervention give the final answer away?

What differs from InT's filter (arXiv 2601.14209, its published code), which drops an intervention whose text contains
the answer's string:
1. A number counts by its exact value and not by its digits: 0.5, `\frac12`, 50 % and "one half" are one answer, and the
   answer 4 does not stand in 144.
2. A number that stands in the problem or in the kept steps gives nothing away, unless it is said to be the result.
3. An operand (`3x`, "divide by 3", "step 3") is no assertion, and neither is "not 3".
4. Where the replaced step is the one that states the result, the right step states the right one: such a case has a
   verdict of its own (`ANSWER_STEP`), so that it is left out and counted, not blamed.

Pure: no model, no process. Values of algebra beyond monomials such as `2\sqrt{3}` and `14\pi` are compared as written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from stepwise.errors import DataError
from stepwise.grading.answers import ParsedAnswer, read
from stepwise.grading.equality import compare
from stepwise.grading.text import Unreadable, clean, key
from stepwise.interventions.checks.numbers import Mention, about, mentions, monomial
from stepwise.steps import boxed
from stepwise.types import Trace

SMALL = 12
"""Whole numbers up to this size count only where they are asserted: three cases are seldom the answer 3."""


_NEAR = 160  # characters


class LeakVerdict(StrEnum):
    """What became of one intervention.

    Example:
        >>> LeakVerdict.CLEAN.name
        'CLEAN'
    """

    CLEAN = "clean"
    """The answer is not given away."""
    LEAK = "leak"
    """It is: the intervention is dropped."""
    ANSWER_STEP = "answer_step"
    """It is, in a step whose rightful content is the answer: left out, and counted apart."""


@dataclass(frozen=True)
class LeakCheck:
    """`reason` says why ("" for clean); `span` is where in the content (characters), `matched` what stands there.

    Example:
        >>> LeakCheck(LeakVerdict.CLEAN).span is None
        True
    """

    verdict: LeakVerdict
    reason: str = ""
    span: tuple[int, int] | None = None
    matched: str = ""


_HEDGE = r"(?:\s*(?:exactly|just|only|about|precisely|simply|a|an|the|me|us|with|a total of|a value of))*\s*\Z"
_STRONG = re.compile(
    r"(?:\b(?:answer|solution|result|final|requested|required|asked|wanted)\b[^.;!?\n]{0,60}?"
    r"(?:\bis|\bare|\bbe|\bequals?|\bas|\bof|=|:)"
    r"|\bvalue\s+(?:(?:we|I)\s+(?:want|need|seek)\s+)?(?:(?:must|will|should|has\s+to)\s+)?(?:is|be|equals|=|:))"
    + _HEDGE,
    re.IGNORECASE,
)
_DERIVED = re.compile(
    r"\b(?:giv(?:es?|ing)|yield(?:s|ing)?|obtain(?:s|ing)?|gets?|getting|c[oa]mes? (?:out )?(?:to|as|at)"
    r"|turns? out(?: to be| as)?|lea(?:ves?|ving)|left|reach(?:es|ing)?|arriv(?:es?|ing) at|finds?|totals?"
    r"|amounts? to|adds? up to|ends? (?:up )?(?:at|with|in)|results? in|brings? [^.;]{0,40}? to|makes?|making"
    r"|(?:must|has to|have to|had to|will) be|to be)" + _HEDGE,
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"(?:=|≈|\\approx|\b(?:equals?|equal to|is|are|was|be|being|at|shows?|takes?|at an? \w+ of))" + _HEDGE,
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\binstead of|\brather than|\bnor|\bno)(?:\s+(?:be|to|at|the|equal|with))*\s*\Z"
)
_OPERAND_LEFT = re.compile(
    r"(?:[-+*/^·×÷_−]\s*\{?|\\(?:cdot|times|div|pm|frac)\s*\{?|\b(?:by|times|plus|minus|over|mod|modulo|than|from|step"
    r"|case|equation|line|part|multiples? of|powers? of|factors? of|number|every|among|divisible by))\s*\(?\Z",
    re.IGNORECASE,
)
_OPERAND_RIGHT = re.compile(
    r"\s*\}?(?:[+*/^·×÷_!]|[-−]\s*[\d(\\A-Za-z](?![a-z])|\\(?:cdot|times|div|pm|sqrt|pi|binom)|\(|\[|(?<!\s)[A-Za-z]"
    r"|(?:times|plus|minus|mod|modulo|choose|more|fewer|less)\b|(?:st|nd|rd|th)\b)"
)
_COMPARED = re.compile(r"\b(?:more|fewer|less|times|such|than)\b", re.IGNORECASE)
_UNIT_RIGHT = re.compile(r"\s*(?:°|\^\s*\{?\s*\\circ|(?:mm|cm|km|ft|in|mi|kg|mg|ml|lb|oz|hr?s?|min|sec|mph)\b)")
_CLAUSE_END = re.compile(r"[\s}*]*(?:[.,;:!?)]|\Z|(?:so|and|which|here|in|of|for|as|at)\b|\n)")
_MARKUP = re.compile(r"\$|\*\*|`|\\[()\[\]]|\\(?:text|mathrm|mathbf)(?=\{)|\\(?:left|right)(?![A-Za-z])")


def check_leak(
    content: str, answer: str, *, problem: str = "", prefix: Sequence[str] = (), answer_due: bool = False
) -> LeakCheck:
    """Whether the step `content` gives away `answer`, where `problem` and the steps of `prefix` are known already.

    `answer_due` says that the step is to state the answer (see `answer_due`). Raises DataError for an answer that is
    empty or that the grader cannot read.

    >>> check_leak("Half of 84 is left, which is 42.", "42", problem="There are 84 coins.").verdict.value
    'leak'
    >>> check_leak("Take half of the 84 coins.", "42", problem="There are 84 coins.").verdict.value
    'clean'
    """
    gold = _Gold.read(answer)
    known = " \n ".join((problem, *prefix))
    for reason, start, end in _leaks(_plain(content), gold, _plain(known)):
        verdict = LeakVerdict.ANSWER_STEP if answer_due else LeakVerdict.LEAK
        return LeakCheck(verdict, reason, (start, end), content[start:end])
    return LeakCheck(LeakVerdict.CLEAN)


def answer_due(trace: Trace, location: int) -> bool:
    r"""Whether the step at `location` (0-based) of a finished attempt is the one that states its result.

    It is where that step gives away the attempt's own answer, right or wrong, by the rule above; then what replaces it
    rightfully states the right one. Raises IndexError where there is no such step.

    Example:
        >>> from stepwise.types import Problem, Step
        >>> steps = (Step("2 + 2 = 4.", "weak"), Step(r"So it is \boxed{5}.", "weak"))
        >>> wrong = Trace(Problem("p", "2 + 2 + 2?", "6"), steps, "answer")
        >>> answer_due(wrong, 0), answer_due(wrong, 1)
        (False, True)
    """
    step = trace.steps[location].text
    if trace.answer is None:
        return False
    before = [earlier.text for earlier in trace.steps[:location]]
    try:
        check = check_leak(step, trace.answer, problem=trace.problem.question, prefix=before)
    except DataError:
        return location == len(trace.steps) - 1  # an answer that nobody can read: the last step states it
    return check.verdict is not LeakVerdict.CLEAN


@dataclass(frozen=True)
class _Gold:
    """An answer in the forms in which it is looked for."""

    text: str
    parsed: ParsedAnswer
    values: frozenset[Fraction]
    size: float | None  # of an irrational or endless value, which may be given away by its first decimals

    @classmethod
    def read(cls, answer: str) -> _Gold:
        if not answer or not answer.strip():
            raise DataError(f"answer is {answer!r}; a leak can be looked for only where the answer is known")
        try:
            text = clean(answer, "gold")
            parsed = read(text, "gold")
        except Unreadable as error:
            raise DataError(f"answer {answer!r:.80}: {error.reason}; leave the problem out") from None
        value, form, size = parsed.value, monomial(parsed.latex), None
        if value is not None and (value.denominator % 2 == 0 or value.denominator % 5 == 0 or value.denominator > 1):
            size = float(value)
        elif value is None and form is not None:
            size = about(form)
        shares = {value / 100} if value is not None and parsed.unit == "percent" else set()
        return cls(text, parsed, frozenset(shares | ({value} if value is not None else set())), size)

    def names(self, mention: Mention) -> bool:
        """Whether a number is this answer, or its first decimals."""
        if self.values & mention.values:
            return True
        if self.size is None or mention.decimals < 2:
            return False
        return any(abs(float(value) - self.size) <= 0.501 * 10**-mention.decimals for value in mention.values)

    def equals(self, text: str) -> bool:
        """Whether a piece of text is this answer, by the grader's exact rules."""
        try:
            other = clean(_with_binomials(text), "prediction")
            if compare(other, self.text, _same_monomial):
                return True
            value = read(other, "prediction").value
        except Unreadable:
            return False
        form = monomial(other) if value is None and "\\sqrt" in other else None
        roots = {(gold * abs(gold), ()) for gold in self.values}
        return value in self.values or form in roots


def _leaks(text: str, gold: _Gold, known: str) -> Iterator[tuple[str, int, int]]:
    """Every assertion of the answer in `text`: the reason, and from where to where."""
    for content in boxed(text):
        inside = mentions(content.strip())
        spelled = len(inside) == 1 and gold.names(inside[0]) and inside[0].end - inside[0].start == len(content.strip())
        if spelled or gold.equals(content):
            start = text.index(content)
            yield "boxed", start, start + len(content)
    if gold.values or gold.size is not None:
        stated = any(gold.names(mention) for mention in mentions(known))
        for mention in mentions(text):
            if gold.names(mention) and (reason := _number_leaks(text, mention, gold, stated)):
                yield reason, mention.start, mention.end
    yield from _claimed(text, gold)
    yield from _written(text, gold, known)


def _number_leaks(text: str, mention: Mention, gold: _Gold, stated: bool) -> str:
    """Why a number that equals the answer gives it away, "" where it does not."""
    left, right = _around(text, mention.start, mention.end)
    if _NEGATED.search(left) or (_OPERAND_RIGHT.match(right) and not _UNIT_RIGHT.match(right)):
        return ""
    if _STRONG.search(left):
        return "said to be the answer"
    if _DERIVED.search(left) and (not stated or _CLAUSE_END.match(right)):
        return "said to be a result"
    if stated:
        return ""
    small = all(value.denominator == 1 and abs(value) <= SMALL for value in gold.values) if gold.values else False
    operand = _OPERAND_LEFT.search(left)
    if (re.match(r"\s*=", right) and not operand) or (_WEAK.search(left) and (not small or _CLAUSE_END.match(right))):
        return "equated"
    if operand:
        return ""
    half_of = text[mention.start : mention.end].lower() == "half" and re.match(r"\s*(?:of|the|an?)?\b", right)
    return "" if small or half_of else "named"


def _claimed(text: str, gold: _Gold) -> Iterator[tuple[str, int, int]]:
    """Expressions that are said to be the answer, such as `the result is 84/2`, and words and groups likewise."""
    for linker in re.finditer(
        r"(?:=|:|\b(?:is|are|be|equals?|as|of|to|with|gives?|giving|yields?|obtain|get|at))\s+", text
    ):
        left, rest = _around(text, linker.end(), linker.end())
        if _NEGATED.search(left) or not (_STRONG.search(left) or _DERIVED.search(left)):
            continue
        clause = re.split(r"[.;?](?=\s|\Z)|\n|,\s(?=[a-z])", rest, maxsplit=1)[0].rstrip(" .,;:?")
        words = list(re.finditer(r"\S+", clause))[:8]
        for last in reversed(words):
            piece = clause[: last.end()].strip(" ,")
            after = text[linker.end() + last.end() :]
            if piece and not _COMPARED.search(piece) and not _OPERAND_RIGHT.match(after) and gold.equals(piece):
                yield "said to be the answer", linker.end(), linker.end() + last.end()
                break


def _written(text: str, gold: _Gold, known: str) -> Iterator[tuple[str, int, int]]:
    """Answers that are no plain number, as they are written: names, groups, formulas."""
    if gold.parsed.items:
        for match in re.finditer(r"\\?[(\[{][^()\[\]{}]*,[^()\[\]{}]*\\?[)\]}]", text):
            if gold.equals(match[0]) and key(match[0]) not in key(known):
                yield "written out", *match.span()
        yield from _item_by_item(text, gold, known)
    elif gold.parsed.word is not None:
        name = gold.parsed.latex
        inner = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", name).strip()
        if inner[:1].isupper() and len(inner) > 1:
            pattern = re.compile(rf"(?<!\w){re.escape(inner)}(?!\w)")
            for match in pattern.finditer(text):
                if not pattern.search(known) and not _NEGATED.search(_around(text, *match.span())[0]):
                    yield "named", *match.span()
    elif not gold.values:
        for match in re.finditer(r"[^\s,;:=.?]+(?:\s*(?:[-+*/^]|\\[a-z]+)\s*[^\s,;:=.?]+)*", text):
            piece = match[0].strip(".,")
            if len(key(piece)) > 1 and gold.equals(piece) and key(piece) not in key(known):
                yield "written out", *match.span()


def _item_by_item(text: str, gold: _Gold, known: str) -> Iterator[tuple[str, int, int]]:
    """`x = 4 and y = 6` for (4, 6): every item equated, and not all of them known before."""
    places: list[Mention] = []
    fresh, here, before = False, mentions(text), mentions(known)
    for item in gold.parsed.items:
        if item.value is None:
            return
        equated = [m for m in here if item.value in m.values and _asserted(text, m)]
        if not equated:
            return
        places.append(equated[0])
        fresh = fresh or not any(item.value in m.values for m in before)
    if fresh and len(places) > 1:
        yield "given item by item", min(m.start for m in places), max(m.end for m in places)


def _asserted(text: str, mention: Mention) -> bool:
    left, right = _around(text, mention.start, mention.end)
    said = any(pattern.search(left) for pattern in (_STRONG, _DERIVED, _WEAK))
    return said and not _NEGATED.search(left) and not _OPERAND_RIGHT.match(right)


def _around(text: str, start: int, end: int) -> tuple[str, str]:
    """What stands before and behind a place, as far as it matters: so a long text takes time linear in its length."""
    return text[max(0, start - _NEAR) : start], text[end : end + _NEAR]


def _same_monomial(first: str, second: str) -> bool:
    left, right = monomial(first), monomial(second)
    return left is not None and left == right


def _with_binomials(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        return str(math.comb(int(match[1]), int(match[2])))

    return re.sub(r"\\[dt]?binom\s*\{\s*(\d{1,3})\s*\}\s*\{\s*(\d{1,3})\s*\}", value, text)


def _plain(text: str) -> str:
    """`text` with spaces in place of mathematics and emphasis marks, of the same length: places stay as they are."""
    return _MARKUP.sub(lambda match: " " * len(match[0]), text)
