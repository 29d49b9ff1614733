"""Scores of a process reward model that vLLM serves with a pooling head, over HTTP.

The request is `POST /pooling` with chat messages, the last of them the steps with the marker token after each:

    vllm serve Qwen/Qwen2.5-Math-PRM-7B --runner pooling

The answer is `{"data": [{"data": rows}], "usage": {...}}`. With step pooling, `rows` has one row per marker: two
class probabilities (the second is "right"), or one probability; a flat list of one probability per marker is taken too.
With pooling over all tokens the number of rows is that of the tokens, which is an error that says how to start vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from stepwise.models.http import CallFailed, Server
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.prefix import PrefixScorer, Task
from stepwise.types import Failure, Usage

QWEN_PRM_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
"""What Qwen2.5-Math-PRM was trained with, according to its model card."""
QWEN_PRM_MARKER = "<extra_0>"


class PoolingScorer(PrefixScorer):
    """A process reward model behind vLLM's /pooling; one request per solution, `requests` of them in flight.

    Example:
        PoolingScorer(Server("http://localhost:8000"), "Qwen/Qwen2.5-Math-PRM-7B").score("1 + 1?", ["That is 2."])
    """

    remote = True

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        marker: str = QWEN_PRM_MARKER,
        system: str = QWEN_PRM_SYSTEM,
        requests: int = 8,
        memory: int = 10_000,
    ):
        super().__init__(f"{model}@{server.root}", memory=memory, requests=requests)
        self.server, self.model, self.system = server, model, system
        self.marker_text = marker
        read = (marker, system)
        self._asked_for = "" if read == (QWEN_PRM_MARKER, QWEN_PRM_SYSTEM) else f"read with {read}"

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`."""
        return self.map(self._score_task, tasks)

    def _score_task(self, task: Task) -> Scored:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        solution = "".join(text + self.marker_text for text in task.steps)
        messages += [{"role": "user", "content": task.question}, {"role": "assistant", "content": solution}]
        body = {"model": self.model, "messages": messages, "encoding_format": "float"}
        try:
            data, retries = self.server.post("/pooling", body)
        except CallFailed as error:
            return Scored.of_failure(error.failure, Usage(self.name, 1, retries=error.retries))
        tokens, rows = 0, None
        with suppress(KeyError, TypeError, ValueError):
            tokens = max(0, int(data["usage"]["prompt_tokens"]))
        with suppress(KeyError, IndexError, TypeError):
            rows = data["data"][0]["data"]
        usage = Usage(self.name, 1, tokens, tokens, retries=retries)
        scores, fault = _right_class(rows, len(task.steps), tokens)
        if fault:
            return Scored.of_failure(Failure("refused", f"{self.server.root}/pooling: {fault}"), usage)
        return Scored(scores[task.first :], usage)


def _right_class(rows: Any, steps: int, tokens: int) -> tuple[list[float], str]:
    """The probability of the last class in each row, or why there is none."""
    if not isinstance(rows, list):
        return [], f"no list of scores in the answer but {repr(rows)[:80]}; the model must be served for pooling"
    if len(rows) != steps:
        remedy = (
            "these are all tokens: serve the model with step pooling (pooler configuration: type STEP and the marker's "
            "id as step_tag_id)"
            if tokens and len(rows) == tokens
            else "is scorer.marker one token of this model, and its step tag?"
        )
        return [], f"{len(rows)} scores for {steps} steps; {remedy}"
    scores = []
    for index, row in enumerate(rows):
        values = row if isinstance(row, list) else [row]
        if len(values) not in (1, 2) or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
            return [], f"step {index} has {repr(row)[:80]}; expected one probability, or two that add up to 1"
        if not all(0 <= value <= 1 for value in values) or (len(values) == 2 and abs(sum(values) - 1) > 0.02):
            return [], (
                f"step {index} has {repr(row)[:80]}, which are no probabilities; have the server apply its activation "
                "(use_activation, or softmax in the pooler configuration)"
            )
        scores.append(float(values[-1]))
    return scores, ""
