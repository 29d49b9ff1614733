"""StepJudge: the last step is judged, with and without a reference; what cannot be read is a failure."""

from __future__ import annotations

import pytest

from stepwise import StepJudge
from tests.critics.critic import UNREADABLE, fields, judged, numbers, prompts, wanted
from tests.scripted_lm import ScriptedLM


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("reference", ["41 - 4 = 37", None])
def test_the_last_step_is_judged(right: bool, reference: str | None) -> None:
    lm = ScriptedLM([judged(right, "4 taken away")])
    found = StepJudge(lm)(problem="How many?", steps=["There are 41.", "41 - 4 = 37."], reference=reference)
    assert (found.right, found.reason, found.failure, found.usage.calls) == (right, "4 taken away", None, 1)
    (prompt,) = prompts(lm)
    assert fields(prompt) == ["problem", *(["reference"] if reference else []), "attempt"]
    assert (numbers(prompt), wanted(prompt)) == ([1, 2], ["reason", "right"])


def test_neither_right_nor_wrong_is_asked_for_again_and_then_is_a_failure() -> None:
    found = StepJudge(ScriptedLM(["#reason: hm\n#right: maybe", judged(True)]))(problem="?", steps=["a"])
    assert (found.right, len(found.repairs)) == (True, 1)
    lost = StepJudge(ScriptedLM([UNREADABLE] * 2), max_chars=300)(problem="?", steps=["a" * 400])
    assert (lost.right, lost.usage.calls) == (None, 2)
    assert UNREADABLE in lost.failure
    assert lost.warnings == ["step 0 has 400 characters; 141 in its middle were left out"]
