"""The engine gives what a fresh model would give, however much it shares, batches, forks and forgets."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from stepwise.errors import BackendError
from stepwise.models.engine import Engine, Generation, GenerationJob
from stepwise.models.engine.context import captured_log, library
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.shared import limit_caches
from tests.engine.conftest import LoadEngine

PROMPTS = [
    "Mia has 12 apples and buys 5 more. How many apples does Mia have now?\n\n",
    "Mia has 12 apples and buys 7 more.\n\nShe starts with 12.",
    "Tom has 3 books",
    "Mia has 12 apples and buys 5 more. How many apples does Mia have now?\n\nMia starts with 12 apples.\n\n",
    "Ava sells coins: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12. " * 3,
]


def job(engine: Engine, text: str, **settings: object) -> GenerationJob:
    return GenerationJob(tuple(engine.tokenize(text)), **settings)  # type: ignore[arg-type]


def assert_same(made: Generation, expected: Generation) -> None:
    assert made.ids == expected.ids
    assert made.finish == expected.finish
    np.testing.assert_allclose(made.logprobs, expected.logprobs, atol=1e-4)


def fresh(load: LoadEngine, jobs: list[GenerationJob]) -> list[Generation]:
    """Each sample of each job from an engine that has seen nothing, one at a time, with one sequence."""
    made = []
    for item in jobs:
        engine = load(sequences=1)
        samples = [engine.generate([item])[i] for i in range(item.n)] if item.n == 1 else engine.generate([item])
        made += samples
        engine.close()
    return made


def test_a_batch_gives_every_job_what_it_gets_alone(load: LoadEngine) -> None:
    engine = load()
    jobs = [job(engine, text, max_tokens=30, temperature=t, seed=3) for text in PROMPTS for t in (0.0, 0.8)]
    for made, expected in zip(engine.generate(jobs), fresh(load, jobs), strict=True):
        assert_same(made, expected)
    assert engine.counters.cache_hits > 0  # prefixes were shared, so sharing was tested


def test_samples_of_one_prompt_are_those_of_one_sequence_and_the_prompt_is_evaluated_once(load: LoadEngine) -> None:
    engine = load()
    item = job(engine, PROMPTS[0], n=6, max_tokens=20, temperature=1.0, seed=11)
    made = engine.generate([item])
    for sample, expected in zip(made, fresh(load, [item]), strict=True):
        assert_same(sample, expected)
    assert len({sample.ids for sample in made}) == 6
    assert [sample.evaluated_tokens for sample in made] == [len(item.ids), 0, 0, 0, 0, 0]
    counters = engine.counters
    fed_back = sum(len(sample.ids) - 1 for sample in made)  # the last token of a sample is not evaluated
    assert counters.evaluated_tokens == len(item.ids) + fed_back
    assert counters.generated_tokens == fed_back + 6


def test_a_sample_depends_on_its_seed_and_number_alone(load: LoadEngine) -> None:
    engine = load()
    alone = engine.generate([job(engine, PROMPTS[2], n=3, max_tokens=15, temperature=1.0, seed=5)])
    others = [job(engine, text, max_tokens=25, temperature=1.0, seed=9) for text in PROMPTS]
    crowd = engine.generate([*others, job(engine, PROMPTS[2], n=3, max_tokens=15, temperature=1.0, seed=5)])[-3:]
    assert [a.ids for a in alone] == [b.ids for b in crowd]
    other_seed = engine.generate([job(engine, PROMPTS[2], n=3, max_tokens=15, temperature=1.0, seed=6)])
    assert {a.ids for a in alone}.isdisjoint(b.ids for b in other_seed)


def test_a_continuation_evaluates_only_what_is_new(load: LoadEngine) -> None:
    engine = load()
    first = engine.generate([job(engine, PROMPTS[0], max_tokens=20, temperature=0.7)])[0]
    prefix = (*engine.tokenize(PROMPTS[0]), *first.ids)
    before = engine.counters
    second = engine.generate([GenerationJob(prefix, max_tokens=10, temperature=0.0)])[0]
    assert second.evaluated_tokens == 1  # the last sampled token
    assert engine.counters.evaluated_tokens == before.evaluated_tokens + len(second.ids)
    assert_same(second, fresh(load, [GenerationJob(prefix, max_tokens=10, temperature=0.0)])[0])


def test_a_draft_that_is_replaced_keeps_the_part_that_is_common(load: LoadEngine) -> None:
    engine = load()
    prompt = tuple(engine.tokenize(PROMPTS[0]))
    engine.generate([GenerationJob(prompt, max_tokens=20, temperature=1.0, seed=1)])
    other = (*prompt, *engine.tokenize("Another model writes this.\n\n"))
    replaced = GenerationJob(other, max_tokens=12, temperature=0.0)
    made = engine.generate([replaced])[0]
    assert made.evaluated_tokens <= len(other) - len(prompt) + 1
    assert_same(made, fresh(load, [replaced])[0])
    again = GenerationJob(prompt, max_tokens=12, temperature=0.0)
    assert_same(engine.generate([again])[0], fresh(load, [again])[0])  # rolled back past the replacement


def test_forty_problems_continued_step_by_step_evaluate_hardly_more_than_their_distinct_tokens(
    load: LoadEngine,
) -> None:
    engine = load(sequences=64)
    texts = [f"Mia has {i} apples and buys {i * 7 % 31} more. How many?\n\n" for i in range(40)]
    prefixes = [tuple(engine.tokenize(text)) for text in texts]
    for step in range(5):
        jobs = [GenerationJob(ids, max_tokens=12, temperature=0.8, seed=step) for ids in prefixes]
        made = engine.generate(jobs)
        prefixes = [(*ids, *one.ids) for ids, one in zip(prefixes, made, strict=True)]
    counters = engine.counters
    assert counters.generated_tokens == sum(map(len, prefixes)) - sum(len(engine.tokenize(text)) for text in texts)
    assert counters.distinct_tokens <= counters.evaluated_tokens <= 1.05 * counters.distinct_tokens


def test_more_jobs_than_sequences_run_in_waves_and_lose_nothing(load: LoadEngine) -> None:
    engine = load(sequences=3)
    texts = [f"{name} has {i} coins." for i, name in enumerate(["Mia", "Tom", "Ava", "Ben", "Zoë"] * 3)]
    jobs = [job(engine, text, max_tokens=15, temperature=0.9, seed=2) for text in texts]
    made = engine.generate(jobs)
    for one, expected in zip(made, fresh(load, jobs), strict=True):
        assert_same(one, expected)
    spent = engine.counters.evaluated_tokens
    longer = [GenerationJob((*a.ids, *b.ids), max_tokens=5, temperature=0.0) for a, b in zip(jobs, made, strict=True)]
    again = engine.generate(longer)
    # Fifteen paths do not fit into three sequences: they come back from main memory, one new token each.
    assert [one.evaluated_tokens for one in again] == [1] * 15
    assert engine.counters.evaluated_tokens - spent == sum(len(one.ids) for one in again)
    for one, expected in zip(again, fresh(load, longer), strict=True):
        assert_same(one, expected)


def test_without_memory_for_saved_paths_results_stay_right_and_cost_more(load: LoadEngine) -> None:
    engine = load(sequences=2, cache_memory=0)
    jobs = [job(engine, text, max_tokens=10, temperature=0.0) for text in PROMPTS]
    for _ in range(2):
        for one, expected in zip(engine.generate(jobs), fresh(load, jobs), strict=True):
            assert_same(one, expected)
    assert engine.counters.evaluated_tokens > 1.3 * engine.counters.distinct_tokens


def test_a_limited_engine_keeps_fewer_prefixes(load: LoadEngine) -> None:
    engine = load(sequences=2)
    jobs = [
        job(engine, f"{letter} of a dozen jars has many more coins.", max_tokens=2, temperature=0.0)
        for letter in "ABCDEFGHIJKL"
    ]

    def asked_again() -> int:
        engine.generate(jobs)
        return sum(one.evaluated_tokens for one in engine.generate(jobs))

    every = asked_again()
    with ExitStack() as stack:
        limit_caches(stack, LlamaCppBackend(engine))
        few = asked_again()
    assert every < few
    assert asked_again() < few


def test_jobs_of_very_different_lengths_leave_gaps_that_are_closed_without_harm(load: LoadEngine) -> None:
    engine = load(sequences=8)
    lengths = [60, 3, 50, 2, 45, 4, 55, 5]
    jobs = [job(engine, f"Number {i}:", max_tokens=n, temperature=0.9, seed=i) for i, n in enumerate(lengths)]
    for one, expected in zip(engine.generate(jobs), fresh(load, jobs), strict=True):
        assert_same(one, expected)


def test_logprobs_are_those_of_the_plain_distribution_whatever_the_temperature(load: LoadEngine) -> None:
    engine = load()
    item = job(engine, PROMPTS[2], max_tokens=8, temperature=0.3, top_k=3, top_p=0.8, seed=4)
    made = engine.generate([item])[0]
    ids = [*item.ids, *made.ids]
    rows = engine.score([ids], [range(len(item.ids) - 1, len(ids) - 1)], range(engine.vocabulary.size))[0].logits
    plain = rows - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) - rows.max(1, keepdims=True)
    expected = plain[np.arange(len(made.ids)), list(made.ids)]
    np.testing.assert_allclose(made.logprobs, expected, atol=1e-4)


def test_scores_of_a_grown_sequence_equal_those_of_a_fresh_one_and_cost_only_the_new_tokens(load: LoadEngine) -> None:
    engine = load()
    ids = engine.tokenize(PROMPTS[3])
    half = len(ids) // 2
    engine.score([ids[:half]], [[half - 1]], [1, 2])
    grown = engine.score([ids], [[half + 2, len(ids) - 1]], [1, 2])[0]
    assert grown.evaluated_tokens == len(ids) - half
    whole = load().score([ids], [range(len(ids))], [1, 2])[0]
    np.testing.assert_allclose(grown.logits, whole.logits[[half + 2, len(ids) - 1]], atol=1e-4)
    again = engine.score([ids], [[3, half]], [1, 2])[0]  # wanted anew although the keys and values are known
    np.testing.assert_allclose(again.logits, whole.logits[[3, half]], atol=1e-4)


def test_more_logits_than_fit_one_batch_are_read_in_several(load: LoadEngine) -> None:
    engine = load()
    ids = engine.tokenize(PROMPTS[4])
    many = engine.score([ids] * 3, [range(len(ids))] * 3, [5, 6, 7])
    assert len(ids) > 64
    one_by_one = np.stack([engine.score([ids[: i + 1]], [[i]], [5, 6, 7])[0].logits[0] for i in range(len(ids))])
    for scored in many:
        np.testing.assert_allclose(scored.logits, one_by_one, atol=1e-4)


def test_a_prompt_that_cannot_be_run_is_an_error_of_that_job_only(load: LoadEngine) -> None:
    engine = load()
    good = job(engine, PROMPTS[2], max_tokens=4)
    made = engine.generate([GenerationJob((5,) * 300, n=2), good, GenerationJob((10**6,))])
    assert [one.finish for one in made] == ["error", "error", "length", "error"]
    assert "context of 256" in made[0].error
    assert "vocabulary" in made[3].error
    assert len(made[2].ids) == 4
    assert "ascending" in engine.score([[1, 2, 3]], [[2, 1]], [0])[0].error


def test_a_prompt_as_long_as_the_context_still_gives_one_token(load: LoadEngine) -> None:
    engine = load()
    made = engine.generate([GenerationJob((5,) * 256, max_tokens=9, ignore_end=True)])[0]
    assert (made.finish, len(made.ids)) == ("length", 1)


def test_eight_threads_share_the_engine_and_each_gets_its_own_results(load: LoadEngine) -> None:
    engine = load(sequences=4)
    jobs = [job(engine, f"Thread {i} counts", n=2, max_tokens=12, temperature=0.9, seed=i) for i in range(8)]
    expected = [load().generate([item]) for item in jobs]
    results: dict[tuple[int, int], list[Generation]] = {}

    def work(i: int) -> None:
        for turn in range(3):
            results[i, turn] = engine.generate([jobs[i]])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (i, _), made in results.items():
        for one, wanted in zip(made, expected[i], strict=True):
            assert_same(one, wanted)
    assert len(results) == 24


def test_an_interrupted_caller_leaves_a_usable_engine(load: LoadEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stepwise.models.engine.jobs.threading.Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([job(engine, PROMPTS[0], n=8, max_tokens=200, ignore_end=True)])
    item = job(engine, PROMPTS[1], max_tokens=10, temperature=0.0)
    assert_same(engine.generate([item])[0], fresh(load, [item])[0])


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_while_llama_cpp_loads_and_logs_is_put_off_and_not_dropped() -> None:
    said = list[str]()

    def load() -> None:
        with captured_log() as lines:
            signal.raise_signal(signal.SIGINT)
            library().llama_model_load_from_file(b"no-such-file", library().llama_model_default_params())
            said.extend(lines)

    with pytest.raises(KeyboardInterrupt):
        load()
    assert said  # llama.cpp called back with the signal pending, and the load went on to its end
    with pytest.raises(KeyboardInterrupt):  # the handler of before is back
        signal.raise_signal(signal.SIGINT)


def test_a_closed_engine_says_so_and_closing_twice_does_nothing(load: LoadEngine) -> None:
    engine = load()
    engine.close()
    engine.close()
    for use in (
        lambda: engine.generate([GenerationJob((1, 2))]),
        lambda: engine.tokenize("a"),
        lambda: engine.set_adapter(None),
    ):
        with pytest.raises(BackendError, match="closed"):
            use()


def test_an_engine_that_was_never_closed_ends_silently_with_the_interpreter(tiny_gguf_path: Path) -> None:
    code = (
        "import sys; from stepwise.models.engine import Engine, GenerationJob\n"
        "engine = Engine.load(sys.argv[1], context=256, sequences=2)\n"
        "print(len(engine.generate([GenerationJob((1, 2, 3), max_tokens=4, ignore_end=True)])[0].ids))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_gguf_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "4", "")


@pytest.mark.parametrize(("content", "reason"), [(b"not a model at all", "magic"), (None, "no such file")])
def test_a_model_that_cannot_be_loaded_is_an_error_with_path_and_reason(
    tmp_path: Path, content: bytes | None, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackendError) as error:
        Engine.load(path)
    assert str(path) in str(error.value)
    assert reason in str(error.value)
    assert capfd.readouterr().err == ""


def test_fewer_sequences_are_opened_where_the_cache_would_not_fit(load: LoadEngine) -> None:
    cell = 2 * 2 * 64 * 4  # layers x (key, value) x width x four bytes
    assert load(sequences=64, kv_memory=5 * 256 * cell).sequences == 5
    assert load(sequences=3, kv_memory=1).sequences == 1
