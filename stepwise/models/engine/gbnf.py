"""What grammars of JSON are made of, in GBNF: characters, numbers within bounds, texts of a format, any value."""

from __future__ import annotations

from stepwise.errors import DataError

MAX_LENGTH = 200
"""Characters of a string without `maxLength`."""
CHAR = (
    r"[\x20-\x21\x23-\x5B\x5D-\x7E\u00A0-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF] | "
    # \b and \f are left out: no text needs them, and \boxed and \frac begin like them
    r'"\\" (["\\/nrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))'
)
DECIMALS = 6
_DATE = '[0-9] [0-9] [0-9] [1-9] "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9]'
_CLOCK = '"T" [0-9]{1,2} "H" ([0-9]{1,2} "M")? ([0-9]{1,2} "S")?'
_HEX = "[0-9a-f]"
_BYTE = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9]? [0-9])'
_LABELS = '([a-z] [a-z0-9]{0,15} "."){1,3} [a-z]{2,6}'
FORMATS = {  # what stands between the quotes, with its fewest and most characters
    "date": (_DATE, 10, 10),
    "time": (_TIME, 8, 8),
    "date-time": (f'{_DATE} "T" {_TIME} "Z"', 20, 20),
    "duration": (f'"P" ([0-9]{{1,4}} "D" ({_CLOCK})? | {_CLOCK})', 3, 16),
    "uuid": (' "-" '.join(f"{_HEX}{{{n}}}" for n in (8, 4, 4, 4, 12)), 36, 36),
    "uri": (f'"http" "s"? "://" {_LABELS} ("/" [A-Za-z0-9_~-]{{1,20}}){{0,4}} "/"?', 11, 151),
    "hostname": (_LABELS, 4, 57),
    "email": (f'[a-z] [a-z0-9]{{0,15}} "@" {_LABELS}', 6, 74),
    "ipv4": (' "." '.join([_BYTE] * 4), 7, 15),
    "ipv6": (' ":" '.join([f"{_HEX}{{4}}"] * 8), 39, 39),
    "base64": ("([A-Za-z0-9+/]{4}){0,50}", 0, 200),
}
ANY_TEXT = ("binary", "password", "path", "file-path", "directory-path")  # formats that no text breaks


def literal(text: str) -> str:
    r"""A GBNF terminal that stands for exactly `text`.

    >>> print(literal('say "x"'))
    "say \"x\""
    """
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'


def integers(low: int, high: int) -> str:
    """A GBNF expression for the decimal integers in low..high, without leading zeros.

    >>> integers(0, 12)
    '[0-9] | "1" ([0-2])'
    """
    if low > high:
        raise DataError(f"no integer lies in {low}..{high}; give bounds that leave one")
    parts = [f'"-" ({integers(max(1, -high), -low)})'] if low < 0 else []
    for digits in range(len(str(max(low, 0))), len(str(high)) + 1) if high >= 0 else ():
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        parts.append(_same_length(str(first), str(min(high, 10**digits - 1))))
    return " | ".join(parts)


def _same_length(low: str, high: str) -> str:
    """The numbers between two of the same number of digits, digit by digit."""
    if not low:
        return '""'
    rest = len(low) - 1
    zeros, nines, first, last = "0" * rest, "9" * rest, int(low[0]), int(high[0])
    if (low[1:], high[1:]) == (zeros, nines):
        return f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else "")
    if first == last:
        return f'"{first}" ({_same_length(low[1:], high[1:])})'
    parts = [f'"{first}" ({_same_length(low[1:], nines)})']
    if last - first > 1:
        parts.append(f"[{first + 1}-{last - 1}] [0-9]{{{rest}}}")
    return " | ".join([*parts, f'"{last}" ({_same_length(zeros, high[1:])})'])


def decimals(low: int, high: int, open_low: bool, open_high: bool) -> str:
    """Non-negative decimals between two integers: those with a whole part in between, and the ends where they
    belong.

    >>> decimals(0, 1, False, False)
    '([0-0]) ("." [0-9]{1,6})? | "1" ("." "0"{1,6})?'
    """
    fraction = f'("." [0-9]{{1,{DECIMALS}}})?'
    parts = []
    start = low
    if open_low:
        if low < high:
            parts.append(f'"{low}." [0-9]{{0,{DECIMALS - 1}}} [1-9]')
        start += 1
    if start <= high - 1:
        parts.append(f"({integers(start, high - 1)}) {fraction}")
    if not open_high and not (open_low and low == high):
        parts.append(f'"{high}" ("." "0"{{1,{DECIMALS}}})?')
    return " | ".join(parts)


def object_grammar(depth: int = 4) -> str:
    """The grammar of any JSON object up to `depth` levels deep, of bounded strings and numbers of members: what APIs
    call JSON mode.

    >>> object_grammar().splitlines()[0]
    'root ::= object0'
    """
    return "\n".join(["root ::= object0", f"char ::= {CHAR}", 'space ::= " "?', *any_value(depth)])


def any_value(depth: int) -> list[str]:
    """The rules of any JSON value, `value0`, and of any object, `object0`.

    >>> any_value(1)[-1]
    'array0 ::= "[" (value0 ("," space value0){0,31})? "]"'
    """
    rules = [
        rf'string ::= "\"" char{{0,{2 * MAX_LENGTH}}} "\""',
        'number ::= "-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
        'scalar ::= string | number | "true" | "false" | "null"',
    ]
    for level in range(depth):
        inner = f" | object{level + 1} | array{level + 1}" if level + 1 < depth else ""
        rules += [
            f"value{level} ::= scalar{inner}",
            f'pair{level} ::= string ":" space value{level}',
            f'object{level} ::= "{{" (pair{level} ("," space pair{level}){{0,31}})? "}}"',
            f'array{level} ::= "[" (value{level} ("," space value{level}){{0,31}})? "]"',
        ]
    return rules
