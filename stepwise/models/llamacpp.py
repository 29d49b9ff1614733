"""Solutions continued by a GGUF model in this process: a thin door to the engine."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from stepwise.errors import BackendError, DataError
from stepwise.models.base import Capabilities, Completion, Generator, Request, check_question, first_of
from stepwise.models.engine import Engine, Generation, GenerationJob
from stepwise.models.engine.stopping import clean_text, open_fence
from stepwise.prompt import SolvePrompt
from stepwise.steps import SEPARATOR
from stepwise.types import Failure, Usage

_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n\s*\Z")


class LlamaCppBackend(Generator):
    """Continues solutions under `prompt`. Thread safe; concurrent calls share batches.

    The prefix of a request is the chat up to the assistant's message, then each step: the ids that this model sampled
    for it, or its text tokenized with the blank line after it. `engine` is the engine behind it, for scoring and
    grammars.
    """

    def __init__(self, engine: Engine, prompt: SolvePrompt | None = None):
        self.engine = engine
        self.prompt = prompt or SolvePrompt()
        self.parameters: int | None = engine.parameters
        self._prompt_ids = lru_cache(maxsize=4096)(lambda question: tuple(engine.prompt_ids(self.prompt, question)))
        self._text_ids = lru_cache(maxsize=16384)(lambda text: tuple(engine.step_ids(text)))
        self._sampled_ids = lru_cache(maxsize=16384)(self._own_ids)
        self.capabilities = self._probe()

    def _probe(self) -> Capabilities:
        """What works with this model: a template that refuses a plain question means that it cannot solve problems."""
        try:
            prefill = bool(self._prompt_ids("1 + 1 = ?"))
        except BackendError:
            prefill = False
        return Capabilities(
            prefill=prefill, logprobs=True, grammar=True, batch=self.engine.sequences > 1, adapters=True, token_ids=True
        )

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
        name = self.name
        try:
            job = self._job(request, name)
        except (BackendError, DataError) as error:
            return Completion.of_failure(Failure("refused", str(error)), n=request.n)
        samples = await self.engine.agenerate([job])
        return first_of([self._completion(0, made, len(job.ids), name) for made in samples])

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        """A flat list in request order, `n` per request; a request that fails is answered with finish "error"."""
        name = self.name
        jobs: list[GenerationJob] = []
        errors: dict[int, Failure] = {}
        for number, request in enumerate(requests):
            try:
                jobs.append(self._job(request, name))
            except (BackendError, DataError) as error:
                errors[number] = Failure("refused", str(error))
        done = iter(self.engine.generate(jobs))
        left = iter(jobs)
        results: list[Completion] = []
        for number, request in enumerate(requests):
            if number in errors:
                failed = Completion.of_failure(errors[number], request=number, n=request.n)
                results += [dataclasses.replace(sample, rest=()) for sample in failed.samples]
                continue
            length = len(next(left).ids)
            results += [self._completion(number, next(done), length, name) for _ in range(request.n)]
        return results

    def prefix_ids(self, request: Request) -> list[int]:
        """The ids that the completion of `request` follows on, [] where the template refuses it."""
        try:
            return list(self._job(request, self.engine.name).ids)
        except (BackendError, DataError):
            return []

    def _job(self, request: Request, name: str) -> GenerationJob:
        check_question(request)
        ids = list(self._prompt_ids(request.problem.question))
        for step in request.prefix:
            own = step.token_ids and step.usage.model == name
            ids += self._sampled_ids(step.text, step.token_ids) if own else self._text_ids(step.text)
        last = request.prefix[-1].text if request.prefix else ""
        return GenerationJob(
            tuple(ids),
            max_tokens=request.max_tokens,
            n=request.n,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            stop=request.stop,
            fence=open_fence(last).decode() if "```" in last or "~~~" in last else "",
            top_logprobs=request.top_logprobs,
        )

    def _own_ids(self, text: str, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids of a step that this model sampled, with a blank line at the end whatever ended it.

        Where the text was changed since, the text counts.
        """
        ids = list(token_ids)
        while ids and ids[-1] in self.engine.vocabulary.end_tokens:
            ids.pop()
        data = self.engine.detokenize(ids)
        if clean_text(data) != text:
            return self._text_ids(text)
        if not _BLANK_LINE.search(data):
            ids += self.engine.tokenize("\n" if data.endswith(b"\n") else SEPARATOR)
        return tuple(ids)

    def _completion(self, number: int, made: Generation, prompt_tokens: int, name: str) -> Completion:
        ids, logprobs = made.ids, made.logprobs or None
        if made.cut:
            ids, logprobs = self._cut(made), None
        usage = Usage(name, 1, prompt_tokens, made.evaluated_tokens, len(made.ids))
        top = tuple(tuple(logprob for _, logprob in ranked) for ranked in made.top) or None
        failure = Failure("refused", made.error) if made.finish == "error" else None
        return Completion(number, made.sample, made.text, made.finish, ids, logprobs, usage, made.error, top, failure)

    def _cut(self, made: Generation) -> tuple[int, ...]:
        """Ids of what counts where the last token ran past the stop: the others as sampled, its part tokenized
        again.
        """
        kept = made.ids[:-1]
        start = len(self.engine.detokenize(kept))
        try:
            return (*kept, *self.engine.tokenize(made.data[start : made.end].decode()))
        except UnicodeDecodeError:  # the token began in the middle of a character
            return self._text_ids(made.text)

    def set_adapter(self, path: str | Path | None, scale: float = 1.0) -> None:
        """Attach a LoRA adapter in GGUF, or none; the name changes with it. Raises BackendError."""
        self.engine.set_adapter(path, scale)

    def reset_cache(self) -> None:
        """Drop every cached prefix, so that what follows is measured from cold."""
        self.engine.reset_cache()

    def close(self) -> None:
        """Free the model; calling it twice does nothing."""
        self.engine.close()
