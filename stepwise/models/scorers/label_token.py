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
never a score. Where that happens, the label is put behind the prompt instead, and its own log-probability is read from
vLLM's `prompt_logprobs`. (OpenAI's `echo` is not used: llama-cpp-python 0.3.36 tells it for the wrong position, row i
of its logits for token i instead of i + 1.) The prompt is sent as text, so a special token typed into a question or a
step would be read as one: such a solution is refused. Each step costs two requests of one token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stepwise.errors import BackendError, ConfigError
from stepwise.models.engine import Engine
from stepwise.models.http import CallFailed, Server
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.calibration import Calibration
from stepwise.models.scorers.layouts import Layout, Marked, Reading
from stepwise.models.scorers.prefix import PrefixScorer, Task
from stepwise.prompt import SolvePrompt
from stepwise.types import Failure, Problem, Usage

LABELS = ("<|score|>", "<|good|>", "<|bad|>")  # of the lab's scorer: marker, right, wrong
_FORCE = 100.0  # as far as the interface goes
_Reply = tuple[float, Usage, Failure | None]
"""The log-probability of one label at one place, what it cost, and why there is none."""


def _asked_for(key: str, *labels: str) -> str:
    """What is not asked for by default."""
    return " ".join([*([f"labels {labels}"] if labels != LABELS else []), *([key] if key else [])])


