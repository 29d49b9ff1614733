"""Hints: steps written ahead of rollouts, and what cannot be one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from stepwise.config.training import CreditConfig, Scheme
from stepwise.errors import ConfigError, DataError
from stepwise.grading import Verdict
from stepwise.steps import split_steps
from stepwise.training.rollouts import (
    HINTED_SCHEMES,
    RlRollout,
    check_hints,
    grade_rollouts,
    hints_of,
    read_rollouts,
)
from stepwise.types import Problem
from tests.training import rl_world
from tests.training.rl_world import problems, untimed
from tests.training.sft_world import ROW

P = Problem("p0", ROW.question, ROW.answer)
OUTCOME = CreditConfig()


def test_hints_come_out_as_steps() -> None:
    assert check_hints({"p0": ["One.", "Two.\n\n\n\nThree.\n"]}, [P], OUTCOME) == {"p0": ("One.", "Two.", "Three.")}
    assert check_hints({}, [P], CreditConfig(scheme="vppo")) == {}


@pytest.mark.parametrize(
    ("hints", "said"),
    [
        ({"q": ["One."]}, "hints name the problem 'q', which is not among the problems"),
        ({"p0": []}, r"hint of problem 'p0' has no text \(\[\]\)"),
        ({"p0": ["", " \n"]}, "hint of problem 'p0' has no text"),
        ({"p0": "One."}, r"hint of problem 'p0' is a text .*give its steps"),
        ({"p0": ["One.", r"So \boxed{7}."]}, r"hint of problem 'p0' holds \\boxed"),
        ({"p0": [r"So $\boxed{"]}, r"hint of problem 'p0' holds \\boxed"),
        ({"p0": ["<think>One."]}, "hint of problem 'p0' holds <think>"),
        ({"p0": ["```py\n1 + 1"]}, "hint of problem 'p0' leaves a code fence open"),
    ],
)
def test_what_cannot_be_a_hint_is_refused_by_problem(hints: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_hints(hints, [P], OUTCOME)


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_schemes_that_judge_steps_take_no_hints(scheme: Any) -> None:
    if scheme in HINTED_SCHEMES:
        assert check_hints({"p0": ["One."]}, [P], CreditConfig(scheme=scheme))
        return
    with pytest.raises(ConfigError, match=f'"{scheme}", which judges steps.*set outcome or distill'):
        check_hints({"p0": ["One."]}, [P], CreditConfig(scheme=scheme))


def test_a_rollout_is_graded_with_its_hint() -> None:
    given = RlRollout("p0/s1/r0", 1, "p0", "?", 0, "7}.", ("7}.",), (), (1,), (-0.5,), "eos", hint=("One.", r"\boxed{"))
    assert given.solution == "One.\n\n\\boxed{\n\n7}."
    assert grade_rollouts([given], {"p0": P}, "mask")[0].verdict is Verdict.CORRECT
    bare = dataclasses.replace(given, hint=())
    assert bare.solution == bare.text
    assert grade_rollouts([bare], {"p0": P}, "mask")[0].verdict is Verdict.NO_ANSWER


def test_rows_of_interventions_become_hints_of_their_problems_the_first_of_each() -> None:
    second = dataclasses.replace(ROW, id="b", intervention="Other.")
    other = dataclasses.replace(ROW, id="c", parents={"problem": "elsewhere"})
    assert hints_of([other, ROW, second], [P]) == {"p0": (*ROW.prefix, ROW.intervention)}
    with pytest.raises(DataError, match="no row of the hints belongs to any of the problems"):
        hints_of([other], [P])
    with pytest.raises(DataError, match="its question is not that of problem 'p0'"):
        hints_of([ROW], [dataclasses.replace(P, question="What?")])
    with pytest.raises(DataError, match=r"row 'p0/r0/c0' is no step to go on from \(origin strong\)"):
        hints_of([dataclasses.replace(ROW, origin="strong", complete=True)], [P])


def test_only_what_follows_a_hint_is_sampled_trained_and_written_down(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')
    from stepwise.training.lora import load_trainee
    from stepwise.training.reinforce import grpo
    from stepwise.training.trainer import run_arguments

    plain = problems(1)[0]
    hinted = dataclasses.replace(plain, id="hinted")
    hint = tuple(split_steps(str(plain.reference))[:1])
    cfg = rl_world.config(None, "rl.credit.scheme=outcome", "rl.steps=1", "rl.no_answer=wrong", "rl.group=4")
    out = tmp_path / "out"

    def by_length(problem: Problem, solution: str, verdict: Verdict) -> float:
        return min(1.0, len(solution) / 1000)

    adapter = grpo([plain, hinted], cfg, out, hints={"hinted": hint}, reward=by_length)
    rows = read_rollouts(out / "rollouts" / "step-00001.jsonl")
    assert {row.problem: row.hint for row in rows} == {plain.id: (), "hinted": hint}
    tokenizer = load_trainee(cfg).tokenizer
    for row in rows:
        assert hint[0] not in row.text
        assert tokenizer.decode(row.token_ids, skip_special_tokens=True).startswith(row.text[:20])
        assert len(row.logprobs) == len(row.token_ids) == row.spans[-1][1]
    (line,) = untimed(out / "metrics.jsonl")
    assert line["mismatch"] < 0.05  # sampler and trainer read the same hint
    trained = {row.problem for row in rows if any(row.step_advantages)}
    assert line["trained_tokens"] == sum(len(row.token_ids) for row in rows if row.problem in trained)
    card = json.loads((adapter / "card.json").read_text())
    assert [data["name"] for data in card["data"]] == ["problems", "hints"]
    ran = json.loads((out / "run.json").read_text())["arguments"]
    hints = [{"problem": "hinted", "steps": list(hint)}]
    assert ran.pop("reward").startswith(f"{__name__}:")
    assert ran == run_arguments(None, problems=[plain, hinted], hints=hints)
    assert ran["hints"] == 1
    assert ran["data"] != run_arguments(None, problems=[plain, hinted])["data"]
    with pytest.raises(DataError, match="other arguments"):
        grpo([plain, hinted], cfg, out)
    with pytest.raises(DataError, match=r"'hinted': its prompt and hint have \d+ tokens.*context of 2048"):
        grpo([plain, hinted], cfg, tmp_path / "long", hints={"hinted": ["Mia has 5 coins."] * 500})
    with pytest.raises(DataError, match=r"the hint of problem 'hinted' holds the special token"):
        grpo([plain, hinted], cfg, tmp_path / "special", hints={"hinted": ["One <|im_end|>."]})
