r"""Arithmetic on numbers as it stands in prose and LaTeX, read one side of an equals sign at a time.

Words behind a number are taken for its unit and left out. What is no arithmetic on numbers (letters, functions, an
expression that words go on with) is not read at all, so that nobody judges it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from stepwise.grading.exact import TooBig, evaluate

_TOKEN = re.compile(
    r"(?P<number>\d+\.\d+|\d+|(?<![\d.])\.\d+)(?P<percent>\s?(?:%|per\s?cent\b))?"
    r"|(?P<equals>(?<![<>!=:≠~])=(?![=>]))"
    r"|(?P<word>(?:(?<=\d)-(?=[a-z]{2})|(?<=[A-Za-z])/|(?<=\d)/(?=[a-z]{2}))?[A-Za-z][A-Za-z'’]*(?:-[A-Za-z]+)*\.?(?:\^[23])?)"
    r"|(?P<operator>[-+*/^])|(?P<open>[({])|(?P<close>[)}])|(?P<fraction>\\frac)|(?P<bang>!(?![=\s]))"
    r"|(?P<money>\$)|(?P<line>\n)|(?P<space>[ \t]+)|(?P<other>\\[A-Za-z]+|\S)"
)
_PAUSES = frozenset(",;:.\"'“”‘’|&?>→•])[–")
_BREAKS = frozenset(r"\implies \Rightarrow \Longrightarrow \rightarrow \to \therefore ⇒ → ∴".split())  # noqa: SIM905
_ARTICLES = frozenset({"the", "a", "an", "his", "her", "their", "its", "these", "those", "all"})
# Before an expression: with these it goes on to the left, in words.
_GOES_ON = frozenset(
    "of times by twice thrice double triple half minus plus less than from to over per mod modulo root square cube log "  # noqa: SIM905
    "ln sin cos tan gcd lcm max min choose sum product average mean quarter third sqrt point power exponent raised"
    .split()
)  # fmt: skip
_NAMED = frozenset({"total", "sum", "result", "value", "cost", "amount"})  # "a total of" and such begin anew
# Behind a number: these are no unit.
_LINKS = frozenset(
    "and or so with then that which gives give gave is are was if where when but because since implies yields for"  # noqa: SIM905
    .split()
)  # fmt: skip
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "dozen": 12}
LONGEST = 120
"""Tokens of one side, and digits of one number; more are not judged, which bounds time and the depth of brackets."""
UNITS = {
    name: kind
    for kind, names in {
        "time": "second sec minute min hour hr day week month year decade century",
        "length": "inch foot feet yard mile meter metre cm km mm centimeter kilometer ft in",
        "weight": "gram kg kilogram lb pound oz ounce ton mg",
        "volume": "liter litre ml gallon quart pint cup tablespoon teaspoon",
        "money": "dollar cent quarter dime nickel penny pennies",
        "count": "dozen pair score gross",
        "angle": "degree radian",
    }.items()
    for name in names.split()
}
"""Units, singular, with what they measure."""


@dataclass(frozen=True)
class _Token:
    """A word, number or sign of a sentence, with its place there (characters)."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Number:
    """A number as written, with what multiplies it ("million") and whether it is a percentage."""

    text: str
    percent: bool = False
    scale: int = 1

    @property
    def decimals(self) -> int:
        """Digits behind the point."""
        return len(self.text.partition(".")[2])


@dataclass(frozen=True)
class Side:
    """One side of an equation, from token `start` up to `stop`: numbers, and operators and brackets as texts.

    `units` are the words that were left out, singular.

    >>> _, left, right, _ = next(equations("3 * 4 = 13"))
    >>> left.value(percent=False, scaled=False), right.counts
    (Fraction(12, 1), False)
    """

    pieces: tuple[_Number | str, ...]
    units: frozenset[str] = frozenset()
    start: int = 0
    stop: int = 0

    @property
    def numbers(self) -> list[_Number]:
        """In order."""
        return [piece for piece in self.pieces if isinstance(piece, _Number)]

    @property
    def counts(self) -> bool:
        """Whether anything is to be computed (a sign alone is not)."""
        return self.pieces[0] == "\\frac" or any(
            piece in ("+", "-", "*", "/", "^", "\\frac") for piece in self.pieces[1:]
        )

    def value(self, percent: bool, scaled: bool, moved: int = -1) -> Fraction | None:
        """The exact value, None where there is none. `percent`: 50 % is 1/2 and not 50; `scaled`: 1.5 million is
        1,500,000 and not 1.5; number `moved` is made larger by half a unit of its last digit.
        """
        if any(len(number.text) > LONGEST for number in self.numbers):
            return None
        texts, at = [], -1
        for piece in self.pieces:
            if isinstance(piece, str):
                texts.append(piece)
                continue
            at += 1
            factor = f"*{piece.scale}" if scaled and piece.scale > 1 else ""
            factor += "/100" if percent and piece.percent else ""
            text = piece.text + "5" if at == moved else piece.text
            texts.append(f"({text}{factor})" if factor else text)
        try:
            return evaluate(" ".join(texts))
        except TooBig:
            return None


