r"""One output field: how its value is written, how it is read, and the GBNF of its texts, all from its JSON schema.

Text needs no quoting, so LaTeX survives (JSON turns the backslashes of \frac and \boxed into control characters
unless the model doubles them). Lists of flat records are tables, a row per line with " | " between the cells; what is
nested deeper is JSON. Not every value comes back as it was: a text loses blanks and line ends at its two ends; a cell
is one line, without blanks beside a "|" of its own; and in a text that may also be None, "none" is None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from stepwise.errors import DataError
from stepwise.models.engine.schema import SchemaRules, literal

MARK = "#"
NONE = "none"
BOOLEANS = {"yes": True, "no": False}
MAX_LINE = 400
"""Characters up to which a text under a grammar is one line."""
MAX_REPEAT = 2000
"""Most repetitions in a grammar, so most characters of a text without max_length that other fields follow."""
MAX_CELL = 80
MAX_ROWS = 64
_BLANKS = " \t\r\n"  # not those of Unicode, which a grammar takes for visible
_NONES = (NONE, "null")
_TRUTHS = {**BOOLEANS, "true": True, "false": False}
_BEYOND = r"\u00A0-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF"  # named, since a complement would let in surrogates
_COLUMN_BREAK = re.compile(r"(?:^| )\|(?: |$)")


@dataclass(frozen=True)
class FieldFormat:
    """How one output field is written and read."""

    name: str
    adapter: TypeAdapter[Any]
    schema: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, field: Any) -> FieldFormat:
        """From a DSPy field, its annotation and constraints."""
        adapter = TypeAdapter(constrained(field))
        return cls(name, adapter, adapter.json_schema())

    @property
    def columns(self) -> list[str] | None:
        """Names of the columns where the field is a list of flat records of two fields or more, else None."""
        item = self._resolved(self.schema.get("items")) if self.schema.get("type") == "array" else None
        properties = (item or {}).get("properties") or {}
        flat = not any(self._needs_json(value) for value in properties.values())
        return list(properties) if flat and len(properties) > 1 else None

    @property
    def is_text(self) -> bool:
        """Whether the value stands as it is."""
        return _is_text(self.schema)

    @property
    def may_be_text(self) -> bool:
        """Whether the value is or can be a text or one of several words."""
        return "string" in self._types()

    def _resolved(self, schema: Any) -> Any:
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        return self.schema["$defs"][reference.rpartition("/")[2]] if reference else schema

    def _needs_json(self, schema: Mapping[str, Any]) -> bool:
        """Whether a value does not fit into a cell."""
        parts = [self._resolved(part) for part in self._resolved(schema).get("anyOf", [schema])]
        values = [value for part in parts for value in part.get("enum", [part.get("const")]) if isinstance(value, str)]
        return any(part.get("type") in ("array", "object", None) and "enum" not in part for part in parts) or any(
            value != _cell(value) for value in values
        )

    @property
    def kind(self) -> str:
        """For instructions and errors: what goes after the marker, in words."""
        if self.columns is not None:
            return "lines of " + " | ".join(self.columns)
        return self._words(self.schema)

    def _words(self, schema: Mapping[str, Any]) -> str:
        schema = self._resolved(schema)
        if "anyOf" in schema:
            return " or ".join(map(self._words, schema["anyOf"]))
        if "enum" in schema or "const" in schema:
            values = [_scalar_text(value) for value in schema.get("enum", [schema.get("const")])]
            whole = all(value.isdigit() for value in values) and len(values) > 2
            return f"{values[0]} to {values[-1]}" if whole else " or ".join(values)
        if schema.get("type") == "integer" and {"minimum", "maximum"} <= set(schema):
            return f"{schema['minimum']} to {schema['maximum']}"
        names = {"null": NONE, "boolean": "yes or no", "integer": "a whole number", "number": "a number"}
        if "format" in schema:
            return f"a {schema['format']}"
        return "text" if _is_text(schema) else names.get(schema.get("type", ""), "JSON")

    def write(self, value: Any) -> str:
        """`value` as it stands after the marker, on the same line unless it is a table.

        A value that is not of the field's type (examples are often loose) is written as well as it can be.
        """
        with suppress(ValidationError):
            value = self.adapter.validate_python(value)
        plain = self.adapter.dump_python(value, mode="json", warnings=False, fallback=str)
        columns = self.columns
        if columns is None or not isinstance(plain, list) or not all(isinstance(row, dict) for row in plain):
            return _scalar_text(plain).strip(_BLANKS)
        rows = (" | ".join(_cell(_scalar_text(row.get(name, ""))) for name in columns) for row in plain)
        return "".join(f"\n{row}" for row in rows)

    def read(self, text: str, *, table: bool = True) -> Any:
        """The value of what was written, as a table where `table` and the field is one; raises DataError saying what
        was expected.
        """
        try:
            columns = self.columns if table else None
            rows = None if columns is None else self._rows(text, columns)
            return self.adapter.validate_python(self._plain(self.schema, text.strip(_BLANKS)) if rows is None else rows)
        except (ValueError, RecursionError) as error:  # a ValidationError is a ValueError
            raise self._wrong(text.strip(), error) from None

    def valid(self, value: Any) -> Any:
        """A value read from JSON, as the field's type; raises DataError."""
        if self.is_text and isinstance(value, int | float):
            value = json.dumps(value)  # models write the numbers among texts without quotes
        if isinstance(value, str):
            return self.read(value, table=False)
        try:
            if isinstance(value, bool) and not {"boolean", None} & self._types():
                raise ValueError("a truth value is no number")  # pydantic takes false for 0
            return self.adapter.validate_python(value)
        except ValueError as error:
            raise self._wrong(value, error) from None

    def _types(self) -> set[str | None]:
        parts = [self._resolved(part) for part in self._resolved(self.schema).get("anyOf", [self.schema])]
        return {part.get("type") for part in parts}

    def _wrong(self, value: Any, error: Exception) -> DataError:
        reason, place = str(error) or type(error).__name__, ""
        if isinstance(error, ValidationError):
            detail = error.errors(include_url=False)[0]
            reason = detail["msg"]
            if {"array", "object"} & self._types() and detail["loc"]:
                value, place = detail["input"], "".join(f"[{part!r}]" for part in detail["loc"])
        shown = str(value)
        shown = repr(shown if len(shown) <= 80 else f"{shown[:80]}...")
        return DataError(f"{self.name}{place} is {shown}, expected {self.kind}: {reason}")

    def _rows(self, text: str, columns: list[str]) -> list[dict[str, Any]]:
        rows = []
        properties = self._resolved(self.schema["items"])["properties"]
        for line in (line.strip("\r") for line in text.split("\n")):
            if not line.strip(_BLANKS):
                continue
            cells = _COLUMN_BREAK.split(line)
            if len(cells) != len(columns):  # not as it is written here; anything that has as many cells will do
                cells = line.strip(_BLANKS).split("|", len(columns) - 1)
            if len(cells) != len(columns):
                raise ValueError(f"the row {line[:60]!r} has {len(cells)} of {len(columns)} columns")
            pairs = zip(columns, cells, strict=True)
            rows.append({name: self._plain(properties[name], cell.strip(_BLANKS)) for name, cell in pairs})
        return rows

    def _plain(self, schema: Mapping[str, Any], text: str) -> Any:
        """Text to a plain value by schema; raises ValueError where it is none."""
        schema = self._resolved(schema)
        if "anyOf" in schema:
            parts = [self._resolved(part) for part in schema["anyOf"]]
            if text.lower() in _NONES and any(part.get("type") == "null" for part in parts):
                return None
            for part in parts:
                try:
                    return self._plain(part, text)
                except ValueError:
                    continue
            raise ValueError(f"not {self._words(schema)}")
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            texts = {json.dumps(value): value for value in values} | {_scalar_text(value): value for value in values}
            if text not in texts:
                raise ValueError(f"not {self._words(schema)}")
            return texts[text]
        kind = schema.get("type")
        if kind == "string":
            return text if _is_text(schema) else text.strip('"')  # dates and the like are quoted under a grammar
        if kind == "boolean" and text.lower() in _TRUTHS:
            return _TRUTHS[text.lower()]
        if kind == "null" and text.lower() in _NONES:
            return None
        if kind in ("integer", "number"):
            number = json.loads(text)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return number
        elif kind not in ("boolean", "null"):
            found = parsed_json(text)
            return text if found == "" else found  # types of DSPy (Code, Reasoning) take a text
        raise ValueError(f"not {self._words(schema)}")

    def grammar(self, rules: SchemaRules, *, last: bool = True) -> str:
        """Adds the rules of this field to `rules`; gives the expression of what follows its marker.

        Under it a text without max_length is open if it is the `last` field, and else has at most `MAX_REPEAT`
        characters and some line ends.
        """
        rules.root = self.schema
        columns = self.columns
        if columns is None:
            return f'" " {self.value_grammar(rules, last=last)}'
        properties = self._resolved(self.schema["items"])["properties"]
        cells = ' " | " '.join(self._expression(properties[name], rules, f"{MARK}|") for name in columns)
        row = rules.rule(rf'"\n" {cells}', 0)[0]
        least, most = self.schema.get("minItems", 0), self.schema.get("maxItems", MAX_ROWS)
        return f"{row}{{{least},{most}}}"

    def value_grammar(self, rules: SchemaRules, mark: str = MARK, *, last: bool = True) -> str:
        """Like `grammar`, of a value that is no table; no line of a text begins with `mark`."""
        rules.root = self.schema
        return self._expression(self.schema, rules, mark, last)

    def _expression(self, schema: Mapping[str, Any], rules: SchemaRules, without: str, open_text: bool = False) -> str:
        schema = self._resolved(schema)
        if "anyOf" in schema:
            parts = (self._expression(p, rules, without, open_text) for p in schema["anyOf"])
            return rules.rule(" | ".join(parts), 0)[0]
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            return rules.rule(" | ".join(literal(_scalar_text(value)) for value in values), 0)[0]
        kind = schema.get("type")
        if kind == "null":
            return literal(NONE)
        if kind == "boolean":
            return rules.rule(" | ".join(map(literal, BOOLEANS)), 0)[0]
        if _is_text(schema):
            if "|" in without:
                schema = {"maxLength": MAX_CELL, **schema}
            return text_grammar(schema, rules, without, open_text=open_text)
        return rules.visit(schema, f"${self.name}")[0]


