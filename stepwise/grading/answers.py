r"""What an answer is: the readings of one text.

An answer is a number, a word, a clock time or ratio, a group of answers (tuple, interval, set, list, union, matrix), a
named answer (`x = 5`), or algebra. `equality.py` says when two are equal. How one is read:

- `1\frac45` and "1 4/5" are mixed numbers. "1,234" is one number outside brackets; inside brackets a comma separates.
- `1 \pm 2` is a list of two. Inequalities of one variable are intervals: `2 < x \le 3` and `x > 2 \text{ and } x \le 3`
  are (2,3], `x \ne 2` is a union of two; `\{x \mid ...\}` is what its condition is, `\mathbb{R}` the whole line.
- In a chain the last value is the answer: `f(3) = 5`, `|r-s| = 16`, `6\cdot 7 = 42`, but an equation in x, y or z is an
  equation. Arithmetic that is false (`6\cdot 7 = 43`) is no answer. `A \approx B` has two readings, both kept.
- A trailing condition ("for all k", `, k \in \mathbb{Z}`, "(since ...)") is set aside.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.grading.compound import Compound, read_compound
from stepwise.grading.exact import TooBig, evaluate, is_rounded
from stepwise.grading.prose import is_no_gold, is_prose, plain_words
from stepwise.grading.text import Role, Unreadable, closing, key, split, strip_parentheses, without_condition
from stepwise.grading.units import NoNumber, spelled, split_base, split_unit

MAX_ITEMS = 64


@dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class ParsedAnswer:
    """One reading of an answer. `latex` is its text without unit and name; the fields that are set say what it is.

    `value` with `unit`: a number. `word`: a word, phrase or clock time. `kind` with `items`: a group, `kind` being its
    brackets, "list", "union", "matrix", "row" or "approx" (an exact value and the rounded one). `relation`: an equation
    or inequality. None of them: algebra. `name` is what stood before `=`; `whole` is then the text with it. `condition`
    is what was set aside behind it. `compound`: an amount in several units, which may be a list too.

    >>> ParsedAnswer("12", value=Fraction(12), unit="cm").unit  # "12 cm"
    'cm'
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
    condition: str = ""
    compound: Compound | None = None


