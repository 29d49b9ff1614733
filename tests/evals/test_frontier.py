"""The frontier's worlds against closed forms, playing problem by problem, the solver, and the library's policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from evals.frontier import BUDGETS, SIGMAS, main, world_of
from evals.frontier_policies import (
    SWEEP,
    Hull,
    filter_tau,
    follow,
    memoryless,
    optimal,
    published,
    solve,
    threshold,
    with_priors,
)
from evals.frontier_reference import REFERENCE, ROUNDING
from evals.frontier_worlds import Kind, World, exact, pooled_pairs, simulate
from stepwise.routing.metrics import OperatingPoint
from stepwise.routing.policy import Escalate, View
from stepwise.routing.pomdp.filter import StepFilter
from stepwise.routing.pomdp.policies import Published
from stepwise.types import Problem, Step, Usage
from tests.published import TRIM
from tests.routing.pomdp_world import SMALL

Call = Callable[[int, float, float, bool], bool]
BINS, PRICE = 4, 0.5


@cache
def world(kind: Kind = "drawn", published_hazard: bool = False) -> World:
    base = replace(SMALL, p_strong=(0.97,))
    law = pooled_pairs(base)
    return World(kind, replace(base, observation=law.rows), law, published_hazard)


def play(here: World, choose: Callable[[], Call], episodes: int, seed: int) -> tuple[OperatingPoint, float]:
    """What a policy earns, one problem and one step at a time, and the standard error of the accuracy.

    `choose()` starts a problem; it gives `call(step, score, least earlier score, last)`, scores being middles of bins.
    """
    rng, p, q = np.random.default_rng(seed), here.model.p_weak, here.model.p_strong[0]
    pairs, scores = np.asarray(here.law.rows), np.asarray(here.law.score_only().rows)
    calls, right = np.zeros(episodes), np.zeros(episodes)
    for i in range(episodes):
        call, wrong, least = choose(), False, BINS - 1
        for n, end in enumerate(here.ends):
            state = 1 if wrong else 0 if rng.random() < p else 2
            if here.kind == "drawn":
                shown, score = divmod(int(rng.choice(BINS * BINS, p=pairs[state])), BINS)
            else:
                shown, score = least, int(rng.choice(BINS, p=scores[state]))
            last = rng.random() < end
            if call(n, (score + 0.5) / BINS, (shown + 0.5) / BINS, last):
                calls[i] += 1
                wrong = state == 1 or rng.random() >= q
                score = int(rng.choice(BINS, p=scores[0 if not wrong else 1 if state == 1 else 2]))
            else:
                wrong = state != 0
            least = min(least, score)
            if last:
                break
        right[i] = not wrong
    return OperatingPoint(calls.mean(), right.mean()), float(right.std() / np.sqrt(episodes))


@pytest.mark.parametrize("kind", ["drawn", "carried"])
@pytest.mark.parametrize("published_hazard", [False, True])
def test_never_and_always_earn_what_the_chances_say(kind: Kind, published_hazard: bool) -> None:
    here = world(kind, published_hazard)
    ends = np.array(here.ends)
    lengths = ends * np.cumprod([1, *(1 - ends[:-1])])
    steps, shape = 1 + np.arange(len(ends)), (len(ends), BINS * BINS)
    never, always = (exact(here, np.full(shape, value)) for value in (False, True))
    assert lengths.sum() == pytest.approx(1)
    assert (never.cost, never.accuracy) == pytest.approx((0, lengths @ 0.85**steps))
    assert (always.cost, always.accuracy) == pytest.approx((lengths @ steps, lengths @ 0.97**steps))


@pytest.mark.parametrize("kind", ["drawn", "carried"])
def test_the_recursion_agrees_with_playing_problem_by_problem(kind: Kind) -> None:
    here = world(kind)
    actions, at_last = (np.random.default_rng(7).random((2, len(here.ends), BINS * BINS)) < 0.4)[:]
    law = here.law

    def call(n: int, score: float, least: float, last: bool) -> bool:
        return bool((at_last if last else actions)[n, law.column(score, least)])

    known = exact(here, actions, at_last)
    played, error = play(here, lambda: call, 6_000, 1)
    assert abs(played.accuracy - known.accuracy) < 3.5 * error
    assert played.cost == pytest.approx(known.cost, abs=0.05)
    assert exact(world("carried"), actions) != exact(world("drawn"), actions)


@pytest.mark.filterwarnings("ignore:the least earlier score")
@pytest.mark.parametrize("kind", ["drawn", "carried"])
@pytest.mark.parametrize("pair", [True, False])
def test_the_filter_for_all_problems_at_once_is_the_librarys_filter(kind: Kind, pair: bool) -> None:
    here = world(kind)
    law = here.law if pair else here.law.score_only()
    belief = StepFilter(law, here.model.p_weak, here.model.p_strong)

    def choose() -> Call:
        x = 1.0

        def call(n: int, score: float, least: float, last: bool) -> bool:
            nonlocal x
            seen = belief.drafted(x, score, least)
            x = belief.committed(seen, int(seen[2] > 0.3))
            return seen[2] > 0.3

        return call

    played, error = play(here, choose, 6_000, 2)
    done = simulate(here, lambda n, b, ending: b[2] > 0.3, 60_000, 3, pair=pair)
    assert abs(played.accuracy - done.point.accuracy) < 3.5 * np.hypot(error, done.error(0))
    assert played.cost == pytest.approx(done.point.cost, abs=0.05)
    assert done.point.cost > 0.1


def test_the_optimal_filter_earns_the_root_value_and_lies_on_the_optimal_frontier() -> None:
    here = world()
    plan, frontier = solve(here, here.model, [PRICE])[PRICE], optimal(here, here.model)
    done = follow(here, plan, 60_000, 4, pair=True)
    fee = PRICE * here.model.tokens_per_step / here.model.reward
    error = done.error(fee)
    assert abs(done.point.accuracy - fee * done.point.cost - plan.root_value[0] / here.model.reward) < 3.5 * error
    assert abs(done.point.accuracy - frontier.at(done.point.cost)[0]) < 3.5 * error
    assert filter_tau(here, 20_000, 5, pair=True).at(0.4)[0] < frontier.at(0.4)[0] + 0.01


def test_priors_of_the_memoryless_rule_are_those_of_the_librarys_filter() -> None:
    here = world(published_hazard=True)
    plan = solve(here, here.model, [PRICE])[PRICE]

    def rule(step: int, belief: tuple[float, float, float]) -> int:
        keep, call = plan.action_values(step, belief, here.model.tokens_per_step)
        return int(call > keep)

    known = StepFilter(here.law, 0.85, (0.97,), "memoryless").with_priors(rule, len(here.ends))
    actions, _, priors = with_priors(here, plan)
    assert priors == pytest.approx(known.priors)
    assert actions.any()
    assert not actions.all()
    assert memoryless(here, {PRICE: plan}).points[0].cost == 0


def test_the_published_rule_without_its_table_is_the_librarys_policy_with_an_open_gate() -> None:
    here = world("carried", published_hazard=True)
    policy = Published(here.model, here.law, PRICE, gate=2.0)
    usage = Usage(generated_tokens=round(here.model.tokens_per_step))
    actions = np.zeros((len(here.ends), BINS * BINS), dtype=bool)
    for n in range(len(here.ends)):
        for column in range(BINS * BINS):
            least, score = ((bin_ + 0.5) / BINS for bin_ in divmod(column, BINS))
            view = View(Problem("p", "q"), (Step("a", "weak", score=least),) * n, Step("b", "weak", score, usage))
            actions[n, column] = isinstance(policy.decide(view), Escalate)  # the least score before step 0 is always 1
    assert actions.any()
    plans = solve(here, here.model, [PRICE])
    assert exact(here, actions) == published(here, plans, None).points[-1]
    assert published(here, plans, 0.0).points == (exact(here, np.zeros_like(actions)),)


@pytest.mark.parametrize("kind", ["drawn", "carried"])
def test_known_rows_that_need_no_simulation_are_reproduced(kind: Kind) -> None:
    here = replace(world_of(TRIM, published_hazard=True), kind=kind)
    plans = solve(here, here.model, SWEEP)
    rows = {
        "threshold": threshold(here),
        "published rule, gate 0.4": published(here, plans, 0.4),
        "memoryless, true prior": memoryless(here, plans),
    }
    if kind == "drawn":
        rows["published rule, gate 0.5"] = published(here, plans, 0.5)
        rows["uniform prior, no gate"] = published(here, plans, None)
        rows["perfect state"] = optimal(here, here.on_state)
    for name, row in rows.items():
        known = REFERENCE[kind][name]
        for calls, accuracy in known.accuracy.items():
            assert row.at(calls)[0] == pytest.approx(accuracy, abs=SIGMAS * known.error + 1.01 * ROUNDING), (
                name,
                calls,
            )


def test_a_hull_is_concave_and_rises_and_is_flat_beyond_its_end() -> None:
    raw = [(0, 0.3), (1, 0.4), (2, 0.8), (2, 0.7), (3, 0.85), (4, 0.8), (2.5, 0.6)]
    hull = Hull.of([OperatingPoint(*pair) for pair in raw])
    assert [(point.cost, point.accuracy) for point in hull.points] == [(0, 0.3), (2, 0.8), (3, 0.85)]
    assert [hull.at(calls)[0] for calls in (0, 1, 2.5, 9)] == pytest.approx([0.3, 0.55, 0.825, 0.85])
    assert hull.at(1)[1] == 0


def test_the_optimal_frontier_of_who_sees_the_state_is_known() -> None:
    here = world()
    ends = np.array(here.ends)
    lengths = ends * np.cumprod([1, *(1 - ends[:-1])])
    steps = 1 + np.arange(len(ends))
    best = lengths @ (0.85 + 0.15 * 0.97) ** steps  # a call at every first error, until one fails
    assert optimal(here, here.on_state).at(9.0)[0] == pytest.approx(best, abs=1e-5)
    points = optimal(here, here.on_state).points
    assert all(a.cost <= b.cost + 1e-9 and a.accuracy <= b.accuracy + 1e-9 for a, b in pairwise(points))


def test_the_stand_ins_pairs_are_laws() -> None:
    law = np.asarray(world_of(None, published_hazard=False).law.rows)
    assert law.shape == (3, 100)
    assert law.sum(1) == pytest.approx(1)
    assert (law >= 0).all()


def test_the_benchmark_runs_without_data_and_its_checks_hold(tmp_path) -> None:
    out = tmp_path / "out"
    assert main(["--episodes", "1000", "--every", "8", "--out", str(out)]) == 0
    result = json.loads((out / "frontier.json").read_text())
    assert result["data"] == "stand-in"
    for here in result["worlds"].values():
        assert here["calls"] == list(BUDGETS)
        assert all(check["held"] for check in here["checks"])
        assert all(len(row) == len(BUDGETS) for row in here["accuracy"].values())
        better, plain = (here["accuracy"][name][2] for name in ("filter on score, optimal", "threshold"))
        assert better > plain
    page = (out / "frontier.html").read_text()
    assert page.count("<svg") >= 4
    assert "filter on pair, tau" in page


@pytest.mark.slow
def test_all_known_figures_are_reproduced_within_their_error(tmp_path) -> None:
    assert main(["--data", str(TRIM), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "frontier.json").read_text())
    checks = [check for here in result["worlds"].values() for check in here["checks"]]
    assert len(checks) > 90
    assert [check["what"] for check in checks if not check["held"]] == []


def test_a_missing_file_is_a_clear_error(tmp_path, capsys) -> None:
    assert main(["--data", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]) == 2
    assert "no such file" in capsys.readouterr().err.replace("\n", " ")
