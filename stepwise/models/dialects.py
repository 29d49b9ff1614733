r"""What APIs differ in, in one place: how each is asked to continue a message, and what else it needs.

- Servers that one runs oneself have sampling defaults of their own (llama_cpp.server: repeat_penalty 1.1, min_p 0.05,
  top_k 40; vLLM: the model's generation_config). All are switched off by name, so that what was asked for is drawn.
- llama_cpp.server: raw text, with a template from `chat_template`. It gives one choice whatever `n` is, holds to no
  json_schema (HTTP 500) and has no switch for thinking.
- llama-server: the assistant's message put last (refused while thinking is on), which newer ones repeat at the
  beginning of the reply, or /apply-template and raw text. Its prompt cache is not told apart by the LoRA of a request,
  so `cache_prompt` is off where `adapter` is set.
- vLLM, SGLang: `continue_final_message` with `add_generation_prompt` off. A LoRA is served as a model of its own name,
  with a cache of its own.
- Anthropic: the assistant's message put last, without space at its end (newer models refuse it). A stop string must
  hold more than space, so the reply is cut here instead.
- Mistral, DeepSeek: `prefix` on the assistant's message (DeepSeek: the /beta address).
- OpenAI: nothing; the next step is asked for in words. Others hosted: the assistant's message put last.

Nothing of this is trusted: the probe tries what is listed, in this order, and takes what works; a server that refuses
the additions gets requests without them. llama_cpp.server, llama-server and vLLM were run with models for these lines;
the others follow their documentation, and the tests put a stand-in in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from stepwise.errors import BackendError, ConfigError
from stepwise.models.engine.vocab import render_chat
from stepwise.prompt import SolvePrompt
from stepwise.records import record

SELF_HOSTED = ("openai", "hosted_vllm", "lm_studio", "llamafile", "vllm")
_NEXT_STEP = (
    "Go on from exactly where your solution stops. Write the next step only, one paragraph without a blank line in it, "
    "and repeat nothing. If it is the last step, put the final answer in \\boxed{}."
)
_REST = (
    "Go on from exactly where your solution stops. Write the rest of it, steps separated by blank lines, and repeat "
    "nothing. Put the final answer in \\boxed{}."
)


@record()
class Prefill:
    """One way to have an assistant's message continued: `message` is added to it, `body` to the request, and `strip`
    takes space off its end. `echoed`: the reply repeats what was to be continued, and its log-probabilities do not.

    >>> Prefill(message={}, body={"continue_final_message": True}).strip
    False
    """

    message: Mapping[str, Any]
    body: Mapping[str, Any]
    strip: bool = False
    echoed: bool = False


@record()
class Dialect:
    """How to talk to one kind of server. `prefills` are tried in order; `raw`: it may have /v1/completions; `body` is
    added to every request; `blank_stop`: it takes a blank line as a stop string.

    >>> Dialect(raw=True).prefills
    ()
    """

    prefills: tuple[Prefill, ...] = ()
    raw: bool = False
    body: Mapping[str, Any] = Field(default_factory=dict)
    blank_stop: bool = True


_PLAIN = Prefill({}, {})
_CONTINUE = Prefill({}, {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}})
_PREFIX = Prefill({"prefix": True}, {})
_NO_DEFAULTS = {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "repetition_penalty": 1.0}
_HOSTED = {
    "anthropic": Dialect((Prefill({}, {}, strip=True),), blank_stop=False),
    "mistral": Dialect((_PREFIX,)),
    "deepseek": Dialect((_PREFIX,)),
    "gemini": Dialect((_PLAIN,), body={"reasoning_effort": "disable"}),
    "openrouter": Dialect((_PLAIN,), body={"extra_body": {"reasoning": {"enabled": False}}}),
    "openai": Dialect(),
    "azure": Dialect(),
}


def dialect(model: str, api_base: str | None, adapter: str | None, prompt: SolvePrompt) -> Dialect:
    """How to talk to `model`. Raises ConfigError for an `adapter` that is not the number of one on a llama-server.

    >>> dialect("openai/NAME", "http://localhost:8080/v1", None, SolvePrompt()).raw  # a server of one's own
    True
    """
    provider = model.partition("/")[0]
    host = urlsplit(api_base or ("//api.openai.com" if provider == "openai" else "")).hostname or ""
    if provider not in SELF_HOSTED or host == "api.openai.com" or host.endswith(".openai.azure.com"):
        if adapter is not None:
            raise ConfigError(f"adapter is {adapter!r}, but {model} is hosted elsewhere; leave it out")
        return _HOSTED.get(provider, Dialect((_PLAIN,)))
    extra: dict[str, Any] = dict(_NO_DEFAULTS)
    if prompt.template_args:
        extra["chat_template_kwargs"] = prompt.template_args
    if adapter is not None:
        if not adapter.isdecimal():
            raise ConfigError(
                f"adapter is {adapter!r}; behind an API it is the number of a LoRA that llama-server was started with "
                '("0" is the first); for vLLM, name the served LoRA as the model'
            )
        extra |= {"lora": [{"id": int(adapter), "scale": 1.0}], "cache_prompt": False}
    return Dialect((_CONTINUE, _PLAIN), raw=True, body={"top_p": 1.0, "extra_body": extra})


def merge(*bodies: Mapping[str, Any]) -> dict[str, Any]:
    """One request body of several, their `extra_body` joined; what comes later counts.

    >>> merge({"top_p": 1, "extra_body": {"a": 1}}, {"extra_body": {"b": 2}})
    {'top_p': 1, 'extra_body': {'a': 1, 'b': 2}}
    """
    merged = {key: value for body in bodies for key, value in body.items()}
    extra = {key: value for body in bodies for key, value in body.get("extra_body", {}).items()}
    return merged | ({"extra_body": extra} if extra else {})


def chat(
    prompt: SolvePrompt, question: str, text: str, prefill: Prefill | None, *, whole: bool
) -> list[dict[str, Any]]:
    """The messages that have `text` continued: as the assistant's last message, or (`prefill` None) by asking in words
    for the next step, or for the `whole` rest.

    >>> messages = chat(SolvePrompt(), "1 + 1?", "One and one.", Prefill({}, {}), whole=True)
    >>> messages[-1]
    {'role': 'assistant', 'content': 'One and one.'}
    """
    messages: list[dict[str, Any]] = list(prompt.messages(question))
    if not text:
        return messages
    if prefill is None:
        instruction = {"role": "user", "content": _REST if whole else _NEXT_STEP}
        return [*messages, {"role": "assistant", "content": text.rstrip()}, instruction]
    return [*messages, {"role": "assistant", "content": text.rstrip() if prefill.strip else text, **prefill.message}]


def render(template: str, messages: Sequence[Mapping[str, Any]], args: Mapping[str, Any]) -> str:
    """The chat as text up to where the assistant's message begins. The beginning-of-sequence token is left to the
    server, which puts it there itself. Raises ConfigError where the template refuses.

    >>> template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    >>> render(template, [{"role": "user", "content": "1 + 1?"}], {})
    '<user>1 + 1?'
    """
    try:
        return render_chat(template, messages, **{"bos_token": "", "eos_token": "", **args})
    except BackendError as error:
        raise ConfigError(f"chat_template cannot be used: {error}") from error
