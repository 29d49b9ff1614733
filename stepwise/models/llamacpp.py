"""Solutions continued by a GGUF model in this process: a thin door to the engine."""

from __future__ import annotations

import dataclasses
import re
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from stepwise.errors import BackendError, ConfigError, DataError
from stepwise.models.base import Capabilities, Completion, Generator, Request, as_requests, check_question, first_of
from stepwise.models.calls import chat_job
from stepwise.models.engine import Engine, Generation, GenerationJob
from stepwise.models.engine.cache import ids_array
from stepwise.models.engine.stopping import clean_text, open_fence
from stepwise.models.states import pack, step_vector
from stepwise.prompt import SolvePrompt
from stepwise.steps import SEPARATOR, join_steps, separated
from stepwise.steps.thoughts import open_thought, prompt_thought
from stepwise.types import Failure, TokenStats, Usage

_DRAWN = ("max_tokens", "n", "temperature", "top_p", "top_k", "seed", "top_logprobs", "states", "may_call")
_PROMPT_END = 32  # tokens in which a template's opening of a thought would stand
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n\s*\Z")


class LlamaCppBackend(Generator):
    """Continues solutions under `prompt`. Thread safe; concurrent calls share batches.

    The prefix of a request is the chat up to the assistant's message, then each step: the ids that this model sampled
    for it, or its text tokenized with the blank line after it. `engine` is the engine behind it, for scoring and
    grammars.

    Example:
        with LlamaCppBackend(load_engine(sw.ModelConfig(model="llamacpp/lab-weak"))) as weak:
            print(weak.continue_solutions([sw.Request(problem)])[0].text)
    """

    def __init__(self, engine: Engine, prompt: SolvePrompt | None = None):
        self.engine = engine
        self.prompt = prompt or SolvePrompt()
        self.parameters: int | None = engine.parameters
        # Kept as arrays: a tuple takes nine times as much, and a server meets these bounds after a thousand requests.
        self._prompt_ids = lru_cache(maxsize=1024)(lambda question: ids_array(engine.prompt_ids(self.prompt, question)))
        self._text_ids = lru_cache(maxsize=2048)(
            lambda text: ids_array(engine.tokenize(separated(text, self.prompt.splitter)))
        )
        self._sampled_ids = lru_cache(maxsize=2048)(self._own_ids)
        self._opened = lru_cache(maxsize=1024)(self._opens)
        self.capabilities = self._probe()

    def _probe(self) -> Capabilities:
        """What works with this model: a template that refuses a plain question means that it cannot solve problems."""
        try:
            prefill = bool(self._prompt_ids("1 + 1 = ?"))
        except BackendError:
            prefill = False
        return Capabilities(
            prefill=prefill, logprobs=True, grammar=True, batch=self.engine.sequences > 1, adapters=True,
            token_ids=True, entropy=True, states=True,
        )  # fmt: skip

    @property
    def name(self) -> str:  # type: ignore[override]
        """The engine's, which changes with the adapter."""
        return self.engine.name

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engine."""
        return (self.engine,)

    @property
    def prompt_hash(self) -> str:  # type: ignore[override]
        """Of the solve prompt."""
        return self.prompt.hash

    async def generate(self, request: Request) -> Completion:
        """One request, in common batches with whoever else is asking."""
        name = self.engine.name
        job = self._job(request, name)
        if isinstance(job, Failure):
            return Completion.of_failure(job, n=request.n)
        samples = await self.engine.agenerate([job])
        return first_of([self._completion(sample, len(job.ids), name, request) for sample in samples])

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        """The same for callers who wait, on whatever thread: a driver knows that one of its threads waits here."""
        name, results, requests = self.engine.name, list[Completion](), as_requests(requests)
        jobs = [self._job(request, name) for request in requests]
        done = iter(self.engine.generate([job for job in jobs if not isinstance(job, Failure)]))
        for number, (request, job) in enumerate(zip(requests, jobs, strict=True)):
            if isinstance(job, Failure):
                samples: Sequence[Completion] = Completion.of_failure(job, n=request.n).samples
            else:
                samples = [self._completion(next(done), len(job.ids), name, request) for _ in range(request.n)]
            results += [dataclasses.replace(sample, request=number, rest=()) for sample in samples]
        return results

    def prefix_ids(self, request: Request) -> list[int]:
        """The ids that the completion of `request` follows on, [] where the template refuses it."""
        job = self._job(request, self.engine.name)
        return [] if isinstance(job, Failure) else list(job.ids)

    def _job(self, request: Request, name: str) -> GenerationJob | Failure:
        """What the engine of this name is to draw, or why the request is refused."""
        self.engine.worker.check_usable()
        drawn = {field: getattr(request, field) for field in _DRAWN}
        drawn["marker"] = self.engine.token_id(request.marker) if request.marker else None
        try:
            check_question(request)
            if request.messages:
                held = "grammar" if isinstance(request.schema, str) else "response_format"
                return chat_job(self.engine, request.messages, {**drawn, held: request.schema, **request.options})
            if request.token_ids:
                thought = self._thought(request)
                return GenerationJob(
                    request.token_ids, stop=request.stop, first=request.sample, thought=thought, **drawn
                )
            ids = list(self._prompt_ids(request.problem.question))
            for step in request.prefix:
                own = step.token_ids and step.usage.model == name
                sampled = ids_array(step.token_ids).tobytes() if own else b""
                ids += self._sampled_ids(step.text, sampled) if own else self._text_ids(step.text)
            opened = self._opened(request.problem.question)
        except (BackendError, ConfigError, DataError) as error:
            return Failure("refused", str(error))
        before = join_steps((step.text for step in request.prefix), self.prompt.splitter)
        return GenerationJob(
            tuple(ids),
            stop=request.stop,
            first=request.sample,
            fence=open_fence(request.prefix[-1].text if request.prefix else "").decode(),
            thought=open_thought(opened + before),
            splitter=self.prompt.splitter,
            **drawn,
        )

    def _opens(self, question: str) -> str:
        """The mark of the thought that the template opens behind this question, "" for none."""
        return prompt_thought(self.engine.vocabulary.spelled(self._prompt_ids(question)[-_PROMPT_END:]))

    def _thought(self, request: Request) -> str:
        """The mark of the thought that the token ids of `request` leave open: the prompt's, or one of what follows."""
        ids, question = request.token_ids, request.problem.question
        prompt = tuple(self._prompt_ids(question)) if question.strip() else ()
        if not prompt or ids[: len(prompt)] != prompt:
            return prompt_thought(self.engine.vocabulary.spelled(ids[-_PROMPT_END:]))
        return open_thought(self._opened(question) + self.engine.vocabulary.spelled(ids[len(prompt) :]))

    def _own_ids(self, text: str, sampled: bytes) -> array[int]:
        """The ids of a step that this model sampled (`sampled`, as an array's bytes), with a blank line at the end
        whatever ended it.

        Where the text was changed since, the text counts.
        """
        ids = array("i", sampled)
        while ids and ids[-1] in self.engine.vocabulary.end_tokens:
            ids.pop()
        data = self.engine.detokenize(ids)
        kept = self.prompt.splitter == "calculations"  # the text holds line ends, the next step's ids perhaps some
        if clean_text(data) != (clean_text(text.encode()) if kept else text):
            return self._text_ids(text)
        if not (kept and data.endswith(b"\n")) and not _BLANK_LINE.search(data):
            ids.extend(self.engine.tokenize("\n" if data.endswith(b"\n") else SEPARATOR))
        return ids

    def _completion(self, made: Generation, prompt_tokens: int, name: str, request: Request) -> Completion:
        ids, logprobs, end = made.ids, made.logprobs or None, None
        if made.cut and request.token_ids:
            end = made.end
        elif made.cut:
            ids, logprobs = self._cut(made), None
        usage = Usage(name, 1, prompt_tokens, made.evaluated_tokens, len(made.ids))
        top = tuple(tuple(logprob for _, logprob in ranked) for ranked in made.top) or None
        failure = Failure("refused", made.error) if made.finish == "error" else None
        text = made.data[: made.end].decode("utf-8", "replace") if request.messages else made.text
        thought = (
            ""
            if request.messages
            else self._thought(request)
            if request.token_ids
            else self._opened(request.problem.question)
        )
        return Completion(
            0, request.sample + made.sample, text, made.finish, ids, logprobs, usage, made.error, top, failure, end=end,
            thought=thought,
            token_stats=TokenStats.of(made.logprobs, made.entropies),
            states=pack(step_vector(made.states, made.logprobs, made.entropies)),
            call=made.call,
        )  # fmt: skip

    def _cut(self, made: Generation) -> tuple[int, ...]:
        """Ids of what counts where the last token ran past the stop: the others as sampled, its part tokenized
        again.
        """
        kept = made.ids[:-1]
        start = len(self.engine.detokenize(kept))
        try:
            return (*kept, *self.engine.tokenize(made.data[start : made.end].decode()))
        except UnicodeDecodeError:  # the token began in the middle of a character
            return tuple(self._text_ids(made.text))

    def set_adapter(self, path: str | Path | None, scale: float = 1.0, *, check_base: bool = True) -> None:
        """Attach a LoRA adapter in GGUF, or none; the name changes with it. See `Engine.set_adapter`."""
        self.engine.set_adapter(path, scale, check_base=check_base)

    def reset_cache(self) -> None:
        """Drop every cached prefix, so that what follows is measured from cold."""
        self.engine.reset_cache()

    def close(self) -> None:
        """Free the model; calling it twice does nothing."""
        self.engine.close()
