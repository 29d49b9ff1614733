"""GBNF of DSPy's chat format, so that a model on the engine cannot leave it."""

from __future__ import annotations

from typing import Any

from stepwise.adapters.field_format import FieldFormat, text_grammar
from stepwise.engine.schema import SchemaRules, literal


def chat_grammar(signature: Any) -> str:
    """Every output field under its [[ ## header ## ]], values as JSON but for plain text, and the closing header."""
    rules = SchemaRules()
    parts = []
    last = list(signature.output_fields)[-1]
    for name, field in signature.output_fields.items():
        form = FieldFormat.of(name, field)
        rules.root = form.schema
        if form.is_text:
            value = text_grammar(form.schema, rules, without="[", open_text=name == last)
        else:
            value = rules.visit(form.schema, f"${name}")[0]
        parts.append(f"{literal(f'[[ ## {name} ## ]]')} {literal(chr(10))} {value} {literal(chr(10) * 2)}")
    root = " ".join([*parts, literal("[[ ## completed ## ]]")])
    return "\n".join([f"root ::= {root}", *rules.lines()])
