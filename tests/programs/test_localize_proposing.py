"""The localize program with --propose: a step after the localization, the repaired prefix, and where there is none."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from programs import localize
from tests.critics import critic as scripts
from tests.critics.critic import UNREADABLE, fields, prompts, reviewed
from tests.programs.test_localize import STEPS, Critic, critic, verified, written

__all__ = ["critic"]
proposed = partial(scripts.proposed, base=0)
ROW = {"id": "r", "question": "How many?", "steps": STEPS, "reference": "41 - 4 = 37", "answer": "37"}


def test_the_step_is_shown_after_the_prefix_that_it_goes_on_from(
    critic: Critic, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = critic.says(verified(1), proposed(1, "I take 4 away,\nand count."))
    assert localize.main([written(ROW), "--propose"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    at = lines.index("The attempt up to there, with a new step 1:")
    assert lines[at + 1 : at + 6] == [
        "  step 0", "    There are 41.", "→ step 1  intervention", "    I take 4 away,", "    and count."
    ]  # fmt: skip
    assert "✗ step 1  FIRST ERROR, never recovered from" in lines[:at]
    assert "\n#first_error: 1\n" in prompts(lm)[1]
    assert not Path("out").exists()


def test_json_holds_localization_intervention_and_repaired_prefix(
    critic: Critic, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = critic.says(verified(1), proposed(0, "I count 41."), reviewed())
    assert localize.main([written(ROW), "--propose", "--json", "--set", "critic.revisions=1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    made = json.loads(line)
    assert (made["id"], made["first_error"], made["verdicts"]) == ("r", 1, [True, False])
    assert made["intervention"] == {"location": 0, "content": "I count 41."}
    assert (made["repaired"], made["failure"]) == (["I count 41."], None)
    assert made["proposal"]["candidates"][0]["review"]["too_late"] is False
    assert made["proposal"]["usage"]["calls"] == 2
    assert "\n#answer: 37\n" in prompts(lm)[2]


def test_an_attempt_that_is_right_gets_no_intervention(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    critic.says(verified(None))
    assert localize.main([written(ROW), "--propose"]) == 0
    assert "Every step is right (of 3)." in capsys.readouterr().out
    critic.says(verified(None))
    assert localize.main([written(ROW), "--propose", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["first_error"], made["intervention"], made["repaired"], made["failure"]) == (None, None, None, None)


def test_a_first_error_that_is_known_is_not_looked_for(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    lm = critic.says(proposed(2, "So 37."))
    assert localize.main([written(ROW), "--propose", "--first-error", "2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["first_error"], made["repaired"]) == (2, [*STEPS[:2], "So 37."])
    assert "verdicts" not in made
    assert [fields(prompt)[-1] for prompt in prompts(lm)] == ["first_error"]
    assert localize.main([written(ROW), "--propose", "--first-error", "3"]) == 2
    assert localize.main([written(ROW), "--first-error", "2"]) == 2
    assert [line.partition(";")[2] for line in capsys.readouterr().err.splitlines()] == [
        " give a step of the attempt, 0 to 2", " add --propose, or leave it out"
    ]  # fmt: skip


@pytest.mark.parametrize("replies", [[UNREADABLE] * 2, [verified(1), UNREADABLE, UNREADABLE]])
def test_without_a_verdict_or_a_proposal_the_program_fails_and_says_why(
    replies: list[str], critic: Critic, capsys: pytest.CaptureFixture[str]
) -> None:
    critic.says(*replies)
    assert localize.main([written(ROW), "--propose"]) == 1
    assert UNREADABLE in capsys.readouterr().err
    critic.says(*replies)
    assert localize.main([written(ROW), "--propose", "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert made["intervention"] is None
    assert UNREADABLE in made["failure"]


def test_several_candidates_are_all_shown_with_their_self_checks(
    critic: Critic, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", "critic.candidates=2", "--set", "critic.revisions=1", "--set", "critic.temperature=0.7"]
    critic.says(verified(1), *[proposed(1, "x")] * 2, reviewed(), reviewed())
    assert localize.main([written(ROW), "--propose", *sets]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("→ step 1 intervention") == 2
    assert out.count("self-check: holds the final answer: no, misses a key insight: no, comes too late: no") == 2


def test_a_dry_run_counts_both_parts(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", "critic.solve_first=true", "--set", "critic.revisions=1"]
    assert localize.main([written(ROW), "--propose", "--dry-run", *sets]) == 0
    rows = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("  critic")]
    assert rows == ["2", "10"]  # solving, proposing, two reviews and a revision; each read twice at most
    assert critic.models == []
