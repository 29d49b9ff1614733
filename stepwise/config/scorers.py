"""What goes with which kind of scorer; and an adapter of `stepwise train scorer` where a scorer is configured: it says
which model it reads with, and how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepwise.errors import DataError
from stepwise.io import read_json

TOKENS = {
    "marker": ("<|score|>", "<|good|>", "<|bad|>"),  # the lab's
    "steps": ("", "+", "-"),
    "text": ("ки", "+", "-"),
    "turns": ("", "+", "-"),
}
"""Marker, and the labels of a right and of a wrong step, by layout."""
SCORER_CARD = {
    "config.models.weak.model": str, "config.models.weak.train_from": str, "config.prompt": dict, "prompt_hash": str,
    "scorer.reading": dict, "scorer.calibration": dict,
}  # fmt: skip
"""What card.json of a trained scorer holds, for `stepwise.io.read_json`."""
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
    weak, reading = card["config"]["models"]["weak"], card["scorer"]["reading"]
    own = {name: given[name] for name in given if name != "model" or given.get("adapter")}
    made = {"model": weak["model"], "train_from": weak["train_from"], "adapter": named}
    return {**made, **reading, **own}


def _card(name: str) -> dict[str, Any] | None:
    """card.json of the adapter at `name`, None where there is none or it is no scorer's."""
    path = Path(name).expanduser()
    for folder in (path.parent,) if path.suffix == ".gguf" else (path / "adapter", path):
        if (file := folder / "card.json").is_file():
            try:
                card = read_json(file, "restore it")
                if not isinstance(card.get("scorer"), dict):
                    return None
                return read_json(file, "restore it", SCORER_CARD)
            except DataError as error:
                raise ValueError(str(error)) from None
    return None
