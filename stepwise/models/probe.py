"""What a model behind an API can do, found out by a few short calls instead of believed.

Whether a message is continued is tested on the model's own words: it answers a question that holds a nonce, greedily;
half of that answer is then given as a prefix. Only a server that continues it gives the other half: one that starts a
new message begins again, and one that answers to the prefix says something else.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.config import ModelConfig
from stepwise.errors import ConfigError
from stepwise.models import dialects
from stepwise.models.api import Api, Samples
from stepwise.models.dialects import Dialect, Prefill
from stepwise.models.failures import error_of
from stepwise.models.http import CallFailed, Server
from stepwise.models.litellm_handler import import_litellm
from stepwise.prompt import SolvePrompt
from stepwise.steps.thoughts import prompt_thought
from stepwise.types import Failure, Usage

PROBE_TOKENS = 32  # most that one call of the probe generates
_LEAST = 6  # characters of the other half that must come


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Findings:
    """How a solution is continued: "prefill" (then `prefill` says in which way), "raw" text, or a "prompt" that shows
    it and asks for the next step; and whether logprobs, several samples in one call, a seed and a schema work.

    `body` is what goes into every request: the dialect's, or nothing where the server refused it. `thought`: the mark
    of the thought that the chat template opens ahead of an answer, where the template is known.

    >>> Findings("raw", logprobs=True).seed
    True
    """

    continuation: Literal["prefill", "raw", "prompt"]
    prefill: Prefill | None = None
    body: Mapping[str, Any] = Field(default_factory=dict)
    logprobs: bool = False
    several: bool = False
    seed: bool = True
    schema: bool = False
    thought: str = ""


Template = Callable[[SolvePrompt, str], str]
"""Writes a chat as text up to where the solution begins; raises ConfigError where there is no template."""


def template_of(config: ModelConfig) -> Template:
    """The chat template for raw completions: `chat_template` of the configuration, or what llama-server applies.

    Example:
        template = template_of(sw.ModelConfig(model="openai/NAME", api_base="http://localhost:8080/v1"))
        text = template(sw.SolvePrompt(), "1 + 1?")  # up to where the answer begins
    """
    if config.chat_template is not None:
        path = Path(config.chat_template).expanduser()
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template {path}: cannot be read ({error}); give a Jinja file") from error
        return lambda prompt, question: dialects.render(source, prompt.messages(question), prompt.template_args)

    @lru_cache(maxsize=4096)
    def served(prompt: SolvePrompt, question: str) -> str:
        if config.api_base is None:
            raise ConfigError("raw completion needs api_base and chat_template")
        server = Server(config.api_base, key=config.api_key(), timeout=config.timeout, attempts=2)
        body = {"messages": prompt.messages(question), "chat_template_kwargs": prompt.template_args}
        try:
            reply = server.post("/apply-template", body).data
        except CallFailed as error:
            raise ConfigError(f"no chat template: {error}; give the file of one as chat_template") from None
        if not isinstance(reply, dict) or not isinstance(reply.get("prompt"), str):
            raise ConfigError("/apply-template gave no prompt; give the file of a template as chat_template")
        return str(reply["prompt"])

    return served


def probe_bound(api: Api, dialect: Dialect, prompt: SolvePrompt) -> Usage:
    """The most that `probe` spends; nothing where the configuration says how a solution is continued.

    Example:
        most = probe_bound(api, dialect, prompt)
        print(most.calls, most.generated_tokens)
    """
    if api.config.continuation != "probe":
        return Usage()
    calls = 6 + len(dialect.prefills) + dialect.raw  # the first twice, logprobs, schema, and two samples count as two
    read = len(prompt.model_dump_json().encode()) + 1024  # bytes bound tokens: the question, half an answer, a schema
    return Usage(api.name, calls, calls * read, calls * read, calls * PROBE_TOKENS)


def probe(api: Api, dialect: Dialect, prompt: SolvePrompt, template: Template) -> Findings:
    """Find out what the model behind `api` can do. Raises BackendError where it does not answer at all.

    Example:
        findings = probe(api, dialect, prompt, template_of(config))
        print(findings.continuation, findings.logprobs)
    """
    seed = "seed" in (import_litellm().get_supported_openai_params(model=api.config.model) or ())
    if api.config.continuation != "probe":
        first = dialect.prefills[0] if dialect.prefills else Prefill({}, {})
        given = api.config.continuation
        thought = _thought(template, prompt) if api.config.chat_template else ""
        return Findings(given, first if given == "prefill" else None, dialect.body, seed=seed, thought=thought)
    nonce = ", ".join(str(secrets.randbelow(90) + 10) for _ in range(6))
    question = f"Write these numbers in words, in this order: {nonce}."
    messages = prompt.messages(question)
    settings: dict[str, Any] = {"temperature": 0.0, **({"seed": 1} if seed else {})}
    body, reply = _first_reply(api, messages, settings, dialect.body)
    begun, rest = _halves(reply.choices[0].text)

    def tried(prompt: Any = messages, max_tokens: int = PROBE_TOKENS, **more: Any) -> Samples:
        try:
            return api.ask(prompt, **dialects.merge(settings, body, {"max_tokens": max_tokens}, more))
        except CallFailed:
            return Samples((), ())

    def goes_on(made: Samples, behind: str = "") -> bool:
        size = min(len(rest.strip()), 12)
        texts = [choice.text for choice in made.choices[:1]]
        return any(t.startswith(behind) and t[len(behind) :].strip()[:size] == rest.strip()[:size] for t in texts)

    def repeats(made: Samples, sent: str) -> bool:
        """Whether what was sent stands before its continuation; a message begun anew is the first reply once more."""
        written = [(one.choices[0].text, one.usages[0].generated_tokens) for one in (made, reply) if one.choices]
        return goes_on(made, sent) and written[0] != written[1]

    def continuation() -> tuple[Literal["prefill", "raw", "prompt"], Prefill | None]:
        """The first way that gives the other half of the model's own reply."""
        for prefill in dialect.prefills if rest else ():
            sent = dialects.chat(prompt, question, begun, prefill, whole=True)
            made = tried(sent, **prefill.body)
            if goes_on(made):
                return "prefill", prefill
            if repeats(made, sent[-1]["content"]):
                return "prefill", Prefill(prefill.message, prefill.body, prefill.strip, echoed=True)
        with suppress(ConfigError):  # where there is no template
            if rest and dialect.raw and goes_on(tried(template(prompt, question) + begun)):
                return "raw", None
        return "prompt", None

    logprobs = tried(max_tokens=1, logprobs=True, top_logprobs=1).choices
    word = f"w{secrets.randbelow(10**6)}"
    properties = {"word": {"enum": [word]}}
    schema = {"type": "object", "properties": properties, "required": ["word"], "additionalProperties": False}
    held = tried(
        response_format={"type": "json_schema", "json_schema": {"name": "word", "schema": schema, "strict": True}}
    ).choices
    return Findings(
        *continuation(),
        body,
        logprobs=any(choice.logprobs is not None for choice in logprobs[:1]),
        several=len(tried(max_tokens=1, n=2).choices) == 2,
        seed=seed,
        schema=any(word in choice.text for choice in held[:1]),
        thought=_thought(template, prompt, question) if dialect.raw or api.config.chat_template else "",
    )


