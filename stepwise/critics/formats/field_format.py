r"""One output field: how its value is written, how it is read, and the GBNF of its texts, all from its JSON schema.

Text needs no quoting, so LaTeX survives (JSON turns the backslashes of \frac and \boxed into control characters
unless the model doubles them). Lists of flat records are tables, a row per line with " | " between the cells; what is
nested deeper is JSON. Not every value comes back as it was: a text loses blanks and line ends at its two ends; a cell
is one line, without blanks beside a "|" of its own; and in a text that may also be None, "none" is None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from stepwise.errors import DataError
from stepwise.models.engine.gbnf import literal
from stepwise.models.engine.keywords import loosened
from stepwise.models.engine.schema import SchemaRules

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


class _Part(NamedTuple):
    """One of the alternatives of a value's schema, references resolved.

    `kind` is "null", "boolean", "integer", "number", "text", "choice" (of `texts` -> values), "format" (a text of some
    form, such as a date) or "json".
    """

    kind: str
    schema: Mapping[str, Any]
    texts: Mapping[str, Any]

    @property
    def words(self) -> str:
        """For instructions and errors: what is to be written."""
        if self.kind == "choice":
            written = list(dict.fromkeys(map(_scalar_text, self.texts.values())))
            whole = all(text.isdigit() for text in written) and len(written) > 2
            return f"{written[0]} to {written[-1]}" if whole else " or ".join(written)
        if self.kind == "integer" and {"minimum", "maximum"} <= set(self.schema):
            return f"{self.schema['minimum']} to {self.schema['maximum']}"
        named = {"null": NONE, "boolean": "yes or no", "integer": "a whole number", "number": "a number",
                 "text": "text", "format": f"a {self.schema.get('format')}"}  # fmt: skip
        return named.get(self.kind, "JSON")

    @property
    def fits_a_cell(self) -> bool:
        """Whether a value can stand in a table, as it is."""
        return self.kind != "json" and all(not isinstance(v, str) or v == _cell(v) for v in self.texts.values())

    def plain(self, text: str) -> Any:
        """Text to a plain value; raises ValueError where it is none."""
        if self.kind == "text" or self.kind == "format":
            return text if self.kind == "text" else text.strip('"')  # dates and the like are quoted under a grammar
        if self.kind == "choice" and text in self.texts:
            return self.texts[text]
        if self.kind == "boolean" and text.lower() in _TRUTHS:
            return _TRUTHS[text.lower()]
        if self.kind == "null" and text.lower() in _NONES:
            return None
        if self.kind in ("integer", "number"):
            number = json.loads(text)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return number
        if self.kind == "json":
            value = parsed_json(text)
            return text if value == "" else value  # types of DSPy (Code, Reasoning) take a text
        raise ValueError(f"not {self.words}")


def _parts(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[_Part]:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return [part for each in schema["anyOf"] for part in _parts(each, definitions)]
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        texts = {json.dumps(value): value for value in values} | {_scalar_text(value): value for value in values}
        return [_Part("choice", schema, texts)]
    kind = str(schema.get("type"))
    if kind == "string":
        kind = "format" if "format" in schema else "text"
    return [_Part(kind if kind in ("null", "boolean", "integer", "number", "text", "format") else "json", schema, {})]


class _Schemas(GenerateJsonSchema):
    """Schemas in which a Decimal is a number, and not any text beside."""

    def decimal_schema(self, schema: Any) -> dict[str, Any]:
        """See pydantic."""
        result = super().decimal_schema(schema)
        return next((part for part in result.get("anyOf", ()) if part.get("type") == "number"), result)


@dataclass(frozen=True)
class FieldFormat:
    """How one output field is written and read: `parts` are the alternatives of its value; `columns` those of each cell
    where the field is a list of flat records of two fields or more, else None.

    Example:
        FieldFormat.of("right", JudgeStep.output_fields["right"]).read("yes")  # True
    """

    name: str
    adapter: TypeAdapter[Any]
    schema: Mapping[str, Any]
    parts: Sequence[_Part]
    columns: Mapping[str, Sequence[_Part]] | None

    @classmethod
    def of(cls, name: str, field: Any) -> FieldFormat:
        """From a DSPy field, its annotation and constraints."""
        adapter = TypeAdapter(constrained(field))
        schema = _holdable(adapter.json_schema(schema_generator=_Schemas))
        definitions = schema.get("$defs", {})
        items = _parts(schema["items"], definitions) if schema.get("type") == "array" and "items" in schema else []
        records = items[0].schema.get("properties", {}) if len(items) == 1 else {}
        columns = {column: _parts(each, definitions) for column, each in records.items()}
        flat = len(columns) > 1 and all(part.fits_a_cell for parts in columns.values() for part in parts)
        return cls(name, adapter, schema, _parts(schema, definitions), columns if flat else None)

    @property
    def is_text(self) -> bool:
        """Whether the value stands as it is."""
        return [part.kind for part in self.parts] == ["text"]

    @property
    def types(self) -> set[str | None]:
        """The JSON types that the value may have."""
        return {part.schema.get("type") for part in self.parts}

    @property
    def kind(self) -> str:
        """For instructions and errors: what goes after the marker, in words."""
        return "lines of " + " | ".join(self.columns) if self.columns is not None else _words(self.parts)

    def write(self, value: Any) -> str:
        """`value` as it stands after the marker, on the same line unless it is a table.

        A value that is not of the field's type (examples are often loose) is written as well as it can be.
        """
        with suppress(ValidationError):
            value = self.adapter.validate_python(value)
        plain = self.adapter.dump_python(value, mode="json", warnings=False, fallback=str)
        if self.columns is None or not isinstance(plain, list) or not all(isinstance(row, dict) for row in plain):
            return _scalar_text(plain).strip(_BLANKS)
        rows = (" | ".join(_cell(_scalar_text(row.get(name, ""))) for name in self.columns) for row in plain)
        return "".join(f"\n{row}" for row in rows)

    def read(self, text: str, *, table: bool = True) -> Any:
        """The value of what was written, as a table where `table` and the field is one; raises DataError saying what
        was expected.
        """
        try:
            if table and self.columns is not None:
                return self.adapter.validate_python(self._rows(text, self.columns))
            return self.adapter.validate_python(_plain(self.parts, text.strip(_BLANKS)))
        except (ValueError, RecursionError) as error:  # a ValidationError is a ValueError
            raise self._wrong(text.strip(), error) from None

    def valid(self, value: Any) -> Any:
        """A value read from JSON, as the field's type; raises DataError."""
        if self.is_text and isinstance(value, int | float):
            value = json.dumps(value)  # models write the numbers among texts without quotes
        if isinstance(value, str):
            return self.read(value, table=False)
        try:
            if isinstance(value, bool) and not {"boolean", None} & self.types:
                raise ValueError("a truth value is no number")  # pydantic takes false for 0
            return self.adapter.validate_python(value)
        except ValueError as error:
            raise self._wrong(value, error) from None

    def _wrong(self, value: Any, error: Exception) -> DataError:
        reason, place = str(error) or type(error).__name__, ""
        if isinstance(error, ValidationError):
            detail = error.errors(include_url=False)[0]
            reason = detail["msg"]
            if {"array", "object"} & self.types and detail["loc"]:
                value, place = detail["input"], "".join(f"[{part!r}]" for part in detail["loc"])
        shown = str(value)
        shown = repr(shown if len(shown) <= 80 else f"{shown[:80]}...")
        return DataError(f"{self.name}{place} is {shown}, expected {self.kind}: {reason}")

    def _rows(self, text: str, columns: Mapping[str, Sequence[_Part]]) -> list[dict[str, Any]]:
        rows = []
        for line in (line.strip("\r") for line in text.split("\n") if line.strip(_BLANKS)):
            cells = _COLUMN_BREAK.split(line)
            if len(cells) != len(columns):  # not as it is written here; anything that has as many cells will do
                cells = line.strip(_BLANKS).split("|", len(columns) - 1)
            if len(cells) != len(columns):
                raise ValueError(f"the row {line[:60]!r} has {len(cells)} of {len(columns)} columns")
            pairs = zip(columns.items(), cells, strict=True)
            rows.append({name: _plain(parts, cell.strip(_BLANKS)) for (name, parts), cell in pairs})
        return rows

    def grammar(self, rules: SchemaRules, *, last: bool = True) -> str:
        """Adds the rules of this field to `rules`; gives the expression of what follows its marker.

        Under it a text without max_length is open if it is the `last` field, and else has at most `MAX_REPEAT`
        characters and some line ends.
        """
        if self.columns is None:
            return f'" " {self.value_grammar(rules, last=last)}'
        rules.root = self.schema
        cells = ' " | " '.join(self._expression(parts, rules, f"{MARK}|") for parts in self.columns.values())
        row = rules.rule(rf'"\n" {cells}', 0)[0]
        least, most = self.schema.get("minItems", 0), self.schema.get("maxItems", MAX_ROWS)
        return f"{row}{{{least},{most}}}"

    def value_grammar(self, rules: SchemaRules, mark: str = MARK, *, last: bool = True) -> str:
        """Like `grammar`, of a value that is no table; no line of a text begins with `mark`."""
        rules.root = self.schema
        return self._expression(self.parts, rules, mark, last)

    def _expression(self, parts: Sequence[_Part], rules: SchemaRules, without: str, open_text: bool = False) -> str:
        written = []
        for part in parts:
            if part.kind == "choice":
                words = dict.fromkeys(map(_scalar_text, part.texts.values()))
                written.append(rules.rule(" | ".join(map(literal, words)), 0)[0])
            elif part.kind == "null":
                written.append(literal(NONE))
            elif part.kind == "boolean":
                written.append(rules.rule(" | ".join(map(literal, BOOLEANS)), 0)[0])
            elif part.kind == "text":
                limits = {"maxLength": MAX_CELL, **part.schema} if "|" in without else part.schema
                written.append(_text_grammar(limits, rules, without, open_text=open_text))
            else:
                written.append(rules.visit(part.schema, f"${self.name}")[0])
        return written[0] if len(written) == 1 else rules.rule(" | ".join(written), 0)[0]


