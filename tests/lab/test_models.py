"""The shipped models are what their cards say, as far as a minute can tell; `evals.lab` measures it properly."""

from __future__ import annotations

import json

import pytest

import stepwise as sw
from evals.lab import right, sample
from stepwise.errors import DataError
from stepwise.lab import ADAPTERS, MODELS, ROUNDS, card, model_path, round_path
from stepwise.lab.problems import generate
from stepwise.routing import Threshold
from stepwise.stats import auroc
from stepwise.steps import split_steps
from stepwise.training.export.tokenizer import check_train_from

llama_cpp = pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def weak():
    with_model = sw.load_backend("llamacpp/lab-weak")
    yield with_model
    with_model.close()


def test_the_models_are_small_and_have_cards_with_measured_figures() -> None:
    assert (
        sum(f.stat().st_size for name in (*MODELS, *ADAPTERS) for f in model_path(name, "safetensors").iterdir()) < 25e6
    )
    for name in MODELS:
        assert card(name)["recipe"]["tokens"] > 1e6
        assert "evals.lab" in card(name)["measured"]["command"]


@pytest.mark.parametrize("number", ROUNDS)
def test_a_round_that_ships_has_a_probe_for_its_adapter_and_says_how_it_was_made(number: int) -> None:
    folder = round_path(number)
    made = json.loads((folder / "card.json").read_text())
    assert "stepwise loop" in made["made by"]["adapter.gguf"]
    assert made["data"]
    assert "seed" in made
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 1e6
    config = sw.Config.lab()
    weak = config.models.weak.model_copy(update={"adapter": str(folder / "adapter.gguf")})
    scorer = sw.load_scorer({"kind": "probe", "model": f"probe/{folder / 'head'}"}, prompt=config.prompt, weak=weak)
    problem = generate("test", 1)[0].problem
    score = scorer.score(problem, sw.split_steps(problem.reference or "")[:1])
    scorer.close()
    assert 0 <= score[0] <= 1


def test_a_round_that_does_not_ship_is_refused() -> None:
    with pytest.raises(DataError, match="the rounds that ship are 1, 2"):
        round_path(7)


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="'lab-huge' is not one of lab-weak, lab-strong, lab-scorer"):
        model_path("lab-huge")


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_to_train_from_have_the_same_tokenizer_as_the_gguf(name: str) -> None:
    pytest.importorskip("gguf")
    check_train_from(model_path(name), model_path(name, "safetensors"))


def test_weak_and_strong_solve_what_they_should(weak) -> None:
    problems = generate("test", 60, start=5000)
    strong = sw.load_backend("llamacpp/lab-strong")
    rates = []
    for backend in (weak, strong):
        solved = sample(backend, problems)
        rates.append(sum(right(p, s[0]) for p, s in zip(problems, solved, strict=True)) / len(problems))
    strong.close()
    assert 0.2 < rates[0] < 0.6
    assert rates[1] > 0.85


def test_the_scorer_tells_a_first_wrong_step_from_a_right_one_and_not_always(weak) -> None:
    problems = generate("test", 60, start=6000)
    attempts = [s[0] for s in sample(weak, problems)]
    scorer = sw.load_scorer("llamacpp/lab-scorer")
    scores = scorer.score_batch([(p.problem, steps) for p, steps in zip(problems, attempts, strict=True)])
    right_scores, wrong_scores = [], []
    for p, steps, values in zip(problems, attempts, scores, strict=True):
        first = p.first_error(steps)
        right_scores += values[:first]
        wrong_scores += values[first : first + 1] if first is not None else []
    assert 0.80 < auroc(right_scores, wrong_scores) < 0.99


def test_a_routed_run_evaluates_hardly_more_than_each_distinct_token_once() -> None:
    with sw.StepRouter("llamacpp/lab-weak", "llamacpp/lab-strong", "llamacpp/lab-scorer", Threshold(0.5)) as router:
        traces = router.solve_all([p.problem for p in generate("test", 25, start=7000)], progress=False)
        counters = [m.engine.counters for m in (router.models.weak, router.models.strong, router.models.scorer)]
    assert any(step.author == "strong" for trace in traces for step in trace.steps)
    for spent in counters:
        assert spent.evaluated_tokens <= 1.05 * spent.distinct_tokens


def test_a_strong_step_put_in_by_the_router_is_in_the_format_of_the_lab(weak) -> None:
    with sw.StepRouter(weak, "llamacpp/lab-strong", "llamacpp/lab-scorer", Threshold(1.0)) as router:
        problem = generate("test", 1, start=8000)[0]
        trace = router(problem=problem.problem).trace
    assert {step.author for step in trace.steps} == {"strong"}
    assert split_steps(trace.text) == [step.text for step in trace.steps]
