"""DSPy's Evaluate and its optimizers on the localizer: scripted models whose best prompt is known, and is found."""

from __future__ import annotations

import time
from typing import Any

import dspy
import pytest

from stepwise import ErrorLocalizer
from stepwise.critics.feedback import first_error_metric
from tests.critics.critic import UNREADABLE, proposed
from tests.critics.programs import Repair
from tests.critics.sums import SECRET, answer, first_wrong, follower, imitator, proposer, sums, teacher
from tests.scripted_lm import Messages, ScriptedLM

TRAIN = sums([0, 1, 2, 3, None, 0, 2, 1])
TEST = sums([1, 0, None, 2, 3, 2, 0, None], seed=50)  # says a model step 0 of all of them, it has 25 %


def score(program: Any, **settings: Any) -> float:
    evaluate = dspy.Evaluate(devset=TEST, metric=first_error_metric, num_threads=4, display_progress=False, **settings)
    return float(evaluate(program).score)


def test_evaluate_in_threads_is_deterministic_and_keeps_failures_beside_their_inputs() -> None:
    def script(messages: Messages) -> str:
        time.sleep(0.001 * (len(str(messages)) % 7))
        return UNREADABLE if first_wrong(messages[1]["content"]) == 2 else answer(messages, True)

    evaluate = dspy.Evaluate(
        devset=[*TEST, dspy.Example(problem="?", steps=[], first_error=0).with_inputs("problem", "steps")],
        metric=first_error_metric, num_threads=4, display_progress=False, max_errors=5,
    )  # fmt: skip
    runs = [evaluate(ErrorLocalizer(ScriptedLM(script), "vote", samples=2)) for _ in range(3)]
    assert [run.score for run in runs] == [round(100 * 6 / 9, 2)] * 3
    for run in runs:
        assert [example for example, *_ in run.results] == evaluate.devset
        rows = run.results[:-1]
        assert [points for *_, points in rows] == [float(example.first_error != 2) for example, *_ in rows]
        for example, found, _ in rows:
            assert (found.failure is not None) == (example.first_error == 2)
            assert found.usage.calls == (4 if example.first_error == 2 else 2)
        assert run.results[-1][2] == 0.0  # an attempt without steps raises: that row has no prediction, and no points


@pytest.mark.parametrize("method", ["one_pass", "vote", "bisect"])
def test_bootstrap_few_shot_finds_the_demonstrations_that_a_model_needs(method: Any) -> None:
    lm = imitator()
    student = ErrorLocalizer(lm, method, samples=3)
    assert score(student) == 25
    optimizer = dspy.BootstrapFewShot(metric=first_error_metric, max_bootstrapped_demos=2, max_labeled_demos=0)
    compiled = optimizer.compile(student, trainset=TRAIN)
    assert score(compiled) == 100
    assert [predictor.lm for predictor in compiled.predictors()] == [lm]
    assert len(compiled.predictors()[0].demos) == 2
    assert student.predictors()[0].demos == []


def test_labelled_examples_show_the_attempt_and_its_first_error() -> None:
    compiled = dspy.LabeledFewShot(k=2).compile(ErrorLocalizer(lm := imitator()), trainset=TRAIN[1:3], sample=False)
    assert score(compiled) == 100
    shown = lm.calls[-1][1:-1]
    assert [message["content"] for message in shown if message["role"] == "assistant"] == [
        "#first_error: 2",
        "#first_error: 3",
    ]
    assert all(step in shown[0]["content"] for step in TRAIN[1].steps)


def test_a_teacher_on_another_model_teaches_and_the_student_keeps_its_own() -> None:
    student = ErrorLocalizer(imitator())
    optimizer = dspy.BootstrapFewShot(metric=first_error_metric, max_bootstrapped_demos=1, max_labeled_demos=0)
    compiled = optimizer.compile(student, teacher=ErrorLocalizer(teacher()), trainset=TRAIN[1:])
    assert compiled.verify.lm is student.verify.lm
    assert compiled.verify.demos[0].first_error == 2  # as in the prompt, which counts from 1
    assert score(compiled) == 100


@pytest.mark.parametrize("method", ["one_pass", "vote"])
def test_mipro_finds_the_instruction_that_a_model_needs(method: Any) -> None:
    pytest.importorskip("optuna", reason="MIPROv2 needs optuna")
    lm, writer = follower(), proposer(["Think.", f"Check. {SECRET}", "Be quick."])
    student = ErrorLocalizer(lm, method, samples=2)
    optimizer = dspy.MIPROv2(
        metric=first_error_metric, prompt_model=writer, task_model=lm, auto=None, num_candidates=3, num_threads=1,
        max_bootstrapped_demos=0, max_labeled_demos=0,
    )  # fmt: skip
    compiled = optimizer.compile(student, trainset=TRAIN[:4], valset=TRAIN[4:], num_trials=5, minibatch=False)
    assert (score(student), score(compiled)) == (25, 100)
    assert compiled.verify.signature.instructions == f"Check. {SECRET}"
    assert writer.calls


@pytest.mark.parametrize("method", ["one_pass", "vote", "bisect"])
def test_gepa_learns_from_the_true_first_error_what_a_model_needs_to_be_told(method: Any) -> None:
    lm = follower()
    told = "said that one is wrong, but they are all right" if method == "bisect" else "You named step 1. The first"
    writer = proposer(["Think.", f"Check. {SECRET}"], wanted=told)
    optimizer = dspy.GEPA(metric=first_error_metric, reflection_lm=writer, max_metric_calls=60, num_threads=1)
    student = ErrorLocalizer(lm, method, samples=2)
    compiled = optimizer.compile(student, trainset=TRAIN, valset=TRAIN[:4])
    assert (score(student), score(compiled)) == (25, 100)
    assert compiled.predictors()[0].signature.instructions == f"Check. {SECRET}"


def test_gepa_hears_of_replies_that_could_not_be_read() -> None:
    def script(messages: Messages) -> str:
        return answer(messages, True) if SECRET in messages[0]["content"] else UNREADABLE

    writer = proposer([SECRET], wanted="There is no result, which counts as wrong (asked twice, the model wrote")
    optimizer = dspy.GEPA(metric=first_error_metric, reflection_lm=writer, max_metric_calls=40, num_threads=1)
    student = ErrorLocalizer(ScriptedLM(script))
    compiled = optimizer.compile(student, trainset=TRAIN, valset=TRAIN[:4])
    assert (score(student), score(compiled)) == (0, 100)


def test_a_program_with_two_models_keeps_both_through_an_optimizer() -> None:
    critic, author = imitator(), ScriptedLM(lambda _: proposed(0, "Again."), "author")
    optimizer = dspy.BootstrapFewShot(metric=first_error_metric, max_bootstrapped_demos=2, max_labeled_demos=0)
    compiled = optimizer.compile(Repair(critic, author), trainset=TRAIN)
    assert (compiled.find.verify.lm, compiled.propose.propose.lm) == (critic, author)
    assert [len(predictor.demos) for predictor in compiled.predictors()] == [2, 2]
    assert score(compiled) == 100
