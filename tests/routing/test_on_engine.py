"""Routing and scoring with random-weight GGUF models on the real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwise.config import ModelConfig, SamplingConfig, ScorerConfig
from stepwise.models import load_backend
from stepwise.models.scorers import LabelTokenScorer, load_scorer
from stepwise.prompt import SolvePrompt
from stepwise.routing import Models, Never, RouteSettings, StepRouter, Threshold, route_all
from stepwise.routing.compare import compare
from stepwise.types import Problem, Step, Usage

pytest.importorskip("llama_cpp")
SAMPLING = SamplingConfig(temperature=0.9, max_step_tokens=24)
BARE = SolvePrompt()  # the random model says more under it
PROBLEMS = [Problem(f"p{i}", f"Mia has {i} apples and buys {3 * i} more. How many apples?", "4") for i in range(50)]


@pytest.fixture(scope="module")
def exact(tiny_gguf_path: Path) -> dict[str, object]:
    """F32 all the way, so that what is in a batch moves no logit by much."""
    return {
        "model": f"llamacpp/{tiny_gguf_path}",
        "context": 1024,
        "sequences": 16,
        "kv_type": "f32",
        "flash_attention": False,
    }


@pytest.fixture
def models(exact: dict[str, object]) -> Iterator[Models]:
    weak, strong = load_backend(ModelConfig(**exact), prompt=BARE), load_backend(ModelConfig(**exact), prompt=BARE)
    scorer = load_scorer(ScorerConfig(**exact), prompt=BARE)
    assert isinstance(scorer, LabelTokenScorer)
    yield Models(weak, strong, scorer)
    for model in (weak, strong, scorer):
        model.close()


def test_a_step_appended_on_the_engine_costs_its_tokens_and_one_marker(exact: dict[str, object]) -> None:
    scorer = load_scorer(ScorerConfig(**exact), prompt=BARE)
    assert isinstance(scorer, LabelTokenScorer)
    first, second = "Mia starts with 3 apples.", "After buying 4, there are 3 + 4 = 7 apples."
    (one,) = scorer.score_detailed([(PROBLEMS[3], [first])])
    (two,) = scorer.score_detailed([(PROBLEMS[3], [first, second])])
    assert one.usage.evaluated_tokens == one.usage.prompt_tokens
    assert two.usage.evaluated_tokens == len(scorer.engine.step_ids(second)) + 1
    assert two.scores[0] == one.scores[0]
    assert scorer.engine.counters.evaluated_tokens == scorer.usage.evaluated_tokens
    scorer.close()


def test_scores_are_those_that_transformers_computes(exact: dict[str, object], tiny_gguf_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny_gguf_path.parent / "qwen3"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    steps = [
        "Mia starts with 3 apples.",
        "After buying 9, there are 3 + 9 = 12 apples.",
        "So the answer is \\boxed{12}.",
    ]
    chat = [{"role": "user", "content": PROBLEMS[3].question}]
    ids = list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))
    marker, good, bad = (tokenizer.convert_tokens_to_ids(t) for t in ("<|score|>", "<|good|>", "<|bad|>"))
    places = []
    for text in steps:
        ids += [*tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"], marker]
        places.append(len(ids) - 1)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, places][:, [good, bad]]
    expected = torch.softmax(logits.double(), dim=-1)[:, 0].tolist()
    scorer = load_scorer(ScorerConfig(**exact), prompt=BARE)
    assert scorer.score(PROBLEMS[3], steps) == pytest.approx(expected, abs=1e-4)
    scorer.close()  # type: ignore[attr-defined]


def test_never_is_the_weak_model_alone_on_the_engine(models: Models) -> None:
    from stepwise.models.base import Request
    from stepwise.seeds import stable_hash

    routed = route_all(PROBLEMS[:3], models, Never(), RouteSettings(SAMPLING, max_steps=4))
    for trace in routed:
        steps: list[Step] = []
        for index in range(len(trace.steps)):
            seed = stable_hash(0, trace.problem.id, index, "weak", 0)
            request = Request(trace.problem, tuple(steps), max_tokens=24, temperature=0.9, seed=seed)
            result = models.weak.continue_solutions([request])[0]
            steps.append(Step(result.text, "weak", usage=result.usage, token_ids=result.token_ids))
        assert [step.text for step in steps] == [step.text for step in trace.steps]


def test_fifty_routed_problems_evaluate_hardly_a_token_twice(models: Models) -> None:
    median = Threshold(0.5)  # random weights score around one half, so about half of the steps are escalated
    traces = route_all(PROBLEMS, models, median, RouteSettings(SAMPLING, max_steps=8))
    authors = [step.author for trace in traces for step in trace.steps]
    assert {"weak", "strong"} <= set(authors)
    for model in models:
        counters = model.engine.counters  # type: ignore[union-attr]
        assert (
            counters.evaluated_tokens <= 1.2 * counters.distinct_tokens
        )  # who arrives later reads the chat's head anew
        assert counters.evaluated_tokens > 0


def test_each_policy_of_a_comparison_begins_with_cold_caches(models: Models) -> None:
    router = StepRouter(*models, Never(), sampling=SAMPLING, max_steps=4)
    first, second = compare(router, [Threshold(0.5), Threshold(0.5)], PROBLEMS[:8], progress=False)
    assert first.cost.parameter_tokens == second.cost.parameter_tokens
    spent = [[view.trace.scorer_usage.evaluated_tokens for view in m.views] for m in (first, second)]
    assert sum(spent[0]) == sum(spent[1]) > 0


def test_the_traces_account_for_every_token_that_the_engines_generated(exact: dict[str, object]) -> None:
    weak, strong = load_backend(ModelConfig(**exact), prompt=BARE), load_backend(ModelConfig(**exact), prompt=BARE)
    scorer = load_scorer(ScorerConfig(**exact), prompt=BARE)
    traces = route_all(PROBLEMS[:8], Models(weak, strong, scorer), Threshold(0.5), RouteSettings(SAMPLING, max_steps=5))
    spent: dict[str, Usage] = {}
    for trace in traces:
        for role, usage in trace.usage.items():
            spent[role] = spent.get(role, Usage()) + usage
    for role, backend in (("weak", weak), ("strong", strong)):
        assert spent[role].generated_tokens == backend.engine.counters.generated_tokens  # type: ignore[attr-defined]
    assert spent["scorer"] == scorer.usage
    for model in (weak, strong, scorer):
        model.close()  # type: ignore[union-attr]


def test_evaluate_with_four_threads_on_one_engine(models: Models) -> None:
    import dspy

    router = StepRouter(*models, Threshold(0.5), sampling=SAMPLING, max_steps=4)
    alone = {t.problem.id: t.text for t in router.solve_all(PROBLEMS[:12], progress=False)}
    devset = [dspy.Example(problem=p).with_inputs("problem") for p in PROBLEMS[:12]]
    seen: dict[str, str] = {}

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        seen[example.problem.id] = prediction.trace.text
        return True

    dspy.Evaluate(devset=devset, metric=metric, num_threads=4, display_progress=False)(router)
    assert set(seen) == set(alone)
    assert sum(seen[key] == alone[key] for key in seen) >= 11  # another batch moves logits by a rounding error