_THOUSANDS = re.compile(r"[-$€£\s]*\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d*,).*")
_CODED_THOUSANDS = re.compile(r"[A-Z]{2,3}\$?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_CLOCK = re.compile(r"(\d{1,4}(?:\s*:\s*\d{1,4}){1,2})\s*(?:\\text\s*\{)?\s*([ap]\.?\s*m\.?)?\s*\}?", re.IGNORECASE)
# What may stand before `=`: x, AB, x_1, \theta, f(x), P(x, y), m\angle ABC, \overline{AB}, \text{Area}.
_SYMBOL = r"(?:[A-Za-z]|\\[A-Za-z]+)"
_NAME = r"[A-Za-z]*\s*(?:\\[A-Za-z]+\s*)?\{?[A-Za-z ]*\}?(?:_(?:\w|\{[\w+-]+\}))?'*"
_NAME_IN_WORDS = re.compile(r"^\s*\\text\s*\{[^{}]*\}\s*=")
_ARGUMENTS = rf"(?:\(\s*{_SYMBOL}(?:,\s*{_SYMBOL})*\s*\))?"
_NAMED = re.compile(rf"\s*({_NAME}{_ARGUMENTS})\s*(?:=|\\(?:in|equiv|approx)(?![A-Za-z]))\s*(.+)")
_APPLIED = re.compile(
    r"\s*(?:[A-Za-z]|\\text\s*\{[A-Za-z ]+\}|\\[a-z]+)(?:_(?:\w|\{\w+\}))?'*\s*\(.*\)\s*|\s*\|.*\|\s*"
)
_TUPLE_NAME = re.compile(r"\s*\(([^()=]*(?:\([^()]*\)[^()=]*)*)\)\s*=\s*(\(.*\))\s*")
_RELATION = re.compile(r"<|>|=|\\(?:le|ge|ne|in|approx|equiv)(?![A-Za-z])")
_EQUAL_SIGN = re.compile(r"=|\\equiv(?![A-Za-z])")
_APPROX = re.compile(r"\\approx(?![A-Za-z])")
_ANY_EQUAL = re.compile(f"{_EQUAL_SIGN.pattern}|{_APPROX.pattern}")
_ORDER = re.compile(r"(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z]))")
_VARIABLE = re.compile(r"[A-Za-z]|\\[a-z]+")
_UNKNOWNS = re.compile(r"(?<![A-Za-z\\])[xyz](?![A-Za-z])|(?<![A-Za-z\\])(?:[a-z]*[xyz])(?![A-Za-z])")
_BOUND = re.compile(r"\s*([A-Za-z])\s*(?:\\ne|<|>|\\le|\\ge)(?![A-Za-z]).*")
_MATRIX = re.compile(r"\\begin\s*\{([pbB]?(?:small)?matrix\*?|array)\}(?:\s*[\[{][lcr|@ ]*[\]}])?(.*)\\end\s*\{\1\}")
_CASES = re.compile(r"\\begin\s*\{(?:cases|aligned)\}(.*)\\end\s*\{(?:cases|aligned)\}")
_AND = r"\\text\s*\{\s*,?\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])|\\(?:land|wedge)(?![A-Za-z])"
_LIST = re.compile(rf",|;|\\text\s*\{{\s*,?\s*or\s*\}}|(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])|{_AND}")
_OR = re.compile(r"\\text\s*\{\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])")
_WORDS = re.compile(r"\\text\s*\{([^{}]*)\}|((?=.*[A-Za-z]{2})[A-Za-z][A-Za-z'\- ]*[A-Za-z])")
LETTERS = re.compile(r"[A-Za-z]{2,3}")
_SENTENCE = re.compile(
    r"(?<![A-Za-z\\{_^])(?:[A-Za-z]{2,}\s+[A-Za-z]{2,}|[A-Z]?[a-z]{4,})(?![A-Za-z(])|(?<![A-Za-z})])['\"]"
)
_BUILDER = re.compile(r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\||:)((?:(?!\\\}).)*)\\\}")
_RAY = re.compile(r"\\mathbb\{R\}(?:\^\s*\{?\s*(\+|-)\s*\}?|_\s*\{\s*(>|<|\\ge|\\le)\s*0\s*\})")
_LINE = re.compile(r"\\mathbb\{R\}(?:\s*(?:\\setminus|\\backslash|-|\\smallsetminus)\s*\\\{(.*)\\\})?")
_IN_LINE = re.compile(r",?\s*[A-Za-z]\s*\\in\s*\\mathbb\{R\}\s*,?")


def read(text: str, role: Role, known: frozenset[str] | None = None) -> ParsedAnswer:
    """What a cleaned text says; `known` are words that count as things behind a number (see `units.py`).

    Raises Unreadable for an empty one, unbalanced brackets, a number over the caps or with unknown words behind it.

    >>> read("3", "gold").value, [item.latex for item in read("(1, 2)", "gold").items], read("x + 1", "gold").latex
    (Fraction(3, 1), ['1', '2'], 'x + 1')
    """
    if not re.search(r"\w|\\\{", text):
        raise Unreadable(role, "there is no letter and no digit in it")
    reader = _Reader(known)
    try:
        text, condition = without_condition(text)
        several_units = read_compound(text) is not None
        if role == "gold" and is_no_gold(text) and not several_units:
            raise Unreadable(role, "it is a sentence, not an answer")
        said = (
            is_prose(_NAME_IN_WORDS.sub("", text)) and spelled(plain_words(text)) is None and not _CLOCK.fullmatch(text)
        )
        if said and not several_units and (known is not None or not reader.is_number(text)):
            return ParsedAnswer(text, word=plain_words(text))
        depth = 0
        for char in text:
            depth += (char in "([{") - (char in ")]}")
            if depth < 0:
                break
        if depth:
            raise Unreadable(role, "its brackets do not match")
        return replace(reader.read(text), condition=condition)
    except (TooBig, NoNumber) as error:
        raise Unreadable(role, str(error)) from None


