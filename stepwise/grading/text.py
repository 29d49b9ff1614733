r"""From an answer to one spelling of it; and the caps on what is looked at further."""

from __future__ import annotations

import re
from typing import Literal

from stepwise.grading.exact import MAX_EXPONENT, TooBig, evaluate
from stepwise.grading.style import plain_style

MAX_LENGTH = 1_000
MAX_DIGITS = 500
MAX_NESTING = 20
MAX_POWERS = 64
MAX_TOWER = 4

Role = Literal["prediction", "gold"]

_TABLE = str.maketrans(
    dict.fromkeys("−–—‐‑﹣－", "-")
    | dict.fromkeys("\u00a0\u2009\u202f\u2003\u2002\t\r\n\f\v", " ")
    | {chr(0xFF10 + i): str(i) for i in range(10)}
    | dict(zip("（），．：％＄’", "(),.:%$'", strict=True))
    | {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset "}
    | {"≈": r"\approx ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "′": "'", "∖": r"\setminus "}
    | {"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil "}
    | {"π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "∞": r"\infty ", "°": r"^\circ "}
    | {char: rf"\frac{{{top}}}{{{low}}}" for char, top, low in ("½12", "⅓13", "⅔23", "¼14", "¾34", "⅕15", "⅛18")}
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "₀₁₂₃₄₅₆₇₈₉₋₊ₙ"
_PLAIN_DIGITS = str.maketrans(_RAISED + _LOWERED, "0123456789-+n" * 2)
_SMALL_DIGITS = re.compile(rf"([{_RAISED}]+)|[{_LOWERED}]+")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\overline\s*(?:\{\s*(\d+)\s*\}|(\d))")
_THOUSANDS_BEHIND = re.compile(r"(?<==)\s*[-$]?\s*\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")
# `$3$,$5$`: several formulas, each in its own dollars; `$3$ cm`: one, and words.
_MATH_PARTS = re.compile(
    r"\s*\$[^$]+\$(?:\s*(?:,|;|and|or|,\s*and)?\s*\$[^$]+\$)+[\s.]*|^\s*\$[^$]*[^$\s]\$\s+[A-Za-z][^$]*$"
)
# `0.1666...`: what stands there three times or more goes on for ever.
_DOTS = re.compile(
    r"(?<![\d.])(\d*\.\d*?)(\d{1,6}?)\2{2,}\s*(?:\.{3}|…|\\l?dots(?![A-Za-z])|\\cdots(?![A-Za-z]))(?=\W*$)"
)
_LEADING = re.compile(r"^(?:\s*(?:=(?!=)|\\(?:approx|therefore|implies|to|(?:R|r|Longr)ightarrow)(?![A-Za-z])"
                      r"|(?:\\text\s*\{\s*)?(?i:approximately|approx\.|about|exactly)(?:\s*\}|\s)))+\s*")  # fmt: skip
_SAYS = r"(?i:(?:the )?(?:final |correct )?answer(?: is|:))"
_IN_PREDICTIONS = (
    (re.compile(rf"\\text\s*\{{\s*{_SAYS}\s*([^{{}}]*)\}}"), r"\\text{\1}"),
    (re.compile(r"\\text\s*\{\s*\}"), " "),
    (re.compile(rf"^\s*(?:{_SAYS}\s*:?\s*|(?!Option|Choice)[A-Z][A-Za-z ]{{2,}}:\s+)(?=\S+(?:\s+\S+){{0,2}}\s*$)"), ""),
    (re.compile(r"^\s*(?:\"|“|``)(.*)(?:\"|”|'')\s*$"), r"\1"),
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"),
             ("**", "**"), ("`", "`"), ("{", "}"))  # fmt: skip
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])", ""),
        # Thousands separators come before the spaces that some of them are made of.
        (r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3}(?!\d))", ""),
        (r"\\hspace\*?\{[^{}]*\}|\\text\s*\{\s*\}", " "),
        (r"(?i)\bper\s+cent\b", "percent"),
        (r"^\s*(?i:negative|minus)\s+(?=[\d.\\])", "-"),
        (r"\\pounds(?![A-Za-z])|\\textsterling(?![A-Za-z])", "£"),
        (r"\\(?:euro|texteuro)(?![A-Za-z])", "€"),
        (r"\\textdollar(?![A-Za-z])", "$"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"(?<!\\)\\!", ""),
        (r"(?<!\\)\\[,;:> ]|\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])|~", " "),
        (r"(?:\\text\s*\{\s*)?\(\s*(?:\\text\s*\{\s*)?\\?mod\s*\}?\s*(\d+)\s*\)\s*\}?", r"\\pmod{\1}"),
        (r"\^\s*([-+]\s*\d+|\d\d+)(?![\d.])", r"^{\1}"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)|(?<=\d)\s+[xX]\s+(?=\d)", r"\\times "),
        (r"(\d)\s*(?:\\text\s*\{\s*)?\band\s+(?:an?|one)[- ]half\b\s*\}?", r"\1\\frac{1}{2}"),
        (r"(\d)\s*(?:\\text\s*\{\s*)?\band\s+(?:an?|one)[- ]third\b\s*\}?", r"\1\\frac{1}{3}"),
        (r"(\d)\s*(?:\\text\s*\{\s*)?\band\s+(?:an?|one)[- ](?:quarter|fourth)\b\s*\}?", r"\1\\frac{1}{4}"),
        (r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|ex|em|mm|cm|in)\s*\]|\\(?:tabularnewline|cr)(?![A-Za-z])", r"\\\\"),
        (r"\\mathbb\s*([A-Z])|\\(?:Bbb|mathds)\s*\{?([A-Z])\}?", r"\\mathbb{\1\2}"),
        (r"\\bmod(?![A-Za-z])", r"\\mod "),
        (
            r"\\frac\s*\{\s*\\text\s*\{\s*([A-Za-z]+)\s*\}\s*\}\s*\{\s*\\text\s*\{\s*([A-Za-z]+)\s*\}\s*\}",
            r"\\text{\1/\2}",
        ),
        (r"_\s*\{\s*\\text\s*\{\s*([A-Za-z]+)\s*\}\s*\}|_\s*\\text\s*\{\s*([A-Za-z]+)\s*\}", r"_{\1\2}"),
        (
            r"(?<!_\{)\\(?:mathrm|text)\s*\{\s*(gcd|lcm|max|mod|sgn|floor|ceil|min(?=\s*\}\s*(?:[(_]|\\[{(l])))\s*\}",
            r"\\\1 ",
        ),
        (r"\\(?:simeq|approxeq|doteq)(?![A-Za-z])", r"\\approx"),
        (r"\\[lr]vert(?![A-Za-z])", "|"),
        (r"\\text\{\s*\\?([$%])\s*\}", r"\1"),
        (r"\\log\s*_\s*(?:\{\s*e\s*\}|e)(?![A-Za-z])", r"\\ln "),
        (r"\\operatorname\*?\s*\{([A-Za-z]+)\}", r"\\\1 "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\^\s*(?:\\(?:circ|degree)(?![A-Za-z])|\{\s*\\(?:circ|degree)\s*\})|\\degree(?![A-Za-z])", "°"),
        (r"(?<!\\)\\([%$#]|(?=\d))", r"\1"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\lbrack(?![A-Za-z])", "["),
        (r"\\rbrack(?![A-Za-z])", "]"),
        (r"\\(?:leq|leqslant)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq(?![A-Za-z])", r"\\ne "),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\infin(?![A-Za-z])", r"\\infty"),
        (r"\+\s*(?=\\infty)", ""),
        (r"\*\*", "^"),
        (r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
        (r"(?:√|(?<![A-Za-z\\])sqrt)\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![A-Za-z\\])sqrt\s*(?=[\d{])", r"\\sqrt "),
        (r"(?<![A-Za-z\\])(pi|arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
    )
]
_CLAUSE = (
    r"(?:for|where|when(?:ever)?)\b[\s}]*(?:\\text|all\b|any\b|every\b|each\b"
    r"|(?:some\b|an?\b)?\s*(?:positive |nonnegative )?integers?\b"
    r"|\$?[b-zB-Z](?![A-Za-z])|\\)|since\b|because\b|given\b|provided\b|\\forall"
)
_CONDITION = re.compile(
    rf"[\s,;]*(?:\(|\\text\s*\{{\s*,?\s*\(?)?\s*(?:{_CLAUSE}).*"
    r"|\s+\(\s*[A-Za-z]\s*(?:<|>|\\(?:le|ge|ne)(?![A-Za-z])).*\)"
    r"|[\s,;(]+[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\\in\s*\\mathbb\{[NZQ]\}.*"
)
_ARGUMENT = re.compile(r"\s*(\\[A-Za-z]+|[^\s{}\\])")
_EXPONENT = re.compile(r"[-+]*(?:\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z])")
_OPEN = "([{"


class Unreadable(Exception):
    """An answer cannot be read, or is over a cap. Carries whose answer it is and why.

    >>> try:
    ...     clean("9" * 5000, "gold")
    ... except Unreadable as error:
    ...     print(error.role, error.reason)
    gold 5000 characters; at most 1000 are read
    """

    def __init__(self, role: Role, reason: str) -> None:
        super().__init__(role, reason)
        self.role: Role = role
        self.reason = reason


def clean(answer: str, role: Role) -> str:
    r"""One spelling of an answer, with every cap checked. Raises Unreadable.

    >>> clean(r"$\dfrac12$", "gold"), clean("1,000", "gold")
    ('\\frac{1}{2}', '1,000')
    """
    if len(answer) > MAX_LENGTH:
        raise Unreadable(role, f"{len(answer)} characters; at most {MAX_LENGTH} are read")
    text = _SMALL_DIGITS.sub(_full_size, _DOTS.sub(r"\1\\overline{\2}", answer))
    text = plain_style(_unwrap(_MATH_PARTS.sub(_without_dollars, text).translate(_TABLE)))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    for pattern, replacement in _IN_PREDICTIONS if role == "prediction" else ():
        text = pattern.sub(replacement, text)
    text = _LEADING.sub("", re.sub(r"\s+", " ", _unwrap(text)))
    text = _THOUSANDS_BEHIND.sub(lambda match: match[0].replace(",", ""), text)
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    _check_caps(text, role)
    text = _REPEATING.sub(_repeating, text)
    for command, count in (("\\frac", 2), ("\\binom", 2), ("\\sqrt", 1)):
        text = _brace_arguments(text, command, count)
    _check_caps(text, role)
    return text


def key(text: str) -> str:
    """What two cleaned answers are compared by first: the text without spaces and without brackets around all of it.

    A space between digits stays: "1 1/2" is not "11/2".

    >>> key("( x + 1 )"), key("1 1/2")
    ('x+1', '1 1/2')
    """
    return re.sub(r"(?<!\d)\s+|\s+(?![\d\s])", "", strip_parentheses(text))


def strip_parentheses(text: str) -> str:
    """`(x)` to `x`, as long as the brackets belong together and hold one thing.

    >>> strip_parentheses("((x + 1))"), strip_parentheses("(1, 2)")
    ('x + 1', '(1, 2)')
    """
    text = text.strip()
    while text.startswith("(") and text.endswith(")") and closing(text, 0) == len(text) - 1 and "," not in text:
        text = text[1:-1].strip()
    return text


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    r"""`text` cut at the separators that stand outside of all brackets (those of `\text{ and }` are their own).

    >>> split("(1, 2), 3", re.compile(","))
    ['(1, 2)', ' 3']
    """
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


def without_condition(text: str) -> tuple[str, str]:
    r"""An answer and the condition behind it ("for x > 0"); "" where it says nothing ("for all k", "(since ...)").

    >>> without_condition("x^2 for x > 0"), without_condition("2n for all integers n")
    (('x^2', 'forx>0'), ('2n', ''))
    """
    at, depth = 0, 0
    while at < len(text):
        clause = _CONDITION.match(text, at) if depth == 0 and at else None
        if clause and text[:at].strip() and not re.search(r"remainder", clause[0]):
            trivial = re.search(r"\\mathbb\{[ZN]\}|integer|since|because", clause[0]) and not re.search(
                r"even|odd", clause[0]
            )
            return text[:at].rstrip(" ,;"), "" if trivial else key(clause[0].strip(" ,;"))
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    return text, ""


def closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start` (any kind closes any kind: intervals), -1 if none does.

    >>> closing("f(g(x)) + 1", 1)
    6
    """
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return -1


def _full_size(match: re.Match[str]) -> str:
    """Raised or lowered digits, as many as stand together, as one exponent or index."""
    return ("^{" if match[1] else "_{") + match[0].translate(_PLAIN_DIGITS) + "}"


def _without_dollars(match: re.Match[str]) -> str:
    return match[0].replace("$", " ") if match[0].count("$") % 2 == 0 else match[0]


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as the fraction that it is."""
    whole, fixed, period = match[1], match[2], match[3] or match[4]
    bottom = (10 ** len(period) - 1) * 10 ** len(fixed)
    top = int(whole + fixed + period) - int(whole + fixed or "0")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _unwrap(text: str) -> str:
    """Without the math delimiters, emphasis and full stops around all of it."""
    before = None
    while text != before:
        before = text
        text = text.strip().rstrip(".,;").rstrip("\\ ")
        for start, end in _WRAPPERS:
            inner = text[len(start) : len(text) - len(end)]
            if len(text) > len(start) + len(end) and text.startswith(start) and text.endswith(end):
                if start == "{" and (closing(text, 0) != len(text) - 1 or text[-2] == "\\"):
                    continue
                text = text if start in inner and start != "{" else inner
    return text


def _brace_arguments(text: str, command: str, count: int) -> str:
    r"""`\frac12`, `\frac9{19}`, `\sqrt2` with braces around each argument; inner ones (the right ones) first."""
    at = len(text)
    while (at := text.rfind(command, 0, at)) >= 0:
        end = at + len(command)
        if text[end : end + 1].isalpha():
            continue
        index, arguments = "", []
        if command == "\\sqrt" and (root := re.match(r"\s*\[[^\[\]]*\]", text[end:])):
            index, end = root[0].strip(), end + root.end()
        for _ in range(count):
            if (skip := re.match(r"\s*\{", text[end:])) and (close := closing(text, end + skip.end() - 1)) >= 0:
                arguments.append(text[end + skip.end() : close])
                end = close + 1
            elif single := _ARGUMENT.match(text, end):
                arguments.append(single[1])
                end = single.end()
        if len(arguments) == count:
            braced = "".join("{" + argument.strip() + "}" for argument in arguments)
            text = text[:at] + command + index + braced + text[end:]
    return text


def _check_caps(text: str, role: Role) -> None:
    """Length, digits, nesting, number of powers, exponent towers. Raises Unreadable naming the cap."""
    if len(text) > 4 * MAX_LENGTH:
        raise Unreadable(role, f"{len(text)} characters once normalised; at most {4 * MAX_LENGTH} are read")
    if digits := re.search(rf"\d{{{MAX_DIGITS + 1}}}", text):
        raise Unreadable(role, f"a number of more than {MAX_DIGITS} digits ({digits[0][:12]}...)")
    depth = deepest = 0
    for char in text:
        depth = max(0, depth + (char in _OPEN) - (char in ")]}"))
        deepest = max(deepest, depth)
    if deepest > MAX_NESTING:
        raise Unreadable(role, f"brackets nested {deepest} deep; at most {MAX_NESTING}")
    if text.count("^") > MAX_POWERS:
        raise Unreadable(role, f"{text.count('^')} powers; at most {MAX_POWERS}")
    if _tower(text, role) > MAX_TOWER:
        raise Unreadable(role, f"exponents nested over {MAX_TOWER} deep")


def _tower(text: str, role: Role) -> int:
    """How deep exponents stand on exponents. Raises Unreadable where one of them is a number over the cap."""
    height, at = 0, text.find("^")
    while at >= 0:
        end = _exponent_end(text, at + 1)
        exponent = text[at + 1 : end]
        height = max(height, 1 + _tower(exponent, role))
        if height > MAX_TOWER:
            return height
        try:
            value = evaluate(exponent)
        except TooBig as error:
            raise Unreadable(role, f"{error} in the exponent {exponent[:40]!r}") from None
        if value is not None and abs(value) > MAX_EXPONENT:
            raise Unreadable(role, f"the exponent {exponent[:40]!r}; at most {MAX_EXPONENT}")
        at = text.find("^", end)
    return height


def _exponent_end(text: str, start: int) -> int:
    """Where the exponent that starts at `start` ends, with the powers on top of it (`9^9^9` groups to the right)."""
    start += len(text[start:]) - len(text[start:].lstrip(" "))
    if text[start : start + 1] and text[start] in _OPEN:
        close = closing(text, start)
        end = len(text) if close < 0 else close + 1
    else:
        plain = _EXPONENT.match(text, start)
        end = plain.end() if plain else start + 1
    return _exponent_end(text, end + 1) if text[end : end + 1] == "^" else end
