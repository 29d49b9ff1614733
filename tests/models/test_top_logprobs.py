"""Log-probabilities of the likeliest tokens: the model's own, through the engine and through a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.models import load_backend
from stepwise.models.base import Request
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.types import Problem, TokenStats
from tests.models.test_litellm import behind, one, reply
from tests.scorers.stand_in import Answer

PROBLEM = Problem("p", "Mia has 12 apples and buys 5 more. How many?")


def test_the_engine_tells_the_likeliest_of_the_untempered_distribution_at_every_token(tiny_gguf_path: Path) -> None:
    with load_backend(f"llamacpp/{tiny_gguf_path}", context=512, sequences=4) as backend:
        assert isinstance(backend, LlamaCppBackend)
        request = Request(PROBLEM, max_tokens=5, temperature=1.7, seed=3, top_logprobs=4)
        (made,) = backend.continue_solutions([request])
        ids = [*backend.prefix_ids(request), *made.token_ids]
        everything = list(range(backend.engine.vocabulary.size))
        places = [len(ids) - len(made.token_ids) - 1 + i for i in range(len(made.token_ids))]
        logits = backend.engine.score([ids], [places], everything)[0].logits.astype(np.float64)
        (glimpse,) = backend.continue_solutions([Request(PROBLEM, max_tokens=1, temperature=1.7, seed=3)])
    wanted = np.sort(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), axis=1)[:, :-5:-1]
    assert made.top_logprobs is not None
    assert np.asarray(made.top_logprobs) == pytest.approx(wanted, abs=1e-2)
    every = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    drawn = [row[token] for row, token in zip(every, made.token_ids, strict=True)]
    told = made.token_stats
    assert told is not None
    assert (told.least, told.mean) == pytest.approx((min(drawn), np.mean(drawn)), abs=1e-2)
    assert told.entropy == pytest.approx(-(np.exp(every) * every).sum(axis=1).mean(), abs=1e-2)
    assert glimpse.token_ids == made.token_ids[:1]
    assert glimpse.top_logprobs is None


def test_a_server_is_asked_for_as_many_as_are_wanted_and_they_are_sorted() -> None:
    def entry(*logprobs: float) -> dict[str, Any]:
        top = [{"token": str(i), "logprob": value, "bytes": [48]} for i, value in enumerate(logprobs)]
        return {"token": "a", "logprob": logprobs[0], "bytes": [97], "top_logprobs": top}

    counts: list[int] = []

    def answers(path: str, body: dict[str, Any]) -> Answer:
        counts.append(body.get("top_logprobs", 0))
        scores = {"content": [entry(-0.9, -0.6), entry(-0.1, -2.5)]}
        return reply("a b", **({"logprobs": scores} if body.get("logprobs") else {}))

    with behind(answers, continuation="probe") as (backend, _):
        assert backend.capabilities.logprobs
        assert one(backend, top_logprobs=7).top_logprobs == ((-0.6, -0.9), (-0.1, -2.5))
        assert one(backend).top_logprobs is None
        assert one(backend).token_stats == TokenStats(-0.9, -0.5)
        assert not backend.capabilities.entropy
    assert counts[-3:] == [7, 1, 1]
