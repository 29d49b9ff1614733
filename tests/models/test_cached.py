"""Continuations and scores that are asked for once: sharing, as-if cost, failures, kill -9."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from stepwise.errors import BackendError, DataError
from stepwise.models.base import Completion, Request, first_of
from stepwise.models.cached import Stored, StoredScorer
from stepwise.models.scorers import PrefixScorer, Scored, Scorer
from stepwise.models.scorers.prefix import Task
from stepwise.models.store import CallCache
from stepwise.routing import Always, Models, Never, Policy, Random, RouteSettings, Threshold, route_all
from stepwise.types import Problem, Step, Trace, Usage
from tests.fakes import Line, ScriptedBackend, ScriptedScorer, n_tokens
from tests.routing import world

P = Problem("p", "How many?", "4")
POLICIES: list[Policy] = [Never(), Always(), Threshold(0.3), Threshold(0.6), Random(0.4)]


def cached(made: Models, cache: CallCache) -> Models:
    assert made.scorer is not None
    weak, strong = Stored(made.weak, cache, role="weak"), Stored(made.strong, cache, role="strong")
    return Models(weak, strong, StoredScorer(made.scorer, cache))


def routed(policy: Policy, made: Models, n: int = 12) -> list[Trace]:
    return route_all(world.problems(n), made, policy, RouteSettings(window=4))


def asked(made: Models) -> int:
    return len(made.weak.requests) + len(made.strong.requests)  # type: ignore[attr-defined]


def without_cost(traces: Sequence[Trace]) -> list[Trace]:
    """Steps and decisions; how much a model evaluated depends on what it had seen."""

    def bare(step: Step) -> Step:
        usage = dataclasses.replace(step.usage, evaluated_tokens=0)
        return dataclasses.replace(step, usage=usage, discarded=tuple(map(bare, step.discarded)))

    return [dataclasses.replace(t, steps=tuple(map(bare, t.steps)), scorer_usage=Usage()) for t in traces]


def test_policies_share_what_is_written_at_the_same_prefix_and_nothing_else_changes() -> None:
    cache, inner, alone = CallCache(), world.models(), 0
    shared = cached(inner, cache)
    for policy in POLICIES:
        plain = world.models()
        assert without_cost(routed(policy, shared)) == without_cost(routed(policy, plain))
        alone += asked(plain)
    assert asked(inner) == cache.misses["weak"] + cache.misses["strong"] < 0.8 * alone
    assert cache.hits["weak"] + cache.hits["strong"] == alone - asked(inner)
    assert f"strong {cache.hits['strong']} of" in cache.summary()


def test_the_same_policy_again_asks_nobody_and_is_counted_as_the_first_time(tmp_path: Path) -> None:
    with CallCache(tmp_path / "cache.jsonl") as cache:
        first = routed(Threshold(0.5), cached(world.models(), cache))
        spent = cache.spent()
    inner = world.models()
    with CallCache(tmp_path / "cache.jsonl") as cache:
        assert routed(Threshold(0.5), cached(inner, cache)) == first
        assert cache.hit_rate == 1.0
        assert cache.spent() == spent
    assert asked(inner) == 0
    assert inner.scorer is not None
    assert inner.scorer.usage.calls == 0
    everything = sum((usage for role, usage in spent.items() if role != "scorer"), Usage())
    told = sum((s.usage for t in first for step in t.steps for s in (step, *step.discarded)), Usage())
    assert everything == told


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"temperature": 0.8},
        {"max_tokens": 9},
        {"n": 2},
        {"top_p": 0.9},
        {"stop": "solution"},
        {"prefix": (Step("b", "weak"),)},
        {"problem": Problem("p", "How few?", "4")},
        {"prefix": (Step("a", "weak", token_ids=(7,), usage=Usage("scripted")),)},
    ],
)
def test_a_request_that_differs_in_anything_is_asked_for(change: dict[str, object]) -> None:
    inner = ScriptedBackend(lambda *_: "some text", "scripted")
    backend = Stored(inner)
    request = Request(P, (Step("a", "weak"),))
    other = dataclasses.replace(request, **change)
    backend.continue_solutions([request, other, request])
    assert inner.requests == [request, other]
    assert (backend.store.hits["model"], backend.store.misses["model"]) == (1, 2)
    same_text = dataclasses.replace(request, prefix=(Step("a", "strong", usage=Usage("other")),))
    assert backend.continue_solutions([same_text])[0].text == "some text"
    assert len(inner.requests) == 2


def test_another_model_or_adapter_or_prompt_has_its_own_continuations() -> None:
    cache, request = CallCache(), Request(P)
    for name, prompt in (("a", "x"), ("a+adapter", "x"), ("a", "y"), ("a", "x")):
        inner = ScriptedBackend(lambda *_, text=f"by {name} under {prompt}": text, name)
        inner.prompt_hash = prompt
        made = Stored(inner, cache).continue_solutions([request])
        assert made[0].text == f"by {name} under {prompt}"
    assert len(cache) == 3
    assert (cache.hits["model"], cache.misses["model"]) == (1, 3)


def test_what_failed_is_asked_for_again_and_what_it_cost_is_counted() -> None:
    lines = iter([Line("", "error", "busy"), Line("a step")])
    backend = Stored(ScriptedBackend(lambda *_: next(lines)), role="weak")
    request = Request(P)
    assert backend.continue_solutions([request])[0].error == "busy"
    assert [backend.continue_solutions([request])[0].text for _ in range(2)] == ["a step"] * 2
    assert backend.store.spent("p")["weak"].calls == 2


class _Telling:
    """Tells log-probabilities of as many tokens as it is asked for."""

    name, parameters = "telling", None

    def __init__(self) -> None:
        self.asked: list[int] = []

    def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked += [request.top_logprobs for request in requests]
        return [
            Completion(i, 0, "x", "step", top_logprobs=(tuple(-float(j) for j in range(r.top_logprobs)),))
            for i, r in enumerate(requests)
        ]


def test_more_log_probabilities_answer_a_request_for_fewer_but_not_the_other_way_round() -> None:
    inner = _Telling()
    backend = Stored(inner)  # type: ignore[arg-type]
    requests = {n: Request(P, top_logprobs=n) for n in (0, 1, 3)}
    three, one = (backend.continue_solutions([requests[n]])[0] for n in (3, 1))
    assert inner.asked == [3]
    assert (one.top_logprobs, three.top_logprobs) == (((0.0,),), ((0.0, -1.0, -2.0),))
    assert backend.continue_solutions([requests[0]])[0].top_logprobs is None
    assert inner.asked == [3]
    other = Stored(inner)  # type: ignore[arg-type]
    other.continue_solutions([requests[1]])
    other.continue_solutions([requests[3]])
    assert inner.asked == [3, 1, 3]


def test_a_backend_that_leaves_requests_unanswered_is_refused() -> None:
    class Silent(ScriptedBackend):
        def continue_solutions(self, requests: Sequence[Request]) -> list[Completion]:
            return super().continue_solutions(requests)[:-1]

    with pytest.raises(BackendError, match="it must answer each"):
        Stored(Silent(lambda *_: "x")).continue_solutions([Request(P), Request(P, seed=1)])


VICTIM = """
import sys
from pathlib import Path
from tests.models.test_cached import cached, routed
from tests.routing import world
from stepwise.models.store import CallCache
from stepwise.routing import Random

