"""The belief against sums over all hidden paths, beliefs worked out by hand, and simulation."""

from __future__ import annotations

import itertools
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.errors import DataError
from stepwise.records import from_json, to_json
from stepwise.routing import Threshold, route_all
from stepwise.routing.pomdp import Belief, ObservationLaw, RoutingPomdp, StepFilter
from stepwise.types import Step
from tests.published import TRIM
from tests.routing import world

LOW, HIGH = 0.2, 0.9
LAW = ObservationLaw((0.0, 0.5, 1.0), ((0.1, 0.9), (0.5, 0.5), (0.7, 0.3)))
FILTER = StepFilter(LAW, 0.8, (0.9,))


def random_law(rng: np.random.Generator, bins: int = 3, pair: bool = False) -> ObservationLaw:
    edges = (0.0, *np.sort(rng.uniform(0.05, 0.95, bins - 1)).tolist(), 1.0)
    rows = rng.dirichlet(np.ones(bins**2 if pair else bins), 3).tolist()
    return ObservationLaw(edges, (rows[0], rows[1], rows[2]), pair)


# Beliefs worked out by hand


def test_a_belief_is_prior_times_likelihood_and_the_kept_draft_makes_the_next_prior() -> None:
    # low: (.8 .1, 0 .5, .2 .7) = (.08, 0, .14) / .22; then x = 4/11: high: (.8 4/11 .9, 7/11 .5, .2 4/11 .3)
    first, second = FILTER.beliefs([LOW, HIGH])
    assert first == pytest.approx([0.08 / 0.22, 0, 0.14 / 0.22])
    assert second == pytest.approx(np.array([2.88, 3.5, 0.24]) / 6.62)


def test_a_rewritten_draft_leaves_what_was_right_or_wrong_just_now_to_the_strong_model() -> None:
    # x = .9 (8/22 + 14/22) = .9, then high: (.8 .9 .9, .1 .5, .2 .9 .3)
    second = FILTER.beliefs([LOW, HIGH], [1, 0])[1]
    assert second == pytest.approx(np.array([0.648, 0.05, 0.054]) / 0.752)
    # what the strong model's own step scored is not looked at
    assert FILTER.beliefs([LOW, HIGH], [1, 0], [HIGH, None])[1] == pytest.approx(second)


def test_the_published_belief_is_the_normalised_likelihood_and_allows_an_earlier_error_at_the_first_step() -> None:
    beliefs = StepFilter(LAW, 0.8, (0.9,), "published").beliefs([LOW, None, HIGH], [1, 0, 0])
    assert beliefs == pytest.approx(np.array([[1 / 13, 5 / 13, 7 / 13], [1 / 3] * 3, [9 / 17, 5 / 17, 3 / 17]]))


def test_a_memoryless_belief_has_the_true_prior_of_its_step_and_ignores_earlier_scores() -> None:
    alone = StepFilter(LAW, 0.8, (0.9,), "memoryless")
    third = np.array([0.8 * 0.72 * 0.1, 0.28 * 0.5, 0.2 * 0.72 * 0.7])  # x = .9 after the strong model, then .8 .9
    for scores in ([LOW, LOW, LOW], [HIGH, None, LOW]):
        assert alone.beliefs(scores, [1, 0, 0])[2] == pytest.approx(third / third.sum())
    given_priors = replace(alone, priors=(1.0, 0.5)).beliefs([LOW, LOW, LOW], [1, 0, 0])
    at_half = np.array([0.4 * 0.1, 0.5 * 0.5, 0.1 * 0.7])
    assert given_priors[0] == pytest.approx(alone.beliefs([LOW])[0])
    assert given_priors[1:] == pytest.approx(np.tile(at_half / at_half.sum(), (2, 1)))


# Against sums over hidden paths


