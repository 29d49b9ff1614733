"""What goes with which kind of scorer; and an adapter of `stepwise train scorer` where a scorer is configured: it says
which model it reads with, and how.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOKENS = {
    "marker": ("<|score|>", "<|good|>", "<|bad|>"),  # the lab's
    "steps": ("", "+", "-"),
    "text": ("ки", "+", "-"),
    "turns": ("", "+", "-"),
}
"""Marker, and the labels of a right and of a wrong step, by layout."""
TEMPLATE_NEEDS = {"judge": "{steps}", "generative": ""}  # the name or file of a form is no template itself
KINDS_OF_KEY = {
    "options": ("my_file:MyScorer",),
    "layout": ("label_token",),
    "template": ("label_token", "judge", "generative"),
    "step_template": ("label_token",),
    "marker": ("label_token", "classifier", "pooling"),
    "good": ("label_token", "judge"),
    "bad": ("label_token", "judge"),
    "dtype": ("classifier",),
    "device": ("classifier",),
    "ask": ("judge", "generative"),
    "votes": ("generative",),
    "critique_tokens": ("generative",),
    "value": ("constant",),
    "calibration": ("label_token",),
    "force": ("probe",),
    "api_base": ("label_token", "pooling", "judge", "generative"),
}
"""The kinds that a key of [scorer] means something to."""
PLACES = {"device", "api_base"}  # where it runs, which changes no score


def scorer_of_adapter(value: Any) -> Any:
    """The fields of [scorer] with those that the adapter's card has, where `adapter` or `model` names such an adapter
    (its directory, its run's, its GGUF); what is given beside it stays. Anything else is returned as it is.

    >>> scorer_of_adapter({"model": "llamacpp/lab-scorer"})
    {'model': 'llamacpp/lab-scorer'}
    """
    given = {"model": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        return value
    named = str(given.get("adapter") or given.get("model", "")).removeprefix("llamacpp/")
    if (card := _card(named)) is None:
        return value
    weak = card["config"]["models"]["weak"]
    own = {name: given[name] for name in given if name != "model" or given.get("adapter")}
    made = {"model": weak["model"], "train_from": weak["train_from"], "adapter": named}
    return {**made, **card["scorer"]["reading"], **own}


def _card(name: str) -> dict[str, Any] | None:
    """card.json of the adapter at `name`, None where there is none or it is no scorer's."""
    path = Path(name).expanduser()
    for folder in (path.parent,) if path.suffix == ".gguf" else (path / "adapter", path):
        if (file := folder / "card.json").is_file():
            try:
                card = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file} is not JSON ({error}); restore it") from None
            return card if isinstance(card, dict) and isinstance(card.get("scorer"), dict) else None
    return None
