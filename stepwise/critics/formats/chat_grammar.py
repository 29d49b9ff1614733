"""GBNF of DSPy's chat format, so that a model on the engine cannot leave it."""

from __future__ import annotations

from typing import Any

from stepwise.critics.formats.field_format import FieldFormat
from stepwise.models.engine.schema import SchemaRules, literal


def chat_grammar(signature: Any) -> str:
    """Every output field under its [[ ## header ## ]], texts and words as they are, all else as JSON."""
    rules = SchemaRules()
    parts = []
    last = list(signature.output_fields)[-1]
    for name, field in signature.output_fields.items():
        form = FieldFormat.of(name, field)
        rules.root = form.schema
        if form.may_be_text:
            value = form.value_grammar(rules, "[", last=name == last)
        else:
            value = rules.visit(form.schema, f"${name}")[0]
        parts.append(f"{literal(f'[[ ## {name} ## ]]')} {literal(chr(10))} {value} {literal(chr(10) * 2)}")
    root = " ".join([*parts, literal("[[ ## completed ## ]]")])
    return "\n".join([f"root ::= {root}", *rules.lines()])
