"""JSON schema to GBNF, with every part bounded, so that generation under it ends and `json.loads` takes the result.

Where a schema leaves a length open, the defaults below are put in. All declared properties are written, in their
order, as the strict schema modes of APIs do. A schema that refers to itself is unrolled to a few levels. What cannot be
held to (`pattern`, `multipleOf`, `uniqueItems`, unknown formats, keys that are required and not declared, ...) is an
error; `loosened` drops it, for callers who check the values that they read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepwise.errors import DataError
from stepwise.models.engine.gbnf import (
    ANY_TEXT,
    CHAR,
    DECIMALS,
    FORMATS,
    MAX_LENGTH,
    any_value,
    decimals,
    integers,
    literal,
)
from stepwise.models.engine.keywords import CHECKS, LIMITS, REFUSED, TYPES, apart, implied, kinds, references, within

_MAX_ITEMS = 8
"""Items of an array without `maxItems`."""
_MAX_ENTRIES = 4
"""Entries of a map (`additionalProperties`) without `maxProperties`."""
_MAX_KEY = 40
"""Characters of a key of a map."""
_MAX_INTEGER = 10**9 - 1
"""Size of a number without bounds."""
_SEPARATOR = ' "," space '
_CHAR_BYTES = 6  # \u0041; no character has more in UTF-8
_FIXED = {"null": ('"null"', 4), "boolean": ('"true" | "false"', 5)}
_LEVELS = 4
"""How deep a schema that refers to itself is unrolled."""


class _EndlessError(DataError):
    """A schema that refers to itself too often: another alternative must be taken."""


@dataclass(frozen=True)
class BoundedGrammar:
    """`gbnf` with the rule `root`; its longest text has `max_bytes` bytes, so at most `max_tokens` tokens with
    the end.

    Example:
        >>> BoundedGrammar('root ::= "yes" | "no"', max_bytes=3).max_bytes
        3
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


