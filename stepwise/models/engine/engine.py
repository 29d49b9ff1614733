"""The engine: a GGUF model in this process, on token ids, shared by any number of threads."""

from __future__ import annotations

import hashlib
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np

from stepwise.errors import BackendError
from stepwise.models.engine.cache import PrefixCache
from stepwise.models.engine.context import LlamaContext
from stepwise.models.engine.curve import Curve, measure
from stepwise.models.engine.jobs import (
    Call,
    Counters,
    Drawn,
    Generation,
    GenerationJob,
    Logits,
    Prompt,
    Sample,
    Scoring,
    Unit,
    problem_of,
)
from stepwise.models.engine.reading import Reading, TextReading
from stepwise.models.engine.scheduler import Scheduler
from stepwise.models.engine.vocab import Vocabulary
from stepwise.models.engine.weights import check_origin, read_gguf
from stepwise.models.engine.worker import Control, Worker
from stepwise.models.hub import adapter_path
from stepwise.prompt import SolvePrompt
from stepwise.runs.progress import stage

_GIB = 1 << 30


class Engine:
    """A loaded model that generates and scores on token ids. Thread safe; close it, or use it as a context manager.

    Example:
        >>> with Engine.load(lab.model_path("lab-weak"), context=256) as engine:  # doctest: +SKIP
        ...     engine.generate([GenerationJob(tuple(engine.tokenize("2 + 2")), max_tokens=4)])[0].text
    """

    def __init__(
        self, context: LlamaContext, cache_memory: int, train_from: Path | None = None, curve: Curve | None = None
    ) -> None:
        self.path = context.path
        self.train_from = train_from or context.path.parent  # lab models lie beside what they were made from
        self.context, self.parameters, self.sequences = context.context, context.parameters, context.streams
        self.threads, self.memory_bytes = context.threads, context.memory_bytes
        self.vocabulary, self.width = Vocabulary(context), context.width
        self._context = context
        self._cache, self._cache_memory = PrefixCache(context, cache_memory), cache_memory
        self._scheduler = Scheduler(context, self.vocabulary, self._cache)
        self._scheduler.set_curve(curve)
        self.worker = Worker(self._scheduler)
        self._switches = 0
        # Also runs at interpreter exit, while ctypes still works.
        self._finalizer = weakref.finalize(self, _shut_down, self.worker, self.vocabulary, context)

    @classmethod
    def load(
        cls, path: str | Path, *, context: int = 2048, sequences: int = 64, threads: int = 1, gpu_layers: int = 0,
        kv_type: str = "f16", flash_attention: bool = True, adapter: str | Path | None = None,
        kv_memory: int = 2 * _GIB, cache_memory: int = _GIB // 2, train_from: str | Path | None = None,
        curve: Curve | Literal["measured"] | None = None,
    ) -> Engine:  # fmt: skip
        """Load a GGUF model.

        `context`: longest sequence in tokens. `sequences`: most decoded at once; fewer where the key-value cache would
        take more than `kv_memory` bytes (`engine.sequences` says). `cache_memory`: bytes of main memory for prefixes
        whose sequence was needed for another; never more than all sequences take. `kv_type` is "f16", "f32" or "q8_0".
        `train_from`: the directory that the GGUF was made from, where an adapter's base is looked up if the GGUF does
        not say. `curve` decides how what runs is split into batches (see `Curve`): "measured" takes a few seconds, and
        a tiny model has none; None is the fixed split, everything in one batch. Raises BackendError with the path, the
        reason and a remedy.

        Example:
            >>> from stepwise import lab
            >>> from stepwise.models.engine import GenerationJob
            >>> from stepwise.prompt import SolvePrompt
            >>> with Engine.load(lab.model_path("lab-weak"), context=256, sequences=4) as engine:
            ...     job = GenerationJob(tuple(engine.prompt_ids(SolvePrompt(), "2 + 3 = ?")), max_tokens=8)
            ...     len(engine.generate([job])[0].ids) <= 8
            True
        """
        loaded = LlamaContext(
            Path(path), context=context, sequences=sequences, threads=threads, gpu_layers=gpu_layers, kv_type=kv_type,
            flash_attention=flash_attention, kv_memory=kv_memory,
        )  # fmt: skip
        if curve == "measured":
            curve = measure(loaded, time.perf_counter if gpu_layers else time.process_time)
        cache_memory = min(cache_memory, loaded.cache_bytes)  # more would be of problems long done
        engine = cls(loaded, cache_memory, Path(train_from).expanduser() if train_from else None, curve)
        if adapter is not None:
            try:
                engine.set_adapter(adapter)
            except Exception:
                engine.close()
                raise
        return engine

    def close(self) -> None:
        """Stop the thread and free the model; twice does nothing. Calls in progress fail with BackendError."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----- identity

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights file, in hex."""
        return _digest(self.path)

    @property
    def name(self) -> str:
        """File name and eight digits of the fingerprint, and the adapter's: one name, one distribution."""
        stem = self.path.parent.name if self.path.stem == "model" else self.path.stem
        return f"{stem}@{self.fingerprint[:8]}" + (f"+{self._scheduler.adapter}" if self._scheduler.adapter else "")

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Equal for two models whose tokenizers are equal."""
        return self.vocabulary.fingerprint()

    @property
    def curve(self) -> Curve | None:
        """What batches are split by; None for the fixed split."""
        return self._scheduler.curve

    @property
    def concurrency(self) -> int:
        """How many sequences it writes at once: as many as make it faster."""
        return self._scheduler.most

    @property
    def counters(self) -> Counters:
        """A snapshot."""
        s = self._scheduler
        return Counters(s.evaluated, self._cache.distinct, s.generated, s.calls, s.hits, self._switches)

    # ----- text

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text` in Unicode NFC, without a beginning-of-sequence token; see `Vocabulary.tokenize`."""
        return self.vocabulary.tokenize(text, special)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token, none for a control token."""
        return self.vocabulary.token_bytes(token)

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`."""
        return self.vocabulary.detokenize(ids)

    def token_id(self, text: str) -> int:
        """Id of the special or ordinary token that `text` is; raises ConfigError where it is no single token."""
        return self.vocabulary.token_id(text)

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text without a template, a beginning-of-sequence token first where the model has one."""
        return self.vocabulary.raw_ids(text, special=False)

    def chat_ids(self, messages: Sequence[Mapping[str, str]], **template_args: Any) -> list[int]:
        """Ids of the chat up to where the assistant's message begins; see `Vocabulary.chat_ids`."""
        return self.vocabulary.chat_ids(messages, **template_args)

    def prompt_ids(self, prompt: SolvePrompt, question: str) -> list[int]:
        """Ids of the chat of `prompt` up to where the assistant's solution begins."""
        return self.chat_ids(prompt.messages(question), **prompt.template_args)

    def step_ids(self, text: str) -> list[int]:
        """Ids of a step's text with the blank line after it."""
        return self.tokenize(text + "\n\n")

    # ----- work

    def generate(self, jobs: Sequence[GenerationJob]) -> list[Generation]:
        """All samples of all jobs in order, `n` per job, in common batches with whoever else is calling.

        A job that cannot be done comes back with finish "error"; raises BackendError only where the whole engine fails.
        """
        call = Call(sum(job.n for job in jobs))
        with stage("answers", len(call.results)) as call.on_result:
            return self.worker.do(self._samples(jobs, call), call)

    async def agenerate(self, jobs: Sequence[GenerationJob]) -> list[Generation]:
        """`generate` as a coroutine: the other coroutines of the event loop go on meanwhile. Cancelled, its jobs are
        dropped.
        """
        call = Call(sum(job.n for job in jobs))
        return await self.worker.wait(self._samples(jobs, call), call)

    def stream(self, job: GenerationJob) -> Iterator[Drawn | Generation]:
        """Every token of every sample as it is drawn, and each sample's Generation after its last token.

        Closing the iterator drops what is not done yet. Raises BackendError where the whole engine fails.
        """
        feed: SimpleQueue[Any] = SimpleQueue()
        call = Call(job.n, feed)
        units = self._samples([job], call)
        if units:
            self.worker.submit(units)
        try:
            while (item := feed.get()) is not None:
                yield item
            call.outcome()
        finally:
            if not call.done.is_set():
                self.worker.cancel(call)

    def _samples(self, jobs: Sequence[GenerationJob], call: Call) -> list[Unit]:
        units: list[Unit] = []
        place = 0
        for number, job in enumerate(jobs):
            prompt, problem = Prompt(job.ids, job.n), problem_of(job.ids, self)
            for index in range(job.n):
                if problem:
                    call.put(place, Generation(number, index, "", "error", error=problem))
                else:
                    units.append(Sample(call, place, prompt, job, number, index))
                place += 1
        return units

    def score(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], token_ids: Sequence[int]
    ) -> list[Logits]:
        """Raw logits of `token_ids` after each of `positions` of each sequence, (positions, tokens), and what each
        cost.

        Position p asks for the logits that follow from ids 0..p; positions ascend. A known prefix is not evaluated
        again, as far as it lies before the first position asked for. A sequence that cannot be scored comes back with
        an error.
        """
        call, units = self._scorings(sequences, positions, token_ids)
        return self.worker.do(units, call)

    async def ascore(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], token_ids: Sequence[int]
    ) -> list[Logits]:
        """`score` as a coroutine."""
        call, units = self._scorings(sequences, positions, token_ids)
        return await self.worker.wait(units, call)

    def _scorings(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], token_ids: Sequence[int]
    ) -> tuple[Call, list[Unit]]:
        columns = np.asarray(token_ids, np.int64)
        call = Call(len(sequences))
        units: list[Unit] = []
        for place, (ids, wanted) in enumerate(zip(sequences, positions, strict=True)):
            problem = problem_of(ids, self, wanted)
            if problem or not wanted:
                call.put(place, Logits(np.empty((0, len(columns)), np.float32), 0, problem))
            else:
                needed = ids[: wanted[-1] + 1]  # nothing after the last position changes its logits
                units.append(Scoring(call, place, Prompt(needed, 1), wanted, columns))
        return call, units

    async def aread(self, ids: Sequence[int], start: int) -> Reading:
        """What the model makes of the tokens of `ids` from place `start` (1 at least) on, see `Reading`.

        What stands before them is read where it is not known. A sequence that cannot be read comes back with an error.
        """
        wanted = range(start - 1, len(ids) - 1)
        problem = problem_of(ids, self) or ("" if start > 0 and wanted else f"there is nothing to read from {start} on")
        if problem:
            return Reading(none := np.empty(0, np.float32), none, none, 0, problem)
        call = Call(1)
        unit = TextReading(call, 0, Prompt(ids[:-1], 1), wanted, np.asarray(ids[start:], np.int64))
        result: Reading = (await self.worker.wait([unit], call))[0]
        return result

    def reset_cache(self) -> None:
        """Drop every cached prefix once the calls in progress have ended: what follows is measured from cold."""
        control = Control(self._scheduler.reset)
        self.worker.do(control, control)

    def limit_cache(self, share: float) -> None:
        """Keep no more than `share` (0 to 1) of the saved prefixes that it may; calls in progress end first.

        Example:
            engine.limit_cache(1 / 8)
        """
        control = Control(lambda: self._cache.limit(int(share * self._cache_memory)))
        self.worker.do(control, control)

    def set_curve(self, curve: Curve | None) -> None:
        """Split batches by `curve` from here on, None for the fixed split; calls in progress end first."""
        control = Control(lambda: self._scheduler.set_curve(curve))
        self.worker.do(control, control)

    def set_adapter(self, path: str | Path | None, scale: float = 1.0, *, check_base: bool = True) -> None:
        """Attach a LoRA adapter (GGUF) for all calls that follow, or none; calls in progress end first.

        What was computed under one adapter is never used under another. Raises BackendError where its file is damaged,
        does not fit, or is known to come from another base (see `weights.check_origin`; `check_base` False leaves that
        out, for who measures how far the two are apart).
        """
        digest = ""
        if path is not None:
            path = adapter_path(path)
            if not path.is_file():
                raise BackendError(f"adapter {path}: no such file; give the path of a LoRA adapter in GGUF")
            digest, header = _digest(path), read_gguf(path)
            if check_base:
                check_origin(path, digest, header.fields, self.path, self._context.fields, self.train_from)
        identity = digest[:8] + (f"*{scale:g}" if digest and scale != 1.0 else "")

        def act() -> None:
            if identity != self._scheduler.adapter:
                self._context.set_adapter(path and Path(path), digest, scale)
                self._scheduler.adapter = identity
                self._switches += 1

        control = Control(act)
        self.worker.do(control, control)


def _shut_down(worker: Worker, vocabulary: Vocabulary, context: LlamaContext) -> None:
    if worker.forked:  # the parent still uses all of it
        return
    worker.stop()
    vocabulary.close()
    context.close()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
