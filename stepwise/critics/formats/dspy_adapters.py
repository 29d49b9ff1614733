"""The three adapters: DSPy's chat and JSON formats and the compact one, constrained where possible, with a repair.

What differs from DSPy's own:
1. No second call that nobody sees (its chat adapter falls back to JSON without a word). The repair shows the model what
   it wrote and why that cannot be read; after it the error carries both texts.
2. Constraints of a field (`Field(ge=0, le=3)`) hold: they are in the grammar or schema, and are checked when a reply is
   read. DSPy checks the bare type only.
3. A field that may be None and is missing makes a reply unreadable, rather than None: a verdict that was cut off is not
   "no error". Likewise `false` is no 0.
4. No text of an input can pass for a field's header.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import dspy
from dspy.adapters.base import Adapter
from dspy.utils.exceptions import AdapterParseError

from stepwise.critics.formats import compact_format
from stepwise.critics.formats.field_format import MARK, MAX_REPEAT, parsed_json
from stepwise.errors import DataError, redact

_REPAIR = "__repair__"
_HEADER = re.compile(r"^[ \t]*\[\[ ## (\w+) ## \]\]", re.MULTILINE)
_FORGED = re.compile(r"\[\[ (?=## \w+ ## \]\])")
_SIZES = (
    *("minLength", "maxLength", "minItems", "maxItems"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
)
_HOSTED_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
repair_reasons: ContextVar[list[str] | None] = ContextVar("stepwise_repairs", default=None)
"""Where it is a list, the reason of every repair is added to it."""


@contextmanager
def held(variable: ContextVar[Any], value: Any) -> Iterator[Any]:
    """`variable` has `value` inside the block.

    >>> depth = ContextVar("depth", default=0)
    >>> with held(depth, 1):
    ...     depth.get()
    1
    """
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


def _takes_grammar(lm: Any) -> bool:
    """Whether the model can be held to a GBNF: those that run on the engine, and doubles that say so."""
    return str(getattr(lm, "model", "")).startswith("llamacpp/") or bool(getattr(lm, "supports_grammar", False))


def _hold(lm: Any, lm_kwargs: dict[str, Any], gbnf: str) -> None:
    """Put a grammar into the options of a call, in the way that the model's engine takes one."""
    form = getattr(getattr(lm, "engine", None), "grammar_format", None)
    if form is None:
        lm_kwargs["grammar"] = gbnf
    else:
        lm_kwargs["response_format"] = form(gbnf)


class _Repairing(ABC):
    """One call, and where its reply cannot be read, one more that says why."""

    @abstractmethod
    def constrain(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """Put into `lm_kwargs` what holds the model to the format, where `lm` takes it."""

    @abstractmethod
    def read(self, signature: Any, completion: str) -> dict[str, Any]:
        """The typed values of a reply; raises DataError naming the first field that is missing or wrong."""

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        self.constrain(lm, lm_kwargs, signature)
        outputs: list[dict[str, Any]] = []
        with _to_repair(inputs) as again:
            outputs = Adapter.__call__(self, lm, dict(lm_kwargs), signature, demos, inputs)
        if again:
            with self._given_up(signature, again):
                outputs = Adapter.__call__(self, lm, dict(lm_kwargs), signature, demos, again)
        return outputs

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        self.constrain(lm, lm_kwargs, signature)
        outputs: list[dict[str, Any]] = []
        with _to_repair(inputs) as again:
            outputs = await Adapter.acall(self, lm, dict(lm_kwargs), signature, demos, inputs)
        if again:
            with self._given_up(signature, again):
                outputs = await Adapter.acall(self, lm, dict(lm_kwargs), signature, demos, again)
        return outputs

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> Any:
        """The prompt of a call, of a repair too, where `inputs` says that it is one: a list of messages, or from DSPy
        3.5 on its `Prompt` of a system text and messages.
        """
        given = dict(inputs)
        repair = given.pop(_REPAIR, None)
        prompt = super().format(signature, demos, given)  # type: ignore[misc]
        if repair is None:
            return prompt
        raw, reason = repair
        asked = f"That cannot be read: {reason}. Write it again, complete and in the format asked for."
        if isinstance(prompt, list):
            return [*prompt, {"role": "assistant", "content": raw}, {"role": "user", "content": asked}]
        again = dspy.lm15.Message.assistant(raw), dspy.lm15.Message.user(asked)
        return type(prompt)(system=prompt.system, messages=[*prompt.messages, *again])

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """`read`, but with DSPy's AdapterParseError, which holds the raw text and the reason."""
        try:
            return self.read(signature, completion)
        except DataError as error:
            raise AdapterParseError(type(self).__name__, signature, completion, str(error)) from error

    def format_finetune_data(
        self, signature: Any, demos: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]
    ) -> dict[str, list[Any]]:
        """A whole conversation with the right reply, for training on."""
        content = self.format_assistant_message_content(signature, outputs)  # type: ignore[attr-defined]
        messages = _as_chat(self.format(signature, demos, inputs))
        return {"messages": [*messages, {"role": "assistant", "content": content}]}

    @contextmanager
    def _given_up(self, signature: Any, again: Mapping[str, Any]) -> Iterator[None]:
        """What is raised after a repair that did not help holds both texts."""
        raw, reason = again[_REPAIR]
        first = f"First: {redact(raw[:500])!r} ({reason})"
        try:
            yield
        except dspy.ContextWindowExceededError:
            fault = f"what the model wrote cannot be read, and with it the prompt is too long to ask again. {first}"
        except AdapterParseError as error:
            raw = error.lm_response or ""
            then = f"{redact(raw[:500])!r} ({_reason(error)})"
            fault = f"asked twice, the model wrote nothing that can be read. {first}. Then: {then}"
        else:
            return
        raise AdapterParseError(type(self).__name__, signature, raw, fault)


