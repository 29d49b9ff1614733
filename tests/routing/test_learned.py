"""Learned policies: without torch, for the pair they were trained for, one for each price."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stepwise.errors import ConfigError
from stepwise.routing import Escalate, HandOver, Keep, Learned, StepRouter, View, policy_from_dict, policy_to_dict
from stepwise.routing.learned import files_of, forward, seen
from stepwise.routing.policy import FOR_GOOD
from stepwise.routing.saved import load_policy
from stepwise.types import Problem, Step, Usage
from tests.routing.lab_world import LabWorld
from tests.routing.learning_world import PAIR, trained

pytest.importorskip("torch", reason='training needs pip install "stepwise[train]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies for two prices and with wider actions."""
    made = tmp_path_factory.mktemp("policies")
    for price in (0.002, 0.02):
        trained(made, price=price, stay=(3,), hand_over=True, draft_share=0.5)
    return made


def view(*scores: float | None, text: str = "a draft") -> View:
    steps = tuple(Step(f"step {i}", "weak", score, Usage(generated_tokens=9 + i)) for i, score in enumerate(scores))
    return View(Problem("p", "How many?"), steps[:-1], Step(text, "weak", scores[-1], steps[-1].usage), "step")


def test_it_decides_for_the_likeliest_action_of_its_network(folder: Path) -> None:
    policy, chosen = Learned(str(folder), 0.002), set()
    assert policy.card.runs == (0, 1, 3, FOR_GOOD)
    actions = [Keep(), Escalate(), Escalate(3), HandOver()]
    for scores in ((0.9,), (0.1,), (0.9, 0.2), (0.3, None, 0.7)):
        known = np.array([np.nan if score is None else score for score in scores])
        logits = forward("agg", policy.weights, known[None], 9.0 + np.arange(len(scores))[None])[0]
        action = policy.decide(view(*scores))
        assert action == actions[int(logits.argmax())]
        assert action.reason.startswith("probability 0.")
        chosen.add(action)


def test_an_empty_draft_counts_as_scored_zero() -> None:
    scores, tokens = seen(view(0.5, None, text=" "))
    assert (scores.tolist(), tokens.tolist()) == ([0.5, 0.0], [9.0, 10.0])
    assert np.isnan(seen(view(0.5, None))[0][1])


def test_it_runs_where_torch_and_safetensors_cannot_be_imported(folder: Path) -> None:
    script = f"""
import sys
for name in ("torch", "safetensors", "gguf", "transformers"):
    sys.modules[name] = None
from stepwise.routing import Learned, View
from stepwise.types import Problem, Step
policy = Learned({str(folder)!r}, 0.02)
print(policy.decide(View(Problem("p", "?"), (), Step("a", "weak", 0.4), "step")).reason)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    ours = Learned(str(folder), 0.02).decide(View(Problem("p", "?"), (), Step("a", "weak", 0.4), "step"))
    assert done.stdout.strip() == ours.reason


def test_at_takes_the_prices_that_were_trained_and_no_other(folder: Path) -> None:
    policy = Learned(str(folder), 0.002)
    assert (policy.prices, policy.point) == ((0.002, 0.02), 0.002)
    assert policy.at(0.02) == Learned(str(folder), 0.02) != policy
    with pytest.raises(ValueError, match=r"routing.price is 0.01; .* has policies for 0.002, 0.02"):
        policy.at(0.01)
    with pytest.raises(ValueError, match=r"price is None"):
        Learned(str(folder))


def test_it_is_a_value_that_survives_a_dictionary_as_json(folder: Path) -> None:
    policy = Learned(str(folder), 0.02)
    again = policy_from_dict(json.loads(json.dumps(policy_to_dict(policy))))
    assert again == policy
    assert hash(again) == hash(policy)
    with pytest.raises(AttributeError):
        policy.price = 0.002  # type: ignore[misc]


def test_for_other_models_it_is_refused_unless_forced(folder: Path) -> None:
    policy = Learned(str(folder), 0.02)
    policy.check_models(weak="lab-weak@11989165", strong="llamacpp/lab-strong", scorer="llamacpp/lab-scorer")
    with pytest.raises(ConfigError, match=r"is for the strong model 'llamacpp/lab-strong', the router has 'other'"):
        policy.check_models(strong="other")
    world = LabWorld(2)
    models = (world.weak, world.strong, world.scorer)
    with pytest.raises(ConfigError, match="the router has 'scripted-weak'"):
        StepRouter(*models, policy).solve_all(world.problems, progress=False)
    forced = StepRouter(*models, Learned(str(folder), 0.02, force=True))
    assert len(forced.solve_all(world.problems, progress=False)) == 2


def test_a_card_is_a_saved_policy(folder: Path) -> None:
    policy, card, _ = load_policy(files_of(folder, 0.02)[1])
    assert policy == Learned(str(folder), 0.02)
    assert card == PAIR


def test_what_is_no_learned_policy_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no learned policy; train it"):
        Learned(str(tmp_path), 0.1)
    weights, card = files_of(tmp_path, 0.1)
    card.write_text("{}")
    with pytest.raises(ConfigError, match=r"learned-0\.1\.json is no card"):
        _ = Learned(str(tmp_path), 0.1).card
    weights.write_bytes(files_of(folder, 0.02)[0].read_bytes()[:-100])
    with pytest.raises(ConfigError, match="holds no weights"):
        _ = Learned(str(tmp_path)).weights
