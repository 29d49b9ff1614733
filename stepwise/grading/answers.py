r"""What an answer is, and when two are equal.

An answer is a number, a word, a clock time or ratio, a group of answers (tuple, interval, set, list, union, matrix), a
named answer (`x = 5`), or algebra. Rules, beside those on units in `units.py`:

- Numbers are exact: 0.5, 1/2, `\frac12` and 2/4 are equal; 0.333 and 1/3 are not, nor are 3.4641 and `2\sqrt{3}`.
- `1\frac45` and "1 4/5" are mixed numbers. "1,234" is one number outside brackets; inside brackets a comma separates.
- A name is dropped where the other side has none (`x=5` equals 5); two names must agree (`x=5` is not `y=5`).
- Tuples and intervals are ordered and their brackets count: (1,2) is neither [1,2] nor {1,2}. Sets and bare lists are
  unordered and equal each other. `1 \pm 2` is a list of two. `2 < x \le 3` is the interval (2,3].
- Words ignore case and spaces; a choice label ignores brackets and case: (A) equals A. Clock times and ratios are
  compared as written.
- Anything else is algebra: the caller supplies the function that decides it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.grading.exact import TooBig, evaluate
from stepwise.grading.text import Role, Unreadable, clean, closing, key, strip_parentheses
from stepwise.grading.units import compatible, split_unit

Algebra = Callable[[str, str], bool]
MAX_ITEMS = 64


@dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class ParsedAnswer:
    """One reading of an answer. `latex` is its text without unit and name; the fields that are set say what it is.

    `value` with `unit`: a number. `word`: a word, phrase or clock time. `kind` with `items`: a group, `kind` being its
    brackets, "list", "union", "matrix" or "row". `relation`: an equation or inequality. None of them: algebra.
    `name` is what stood before `=`; `whole` is then the text with it.
    """

    latex: str
    value: Fraction | None = None
    unit: str = ""
    word: str | None = None
    kind: str = ""
    items: tuple[ParsedAnswer, ...] = ()
    name: str = ""
    relation: bool = False
    whole: str = ""


_THOUSANDS = re.compile(r"[-$€£\s]*\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d*,).*")
_CLOCK = re.compile(r"(\d{1,4}(?:\s*:\s*\d{1,4}){1,2})\s*(?:\\text\s*\{)?\s*([ap]\.?\s*m\.?)?\s*\}?", re.IGNORECASE)
# What may stand before `=`: x, AB, x_1, \theta, f(x), P(x, y), m\angle ABC, \overline{AB}, \text{Area}.
_SYMBOL = r"(?:[A-Za-z]|\\[A-Za-z]+)"
_NAME = r"[A-Za-z]*\s*(?:\\[A-Za-z]+\s*)?\{?[A-Za-z ]*\}?(?:_(?:\w|\{\w+\}))?'*"
_ARGUMENTS = rf"(?:\(\s*{_SYMBOL}(?:,\s*{_SYMBOL})*\s*\))?"
_NAMED = re.compile(rf"\s*({_NAME}{_ARGUMENTS})\s*(?:=|\\in(?![A-Za-z]))\s*(.+)")
_RELATION = re.compile(r"<|>|=|\\(?:le|ge|ne|in)(?![A-Za-z])")
_ORDER = re.compile(r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))")
_VARIABLE = re.compile(r"[A-Za-z]|\\[a-z]+")
_MATRIX = re.compile(r"\\begin\s*\{([pbB]?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\s*\{\1\}")
_LIST = re.compile(r",|;|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_OR = re.compile(r"\\text\s*\{\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])")
_LABEL = re.compile(r"(?:\\text\s*\{\s*)?(\(?)\s*(?:\\text\s*\{\s*)?([A-Za-z])\s*\}?\s*(\)?)\s*\}?")
_WORDS = re.compile(r"\\text\s*\{([^{}]*)\}|((?=.*[A-Za-z]{2})[A-Za-z][A-Za-z'\- ]*[A-Za-z])")
_LETTERS = re.compile(r"[A-Za-z]{2,3}")
_PROSE = re.compile(r"(?<![A-Za-z\\{])[A-Za-z]{2,}(?![A-Za-z}])")


def compare(prediction: str, gold: str, algebra: Algebra, *, shortcut: bool = True) -> bool:
    """Whether two extracted answers are equal. Raises Unreadable naming whose answer cannot be read, gold first.

    `algebra(prediction, gold)` decides pairs that are neither numbers nor words; what it raises passes through.
    `shortcut=False` hands it every algebraic part of `gold`, equal texts or not: so are gold answers checked.
    """
    gold_text = clean(gold, "gold")
    right = read(gold_text, "gold")
    text = clean(prediction, "prediction")
    if not shortcut:
        for leaf in _algebraic(right):
            algebra(leaf, leaf)
    elif key(text) == key(gold_text):
        return True
    one, other = _LABEL.fullmatch(text), _LABEL.fullmatch(gold_text)
    if one and other and one[2].upper() == other[2].upper() and (one[1] or other[1]) and bool(one[1]) == bool(one[3]):
        return True
    left = read(text, "prediction")
    if left.word is not None and right.word is None and _is_prose(left.word) and re.search(r"[\d\\]", left.word):
        raise Unreadable("prediction", "it is a sentence, not an answer")
    return _same(left, right, algebra)


def read(text: str, role: Role) -> ParsedAnswer:
    """What a cleaned text says. Raises Unreadable for an empty one, unbalanced brackets or a number over the caps."""
    if not re.search(r"\w|\\\{", text):
        raise Unreadable(role, "there is no letter and no digit in it")
    if _is_prose(text):
        return ParsedAnswer(text, word=_plain(text))
    depth = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            break
    if depth:
        raise Unreadable(role, "its brackets do not match")
    try:
        return _read(text)
    except TooBig as error:
        raise Unreadable(role, str(error)) from None


def _read(text: str) -> ParsedAnswer:
    text = text.strip()
    if clock := _CLOCK.fullmatch(text):
        numbers = ":".join(str(int(part)) for part in clock[1].split(":"))
        half = re.sub(r"[^apm]", "", (clock[2] or "").lower())
        return ParsedAnswer(text, word=numbers, unit=half)
    if _THOUSANDS.fullmatch(text) and (number := _number(re.sub(r"(?<=\d),(?=\d{3})", "", text))):
        return number
    parts = [part for part in _split(text, _LIST) if part.strip()]
    if len(parts) > 1:
        group = _group(text, "list", parts)
        return replace(group, kind="union") if _is_union(text, group) else group
    if not parts:
        return ParsedAnswer(text)
    if len(ends := _split(text, re.compile(r"\\cup(?![A-Za-z])"))) > 1:
        return _group(text, "union", ends)
    if len(_split(text, _RELATION)) > 1:
        return _relation(text)
    return _brackets(text) or _plus_minus(text) or _leaf(text)


def _group(text: str, kind: str, parts: list[str]) -> ParsedAnswer:
    if len(parts) > MAX_ITEMS:
        raise TooBig(f"{len(parts)} items; at most {MAX_ITEMS} are compared")
    items = tuple(_read(part) for part in parts)
    if kind in ("list", "{}"):
        items = tuple(inner for item in items for inner in (item.items if item.kind == "list" else (item,)))
    return ParsedAnswer(text, kind=kind, items=items)


def _is_union(text: str, group: ParsedAnswer) -> bool:
    """`x < 2 or x > 3`: inequalities of one variable, all of them joined by "or"."""
    joined = len(_split(text, _OR)) == len(group.items)
    return joined and all(item.kind and item.name == group.items[0].name != "" for item in group.items)


def _brackets(text: str) -> ParsedAnswer | None:
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in re.split(r"\\\\", matrix[2]) if row.strip()]
        cells = tuple(_group(row, "row", row.split("&")) for row in rows)
        return ParsedAnswer(text, kind="matrix", items=cells)
    inner, kind = "", ""
    if text.startswith("\\{") and text.endswith("\\}") and closing(text, 1) == len(text) - 1:
        inner, kind = text[2:-2], "{}"
    elif text[0] in "([" and closing(text, 0) == len(text) - 1 and text[-1] in ")]":
        inner, kind = text[1:-1], text[0] + text[-1]
    if not kind:
        return None
    parts = [part for part in _split(inner, re.compile(",|;")) if part.strip()]
    if kind == "()" and len(parts) == 1:
        return _read(inner)
    return _group(text, kind, parts) if parts or kind == "{}" else None


def _plus_minus(text: str) -> ParsedAnswer | None:
    signs = re.compile(r"\\(pm|mp)(?![A-Za-z])")
    if not signs.search(text):
        return None
    plus = signs.sub(lambda match: "+" if match[1] == "pm" else "-", text)
    minus = signs.sub(lambda match: "-" if match[1] == "pm" else "+", text)
    return ParsedAnswer(text, kind="list", items=(_read(plus), _read(minus)))


def _relation(text: str) -> ParsedAnswer:
    named = _NAMED.fullmatch(text)
    if named and named[1].strip() and not _ORDER.search(named[2]):
        last = named[2].rpartition("=")[2] if "=" in named[2] else named[2]
        if last.strip():
            return replace(_read(last), name=key(named[1]), whole=text)
    pieces = [piece.strip() for piece in _ORDER.split(text)]
    if "=" not in text and len(pieces) in (3, 5):
        signs = {piece[:2] for piece in pieces[1::2]}
        rising = signs <= {"<", "\\l"}
        if rising or signs <= {">", "\\g"}:
            return _interval(text, pieces if rising else pieces[::-1])
    return ParsedAnswer(text, relation=True)


def _interval(text: str, pieces: list[str]) -> ParsedAnswer:
    r"""`2 < x \le 3`, `x > 3` and the like, smallest first, as an interval named after its variable."""
    if len(pieces) == 3:
        pieces = [*pieces, "<", "\\infty"] if _VARIABLE.fullmatch(pieces[2]) else ["-\\infty", "<", *pieces]
    low, first, name, second, high = pieces
    if not _VARIABLE.fullmatch(name) or not low or not high or _VARIABLE.fullmatch(low + high):
        return ParsedAnswer(text, relation=True)
    kind = ("(" if first in "<>" else "[") + (")" if second in "<>" else "]")
    return ParsedAnswer(text, kind=kind, items=(_read(low), _read(high)), name=key(name), whole=text)


def _leaf(text: str) -> ParsedAnswer:
    if (words := _WORDS.fullmatch(text)) and not _LETTERS.fullmatch(text):
        return ParsedAnswer(text, word=_plain(words[1] if words[1] is not None else words[2]))
    if text == "\\emptyset":
        return ParsedAnswer(text, kind="{}")
    if number := _number(text):
        return number
    rest, unit = split_unit(text)
    return ParsedAnswer(rest, unit=unit)


def _number(text: str) -> ParsedAnswer | None:
    rest, unit = split_unit(text)
    value = evaluate(strip_parentheses(rest))
    return None if value is None else ParsedAnswer(rest, value, unit)


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    r"""`text` cut at the separators that stand outside of all brackets (those of `\text{ and }` are their own)."""
    parts, start, at = [], 0, 0
    while at < len(text):
        if match := separator.match(text, at):
            parts.append(text[start:at])
            start = at = match.end()
        elif text[at] in "([{" and (close := closing(text, at)) >= 0:
            at = close + 1
        else:
            at += 1
    return [*parts, text[start:]]


def _plain(text: str) -> str:
    return re.sub(r"[\s\"'.]+", " ", re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)).strip().casefold()


def _is_prose(text: str) -> bool:
    return len(_PROSE.findall(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text))) >= 4


def _algebraic(answer: ParsedAnswer) -> Iterator[str]:
    """The parts of an answer that only algebra can read."""
    if answer.relation or not (answer.kind or answer.word is not None or answer.value is not None):
        yield answer.latex
    for item in answer.items:
        yield from _algebraic(item)


def _same(one: ParsedAnswer, other: ParsedAnswer, algebra: Algebra) -> bool:
    renamed = bool(one.name and other.name and one.name != other.name)
    if renamed or one.relation or other.relation:
        # Two equations, or two names, are compared as written: `x=5` equals `5=x` and does not equal `y=5`.
        related = all((answer.name or answer.relation) and not answer.kind for answer in (one, other))
        return related and algebra(one.whole or one.latex, other.whole or other.latex)
    if one.kind or other.kind:
        return _same_group(one, other, algebra)
    if one.word is not None or other.word is not None:
        words = [answer.latex.casefold() if answer.word is None else answer.word for answer in (one, other)]
        return words[0].replace(" ", "") == words[1].replace(" ", "") and compatible(one.unit, other.unit)
    if not compatible(one.unit, other.unit):
        return False
    if one.value is not None and other.value is not None:
        return one.value == other.value
    if key(one.latex) == key(other.latex):
        return True
    if _LETTERS.fullmatch(one.latex) and _LETTERS.fullmatch(other.latex):
        # Two or three bare letters are a word as likely as a product: "Yes" equals "yes", and ab equals ba.
        return one.latex.casefold() == other.latex.casefold() or sorted(one.latex) == sorted(other.latex)
    return algebra(one.latex, other.latex)


def _same_group(one: ParsedAnswer, other: ParsedAnswer, algebra: Algebra) -> bool:
    unordered = ("list", "{}")
    alike = one.kind == other.kind or (one.kind in unordered and other.kind in unordered)
    if not alike or len(one.items) != len(other.items):
        return False
    if one.kind not in (*unordered, "union"):
        return all(_same(p, g, algebra) for p, g in zip(one.items, other.items, strict=True))
    left = list(other.items)
    for item in one.items:
        # Identical texts first, so that algebra is asked only about what is left.
        match = next((i for i, g in enumerate(left) if key(g.latex) == key(item.latex)), None)
        if match is None:
            match = next((i for i, g in enumerate(left) if _same(item, g, algebra)), None)
        if match is None:
            return False
        del left[match]
    return True
