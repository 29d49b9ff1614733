"""Label tokens: P(step is right) from two tokens read at a marker, on an engine here or over HTTP.

What `LabelTokenScorer` does differently from Math-Shepherd (arXiv 2312.08935):
1. One marker token stands after every step, at the end of its blank line, and stays in the context.
2. The score is the softmax over two label tokens alone, read at the marker; the label itself is never written.
3. A step appended to a known prefix costs its own tokens and the marker on the engine: the prefix is in its cache and
   the scores are kept.

`ServedLabelScorer` reads the same from a server of text completions: llama_cpp.server (started with
`--logits_all true`), llama-server, vLLM. Such servers give out log-probabilities of the likeliest tokens only, and
under names that may be empty for special tokens. So each label is drawn by force: one token is asked for, with a bias
of 100 on the label's id, and the server tells the token's own log-probability, from before the bias. A server that
applies the bias first would give 0 for both labels, one that ignores it the same value for both; each is an error,
never a score. The other way, the log-probability of a label echoed at the end of the prompt, is not used:
llama-cpp-python 0.3.36 gives it for the wrong position (row i of its logits for token i instead of i + 1). The prompt
is sent as text, so a special token typed into a question or a step would be read as one: such a solution is refused.
Each step costs two requests of one token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from stepwise.errors import BackendError, ConfigError
from stepwise.models.engine import Engine
from stepwise.models.http import CallFailed, Server
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.prefix import PrefixScorer, Task
from stepwise.prompt import SolvePrompt
from stepwise.types import Failure, Problem, Usage

_LABELS = ("<|score|>", "<|good|>", "<|bad|>")  # of the lab's scorer: marker, right, wrong
_FORCE = 100.0  # as far as the interface goes
_Reply = tuple[float, Usage, Failure | None]
"""The log-probability of one label at one place, what it cost, and why there is none."""


def _asked_for(prompt: SolvePrompt, *labels: str) -> str:
    """What is not asked for by default."""
    others = [f"labels {labels}"] if labels != _LABELS else []
    return " ".join([*others, *([f"prompt {prompt.hash}"] if prompt != SolvePrompt() else [])])


class LabelTokenScorer(PrefixScorer):
    """P(step is right) from two label tokens, read at a marker after each step (Math-Shepherd's way).

    A solution is scored as: the solve prompt, then each step with the blank line after it and one marker token. The
    score is softmax over the logits of `good` and `bad` at the marker. Raises `ConfigError` when the vocabulary lacks
    one of the three tokens.
    """

    incremental = True

    def __init__(
        self,
        engine: Engine,
        *,
        prompt: SolvePrompt | None = None,
        marker: str = _LABELS[0],
        good: str = _LABELS[1],
        bad: str = _LABELS[2],
        memory: int = 200_000,
    ):
        super().__init__(engine.name, memory=memory)
        self.parameters, self.memory_bytes = engine.parameters, engine.memory_bytes
        self.prompt = prompt or SolvePrompt()
        self.engine = engine
        self._asked_for = _asked_for(self.prompt, marker, good, bad)
        self._marker, self._good, self._bad = (engine.token_id(token) for token in (marker, good, bad))
        self._step_ids = lru_cache(maxsize=16_384)(engine.step_ids)
        self._prompt_ids = lru_cache(maxsize=1_024)(lambda question: engine.prompt_ids(self.prompt, question))

    def _model_name(self) -> str:
        return self.engine.name  # of now: an adapter may have been attached since

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; all tasks go to the engine in one call."""
        sequences = [self._sequence(task) for task in tasks]
        ids, markers = [ids for ids, _ in sequences], [markers for _, markers in sequences]
        read = self.engine.score(ids, markers, [self._good, self._bad])
        return [self._scored(len(ids), reading) for (ids, _), reading in zip(sequences, read, strict=True)]

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """On the engine, a solution joins the running batch as soon as it is asked about."""
        task = self._begin(problem, steps)
        if task.done:
            return self._end(task, None)
        ids, markers = self._sequence(task)
        (reading,) = await self.engine.ascore([ids], [markers], [self._good, self._bad])
        return self._end(task, self._scored(len(ids), reading))

    @property
    def engines(self) -> tuple[Any, ...]:
        """The engine."""
        return (self.engine,)

    @property
    def prompt_hash(self) -> str:  # type: ignore[override]
        """Of the solve prompt."""
        return self.prompt.hash

    def reset_cache(self) -> None:
        """Drop every score and cached prefix, so that what follows is measured from cold."""
        super().reset_cache()
        self.engine.reset_cache()

    def close(self) -> None:
        """Free the engine; calling it twice does nothing."""
        super().reset_cache()
        self.engine.close()

    def _scored(self, length: int, reading: Any) -> Scored:
        """The scores of a solution of `length` pieces, whose reading counts as one call on all of them."""
        usage = Usage(self.name, 1, length, reading.evaluated_tokens)
        if reading.error:
            return Scored([], usage, reading.error)
        return Scored([_label_score(good, bad) for good, bad in reading.logits.tolist()], usage)

    def _sequence(self, task: Task) -> tuple[list[Any], list[int]]:
        """The whole solution, and the position of the marker after each step without a score."""
        ids, markers = list(self._prompt_ids(task.question)), []
        for text in task.steps:
            ids += [*self._step_ids(text), self._marker]
            markers.append(len(ids) - 1)
        return ids, markers[task.first :]


def _label_score(good: float, bad: float) -> float:
    """Softmax of `good` among the two logits (or log-probabilities)."""
    gap = bad - good
    return 1 / (1 + math.exp(gap)) if gap < 0 else math.exp(-gap) / (1 + math.exp(-gap))


class ServedLabelScorer(PrefixScorer):
    """What `LabelTokenScorer` reads on the engine, over a server's /v1/completions; see the module's text.

    The chat is written as ChatML. `requests` are in flight at once. Raises `ConfigError` where a label or the marker is
    not one token of the server's vocabulary, `BackendError` where the server does not answer at all.
    """

    remote = True

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        prompt: SolvePrompt | None = None,
        marker: str = _LABELS[0],
        good: str = _LABELS[1],
        bad: str = _LABELS[2],
        requests: int = 8,
        memory: int = 200_000,
    ):
        super().__init__(f"{model}@{server.root}", memory=memory, requests=requests)
        self.server, self.model, self.prompt = server, model, prompt or SolvePrompt()
        self.prompt_hash = self.prompt.hash
        self._asked_for = _asked_for(self.prompt, marker, good, bad)
        self._special = {text: self._token_id(text) for text in (marker, good, bad)}
        self._marker, self._labels = marker, [self._special[good], self._special[bad]]

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; each label of each step is a request of its own."""
        faults = [self._fault(task) for task in tasks]
        prefixes = [[] if fault else self._prefixes(task) for task, fault in zip(tasks, faults, strict=True)]
        jobs = [(text, label) for texts in prefixes for text in texts for label in self._labels]
        replies = iter(self.map(lambda job: self._ask(*job), jobs))
        return [
            Scored.of_failure(Failure("refused", fault), Usage(self.name))
            if fault
            else _scored([(next(replies), next(replies)) for _ in texts])
            for texts, fault in zip(prefixes, faults, strict=True)
        ]

    def _prefixes(self, task: Task) -> list[str]:
        """What is sent for each step that is to be scored: the chat up to the marker after it."""
        # The chat up to where the solution begins, as ChatML has it (Qwen's models, the lab's).
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in self.prompt.messages(task.question)]
        text, texts = "".join(turns) + "<|im_start|>assistant\n", []
        for step in task.steps:
            text += f"{step}\n\n{self._marker}"
            texts.append(text)
        return texts[task.first :]

    def _fault(self, task: Task) -> str:
        plain = "\n".join([task.question, *task.steps])
        hit = next((text for text in self._special if text in plain), None)
        if hit is None:
            return ""
        return f"the question or a step contains the token {hit!r}, which the server would read as one; remove it"

    def _ask(self, prompt: str, label: int) -> _Reply:
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        try:
            data, retries = self.server.post("/v1/completions", {**body, "logit_bias": {str(label): _FORCE}})
        except CallFailed as error:
            return math.nan, Usage(self.name, 1, retries=error.retries), error.failure
        try:
            read, written = data["usage"]["prompt_tokens"], data["usage"]["completion_tokens"]
            logprobs = data["choices"][0]["logprobs"]
            value = logprobs["token_logprobs"][0] if "token_logprobs" in logprobs else logprobs["content"][0]["logprob"]
            return float(value), Usage(self.name, 1, read, read, written, retries), None
        except (KeyError, IndexError, TypeError, ValueError):
            fault = (
                f"{self.server.root}/v1/completions gave no log-probability: {repr(data)[:200]}; start it with "
                "log-probabilities (llama_cpp.server: --logits_all true)"
            )
            return math.nan, Usage(self.name, 1, retries=retries), Failure("gone", fault)

    def _token_id(self, text: str) -> int:
        """The id of the one token that `text` is."""
        ids = self._tokenize(text)
        if len(ids) != 1:
            raise ConfigError(
                f"{self.name}: {text!r} is {len(ids)} tokens of this model's vocabulary; scorer.marker, scorer.good "
                "and scorer.bad must be one token each, as the scorer was trained with"
            )
        return ids[0]

    def _tokenize(self, text: str) -> list[int]:
        """The server's ids, without a beginning-of-sequence token that it may put first.

        llama_cpp.server has /extras/tokenize; llama-server and vLLM have /tokenize.
        """
        failures = []
        for path in ("/tokenize", "/extras/tokenize"):
            try:
                ids, empty = self._ids(path, text), self._ids(path, "")
                return ids[len(empty) :] if ids[: len(empty)] == empty else ids
            except CallFailed as failure:
                failures.append(str(failure))
            except (KeyError, TypeError, ValueError):
                failures.append(f"{self.server.root}{path}: no list of tokens")
        raise BackendError(f"{self.name}: the ids of the label tokens cannot be asked for: {'; '.join(failures)}")

    def _ids(self, path: str, text: str) -> list[int]:
        body = {"model": self.model, "add_special_tokens": False, "add_special": False, "parse_special": True}
        tokens = self.server.post(path, body | {"prompt": text, "content": text, "input": text}).data["tokens"]
        return [int(token) for token in tokens]


def _scored(steps: Sequence[tuple[_Reply, _Reply]]) -> Scored:
    """Scores of the steps of one solution, from what was said of both labels at each."""
    usage = sum((usage for step in steps for _, usage, _ in step), Usage())
    failure = next((failure for step in steps for *_, failure in step if failure), None)
    values = [(good, bad) for (good, *_), (bad, *_) in steps]
    fault = "" if failure else next((fault for pair in values if (fault := _implausible(pair))), "")
    if failure or fault:
        return Scored.of_failure(failure or Failure("gone", fault), usage)
    return Scored([_label_score(*pair) for pair in values], usage)


def _implausible(logprobs: Sequence[float]) -> str:
    """Why these are no log-probabilities of different tokens after the same prefix."""
    if any(not math.isfinite(value) or value > 1e-3 for value in logprobs):
        return f"the server's log-probabilities are {logprobs}; they must be finite and at most 0"
    if sum(map(math.exp, logprobs)) > 1.001:
        return (
            f"the server's log-probabilities {logprobs} add up to more than 1: it tells them with the bias applied; "
            "use a server that tells them from before it (vLLM: logprobs_mode raw_logprobs)"
        )
    if len(set(logprobs)) < len(logprobs):
        return f"the server gives {logprobs[0]} for different labels: it ignores logit_bias; use one that has it"
    return ""
