"""The critic that asks no model: the reference's numbers locate the error, its next step is the proposal."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwise import ErrorLocalizer, InterventionProposer
from stepwise.config import Config
from stepwise.critics.reference import next_step
from stepwise.interventions.collection import collect, funnel, read_stage
from stepwise.interventions.settings import CollectSettings, Writers
from stepwise.types import Intervention, Problem
from tests.fakes import ScriptedBackend
from tests.interventions import world

QUESTION = "Ann sold 48 clips, and Beth half as many. How many did the two sell?"
GSM8K = "Beth sold 48/2 = <<48/2=24>>24 clips.\nTogether they sold 48+24 = <<48+24=72>>72 clips.\n#### 72"
PROBLEM = Problem("p", QUESTION, "72", GSM8K)
BY_REFERENCE = Config.load(None, ["critic.method=reference"])


@pytest.mark.parametrize(
    ("steps", "first"),
    [
        (["Half of 48 is 24.", "48 + 24 = 62.", "So 62."], 1),
        (["Half of 48 is 96.", "48 + 24 = 72."], 0),
        (["Step 7: half of 48 is 24.", "So 72."], None),
    ],
)
def test_the_first_number_that_is_not_in_the_reference_locates_the_error(steps: list[str], first: int | None) -> None:
    found = ErrorLocalizer.from_config(BY_REFERENCE)(problem=PROBLEM, steps=steps)
    assert (found.first_error, found.failure, found.usage.calls) == (first, None, 0)
    assert found.verdicts == [True] * (len(steps) if first is None else first) + [False] * (first is not None)


def test_the_next_step_of_the_reference_stands_in_for_the_proposal_and_never_its_last() -> None:
    proposer = InterventionProposer.from_config(BY_REFERENCE)
    made = proposer(problem=PROBLEM, steps=["Half of 48 is 96.", "So 144."], first_error=0)
    assert (made.intervention, made.failure) == (Intervention(0, "Beth sold 48/2 = 24 clips."), None)
    late = proposer(problem=PROBLEM, steps=["Half of 48 is 24.", "48 + 24 = 62."], first_error=1)
    assert late.intervention is None
    assert "its last one, which states the answer" in late.failure
    assert next_step("One step of 5.", "?", []) is None


def test_without_a_reference_it_says_that_one_is_needed() -> None:
    for module, more in ((ErrorLocalizer(method="reference"), {}),
                         (InterventionProposer(source="reference"), {"first_error": 0})):  # fmt: skip
        failure = module(problem=QUESTION, steps=["Half of 48 is 96."], **more).failure
        assert failure.startswith("the problem has no reference solution")


def test_a_collection_by_references_asks_no_critic_and_calls_its_rows_distillation(tmp_path: Path) -> None:
    problems = []
    for problem in world.problems(4):
        total, *rest = map(int, problem.question[4:-1].split(", "))
        steps = []
        for number in rest:
            steps.append(f"{total} + {number} = {total + number}.")
            total += number
        problems.append(Problem(problem.id, problem.question, problem.answer, "\n\n".join([*steps, f"So {total}."])))
    settings = CollectSettings(rollouts=3, guided=8, max_tokens=100, accept="success", fresh=2)
    weak = ScriptedBackend(world.written, "weak")
    nowhere = Config.load(None, ["critic.method=reference", "models.critic.model=llamacpp/not/there.gguf"])
    path = collect(problems, nowhere, tmp_path, settings=settings, writers=Writers(nowhere, weak=weak))
    assert {row.made.model for row in read_stage(path.parent, "located")} == {"reference"}
    examples = read_stage(path.parent, "examples")
    assert examples
    assert {(row.origin, row.models["critic"]) for row in examples} == {("distillation", "reference")}
    references = {problem.question: problem.reference or "" for problem in problems}
    assert all(row.intervention in references[row.question] for row in examples)
    counts = funnel(path.parent)
    assert counts["fresh rollouts"] == 2 * len(examples)
    assert counts["examples with no right fresh rollout"] == sum(not row.successes for row in examples)
