"""JSON schema to GBNF, with every part bounded, so that generation under it ends and `json.loads` takes the result.

Where a schema leaves a length open, the defaults below are put in. All declared properties are written, in their
order, as the strict schema modes of APIs do. What cannot be held to (recursion, `pattern`, `multipleOf`, `uniqueItems`,
unknown formats) is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepwise.errors import DataError

_MAX_LENGTH = 200
"""Characters of a string without `maxLength`."""
_MAX_ITEMS = 8
"""Items of an array without `maxItems`."""
_MAX_ENTRIES = 4
"""Entries of a map (`additionalProperties`) without `maxProperties`."""
_MAX_KEY = 40
"""Characters of a key of a map."""
_MAX_INTEGER = 10**9 - 1
"""Size of a number without bounds."""
_DECIMALS = 6
_CHAR = (
    r"[\x20-\x21\x23-\x5B\x5D-\x7E\u00A0-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF] | "
    # \b and \f are left out: no text needs them, and \boxed and \frac begin like them
    r'"\\" (["\\/nrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))'
)
_SEPARATOR = ' "," space '
_CHAR_BYTES = 6  # \u0041; no character has more in UTF-8
_DATE = '[0-9] [0-9] [0-9] [1-9] "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME = '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9]'
_HEX = "[0-9a-f]"
_FORMATS = {
    "date": (_DATE, 10),
    "time": (_TIME, 8),
    "date-time": (f'{_DATE} "T" {_TIME} "Z"', 20),
    "uuid": (' "-" '.join(f"{_HEX}{{{n}}}" for n in (8, 4, 4, 4, 12)), 36),
}
_FIXED = {"null": ('"null"', 4), "boolean": ('"true" | "false"', 5)}
_REFUSED = ("pattern", "multipleOf", "uniqueItems", "not", "if", "patternProperties", "dependentSchemas", "contains")


@dataclass(frozen=True)
class BoundedGrammar:
    """`gbnf` with the rule `root`; its longest text has `max_bytes` bytes, so at most `max_tokens` tokens with
    the end.
    """

    gbnf: str
    max_bytes: int

    @property
    def max_tokens(self) -> int:
        """Tokens that always suffice: one per byte, and the end of the message."""
        return self.max_bytes + 1


def schema_grammar(schema: Mapping[str, Any]) -> BoundedGrammar:
    """The grammar of a JSON schema. Raises DataError that names the place in the schema and the remedy.

    Example:
        >>> schema_grammar({"enum": ["yes", "no"]}).max_tokens  # a byte each of "yes" with its quotes, and the end
        6
    """
    writer = SchemaRules(schema)
    name, size = writer.visit(schema, "$")
    return BoundedGrammar("\n".join([f"root ::= {name}", *writer.lines()]), size)


def object_grammar(depth: int = 4) -> str:
    """The grammar of any JSON object up to `depth` levels deep, of bounded strings and numbers of members: what APIs
    call JSON mode.

    >>> object_grammar().splitlines()[0]
    'root ::= object0'
    """
    rules = [
        "root ::= object0",
        f"char ::= {_CHAR}",
        'space ::= " "?',
        rf'string ::= "\"" char{{0,{2 * _MAX_LENGTH}}} "\""',
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
    return "\n".join(rules)


def literal(text: str) -> str:
    r"""A GBNF terminal that stands for exactly `text`.

    >>> print(literal('say "x"'))
    "say \"x\""
    """
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'


def _integers(low: int, high: int) -> str:
    """A GBNF expression for the decimal integers in low..high, without leading zeros."""
    if low > high:
        raise DataError(f"no integer lies in {low}..{high}; give bounds that leave one")
    parts = [f'"-" ({_integers(max(1, -high), -low)})'] if low < 0 else []
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


class SchemaRules:
    """Walks a schema; each visit gives the name of a rule and the most bytes it can produce.

    `root` is where `$ref`s lead; it may be changed between visits, to put rules of several schemas into one grammar.
    """

    def __init__(self, root: Mapping[str, Any] | None = None):
        self.root, self.rules = root or {}, list[str]()
        self._open: list[str] = []

    def lines(self) -> list[str]:
        """All rules so far, with those that they rest on; a grammar needs a rule `root` beside them."""
        return [f"char ::= {_CHAR}", 'space ::= " "?', *self.rules]

    def rule(self, body: str, size: int) -> tuple[str, int]:
        """Adds a rule; gives its name, and `size` as it is."""
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name} ::= {body}")
        return name, size

    def _refuse(self, place: str, problem: str, remedy: str) -> DataError:
        return DataError(f"JSON schema at {place}: {problem}; {remedy}")

    def visit(self, schema: Any, place: str) -> tuple[str, int]:
        """The rule of a schema, and its size; `place` is its name in errors, DataErrors where it cannot be held to."""
        if schema is True or schema == {}:
            return self._union([{"type": t} for t in ("string", "number", "boolean", "null")], place)
        if not isinstance(schema, Mapping):
            raise self._refuse(place, f"{schema!r} is not a schema", "give an object")
        for key in _REFUSED:
            if schema.get(key):
                raise self._refuse(
                    place, f"{key!r} cannot be held to by a bounded grammar", "leave it out and check the result"
                )
        if "$ref" in schema:
            return self._reference(schema["$ref"], place)
        if "const" in schema or "enum" in schema:
            values = [json.dumps(v, ensure_ascii=False) for v in schema.get("enum", [schema.get("const")])]
            return self.rule(" | ".join(map(literal, values)), max(len(v.encode()) for v in values))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self._union(schema[key], place)
        if "allOf" in schema:
            if len(schema["allOf"]) != 1:
                raise self._refuse(place, "'allOf' of several schemas is not supported", "merge them into one object")
            return self.visit(schema["allOf"][0], place)
        kind = schema.get("type", "object" if "properties" in schema else "array" if "items" in schema else "")
        if isinstance(kind, list):
            return self._union([{**schema, "type": t} for t in kind], place)
        if kind in _FIXED:
            return self.rule(*_FIXED[kind])
        visitor = getattr(self, f"_visit_{kind}", None)
        if visitor is None:
            raise self._refuse(
                place, f"type {kind!r} is unknown", "use string, number, integer, boolean, null, array or object"
            )
        result: tuple[str, int] = visitor(schema, place)
        return result

    def _union(self, schemas: list[Any], place: str) -> tuple[str, int]:
        parts = [self.visit(s, f"{place}|{i}") for i, s in enumerate(schemas)]
        return self.rule(" | ".join(name for name, _ in parts), max(size for _, size in parts))

    def _reference(self, ref: str, place: str) -> tuple[str, int]:
        if not ref.startswith("#"):
            raise self._refuse(place, f"$ref {ref!r} points outside the schema", "put the definition under $defs")
        if ref in self._open:
            raise self._refuse(
                place, f"{ref!r} refers to itself, so the result has no longest form", "unroll it to a fixed depth"
            )
        target: Any = self.root
        for part in ref.lstrip("#").split("/")[1:]:
            try:
                target = target[part.replace("~1", "/").replace("~0", "~")]
            except (KeyError, TypeError):
                raise self._refuse(place, f"$ref {ref!r} leads nowhere", "define it under $defs") from None
        self._open.append(ref)
        result = self.visit(target, ref)
        self._open.pop()
        return result

    def _visit_string(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        form = schema.get("format")
        if form is not None:
            if form not in _FORMATS:
                raise self._refuse(place, f"format {form!r} is not supported", f"use one of {', '.join(_FORMATS)}")
            body, size = _FORMATS[form]
            return self.rule(rf'"\"" {body} "\""', size + 2)
        min_count = int(schema.get("minLength", 0))
        max_count = int(schema.get("maxLength", max(_MAX_LENGTH, min_count)))
        return self.rule(rf'"\"" char{{{min_count},{max_count}}} "\""', max_count * _CHAR_BYTES + 2)

    def _bounds(self, schema: Mapping[str, Any], place: str, *, whole: bool) -> tuple[int, int, bool, bool]:
        """(low, high) as integers inside the bounds, and whether each is exclusive."""
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        low, high, open_low, open_high = max(low, above), min(high, below), above >= low, below <= high
        # Where only one bound is given, the other lies as far from it as the defaults lie from 0.
        lowest = math.ceil(low) if low > -math.inf else min(-_MAX_INTEGER, math.floor(min(high, 0)) - _MAX_INTEGER)
        highest = math.floor(high) if high < math.inf else max(_MAX_INTEGER, lowest + _MAX_INTEGER)
        if whole:  # an exclusive bound that is an integer itself is stepped over
            lowest, highest = lowest + (open_low and lowest == low), highest - (open_high and highest == high)
        if lowest > highest or (not whole and lowest == highest and (open_low or open_high)):
            raise self._refuse(
                place, f"no number is written between {low} and {high} here", "widen the bounds to integers"
            )
        return lowest, highest, open_low and lowest == low, open_high and highest == high

    def _visit_integer(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        low, high, _, _ = self._bounds(schema, place, whole=True)
        return self.rule(_integers(low, high), max(len(str(low)), len(str(high))))

    def _visit_number(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        low, high, open_low, open_high = self._bounds(schema, place, whole=False)
        parts = []
        if low < 0:  # mirrored: 0..-low, or -high..-low
            inner, open_inner = (-high, open_high) if high < 0 else (0, True)
            parts.append(f'"-" ({_decimals(inner, -low, open_inner, open_low)})')
        if high >= 0 and not (high == 0 and open_high):
            parts.append(_decimals(max(low, 0), high, open_low and low >= 0, open_high))
        return self.rule(" | ".join(parts), max(len(str(low)), len(str(high))) + 1 + _DECIMALS)

    def _visit_array(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        if fixed := schema.get("prefixItems"):
            parts = [self.visit(item, f"{place}[{i}]") for i, item in enumerate(fixed)]
            names = _SEPARATOR.join(name for name, _ in parts)
            return self.rule(f'"[" {names} "]"', sum(size for _, size in parts) + 2 * len(parts))
        min_count = int(schema.get("minItems", 0))
        max_count = int(schema.get("maxItems", max(_MAX_ITEMS, min_count)))
        return self._repeated("[]", *self.visit(schema.get("items", True), f"{place}[]"), min_count, max_count)

    def _repeated(self, brackets: str, item: str, size: int, min_count: int, max_count: int) -> tuple[str, int]:
        """From `min_count` to `max_count` items, of at most `size` bytes each."""
        if max_count == 0:
            return self.rule(f'"{brackets}"', 2)
        body = f"{item} ({_SEPARATOR}{item}){{{max(min_count - 1, 0)},{max_count - 1}}}"
        return self.rule(
            f'"{brackets[0]}" {body if min_count else f"({body})?"} "{brackets[1]}"', max_count * (size + 2)
        )

    def _visit_object(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        properties = schema.get("properties")
        if not properties:
            return self._visit_map(schema, place)
        members, size = [], 0
        for key, value in properties.items():
            name, inner = self.visit(value, f"{place}.{key}")
            written = json.dumps(key, ensure_ascii=False)
            members.append(f'{literal(written)} ":" space {name}')
            size += len(written.encode()) + inner + 4  # ': ' and ', '; the last lacks the one, the brackets are as long
        return self.rule('"{" ' + _SEPARATOR.join(members) + ' "}"', size)

    def _visit_map(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        values, min_count = schema.get("additionalProperties", True), int(schema.get("minProperties", 0))
        max_count = int(schema.get("maxProperties", _MAX_ENTRIES))
        if values is False:
            return self.rule('"{}"', 2)
        if min_count > 1:
            raise self._refuse(
                place, "a map with 'minProperties' above 1 may repeat a key", "declare the properties by name"
            )
        value, size = self.visit(values, f"{place}.*")
        entry, inner = self.rule(
            rf'"\"" char{{1,{_MAX_KEY}}} "\"" ":" space {value}', _MAX_KEY * _CHAR_BYTES + 4 + size
        )
        return self._repeated("{}", entry, inner, min_count, max_count)


def _decimals(low: int, high: int, open_low: bool, open_high: bool) -> str:
    """Non-negative decimals between two integers: those with a whole part in between, and the ends where they
    belong.
    """
    fraction = f'("." [0-9]{{1,{_DECIMALS}}})?'
    parts = []
    start = low
    if open_low:
        if low < high:
            parts.append(f'"{low}." [0-9]{{0,{_DECIMALS - 1}}} [1-9]')
        start += 1
    if start <= high - 1:
        parts.append(f"({_integers(start, high - 1)}) {fraction}")
    if not open_high and not (open_low and low == high):
        parts.append(f'"{high}" ("." "0"{{1,{_DECIMALS}}})?')
    return " | ".join(parts)
