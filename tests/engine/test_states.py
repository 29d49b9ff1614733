"""States come with the logits of one decode, and change none of them."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest

from stepwise.lab import model_path
from stepwise.models.engine import Engine, GenerationJob, Reading
from tests.engine.conftest import LoadEngine

TEXTS = ("Mia has 12 apples and buys 5 more.\n\n", "Tom has 3 books", "Ava sells coins: 1, 2, 3, 4, 5, 6, 7. " * 4)


def jobs_of(engine: Engine, states: bool) -> list[GenerationJob]:
    return [
        GenerationJob(tuple(engine.tokenize(text)), 12, temperature=1.0, seed=i, ignore_end=True, states=states)
        for i, text in enumerate(TEXTS)
    ]


def read(engine: Engine, ids: list[int], start: int) -> Reading:
    return asyncio.run(engine.aread(ids, start))


def test_with_states_a_lab_model_draws_the_same_from_logits_that_are_equal_to_the_bit() -> None:
    with Engine.load(model_path("lab-weak"), context=256, sequences=4) as engine:
        for job in jobs_of(engine, False):
            engine.reset_cache()
            plain = engine.generate([job])[0]
            engine.reset_cache()
            told = engine.generate([dataclasses.replace(job, states=True)])[0]
            assert plain.states is None
            assert told.states is not None
            assert (told.ids, told.logprobs, told.entropies) == (plain.ids, plain.logprobs, plain.entropies)


def test_states_of_what_was_written_in_a_batch_are_those_of_reading_it(load: LoadEngine) -> None:
    engine = load()
    for job, made in zip(jobs := jobs_of(engine, True), engine.generate(jobs), strict=True):
        reading = read(engine, [*job.ids, *made.ids], len(job.ids))
        assert made.states is not None
        assert reading.states.shape == (12, engine.width)
        np.testing.assert_allclose(made.states[0], reading.states[-1], atol=1e-4)
        np.testing.assert_allclose(made.states[1], reading.states[1:].mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(made.logprobs, reading.logprobs, atol=1e-4)
        np.testing.assert_allclose(made.entropies, reading.entropies, atol=1e-4)


def test_a_long_text_is_read_in_several_batches_beside_others_that_write(load: LoadEngine) -> None:
    engine, alone = load(), load(sequences=1)
    ids = engine.tokenize(TEXTS[2] * 3)
    assert len(ids) > 70  # more than a batch has rows

    async def together() -> tuple[Reading, list[list[int]]]:
        reading, made = await asyncio.gather(engine.aread(ids, 5), engine.agenerate(jobs_of(engine, True)))
        return reading, [list(one.ids) for one in made]

    reading, made = asyncio.run(together())
    expected = read(alone, ids, 5)
    np.testing.assert_allclose(reading.states, expected.states, atol=1e-4)
    np.testing.assert_allclose(reading.logprobs, expected.logprobs, atol=1e-4)
    assert made == [list(one.ids) for one in alone.generate(jobs_of(alone, False))]


def test_only_what_is_new_is_read_and_prompts_are_never_read_with_states(
    load: LoadEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load()
    seen: list[tuple[int, int, bool]] = []
    plain = engine._context.decode
    monkeypatch.setattr(
        engine._context, "decode", lambda n, rows, states: (seen.append((n, rows, states)), plain(n, rows, states))[1]
    )
    job = jobs_of(engine, True)[2]
    made = engine.generate([job])[0]
    assert [n for n, _, states in seen if not states] == [len(job.ids)]
    assert all(n == rows for n, rows, states in seen if states)
    ids = [*job.ids, *made.ids, *engine.tokenize("So 5.\n\n")]
    reading = read(engine, ids, len(job.ids) + len(made.ids))
    assert reading.evaluated_tokens == len(ids) - len(job.ids) - len(made.ids)  # the last token is not run through


def test_a_text_that_cannot_be_read_says_why(load: LoadEngine) -> None:
    engine = load()
    assert "nothing to read" in read(engine, [1, 2], 2).error
    assert "context of 256" in read(engine, [1] * 300, 2).error
