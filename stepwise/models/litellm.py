r"""Solutions continued by any model that LiteLLM reaches: hosted APIs and OpenAI-compatible servers.

A server ends a step at the stop string "\n\n"; what it sends is cut here too, by the engine's own rules. Where its
reply ends inside reasoning or a code fence, or is empty because it began with a blank line, the call is made once more
without the stop string, and both are counted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from stepwise.config import ModelConfig
from stepwise.errors import BackendError, ConfigError, DataError
from stepwise.models import dialects
from stepwise.models.api import Api, Choice, Samples
from stepwise.models.base import Capabilities, Completion, Generator, Request, check_question, first_of
from stepwise.models.driver import driver, outside
from stepwise.models.engine.stopping import StopRule, clean_text, open_fence, repeats
from stepwise.models.failures import failure_of
from stepwise.models.http import CallFailed
from stepwise.models.probe import Findings, probe, probe_bound, template_of
from stepwise.prompt import SolvePrompt
from stepwise.steps import SEPARATOR, encodable, join_steps, separated
from stepwise.steps.thoughts import after_thought, open_thought, prompt_thought, without_marks
from stepwise.types import Failure, Finish, TokenStats, Usage

_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<\uff5c[^\uff5c]{1,40}\uff5c>")


class LiteLLMBackend(Generator):
    """Continues solutions under `prompt` through LiteLLM. Thread safe; at most `config.requests` requests are in
    flight.

    What the model can do is found by a few short calls before the first request (or when `capabilities` is first read),
    unless `config.continuation` says it; they count in `usage`, which is all that this backend has spent, and `prepare`
    tells a ledger of them. `calls_per_sample` is the most calls that one sample takes. `attempts` and `backoff` as in
    `Api`. Raises ConfigError for a key that is not set, BackendError where the model does not
    answer at all.

    Example:
        with LiteLLMBackend(sw.ModelConfig(model="openai/NAME", api_base="http://localhost:8080/v1")) as strong:
            print(strong.capabilities, strong.usage.calls)
    """

    def __init__(
        self, config: ModelConfig, prompt: SolvePrompt | None = None, *, attempts: int = 5, backoff: float = 0.5
    ):
        self.config = config
        self.prompt = prompt or SolvePrompt()
        where = f"@{config.api_base.rstrip('/').removesuffix('/v1')}" if config.api_base else ""
        self.name = f"{config.model}{where}" + (f"+{config.adapter}" if config.adapter else "")
        self.remote, self.prompt_hash = True, self.prompt.hash
        self.dialect = dialects.dialect(config.model, config.api_base, config.adapter, self.prompt)
        self.api = Api(config, self.name, attempts=attempts, backoff=backoff)
        self.calls_per_sample = 2 if self.dialect.blank_stop else 1
        self._template = template_of(config)
        self._findings: Findings | None = None
        self._probing = threading.Lock()
        self._probe_usage = Usage()
        self._pool = ThreadPoolExecutor(config.requests, thread_name_prefix="stepwise-api")

    @property
    def findings(self) -> Findings:
        """How solutions are continued, and what else the model can do."""
        with self._probing:
            if self._findings is None:
                self._findings = probe(self.api, self.dialect, self.prompt, self._template)
                self._probe_usage = self.api.usage  # nothing else is sent before it
                if self._findings.continuation == "prompt" and self.config.continuation == "probe":
                    warnings.warn(
                        f"{self.config.model} does not continue a message of its own: it is shown the steps and "
                        "asked for the next, which only an instructed model understands. Where the server takes raw "
                        'completions, chat_template = FILE lets it continue; continuation = "prompt" accepts this',
                        stacklevel=3,
                    )
            return self._findings

    @property
    def probed(self) -> bool:
        """Whether it is known what the model can do."""
        return self._findings is not None

    def adopt(self, findings: Findings | None) -> None:
        """Take over what is known of a model like this one, instead of probing."""
        self._findings = findings

    @property
    def probe_bound(self) -> Usage:
        """The most that `prepare` may spend now; nothing once the model is known."""
        return Usage() if self._findings else probe_bound(self.api, self.dialect, self.prompt)

    def prepare(self) -> Usage:
        """Probe, unless that is done. What it cost is told once, to whoever asks first; afterwards it is nothing."""
        _ = self.findings
        with self._probing:
            spent, self._probe_usage = self._probe_usage, Usage()
        return spent

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """As the probe found them; raw completion counts as prefill, since it continues where the text stands."""
        found = self.findings
        return Capabilities(
            prefill=found.continuation != "prompt",
            logprobs=found.logprobs and found.continuation != "raw",  # raw answers have another shape
            grammar=found.schema,
            batch=self.config.requests > 1,
            adapters=self.config.adapter is not None,
        )

    @property
    def usage(self) -> Usage:
        """All that was spent through this backend, the probe included."""
        return self.api.usage

    async def generate(self, request: Request) -> Completion:
        """The samples of one request, the first with the others as its `rest`; a failure has finish "error"."""
        if self._findings is None:
            await outside(asyncio.to_thread(lambda: self.findings))
        running = driver()

        def send(part: Request) -> list[Completion]:
            if running is not None and running.stopped_by is not None:  # while this one waited for its turn
                raise BackendError(f"{self.name}: not sent, since the run stops")
            return self._part(part)

        futures = [self._pool.submit(copy_context().run, send, part) for part in self.parts(request)]
        try:
            done = await outside(asyncio.gather(*map(asyncio.wrap_future, futures)))
        finally:  # cancelled, what has not begun must not be paid for
            for future in futures:
                future.cancel()
        return first_of([sample for samples in done for sample in samples])

    def parts(self, request: Request) -> list[Request]:
        """One request where the server gives several samples in a call, else one for each sample."""
        if request.n == 1 or self.findings.several:
            return [request]
        return [dataclasses.replace(request, n=1, sample=request.sample + i) for i in range(request.n)]

    def close(self) -> None:
        """Wait for the requests in flight and end the threads; calling it twice does nothing."""
        self._pool.shutdown(cancel_futures=True)

    def _part(self, request: Request) -> list[Completion]:
        """The samples of one request, by one call, and by more where fewer came than were asked for."""
        made, samples = list[Completion](), range(request.sample, request.sample + request.n)
        try:
            self._check(request)
            while len(made) < len(samples):
                rest = samples[len(made) :]
                reply = self._ask(request, rest, stop=True)
                perhaps = [reply.perhaps, *[Usage()] * len(rest)]
                for sample, choice, usage, lost in zip(rest, reply.choices, reply.usages, perhaps, strict=False):
                    done = self._finished(request, sample, choice, usage)
                    made.append(dataclasses.replace(done, perhaps=done.perhaps + lost))
        except CallFailed as error:
            made += self._failed(request, error, samples[len(made) :], error.usage, error.perhaps)
        except (ConfigError, DataError) as error:
            made += self._failed(request, error, samples[len(made) :], Usage(self.name))
        return made

    def _failed(
        self, request: Request, error: Exception, samples: range, usage: Usage, perhaps: Usage | None = None
    ) -> list[Completion]:
        failed = Completion.of_failure(failure_of(error), usage, n=len(samples), perhaps=perhaps)
        return list(map(_as_sample, failed.samples, samples))

    def _check(self, request: Request) -> None:
        """Refuse what a model could not answer sensibly. Raises DataError."""
        check_question(request)
        if request.token_ids:
            raise DataError(f"{self.name} takes no token ids; give the problem and its prefix, or messages")
        if not request.messages and self.findings.continuation == "raw":
            texts = (request.problem.question, *(without_marks(step.text) for step in request.prefix))
            mark = next((found for text in texts if (found := _MARK.search(text))), None)
            if mark:
                raise DataError(
                    f"problem {request.problem.id!r} holds {mark[0]!r}, which a raw completion would take as a control "
                    "token; take it out, or use a server that continues messages"
                )

    def _finished(self, request: Request, sample: int, choice: Choice, usage: Usage) -> Completion:
        if request.messages:
            finish: Finish = "eos" if choice.ended == "stop" else "length"
            return Completion(0, sample, choice.text, finish, (), choice.logprobs, usage, top_logprobs=choice.top)
        text, finish, again = self._read(request, choice)
        perhaps = Usage()
        if again:
            try:
                reply = self._ask(request, range(sample, sample + 1), stop=False)
            except CallFailed as error:  # the first call has been paid for
                failed = Completion.of_failure(error.failure, usage + error.usage, perhaps=error.perhaps)
                return _as_sample(failed, sample)
            choice, usage, perhaps = reply.choices[0], usage + reply.usages[0], reply.perhaps
            text, finish, _ = self._read(request, choice)
        logprobs = choice.logprobs if choice.text == text else None  # of what was cut off they would be wrong
        plain, raw = after_thought(choice.text)[0] == choice.text, self.findings.continuation == "raw"
        stats = TokenStats.of(choice.logprobs) if clean_text(choice.text.encode()) == text else None
        return Completion(
            0, sample, text, finish, (), logprobs, usage, perhaps=perhaps, thought=self._opened(request) if raw else "",
            token_stats=stats, top_logprobs=choice.top if request.top_logprobs and (plain or raw) else None,
        )  # fmt: skip

    def _ask(self, request: Request, samples: range, *, stop: bool) -> Samples:
        """One call for `samples`. Raises CallFailed."""
        prompt, settings = self._prompt(request, samples, stop=stop)
        reply, prefill = self.api.ask(prompt, **settings), self.findings.prefill
        if prefill is None or not prefill.echoed or request.messages or not request.prefix:
            return reply
        sent = str(prompt[-1]["content"])  # type: ignore[index]
        if strange := next((c.text for c in reply.choices if not c.text.startswith(sent)), None):
            fault = f"{self.name} does not repeat what it continues, as it did at first, but begins {strange[:40]!r}"
            raise CallFailed(Failure("refused", fault), sum(reply.usages, Usage()), perhaps=reply.perhaps)
        return reply._replace(choices=tuple(c._replace(text=c.text[len(sent) :]) for c in reply.choices))

    def _prompt(
        self, request: Request, samples: range, *, stop: bool
    ) -> tuple[str | list[dict[str, Any]], dict[str, Any]]:
        """What is sent, so that the prefix is continued in the way that the probe found: raw text or messages, and
        settings.
        """
        found, question = self.findings, request.problem.question
        text = "".join(separated(step.text, self.prompt.splitter) for step in request.prefix)
        settings: dict[str, Any] = {"max_tokens": request.max_tokens, "temperature": request.temperature}
        if request.top_p < 1:
            settings["top_p"] = request.top_p
        if request.top_k:
            settings |= {"extra_body": {"top_k": request.top_k}} if self.dialect.raw else {"top_k": request.top_k}
        if stop and not request.messages and self._stops_at_blank_lines(request):
            settings["stop"] = [SEPARATOR]
        if found.seed:
            settings["seed"] = (request.seed + 1_000_003 * samples[0]) % 2**31
        if len(samples) > 1:
            settings["n"] = len(samples)
        if request.messages:
            held = {"response_format": request.schema} if isinstance(request.schema, Mapping) else {}
            return [{**message} for message in request.messages], dialects.merge(settings, held, request.options)
        if found.continuation == "raw":
            return encodable(self._template(self.prompt, question) + text), dialects.merge(found.body, settings)
        if found.logprobs:  # llama_cpp.server gives none where top_logprobs is 0
            settings |= {"logprobs": True, "top_logprobs": max(1, request.top_logprobs)}
        messages = dialects.chat(self.prompt, question, text, found.prefill, whole=request.stop == "solution")
        messages = [{**message, "content": encodable(message["content"])} for message in messages]
        extra = found.prefill.body if found.prefill is not None and text else {}
        return messages, dialects.merge(found.body, settings, extra)

    def _opened(self, request: Request) -> str:
        """The mark of the thought in which the reply begins, since the chat template opens one; "" for none."""
        found = self.findings
        if found.continuation == "raw":
            return prompt_thought(self._template(self.prompt, request.problem.question))
        return "" if request.prefix and found.continuation == "prefill" else found.thought

    def _stops_at_blank_lines(self, request: Request) -> bool:
        at_blank_lines = self.dialect.blank_stop and self.prompt.splitter == "paragraphs"
        return request.stop == "step" and at_blank_lines and not _fence(request)

    def _read(self, request: Request, choice: Choice) -> tuple[str, Finish, bool]:
        """What counts of a reply: its text without thoughts, cut at the step's or the answer's end as the engine would;
        how it ended; and whether it must be asked for again without a stop string.
        """
        opened, text, thinking = self._opened(request), choice.text, False
        if self.findings.continuation != "raw" or not opened:  # else the thought becomes steps, as in the engine
            text, thinking = after_thought(text, "" if choice.reasoned else opened)
            opened = ""
        if self.findings.continuation == "prompt" or request.stop == "step":
            text = text.lstrip("\r\n")
        before = join_steps((step.text for step in request.prefix), self.prompt.splitter)
        rule = StopRule(
            request.stop, _fence(request), thought=open_thought(opened + before), splitter=self.prompt.splitter
        )
        ending = rule.push(text.encode("utf-8", "replace"))
        stopped = choice.ended == "stop" and choice.stopped != ""
        if ending is None:
            finish: Finish = "eos" if choice.ended == "stop" else "length"
            if stopped and request.stop == "step" and text.strip() and self.dialect.blank_stop:
                finish = "step"  # a server that names no stop string may mean the message's end: the next step shows it
            if finish == "length" and repeats(list(text.encode("utf-8", "replace"))):
                finish = "repeat"
            ending = rule.last(finish)
        cut = rule.text(ending)
        too_early = thinking or rule.in_fence or (not cut and choice.stopped == SEPARATOR)
        return cut, ending.finish, self._stops_at_blank_lines(request) and stopped and too_early


def _fence(request: Request) -> bytes:
    """What the prefix leaves open of code or formulas, if anything."""
    return open_fence(request.prefix[-1].text) if request.prefix else b""


def _as_sample(completion: Completion, sample: int) -> Completion:
    return dataclasses.replace(completion, sample=sample, rest=())