def _as_chat(prompt: Any) -> list[dict[str, Any]]:
    """A prompt of either kind as messages of an API."""
    if isinstance(prompt, list):
        return prompt
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, *({"role": message.role, "content": message.text} for message in prompt.messages)]


@contextmanager
def _to_repair(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Where the reply cannot be read, what is yielded becomes the inputs of a call that shows it, with the reason."""
    again: dict[str, Any] = {}
    try:
        yield again
    except AdapterParseError as error:
        raw = error.lm_response if isinstance(error.__cause__, DataError) else ""
        again |= {**inputs, _REPAIR: (raw or "(nothing)", _reason(error))}
        reasons = repair_reasons.get()
        if reasons is not None:
            reasons.append(_reason(error))


def _reason(error: AdapterParseError) -> str:
    return str(error.__cause__) if isinstance(error.__cause__, DataError) else "it is empty"


class _Headed(_Repairing):
    """What DSPy's two formats share: headers in requests, values as JSON."""

    def format_user_message_content(self, signature: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        """DSPy's, but what looks like a header inside an input loses a blank."""
        shown = {name: _FORGED.sub("[[", v) if isinstance(v, str) else v for name, v in inputs.items()}
        return super().format_user_message_content(signature, shown, *args, **kwargs)  # type: ignore[misc,no-any-return]

    @abstractmethod
    def written(self, completion: str) -> Mapping[str, Any]:
        """What stands in a reply, by field: texts or plain JSON."""

    def read(self, signature: Any, completion: str) -> dict[str, Any]:
        """See the base class."""
        raw = self.written(completion)
        return compact_format.typed(signature, raw, tables=False)


class ChatAdapter(_Headed, dspy.ChatAdapter):  # type: ignore[misc]
    """DSPy's chat format ([[ ## field ## ]]), held to it where the model takes a grammar.

    Example:
        localizer = sw.ErrorLocalizer("llamacpp/lab-critic", adapter=ChatAdapter())  # as adapter="chat"
    """

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)

    def constrain(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """Adds the grammar of the format."""
        if _takes_grammar(lm):
            _hold(lm, lm_kwargs, compact_format.chat_grammar(signature))

    def written(self, completion: str) -> Mapping[str, Any]:
        """The text under each header, under the first where there are several of a name."""
        pieces = _HEADER.split(completion)[1:]
        return dict(reversed(list(zip(pieces[::2], pieces[1::2], strict=True))))


class JsonAdapter(_Headed, dspy.JSONAdapter):  # type: ignore[misc]
    """DSPy's JSON format, with the schema as response_format where the model takes one.

    Example:
        localizer = sw.ErrorLocalizer("openai/NAME", adapter=JsonAdapter())
    """

    def __init__(self) -> None:
        super().__init__(use_native_function_calling=False)

    def constrain(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """Adds the response_format, a schema where possible."""
        if "response_format" not in lm.supported_params:
            return
        schema = _response_schema(signature, sizes=_takes_grammar(lm))
        if lm.supports_response_schema and schema is not None:
            outputs = {"name": "outputs", "strict": True, "schema": schema}
            lm_kwargs["response_format"] = {"type": "json_schema", "json_schema": outputs}
        else:
            lm_kwargs["response_format"] = {"type": "json_object"}

    def written(self, completion: str) -> Mapping[str, Any]:
        """The members of the JSON object in a reply."""
        found = parsed_json(completion)
        if not isinstance(found, dict):
            found = parsed_json(completion[completion.find("{") :])  # prose before it
        if not isinstance(found, dict):
            raise DataError("the reply is not a JSON object")
        return found


def _response_schema(signature: Any, *, sizes: bool) -> dict[str, Any] | None:
    """The JSON schema of the output fields as strict modes want it: every property required, no others.

    None where the schema has a map (`dict[str, int]`) or `Any` and `sizes` is False. `sizes` keeps the limits of
    numbers, lengths and lists, which the engine holds to and hosted models refuse; it also lets texts without a limit
    have `MAX_REPEAT` characters, of which the engine would allow fewer.
    """
    properties, definitions = {}, {}
    for name, form in compact_format.fields_of(signature).items():
        properties[name] = dict(form.schema)
        definitions.update(properties[name].pop("$defs", {}))
        if sizes and form.is_text and "type" in properties[name]:
            properties[name].setdefault("maxLength", MAX_REPEAT)
    schema = {"type": "object", "properties": properties, **({"$defs": definitions} if definitions else {})}
    return schema if _made_strict(schema, sizes) or sizes else None


def _made_strict(schema: dict[str, Any], sizes: bool) -> bool:
    """Changes `schema` and what is in it; whether it has no map, and nothing that may be any value."""
    if not sizes:
        for key in _SIZES:
            schema.pop(key, None)
        if schema.get("format") not in _HOSTED_FORMATS:
            schema.pop("format", None)
    strict = bool(schema.keys() & {"type", "$ref", "anyOf", "allOf", "enum", "const"})  # else it is any value
    if "properties" in schema:
        schema.update(required=list(schema["properties"]), additionalProperties=False)
    elif schema.get("type") == "object":
        strict = False
    inner = [part for key in ("properties", "$defs") for part in schema.get(key, {}).values()]
    inner += [*schema.get("anyOf", []), *schema.get("prefixItems", []), schema.get("items")]
    return all([strict, *(_made_strict(part, sizes) for part in inner if isinstance(part, dict))])


class CompactAdapter(_Repairing, Adapter):  # type: ignore[misc]
    """Short field markers for small models; see `compact_format`. `bare` leaves the instructions out.

    Example:
        localizer = sw.ErrorLocalizer("llamacpp/lab-critic", adapter=CompactAdapter(bare=True))
    """

    def __init__(self, *, bare: bool = False) -> None:
        super().__init__()
        self.bare = bare

    def constrain(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """Adds the grammar of the format."""
        if _takes_grammar(lm):
            _hold(lm, lm_kwargs, compact_format.fields_grammar(signature))

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> Any:
        """The prompt of a call, without a system message where there are no instructions."""
        prompt = super().format(signature, demos, inputs)
        if isinstance(prompt, list):
            return [message for message in prompt if message["content"]]
        return type(prompt)(system=prompt.system or None, messages=list(prompt.messages))

    def format_system_message(self, signature: Any) -> str:
        """The signature's instructions, and a line on what goes into each output field."""
        if self.bare:
            return ""
        lines = [signature.instructions, "Reply with these fields and nothing else:"]
        for name, form in compact_format.fields_of(signature).items():
            described = (signature.output_fields[name].json_schema_extra or {}).get("desc", "")
            about = "" if described == f"${{{name}}}" else f"; {described}"
            lines.append(f"{MARK}{name}: {form.kind}{about}")
        return "\n".join(lines)

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """The inputs under their markers, and which fields to reply with."""
        return "\n".join(filter(None, (prefix, compact_format.write_request(signature, inputs), suffix)))

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """A reply in the format, for examples in the prompt and for training."""
        given = {name: outputs[name] for name in signature.output_fields if outputs.get(name, ...) is not ...}
        return compact_format.write_fields(signature, given)

    def read(self, signature: Any, completion: str) -> dict[str, Any]:
        """See the base class."""
        return compact_format.read_fields(signature, completion)