def enumerated(f: StepFilter, scores: list[float | None], writers: list[int], own: list[float | None]) -> np.ndarray:
    """The belief at the last draft, by adding up all paths of (state of the draft, state once committed)."""
    total = np.zeros(3)
    for path in itertools.product(itertools.product(range(3), range(3)), repeat=len(scores)):
        chance, spoiled, least = 1.0, False, 1.0
        for t, (draft, after) in enumerate(path):
            chance *= float(draft == 1) if spoiled else (f.p_weak, 0.0, 1 - f.p_weak)[draft]
            if scores[t] is not None:
                chance *= f.law.rows[draft][f.law.column(scores[t], least)]
            if t == len(scores) - 1:
                chance *= after == 0  # the last step is not committed yet: count each draft once
                continue
            if writers[t] == 0:
                chance *= after == draft
                stands = scores[t]
            else:
                q = f.p_strong[writers[t] - 1]
                chance *= float(after == 1) if draft == 1 else (q, 0.0, 1 - q)[after]
                stands = own[t]
            spoiled = after != 0
            least = least if stands is None else min(least, stands)
        total[path[-1][0]] += chance
    return total / total.sum()


@pytest.mark.filterwarnings("ignore:the least earlier score")
@pytest.mark.parametrize("seed", range(12))
def test_beliefs_agree_with_sums_over_all_hidden_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    law = random_law(rng, pair=seed % 3 == 0)
    f = StepFilter(law, rng.uniform(0.5, 1), tuple(rng.uniform(0.6, 1, 2)))
    steps = 4

    def scores() -> list[float | None]:
        return [None if rng.random() < 0.2 else float(rng.random()) for _ in range(steps)]

    drafts, own, writers = scores(), scores(), rng.integers(0, 3, steps).tolist()
    beliefs = f.beliefs(drafts, writers, own)
    assert beliefs.shape == (steps, 3)
    for t in range(1, steps + 1):
        assert beliefs[t - 1] == pytest.approx(enumerated(f, drafts[:t], writers[:t], own[:t]), abs=1e-12)


@given(seed=st.integers(0, 10_000), scores=st.lists(st.none() | st.floats(0, 1), max_size=40), p=st.floats(0, 1))
def test_beliefs_are_probabilities_whatever_the_scores(seed: int, scores: list[float | None], p: float) -> None:
    rng = np.random.default_rng(seed)
    f = StepFilter(random_law(rng), p, (0.9,))
    beliefs = f.beliefs(scores, rng.integers(0, 2, len(scores)).tolist())
    assert beliefs.shape == (len(scores), 3)
    assert (beliefs >= 0).all()
    assert beliefs.sum(1) == pytest.approx(np.ones(len(scores)))
    assert not scores or beliefs[0, 1] == 0, "nothing can be wrong earlier at the first step"


def test_a_memoryless_rule_has_the_priors_that_simulation_finds() -> None:
    def rule(step: int, belief: Belief) -> int:
        return int(belief[2] > 0.25)

    law = random_law(np.random.default_rng(5), bins=4)
    alone = StepFilter(law, 0.8, (0.9,)).with_priors(rule, 6)
    assert (alone.history, alone.priors[0]) == ("memoryless", 1.0)
    rng, n = np.random.default_rng(0), 200_000
    middles = [(low + high) / 2 for low, high in itertools.pairwise(law.edges)]
    right = np.ones(n, dtype=bool)
    for x in alone.priors:
        assert right.mean() == pytest.approx(x, abs=4 * 0.5 / np.sqrt(n))
        state = np.where(right, np.where(rng.random(n) < 0.8, 0, 2), 1)
        seen = (rng.random(n)[:, None] > np.cumsum(law.rows, 1)[state][:, :-1]).sum(1)
        calls = np.array([rule(0, alone.drafted(x, middle)) for middle in middles])[seen] == 1
        right = np.where(calls, (state != 1) & (rng.random(n) < 0.9), state == 0)
    never, always = (FILTER.with_priors(lambda *_, writer=w: writer, 4).priors for w in (0, 1))
    assert never == pytest.approx([0.8**n for n in range(4)])
    assert always == pytest.approx([0.9**n for n in range(4)])


# What is no evidence, and what is refused


