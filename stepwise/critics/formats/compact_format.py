"""The compact format: a short mark before each field, tables as rows, text as it is.

    #checks:
    0 | 41 | 41 | right
    1 | 39 | 37 | wrong
    #first_error: 1
    #content: Ana is left with
    41 - 4 = 37.

A mark counts at the beginning of a line only. A line of a text that begins with one (after blanks, or none) is written
with one more blank before it, which is taken away when a reply is read: so texts come back as they were, and no text
can pass for a field. Under the grammar no line of a text begins with a blank or a mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from stepwise.critics.formats.field_format import MARK, FieldFormat
from stepwise.errors import DataError
from stepwise.models.engine.gbnf import literal
from stepwise.models.engine.schema import SchemaRules

# A line may end in all the ways that Unicode knows; "->" is how a request ends.
_FORGED = re.compile(rf"(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])(?={MARK}|->)")


def fields_of(signature: Any) -> dict[str, FieldFormat]:
    """How each output field of `signature` is written and read, in its order.

    >>> from stepwise.critics.signatures import JudgeStep
    >>> [*fields_of(JudgeStep)]
    ['reason', 'right']
    """
    return {name: FieldFormat.of(name, field) for name, field in signature.output_fields.items()}


def write_fields(signature: Any, values: Mapping[str, Any]) -> str:
    """An assistant's message: every output field of `signature` that `values` has, in the signature's order.

    >>> from stepwise.critics.signatures import JudgeStep
    >>> print(write_fields(JudgeStep, {"reason": "1 + 1 is 2.", "right": False}))
    #reason: 1 + 1 is 2.
    #right: no
    """
    lines = []
    for name, form in fields_of(signature).items():
        if name in values:
            text = re.sub(rf"\n(?= *{MARK})", "\n ", form.write(values[name]))
            lines.append(f"{MARK}{name}:" + (text if text.startswith("\n") or not text else f" {text}"))
    return "\n".join(lines)


def read_fields(signature: Any, completion: str) -> dict[str, Any]:
    """The values of a message in this format; raises DataError naming the first field that is missing or wrong.

    Marks are found from the end, each at its last place, so that a text cannot pass for the fields that follow it.

    >>> from stepwise.critics.signatures import JudgeStep
    >>> read_fields(JudgeStep, write_fields(JudgeStep, {"reason": "1 + 1 is 2.", "right": False}))
    {'reason': '1 + 1 is 2.', 'right': False}
    """
    rest, texts = completion.lstrip(), {}
    for name in reversed(signature.output_fields):
        places = list(re.finditer(rf"^{MARK}{re.escape(name)}:", rest, re.MULTILINE))
        if places:
            texts[name] = re.sub(rf"\n (?= *{MARK})", "\n", rest[places[-1].end() :])
            rest = rest[: places[-1].start()]
    return typed(signature, texts)


def typed(signature: Any, raw: Mapping[str, Any], *, tables: bool = True) -> dict[str, Any]:
    """The values of the output fields, each from its text or from plain JSON; raises DataError naming the first field
    that is missing or wrong.

    A field that may be None must be there too, unless it has a default: a reply that was cut off says nothing.

    >>> from stepwise.critics.signatures import JudgeStep
    >>> typed(JudgeStep, {"reason": "1 + 1 is 2.", "right": "no"})
    {'reason': '1 + 1 is 2.', 'right': False}
    """
    values = {}
    for name, field in signature.output_fields.items():
        if name in raw:
            form, text = FieldFormat.of(name, field), raw[name]
            values[name] = form.read(text, table=tables) if isinstance(text, str) else form.valid(text)
        elif field.is_required():
            raise DataError(f"the field {name} is missing")
        else:
            values[name] = field.get_default(call_default_factory=True)
    return values


def fields_grammar(signature: Any) -> str:
    r"""GBNF whose texts `read_fields` takes, every one; and if the last field is text without max_length, every
    beginning of one that reaches into that text.

    >>> from stepwise.critics.signatures import JudgeStep
    >>> fields_grammar(JudgeStep).splitlines()[0]
    'root ::= "#reason:" " " r2 "\\n" "#right:" " " r3'
    """
    rules, forms = SchemaRules(), fields_of(signature)
    values = [form.grammar(rules, last=name == [*forms][-1]) for name, form in forms.items()]
    lines = [f"{literal(f'{MARK}{name}:')} {value}" for name, value in zip(forms, values, strict=True)]
    return "\n".join(["root ::= " + r' "\n" '.join(lines), *rules.lines()])


def chat_grammar(signature: Any) -> str:
    """GBNF of DSPy's chat format: each output field under its [[ ## header ## ]], texts and words as they are, all else
    as JSON.

    >>> from stepwise.critics.signatures import JudgeStep
    >>> "[[ ## right ## ]]" in chat_grammar(JudgeStep)
    True
    """
    rules, forms, parts = SchemaRules(), fields_of(signature), []
    for name, form in forms.items():
        rules.root = form.schema
        if "string" in form.types:
            value = form.value_grammar(rules, "[", last=name == [*forms][-1])
        else:
            value = rules.visit(form.schema, f"${name}")[0]
        parts.append(f"{literal(f'[[ ## {name} ## ]]')} {literal(chr(10))} {value} {literal(chr(10) * 2)}")
    return "\n".join([f"root ::= {' '.join([*parts, literal('[[ ## completed ## ]]')])}", *rules.lines()])


def write_request(signature: Any, inputs: Mapping[str, Any]) -> str:
    """A user's message: the inputs, marked as the outputs are, and what is asked for.

    A line of an input that begins with a mark is moved by a blank, so that no text can pass for a field, nor for the
    end of the request.

    >>> from stepwise.critics.signatures import JudgeStep
    >>> print(write_request(JudgeStep, {"problem": "1 + 1?", "attempt": "[0] It is 3."}))
    #problem: 1 + 1?
    #attempt: [0] It is 3.
    -> #reason #right
    """
    lines = []
    for name in signature.input_fields:
        if inputs.get(name) is not None:
            value = inputs[name]
            text = value if isinstance(value, str) else to_json(value, fallback=str).decode()
            lines.append(f"{MARK}{name}: " + _FORGED.sub(" ", text.strip()))
    return "\n".join([*lines, "-> " + " ".join(MARK + name for name in signature.output_fields)])