class SchemaRules:
    """Walks a schema; each visit gives the name of a rule and the most bytes it can produce.

    `root` is where `$ref`s lead; it may be changed between visits, to put rules of several schemas into one grammar.

    >>> SchemaRules().visit({"type": "boolean"}, "schema")[1]  # bytes of "false"
    5
    """

    def __init__(self, root: Mapping[str, Any] | None = None):
        self.root, self.rules = root or {}, list[str]()
        self._level = _LEVELS
        self._known: dict[tuple[int, str, int], tuple[str, int]] = {}  # references, by root and levels left
        self._anything = False

    def lines(self) -> list[str]:
        """All rules so far, with those that they rest on; a grammar needs a rule `root` beside them."""
        return [f"char ::= {CHAR}", 'space ::= " "?', *self.rules, *(any_value(3) if self._anything else [])]

    def rule(self, body: str, size: int) -> tuple[str, int]:
        """Adds a rule; gives its name, and `size` as it is."""
        name = f"r{len(self.rules)}"
        self.rules.append(f"{name} ::= {body}")
        return name, size

    def _refuse(self, place: str, problem: str, remedy: str) -> DataError:
        return DataError(f"JSON schema at {place}: {problem}; {remedy}")

    def visit(self, schema: Any, place: str) -> tuple[str, int]:
        """The rule of a schema, and its size; `place` is its name in errors, DataErrors where it cannot be held to."""
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise self._refuse(place, f"{schema!r} is not a schema", "give an object")
        for key in REFUSED:
            if key in schema and schema[key] is not False:
                raise self._refuse(
                    place, f"{key!r} cannot be held to by a bounded grammar", "leave it out and check the result"
                )
        for key in ("$ref", "enum", "const", "anyOf", "oneOf", "allOf"):
            if key in schema:
                checked = LIMITS if key in ("enum", "const") else ()
                beside = [other for other in CHECKS if other in schema and other not in (key, *checked)]
                if beside:
                    raise self._refuse(place, f"{key!r} stands beside {', '.join(beside)}", "make them one schema")
                return getattr(self, f"_visit_{key.strip('$')}")(schema, place)  # type: ignore[no-any-return]
        kind = schema.get("type", implied(schema))
        if isinstance(kind, list):
            return self._union([{**schema, "type": t} for t in kind], place)
        if kind in _FIXED:
            return self.rule(*_FIXED[kind])
        visitor = getattr(self, f"_visit_{kind}", None) if kind in ("any", *TYPES) else None
        if visitor is None:
            raise self._refuse(
                place, f"type {kind!r} is unknown", "use string, number, integer, boolean, null, array or object"
            )
        result: tuple[str, int] = visitor(schema, place)
        return result

    def _visit_any(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        self._anything = True
        return "value0", 1 << 20

    def _visit_enum(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        named = schema.get("type")
        types = [t for kind in ([named] if isinstance(named, str) else named or TYPES) for t in TYPES.get(kind, ())]
        values = [v for v in schema.get("enum", [schema.get("const")]) if type(v) in types and within(v, schema)]
        if not values:
            raise self._refuse(
                place, f"no value is of type {named!r} and within its limits", "give one, or leave them out"
            )
        texts = [json.dumps(v, ensure_ascii=False) for v in values]
        return self.rule(" | ".join(map(literal, texts)), max(len(text.encode()) for text in texts))

    _visit_const = _visit_enum

    def _visit_anyOf(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        return self._union(schema["anyOf"], place)

    def _visit_oneOf(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        parts = schema["oneOf"]
        for i, part in enumerate(parts):
            for other in parts[:i]:
                if not apart(part, other, lambda schema: self._resolved(schema, place)):
                    raise self._refuse(place, "more than one of 'oneOf' may hold", "use 'anyOf', or a constant in each")
        return self._union(parts, place)

    def _visit_allOf(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        if len(schema["allOf"]) != 1:
            raise self._refuse(place, "'allOf' of several schemas is not supported", "merge them into one object")
        return self.visit(schema["allOf"][0], place)

    def _union(self, schemas: list[Any], place: str) -> tuple[str, int]:
        parts, endless = [], None
        for i, schema in enumerate(schemas):
            try:
                parts.append(self.visit(schema, f"{place}|{i}"))
            except _EndlessError as error:
                endless = error
        if not parts:
            raise endless or self._refuse(place, "it has no alternative", "give one")
        return self.rule(" | ".join(name for name, _ in parts), max(size for _, size in parts))

    def _visit_ref(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        """The rule of what is referred to; a definition that leads to itself is another one on each level."""
        ref = schema["$ref"]
        target, recursive = self._target(ref, place), self._leads(ref, place)
        if recursive and not self._level:
            raise _EndlessError(
                f"JSON schema at {place}: {ref!r} refers to itself, and no value of it has an end; "
                "give it an alternative that does not, such as null"
            )
        key = (id(self.root), ref, self._level)
        if key not in self._known:
            self._level -= recursive
            try:
                self._known[key] = self.visit(target, ref)
            finally:
                self._level += recursive
        return self._known[key]

    def _target(self, ref: str, place: str) -> Any:
        if not ref.startswith("#"):
            raise self._refuse(place, f"$ref {ref!r} points outside the schema", "put the definition under $defs")
        target: Any = self.root
        for part in ref.lstrip("#").split("/")[1:]:
            try:
                target = target[part.replace("~1", "/").replace("~0", "~")]
            except (KeyError, TypeError):
                raise self._refuse(place, f"$ref {ref!r} leads nowhere", "define it under $defs") from None
        return target

    def _resolved(self, schema: Any, place: str) -> Any:
        for _ in range(_LEVELS):
            if isinstance(schema, Mapping) and "$ref" in schema:
                schema = self._target(schema["$ref"], place)
        return schema

    def _leads(self, ref: str, place: str) -> bool:
        """Whether a definition leads to itself."""
        seen, todo = set[str](), references(self._target(ref, place))
        while todo - seen:
            seen |= todo
            todo = set().union(*(references(self._target(other, place)) for other in todo))
        return ref in seen

    def _visit_string(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        least, most = self._counts(schema, "Length", place, MAX_LENGTH)
        form = schema.get("format")
        if form in (None, *ANY_TEXT):
            return self.rule(rf'"\"" char{{{least},{most}}} "\""', most * _CHAR_BYTES + 2)
        if form not in FORMATS:
            known = ", ".join((*FORMATS, *ANY_TEXT))
            raise self._refuse(place, f"format {form!r} is not supported", f"use one of {known}")
        body, shortest, longest = FORMATS[form]
        if least > shortest or schema.get("maxLength", longest) < longest:
            raise self._refuse(
                place, f"a {form} has {shortest} to {longest} characters here", "leave out its minLength and maxLength"
            )
        return self.rule(rf'"\"" {body} "\""', longest + 2)

    def _counts(self, schema: Mapping[str, Any], what: str, place: str, default: int) -> tuple[int, int]:
        """Limits such as minLength and maxLength, the latter at least the former where it is not given."""
        least = int(schema.get(f"min{what}", 0))
        most = int(schema.get(f"max{what}", max(default, least)))
        if least > most:
            raise self._refuse(place, f"min{what} is {least} and max{what} {most}", "make the first the smaller one")
        return least, most

    def _bounds(self, schema: Mapping[str, Any], place: str, *, whole: bool) -> tuple[int, int, bool, bool]:
        """(low, high) as integers inside the bounds, and whether each is exclusive."""
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        if any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in (low, high, above, below)):
            raise self._refuse(place, "a bound is no number", "give numbers, also for exclusiveMinimum")
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
        return self.rule(integers(low, high), max(len(str(low)), len(str(high))))

    def _visit_number(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        low, high, open_low, open_high = self._bounds(schema, place, whole=False)
        parts = []
        if low < 0:  # mirrored: 0..-low, or -high..-low
            inner, open_inner = (-high, open_high) if high < 0 else (0, True)
            parts.append(f'"-" ({decimals(inner, -low, open_inner, open_low)})')
        if high >= 0 and not (high == 0 and open_high):
            parts.append(decimals(max(low, 0), high, open_low and low >= 0, open_high))
        return self.rule(" | ".join(parts), max(len(str(low)), len(str(high))) + 1 + DECIMALS)

    def _visit_array(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        least, most = self._counts(schema, "Items", place, _MAX_ITEMS)
        if fixed := schema.get("prefixItems"):
            if least > len(fixed) or schema.get("maxItems", len(fixed)) < len(fixed):
                raise self._refuse(
                    place, f"it has {len(fixed)} 'prefixItems' and other limits", "give it as many items"
                )
            parts = [self.visit(item, f"{place}[{i}]") for i, item in enumerate(fixed)]
            names = _SEPARATOR.join(name for name, _ in parts)
            return self.rule(f'"[" {names} "]"', sum(size for _, size in parts) + 2 * len(parts))
        return self._repeated("[]", schema.get("items", True), f"{place}[]", least, most)

    def _repeated(
        self, brackets: str, schema: Any, place: str, least: int, most: int, key: tuple[str, int] | None = None
    ) -> tuple[str, int]:
        """From `least` to `most` items, or entries of a map behind its `key`; none where they would have no end."""
        if most == 0:
            return self.rule(f'"{brackets}"', 2)
        try:
            item, size = self.visit(schema, place)
        except _EndlessError:
            if least:
                raise
            return self.rule(f'"{brackets}"', 2)
        if key is not None:
            item, size = self.rule(f'{key[0]} ":" space {item}', key[1] + 2 + size)
        body = f"{item} ({_SEPARATOR}{item}){{{max(least - 1, 0)},{most - 1}}}"
        return self.rule(f'"{brackets[0]}" {body if least else f"({body})?"} "{brackets[1]}"', most * (size + 2))

    def _visit_object(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        properties = schema.get("properties") or {}
        missing = [key for key in schema.get("required", ()) if key not in properties]
        if missing:
            raise self._refuse(place, f"{missing[0]!r} is required and no property", "declare it under 'properties'")
        if not properties:
            return self._visit_map(schema, place)
        members, size = [], 0
        for key, value in properties.items():
            try:
                name, inner = self.visit(value, f"{place}.{key}")
            except _EndlessError:
                if key in schema.get("required", ()):
                    raise
                continue
            written = json.dumps(key, ensure_ascii=False)
            members.append(f'{literal(written)} ":" space {name}')
            size += len(written.encode()) + inner + 4  # ': ' and ', '; the last lacks the one, the brackets are as long
        if not int(schema.get("minProperties", 0)) <= len(members) <= schema.get("maxProperties", len(members)):
            raise self._refuse(place, f"it has {len(members)} properties and other limits", "leave the limits out")
        return self.rule('"{" ' + _SEPARATOR.join(members) + ' "}"', max(size, 2))

    def _visit_map(self, schema: Mapping[str, Any], place: str) -> tuple[str, int]:
        least, most = self._counts(schema, "Properties", place, _MAX_ENTRIES)
        values = schema.get("additionalProperties", True)
        if least > 1:
            raise self._refuse(
                place, "a map with 'minProperties' above 1 may repeat a key", "declare the properties by name"
            )
        if values is False:
            if least:
                raise self._refuse(place, "it must have a property and may have none", "leave 'minProperties' out")
            return self.rule('"{}"', 2)
        key = (rf'"\"" char{{1,{_MAX_KEY}}} "\""', _MAX_KEY * _CHAR_BYTES + 2)
        if names := schema.get("propertyNames"):
            names = self._resolved(names, place)
            if "string" not in (kinds({"type": "string", **names}) or ()):
                raise self._refuse(place, "'propertyNames' are no strings", 'give them the type "string"')
            key = self.visit({**names, "type": "string"}, f"{place} (keys)")
        return self._repeated("{}", values, f"{place}.*", least, most, key)