def test_a_missing_score_and_an_observation_never_seen_in_fitting_are_no_evidence() -> None:
    never_low = replace(LAW, rows=((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)))
    late = ObservationLaw(LAW.edges, ((0.0, 1.0), (0.5, 0.5), (0.0, 1.0)))  # low only after an earlier error
    for law, score in ((LAW, None), (never_low, LOW), (late, LOW)):
        assert StepFilter(law, 0.8, (0.9,)).beliefs([score])[0] == pytest.approx([0.8, 0, 0.2])
    # Where an earlier error is possible, the same score is proof of one.
    assert StepFilter(late, 0.8).beliefs([HIGH, LOW])[1] == pytest.approx([0, 1, 0])


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_score_that_is_no_probability_is_refused_wherever_it_stands(bad: float) -> None:
    for arguments in (([bad],), ([HIGH, bad],), ([LOW, LOW], [1, 0], [bad, None])):
        for history in ("filter", "memoryless", "published"):
            with pytest.raises(DataError, match=r"score is .*give a probability in \[0, 1\], or None"):
                StepFilter(LAW, 0.8, (0.9,), history).beliefs(*arguments)
    with pytest.raises(DataError, match="score is"):
        replace(LAW, rows=((0.25,) * 4,) * 3, pair=True).column(0.5, bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p_weak": 1.2}, r"p_weak has 1\.2"),
        ({"p_weak": float("nan")}, "p_weak has nan"),
        ({"p_strong": (0.9, -0.1)}, r"p_strong has -0\.1"),
        ({"history": "none"}, r"history is 'none'"),
        ({"priors": (0.9,)}, "priors need"),
        ({"history": "memoryless", "priors": (1.0, 2.0)}, r"priors has 2\.0"),
    ],
)
def test_a_filter_that_is_none_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(FILTER, **changes)


def test_sequences_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DataError, match="2 scores, 1 writers and 2 own_scores"):
        FILTER.beliefs([LOW, HIGH], [0])
    with pytest.raises(DataError, match="writer is 2, but p_strong has 1 entries"):
        FILTER.beliefs([LOW, HIGH], [2, 0])


def test_a_filter_on_the_pair_warns_and_a_memoryless_belief_on_it_does_not() -> None:
    pair = replace(LAW, rows=((0.25,) * 4,) * 3, pair=True)
    with pytest.warns(UserWarning, match=r"counts it again.*score_only"):
        StepFilter(pair, 0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StepFilter(pair, 0.8, history="published")
        StepFilter(pair.score_only(), 0.8)


# The law


def test_a_bin_holds_its_lower_edge_and_the_last_one_also_one() -> None:
    law = ObservationLaw((0.0, 0.25, 0.5, 1.0), ((0.2, 0.3, 0.5),) * 3)
    assert [law.column(score) for score in (0.0, 0.2499, 0.25, 0.5, 1.0)] == [0, 0, 1, 2, 2]
    assert law.likelihoods(0.3) == (0.3, 0.3, 0.3)


def test_a_pair_is_the_bin_of_the_least_earlier_score_and_of_the_current_one() -> None:
    rows = ((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1), (0.25,) * 4)
    law = ObservationLaw(LAW.edges, rows, pair=True)
    assert [law.column(score, least) for least in (LOW, HIGH) for score in (LOW, HIGH)] == [0, 1, 2, 3]
    assert law.column(LOW) == 2, "nothing is below 1 at the first step"
    assert law.score_only() == ObservationLaw(LAW.edges, ((0.1 + 0.3, 0.2 + 0.4), (0.4 + 0.2, 0.3 + 0.1), (0.5, 0.5)))
    # the least is of the steps that stand: the strong model's own score, not that of the draft it replaced
    memoryless = StepFilter(law, 0.8, (0.9,), "published")
    least = [memoryless.beliefs([LOW, HIGH], [writer, 0], [own, None])[1, 0] for writer, own in ((0, None), (1, HIGH))]
    assert least == pytest.approx([0.2 / 0.75, 0.4 / 0.75])


def test_laws_and_filters_survive_json() -> None:
    assert from_json(ObservationLaw, to_json(LAW)) == LAW
    made = StepFilter(LAW, 0.8, (0.9, 0.95))
    assert from_json(StepFilter, to_json(made)) == made
    assert len({made, from_json(StepFilter, to_json(made))}) == 1
    assert ObservationLaw([0, 0.5, 1], [[0.1, 0.9], [0.5, 0.5], [0.7, 0.3]]) == LAW  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": (0.0, 1.0)}, "rows have 2 entries for 1 observations"),
        ({"edges": (0.0, 0.5, 0.5, 1.0)}, r"edges are .*grow from 0\.0 to 1\.0"),
        ({"edges": (0.1, 0.5, 1.0)}, "edges are"),
        ({"edges": (0.0, float("nan"), 1.0)}, "edges are"),
        ({"edges": ()}, "edges are"),
        ({"pair": True}, "rows have 2 entries for 4 observations"),
        ({"rows": ((0.5, 0.5), (0.5, 0.5))}, r"lengths \[2, 2\]"),
        ({"rows": ((0.5, 0.5), (0.5, 0.5), (0.5, 0.4))}, r"rows\[2\] has 0\.4"),
        ({"rows": ((0.5, 0.5), (1.5, -0.5), (0.5, 0.5))}, r"rows\[1\] has -0\.5"),
        ({"rows": ((float("nan"), 0.5), (0.5, 0.5), (0.5, 0.5))}, r"rows\[0\] has nan"),
        ({"rows": ((), (), ())}, r"lengths \[0, 0, 0\]"),
    ],
)
def test_a_law_that_is_none_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(LAW, **changes)


