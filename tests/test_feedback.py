"""The metric made from the true first error: what counts, and what it tells an optimizer."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from stepwise.critics.feedback import first_error_metric, training_examples
from stepwise.data.processbench import ProcessBenchRow
from stepwise.errors import DataError
from stepwise.types import Localization, Problem, Step, Trace

WRONG = 'The first wrong step is 1. It says: "41 - 4 = 39."'
STEPS = ["There are 41.", "41 - 4\n= 39.", "So 39."]


def gold(first: Any, **fields: Any) -> dspy.Example:
    return dspy.Example(first_error=first, **{"steps": STEPS, **fields})


def said(first: Any, failure: str | None = None, **more: Any) -> dspy.Prediction:
    return dspy.Prediction(first_error=first, failure=failure, **more)


def feedback(example: dspy.Example, found: Any, call: Any = None) -> str:
    made = first_error_metric(example, found, [], "verify", [call] if call else None)
    assert made.score == first_error_metric(example, found)
    return str(made.feedback)


@pytest.mark.parametrize(
    ("true", "named", "points", "text"),
    [
        (1, 1, 1.0, f"Right. {WRONG}"),
        (1, 2, 0.0, f"You named step 2. {WRONG} You passed step 1 as right."),
        (1, 0, 0.0, f"You named step 0. {WRONG} The steps before it are right."),
        (1, None, 0.0, f"You found no error, but there is one. {WRONG}"),
        (None, None, 1.0, "Right. No step is wrong."),
        (None, 2, 0.0, 'You named step 2, but no step is wrong. It says: "So 39."'),
    ],
)  # fmt: skip
def test_only_the_exact_step_counts_and_the_feedback_quotes_it(true: Any, named: Any, points: float, text: str) -> None:
    assert first_error_metric(gold(true), said(named)) == points
    assert first_error_metric(gold(true), said(named), []) == points
    assert feedback(gold(true), said(named)) == text


def test_a_failure_counts_nothing_even_where_no_step_is_wrong_and_says_why() -> None:
    for true in (None, 1):
        assert first_error_metric(gold(true), said(None, "the model wrote nothing")) == 0.0
        assert first_error_metric(gold(true), dspy.Prediction()) == 0.0
        assert first_error_metric(gold(true), None) == 0.0
    assert feedback(gold(None), said(None, "the model wrote nothing")) == (
        "There is no result, which counts as wrong (the model wrote nothing). No step is wrong."
    )
    assert "the program raised an error" in feedback(gold(1), None)


def test_repairs_and_contradictions_are_told() -> None:
    told = feedback(gold(0), said(0, repairs=["the field checks is missing"], warnings=["the checks say no error"]))
    assert told.endswith(
        "The first reply could not be read: the field checks is missing. Note: the checks say no error."
    )


def test_of_several_calls_the_feedback_is_on_the_one_that_is_looked_at() -> None:
    vote = (None, {}, dspy.Prediction(first_error=2))
    assert feedback(gold(1), said(1), vote).startswith("You named step 2. The first wrong step is 1.")
    prefix = {"attempt": "[0] There are 41.\n[1] 41 - 4\n    [2] = 39."}
    for right, start in [
        (True, "You were shown steps 0 to 1 and said that all are right, but one is wrong. The first wrong step is 1."),
        (False, "Right. You were shown steps 0 to 1 and said that one is wrong. The first wrong step is 1."),
    ]:
        assert feedback(gold(1), said(0), (None, prefix, dspy.Prediction(right=right))).startswith(start)
    later = feedback(gold(2), said(0), (None, prefix, dspy.Prediction(right=False)))
    assert "said that one is wrong, but they are all right. The first wrong step is 2." in later


def test_without_the_text_of_the_attempt_only_numbers_are_told() -> None:
    bare = dspy.Example(first_error=4)
    assert feedback(bare, said(2)) == "You named step 2. The first wrong step is 4. The steps before it are right."


@pytest.mark.parametrize(("first", "message"), [(-1, "is None where"), (3, "from 0 to 2"), (True, "counts from 0")])
def test_a_gold_that_names_no_step_is_refused(first: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        first_error_metric(gold(first), said(None))
    with pytest.raises(DataError, match="has no first_error"):
        first_error_metric(dspy.Example(steps=STEPS), said(None))


def test_annotated_rows_become_examples_whose_inputs_are_those_of_the_localizer() -> None:
    steps = tuple(Step(text, "weak") for text in STEPS)
    problems = [Problem("p", "How many?", reference=reference) for reference in ("37", None)]
    rows = [ProcessBenchRow(problem, Trace(problem, steps), Localization(1)) for problem in problems]
    known, unknown = training_examples(rows)
    assert known.inputs().toDict() == {"problem": "How many?", "steps": STEPS, "reference": "37"}
    assert unknown.inputs().toDict() == {"problem": "How many?", "steps": STEPS}
    assert known.labels().toDict() == {
        "first_error": 1,
        "attempt": "[0] There are 41.\n[1] 41 - 4\n    = 39.\n[2] So 39.",
    }
