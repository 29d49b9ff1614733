"""Every error of the library: one root, and each class is also the stdlib error a caller would expect.

A message says what is wrong, where (file, field, value), and the remedy. Adding one: inherit from `StepwiseError` and
from the nearest stdlib error, keep the constructor's arguments equal to `args` (so that it pickles), and name the
remedy.
"""

from __future__ import annotations

import functools
import html
import inspect
import json
import os
import re
import reprlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

_KEY_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|hf|gsk|xai|glpat|pypi|gh[pousr]|github_pat|xox[abprs])[-_][A-Za-z0-9_\-*.]{6,}"
    r"|\bAIza[A-Za-z0-9_\-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|(?<=Bearer )[A-Za-z0-9._\-]{8,}"
)
_SECRET_NAMES = re.compile(  # also MY_KEYS, API_KEY_2 and TOKEN_PROD; not SSH_KEY_PATH
    r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?\d*"
    r"(?:_(?!(?:PATH|FILE|DIR|URL|ID|NAME|TYPE|ENV)$)[A-Z0-9]+)?$"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIECE = 8  # characters: shorter pieces of a key are not looked for
_configured: set[str] = set()
REDACTED = "[secret]"


def keep_secret(variable: str) -> None:
    """From now on the value of this environment variable is a secret, whatever its name is (see `api_key_env`).

    Example:
        keep_secret("MY_PROVIDER")  # as api_key_env = "MY_PROVIDER" in a configuration does
        redact(f"refused: {os.environ['MY_PROVIDER']}")  # "refused: [secret]"
    """
    _configured.add(variable)


def redact(text: str, *, shapes: bool = True, as_json: bool = False) -> str:
    """`text` without secrets: the one way out for what goes to a file, a page, a log, an error or a terminal.

    Taken out are the values of all variables that a configuration names (`keep_secret`), also their pieces of at least
    8 characters, as a text that was cut leaves them; the values of at least 8 characters of variables whose name is
    like a secret's (KEY, TOKEN, SECRET, PASSWORD and their kind at its end, or one word before it); and, with `shapes`,
    whatever looks like an API key. Files of data are written without `shapes`, since a word that looks like a key may
    be one of a problem's. What is JSON is given `as_json` and stays JSON: no quote or escape of it is taken for a part
    of a value.

    >>> redact("Incorrect API key provided: sk-proj-abc123DEF456")
    'Incorrect API key provided: [secret]'
    """
    named = {value for name in _configured if len(value := os.environ.get(name, "")) >= _PIECE // 2}
    alike = {value for name in os.environ if _like_a_secret(name) and len(value := os.environ.get(name, "")) >= _PIECE}
    for value in sorted(named | alike, key=len, reverse=True):
        for form in (value, html.escape(value), quote(value, safe="")):
            for written in (*_json_forms(form), *(() if as_json else (form,))):
                text = text.replace(written, REDACTED)
    for value in named:
        for forms in (*zip(*map(_json_forms, value), strict=True), *(() if as_json else (value,))):
            text = _without_pieces(text, forms)
    return _KEY_SHAPES.sub(REDACTED, text) if shapes else text


@functools.lru_cache(4096)  # every line of an answer store asks again, of every variable
def _like_a_secret(variable: str) -> bool:
    return _SECRET_NAMES.search(variable.upper()) is not None


def _json_forms(text: str) -> tuple[str, str]:
    """A text as it stands in JSON. These are looked for first: to cut an escape in two would break the JSON."""
    return json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]


def _without_pieces(text: str, value: Sequence[str]) -> str:
    """`text` without pieces of at least 8 characters of a value, each of which is given in its form in the text."""
    for start in range(len(value) - _PIECE + 1):
        piece = "".join(value[start : start + _PIECE])
        at = text.find(piece)
        while at >= 0:
            end, following = at + len(piece), start + _PIECE
            while following < len(value) and text.startswith(value[following], end):
                end, following = end + len(value[following]), following + 1
            text = text[:at] + REDACTED + text[end:]
            at = text.find(piece, at)
    return text


def visible(text: str) -> str:
    r"""`text` for a terminal: without secrets, and its control characters, save line feed and tab, as escapes.

    A model must not drive the terminal.

    >>> print(visible("\x1b[31mred"))
    \x1b[31mred
    """
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", redact(text))


def reason_of(error: Exception, names: Sequence[str] = ()) -> str:
    r"""What an exception says, on one line; of pydantic's, each field with its fault and value, and no URL.

    `names` are those of arguments given by position.

    >>> reason_of(OSError("no\n such  file")), reason_of(ValueError())
    ('no such file', 'ValueError')
    """
    if not callable(listed := getattr(error, "errors", None)):
        return " ".join(str(error).split()) or type(error).__name__
    lines = []
    for item in listed(include_url=False):
        place, fault = list(item["loc"]), item["msg"].removeprefix("Value error, ")
        if names and place and isinstance(place[0], int):
            place[0] = names[place[0]]
        field = ".".join(map(str, place))
        if item["type"] == "missing":
            lines.append(f"{field} is missing")
        elif item["type"] == "value_error":  # one of ours, or of a user's, which names its value itself
            lines.append(f"{field}: {fault}" if field else fault)
        else:
            lines.append(f"{field} is {redact(reprlib.repr(item['input']))}: {fault[:1].lower()}{fault[1:]}")
    return "; ".join(lines)


def wrong_type(name: str, value: Any, remedy: str) -> str:
    """The message that `value`, given as `name`, is of a wrong type.

    >>> wrong_type("problem", 5, "give a Problem")
    'problem is 5 (int); give a Problem'
    """
    if inspect.iscoroutine(value):
        return f"{name} is a coroutine; await it first"
    kind = (
        f"the class {value.__name__}" if inspect.isclass(value) else f"{reprlib.repr(value)} ({type(value).__name__})"
    )
    return redact(f"{name} is {kind}; {remedy}")


class StepwiseError(Exception):
    """Root of every error that this library raises on purpose.

    Example:
        >>> try:
        ...     raise DataError("problems.jsonl, row 3: the question is empty; write one")
        ... except StepwiseError as error:
        ...     print(error)
        problems.jsonl, row 3: the question is empty; write one
    """


class ConfigError(StepwiseError, ValueError):
    """A configuration file, key or value is wrong.

    >>> from stepwise.config import Config
    >>> try:
    ...     Config.lab().model_copy(update={"seed": "x"})
    ... except ConfigError as error:
    ...     print(error)
    Config: seed is 'x': input should be a valid integer (everything random in a run follows from it)
    """


class PluginError(ConfigError):
    """A user's own policy, signal, scorer, reward or scheme raised something, or returned what it may not.

    Example:
        try:
            trace = router(problem=problem).trace
        except sw.PluginError as error:
            print(error)  # the policy failed at step 2 of problem 'p7': MyPolicy.decide() raised KeyError: ...
    """


class DataError(StepwiseError, ValueError):
    """An input row, problem or argument is wrong.

    >>> from stepwise.types import Problem
    >>> try:
    ...     Problem("p", question=5)
    ... except DataError as error:
    ...     print(error)
    Problem: question is 5: input should be a valid string
    """


class NothingToLearnError(DataError):
    """What was to be trained on can teach nothing: labels of one kind alone, rollouts without an advantage.

    A loop goes on without the stage that raises it.

    >>> issubclass(NothingToLearnError, DataError)
    True
    """


class BackendError(StepwiseError, RuntimeError):
    """A model could not be loaded, or a whole call to it failed.

    Example:
        try:
            weak = sw.load_backend("llamacpp/missing.gguf")
        except sw.BackendError as error:
            print(error)  # which file is missing
    """

    costs: tuple[Any, Any] | None = None
    """what the request that failed was billed all the same, and perhaps billed"""


class RequestRefusedError(BackendError):
    """A model refuses this one request (too long, filtered, malformed); others may go on.

    Example:
        raise RequestRefusedError("the prompt has 9,000 tokens, and the model reads 8,192")
    """


class RetryLaterError(BackendError):
    """A model is busy or was not reached: a later try may succeed.

    Example:
        raise RetryLaterError("the server says 429; it may be asked again in 2 s")
    """


class CapabilityError(BackendError):
    """The backend cannot do what was asked of it (prefill, grammar, adapters, ...).

    Example:
        try:
            router = sw.StepRouter("openai/NAME", strong, policy=Signalled("first_token_entropy", 1.0))
            router("What is 2 + 3?")
        except sw.CapabilityError as error:
            print(error)  # which signal needs what, and which models have it
    """


class ScorerError(StepwiseError, ValueError):
    """A process reward model returned something that is not one probability per step.

    Example:
        try:
            trace = router(problem=problem).trace
        except sw.ScorerError as error:
            print(error)  # how many scores came for how many steps
    """


class ExportError(StepwiseError, ValueError):
    """A model cannot be written in the format asked for.

    Example:
        try:
            export_gguf("models/Mixtral", "model.gguf")
        except sw.ExportError as error:
            print(error)  # which key of config.json is not supported, and what is
    """


class BudgetExceededError(StepwiseError, RuntimeError):
    """A hard cap on tokens, calls or money was reached; `cap` is its key, such as "budget.problem.calls".

    Example:
        try:
            sw.collect(problems, config, "out/int")
        except sw.errors.BudgetExceededError:
            ...  # what was done is in out/int; the same call goes on once the cap is raised
    """

    def __init__(self, message: str, *, cap: str = ""):
        super().__init__(message)
        self.cap = cap


class GradingError(StepwiseError, RuntimeError):
    """The grader's worker processes could not be run.

    Example:
        try:
            verdict = sw.grade("x + 1", "1 + x")
        except sw.GradingError as error:
            print(error)  # why no worker could be started
    """


class MissingDependencyError(StepwiseError, ImportError):
    """An optional package is needed for this; the message says which extra installs it.

    Example:
        try:
            sw.sft("out/int/dataset.jsonl", config, "out/sft")
        except sw.MissingDependencyError as error:
            print(error)  # ... install it with pip install "stepwise[train]"
    """
