"""The types that travel through the library: construction, equality, JSON Lines, and the few things they compute."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stepwise.errors import DataError
from stepwise.records import from_json, to_json
from stepwise.types import Intervention, Localization, Problem, Step, Trace, Usage, as_problem

PROBLEM = Problem("p1", "What is 2 + 3?", "5", "2 + 3 is five.\n\n\\boxed{5}", "test")
DRAFT = Step("2 + 3 = 6", "weak", 0.1, Usage("tiny", 1, 10, 4, 7, 1, None), (5, 6), (), "score 0.1 < 0.5")
STEP = Step("2 + 3 = 5", "strong", 0.0, Usage("big", 1, 10, 10, 7, 0, 0.0), (1, 2, 3), (DRAFT,), "escalated")
TRACE = Trace(PROBLEM, (STEP, Step("So \\boxed{5}", "weak")), "answer", Usage("prm", 2), "a note")
EVERY_TYPE = [
    PROBLEM,
    Problem("p2", "Q"),
    Usage(),
    Usage("m", 1, 2, 3, 4, 5, 0.25),
    DRAFT,
    STEP,
    TRACE,
    Trace(PROBLEM),
    Localization(None),
    Localization(0, (False, True), "the sum is wrong"),
    Intervention(1, "Instead: ünïcode\n{x} \u2028 \\boxed{1}"),
]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
counts = st.integers(0, 1000)
usages = st.builds(
    Usage, texts, counts, counts, counts, counts, counts, st.none() | st.integers(0, 64).map(lambda n: n / 8)
)
plain_steps = st.builds(
    Step,
    text=texts,
    author=texts,
    score=st.none() | st.floats(0, 1),
    usage=usages,
    token_ids=st.lists(counts, max_size=3).map(tuple),
)
steps = st.builds(
    lambda step, discarded: dataclasses.replace(step, discarded=tuple(discarded)),
    plain_steps,
    st.lists(plain_steps, max_size=2),
)


@pytest.mark.parametrize("value", EVERY_TYPE, ids=lambda value: type(value).__name__)
def test_every_type_survives_a_line_of_json(value):
    line = to_json(value)
    assert "\n" not in line
    assert from_json(type(value), line) == value
    assert from_json(type(value), line.encode()) == value


@pytest.mark.parametrize("value", EVERY_TYPE, ids=lambda value: type(value).__name__)
def test_every_type_is_hashable_and_equal_to_its_copies(value):
    assert copy.deepcopy(value) == value
    assert pickle.loads(pickle.dumps(value)) == value
    assert len({value, copy.deepcopy(value)}) == 1


@pytest.mark.parametrize("value", EVERY_TYPE, ids=lambda value: type(value).__name__)
def test_every_type_is_frozen(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, getattr(value, name))


@given(
    st.builds(
        Trace,
        st.builds(Problem, id=texts, question=texts, answer=st.none() | texts),
        st.lists(steps, max_size=3).map(tuple),
    )
)
def test_any_trace_survives_a_line_of_json(trace):
    assert from_json(Trace, to_json(trace)) == trace


def test_none_and_zero_stay_apart_in_json():
    zero = Step("a", "weak", 0.0, Usage(cost=0.0))
    unknown = Step("a", "weak", None, Usage(cost=None))
    assert zero != unknown
    assert json.loads(to_json(zero))["score"] == 0.0
    assert json.loads(to_json(unknown))["score"] is None
    assert from_json(Step, to_json(unknown)).score is None
    assert from_json(Step, to_json(zero)).usage.cost == 0.0
    assert from_json(Localization, to_json(Localization(0))).first_error == 0
    assert from_json(Localization, to_json(Localization(None))).first_error is None


def test_discarded_drafts_keep_their_own_usage_and_decision():
    back = from_json(Trace, to_json(TRACE))
    assert back.steps[0].discarded == (DRAFT,)
    assert back.steps[0].discarded[0].usage.model == "tiny"
    assert isinstance(back.steps, tuple)
    assert isinstance(back.steps[0].token_ids, tuple)


def test_half_a_character_does_not_keep_a_row_from_being_written():
    line = to_json(Step("broken \ud83d end", "weak"))
    assert from_json(Step, line.encode()).text == "broken ? end"


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Problem(id=60, question="q"), "id"),
        (lambda: Problem(id="a", question="q", gold="5"), "gold"),
        (lambda: Step(text="a", author="weak", score=1.5), "score"),
        (lambda: Step(text="a", author="weak", score=-0.1), "score"),
        (lambda: Step(text="a", author="weak", score=float("nan")), "score"),
        (lambda: Trace(problem=PROBLEM, finish="finished"), "finish"),
        (lambda: Trace(problem="What is 2 + 3?"), "problem"),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_field(build, named):
    with pytest.raises(DataError, match=named) as caught:
        build()
    assert "http" not in str(caught.value)


def test_a_wrong_value_in_json_is_refused_with_the_name_of_its_field():
    with pytest.raises(ValidationError, match="calls"):
        from_json(Usage, '{"calls": "many"}')


def test_lists_are_taken_as_tuples():
    trace = Trace(PROBLEM, [Step("a", "weak", token_ids=[1, 2])])
    assert trace == Trace(PROBLEM, (Step("a", "weak", token_ids=(1, 2)),))
    assert hash(trace)


def test_the_text_of_a_trace_joins_its_steps_and_its_answer_is_the_last_box():
    assert TRACE.text == "2 + 3 = 5\n\nSo \\boxed{5}"
    assert TRACE.answer == "5"
    assert Trace(PROBLEM).text == ""
    assert Trace(PROBLEM).answer is None
    assert TRACE.prefix(1).answer is None


def test_a_prefix_is_an_open_trace_of_the_first_steps():
    assert TRACE.prefix(1) == Trace(PROBLEM, (STEP,), "", Usage("prm", 2), "")
    assert TRACE.prefix(0).steps == ()
    assert TRACE.prefix(2).steps == TRACE.steps
    assert TRACE.prefix(2).finish == ""


@pytest.mark.parametrize("n", [-1, 3])
def test_a_prefix_beyond_the_trace_is_an_error_that_says_so(n):
    with pytest.raises(IndexError, match=rf"prefix\({n}\): the trace has 2 steps"):
        TRACE.prefix(n)


@pytest.mark.parametrize("location", [0, 1, 2])
def test_an_intervention_replaces_its_step_and_all_that_follow(location):
    result = Intervention(location, "new").apply(TRACE)
    assert [step.text for step in result.steps] == [step.text for step in TRACE.steps[:location]] + ["new"]
    assert result.steps[-1].author == "intervention"
    assert result.finish == ""
    assert len(TRACE.steps) == 2


@pytest.mark.parametrize("location", [-1, 3])
def test_an_intervention_beyond_the_trace_is_an_error_that_says_so(location):
    with pytest.raises(IndexError, match=f"Intervention.location is {location}, but the trace has 2 steps"):
        Intervention(location, "new").apply(TRACE)


def test_usages_add_up_field_by_field():
    total = Usage("m", 1, 10, 5, 3, 1, 0.5) + Usage("m", 2, 20, 6, 4, 0, 0.25)
    assert total == Usage("m", 3, 30, 11, 7, 1, 0.75)


def test_usages_of_different_models_have_no_model():
    assert (Usage("a", 1) + Usage("b", 1)).model == ""


def test_an_unknown_cost_makes_the_sum_unknown():
    assert (Usage("m", 1, cost=0.5) + Usage("m", 1)).cost is None
    assert (Usage("m", 1, cost=0.0) + Usage("m", 1, cost=0.0)).cost == 0.0


def test_the_empty_usage_changes_nothing():
    usage = Usage("m", 1, 2, 3, 4, 5, 0.5)
    assert usage + Usage() == usage == Usage() + usage
    assert sum([usage, usage], Usage()).calls == 2


@given(usages, usages, usages)
def test_the_order_in_which_usages_are_added_does_not_matter(a, b, c):
    assert a + b == b + a
    one, other = (a + b) + c, a + (b + c)
    assert dataclasses.replace(one, cost=None) == dataclasses.replace(other, cost=None)
    assert one.cost == other.cost


def test_a_string_becomes_a_problem_whose_id_depends_on_the_question_alone():
    assert as_problem(PROBLEM) is PROBLEM
    assert as_problem("Why?") == as_problem("Why?")
    assert as_problem("Why?").id != as_problem("Why not?").id
    assert as_problem("Why?").question == "Why?"


@pytest.mark.parametrize(
    "exchanged",
    [
        ("1+1?", "2"),
        ("2^10", "1024"),
        ("2/3 - 1/4", "5/12"),
        ("What is the capital?", "Paris"),
        ("\\frac{1}{2}", "0.5"),
    ],
)
def test_a_question_in_the_place_of_the_id_is_refused(exchanged: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"takes the first for the id .* Problem\(id=\.\.\., question"):
        Problem(*exchanged)
    assert Problem(id=exchanged[0], question=exchanged[1]).id == exchanged[0]  # by name it is meant


def test_a_text_in_the_place_of_the_author_is_refused() -> None:
    with pytest.raises(DataError, match=r"give them by name: Step\(text=\.\.\., author='weak'\)"):
        Step("weak", "2 + 2 = 4.")
    assert Step(text="weak", author="John Doe").author == "John Doe"
