r"""The compact format: one marked line per output field, tables as rows, text as it is.

    #checks:
    0 | 41 | 41 | right
    1 | 39 | 37 | wrong
    #first_error: 1
    #content: Ana is left with
    41 - 4 = 37.

Text needs no quoting, so LaTeX survives (JSON turns the backslashes of \frac and \boxed into control characters
unless the model doubles them). Each part is derived from the JSON schema of the field: how a value is written, how it
is read, and the GBNF that admits nothing else, so a grammar-bound model cannot write what cannot be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from stepwise.engine.schema import SchemaRules, literal
from stepwise.errors import DataError

MARK = "#"
NONE = "none"
BOOLEANS = {"yes": True, "no": False}
MAX_TEXT = 400
"""Characters up to which a text is one line."""
MAX_CELL = 80
MAX_ROWS = 64
_LONGEST_REPEAT = 1000  # llama.cpp unrolls repetitions
_BEYOND = r"\u00A0-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF"  # named, since a complement would let in surrogates
_ANY = rf"[\x20-\x7E{_BEYOND}]"
_CELL = rf"[\x20-\x7B\x7D-\x7E{_BEYOND}]"


@dataclass(frozen=True)
class FieldFormat:
    """How one output field is written and read."""

    name: str
    adapter: TypeAdapter[Any]
    schema: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, field: Any) -> FieldFormat:
        """From a DSPy field, its annotation and constraints."""
        annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        adapter = TypeAdapter(annotation)
        return cls(name, adapter, adapter.json_schema())

    @property
    def columns(self) -> list[str] | None:
        """Names of the columns where the field is a list of flat records, else None."""
        item = self._resolved(self.schema.get("items")) if self.schema.get("type") == "array" else None
        properties = (item or {}).get("properties")
        if not properties or any(self._is_nested(value) for value in properties.values()):
            return None
        return list(properties)

    def _resolved(self, schema: Any) -> Any:
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        return self.schema["$defs"][reference.rpartition("/")[2]] if reference else schema

    def _is_nested(self, schema: Mapping[str, Any]) -> bool:
        schema = self._resolved(schema)
        parts = schema.get("anyOf", [schema])
        return any(self._resolved(part).get("type") in ("array", "object") for part in parts)

    @property
    def kind(self) -> str:
        """For instructions: what goes after the marker, in words."""
        if self.columns is not None:
            return "lines of " + " | ".join(self.columns)
        return _words(self.schema, self._resolved)

    def write(self, value: Any) -> str:
        """`value` as it stands after the marker, on the same line unless it is a table."""
        plain = self.adapter.dump_python(value, mode="json")
        if self.columns is None:
            return _scalar_text(plain)
        rows = (" | ".join(_one_line(_scalar_text(row[name])) for name in self.columns) for row in plain)
        return "".join(f"\n{row}" for row in rows)

    def read(self, text: str) -> Any:
        """The value; raises DataError saying what was expected."""
        try:
            return self.adapter.validate_python(self._parsed(text))
        except (ValueError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise DataError(f"{MARK}{self.name} is {text.strip()[:80]!r}, expected {self.kind}: {reason}") from None

    def _parsed(self, text: str) -> Any:
        if self.columns is None:
            return _plain(self.schema, text.strip(), self._resolved)
        rows = []
        properties = self._resolved(self.schema["items"])["properties"]
        for line in filter(None, (line.strip() for line in text.splitlines())):
            cells = [cell.strip() for cell in line.split("|", len(self.columns) - 1)]
            if len(cells) != len(self.columns):
                raise ValueError(f"the row {line[:60]!r} has {len(cells)} of {len(self.columns)} columns")
            pairs = zip(self.columns, cells, strict=True)
            rows.append({name: _plain(properties[name], cell, self._resolved) for name, cell in pairs})
        return rows

    def grammar(self, rules: SchemaRules) -> str:
        """Adds the rules of this field to `rules`; gives the expression of its line."""
        rules.root = self.schema
        if self.columns is not None:
            properties = self._resolved(self.schema["items"])["properties"]
            cells = ' " | " '.join(self._cell(properties[name], rules) for name in self.columns)
            row = rules.rule(rf'"\n" {cells}', 0)[0]
            least, most = self.schema.get("minItems", 0), self.schema.get("maxItems", MAX_ROWS)
            return f"{row}{{{least},{most}}}"
        return f'" " {self._expression(self.schema, rules)}'

    def _cell(self, schema: Mapping[str, Any], rules: SchemaRules) -> str:
        schema = self._resolved(schema)
        if schema.get("type") == "string" and "enum" not in schema:
            least, most = schema.get("minLength", 0), schema.get("maxLength", MAX_CELL)
            return rules.rule(f"{_CELL}{{{least},{most}}}", 0)[0]
        return self._expression(schema, rules)

    def _expression(self, schema: Mapping[str, Any], rules: SchemaRules) -> str:
        schema = self._resolved(schema)
        if "anyOf" in schema:
            parts = [self._expression(part, rules) for part in schema["anyOf"]]
            return rules.rule(" | ".join(parts), 0)[0]
        if "enum" in schema or "const" in schema:
            values = schema.get("enum", [schema.get("const")])
            return rules.rule(" | ".join(literal(_scalar_text(value)) for value in values), 0)[0]
        kind = schema.get("type")
        if kind == "null":
            return literal(NONE)
        if kind == "boolean":
            return rules.rule(" | ".join(map(literal, BOOLEANS)), 0)[0]
        if kind == "string":
            return text_grammar(schema, rules)
        return rules.visit(schema, f"${self.name}")[0]


def text_grammar(schema: Mapping[str, Any], rules: SchemaRules, mark: str = MARK) -> str:
    """Lines of text, none of which begins with `mark`, within max_length.

    A grammar counts repetitions, not characters. So a text of at most `MAX_TEXT` characters is one line; a longer one
    has lines of two characters and more and no blank ones; one without max_length is open, and ends with max_tokens.
    """
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    begin = _without(mark)
    if most is None:
        more, count = rf'{_ANY} | "\n" "\n"? {begin}', "*"
    elif most <= MAX_TEXT:
        more, count = _ANY, f"{{{max(least - 1, 0)},{most - 1}}}"
    else:
        more, count = rf'{_ANY} | "\n" {begin}', f"{{{max(least - 1, 0)},{min(most // 2, _LONGEST_REPEAT) - 1}}}"
    body = f"{begin} {rules.rule(more, 0)[0]}{count}"
    return rules.rule(body if least else f"({body})?", 0)[0]


def _without(mark: str) -> str:
    """The class of visible characters without one of ASCII."""
    code = ord(mark)
    return rf"[\x21-\x{code - 1:02X}\x{code + 1:02X}-\x7E{_BEYOND}]"


def _words(schema: Mapping[str, Any], resolved: Any) -> str:
    schema = resolved(schema)
    if "anyOf" in schema:
        return " or ".join(_words(part, resolved) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        values = [_scalar_text(value) for value in schema.get("enum", [schema.get("const")])]
        whole = all(value.isdigit() for value in values) and len(values) > 2
        return f"{values[0]} to {values[-1]}" if whole else " or ".join(values)
    names = {"null": NONE, "boolean": "yes or no", "integer": "a whole number", "number": "a number", "string": "text"}
    return names.get(schema.get("type", ""), "JSON")


def _scalar_text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def _plain(schema: Mapping[str, Any], text: str, resolved: Any) -> Any:
    """Text to a plain value by schema; raises ValueError where it is none."""
    schema = resolved(schema)
    if "anyOf" in schema:
        parts = [resolved(part) for part in schema["anyOf"]]
        if text.lower() == NONE and any(part.get("type") == "null" for part in parts):
            return None
        for part in parts:
            try:
                return _plain(part, text, resolved)
            except ValueError:
                continue
        raise ValueError(f"not {_words(schema, resolved)}")
    if "enum" in schema or "const" in schema:
        values = {_scalar_text(value): value for value in schema.get("enum", [schema.get("const")])}
        if text not in values:
            raise ValueError(f"not {_words(schema, resolved)}")
        return values[text]
    kind = schema.get("type")
    if kind == "string":
        return text
    if kind == "boolean":
        return BOOLEANS[text.lower()] if text.lower() in BOOLEANS else json.loads(text.lower())
    if kind == "null":
        raise ValueError(f"not {NONE}")
    return json.loads(text)


def write_fields(signature: Any, values: Mapping[str, Any]) -> str:
    """An assistant's message: every output field of `signature` that `values` has, in the signature's order."""
    lines = []
    for name, field in signature.output_fields.items():
        if name in values:
            text = FieldFormat.of(name, field).write(values[name])
            lines.append(f"{MARK}{name}:" + (text if text.startswith("\n") or not text else f" {text}"))
    return "\n".join(lines)


def read_fields(signature: Any, completion: str) -> dict[str, Any]:
    """The values of a message in this format; raises DataError naming the first field that is missing or wrong.

    Markers are found from the end, each at its last place, so that a text cannot pass for the fields that follow it.
    """
    formats = [FieldFormat.of(name, field) for name, field in signature.output_fields.items()]
    rest, values = completion, {}
    for form in reversed(formats):
        places = list(re.finditer(rf"^[ \t]*{MARK}{re.escape(form.name)}:", rest, re.MULTILINE))
        if not places:
            raise DataError(f"the field {MARK}{form.name} is missing")
        values[form.name] = form.read(rest[places[-1].end() :])
        rest = rest[: places[-1].start()]
    return {form.name: values[form.name] for form in formats}


def fields_grammar(signature: Any) -> str:
    """GBNF whose texts `read_fields` takes, every one."""
    rules = SchemaRules()
    lines = []
    for name, field in signature.output_fields.items():
        lines.append(f"{literal(f'{MARK}{name}:')} {FieldFormat.of(name, field).grammar(rules)}")
    root = r' "\n" '.join(lines)
    return "\n".join([f"root ::= {root}", *rules.lines()])


def write_request(signature: Any, inputs: Mapping[str, Any]) -> str:
    """A user's message: the inputs, marked as the outputs are, and what is asked for.

    A line of an input that begins with the mark is moved by a blank, so that no text can pass for a field.
    """
    lines = []
    for name in signature.input_fields:
        if inputs.get(name) is not None:
            value = inputs[name]
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            lines.append(f"{MARK}{name}: " + re.sub(rf"^{MARK}", f" {MARK}", text.strip(), flags=re.MULTILINE))
    return "\n".join([*lines, "-> " + " ".join(MARK + name for name in signature.output_fields)])