def test_parameters_in_another_layout_are_refused() -> None:
    with pytest.raises(DataError, match="no 'observation'"):
        ObservationLaw.from_dict({"defaults": {}})
    table = {"pairs": [[0.75, 0.25], [0.25, 0.25], [0.25, 0.75], [0.75, 0.75]], "prob": [[0.25] * 4] * 3}
    with pytest.raises(DataError, match="not a square grid"):
        ObservationLaw.from_dict({"observation": {"x": table}})


def test_the_published_law_is_the_models_table_and_gives_the_known_prior() -> None:
    parameters = json.loads(TRIM.read_text())
    for observation in ("pair", "score"):
        model = RoutingPomdp.from_dict(parameters, observation=observation)
        law = ObservationLaw.from_dict(parameters, observation)
        assert np.asarray(law.rows) == pytest.approx(np.asarray(model.observation), abs=1e-15)
    with pytest.warns(UserWarning, match="counts it again"):
        f = StepFilter(ObservationLaw.from_dict(parameters), model.p_weak, model.p_strong)
    assert f.beliefs([None])[0] == pytest.approx([0.866, 0, 0.134])
    table, pairs = (parameters["observation"]["math-train-0.05"][key] for key in ("prob", "pairs"))
    column = pairs.index([0.375, 0.625])
    assert f.law.likelihoods(0.61, 0.39) == tuple(row[column] for row in table)


# Traces


def test_at_an_escalated_step_the_replaced_draft_was_seen() -> None:
    kept, replaced = Step("a", "weak", HIGH), Step("b", "weak", LOW)
    strong, draft = Step("c", "strong", HIGH, discarded=(Step("x", "weak", HIGH), replaced)), Step("d", "weak", HIGH)
    expected = FILTER.beliefs([HIGH, LOW, HIGH], [0, 1, 0])
    assert FILTER.belief((kept, strong), draft) == pytest.approx(expected[2])
    assert FILTER.belief((kept,), replaced) == pytest.approx(expected[1])
    handed_over = Step("e", "strong")  # written without a draft
    assert FILTER.belief((handed_over,), None) == pytest.approx(FILTER.beliefs([None, None], [1, 0])[1])


def test_an_empty_draft_counts_as_the_lowest_score() -> None:
    assert FILTER.belief((), Step(" ", "weak")) == pytest.approx(FILTER.beliefs([0.0])[0])
    strong = Step("c", "strong", discarded=(Step("", "weak"),))
    assert FILTER.belief((strong,), None) == pytest.approx(FILTER.beliefs([0.0, None], [1, 0])[1])


def test_traces_of_the_router_hold_all_that_the_filter_needs() -> None:
    law = random_law(np.random.default_rng(1), bins=5)
    f = StepFilter(law, 2 / 3, (0.99,))
    traces = route_all(world.problems(12), world.models(), Threshold(0.4))
    assert {step.author for trace in traces for step in trace.steps} == {"weak", "strong"}
    for trace in traces:
        drafts = [step.discarded[-1] if step.discarded else step for step in trace.steps]
        writers = [int(step.author == "strong") for step in trace.steps]
        beliefs = f.beliefs([d.score for d in drafts], writers, [step.score for step in trace.steps])
        for t, draft in enumerate(drafts):
            assert f.belief(trace.steps[:t], draft) == pytest.approx(beliefs[t])
