"""ProcessBench's metric against counts made by hand and by brute force, and the localizers that need no model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.data.localization import (
    LocalizationCounts,
    Outcome,
    _fingerprint,
    above_constant,
    best_threshold,
    blind_f1,
    count,
    first_below,
    mean_f1,
    position_prior,
    random_guess,
    refuse_shared,
)
from stepwise.data.processbench import ProcessBenchRow
from stepwise.errors import DataError
from stepwise.types import Localization, Problem, Step, Trace


def example(
    label: int | None, scores=(0.9, 0.9, 0.9), *, name: str = "p", correct: bool | None = None
) -> ProcessBenchRow:
    problem = Problem(id=name, question=f"Question {name}?")
    steps = tuple(Step(f"Step {i + 1}: {name}", "x", score) for i, score in enumerate(scores))
    return ProcessBenchRow(problem, Trace(problem, steps, "eos"), Localization(label), correct)


def test_the_metric_is_the_harmonic_mean_of_both_classes_in_percent():
    rows = [example(0), example(1), example(2), example(2), example(None), example(None)]
    said = [Outcome(0), Outcome(2), Outcome(2), Outcome(None), Outcome(None), Outcome(1)]
    counts = count(said, rows)
    assert counts == LocalizationCounts(found=2, wrong=4, cleared=1, right=2)
    assert (counts.acc_err, counts.acc_cor, counts.f1) == (50.0, 50.0, pytest.approx(50.0))
    assert LocalizationCounts(3, 4, 1, 4).f1 == pytest.approx(2 * 75 * 25 / 100)


def test_a_right_answer_with_a_wrong_step_is_a_wrong_attempt():
    assert count([Outcome(1)], [example(1, correct=True)]) == LocalizationCounts(1, 1, 0, 0)


def test_a_failure_is_a_miss_in_either_class_even_where_it_would_have_been_right():
    rows = [example(1), example(None)]
    assert count([Outcome(1, "no JSON"), Outcome(None, "no JSON")], rows) == LocalizationCounts(0, 1, 0, 1)


def test_a_class_that_is_missing_leaves_no_f1_and_one_that_is_always_missed_makes_it_zero():
    assert LocalizationCounts(0, 0, 1, 2).f1 is None
    assert LocalizationCounts(0, 0, 1, 2).acc_err is None
    assert LocalizationCounts(0, 3, 0, 2).f1 == 0
    assert mean_f1([LocalizationCounts(1, 2, 1, 2), LocalizationCounts(1, 2, 0, 0)]) is None
    assert mean_f1([]) is None


def test_outcomes_must_be_as_many_as_attempts():
    with pytest.raises(DataError, match="1 outcomes for 2 attempts"):
        count([Outcome(None)], [example(None), example(1)])


def test_the_interval_is_that_of_drawing_rows_again():
    counts = LocalizationCounts(60, 100, 150, 200)
    rng, rows = np.random.default_rng(3), np.repeat([0, 1, 2, 3], [60, 40, 150, 50])
    values = []
    for _ in range(4000):
        hit, missed, kept, lost = np.bincount(rows[rng.integers(0, 300, 300)], minlength=4)
        a, c = hit / (hit + missed), kept / (kept + lost)
        values.append(200 * a * c / (a + c))
    value, low, high = mean_f1([counts])
    assert value == pytest.approx(counts.f1)
    assert [low, high] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.6)
    assert mean_f1([counts]) == mean_f1([counts])
    assert mean_f1([counts], seed=1) != mean_f1([counts])


def test_the_mean_over_subsets_weighs_them_alike_and_is_surer_than_each():
    small, large = LocalizationCounts(6, 10, 8, 10), LocalizationCounts(300, 1000, 700, 1000)
    mean, one = mean_f1([small, large]), mean_f1([small])
    assert mean.value == pytest.approx((small.f1 + large.f1) / 2)
    assert mean.high - mean.low < one.high - one.low


def test_draws_without_one_of_the_classes_do_not_spoil_the_interval():
    value, low, high = mean_f1([LocalizationCounts(1, 1, 1, 1)])
    assert (value, low, high) == (100.0, 100.0, 100.0)


def test_the_position_prior_is_what_the_best_constant_guess_reaches_on_wrong_attempts():
    rows = [example(label) for label in (0, 1, 1, 2, None, None)]
    prior = position_prior(rows)
    assert prior == (25.0, 50.0, 25.0)
    assert count([Outcome(1) for _ in rows], rows).acc_err == max(prior)
    assert position_prior([example(None)]) == ()
    assert blind_f1(()) is None


def test_no_mixture_of_no_error_and_the_best_place_has_a_higher_f1_than_the_blind_one():
    a = 0.3
    mixtures = [200 * q * (1 - q) * a / (q + (1 - q) * a) for q in np.linspace(0.001, 0.999, 999)]
    assert blind_f1((20.0, 30.0)) == pytest.approx(max(mixtures), abs=1e-3)


def test_the_first_step_strictly_under_the_threshold_is_named():
    assert first_below([0.9, 0.4, 0.1], 0.5) == 1
    assert first_below([0.5, 0.4], 0.4) is None


BETWEEN = (0.0, 0.05, 0.2, 0.4, 0.50000005, 0.7, 0.95, 1.0)  # one threshold between any two scores
SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.5000001, 0.9, 1.0]), min_size=1, max_size=4)


@settings(max_examples=60)
@given(st.lists(st.tuples(SCORES, st.integers(-1, 3), st.booleans()), min_size=2, max_size=12))
def test_no_threshold_beats_the_one_that_is_chosen(rows):
    examples = [example(label if 0 <= label < len(scores) else None, scores) for scores, label, _ in rows]
    known = [None if failed else scores for scores, _, failed in rows]
    if len({e.localization.first_error is None for e in examples}) < 2:
        with pytest.raises(DataError, match="both are needed"):
            best_threshold(known, examples)
        return

    def f1(threshold: float) -> float:
        said = [Outcome(None, "failed") if s is None else Outcome(first_below(s, threshold)) for s in known]
        return count(said, examples).f1

    chosen = best_threshold(known, examples)
    assert 0 <= chosen <= 1
    assert f1(chosen) == pytest.approx(max(map(f1, BETWEEN)))


def test_scores_of_another_number_than_steps_are_refused():
    with pytest.raises(DataError, match="problem 'p': 2 scores for 3 steps"):
        best_threshold([[0.1, 0.2], [0.1, 0.2, 0.3]], [example(1), example(None)])


def test_nothing_is_chosen_on_rows_that_it_is_measured_on():
    tuning, test = [example(1, name="a"), example(None, name="b")], [example(None, name="c")]
    refuse_shared(tuning, test, "test")
    twin = tuning[0]._replace(problem=Problem(id="other id", question="Question  a? "))
    assert _fingerprint(twin) == _fingerprint(tuning[0])
    with pytest.raises(DataError, match=r"1 of 2 attempts of test .*'other id'.* are in the tuning split too"):
        refuse_shared(tuning, [*test, twin], "test")


def test_random_guesses_are_seeded_say_no_error_half_of_the_time_and_know_no_favourite_step():
    rows = [example(None, name=str(i)) for i in range(600)]
    said = [random_guess(1)(row).first_error for row in rows]
    assert said == [random_guess(1)(row).first_error for row in reversed(rows)][::-1]
    assert said != [random_guess(2)(row).first_error for row in rows]
    shares = [said.count(place) / 600 for place in (None, 0, 1, 2)]
    assert shares == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.06)


def test_a_localizer_stands_beside_the_best_constant_guess_paired_and_a_failure_is_no_hit():
    rows = [example(label) for label in (0, 1, 1, 2, None)]
    found = above_constant([Outcome(0), Outcome(1), Outcome(1, "unreadable"), Outcome(2), Outcome(0)], rows)
    assert found[:4] == (4, 3, 2, 1)
    assert found.difference.value == 25.0
    assert found.difference.low < 0 < found.difference.high
    assert str(found).startswith("3 of 4 first errors; always saying step 1: 2; difference +25 points")
    assert above_constant([Outcome(None)], [example(None)]).difference is None


def test_a_localizer_that_is_right_forty_times_is_above_a_guess():
    rows = [example(i % 3) for i in range(40)]
    said = [Outcome(i % 3) for i in range(40)]
    assert str(above_constant(said, rows)).endswith(": above a guess")
    assert str(above_constant([Outcome(None)] * 40, rows)).endswith(": below a guess")