def _holdable(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of a schema a grammar can hold to: values are checked when they are read. Any JSON where that is nothing."""
    held: Mapping[str, Any] = loosened(schema)
    try:
        SchemaRules(held).visit(held, "$")
    except DataError:
        return {}
    return held


def _words(parts: Sequence[_Part]) -> str:
    return " or ".join(part.words for part in parts)


def _plain(parts: Sequence[_Part], text: str) -> Any:
    """Text to a plain value of the first alternative that takes it, but first None; ValueError where none does."""
    for part in sorted(parts, key=lambda part: part.kind != "null"):
        with suppress(ValueError):
            return part.plain(text)
    raise ValueError(f"not {_words(parts)}")


def constrained(field: Any) -> Any:
    """The annotation of a DSPy field with its constraints, which DSPy keeps apart from it.

    Example:
        schema = TypeAdapter(constrained(signature.output_fields["reason"])).json_schema()
    """
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def parsed_json(text: str) -> Any:
    r"""What JSON there is in `text`, mended where it is not quite; \b and \f were meant as the beginning of LaTeX.

    (So are some \t, \n and \r, but nobody can say which; the compact format has no such doubt.)

    >>> parsed_json('{"first_error": 3, "reason": "36 is 24"')  # cut off
    {'first_error': 3, 'reason': '36 is 24'}
    """
    import json_repair

    return _mended(json_repair.loads(text))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub("[\b\f](?=[a-z])", lambda found: r"\b" if found[0] == "\b" else r"\f", value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    return {key: _mended(item) for key, item in value.items()} if isinstance(value, dict) else value


def _text_grammar(schema: Mapping[str, Any], rules: SchemaRules, without: str, *, open_text: bool) -> str:
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


def _scalar_text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    """One line in which no blank is beside a "|"."""
    return re.sub(r" ?\| ?", "|", " ".join(text.split()))