cache = CallCache(Path(sys.argv[1]))
models = cached(world.models(), cache)
continue_solutions = models.weak.model.continue_solutions

def told(requests):
    made = continue_solutions(requests)
    print(len(cache), flush=True)
    return made

models.weak.model.continue_solutions = told
while True:
    routed(Random(0.5), models, 150)
    print("done", flush=True)
"""


def test_after_kill_9_everything_that_was_answered_is_there_and_the_traces_come_out_the_same(tmp_path: Path) -> None:
    path = tmp_path / "cache.jsonl"
    with subprocess.Popen([sys.executable, "-c", VICTIM, path], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        kept = 0
        while kept < 100:
            kept = int(victim.stdout.readline())
        os.kill(victim.pid, signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
    with path.open("ab") as file:
        file.write(b'{"key": "torn by a crash of the mach')
    inner = world.models()
    with CallCache(path) as cache:
        assert len(cache) >= kept
        before = len(cache)
        resumed = routed(Random(0.5), cached(inner, cache), 150)
        assert asked(inner) == cache.misses["weak"] + cache.misses["strong"] == len(cache) - before
        assert cache.hits["weak"] + cache.hits["strong"] == before
    assert without_cost(resumed) == without_cost(routed(Random(0.5), world.models(), 150))


def test_a_cache_that_is_no_cache_or_is_open_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"id": "p", "question": "?"}\n')
    with pytest.raises(DataError, match="line 1"):
        CallCache(tmp_path / "rows.jsonl")
    with CallCache(tmp_path / "cache.jsonl"), pytest.raises(DataError, match="another process"):
        CallCache(tmp_path / "cache.jsonl")
    CallCache(tmp_path / "cache.jsonl").close()


class _Reader(PrefixScorer):
    """Reads a solution in one call, and what it has read before only once."""

    incremental = True

    def __init__(self) -> None:
        super().__init__("reader")
        self.cold: set[tuple[str, ...]] = set()

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        made = []
        for task in tasks:
            texts = (task.question, *task.steps)
            ready = max((i for i in range(len(texts) + 1) if texts[:i] in self.cold or i == 0), default=0)
            self.cold |= {texts[:i] for i in range(len(texts) + 1)}
            usage = Usage(self.name, 1, sum(map(n_tokens, texts)), sum(map(n_tokens, texts[ready:])))
            scores = world.noisy_scores(P, tuple(task.steps))[task.first :]
            made.append(Scored(scores, usage))
        return made

    def reset_cache(self) -> None:
        super().reset_cache()
        self.cold.clear()


def test_scores_are_asked_for_once_and_a_policy_that_comes_second_is_charged_as_if_alone(tmp_path: Path) -> None:
    policies = (Threshold(0.3), Threshold(0.6), Threshold(0.3))

    def arms(scorer: Scorer) -> list[Usage]:
        totals = []
        for policy in policies:
            scorer.reset_cache()  # type: ignore[attr-defined]
            traces = routed(policy, world.models()._replace(scorer=scorer))
            totals.append(sum((trace.scorer_usage for trace in traces), Usage()))
        return totals

    alone, inner, later = arms(_Reader()), _Reader(), _Reader()
    with CallCache(tmp_path / "scores.jsonl") as cache:
        told = arms(StoredScorer(inner, cache))
    assert [usage.evaluated_tokens for usage in told] == [usage.evaluated_tokens for usage in alone]
    assert inner.usage.evaluated_tokens < 0.7 * sum(usage.evaluated_tokens for usage in alone)
    with CallCache(tmp_path / "scores.jsonl") as cache:
        resumed = arms(StoredScorer(later, cache))
        assert cache.hit_rate == 1.0
    assert (resumed, later.usage.calls) == (told, 0)


def test_a_solution_that_cannot_be_scored_is_tried_again() -> None:
    scorer = StoredScorer(_Reader())
    for _ in range(2):
        bad, good = scorer.score_detailed([(P, ["fine", " "]), (P, ["fine"])])
        assert "empty" in bad.error
        assert len(good.scores) == 1
    assert scorer.store.misses["scorer"] == 3
    assert scorer.score(P, ["fine"]) == good.scores


KEYS = [
    "5ba66c7bdf4c6ada06fdeae7c4e5cfce",
    "245e5a780f6e2281a862ba5e61667083",
    "72358f501243651acb07a97418550bae",
    "78e15767f2efe59d80290ad4d243e1d5",
    "024643e5587b349d8103736b4dbcff61",
]


def test_files_of_earlier_versions_are_found_again() -> None:
    """Keys follow from what is asked alone; these were written down before the wrappers had their shape."""
    request = Request(P, (Step("a", "weak"),), seed=5, role="weak", run="r", attempt=2)
    stored = Stored(ScriptedBackend(lambda *_: "x", "scripted"))
    assert [stored._key(request, ids) for ids in ([], [1, 2, 3])] == KEYS[:2]
    assert StoredScorer(ScriptedScorer({}))._keys(P, ["a", "b"]) == KEYS[2:]


def test_equal_requests_in_flight_are_asked_once_and_outlive_whoever_asked_first() -> None:
    class Slow(ScriptedBackend):
        async def generate(self, request: Request) -> Completion:
            await asyncio.sleep(0.02)
            return first_of(self.continue_solutions([request]))

    inner = Slow(lambda *_: "some text")
    stored = Stored(inner)

    async def ask() -> list[str]:
        tasks = [asyncio.ensure_future(stored.generate(Request(P))) for _ in range(4)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        return [result.text for result in results[1:] if isinstance(result, Completion)]

    assert asyncio.run(ask()) == ["some text"] * 3
    assert len(inner.requests) == 1
    assert stored.continue_solutions([Request(P)])[0].text == "some text"
    assert len(inner.requests) == 1
