"""A real OpenAI-compatible server and the engine in this process write the same solution."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwise import SolvePrompt, Step, load_backend, split_steps
from stepwise.config import ModelConfig, ScorerConfig
from stepwise.lab import model_path
from stepwise.lab.problems import generate
from stepwise.models.base import Request
from stepwise.models.engine import Engine
from stepwise.models.litellm import LiteLLMBackend
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.scorers import load_scorer
from tests.models.server import llama_server

pytest.importorskip("litellm")
LAB = [example.problem for example in generate("test", 3)]
PREFIX = tuple(Step(text, "strong") for text in split_steps(LAB[0].reference or "")[:1])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_server(model_path("lab-weak"), tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def served(address: str) -> Iterator[LiteLLMBackend]:
    template = model_path("lab-weak", "safetensors") / "chat_template.jinja"
    config = ModelConfig(model="openai/served", api_base=address, chat_template=str(template), sequences=4)
    with LiteLLMBackend(config) as backend:
        yield backend


def test_the_probe_finds_what_this_server_can_do(served: LiteLLMBackend) -> None:
    found = served.findings
    assert found.continuation == "raw"  # it closes an assistant's message and begins another
    assert not found.several  # it takes n and gives one choice
    assert not found.schema  # json_schema is an error 500 there
    assert found.logprobs
    assert served.capabilities.prefill
    assert 3 < served.usage.calls < 20
    assert served.usage.cost is None


def test_a_greedy_solution_is_the_same_as_in_process(served: LiteLLMBackend) -> None:
    requests = [Request(problem, max_tokens=200, temperature=0.0, stop="solution") for problem in LAB]
    requests += [Request(problem, max_tokens=60, temperature=0.0) for problem in LAB]
    requests += [Request(LAB[0], PREFIX, max_tokens=60, temperature=0.0)]
    with LlamaCppBackend(Engine.load(model_path("lab-weak"), flash_attention=False)) as local:
        expected = local.continue_solutions(requests)
    made = served.continue_solutions(requests)
    assert [one.text for one in made] == [one.text for one in expected]
    assert [one.finish for one in made] == [one.finish for one in expected]
    assert [one.usage.prompt_tokens for one in made] == [one.usage.prompt_tokens for one in expected]
    assert {one.finish for one in made} == {"step", "answer"}
    assert [asyncio.run(served.generate(request)).text for request in requests[:2]] == [one.text for one in made[:2]]


def test_samples_of_a_server_that_gives_one_at_a_time_are_all_there_and_differ(served: LiteLLMBackend) -> None:
    made = served.continue_solutions([Request(LAB[0], n=4, max_tokens=60, temperature=1.5, seed=3)])
    assert [one.sample for one in made] == [0, 1, 2, 3]
    assert len({one.text for one in made}) > 1
    again = served.continue_solutions([Request(LAB[0], n=2, max_tokens=60, temperature=1.5, seed=3)])
    assert [one.text for one in again] == [one.text for one in made[:2]]


def test_without_a_template_the_next_step_is_asked_for_in_words(address: str) -> None:
    config = ModelConfig(model="openai/served", api_base=address, sequences=2)
    with LiteLLMBackend(config) as backend:
        assert backend.findings.continuation == "prompt"
        assert not backend.capabilities.prefill
        made = backend.continue_solutions([Request(LAB[0], PREFIX, max_tokens=12, temperature=0.0)])
    assert made[0].error == ""
    assert made[0].text


def test_label_tokens_over_http_are_scored_as_in_process(tmp_path: Path) -> None:
    items = [(problem, split_steps(problem.reference or "")) for problem in LAB]
    expected = load_scorer(ScorerConfig(context=1024, flash_attention=False)).score_batch(items)
    with llama_server(model_path("lab-scorer"), tmp_path / "log") as url:
        # Without the lab's prompt a model of this name is asked by that of foreign models: .05 off.
        scorer = load_scorer(ScorerConfig(model="openai/served", api_base=url, sequences=2), prompt=SolvePrompt())
        found = scorer.score_batch(items)
    assert len({round(score, 2) for row in expected for score in row}) > 1
    for row, right in zip(found, expected, strict=True):
        assert row == pytest.approx(right, abs=0.002)  # other batches round otherwise: .0003 at most in 47 steps


def test_two_endpoints_write_what_one_writes(served: LiteLLMBackend, address: str) -> None:
    places = [{"api_base": address}, {"api_base": "http://127.0.0.1:9/v1"}]  # nobody is at the second
    requests = [Request(problem, max_tokens=60, temperature=0.0) for problem in LAB]
    with (
        pytest.warns(UserWarning, match="taken to be like another"),
        load_backend(
            served.config.model_copy(update={"api_base": None, "endpoints": places}), prompt=served.prompt
        ) as both,
    ):
        made = both.continue_solutions(requests)
    assert [one.text for one in made] == [one.text for one in served.continue_solutions(requests)]
    assert {one.usage.model for one in made} == {served.name}
