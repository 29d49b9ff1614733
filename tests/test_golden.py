"""What the lab's models, the solver, the fit and the credit schemes gave before the library was rebuilt, they give now.

tests/golden/lab.json.gz was recorded by tools/golden.py. Texts, authors, decisions, finish, tokens and calls are held
exactly, floats within 1e-5. A trace that differs must part from the recorded one by rounding at one draw, or, under the
cap that binds, by the order in which problems met the cap.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from stepwise import lab
from stepwise.errors import DataError
from tools.goldens import agreement, collected, parts, read, traces

FILE = Path(__file__).parent / "golden" / "lab.json.gz"
POLICIES = list(traces.policies())


def shipped() -> bool:
    try:
        return all(lab.model_path(name).exists() for name in (*lab.MODELS, "lab-critic"))
    except DataError:
        return False


with_models = pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")


@lru_cache
def recorded() -> dict[str, Any]:
    return read(FILE)


def rows(policy: str, problems: int) -> list[dict[str, Any]]:
    """The recorded traces of the first problems."""
    return [row for row in recorded()["traces"] if row["policy"] == policy][:problems]


def check_traces(policy: str, problems: int) -> None:
    old, new = rows(policy, problems), traces.record(problems, only=[policy])
    verdicts = agreement.compare_traces(old, new)[policy]
    print(policy, verdicts, *verdicts.lines, sep="\n")
    assert not verdicts.failed, "\n".join(verdicts.lines)
    if policy == traces.CAPPED:
        assert max(agreement.spent(new)) <= traces.BINDING
        assert min(agreement.spent(new)) > 0


def check_values(part: str, new: Any) -> None:
    verdicts = agreement.Verdicts()
    agreement.compare_values(recorded()[part], new, verdicts, part)
    assert not verdicts.failed, "\n".join(verdicts.lines)


@with_models
@pytest.mark.parametrize("policy", POLICIES)
def test_traces_of_a_dozen_problems_are_what_they_were(policy: str) -> None:
    check_traces(policy, traces.GROUP)


@with_models
@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_traces_of_sixty_problems_are_what_they_were(policy: str) -> None:
    check_traces(policy, traces.PROBLEMS)


@with_models
def test_every_row_of_a_collection_is_what_it_was() -> None:
    verdicts = collected.compare_collections(recorded()["collection"], parts.collection())
    assert not verdicts.failed, "\n".join(verdicts.lines)


def test_the_bounds_of_the_routing_pomdp_are_what_they_were() -> None:
    check_values("pomdp", parts.pomdp())


def test_the_fit_of_the_routing_model_is_what_it_was() -> None:
    check_values("fit", parts.fit())


def test_every_credit_scheme_gives_what_it_gave() -> None:
    given = parts.credit()
    assert given.keys() == recorded()["credit"].keys()
    check_values(
        "credit", {name: {**value, "hash": recorded()["credit"][name]["hash"]} for name, value in given.items()}
    )


# What the comparison itself does.


def changed(policy: str, number: int, **changes: Any) -> agreement.Verdicts:
    """The verdict on one recorded trace of which the first step is changed."""
    old = rows(policy, traces.PROBLEMS)[number]
    new = copy.deepcopy(old)
    new["steps"][0].update(changes)
    return agreement.compare_traces([old], [new])[policy]


def test_a_score_that_moves_by_more_than_rounding_is_a_difference() -> None:
    score = rows("threshold", 1)[0]["steps"][0]["score"]
    assert changed("threshold", 0, score=score).counts == {"equal to the bit": 1}
    assert changed("threshold", 0, score=score - 5e-6).counts == {"exact, floats within 1e-05": 1}
    assert changed("threshold", 0, score=score - 5e-5).failed


@with_models
def test_another_token_is_a_difference_unless_the_draw_lies_between_the_two() -> None:
    ids = rows("threshold", 1)[0]["steps"][0]["ids"]
    verdicts = changed("threshold", 0, text="Another text.", ids=[ids[0] + 1, *ids[1:]])
    assert verdicts.failed
    assert "the draw lies" in verdicts.lines[0]


def test_another_writer_is_a_difference_unless_the_score_lies_at_the_threshold() -> None:
    old = copy.deepcopy(rows("threshold", 1)[0])
    draft = copy.deepcopy(old["steps"][0])
    strong = {**draft, "text": "Another text.", "author": "strong", "score": None, "discarded": [draft]}
    for shown, failed in (("0.500400", False), ("0.504000", True)):
        old["steps"][0]["decision"] = f"keep: score {shown} >= 0.500000"
        new = {**old, "steps": [{**strong, "decision": "escalate: score 0.499900 < 0.500000"}, *old["steps"][1:]]}
        assert agreement.compare_traces([old], [new])["threshold"].failed is failed


def test_a_trace_that_is_missing_is_a_difference() -> None:
    assert agreement.compare_traces(rows("look", 2), rows("look", 1))["look"].failed
