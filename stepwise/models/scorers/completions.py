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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from stepwise.errors import BackendError, ConfigError
from stepwise.models.http import CallFailed, Server
from stepwise.models.scorers.base import Scored, Workers
from stepwise.models.scorers.label_token import LabelTokenScorer, label_scores
from stepwise.prompt import SolvePrompt
from stepwise.types import Failure, Usage

_FORCE = 100.0  # as far as the interface goes


class _Piece(NamedTuple):
    """A stretch of a prompt: plain text, or one token, whose id is then known."""

    text: str
    token: int | None = None


class _Read(NamedTuple):
    """Log-probabilities (positions, tokens), or why there are none, and what they cost."""

    logits: Any
    usage: Usage
    failure: Failure | None = None


class ServedLabelScorer(LabelTokenScorer):
    """`LabelTokenScorer` over a `CompletionsReader`: each reading says what it cost; no prefix need be kept."""

    incremental = False

    def _scored(self, length: int, reading: Any) -> Scored:
        if reading.failure is not None:
            return Scored.of_failure(reading.failure, reading.usage)
        return Scored(label_scores(reading.logits), reading.usage)


def chatml(prompt: SolvePrompt, question: str) -> str:
    """The chat up to where the solution begins, as ChatML has it (Qwen's models, the lab's): the default template."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in prompt.messages(question)]
    return "".join(turns) + "<|im_start|>assistant\n"


class CompletionsReader:
    """A `PrefixReader` over /v1/completions, for `ServedLabelScorer`.

    `render` writes the chat up to where the solution begins. `requests` are in flight at once. Raises `ConfigError`
    where a label is not one token of the server's vocabulary, `BackendError` where the server does not answer at all.
    """

    parameters: int | None = None
    memory_bytes: int | None = None

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        requests: int = 8,
        render: Callable[[SolvePrompt, str], str] = chatml,
    ):
        self.server, self.model, self.render = server, model, render
        self.name = f"{model}@{server.root}"
        self._workers = Workers(self.name, requests)
        self._special: list[str] = []

    def token_id(self, text: str) -> _Piece:
        """The piece that is one token with this text; asks the server's tokenizer."""
        ids = self._tokenize(text)
        if len(ids) != 1:
            raise ConfigError(
                f"{self.name}: {text!r} is {len(ids)} tokens of this model's vocabulary; scorer.marker, scorer.good "
                "and scorer.bad must be one token each, as the scorer was trained with"
            )
        self._special.append(text)
        return _Piece(text, ids[0])

    def prompt_ids(self, prompt: SolvePrompt, question: str) -> list[_Piece]:
        """The chat up to where the solution begins."""
        return [_Piece(self.render(prompt, question))]

    def step_ids(self, text: str) -> list[_Piece]:
        """The step and its blank line."""
        return [_Piece(text + "\n\n")]

    def score(
        self, sequences: Sequence[Sequence[_Piece]], positions: Sequence[Sequence[int]], token_ids: Sequence[_Piece]
    ) -> list[_Read]:
        """Log-probabilities of `token_ids` after each of `positions` of each sequence, (positions, tokens)."""
        faults = [self._fault(pieces) for pieces in sequences]
        jobs = [
            ("".join(piece.text for piece in pieces[: p + 1]), label)
            for pieces, wanted, fault in zip(sequences, positions, faults, strict=True)
            for p in wanted
            if not fault
            for label in token_ids
        ]
        replies = iter(self._workers.map(lambda job: self._ask(*job), jobs))
        results = []
        for wanted, fault in zip(positions, faults, strict=True):
            if fault:
                results.append(_Read(None, Usage(self.name), Failure("refused", fault)))
            else:
                results.append(_read([[next(replies) for _ in token_ids] for _ in wanted]))
        return results

    def forget(self) -> None:
        """Nothing is kept here, and a server's cache cannot be dropped."""

    def close(self) -> None:
        """End the threads; calling it twice does nothing."""
        self._workers.close()

    def _fault(self, pieces: Sequence[_Piece]) -> str:
        plain = "\n".join(piece.text for piece in pieces if piece.token is None)
        hit = next((text for text in self._special if text in plain), None)
        if hit is None:
            return ""
        return f"the question or a step contains the token {hit!r}, which the server would read as one; remove it"

    def _ask(self, prompt: str, label: _Piece) -> tuple[float, Usage, Failure | None]:
        """The log-probability of one label after `prompt`."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1}
        try:
            data, retries = self.server.post("/v1/completions", {**body, "logit_bias": {str(label.token): _FORCE}})
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


def _read(rows: Sequence[Sequence[tuple[float, Usage, Failure | None]]]) -> _Read:
    """One reading of what was said of each label at each position."""
    usage = sum((usage for row in rows for _, usage, _ in row), Usage())
    values = np.array([[value for value, _, _ in row] for row in rows], np.float64)
    failure = next((failure for row in rows for _, _, failure in row if failure), None)
    fault = "" if failure else next((fault for row in values.tolist() if (fault := _implausible(row))), "")
    return _Read(values, usage, failure or (Failure("gone", fault) if fault else None))


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