def equations(sentence: str) -> Iterator[tuple[str, Side, Side, bool]]:
    """The equations of a tidy sentence of which anything is to be computed: as written, the two sides, and whether
    another sign of equality follows on the right one.

    >>> [written for written, *_ in equations("So 3 * 4 = 12 and 12 + 1 = 14")]
    ['3 * 4 = 12']
    """
    tokens = _tokens_of(sentence)
    cuts = [i for i, token in enumerate(tokens) if token.kind == "equals"]
    for i, cut in enumerate(cuts):
        first = cuts[i - 1] + 1 if i else 0
        last = cuts[i + 1] if i + 1 < len(cuts) else len(tokens)
        left, right = _side_before(tokens, first, cut), _side_from(tokens, cut + 1, last)
        if left is None or right is None or not (left.counts or right.counts):
            continue
        if not left.counts and (left.start != first or (i == 0 and left.units)):
            continue  # "3 miles less than Reggie = 20 - 3": what is equal is a thing in words, not the number
        shown = sentence[tokens[left.start].start : tokens[right.stop - 1].end]
        yield " ".join(shown.split()), left, right, right.stop == last < len(tokens)


def _tokens_of(sentence: str) -> list[_Token]:
    """The tokens of a tidy sentence."""
    return [
        _Token("number" if match["number"] else str(match.lastgroup), match[0], match.start(), match.end())
        for match in _TOKEN.finditer(sentence)
        if match.lastgroup != "space"
    ]


def _side_before(tokens: Sequence[_Token], first: int, stop: int) -> Side | None:
    """The longest expression that ends before token `stop` and begins at `first` or later; None where it goes on to
    the left in a way that is not arithmetic on numbers.
    """
    if stop - first > LONGEST:
        return None
    for start in range(first, stop):
        side = _side_from(tokens, start, stop)
        if side is not None and side.stop == stop:
            return side if start == first or _begins(tokens, first, start) else None
    return None


def _side_from(tokens: Sequence[_Token], start: int, stop: int) -> Side | None:
    """The expression that begins at `start`, as far as it goes before `stop`; None where it goes on in a way that is
    not arithmetic on numbers.
    """
    return _Reader(tokens, start, stop).read()


