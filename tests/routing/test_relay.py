"""The policy that asks the weak model whether it wants help: decisions, the marker, and what cannot be asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import Config, RoutingConfig
from stepwise.errors import CapabilityError, ConfigError
from stepwise.lab.problems import generate
from stepwise.models import load_backend
from stepwise.models.base import Request
from stepwise.models.engine.marker import CallMarker
from stepwise.routing import (
    Escalate,
    Keep,
    Look,
    Models,
    Relay,
    View,
    load_policy,
    policy_from_config,
    route_all,
    save_policy,
)
from stepwise.routing.dials import check_bounds, dial_of
from stepwise.types import Problem, Step
from tests.fakes import ScriptedBackend

MARKER, CALL = "<|reserved_0|>", 6  # with its id in the lab
PROBLEM = Problem("p", "How many?", "4")


@pytest.fixture(scope="module")
def weak() -> Iterator[Any]:
    pytest.importorskip("llama_cpp")
    with load_backend(Config.lab().models.weak) as made:
        yield made


@pytest.fixture
def problems() -> list[Problem]:
    return [made.problem for made in generate("test", 4)]


@pytest.mark.parametrize(
    ("p", "bias", "action"), [(0.4, 0.0, Keep()), (0.6, 0.0, Escalate()), (0.4, 1.0, Escalate()), (0.6, -1.0, Keep())]
)
def test_the_bias_is_added_to_the_log_odds_of_a_call(p: float, bias: float, action: Any) -> None:
    seen = View(PROBLEM, looked=frozenset({"call"}), call=math.log(p))
    decided = Relay(bias=bias).decide(seen)
    assert type(decided) is type(action)
    assert Relay(bias=bias).decide(View(PROBLEM)) == Look("call", token=MARKER)
    assert isinstance(Relay().decide(dataclasses.replace(seen, call=None)), Keep)
    assert isinstance(Relay(bias=-30.0).decide(dataclasses.replace(seen, call=0.0)), Escalate)  # P rounds to 1


def test_it_is_saved_loaded_named_in_a_configuration_and_dialled(tmp_path: Path) -> None:
    policy = Relay("<|vision_pad|>", bias=-1.5)
    save_policy(tmp_path / "policy.json", policy)
    assert load_policy(tmp_path / "policy.json").policy == policy
    named = RoutingConfig(policy="relay", options={"marker": "<|vision_pad|>", "bias": -1.5})
    assert policy_from_config(named) == policy
    check_bounds(policy, None)
    assert dial_of(policy, None, lambda _: None)(0.5) == policy.at(0.0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="bias"):
        policy_from_config(RoutingConfig(policy="relay", options={"bias": "high"}))


def test_a_draft_is_the_same_with_a_marker_that_is_not_drawn(weak: Any, problems: list[Problem]) -> None:
    plain = weak.continue_solutions([Request(p) for p in problems])
    marked = weak.continue_solutions([Request(p, marker=MARKER) for p in problems])
    for one, other in zip(plain, marked, strict=True):
        assert other.token_ids == one.token_ids
        assert one.call is None
        assert other.call is not None
        assert -40 < other.call < -10  # nobody taught it to ask


def test_the_marker_is_drawn_at_the_first_place_or_nowhere(weak: Any, problems: list[Problem]) -> None:
    (plain,) = weak.continue_solutions([Request(problems[0])])
    often = plain.token_ids[0]
    word = weak.engine.token_bytes(often).decode()  # a token that the model does begin with
    requests = [Request(problems[0], marker=word, may_call=may, n=40) for may in (False, True)]
    banned, asked = (weak.continue_solutions([request]) for request in requests)
    assert all(often not in made.token_ids for made in banned)
    assert all(made.text for made in banned)
    called = [made for made in asked if made.token_ids[0] == often]
    assert len(called) > 0
    assert {(made.token_ids, made.text, made.finish) for made in called} == {((often,), "", "step")}
    assert all(often not in made.token_ids for made in asked if made not in called)
    expected, drawn = math.exp(asked[0].call), len(called) / 40
    (warm,) = weak.continue_solutions([Request(problems[0], marker=word, may_call=True, temperature=1.0, max_tokens=1)])
    assert math.exp(warm.call) == pytest.approx(expected)  # untempered, whatever is drawn
    assert drawn > expected / 2  # .7 sharpens


def test_a_first_token_that_is_not_the_marker_stays() -> None:
    import numpy as np

    logits = np.array([1.0, 2.0, 0.0], np.float32)
    for may_call, drawn, allowed in ((False, 0, {0}), (True, 1, {1}), (False, 1, {0, 2})):
        marker = CallMarker(1, may_call)
        assert not marker.accepts(drawn)
        assert set(np.flatnonzero(np.isfinite(marker.masked(logits)))) == allowed
        assert marker.call == pytest.approx(2 - math.log(math.exp(1) + math.exp(2) + 1), abs=1e-6)
        assert (marker.accepts(0), marker.accepts(1)) == (True, False)


def test_a_text_that_holds_the_marker_is_text(weak: Any, problems: list[Problem]) -> None:
    asked = dataclasses.replace(problems[0], question=f"{problems[0].question} {MARKER} Ask {MARKER}!")
    steps = (Step(f"Ask for help {MARKER}.", "strong"), Step(MARKER, "strong"))
    assert CALL not in weak.prefix_ids(Request(asked, steps))
    (made,) = weak.continue_solutions([Request(asked, steps, marker=MARKER)])
    assert made.call < -5
    strong = ScriptedBackend({asked.id: [f"{MARKER} So {MARKER}.", r"\boxed{4}"]}, "strong")
    (trace,) = route_all([asked], Models(weak, strong), Relay(bias=-5.0))
    assert [step.author for step in trace.steps] == ["weak"] * len(trace.steps)


def test_a_step_that_is_asked_for_saves_the_draft_and_leaves_no_marker(weak: Any, problems: list[Problem]) -> None:
    strong = ScriptedBackend({problems[0].id: [f"s{i}." for i in range(30)]}, "strong")
    (trace,) = route_all(problems[:1], Models(weak, strong), Relay(bias=20.0))
    authors = [step.author for step in trace.steps]
    assert {"weak", "strong"} <= set(authors)
    for step in trace.steps:
        assert MARKER not in step.text
        assert CALL not in step.token_ids
        assert not step.discarded
        (glimpse,) = step.evidence
        assert glimpse.usage.generated_tokens == 1
        assert step.decision.startswith("escalate: P(call)" if step.author == "strong" else "keep: P(call)")
    assert not any(request.marker for batch in strong.batches for request in batch)


def test_a_model_that_cannot_say_is_refused_and_so_is_a_marker_of_several_tokens(weak: Any) -> None:
    api = ScriptedBackend({"p": [r"\boxed{4}"]}, "api")
    with pytest.raises(CapabilityError, match=r"policy 'relay' needs the whole distribution .* 'api' does not tell"):
        route_all([PROBLEM], Models(api, api), Relay())
    with pytest.raises(ConfigError, match=r"no token '<call>', which is split into .*reserved_0"):
        route_all([PROBLEM], Models(weak, api), Relay("<call>"))
