"""What credit schemes ask for: by scorer, critic, truth, fresh continuations and an oracle, with what it costs."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stepwise.config import Config
from stepwise.credit import load_credit
from stepwise.errors import BackendError, ConfigError, DataError
from stepwise.grading import Verdict
from stepwise.models.base import Completion, Generator, Request, first_of
from stepwise.models.scorers import BatchScorer, Scored
from stepwise.steps import split_steps
from stepwise.training.labels import Labeller
from stepwise.training.lora import load_trainee
from stepwise.training.policy import RolloutRow, forward
from stepwise.training.rollouts import RlRollout, token_spans
from stepwise.training.sampler import Sampler
from stepwise.types import Problem, Usage
from tests.tiny_models import tiny_model

pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

PROBLEMS = {"p": Problem("p", "2 + 2?", "4", "Two and two are \\boxed{4}."), "q": Problem("q", "1 + 1?", "2")}
RIGHT, WRONG = "two\n\nand two\n\n\\boxed{4}.", "two\n\nBAD\n\n\\boxed{5}."


def rollout(text: str, reward: float | None, number: int = 0, problem: str = "p") -> RlRollout:
    """One token for each byte."""
    ids, spans = tuple(text.encode()), token_spans([bytes([byte]) for byte in text.encode()])
    verdict = {1.0: Verdict.CORRECT, 0.0: Verdict.WRONG, None: None}[reward]
    return RlRollout(
        f"{problem}/s1/r{number}", 1, problem, PROBLEMS[problem].question, number, text, tuple(split_steps(text)),
        spans, ids, (-0.5,) * len(ids), "answer", verdict, reward,
    )  # fmt: skip


GROUP = [rollout(RIGHT, 1.0), rollout(WRONG, 0.0, 1), rollout("?", None, 2), rollout("\n", 0.0, 3)]


class Engine:
    """Continues to the right answer from any prefix that is not spoilt."""

    parameters = 10

    def __init__(self) -> None:
        self.jobs: list[Any] = []

    def detokenize(self, ids: Any) -> bytes:
        return bytes(ids)

    def generate(self, request: Request) -> list[Completion]:
        self.jobs.append(request)
        text = "\\boxed{5}" if b"BAD" in bytes(request.token_ids) else "\\boxed{4}"
        usages = [Usage("policy", 1, 9, 3 * (not i), 2) for i in range(request.n)]
        return [Completion(0, i, text, "answer", (1, 2), usage=usage) for i, usage in enumerate(usages)]


class Policy(Generator):
    """A model on `engine`."""

    name, parameters = "policy", 10

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def generate(self, request: Request) -> Completion:
        return first_of(self.engine.generate(request))


def labeller(scheme: str, engine: Any = None, trainee: Any = None, weak: Any = None, **more: Any) -> Labeller:
    cfg = Config()
    given = {name: more.pop(name) for name in ("scorer", "critic", "locate", "teacher") if name in more}
    rl = cfg.rl.model_copy(update={"credit": cfg.rl.credit.model_copy(update={"scheme": scheme, **more})})
    models = cfg.models.model_copy(update={"weak": weak or cfg.models.weak})
    cfg = cfg.model_copy(update={"rl": rl, "models": models})
    backend: Any = Policy(engine or Engine())
    prompts = {name: tuple(problem.question.encode()) for name, problem in PROBLEMS.items()}
    return Labeller(cfg, PROBLEMS, prompts, Sampler(cfg, backend), trainee, **given)


class Scorer(BatchScorer):
    parameters = 100

    def __init__(self) -> None:
        super().__init__("scorer")
        self.asked: list[Any] = []

    def score_detailed(self, items: Any) -> list[Scored]:
        self.asked += items
        cost = Usage("scorer", 1, 9, 7)
        return [Scored([0.1 if "BAD" in step else 0.9 for step in steps], cost) for _, steps in items]


def test_outcome_asks_nobody_and_costs_nothing() -> None:
    known, usage, size = labeller("outcome").label(GROUP)
    assert [what.first_error for what in known] == [None] * 4
    assert (usage.generated_tokens, usage.evaluated_tokens, size) == (0, 0, 0)


def test_the_scorer_finds_first_errors_of_wrong_rollouts_alone() -> None:
    scorer = Scorer()
    known, usage, size = labeller("first_error", scorer=scorer).label(GROUP)
    assert [what.first_error for what in known] == [None, 1, None, 0]  # the last has no step at all
    assert [steps for _, steps in scorer.asked] == [GROUP[1].steps]
    assert known[1].scores == (0.9, 0.1, 0.9)
    assert (usage.evaluated_tokens, size) == (7, 100)
    found, *_ = labeller("first_error", scorer=scorer, threshold=0.05).label(GROUP)
    assert found[1].first_error is None


def test_scores_are_asked_for_every_rollout_with_a_reward_and_a_failure_stays_with_its_own() -> None:
    class Failing(Scorer):
        def score_detailed(self, items: Any) -> list[Scored]:
            rows = super().score_detailed(items)
            return [row if i else Scored([], Usage(), "too long") for i, row in enumerate(rows)]

    known, *_ = labeller("pure_min", scorer=Failing()).label(GROUP)
    assert known[0].failed == "too long"
    assert known[1].scores == (0.9, 0.1, 0.9)
    assert (known[2].scores, known[3].scores) == (None, (0.0,))
    with pytest.raises(BackendError, match="failed for 1 of 1 rollouts, first: too long"):
        labeller("pure_min", scorer=Failing()).label(GROUP[:1])


def test_a_function_tells_the_truth_within_the_steps_there_are() -> None:
    run = labeller("vppo", locate=lambda problem, steps: steps.index("BAD"), first_error="given")
    assert [what.first_error for what in run.label(GROUP)[0]] == [None, 1, None, 0]
    beyond = labeller("vppo", locate=lambda problem, steps: 3, first_error="given")
    with pytest.raises(DataError, match=r"step 3 of rollout 'p/s1/r1', which has 3"):
        beyond.label(GROUP)


class Critic:
    """As an ErrorLocalizer is called; it says what it is told to, in turn."""

    def __init__(self, *said: Any) -> None:
        self.said, self.asked = list(said), []  # type: ignore[var-annotated]
        self.scorer = SimpleNamespace(name="critic", parameters=None, incremental=False, engines=())

    def predictors(self) -> list[Any]:
        return []

    def __call__(self, problem: Problem, steps: list[str]) -> Any:
        import dspy

        self.asked.append((problem.reference, steps))
        said = self.said.pop(0)
        failure = said if isinstance(said, str) else None
        verdicts = [] if failure else said
        first = next((i for i, right in enumerate(verdicts) if not right), None)
        return dspy.Prediction(
            first_error=first, critical_error=None, verdicts=verdicts, localization=None, failure=failure,
            usage=Usage("critic", 1, 20, 20, 5), warnings=[],
        )  # fmt: skip


def test_the_critic_finds_first_errors_shown_the_reference() -> None:
    critic = Critic([True, False])
    run = labeller("first_error", critic=critic, first_error="critic")
    run.critic_size = 1000
    known, usage, size = run.label(GROUP)
    assert [what.first_error for what in known] == [None, 1, None, 0]
    assert critic.asked == [(PROBLEMS["p"].reference, ["two", "BAD", "\\boxed{5}."])]
    assert (usage.generated_tokens, usage.evaluated_tokens, size) == (5, 20, 1000)
    failed, _, size = labeller("first_error", critic=Critic("no reply"), first_error="critic").label(GROUP)
    assert failed[1].failed == "no reply"
    assert size is None  # of unknown size


def test_critiques_vote_and_those_that_failed_are_left_out() -> None:
    said = ([True, True, True], "no", [True, False, False], [True, True, False], "no", "no")
    rows = [GROUP[0], GROUP[1], GROUP[3], rollout(WRONG, 0.0, 4)]
    known, usage, _ = labeller("capo", critic=Critic(*said), critiques=2).label(rows)
    assert [what.critiques for what in known] == [((),), ((1, 2), (2,)), ((0,),), None]
    assert known[3].failed == "no"
    assert usage.generated_tokens == 6 * 5


def test_values_are_the_success_of_fresh_continuations_from_every_boundary() -> None:
    engine = Engine()
    known, usage, size = labeller("vineppo", engine=engine, continuations=3).label(GROUP)
    assert known[0].values == (1.0, 1.0, 1.0, 1.0)
    assert known[1].values == (1.0, 1.0, 0.0, 0.0)
    assert known[2].values is None
    assert known[3].values == (1.0, 0.0)  # from the prompt, and the outcome
    prefixes = [bytes(job.token_ids) for job in engine.jobs]
    assert sorted(prefixes) == sorted(set(prefixes))  # what rollouts have in common is continued once
    assert prefixes == [b"2 + 2?" + rest for rest in (b"", b"two\n\n", b"two\n\nand two\n\n", b"two\n\nBAD\n\n")]
    assert len({job.seed for job in engine.jobs}) == 4
    assert {job.max_tokens for job in engine.jobs} == {1024, 1024 - 5, 1024 - 14, 1024 - 10}
    assert (usage.generated_tokens, usage.evaluated_tokens) == (4 * 3 * 2, 4 * 3)
    assert size == 10


def test_a_boundary_that_could_not_be_continued_has_the_value_before_it() -> None:
    class Broken(Engine):
        def generate(self, request: Request) -> list[Completion]:
            made = super().generate(request)
            return [Completion(0, m.sample, "", "error") if b"and" in bytes(request.token_ids) else m for m in made]

    known, *_ = labeller("vineppo", engine=Broken()).label([GROUP[0]])
    assert known[0].values == (1.0, 1.0, 1.0, 1.0)


def test_evidence_compares_the_policy_with_itself_shown_the_reference(tmp_path: Path) -> None:
    import torch

    base = tiny_model(tmp_path / "base")
    changed = {"model": "llamacpp/none.gguf", "train_from": str(base), "context": 150}
    run = labeller("oppo", weak=Config().models.weak.model_copy(update=changed))
    run.trainee = load_trainee(run.cfg)
    rows = [GROUP[0], GROUP[2], rollout("x" * 140, 0.0, 5, "q")]
    own, _ = forward(run.trainee, [RolloutRow(run.prompts[row.problem], row.token_ids) for row in rows], run.cfg)
    known, usage, _ = run.label(rows, own)
    told = run.oracle_prompt(PROBLEMS["p"])
    text = run.trainee.tokenizer.decode(told)
    assert "2 + 2?\n\nReference solution:\nTwo and two are" in text
    ids = torch.tensor([[*told, *rows[0].token_ids]])
    with torch.no_grad():
        found = run.trainee.model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
    expected = found.numpy()[len(told) - 1 :] - own[0]
    np.testing.assert_allclose(known[0].evidence, expected, atol=1e-4)
    assert known[1].evidence is None
    assert "longer than the context of 150" in known[2].failed
    assert "The answer is 2." in run.trainee.tokenizer.decode(run.oracle_prompt(PROBLEMS["q"]))
    assert usage.evaluated_tokens == ids.shape[1]
    with pytest.raises(DataError, match="no log-probabilities"):
        run.label(rows)


def test_judges_are_loaded_where_the_scheme_asks_them_and_none_is_given() -> None:
    def asked(scheme: str, first_error: str = "scorer") -> str:
        given: dict[str, Any] = {"locate": len} if first_error == "given" else {}
        cfg = Config.load(None, [f"rl.credit.scheme={scheme}", f"rl.credit.first_error={first_error}"])
        return Labeller.judge_asked(cfg, load_credit(cfg.rl.credit).needs, **given)

    who = [("outcome", ""), ("pure_min", "scorer"), ("capo", "critic"), ("vineppo", ""), ("oppo", "")]
    assert [asked(scheme) for scheme, _ in who] == [name for _, name in who]
    assert [asked("vppo", by) for by in ("scorer", "critic", "given")] == ["scorer", "critic", "locate"]
    assert labeller("outcome").scorer is None
    mine = Scorer()
    assert labeller("pure_min", scorer=mine).scorer is mine
    with closing(labeller("shuffled")) as own:
        assert own.scorer.name.startswith("lab-scorer")
        own.reset_cache()
    warm = labeller("capo")
    assert warm.critic.setting("temperature") == 0.7
    assert (warm.critic_size or 0) > 10**6
    assert labeller("vppo", first_error="critic").critic.setting("temperature") is None
    with pytest.raises(ConfigError, match=r"critic is given, but .* asks scorer"):
        labeller("vppo", critic=object())
