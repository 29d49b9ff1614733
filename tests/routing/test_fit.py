"""The routing model fitted to traces: known truth is found, what cannot be told is refused, bad input is named."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from evals.simulated_traces import simulate
from stepwise.errors import ConfigError, DataError
from stepwise.routing.names import ModelNames
from stepwise.routing.pomdp import RoutingPomdp
from stepwise.routing.pomdp.em import Parameters, _ordered, expect, learn, pad, smoothed, tempered
from stepwise.routing.pomdp.estimate import _hazard_of, estimate
from stepwise.routing.pomdp.filter import ObservationLaw, StepFilter
from stepwise.routing.pomdp.fit import RouterFit, _check_enough, fit_router
from stepwise.routing.pomdp.fit_check import calibration, held_out, log_likelihood
from stepwise.routing.pomdp.fit_data import FitStep, FitTrace, _trace_of, lag_correlation, unlabelled

EDGES = tuple(i / 5 for i in range(6))
LAW = ObservationLaw(EDGES, ((0.02, 0.05, 0.13, 0.3, 0.5), (0.5, 0.25, 0.15, 0.07, 0.03), (0.3, 0.3, 0.2, 0.12, 0.08)))
HAZARD = (0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
TRUTH = {"p_weak": 0.87, "p_strong": 0.95, "hazard": HAZARD, "law": LAW}
NAMES = {"weak": "w", "strong": "s", "scorer": "r"}


def drawn(n: int, **settings: object) -> list[FitTrace]:
    return simulate(n, **{**TRUTH, "escalate": 0.15, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted() -> RouterFit:
    return fit_router(drawn(900), **NAMES, bins=6, samples=60)


def test_what_traces_were_drawn_from_lies_in_the_intervals(fitted: RouterFit) -> None:
    for name, truth in (("p_weak", 0.87), ("p_strong", 0.95), ("tokens_per_step", 60.0)):
        interval = fitted.card.intervals[name]
        assert interval.low <= truth <= interval.high, name
        assert interval.high - interval.low < 0.05
    model = fitted.pomdp()
    expected = sum(math.prod(1 - h for h in HAZARD[: k + 1]) for k in range(len(HAZARD)))
    assert fitted.card.intervals["steps"].value == pytest.approx(expected, abs=0.25)
    known = np.asarray(estimate(drawn(3000, seed=9), edges=fitted.law.edges).law.rows)
    assert np.abs(np.asarray(fitted.law.rows) - known).sum(axis=1).max() < 0.25
    truth = RoutingPomdp(0.87, (0.95,), HAZARD, LAW.rows)
    assert model.solve(0.25).root_value[0] == pytest.approx(truth.solve(0.25).root_value[0], abs=2.5)


def test_held_out_beliefs_beat_those_without_scores_and_are_calibrated(fitted: RouterFit) -> None:
    held = fitted.card.held_out
    assert held is not None
    assert held.log_likelihood > held.without_scores + 0.2
    assert held.auroc > 0.75
    assert sum(b.n for b in held.calibration) == held.steps == sum(fitted.card.drafts)
    inside = [b.share.low - 0.01 <= b.predicted <= b.share.high + 0.01 for b in held.calibration]
    assert sum(inside) >= len(inside) - 2


def test_a_fit_is_saved_and_loaded_and_refuses_other_models(fitted: RouterFit, tmp_path) -> None:
    fitted.save(tmp_path / "fit.json")
    assert RouterFit.load(tmp_path / "fit.json") == fitted
    assert str(fitted).startswith("fitted to 900 traces of ")
    assert f"a draft is right with {fitted.p_weak:.3g} (" in str(fitted)
    row = json.loads((tmp_path / "fit.json").read_text())
    row["card"]["difficulty"] = {"classes": [[0.6, 0.7], [0.4, 1.0]], "gain": [0.3, 0.2, 0.4]}  # as before 0.1.0
    (tmp_path / "old.json").write_text(json.dumps(row))
    assert RouterFit.load(tmp_path / "old.json") == fitted
    fitted.card.models.check(ModelNames(**NAMES))
    with pytest.raises(ConfigError, match=r"is for the strong model 's', the router has 'other'; make it again"):
        fitted.card.models.check(ModelNames(**{**NAMES, "strong": "other"}))
    with pytest.raises(DataError, match="no such file; make one with"):
        RouterFit.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text((tmp_path / "fit.json").read_text().replace('"p_weak": 0.8', '"p_weak": 1.8'))
    with pytest.raises(DataError, match=r"holds no fit .*p_weak has 1\.8"):
        RouterFit.load(tmp_path / "broken.json")


def test_the_e_step_agrees_with_a_sum_over_all_hidden_states() -> None:
    rows = np.asarray(LAW.rows)
    steps = (
        FitStep(score=0.9),
        FitStep(score=0.3, replaced=True),  # a draft thrown away for a strong step
        FitStep(drafted=False, replaced=True),
        FitStep(score=0.1),
    )
    p, q, recovery = 0.8, 0.9, 0.25
    for solved in (True, False, None):
        total, weak_right, error_here = 0.0, 0.0, np.zeros(5)
        for draft in itertools.product((True, False), repeat=4):
            for strong in itertools.product((True, False), repeat=4):
                clean, chance, right, first = True, 1.0, 0, 4
                for t, step in enumerate(steps):
                    if step.drafted:
                        bin_ = min(int(step.score * 5), 4)
                        if clean:
                            chance *= (p * rows[0, bin_]) if draft[t] else ((1 - p) * rows[2, bin_])
                            right += draft[t]
                        else:
                            chance *= rows[1, bin_] * 0.5  # a draft after an error has no truth: both are the same
                    else:
                        chance *= 0.5
                    if step.replaced:
                        chance *= (q if strong[t] else 1 - q) if clean else 0.5
                    else:
                        chance *= 0.5
                    stands = strong[t] if step.replaced else draft[t]
                    if clean and not stands:
                        clean, first = False, t
                if solved is not None:
                    chance *= (1.0 if clean else recovery) if solved else (0.0 if clean else 1 - recovery)
                total += chance
                weak_right += chance * right
                error_here[first] += chance
        trace = FitTrace("p", steps, solved=solved, labelled=False)
        counts, value, found = expect(pad([trace], EDGES[1:-1]), Parameters(p, q, rows), recovery)
        assert value == pytest.approx(math.log(total), abs=1e-9)
        assert counts.weak_right == pytest.approx(weak_right / total, abs=1e-9)
        assert found[0] == pytest.approx(error_here / total, abs=1e-9)


def test_labelled_counts_are_counts_and_an_escalated_draft_counts_as_a_draft() -> None:
    mended = FitStep(score=0.1, draft_right=False, replaced=True, strong_right=True)
    trace = FitTrace("p", (FitStep(score=0.9, draft_right=True), mended, FitStep(score=0.2, draft_right=False)))
    after = FitTrace("q", (FitStep(score=0.3, draft_right=False), FitStep(score=0.9)))
    found = estimate([trace, after], edges=EDGES, tokens_per_step=1.0)
    assert trace.states == (0, 2, 2)
    assert after.states == (2, 1)
    assert found.counts[:4] == (1.0, 3.0, 1.0, 0.0)
    assert found.counts.rows.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [1, 2, 0, 0, 0]]


def test_without_labels_all_is_found_where_scores_are_independent_and_refused_where_they_are_not() -> None:
    independent = [unlabelled(t) for t in drawn(1500, seed=1)]
    with pytest.raises(DataError, match=r"how many wrong traces end right all the same.*give recovery"):
        fit_router(independent, **NAMES, labels="none", samples=5)
    found = fit_router(independent, **NAMES, labels="none", samples=5, recovery=0.0)
    assert found.p_weak == pytest.approx(0.87, abs=0.02)
    assert found.p_strong[0] == pytest.approx(0.95, abs=0.03)
    assert found.card.held_out is None
    assert found.card.drafts == (0, 0, 0)
    correlated = [unlabelled(t) for t in drawn(1500, seed=1, correlation=0.6)]
    with pytest.raises(DataError, match=r"correlate \(0\.\d\d, above 0\.1\).*label traces with a wrong step: 0 of 50"):
        fit_router(correlated, **NAMES, labels="none", samples=5, recovery=0.0)


def test_em_without_labels_goes_astray_on_correlated_scores_and_fifty_labels_mend_it() -> None:
    labelled = drawn(1500, seed=2, correlation=0.6)
    truth = np.asarray(LAW.rows)

    def off(rows: np.ndarray) -> float:
        return float(np.abs(rows[1:] - truth[1:]).sum() / 4)

    everything = learn(pad([unlabelled(t) for t in labelled], EDGES[1:-1]), 5).rows
    wrong = [t for t in labelled if t.first_error is not None][:60]
    mixed = [t if t in wrong else unlabelled(t) for t in labelled]
    mended = estimate(mixed, edges=EDGES).rows
    assert off(estimate(labelled, edges=EDGES).rows) < off(mended) < 0.75 * off(everything)


def test_the_share_that_recovers_is_taken_from_labelled_traces() -> None:
    traces = drawn(1500, seed=4, recovery=0.3)
    labels_left, mixed = 120, list[FitTrace]()
    for trace in traces:
        keep = trace.first_error is not None and labels_left > 0
        labels_left -= keep
        mixed.append(trace if keep else unlabelled(trace))
    assert estimate(mixed, edges=EDGES).p_weak == pytest.approx(0.87, abs=0.025)
    assert estimate(mixed, edges=EDGES, recovery=0.0).p_weak > 0.89


def test_too_little_data_is_refused_with_what_is_missing() -> None:
    with pytest.raises(DataError, match="no traces to fit on"):
        _check_enough([])
    few = [dataclasses.replace(t, problem="p") for t in drawn(60)]
    with pytest.raises(DataError) as refusal:
        fit_router(few, **NAMES)
    message = str(refusal.value)
    assert "drafts wrong just now: " in message
    assert "problems: 1 of 30, 29 missing" in message
    assert "more traces like these" in message
    alone = drawn(700, escalate=0.0)
    with pytest.raises(DataError, match=r"labelled strong steps after right ones \(or give p_strong\): 0 of 30"):
        fit_router(alone, **NAMES)
    _check_enough(alone, p_strong=0.95)


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.5])
def test_a_score_that_is_no_probability_is_an_error(score: float) -> None:
    with pytest.raises(DataError, match=r"step 1: the score is .*must be a number in \[0, 1\]"):
        _trace_of("p", [0.5, score], None)
    with pytest.raises(DataError, match="score is"):
        FitStep(score=score)


def test_a_draft_without_a_score_and_a_chance_outside_its_range_are_errors() -> None:
    traces = drawn(50)
    bare = dataclasses.replace(traces[0], steps=(FitStep(draft_right=True), *traces[0].steps))
    with pytest.raises(DataError, match=r"1 drafts have no score, the first at step 0 of 'simulated/0/0'"):
        fit_router([bare, *traces], **NAMES)
    with pytest.raises(DataError, match=r"p_strong is 1\.2"):
        fit_router(traces, **NAMES, p_strong=1.2)
    with pytest.raises(DataError, match=r"tokens_per_step is -5\.0; give a number above 0"):
        fit_router(traces, **NAMES, tokens_per_step=-5.0)
    with pytest.raises(DataError, match="bins is 1; with fewer than 2"):
        fit_router(traces, **NAMES, bins=1)
    with pytest.raises(DataError, match="it has no label; label every step or none"):
        FitTrace("p", (FitStep(score=0.5), FitStep(score=0.5, draft_right=True)))
    with pytest.raises(DataError, match=r"first_error is 3; it has steps 0\.\.1"):
        _trace_of("p", [0.5, 0.5], 3)


def test_the_hazard_ends_takes_cut_traces_as_longer_and_refuses_traces_that_are_all_cut() -> None:
    whole = [_trace_of(f"p{i}", [0.5] * k, None) for i, k in enumerate([2] * 40 + [4] * 40)]
    hazard = _hazard_of(whole)
    assert len(hazard) == 5
    assert (hazard[0], hazard[-1]) == (0.0, 1.0)
    assert hazard[2] == pytest.approx(0.5, abs=0.02)
    cut = [dataclasses.replace(t, ended=len(t.steps) == 4) for t in whole]
    assert _hazard_of(cut)[2] < 0.02
    with pytest.raises(DataError, match="the hazard does not end"):
        _hazard_of([dataclasses.replace(t, ended=False) for t in whole])
    with pytest.raises(DataError, match=r"must be 1\.0"):
        simulate(1, **{**TRUTH, "hazard": (0.0, 0.5)})


def test_a_score_never_seen_in_fitting_says_nothing_of_the_state() -> None:
    traces = [_trace_of(f"p{i}", [0.9, 0.1], 1) for i in range(40)] + [_trace_of("q", [0.9, 0.1, 0.1], 1)]
    found = estimate(traces, edges=EDGES, tokens_per_step=1.0)
    made = StepFilter(found.law, found.p_weak)
    assert made.beliefs([0.5])[0] == pytest.approx(made.beliefs([None])[0])
    assert made.beliefs([0.1])[0, 2] > 0.9


def test_ordered_laws_have_a_likelihood_ratio_that_never_rises_with_the_score() -> None:
    counts = np.asarray([[5.0, 9, 4, 30, 60], [40, 30, 45, 5, 9], [20, 5, 30, 4, 8]])
    rows = _ordered(smoothed(counts, 5.0), counts)
    assert rows.sum(axis=1) == pytest.approx(np.ones(3))
    assert (np.diff(rows[1:] / rows[0], axis=1) <= 1e-12).all()
    already = np.asarray(LAW.rows)
    assert _ordered(already, counts) == pytest.approx(already)


def test_correlation_within_a_state_is_seen_and_is_none_where_scores_are_drawn_alone() -> None:
    assert lag_correlation(drawn(500, correlation=0.7)) > 0.4
    assert abs(lag_correlation(drawn(500))) < 0.1
    assert lag_correlation(drawn(3)) is None


def test_laws_are_tempered_where_scores_repeat_one_another_and_only_there(fitted: RouterFit) -> None:
    assert fitted.card.power == 1.0
    repeating = drawn(900, correlation=0.6)
    found = fit_router(repeating, **NAMES, bins=6, samples=5)
    assert found.card.power < 1
    bare = held_out(repeating, 6)
    assert found.card.held_out.log_likelihood > bare.log_likelihood + 0.002
    rows = np.asarray(LAW.rows)
    assert tempered(rows, 1.0) == pytest.approx(rows)
    weaker = np.log(tempered(rows, 0.5))
    bins = np.diff(weaker[0] - weaker[2])
    assert bins == pytest.approx(np.diff(np.log(rows[0] / rows[2])) / 2)


def test_the_pair_is_fitted_too_and_helps_a_memoryless_belief_where_scores_are_independent(fitted: RouterFit) -> None:
    assert fitted.pair_law is not None
    assert fitted.pair_law.pair
    made = StepFilter(fitted.pair_law, fitted.p_weak, fitted.p_strong, "memoryless")
    after_low, after_high = made.beliefs([0.1, 0.1])[1], made.beliefs([0.9, 0.1])[1]
    assert after_low[1] > after_high[1]
    assert after_low[2] < after_high[2]
    assert fitted.card.held_out_pair.log_likelihood > fitted.card.held_out.without_scores + 0.2
    assert fitted.card.held_out_pair.log_likelihood < fitted.card.held_out.log_likelihood


def test_calibration_bins_hold_all_predictions_and_likelihood_rewards_the_truth() -> None:
    predicted = np.linspace(0, 1, 101)
    bins = calibration(predicted, predicted > 0.5)
    assert sum(b.n for b in bins) == 101
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)
    assert (bins[0].share.value, bins[-1].share.value) == (0.0, 1.0)
    states = np.asarray([0, 1, 2])
    assert log_likelihood(np.eye(3), states) == 0 > log_likelihood(np.full((3, 3), 1 / 3), states)


def test_a_strong_model_that_was_never_wrong_still_has_an_interval() -> None:
    found = fit_router(drawn(700, p_strong=1.0, escalate=0.1), **NAMES, bins=4, samples=20)
    interval = found.card.intervals["p_strong"]
    assert interval.value == interval.high == 1.0
    assert 0.97 < interval.low < 1.0


def test_bins_hold_about_as_many_drafts_each() -> None:
    traces = [FitTrace("p", (FitStep(score=(i + 0.5) / 1000, draft_right=i % 2 == 0),)) for i in range(1000)]
    found = estimate(traces, bins=5, p_strong=0.9, tokens_per_step=20.0)
    assert found.law.edges == pytest.approx((0, 0.2, 0.4, 0.6, 0.8, 1), abs=0.002)


def test_a_solution_that_ends_at_the_limit_of_steps_ended_by_itself() -> None:
    steps = tuple(FitStep(score=0.9, draft_right=True) for _ in range(3))
    traces = [FitTrace(f"p{i}", steps) for i in range(4)]
    assert _hazard_of(traces, max_steps=3)[-1] == 1.0
    with pytest.raises(DataError, match="within 2 steps"):
        _hazard_of(traces, max_steps=2)
