"""What is no step of a solution is caught, each kind by its reason, and what is one passes."""

from __future__ import annotations

import pytest

from stepwise import InterventionProposer
from stepwise.critics.form import form_fault, invented_output
from tests.critics.critic import proposed
from tests.scripted_lm import ScriptedLM

PROBLEM = "Max has 41 pens and gives 4 away. How many are left?"
PREFIX = ["Max has 41 pens."]
WRONG = "He is left with 41 - 4 = 39 pens."


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ('Replace the step "41 - 4 = 39" with "41 - 4 = 37".', "it is an instruction"),
        ("The calculation should be 41 - 4 = 37.", "it is an instruction"),
        ("The attempt subtracts wrongly: 41 - 4 = 37.", "it speaks of the attempt or the reference"),
        ("As the reference solution says, 41 - 4 = 37.", "it speaks of the attempt or the reference"),
        ("[2] He is left with 41 - 4 = 37 pens.", "it has the prompt's own marks"),
        ("Max has 41 pens.\n\nThen 41 - 4 = 37 are left.", "it is several steps"),
        ("1. Max has 41 pens.\n2. 41 - 4 = 37.", "it is several steps"),
        ("He is left with 41 - 4 = 39 pens!", "it repeats a step of the attempt, or the problem"),
        ("```python\nprint(41 - 4)\n```\n```output\n37\n```", "it has code with an invented output"),
        ("for has 41 - 4 = 37.", "it begins in the middle of a sentence"),
        ("owns With 4 gone there are 41 - 4 = 37.", "it begins in the middle of a sentence"),
        ("So Ruth owns 41 - 4 = 37.", "it names somebody who is not in the problem"),
    ],
)
def test_each_kind_is_caught_by_its_reason(content: str, fault: str) -> None:
    assert form_fault(content, problem=PROBLEM, prefix=PREFIX, wrong=WRONG) == fault


@pytest.mark.parametrize(
    "content",
    [
        "He gives 4 of the 41 away, so 41 - 4 = 37 are left.",
        "He is left with 41 - 4 = 37 pens.",  # the wrong step with another number
        "What is left is\n\n\\[ 41 - 4 = 37 \\]",
        "Everybody has what is left: 37.",
        "So Max has 37.",
        "x + 4 = 41, so x = 37.",
        "total = 41 - 4 = 37",
        "\\frac{74}{2} = 37",
        "sin(30) is no help; 41 - 4 = 37.",
        "They paid 37 in all, and the next step is to divide it.",
        "The interval [0, 1] has 37 points.",
    ],
)
def test_a_step_passes(content: str) -> None:
    assert form_fault(content, problem=PROBLEM, prefix=PREFIX, wrong=WRONG) == ""


def test_a_solver_that_writes_in_lower_case_may_go_on_so() -> None:
    assert form_fault("he keeps 41 - 4 = 37.", problem=PROBLEM, prefix=["max has 41 pens."], wrong=WRONG) == ""


def test_words_of_the_problem_are_no_sign() -> None:
    problem = "A student makes an error in step 2 of 5. How many steps are right?"
    assert form_fault("The student has 5 - 1 = 4 right, the error aside.", problem=problem) == ""


@pytest.mark.parametrize(
    ("text", "invented"),
    [
        ("```python\nprint(2)\n```\n```output\n2\n```\nSo 2.", True),
        ("```\nx = 2\n```\nRunning this code gives 2.", True),
        ("```python\nprint(2)\n```\n\nOutput:\n2", True),
        ("```python\nprint(2)\n```\nSo it is 2.", False),
        ("The output of the factory is 2 cars.", False),
    ],
)
def test_code_with_what_it_is_said_to_print(text: str, invented: bool) -> None:
    assert invented_output(text) is invented


def test_of_several_candidates_the_first_that_is_a_step_is_taken_and_else_a_warning_says_why() -> None:
    given = {"problem": PROBLEM, "steps": [*PREFIX, WRONG], "first_error": 1}
    told, step = proposed(1, "Replace the step."), proposed(1, "41 - 4 = 37 are left.")
    made = InterventionProposer(ScriptedLM([told, step]), candidates=2)(**given)
    assert {one.content for one in made.candidates} == {"41 - 4 = 37 are left.", "Replace the step."}
    assert (made.intervention.content, made.warnings) == ("41 - 4 = 37 are left.", [])
    alone = InterventionProposer(ScriptedLM([told]))(**given)
    assert alone.warnings == ["the intervention is not one step of a solution: it is an instruction"]