def _thought(template: Template, prompt: SolvePrompt, question: str = "1 + 1 = ?") -> str:
    """The mark of the thought that the template opens, "" for none and where there is no template to look at."""
    with suppress(ConfigError):
        return prompt_thought(template(prompt, question))
    return ""


def _first_reply(
    api: Api, messages: list[dict[str, str]], settings: dict[str, Any], body: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Samples]:
    """What the model says, and the `body` it says it to: none where it refuses the dialect's."""
    try:
        try:
            return body, api.ask(messages, max_tokens=PROBE_TOKENS, **dialects.merge(settings, body))
        except CallFailed as error:
            if error.failure.kind == "again" or not body:
                raise
            return {}, api.ask(messages, max_tokens=PROBE_TOKENS, **settings)
    except CallFailed as error:
        given = api.key or api.config.api_base
        unset = [] if given else import_litellm().validate_environment(api.config.model)["missing_keys"]
        hint = f" ({', '.join(unset)} not set)" if unset else ""
        message = f"{error}; check model, api_base and api_key_env{hint}"
        raise error_of(Failure(error.failure.kind, message)) from None


def _halves(text: str) -> tuple[str, str]:
    """`text` cut before a space near its middle; ("", "") where that would prove nothing."""
    at = text.find(" ", len(text) // 2)
    begun, rest = text[:at], text[at:]
    if at <= 0 or len(rest.strip()) < _LEAST or begun.lstrip().startswith(rest.strip()[:_LEAST]):
        return "", ""
    return begun, rest