class _Reader:
    """Reads one expression from left to right."""

    def __init__(self, tokens: Sequence[_Token], start: int, stop: int) -> None:
        self.tokens, self.start, self.at, self.stop = tokens, start, start, stop
        self.pieces: list[_Number | str] = []
        self.units: set[str] = set()
        self.depth, self.wants_operand = 0, True

    def read(self) -> Side | None:
        """See `_side_from`."""
        while self.at < self.stop:
            token = self.tokens[self.at]
            goes_on = self._operand(token) if self.wants_operand else self._after(token)
            if goes_on is None:
                return None
            if not goes_on:
                break
        if self.wants_operand or self.depth or len(self.pieces) > LONGEST:
            return None
        return Side(tuple(self.pieces), frozenset(self.units), self.start, self.at)

    # Each of the following takes what stands here: True where the expression goes on after it, False where it has ended
    # before, None where it goes on in a way that is not arithmetic on numbers.

    def _operand(self, token: _Token) -> bool | None:
        if token.kind == "money":
            return self._money()
        if token.kind == "number":
            text = re.sub(r"[^\d.].*", "", token.text)
            return self._take(_Number(text, text != token.text), wants_operand=False)
        begins = not self.pieces or self.pieces[-1] in ("(", "{")
        sign = token.text in ("-", "+") and begins and self._glued(self.at + 1)
        if token.kind in ("open", "fraction") or (sign and self._kind(1) in ("number", "money", "open")):
            return self._take(token.text)
        return None

    def _after(self, token: _Token) -> bool | None:
        """What may follow a number or a closed bracket."""
        glued = self._glued(self.at)
        if token.kind == "money":
            return self._money()
        if token.kind == "word":
            return self._word(token, glued)
        if token.kind == "operator":
            dash = token.text == "-" and self._kind(1) == "word" and len(self.tokens[self.at + 1].text) > 1
            return False if dash else self._take(token.text)
        if (token.kind == "close" and self.depth) or (token.kind == "bang" and glued):
            return self._take(token.text, wants_operand=False)
        if token.kind == "fraction" or (token.kind == "open" and (glued or self.pieces[-1] == "}")):
            return self._take(token.text)
        if token.kind == "open":  # a remark in brackets, or a factor: then it is not clear what is meant
            return None if self._kind(1) in ("number", "operator", "open") else False
        return False if self._ends(token, glued) else None

    def _word(self, token: _Token, glued: bool) -> bool | None:
        words, following = _units(self.tokens, self.at, self.stop)
        if not words:
            return None if self.depth else False
        if glued and token.text[0].isalpha() and len(words[0]) < 4 and words[0] not in UNITS:
            return None  # 2ab
        if len(words[0]) < 2 and words[0] not in "aAI":
            return None
        if words[0] in SCALES and isinstance(self.pieces[-1], _Number):
            self.pieces[-1] = replace(self.pieces[-1], scale=SCALES[words[0]])
        self.units.update(words)
        self.at = following
        return bool(self.depth) or (following < self.stop and self.tokens[following].text in ("+", "-", "*", "/"))

    def _ends(self, token: _Token, glued: bool) -> bool:
        """Whether an expression is whole before `token`."""
        if token.kind == "other":
            tight = glued and self._glued(self.at + 1)
            tight = tight and (self._kind(1) == "number" or self.tokens[self.at + 1].text.startswith("\\"))
            return (token.text in _PAUSES and not tight) or token.text in _BREAKS
        if token.kind == "number":  # "350 000" is one number
            return len(token.text) != 3
        return token.kind in ("line", "equals", "close", "bang")

    def _money(self) -> bool:
        self.units.add("dollar")
        self.at += 1
        return True

    def _take(self, piece: _Number | str, *, wants_operand: bool = True) -> bool:
        self.depth += (piece in ("(", "{")) - (piece in (")", "}"))
        self.pieces.append(piece)
        self.wants_operand = wants_operand
        self.at += 1
        return True

    def _glued(self, at: int) -> bool:
        """Whether token `at` follows the one before it without a space."""
        return self.start < at < len(self.tokens) and self.tokens[at - 1].end == self.tokens[at].start

    def _kind(self, ahead: int) -> str:
        return self.tokens[self.at + ahead].kind if self.at + ahead < len(self.tokens) else ""


def _units(tokens: Sequence[_Token], at: int, stop: int) -> tuple[list[str], int]:
    """Up to four words behind a number as units (singular), and where they end; none where a sentence goes on."""
    words: list[str] = []
    last = min(stop, at + 4)
    while at < last and tokens[at].kind == "word" and tokens[at].text.lower() not in _LINKS:
        words.extend(_singular(word) for word in re.findall(r"[A-Za-z]+", tokens[at].text))
        at += 1
    return words, at


def _singular(word: str) -> str:
    return word if len(word) < 4 else word.lower().removesuffix("es" if word.endswith("ches") else "s")


def _begins(tokens: Sequence[_Token], first: int, start: int) -> bool:
    """Whether an expression can begin at `start`, behind what stands before it."""
    before, here = tokens[start - 1], tokens[start]
    apart = before.end < here.start
    if before.kind in ("line", "equals", "money"):
        return True
    if before.kind == "open":  # a remark in brackets
        return before.text == "(" and (start - 1 == first or tokens[start - 2].end < before.start)
    if before.kind == "number":
        return apart and here.kind == "number" and len(here.text) != 3
    if before.kind == "other":
        return (before.text in _PAUSES and apart) or before.text in _BREAKS
    if before.kind != "word" or not apart or len(before.text.strip(".")) < 2:
        return False
    words, at = [before.text], start - 2
    while at >= first and tokens[at].kind == "word" and len(words) < 4:
        words.append(tokens[at].text)
        at -= 1
    words = [word.lower().strip(".") for word in words]
    stopped_by = tokens[at].kind if at >= first else ""
    if stopped_by in ("operator", "fraction") or (words[0] == "and" and stopped_by == "number"):
        return False  # "cost * the 3 + 4", "1 hour and 20 minutes"
    while len(words) > 1 and words[0] in _ARTICLES:
        words.pop(0)
    return words[0] not in _GOES_ON or (words[0] == "of" and words[1:2] != [] and words[1] in _NAMED)