class LabelTokenScorer(PrefixScorer):
    """P(step is right) from two label tokens, read after each step (Math-Shepherd's way).

    `layout` says how the solution is written down and where the labels are read; by default the solve prompt, then each
    step with the blank line after it and one marker token. The score is softmax over the logits of `good` and `bad`,
    each a special token or one ordinary token; `calibration` makes a probability of it. Raises `ConfigError` where one
    of them or the marker is none of the vocabulary's.

    Example:
        >>> from stepwise import lab
        >>> with Engine.load(lab.model_path("lab-scorer"), context=256, sequences=2) as engine:
        ...     0 < LabelTokenScorer(engine).score("1 + 1 = ?", ["1 + 1 = 2."])[0] < 1
        True
    """

    incremental = True

    def __init__(
        self,
        engine: Engine,
        *,
        layout: Layout | None = None,
        prompt: SolvePrompt | None = None,
        marker: str = LABELS[0],
        good: str = LABELS[1],
        bad: str = LABELS[2],
        name: str = "",
        verdict: bool = False,
        calibration: Calibration | None = None,
        memory: int = 10_000,
    ):
        super().__init__(name or engine.name, memory=memory)
        self.calibration = calibration or Calibration()
        self.parameters, self.memory_bytes = engine.parameters, engine.memory_bytes
        self.engine, self.prompt, self.verdict = engine, prompt or SolvePrompt(), verdict
        self.layout = layout or Marked(engine, self.prompt, marker)
        self._asked_for = _asked_for(self.layout.key, marker, good, bad) + " verdict" * verdict
        self._asked_for += f" {calibration}" if calibration else ""
        self._prefix = name.removesuffix(engine.name)  # what stands before the engine's name
        self._labels = [engine.token_id(good), engine.token_id(bad)]

    def _model_name(self) -> str:
        return self._prefix + self.engine.name  # of now: an adapter may have been attached since

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; all tasks go to the engine in one call."""
        readings = [self._readings(task) for task in tasks]
        ids, positions = zip(*(pair for group in readings for pair in group), strict=True)
        read = iter(self.engine.score(ids, positions, self._labels))
        return [self._scored(group, [next(read) for _ in group]) for group in readings]

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """On the engine, a solution joins the running batch as soon as it is asked about."""
        task = self._begin(problem, steps)
        if task.done:
            return self._end(task, None)
        readings = self._readings(task)
        ids, positions = zip(*readings, strict=True)
        return self._end(task, self._scored(readings, await self.engine.ascore(ids, positions, self._labels)))

    @property
    def engines(self) -> tuple[Any, ...]:
        """The engine."""
        return (self.engine,)

    @property
    def prompt_hash(self) -> str:  # type: ignore[override]
        """Of the solve prompt, where solutions are read under it."""
        return self.prompt.hash if isinstance(self.layout, Marked) else ""

    def reset_cache(self) -> None:
        """Drop every score and cached prefix, so that what follows is measured from cold."""
        super().reset_cache()
        self.engine.reset_cache()

    def close(self) -> None:
        """Free the engine; calling it twice does nothing."""
        super().reset_cache()
        self.engine.close()

    def _readings(self, task: Task) -> list[Reading]:
        return self.layout.readings(task.question, task.steps, task.first)

    def _scored(self, readings: Sequence[Reading], read: Sequence[Any]) -> Scored:
        """The scores of a solution; each sequence that was read counts as one call on all of its tokens."""
        prompt_tokens, evaluated = sum(len(ids) for ids, _ in readings), sum(one.evaluated_tokens for one in read)
        usage = Usage(self.name, len(readings), prompt_tokens, evaluated)
        if error := next((one.error for one in read if one.error), ""):
            return Scored([], usage, error)
        scores = [self.calibration(label_score(good, bad)) for one in read for good, bad in one.logits.tolist()]
        return Scored([float(score >= 0.5) for score in scores] if self.verdict else scores, usage)


def label_score(good: float, bad: float) -> float:
    """Softmax of `good` among the two logits (or log-probabilities).

    >>> label_score(1.0, 1.0)
    0.5
    """
    gap = bad - good
    return 1 / (1 + math.exp(gap)) if gap < 0 else math.exp(-gap) / (1 + math.exp(-gap))


class ServedLabelScorer(PrefixScorer):
    """What `LabelTokenScorer` reads on the engine, over a server's /v1/completions; see the module's text.

    The chat is written as ChatML. `requests` are in flight at once. Raises `ConfigError` where a label or the marker is
    not one token of the server's vocabulary, `BackendError` where the server does not answer at all.

    Example:
        scorer = ServedLabelScorer(Server("http://localhost:8000/v1"), "math-shepherd")
        print(scorer.score("1 + 1?", ["1 + 1 = 2."]))
    """

    remote = True

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        prompt: SolvePrompt | None = None,
        marker: str = LABELS[0],
        good: str = LABELS[1],
        bad: str = LABELS[2],
        requests: int = 8,
        memory: int = 10_000,
    ):
        super().__init__(f"{model}@{server.root}", memory=memory, requests=requests)
        self.server, self.model, self.prompt = server, model, prompt or SolvePrompt()
        self.prompt_hash = self.prompt.hash
        key = "" if self.prompt == SolvePrompt() else f"prompt {self.prompt_hash}"
        self._asked_for = _asked_for(key, marker, good, bad)
        self._special = {text: self._token_id(text) for text in (marker, good, bad)}
        self._marker, self._labels = marker, (good, bad)
        self._forced = True  # False once it has shown that the server tells no unbiased log-probabilities

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; each label of each step is a request of its own."""
        faults = [self._fault(task) for task in tasks]
        prefixes = [[] if fault else self._prefixes(task) for task, fault in zip(tasks, faults, strict=True)]
        pairs = iter(self.map(self._pair, [text for texts in prefixes for text in texts]))
        return [
            Scored.of_failure(Failure("refused", fault), Usage(self.name))
            if fault
            else _scored([next(pairs) for _ in texts])
            for texts, fault in zip(prefixes, faults, strict=True)
        ]

    def _pair(self, prompt: str) -> tuple[_Reply, _Reply]:
        """What is said of both labels after `prompt`."""
        forced = self._forced
        good, bad = (self._ask(prompt, label, forced) for label in self._labels)
        if not forced or good[2] or bad[2] or not _implausible((good[0], bad[0])):
            return good, bad
        read = [self._ask(prompt, label, False) for label in self._labels]
        if read[0][2] or read[1][2] or _implausible((read[0][0], read[1][0])):
            return good, bad  # the server has no `prompt_logprobs`: what is wrong with the first is the fault
        self._forced = False
        (first, spent, _), (second, more, _) = read
        return (first, good[1] + spent, None), (second, bad[1] + more, None)

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

    def _ask(self, prompt: str, label: str, forced: bool) -> _Reply:
        body: dict[str, Any] = {"model": self.model, "max_tokens": 1, "temperature": 0}
        token = str(self._special[label])
        if forced:
            body |= {"prompt": prompt, "logprobs": 1, "logit_bias": {token: _FORCE}}
        else:
            body |= {"prompt": prompt + label, "prompt_logprobs": 0}
        try:
            data, retries = self.server.post("/v1/completions", body)
        except CallFailed as error:
            return math.nan, Usage(self.name, 1, retries=error.retries), error.failure
        try:
            read, written = data["usage"]["prompt_tokens"], data["usage"]["completion_tokens"]
            (choice,) = data["choices"]
            if not forced:
                value = choice["prompt_logprobs"][-1][token]["logprob"]
            elif "token_logprobs" in choice["logprobs"]:
                value = choice["logprobs"]["token_logprobs"][0]
            else:
                value = choice["logprobs"]["content"][0]["logprob"]
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
    return Scored([label_score(*pair) for pair in values], usage)


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
