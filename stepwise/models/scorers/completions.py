"""Label tokens read over HTTP, from a server of text completions: llama_cpp.server (started with `--logits_all true`),
llama-server, vLLM.

Such servers give out log-probabilities of the likeliest tokens only, and under names that may be empty for special
tokens. So each label is drawn by force: one token is asked for, with a bias of 100 on the label's id, and the server
tells the token's own log-probability, from before the bias. A server that applies the bias first would give 0 for both
labels, one that ignores it the same value for both; each is an error, never a score. The other way, the
log-probability of a label echoed at the end of the prompt, is not used: llama-cpp-python 0.3.36 gives it for the wrong
position (row i of its logits for token i instead of i + 1).

The prompt is sent as text, so a special token typed into a question or a step would be read as one: such a solution is
refused. Each step costs two requests of one token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepwise.errors import BackendError, ConfigError
from stepwise.models.http import CallFailed, Server
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.label_token import label_score
from stepwise.models.scorers.prefix import PrefixScorer, Task, Workers
from stepwise.prompt import SolvePrompt
from stepwise.types import Failure, Usage

_FORCE = 100.0  # as far as the interface goes
_Said = tuple[float, Usage, Failure | None]
"""The log-probability of one label at one place, what it cost, and why there is none."""


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
        marker: str = "<|score|>",
        good: str = "<|good|>",
        bad: str = "<|bad|>",
        requests: int = 8,
        memory: int = 200_000,
    ):
        super().__init__(f"{model}@{server.root}", memory=memory)
        self.server, self.model, self.prompt = server, model, prompt or SolvePrompt()
        self.prompt_hash = self.prompt.hash
        self._special = {text: self._token_id(text) for text in (marker, good, bad)}
        self._marker, self._labels = marker, [self._special[good], self._special[bad]]
        self._workers = Workers(self.name, requests)

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; each label of each step is a request of its own."""
        faults = [self._fault(task) for task in tasks]
        prefixes = [[] if fault else self._prefixes(task) for task, fault in zip(tasks, faults, strict=True)]
        jobs = [(text, label) for texts in prefixes for text in texts for label in self._labels]
        said = iter(self._workers.map(lambda job: self._ask(*job), jobs))
        return [
            Scored.of_failure(Failure("refused", fault), Usage(self.name))
            if fault
            else _scored([(next(said), next(said)) for _ in texts])
            for texts, fault in zip(prefixes, faults, strict=True)
        ]

    def close(self) -> None:
        """End the threads; calling it twice does nothing."""
        super().close()
        self._workers.close()

    def _prefixes(self, task: Task) -> list[str]:
        """What is sent for each step that is to be scored: the chat up to the marker after it."""
        text, texts = _chatml(self.prompt, task.question), []
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

    def _ask(self, prompt: str, label: int) -> _Said:
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        try:
            data, retries = self.server.post("/v1/completions", {**body, "logit_bias": {str(label): _FORCE}})
        except CallFailed as error:
            return math.nan, Usage(self.name, 1, retries=error.retries), error.failure
        try:
            read, written = data["usage"]["prompt_tokens"], data["usage"]["completion_tokens"]
            said = data["choices"][0]["logprobs"]
            value = said["token_logprobs"][0] if "token_logprobs" in said else said["content"][0]["logprob"]
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


def _chatml(prompt: SolvePrompt, question: str) -> str:
    """The chat up to where the solution begins, as ChatML has it (Qwen's models, the lab's)."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in prompt.messages(question)]
    return "".join(turns) + "<|im_start|>assistant\n"


def _scored(steps: Sequence[tuple[_Said, _Said]]) -> Scored:
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
