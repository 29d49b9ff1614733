"""Tokens as they are drawn, the likeliest tokens, and stop strings."""

from __future__ import annotations

import numpy as np
import pytest

from stepwise.models.engine import Engine, Generation, GenerationJob
from tests.engine.conftest import LoadEngine

QUESTION = "Mia has 12 apples and buys 5 more. How many apples does Mia have now?\n\n"
OTHER = "Tom has 3 books"


def job(engine: Engine, text: str, **settings: object) -> GenerationJob:
    return GenerationJob(tuple(engine.tokenize(text)), **settings)  # type: ignore[arg-type]


def test_a_stream_gives_each_token_as_it_is_drawn_and_the_same_samples_as_a_call(load: LoadEngine) -> None:
    engine = load()
    item = job(engine, QUESTION, n=2, max_tokens=12, temperature=0.8, seed=4)
    expected = engine.generate([item])
    seen: dict[int, list[int]] = {0: [], 1: []}
    done: dict[int, Generation] = {}
    for event in engine.stream(item):
        if isinstance(event, Generation):
            done[event.sample] = event
        else:
            seen[event.sample].append(event.token)
    assert [tuple(seen[i]) for i in (0, 1)] == [done[i].ids for i in (0, 1)] == [one.ids for one in expected]


def test_closing_a_stream_drops_the_rest_and_the_engine_goes_on(load: LoadEngine) -> None:
    engine = load()
    stream = engine.stream(job(engine, QUESTION, max_tokens=150, temperature=0.0, ignore_end=True))
    assert not isinstance(next(stream), Generation)
    stream.close()  # type: ignore[attr-defined]
    engine.generate([job(engine, OTHER, max_tokens=3, temperature=0.0)])
    assert engine.counters.generated_tokens < 150


def test_a_job_that_cannot_be_done_ends_its_stream_with_the_error(load: LoadEngine) -> None:
    engine = load()
    (event,) = engine.stream(GenerationJob((1,) * 300))
    assert isinstance(event, Generation)
    assert "context" in event.error


def test_the_likeliest_tokens_are_told_with_their_plain_log_probabilities(load: LoadEngine) -> None:
    engine = load()
    made = engine.generate([job(engine, QUESTION, max_tokens=6, temperature=0.0, top_logprobs=3)])[0]
    assert [row[0][0] for row in made.top] == list(made.ids)  # greedy takes the likeliest
    for row, logprob in zip(made.top, made.logprobs, strict=True):
        assert row[0][1] == pytest.approx(logprob)
        assert len(row) == 3
        assert row[0][1] >= row[1][1] >= row[2][1]
    sampled = engine.generate([job(engine, QUESTION, max_tokens=6, temperature=1.0, seed=3, top_logprobs=100)])[0]
    assert sum(np.exp(value) for _, value in sampled.top[0]) <= 1.0001


def test_a_stop_string_cuts_the_text_and_leaves_the_ids(load: LoadEngine) -> None:
    engine = load()
    plain = engine.generate([job(engine, QUESTION, max_tokens=20, temperature=0.0)])[0]
    stop = plain.data.decode("utf-8", "replace")[8:10]
    made = engine.generate([job(engine, QUESTION, max_tokens=20, temperature=0.0, stop_strings=(stop,))])[0]
    assert made.finish == "step"
    assert made.data[: made.end] == plain.data[: plain.data.index(stop.encode())]
    assert made.ids == plain.ids[: len(made.ids)]
