"""How a typed signature becomes a prompt, and an answer becomes typed values: three formats, none of which loses one.

`adapter("compact")` is for small models, "chat" and "json" are DSPy's own formats. Where the model can be held to a
grammar or a schema, all three ask for it; where it cannot, a reply that does not parse is asked for once more, with the
model's own text and the error before it. That repair is a call like any other: it is in the usage and the history.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from stepwise.errors import ConfigError

Format = Literal["compact", "chat", "json"]

__all__ = ["Format", "adapter"]


def adapter(form: Format = "compact", *, bare: bool = False) -> Any:
    """The `dspy.Adapter` of a format, for `dspy.configure(adapter=...)` or the modules' `adapter=`.

    `bare` leaves the instructions out of compact prompts, for a model that was trained on the format (lab-critic).
    Raises ConfigError for an unknown format, and for `bare` with another than "compact".

    Example:
        >>> type(adapter("json")).__name__
        'JsonAdapter'
    """
    from stepwise.critics.formats import dspy_adapters

    if form not in get_args(Format):
        raise ConfigError(f"format {form!r} is not one of {', '.join(get_args(Format))}")
    if form == "compact":
        return dspy_adapters.CompactAdapter(bare=bare)
    if bare:
        raise ConfigError(f'bare is for the format "compact", not for {form!r}; leave it out')
    return dspy_adapters.ChatAdapter() if form == "chat" else dspy_adapters.JsonAdapter()
