"""The three adapters: DSPy's chat and JSON formats and the compact one, constrained where possible, with a repair.

What differs from DSPy's own: no second call that nobody sees (its chat adapter falls back to JSON without a word); the
repair shows the model what it wrote and why that cannot be read; after it the error carries both texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import dspy
from dspy.adapters.base import Adapter
from dspy.utils.exceptions import AdapterParseError

from stepwise.adapters import compact_format
from stepwise.adapters.chat_grammar import chat_grammar
from stepwise.errors import DataError
from stepwise.redact import redact

_REPAIR = "__repair__"
_repairs: ContextVar[list[str] | None] = ContextVar("stepwise_repairs", default=None)


@contextmanager
def recorded_repairs() -> Iterator[list[str]]:
    """Collects the reason of every repair that is asked for inside the block."""
    reasons: list[str] = []
    token = _repairs.set(reasons)
    try:
        yield reasons
    finally:
        _repairs.reset(token)


def takes_grammar(lm: Any) -> bool:
    """Whether the model can be held to a GBNF: those that run on the engine, and doubles that say so."""
    return str(getattr(lm, "model", "")).startswith("llamacpp/") or bool(getattr(lm, "supports_grammar", False))


class _Repairing:
    """One call, and where its reply cannot be read, one more that says why."""

    def constrain(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """Put into `lm_kwargs` what holds the model to the format, where `lm` takes it."""

    def __call__(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        self.constrain(lm, lm_kwargs, signature)
        try:
            return Adapter.__call__(self, lm, dict(lm_kwargs), signature, demos, inputs)  # type: ignore[no-any-return]
        except AdapterParseError as error:
            again = _asked_again(inputs, error)
        try:
            return Adapter.__call__(self, lm, dict(lm_kwargs), signature, demos, again)  # type: ignore[no-any-return]
        except AdapterParseError as error:
            raise _twice_unread(error, again) from None

    async def acall(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[Any], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        self.constrain(lm, lm_kwargs, signature)
        try:
            return await Adapter.acall(self, lm, dict(lm_kwargs), signature, demos, inputs)  # type: ignore[no-any-return]
        except AdapterParseError as error:
            again = _asked_again(inputs, error)
        try:
            return await Adapter.acall(self, lm, dict(lm_kwargs), signature, demos, again)  # type: ignore[no-any-return]
        except AdapterParseError as error:
            raise _twice_unread(error, again) from None

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages of a call; of a repair too, where `inputs` says that it is one."""
        given = dict(inputs)
        repair = given.pop(_REPAIR, None)
        messages: list[dict[str, Any]] = super().format(signature, demos, given)  # type: ignore[misc]
        if repair is not None:
            raw, reason = repair
            asked = f"That cannot be read: {reason}. Write it again, complete and in the format asked for."
            messages += [{"role": "assistant", "content": raw}, {"role": "user", "content": asked}]
        return messages


def _asked_again(inputs: Mapping[str, Any], error: AdapterParseError) -> dict[str, Any]:
    reason = _reason(error)
    reasons = _repairs.get()
    if reasons is not None:
        reasons.append(reason)
    return {**inputs, _REPAIR: (error.lm_response or "(nothing)", reason)}


def _reason(error: AdapterParseError) -> str:
    cause = error.__cause__
    if isinstance(cause, DataError):
        return str(cause)
    found = error.parsed_result
    missing = [name for name in error.signature.output_fields if name not in (found or {})]
    if found is not None and missing:
        return f"the fields {', '.join(missing)} are missing"
    return str(cause or "it is not in the format asked for").splitlines()[0][:200]


def _twice_unread(error: AdapterParseError, again: Mapping[str, Any]) -> AdapterParseError:
    raw, reason = again[_REPAIR]
    return AdapterParseError(
        adapter_name=error.adapter_name,
        signature=error.signature,
        lm_response=error.lm_response,
        message=(
            f"asked twice, the model wrote nothing that can be read. First: {redact(raw[:500])!r} ({reason}). "
            f"Then: {redact((error.lm_response or '')[:500])!r} ({_reason(error)})"
        ),
        parsed_result=error.parsed_result,
    )


class ChatAdapter(_Repairing, dspy.ChatAdapter):  # type: ignore[misc]
    """DSPy's chat format ([[ ## field ## ]]), held to it where the model takes a grammar."""

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)

    def constrain(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """Adds the grammar of the format."""
        if takes_grammar(lm):
            lm_kwargs["grammar"] = chat_grammar(signature)


class JsonAdapter(_Repairing, dspy.JSONAdapter):  # type: ignore[misc]
    """DSPy's JSON format, with the schema as response_format where the model takes one."""

    def __init__(self) -> None:
        super().__init__(use_native_function_calling=False)

    def constrain(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """Adds the response_format, a schema where possible."""
        self._prepare_response_format(lm, lm_kwargs, signature)


class CompactAdapter(_Repairing, Adapter):  # type: ignore[misc]
    """Short field markers for small models; see `compact_format`. `bare` leaves the instructions out."""

    def __init__(self, *, bare: bool = False) -> None:
        super().__init__()
        self.bare = bare

    def constrain(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        """Adds the grammar of the format."""
        if takes_grammar(lm):
            lm_kwargs["grammar"] = compact_format.fields_grammar(signature)

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages of a call, without a system message where there are no instructions."""
        return [message for message in super().format(signature, demos, inputs) if message["content"]]

    def format_system_message(self, signature: Any) -> str:
        """The signature's instructions, and a line on what goes into each output field."""
        if self.bare:
            return ""
        lines = [signature.instructions, "Reply with these fields and nothing else:"]
        for name, field in signature.output_fields.items():
            described = (field.json_schema_extra or {}).get("desc", "")
            about = "" if described == f"${{{name}}}" else f"; {described}"
            kind = compact_format.FieldFormat.of(name, field).kind
            lines.append(f"{compact_format.MARK}{name}: {kind}{about}")
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

    def format_finetune_data(
        self, signature: Any, demos: list[Any], inputs: dict[str, Any], outputs: dict[str, Any]
    ) -> dict[str, list[Any]]:
        """A whole conversation with the right reply, for training on."""
        reply = {"role": "assistant", "content": self.format_assistant_message_content(signature, outputs)}
        return {"messages": [*self.format(signature, demos, inputs), reply]}

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """The typed values; raises AdapterParseError with the raw text and the reason."""
        try:
            return compact_format.read_fields(signature, completion)
        except DataError as error:
            raise AdapterParseError(
                adapter_name="CompactAdapter", signature=signature, lm_response=completion, message=str(error)
            ) from error
