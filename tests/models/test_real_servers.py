"""Servers that somebody has started: what the lab's models write and score behind them is what they do on the engine.

    STEPWISE_TEST_WEAK=http://localhost:8000/v1 STEPWISE_TEST_SCORER=http://localhost:8001/v1 \\
        python -m pytest tests/models/test_real_servers.py

`docs/endpoints.md` says how vLLM and llama-server are started; the names behind them are lab-weak and lab-scorer.
Without an address nothing is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from stepwise.config import Config, ModelConfig, ScorerConfig
from stepwise.lab.problems import generate
from stepwise.models import load_backend
from stepwise.models.base import Backend, Request
from stepwise.models.scorers import load_scorer
from stepwise.routing import StepRouter, Threshold
from stepwise.types import Problem, Step

PROBLEMS: list[Problem] = [each.problem for each in generate("test", 6)]
PROMPT = Config.lab().prompt


def address(variable: str) -> str:
    if not (url := os.environ.get(variable)):
        pytest.skip(f"{variable} is not set")
    return url


@pytest.fixture(scope="module")
def here() -> Iterator[Backend]:
    with load_backend("llamacpp/lab-weak", prompt=PROMPT) as backend:
        yield backend


@pytest.fixture(scope="module")
def there() -> Iterator[Backend]:
    url = address("STEPWISE_TEST_WEAK")
    with load_backend(ModelConfig(model="openai/lab-weak", api_base=url, sequences=4), prompt=PROMPT) as backend:
        yield backend


def test_a_server_continues_a_solution_as_the_engine_does_and_tells_how_sure_it_was(
    here: Backend, there: Backend
) -> None:
    prefixes: dict[str, tuple[Step, ...]] = {problem.id: () for problem in PROBLEMS}
    for _ in range(3):
        requests = [Request(problem, prefixes[problem.id], max_tokens=64, temperature=0.0) for problem in PROBLEMS]
        for ours, theirs in zip(*(each.continue_solutions(requests) for each in (here, there)), strict=True):
            assert (theirs.text, theirs.finish, theirs.error) == (ours.text, ours.finish, "")
            assert ours.token_stats is not None
            assert theirs.token_stats is not None
            # The mean differs: llama-server tells no log-probability of the tokens that it stopped at.
            assert theirs.token_stats.least == pytest.approx(ours.token_stats.least, abs=0.05)
            assert theirs.usage.generated_tokens >= len(ours.text.split())
        for request, ours in zip(requests, here.continue_solutions(requests), strict=True):
            prefixes[request.problem.id] += (Step(ours.text, "weak"),)


def test_equal_seeds_draw_equal_texts_and_several_samples_differ(there: Backend) -> None:
    request = Request(PROBLEMS[0], stop="solution", max_tokens=128, temperature=1.0, seed=3, n=4)
    once, again = (there.continue_solutions([request]) for _ in range(2))
    assert [sample.text for sample in once] == [sample.text for sample in again]
    assert len({sample.text for sample in once}) > 1


def test_label_tokens_are_read_as_on_the_engine() -> None:
    config = ScorerConfig(model="openai/lab-scorer", api_base=address("STEPWISE_TEST_SCORER"))
    right, wrong = ["There are 3 + 4 = 7 apples.", "So it is \\boxed{7}."], ["There are 3 + 4 = 8 apples."]
    served, local = load_scorer(config, prompt=PROMPT), load_scorer("llamacpp/lab-scorer", prompt=PROMPT)
    items = [(problem, steps) for problem in PROBLEMS for steps in (right, wrong)]
    for theirs, ours in zip(served.score_detailed(items), local.score_detailed(items), strict=True):
        assert theirs.error == ""
        assert theirs.scores == pytest.approx(ours.scores, abs=0.005)


def test_a_router_with_both_on_servers_takes_the_steps_that_it_takes_here(here: Backend, there: Backend) -> None:
    config = ScorerConfig(model="openai/lab-scorer", api_base=address("STEPWISE_TEST_SCORER"))
    with load_backend("llamacpp/lab-strong", prompt=PROMPT) as strong:
        traces = []
        for weak, scorer in ((here, "llamacpp/lab-scorer"), (there, config)):
            read = load_scorer(scorer, prompt=PROMPT)
            greedy = {"temperature": 0.0}
            router = StepRouter(weak, strong, read, Threshold(0.5), prompt=PROMPT, sampling=greedy, allow_lab=True)
            traces.append(router.solve_all(PROBLEMS))
    equal = [
        [(step.text, step.author) for step in ours.steps] == [(step.text, step.author) for step in theirs.steps]
        for ours, theirs in zip(*traces, strict=True)
    ]
    assert sum(equal) >= len(equal) - 2  # "has" and "owns" are all but equally likely: another build turns one over
