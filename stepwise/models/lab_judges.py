"""The lab's scorer and critic are refused for other models: they know nothing but lab problems."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepwise.config import ENGINE_KINDS, Config, LoadConfig
from stepwise.errors import ConfigError
from stepwise.lab import ADAPTERS, MODELS, model_path
from stepwise.lab.problems import is_lab_question
from stepwise.models.engine.weights import read_gguf
from stepwise.models.hub import PREFIX, gguf_path

_NAMED = re.compile(rf"(?<![\w-])(?:{'|'.join((*MODELS, *ADAPTERS))})(?![\w-])")
_ASKS = ("score", "score_detailed", "generate", "continue_solutions")
_DEPTH = 2  # how deep in an object of a user's its models are looked for
_WIDTH = 32  # and how many things in a list of it: longer ones are numbers
_REMEDY = "or allow this one: allow_lab = true (allow_lab=True in a script)"


def is_lab_model(model: Any) -> bool:
    """Whether a model (loaded, configured, or asked by a critic, a scorer or a policy) is the lab's, which has seen
    nothing but lab problems. A local one is known by its vocabulary, whatever it is called and wherever it lies, one
    behind an API by its name.

    Example:
        >>> is_lab_model(LoadConfig(model="llamacpp/lab-critic")), is_lab_model(LoadConfig(model="openai/NAME"))
        (True, False)
    """
    return any(map(_is_lab_name, _names(model)))


def critics_of(config: Config) -> dict[str, Any]:
    """Who finds first errors and who proposes a step in their place, as configured; None where no model is asked.

    >>> critics_of(Config.lab())["proposer"].model
    'llamacpp/lab-critic'
    """
    critic, method = config.models.critic, config.critic.method
    finds: Any = {"scorer": config.scorer, "reference": None}.get(method, critic)
    return {"localizer": finds, "proposer": None if method == "reference" else critic}


def refuse_lab_judge(judge: Any, role: str, weak: Any, allowed: bool) -> None:
    """Raise `ConfigError` where a scorer, critic or policy asks a model of the lab, the model that it is to judge is
    another, and that is not asked for (`allow_lab`). Each is loaded or configured.

    Example:
        refuse_lab_judge(scorer, "scorer", weak, allowed=False)  # raises for the lab's scorer and a model of one's own
    """
    if not allowed and is_lab_model(judge) and not is_lab_model(weak):
        raise ConfigError(
            f"{role}: {_called(judge)} is of the lab and knows nothing but lab problems, but the weak model is "
            f"{_called(weak)}; give a {role} for it, or a policy that needs none, {_REMEDY}"
        )


def refuse_lab_judge_of(questions: Iterable[str], judge: Any, role: str, allowed: bool) -> None:
    """The same where it is the problems that say what is judged: ConfigError where any is none of the lab's.

    >>> refuse_lab_judge_of(["What is 17 * 23?"], "openai/NAME", "critic", allowed=False)  # raises for the lab's critic
    """
    given = list(questions)
    strange = sum(not is_lab_question(question) for question in given)
    if strange and not allowed and is_lab_model(judge):
        raise ConfigError(
            f"{role}: {_called(judge)} is of the lab and knows nothing but lab problems, and {strange} of "
            f"{len(given)} are none; set another {role}, {_REMEDY}"
        )


def strange_to_the_lab(models: Mapping[str, Any], questions: Sequence[str]) -> Iterator[str]:
    """A line for each of the configured models, by role, that is of the lab and gets problems that are not.

    >>> list(strange_to_the_lab({"weak": LoadConfig(model="openai/NAME")}, ["What is 17 * 23?"]))
    []
    """
    strange = sum(not is_lab_question(question) for question in questions)
    for role, model in models.items():
        if strange and model.model.startswith("llamacpp/lab-"):
            yield (
                f"warning: {model.model} knows lab problems only, and {strange} of {len(questions)} are none: "
                f"set models.{role}.model"
            )


def _called(model: Any) -> str:
    name = getattr(model, "model", None) or getattr(model, "name", None)
    return name if isinstance(name, str) else next(iter(_names(model)), "that model")


def _names(model: Any, depth: int = 0) -> Iterator[str]:
    """Names of the models that an object asks, a local one's with its provider: its own, or those of what it holds."""
    engines = getattr(model, "engines", ())
    if isinstance(model, LoadConfig):
        if getattr(model, "kind", ENGINE_KINDS[0]) in ENGINE_KINDS:
            yield model.model
    elif isinstance(engines, list | tuple) and engines:
        yield from (f"llamacpp/{engine.path}" for engine in engines if getattr(engine, "path", None) is not None)
    elif hasattr(model, "lm"):  # a predictor of DSPy, a policy in words: None is the model that DSPy is configured with
        lm = model.lm or getattr(getattr(sys.modules.get("dspy"), "settings", None), "lm", None)
        yield lm if isinstance(lm, str) else str(getattr(lm, "model", "")).partition("@")[0]
    elif callable(predictors := getattr(model, "predictors", None)):  # a module of DSPy
        for each in (*predictors(), getattr(model, "scorer", None)):
            yield from _names(each, depth)
    else:
        if isinstance(name := getattr(model, "name", None), str) and any(hasattr(model, verb) for verb in _ASKS):
            yield name
        for value in vars(model).values() if depth < _DEPTH and hasattr(model, "__dict__") else ():
            for part in value[:_WIDTH] if isinstance(value, list | tuple) else [value]:
                yield from _names(part, depth + 1)


def _is_lab_name(name: str) -> bool:
    local = name.removeprefix("llamacpp/")
    if local == name:
        return _NAMED.search(name) is not None
    file = None if local.startswith(PREFIX) else gguf_path(local)  # the lab's are on no hub
    return file is not None and file.is_file() and _has_lab_vocabulary(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _has_lab_vocabulary(path: Path, mtime_ns: int) -> bool:
    tokens, lab = (read_gguf(file).fields.get("tokenizer.ggml.tokens", ()) for file in (path, model_path("lab-weak")))
    return bool(tokens) and list(tokens) == list(lab)