def constrained(field: Any) -> Any:
    """The annotation of a DSPy field with its constraints, which DSPy keeps apart from it."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def parsed_json(text: str) -> Any:
    r"""What JSON there is in `text`, mended where it is not quite; \b and \f were meant as the beginning of LaTeX.

    (So are some \t, \n and \r, but nobody can say which; the compact format has no such doubt.)
    """
    import json_repair

    return _mended(json_repair.loads(text))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\b\f](?=[a-z])", lambda found: r"\b" if found[0] == "\b" else r"\f", value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    return {key: _mended(item) for key, item in value.items()} if isinstance(value, dict) else value


def text_grammar(schema: Mapping[str, Any], rules: SchemaRules, without: str, *, open_text: bool) -> str:
    """Lines of text, none of which begins with the first character of `without` or a blank, within max_length; the
    others of `without` are nowhere in it.

    A grammar counts repetitions, not characters. So a text of at most `MAX_LINE` characters is one line; a longer one
    has lines of two characters and more and no blank ones; one without max_length is open, and ends with max_tokens,
    or has `MAX_REPEAT` repetitions. A `pattern` is not held to.
    """
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    if most == 0:
        return '""'
    begin, end, inner = _visible(without), _visible(without[1:]), f"{_visible(without[1:])[:-1]} ]"
    more, highest = rf'{inner} | "\n" "\n"? {begin}', None if open_text else MAX_REPEAT
    if most is not None and (most <= MAX_LINE or least > most // 2):
        more, highest = inner, most - 1
    elif most is not None:
        more, highest = rf'{inner} | "\n" {begin}', min(most // 2, MAX_REPEAT) - 1
    ends = int(least > 1)  # a text of some length has a visible end, since blanks there do not count
    count = f"{{{max(least - 2, 0)},{'' if highest is None else highest - ends}}}"
    body = f"{begin} {rules.rule(more, 0)[0]}{count}{f' {end}' if ends else ''}"
    name = rules.rule(body, 0)[0]  # a rule of its own: llama.cpp multiplies the repetitions of groups in groups
    return name if least else rules.rule(f'{name} | ""', 0)[0]


def _visible(without: str) -> str:
    """The class of visible characters without some of ASCII."""
    parts, start = [], 0x21
    for code in sorted(map(ord, without)):
        parts.append((start, code - 1))
        start = code + 1
    ranges = "".join(rf"\x{low:02X}-\x{high:02X}" for low, high in [*parts, (start, 0x7E)] if low <= high)
    return f"[{ranges}{_BEYOND}]"


def _is_text(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "string" and "enum" not in schema and "const" not in schema and "format" not in schema


def _scalar_text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    """One line in which no blank is beside a "|"."""
    return re.sub(r" ?\| ?", "|", " ".join(text.split()))
