"""Keywords of JSON schema: what no grammar can hold to, what types a schema has, and schemas made looser."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from stepwise.models.engine.gbnf import FORMATS

REFUSED = (
    *("pattern", "multipleOf", "uniqueItems", "not", "if", "patternProperties", "contains", "dependencies"),
    *("dependentSchemas", "dependentRequired", "unevaluatedProperties", "unevaluatedItems"),
    *("$dynamicRef", "$recursiveRef"),
)
"""What cannot be held to by a bounded grammar."""
LIMITS = ("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
CHECKS = (
    *("$ref", "enum", "const", "anyOf", "oneOf", "allOf", "properties", "required", "additionalProperties", "items"),
    *("prefixItems", "minItems", "maxItems", "minProperties", "maxProperties", "format", "propertyNames", *LIMITS),
)
"""What a schema says of values; beside a reference, alternatives or fixed values it is not combined with them."""
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,), "null": (type(None),),
    "array": (list,), "object": (dict,),
}  # fmt: skip


def within(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a fixed value keeps the `LIMITS` of its schema.

    >>> within("abc", {"maxLength": 2}), within(5, {"minimum": 1, "maximum": 9})
    (False, True)
    """
    if isinstance(value, str):
        return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    return bool(above < value < below and schema.get("minimum", value) <= value <= schema.get("maximum", value))


def implied(schema: Mapping[str, Any]) -> str:
    """The type of a schema that names none; "any" where it says nothing at all, "" where it cannot be known.

    >>> implied({"properties": {}}), implied({"items": {}}), implied({})
    ('object', 'array', 'any')
    """
    if any(key in schema for key in ("properties", "required", "additionalProperties")):
        return "object"
    if any(key in schema for key in ("items", "prefixItems")):
        return "array"
    return "" if any(key in schema for key in CHECKS) else "any"


def kinds(schema: Mapping[str, Any]) -> set[str] | None:
    """The types of a schema, None where they are not said; integers are numbers.

    >>> sorted(kinds({"type": ["integer", "null"]}))
    ['null', 'number']
    """
    named = schema.get("type", implied(schema))
    named = {named} if isinstance(named, str) else set(named)
    return None if named & {"", "any"} else {"number" if kind == "integer" else kind for kind in named}


def apart(one: Any, other: Any, resolved: Callable[[Any], Any]) -> bool:
    """Whether no value that is right for one schema is right for the other, as far as can be seen from their types,
    their fixed values, and the fixed values of properties that both have. `resolved` follows references.

    >>> apart({"type": "string"}, {"type": "null"}, lambda schema: schema)
    True
    """
    one, other = resolved(one), resolved(other)
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return False
    values = [_values(one), _values(other)]
    if values[0] is not None and values[1] is not None:
        return not values[0] & values[1]
    types = [kinds(one), kinds(other)]
    if types[0] is not None and types[1] is not None and not types[0] & types[1]:
        return True
    required = set(one.get("required", ())) & set(other.get("required", ()))
    shared = required & one.get("properties", {}).keys() & other.get("properties", {}).keys()
    return any(apart(one["properties"][key], other["properties"][key], resolved) for key in shared)


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The fixed values of a schema, None where there are others."""
    fixed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    return None if fixed is None else {json.dumps(value) for value in fixed}


def references(schema: Any) -> set[str]:
    """All references in a schema, those of definitions inside it left out.

    >>> references({"items": {"$ref": "#/$defs/Step"}})
    {'#/$defs/Step'}
    """
    if isinstance(schema, list):
        return set().union(*map(references, schema))
    if not isinstance(schema, Mapping):
        return set()
    parts = [value for key, value in schema.items() if key not in ("$defs", "definitions")]
    own = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(references, parts))


def loosened(schema: Any) -> Any:
    """A schema without what `schema_grammar` cannot hold to, where what is left may be more than was meant: for callers
    who check the values that are read.

    Of alternatives, those that would be held to less than the others are left out.

    >>> loosened({"type": "array", "items": {"type": "string", "format": "regex"}, "uniqueItems": True})
    {'type': 'array', 'items': {'type': 'string'}}
    """
    if isinstance(schema, list):
        return [loosened(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {key: value for key, value in schema.items() if key not in (*REFUSED, "oneOf", "discriminator")}
    if "oneOf" in schema:
        result["anyOf"] = schema["oneOf"]
    if isinstance(schema.get("format"), str) and schema["format"] not in FORMATS:
        del result["format"]
    elif "format" in result:
        result = {key: value for key, value in result.items() if key not in ("minLength", "maxLength")}
    if isinstance(values := schema.get("patternProperties"), Mapping):
        result["additionalProperties"] = {"anyOf": list(values.values())}
    if isinstance(parts := result.get("anyOf"), list):
        exact = [part for part in parts if not isinstance(part, Mapping) or not set(part) & {"pattern", "multipleOf"}]
        result["anyOf"] = exact or parts
    for key in ("properties", "$defs"):  # their keys are names, not words of a schema
        if isinstance(parts := result.get(key), Mapping):
            result[key] = {name: loosened(part) for name, part in parts.items()}
    for key in ("anyOf", "allOf", "prefixItems", "items", "additionalProperties", "propertyNames"):
        if key in result:
            result[key] = loosened(result[key])
    return result
