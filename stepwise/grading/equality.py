r"""When two answers are equal.

- Numbers are exact: 0.5, 1/2, `\frac12` and 2/4 are equal; 0.333 and 1/3 are not, nor are 3.4641 and `2\sqrt{3}`.
- `8\%` equals 8 percent and 0.08, and 8 only where the gold answer itself carries the sign.
- A name is dropped where the other side has none (`x=5` equals 5); two names must agree (`x=5` is not `y=5`).
- Tuples and intervals are ordered and their brackets count: (1,2) is neither [1,2] nor {1,2}. Sets and bare lists are
  unordered and equal each other, but values that the gold answer names (`a=1, b=2`) must come in its order.
- Words ignore case and spaces. A choice label ignores brackets and case, and the option's text behind it: (A) 13, a and
  A are equal, and (A) 13 equals 13. Clock times and ratios are compared as written.
- Amounts in several units ("2 hours 30 minutes") are values, see `compound.py`; no other unit is converted.
- Anything else is algebra: the caller supplies the function that decides it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from stepwise.grading.answers import LETTERS, ParsedAnswer, read
from stepwise.grading.text import Unreadable, clean, key
from stepwise.grading.units import compatible

Algebra = Callable[[str, str], bool]

_CHOICE = re.compile(
    r"(?:(?:\\text\s*\{\s*)?(?i:option|choice|answer)\s*\}?\s*)?"
    r"(?:[(\[]\s*(?:\\text\s*\{\s*)?([A-Ja-j])\s*\}?\s*[)\]]|(?:\\text\s*\{\s*)?([A-J])\s*\}?\s*(?:[:.]|\))|(?:\\text\s*\{\s*)?([A-Ja-j])\s*\}?(?=$))"
    r"\s*[:.]?\s*(.*)"
)
_OPERATION = re.compile(r"[+*/^=!_']|\\(?:cdot|times|div|pm|mp)(?![A-Za-z])|(?<=[)\]}A-Za-z])-")
_NO_SOLUTION = re.compile(
    r"(?:there (?:is|are) )?no (?:real |such |possible )?(?:solutions?|values?)|none|(?:the )?empty set|∅"
)
_SAME_WORDS = {"does not exist": "dne", "infinitely many": "infinite"}
_INTEGERS = re.compile(
    r"(?<![A-Za-z\\])([a-z])\s*\\in\s*\\mathbb\{([NZ])\}"
    r"|(?:(positive|natural|nonnegative|non-negative)\s+)?(?:integers?|numbers?)\s*\}?\s*\$?([a-z])(?![A-Za-z])"
    r"|(?<![A-Za-z\\])([a-z])\s*(?:\\text\s*\{)?\s*is\s+an?\s+(positive|natural|nonnegative|non-negative)?\s*integer"
)
_RESTRICTS = re.compile(r"even|odd|prime|divisible|multiple|\\p?mod|\\equiv")
_POINT = re.compile(r"[A-Z]\s*(\(.*,.*\))")
_SAID = re.compile(r"yes|no|true|false|never|always|sometimes|undefined|dne|does not exist|infinite(?:ly many)?|"
                   r"impossible|infinity|cannot be determined|not possible|" + _NO_SOLUTION.pattern)  # fmt: skip
_LITERAL = r"(?<![\w^.}{\\_])(?:\d[\d,]*(?:\.\d+)?|\\frac\{\d+\}\{\d+\})"
_NOT_A_FACTOR = r"(?!\d|\s*[\\^(a-zA-Z_!{])"
_ARITHMETIC = re.compile(
    rf"{_LITERAL}\s*(?:\+|-|\*|\\times|\\cdot|\\div|/)\s*(?!10\s*\^)(?:\d[\d,]*(?:\.\d+)?|\\frac\{{\d+\}}\{{\d+\}}){_NOT_A_FACTOR}"
)
_FRACTION = re.compile(r"(?<![\d.}])(\d+)\s*/\s*(\d+)(?![\d.])")


def compare(prediction: str, gold: str, algebra: Algebra, *, shortcut: bool = True, bare: bool = False) -> bool:
    r"""Whether two extracted answers are equal. Raises Unreadable naming whose answer cannot be read, gold first.

    `algebra(prediction, gold)` decides pairs that are neither numbers nor words; what it raises passes through.
    `shortcut=False` hands it every algebraic part of `gold`, equal texts or not: so are gold answers checked.
    `bare`: the prediction stood outside of a box, so that words may be no answer at all.

    >>> compare("0.5", r"\frac{1}{2}", algebra=lambda prediction, gold: False)  # numbers need no algebra
    True
    """
    gold_text = clean(gold, "gold")
    right = read(gold_text, "gold")
    text = clean(prediction, "prediction")
    if not shortcut:
        for leaf in _algebraic(right):
            algebra(leaf, leaf)
    elif key(text) == key(gold_text):
        return True
    choice, gold_choice = _choice(text), _choice(gold_text)
    if gold_choice and (gold_choice[1] or gold_text.strip().isupper() or "(" in gold_text):
        if choice and choice[0] != gold_choice[0]:
            return False
        if choice and not (choice[1] and gold_choice[1]):
            return True
        if gold_choice[1]:
            return compare(choice[1] if choice else text, gold_choice[1], algebra, bare=bare)
    elif choice and choice[1] and not re.search(choice[0], gold_text, re.IGNORECASE):
        return compare(choice[1], gold, algebra, bare=bare)
    if (point := _POINT.fullmatch(text)) and gold_text.startswith("("):
        text = point[1]  # `P(3, 4)`: a point and its name
    text = _with_variable_of(gold_text, text)
    left = read(text, "prediction", _words_of(gold_text) | {right.unit or "text"})
    said = left.word if right.word is None and not left.unit else None
    if said is not None and len(said.split()) >= 4 and re.search(r"[\d\\]", said):
        raise Unreadable("prediction", "it is a sentence, not an answer")
    if bare and "\\text" not in text and _is_talk(left, right):
        raise Unreadable("prediction", "words outside of a box are no answer to this")
    if left.condition and right.condition and left.condition != right.condition:
        raise Unreadable("prediction", "it holds under another condition than the gold answer")
    if left.condition and not right.condition and _RESTRICTS.search(left.condition):
        raise Unreadable("prediction", "it holds under a condition, the gold answer under none")
    return _same(left, right, algebra)


def _with_variable_of(gold: str, text: str) -> str:
    """The prediction with the gold answer's name for "every integer k"; Unreadable where one says N and the other Z."""
    said, mine = _INTEGERS.search(gold), _INTEGERS.search(text)
    if mine is None:
        return text
    name = mine[1] or mine[4] or mine[5]
    free = set(re.findall(r"(?<![A-Za-z\\])[ijkmnpq](?![A-Za-z])", gold))
    wanted = (said[1] or said[4] or said[5]) if said else free.pop() if len(free) == 1 else name
    if said and bool(said[2] == "N" or said[3] or said[6]) != bool(mine[2] == "N" or mine[3] or mine[6]):
        raise Unreadable("prediction", "it holds for other integers than the gold answer")
    if name == wanted or re.search(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", gold):
        return text
    return (
        text
        if re.search(rf"(?<![A-Za-z\\]){wanted}(?![A-Za-z])", text)
        else re.sub(rf"(?<![A-Za-z\\]){name}(?![A-Za-z])", wanted, text)
    )


def _is_talk(left: ParsedAnswer, right: ParsedAnswer) -> bool:
    """Whether a text outside of a box has words, not known as an answer, where the gold answer has none."""
    said = [item.word for item in (left, *left.items) if item.word is not None and not item.unit]
    if said and not any(item.word is not None for item in (right, *right.items)):
        return any(re.fullmatch(r"[a-z',;:!?-][a-z',;:!? -]*", word) and not _SAID.fullmatch(word) for word in said)
    short = re.fullmatch(r"[a-z]{2,3}", left.latex) and not _SAID.fullmatch(left.latex)
    return bool(short) and not set(left.latex) & set(right.latex)


def leaves_arithmetic(prediction: str, gold: str) -> bool:
    r"""Whether + - × or / stands between two literal numbers of the prediction, and between none of the gold answer.

    A fraction in lowest terms and `3.2\times 10^{5}` are numbers. Texts over the caps have no arithmetic.

    Example:
        >>> leaves_arithmetic("29 - 15", "14"), leaves_arithmetic(r"2+\sqrt3", "3.73"), leaves_arithmetic("1/2", "0.5")
        (True, False, False)
    """
    try:
        left, right = clean(prediction, "prediction"), clean(gold, "gold")
    except Unreadable:
        return False
    left, right = (_FRACTION.sub(_as_number, text) for text in (left, right))
    return bool(_ARITHMETIC.search(left)) and not _ARITHMETIC.search(right)


def _as_number(match: re.Match[str]) -> str:
    return match[0] if int(match[1]) % max(int(match[2]), 1) == 0 else f"\\frac{{{match[1]}}}{{{match[2]}}}"


def _choice(text: str) -> tuple[str, str] | None:
    """The label in upper case and the text behind it."""
    match = _CHOICE.fullmatch(text.strip())
    if match is None:
        return None
    rest = match[4].strip(" :.")
    if _OPERATION.match(text.strip(), match.start(4)):
        return None  # `(C)+1` is no option's text; `(C) -1` may be one
    return ((match[1] or match[2] or match[3]).upper(), rest) if not _CHOICE.match(rest + " ") else None


def _algebraic(answer: ParsedAnswer) -> Iterator[str]:
    """The parts of an answer that only algebra can read."""
    if answer.relation or not (answer.kind or answer.word is not None or answer.value is not None):
        yield answer.latex
    for item in answer.items:
        yield from _algebraic(item)


def _same(one: ParsedAnswer, other: ParsedAnswer, algebra: Algebra) -> bool:
    """Whether the prediction `one` equals the gold answer `other`."""
    if one.kind == "approx" or other.kind == "approx":
        return _same_rounded(one, other, algebra)
    renamed = bool(one.name and other.name and one.name != other.name)
    if renamed or one.relation or other.relation:
        # Two equations, or two names, are compared as written: `x=5` equals `5=x` and does not equal `y=5`.
        related = all((answer.name or answer.relation) and not answer.kind for answer in (one, other))
        return related and algebra(one.whole or one.latex, other.whole or other.latex)
    if (
        {one.kind, other.kind} == {"{}", ""}
        and len(alone := (one.items or other.items)) == 1
        and alone[0].value is not None
    ):
        one, other = (alone[0] if answer.kind else answer for answer in (one, other))  # a set of one number
    plain_list = any(answer.kind == "list" and not answer.compound for answer in (one, other))
    if (one.compound or other.compound) and not plain_list:
        return _same_compound(one, other)
    if one.kind or other.kind:
        return _same_group(one, other, algebra)
    if one.unit.startswith("base ") and not other.unit and one.unit != "base 10":
        _check_base(one, other)
    if one.word is not None or other.word is not None:
        words = [answer.latex.casefold() if answer.word is None else answer.word for answer in (one, other)]
        words = [_SAME_WORDS.get(word, word) for word in words]
        if _NO_SOLUTION.fullmatch(words[0]) and _NO_SOLUTION.fullmatch(words[1]):
            return True
        return words[0].replace(" ", "") == words[1].replace(" ", "") and compatible(one.unit, other.unit)
    percents = [answer.unit == "percent" for answer in (one, other)]
    if percents[0] != percents[1] and not (one.unit and other.unit):
        if percents[1] and _same(one, replace(other, unit=""), algebra):
            return True  # the gold answer carries the sign, so the bare number is meant in percent
        one, other = (
            _hundredth(answer) if percent else answer for answer, percent in zip((one, other), percents, strict=True)
        )
    if not compatible(one.unit, other.unit):
        return False
    if one.value is not None and other.value is not None:
        return one.value == other.value
    if key(one.latex) == key(other.latex):
        return True
    if LETTERS.fullmatch(one.latex) and LETTERS.fullmatch(other.latex):
        # Two or three bare letters are a word as likely as a product: "Yes" equals "yes", and ab equals ba.
        return one.latex.casefold() == other.latex.casefold() or sorted(one.latex) == sorted(other.latex)
    return algebra(_formula(one), _formula(other))


def _same_compound(one: ParsedAnswer, other: ParsedAnswer) -> bool:
    """An amount in several units against another, or against one number."""
    amount = one.compound or other.compound
    assert amount is not None
    if one.compound and other.compound:
        return one.compound.scale == other.compound.scale and one.compound.total == other.compound.total
    single = other if one.compound else one
    if single.word is not None:
        raise Unreadable("prediction", "whether it is an amount in these units cannot be told")
    if single.value is None or (single.unit and amount.single(single.value, single.unit) != amount.total):
        return False
    if not single.unit and not amount.units_of(single.value):
        return False
    if not single.unit or amount.listed:
        raise Unreadable("prediction", "whether it is an amount in these units cannot be told")
    return True


def _check_base(one: ParsedAnswer, other: ParsedAnswer) -> None:
    """Digits in a base that the gold answer does not name: whether its digits or its value are meant cannot be told."""
    digits, base = one.latex.lstrip("-"), int(one.unit[5:])
    if one.value is not None and one.value == other.value and len(digits) > 1 and base <= 36:
        raise Unreadable("prediction", "it names a base, and the gold answer none")


def _as_written(answer: ParsedAnswer) -> tuple[object, ...]:
    return key(answer.latex), answer.value, answer.unit, answer.kind, answer.name


def _formula(answer: ParsedAnswer) -> str:
    """The answer as algebra reads it; words may have changed the number in its text."""
    value = answer.value
    return answer.latex if value is None else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _hundredth(answer: ParsedAnswer) -> ParsedAnswer:
    if answer.value is not None:
        return replace(answer, value=answer.value / 100, latex=f"({answer.latex})/100", unit="")
    return replace(answer, latex=f"\\frac{{{answer.latex}}}{{100}}", unit="")


def _same_rounded(one: ParsedAnswer, other: ParsedAnswer, algebra: Algebra) -> bool:
    r"""`A \approx B` equals what A equals, and what B equals if A is within one in a hundred of B."""
    if other.kind == "approx":
        return _same(one.items[0] if one.kind == "approx" else one, other.items[0], algebra) or (
            one.kind != "approx" and _same_rounded(other, one, lambda a, b: algebra(b, a))
        )
    exact, rounded = one.items
    if _same(exact, other, algebra):
        return True
    if not _same(rounded, other, algebra):
        return False
    if exact.value is None or rounded.value is None:
        raise Unreadable("prediction", "whether it is rounded rightly cannot be told")
    return abs(exact.value - rounded.value) <= abs(rounded.value) / Fraction(100)


def _same_group(one: ParsedAnswer, other: ParsedAnswer, algebra: Algebra) -> bool:
    unordered = ("list", "{}")
    if other.kind == "{}" and not other.items and one.word is not None:
        return bool(_NO_SOLUTION.fullmatch(one.word))
    if one.kind == "{}" and not one.items and other.word is not None:
        return bool(_NO_SOLUTION.fullmatch(other.word))
    names = [[item.name for item in answer.items] for answer in (one, other)]
    named = [answer.kind in ("list", "()") and all(own) and len(set(own)) == len(own) > 1
             for answer, own in zip((one, other), names, strict=True)]  # fmt: skip
    alike = one.kind == other.kind or (one.kind in unordered and other.kind in unordered)
    if any(named) and {one.kind, other.kind} <= {"list", "()"} and len(one.items) == len(other.items):
        if all(named):
            if set(names[0]) == set(names[1]):
                pairs = [(item, other.items[names[1].index(item.name)]) for item in one.items]
                return all(_same(item, gold, algebra) for item, gold in pairs)
        elif named[1] or other.kind == "()":
            # Named values against bare ones: in the order in which the gold answer names them, else of the alphabet.
            alphabetical = sorted(one.items, key=lambda item: item.name)
            mine = one.items if named[1] or one.kind == "()" else alphabetical
            return all(
                _same(replace(p, name=""), replace(g, name=""), algebra) for p, g in zip(mine, other.items, strict=True)
            )
    unnamed = not any(item.name for item in one.items)
    if (
        one.kind == "list"
        and other.kind == "union"
        and unnamed
        and re.search(r"(?<![A-Za-z\\])or(?![A-Za-z])", one.latex)
    ):
        one = replace(one, kind="union")  # intervals joined by "or"
    alike = one.kind == other.kind or (one.kind in unordered and other.kind in unordered)
    if one.kind == "list" and other.kind == "list" and all(item.kind == "{}" for item in one.items):
        # Several sets for a gold answer that lists all their elements.
        elements = tuple(inner for item in one.items for inner in item.items)
        one = replace(one, items=elements) if len(elements) == len(other.items) else one
    # Three values or more in brackets are no interval: a list written as a tuple, in the gold answer's order.
    listed = one.kind == "()" and other.kind == "list" and len(other.items) >= 3
    if not (alike or listed) or len(one.items) != len(other.items):
        return False
    if listed or one.kind not in (*unordered, "union"):
        return all(_same(p, g, algebra) for p, g in zip(one.items, other.items, strict=True))
    left = list(other.items)
    for item in one.items:
        # Identical texts first, so that algebra is asked only about what is left.
        match = next((i for i, g in enumerate(left) if _as_written(g) == _as_written(item)), None)
        if match is None:
            match = next((i for i, g in enumerate(left) if _same(item, g, algebra)), None)
        if match is None:
            return False
        del left[match]
    return True


def _words_of(text: str) -> frozenset[str]:
    """Every word of a text, in lower case: things that the other answer may name."""
    return frozenset(word.lower() for word in re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)) - {"text"}