class _Reader:
    """Reads the parts of one answer."""

    def __init__(self, known: frozenset[str] | None) -> None:
        self.known = known

    def is_number(self, text: str) -> bool:
        try:
            return self.number(text) is not None
        except NoNumber:
            return False

    def read(self, text: str) -> ParsedAnswer:
        text = text.strip()
        if (compound := read_compound(text)) is None:
            return self.read_plain(text)
        if not compound.listed:
            return ParsedAnswer(text, kind="compound", compound=compound)
        return replace(self.group(text, "list", split(text, _LIST)), compound=compound)

    def read_plain(self, text: str) -> ParsedAnswer:
        if clock := _CLOCK.fullmatch(text):
            numbers = ":".join(str(int(part)) for part in clock[1].split(":"))
            half = re.sub(r"[^apm]", "", (clock[2] or "").lower())
            return ParsedAnswer(text, word=numbers, unit=half)
        if based := split_base(text):
            digits, unit = based
            if digits.lstrip("-").isdigit():
                return ParsedAnswer(digits, Fraction(int(digits)), unit)
            return ParsedAnswer(digits, unit=unit, word=digits.casefold())
        thousands = _THOUSANDS.fullmatch(text) or _CODED_THOUSANDS.fullmatch(text)
        if thousands and (number := self.number(re.sub(r"(?<=\d),(?=\d{3})", "", text))):
            return number
        words = plain_words(text)
        if (counted := spelled(words.removesuffix(" percent"))) is not None and not LETTERS.fullmatch(text):
            return ParsedAnswer(text, counted, "percent" if words.endswith(" percent") else "")
        if builder := _BUILDER.fullmatch(text):
            return replace(self.read(builder[2]), name="", whole="")
        if ray := _RAY.fullmatch(text):
            sign = {"+": ">", "-": "<"}.get(ray[1], ray[2])
            return replace(self.read(f"x {sign} 0"), name="", whole="")
        if (line := _LINE.fullmatch(text)) and (points := self.excluded(line[1])) is not None:
            return _without_points(text, points)
        if _IN_LINE.search(text) and (rest := _IN_LINE.sub("", text).strip()):
            return self.read(rest)
        if (cases := _CASES.fullmatch(text)) and "&" not in cases[1]:
            return self.group(text, "list", [row for row in re.split(r"\\\\", cases[1]) if row.strip()])
        parts = [part for part in split(text, _LIST) if part.strip()]
        if len(parts) > 1:
            return self.conditions(text, parts)
        if not parts:
            return ParsedAnswer(text)
        if len(ends := split(text, re.compile(r"\\cup(?![A-Za-z])"))) > 1:
            return self.group(text, "union", ends)
        if len(split(text, _RELATION)) > 1:
            return self.relation(text)
        return self.brackets(text) or self.plus_minus(text) or self.leaf(text)

    def excluded(self, points: str | None) -> list[ParsedAnswer] | None:
        """The points to leave out of the line, sorted; None where their order is not known."""
        items = [self.read(part) for part in split(points, re.compile(",|;"))] if points else []
        known = [item for item in items if item.value is not None]
        if len(items) > 1 and len(known) < len(items):
            return None
        return sorted(items, key=lambda item: item.value or 0) if len(items) > 1 else items

    def conditions(self, text: str, parts: list[str]) -> ParsedAnswer:
        """Several parts: a list, or inequalities of one variable that say one thing together."""
        # `\frac{x+1}{x-2}, x \ne 2`: what follows a formula about its own variable is a condition.
        bound = _BOUND.fullmatch(parts[1]) if len(parts) == 2 and not _RELATION.search(parts[0]) else None
        if bound and re.search(rf"(?<![A-Za-z\\]){bound[1]}(?![A-Za-z])", parts[0]):
            return replace(self.read(parts[0]), condition=key(parts[1]))
        group = self.group(text, "list", parts)
        names = {item.name for item in group.items}
        ranges = all(item.kind in ("()", "(]", "[)", "[]", "union") for item in group.items)
        if len(names) > 1 or "" in names or not ranges:
            return group
        if len(split(text, _OR)) == len(group.items):
            return replace(group, kind="union", name=names.pop())
        if "or" in plain_words(text).split():
            return group
        unequal = [re.fullmatch(r"\s*\S+\s*\\ne\s*(.+)", part) for part in parts]
        if all(unequal):
            points = self.excluded(",".join(match[1] for match in unequal if match))
            return group if points is None else replace(_without_points(text, points), name=names.pop(), whole=text)
        if len(group.items) == 2:
            low, high = sorted(group.items, key=lambda item: key(item.items[0].latex) == "-\\infty")
            if key(low.items[1].latex) == "\\infty" and key(high.items[0].latex) == "-\\infty" and len(high.items) == 2:
                kind, items = low.kind[0] + high.kind[1], (low.items[0], high.items[1])
                return ParsedAnswer(text, kind=kind, items=items, name=names.pop(), whole=text)
        return group

    def group(self, text: str, kind: str, parts: list[str]) -> ParsedAnswer:
        if len(parts) > MAX_ITEMS:
            raise TooBig(f"{len(parts)} items; at most {MAX_ITEMS} are compared")
        items = tuple(self.read(part) for part in parts)
        if kind in ("list", "{}"):
            items = tuple(inner for item in items for inner in (item.items if item.kind == "list" else (item,)))
        return ParsedAnswer(text, kind=kind, items=items)

    def brackets(self, text: str) -> ParsedAnswer | None:
        around = text[0] in "([" and text[-1] in ")]" and closing(text, 0) == len(text) - 1
        if matrix := _MATRIX.fullmatch(text[1:-1].strip() if around else text):
            rows = [row for row in re.split(r"\\\\|\\hline", matrix[2]) if row.strip()]
            cells = tuple(self.group(row, "row", row.split("&")) for row in rows)
            return ParsedAnswer(text, kind="matrix", items=cells)
        inner, kind = "", ""
        if text.startswith("\\{") and text.endswith("\\}") and closing(text, 1) == len(text) - 1:
            inner, kind = text[2:-2], "{}"
        elif around:
            inner, kind = text[1:-1], text[0] + text[-1]
        if not kind:
            return None
        parts = [part for part in split(inner, re.compile(",|;")) if part.strip()]
        if kind == "()" and len(parts) == 1:
            return self.read(inner)
        return self.group(text, kind, parts) if parts or kind == "{}" else None

    def plus_minus(self, text: str) -> ParsedAnswer | None:
        signs = re.compile(r"\\(pm|mp)(?![A-Za-z])")
        if not signs.search(text):
            return None
        plus = signs.sub(lambda match: "+" if match[1] == "pm" else "-", text)
        minus = signs.sub(lambda match: "-" if match[1] == "pm" else "+", text)
        return ParsedAnswer(text, kind="list", items=(self.read(plus), self.read(minus)))

    def relation(self, text: str) -> ParsedAnswer:
        if (pair := _TUPLE_NAME.fullmatch(text)) and closing(text, text.index("(")) < text.index("="):
            names, values = split(pair[1], re.compile(",")), self.read(pair[2])
            if values.kind == "()" and len(values.items) == len(names):
                items = zip(values.items, names, strict=True)
                return replace(values, items=tuple(
                    replace(item, name=key(name), whole=f"{name}={item.latex}") for item, name in items))  # fmt: skip
        named = _NAMED.fullmatch(text)
        # `x = x^2 + 1` names no value.
        own = named and re.search(rf"(?<![A-Za-z\\]){re.escape(named[1].strip())}(?![A-Za-z(_])", named[2])
        if named and named[1].strip() and not own and not _ORDER.search(named[2]):
            last = self.chain(named[2])
            return replace(last, name=key(named[1]), whole=text)
        if (unequal := re.fullmatch(r"\s*([A-Za-z]|\\[a-z]+)\s*\\ne\s*([^=<>]+)", text)) and "," not in unequal[2]:
            return replace(_without_points(text, [self.read(unequal[2])]), name=key(unequal[1]), whole=text)
        pieces = [piece.strip() for piece in _ORDER.split(text)]
        if len(pieces) == 1 and "\\in" not in text and "\\ne" not in text and _is_quantity(text):
            return self.chain(text)
        if "=" not in text and len(pieces) in (3, 5):
            signs = {piece[:2] for piece in pieces[1::2]}
            rising = signs <= {"<", "\\l"}
            if rising or signs <= {">", "\\g"}:
                return self.interval(text, pieces if rising else pieces[::-1])
        return ParsedAnswer(text, relation=True)

    def chain(self, text: str) -> ParsedAnswer:
        r"""The last of values that are said to be equal; before `\approx` the exact one is kept beside it."""
        sides = [side for side in split(text, _APPROX) if side.strip()]
        exact = [part for side in sides[:1] for part in split(side, _EQUAL_SIGN) if part.strip()]
        if not exact:
            raise NoNumber("there is nothing beside its sign")
        values = [value for part in exact if (value := evaluate(strip_parentheses(part))) is not None]
        if any(value != values[0] for value in values):
            raise NoNumber("its two sides are different numbers")
        last = self.read(exact[-1])
        if len(sides) == 1:
            return last
        rounded = self.read(split(sides[-1], _EQUAL_SIGN)[-1])
        if last.value is not None and rounded.value is not None and not is_rounded(last.value, sides[-1]):
            raise NoNumber("its two sides are different numbers")
        plain = _NAMED.fullmatch(exact[-1] + "=0")
        return rounded if plain and last.value is None else ParsedAnswer(text, kind="approx", items=(last, rounded))

    def interval(self, text: str, pieces: list[str]) -> ParsedAnswer:
        r"""`2 < x \le 3`, `x > 3` and the like, smallest first, as an interval named after its variable."""
        if len(pieces) == 3:
            pieces = [*pieces, "<", "\\infty"] if _VARIABLE.fullmatch(pieces[2]) else ["-\\infty", "<", *pieces]
        low, first, name, second, high = pieces
        if not _VARIABLE.fullmatch(name) or not low or not high or _VARIABLE.fullmatch(low + high):
            return ParsedAnswer(text, relation=True)
        kind = ("(" if first in "<>" else "[") + (")" if second in "<>" else "]")
        return ParsedAnswer(text, kind=kind, items=(self.read(low), self.read(high)), name=key(name), whole=text)

    def leaf(self, text: str) -> ParsedAnswer:
        if (words := _WORDS.fullmatch(text)) and not LETTERS.fullmatch(text):
            return ParsedAnswer(text, word=plain_words(words[1] if words[1] is not None else words[2]))
        if text == "\\emptyset":
            return ParsedAnswer(text, kind="{}")
        if number := self.number(text):
            return number
        rest, unit, _ = split_unit(text, self.known)
        if _SENTENCE.search(rest):
            raise NoNumber("it is neither a number nor a formula")
        return ParsedAnswer(rest, unit=unit)

    def number(self, text: str) -> ParsedAnswer | None:
        rest, unit, changed = split_unit(text, self.known)
        if residue := re.fullmatch(r"(.*?)\s*\(?\s*\\pmod\s*(\d+|\{\s*\d+\s*\})\s*\)?", text):
            rest, unit, changed = residue[1], "mod " + residue[2].strip("{} "), None
            if (value := evaluate(strip_parentheses(rest))) is not None and value.denominator == 1:
                changed = value % int(unit[4:])
        value = evaluate(strip_parentheses(rest)) if changed is None else changed
        return None if value is None else ParsedAnswer(rest, value, unit)


def _without_points(text: str, points: list[ParsedAnswer]) -> ParsedAnswer:
    """The real line without some points, as the union of the intervals between them."""
    ends = [ParsedAnswer("-\\infty"), *points, ParsedAnswer("\\infty")]
    pieces = tuple(
        ParsedAnswer(f"({low.latex},{high.latex})", kind="()", items=(low, high)) for low, high in pairwise(ends)
    )
    return pieces[0] if len(pieces) == 1 else ParsedAnswer(text, kind="union", items=pieces)


def _is_quantity(text: str) -> bool:
    """Whether what stands before the first sign is a value to be named and not an equation in x, y or z."""
    sides = [part for part in split(text, _ANY_EQUAL) if part.strip()]
    if len(sides) < 2 or re.search(
        r"(?<![A-Za-z\\])[a-hj-zA-Z](?![A-Za-z])|[A-Za-z]\s*\(", sides[-1].replace("e^", "")
    ):
        return False  # the last side has variables
    first = sides[0]
    return bool(_APPLIED.fullmatch(first)) or not _UNKNOWNS.search(re.sub(r"\\[A-Za-z]+", " ", first))
