"""Whose tokens are counted, what a mean and its interval are, and that the model's own text is the likeliest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.on_policy import CONTENT, WHOLE, Tokens, main, mean_of_tokens, measured, measured_apart, summarize
from stepwise import lab
from stepwise.config import Config
from stepwise.data.examples import Example
from stepwise.interventions.datasets import build
from stepwise.lab.problems import generate
from stepwise.steps import SEPARATOR

CONFIG = Config.load(None, [])


@pytest.fixture(scope="module")
def trainee() -> Any:
    pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')
    if not lab.model_path("lab-weak", "safetensors").exists():
        pytest.skip("the lab's models are not in this checkout")
    from stepwise.training.lora import load_trainee

    return load_trainee(CONFIG)


def rows(complete: bool) -> list[Example]:
    """The right solutions of four problems: whole, or their first two steps as prefix and intervention."""
    import random

    made = []
    for problem in generate("val", 4):
        steps = problem.solution(random.Random(1))
        text = SEPARATOR.join(steps) if complete else steps[1]
        made.append(Example(
            problem.problem.id, problem.problem.question, problem.problem.answer or "",
            () if complete else (steps[0],), text, "strong" if complete else "intervention",
            {"problem": problem.problem.id}, {}, CONFIG.prompt.hash, "config", 0, 0, 0, complete=complete,
        ))  # fmt: skip
    return made


def test_prefix_and_content_share_out_the_tokens_of_the_target(trainee: Any) -> None:
    found = measured_apart(rows(False), rows(False), trainee, CONFIG)
    whole, prefix, content, wrong = found.values()
    for one, before, after, again in zip(whole, prefix, content, wrong, strict=True):
        np.testing.assert_allclose(one.nll, [*before.nll, *after.nll], rtol=1e-5)
        np.testing.assert_allclose(after.nll, again.nll, rtol=1e-5)
        assert len(before.nll) > 0 < len(after.nll)


def test_likelihoods_and_entropies_are_those_of_the_logits(trainee: Any) -> None:
    import torch

    from stepwise.training.rendering import prompt_ids, text_ids

    row = rows(True)[0]
    head = prompt_ids(trainee.tokenizer, CONFIG.prompt, row.question)
    body = text_ids(trainee.tokenizer, row.intervention, "the text")
    with torch.no_grad(), trainee.model.disable_adapter():
        logits = trainee.model(torch.tensor([head + body])).logits[0, len(head) - 1 : -1].double().log_softmax(-1)
    found = measured([row], trainee, CONFIG)[0]
    expected = -logits.gather(1, torch.tensor(body)[:, None])[:, 0].numpy()
    assert len(found.nll) == len(body)  # the end of the message is not among them
    np.testing.assert_allclose(found.nll, expected, atol=1e-3)
    np.testing.assert_allclose(found.entropy, -(logits.exp() * logits).sum(-1).numpy(), atol=1e-3)


def test_the_solvers_own_words_are_likelier_than_a_reference(trainee: Any) -> None:
    references = build("reference", [made.problem for made in generate("val", 4)], CONFIG)
    texts = [measured(examples, trainee, CONFIG) for examples in (rows(True), references)]
    own, other = (mean_of_tokens([t.problem for t in found], [t.nll for t in found]) for found in texts)
    assert own is not None
    assert other is not None
    assert own[0] < 1 < other[0]
    assert own[2] < other[1]


def test_a_mean_is_over_tokens_and_its_interval_over_problems() -> None:
    values = [np.array([1.0, 1.0, 1.0]), np.array([5.0]), np.array([1.0])]
    found = mean_of_tokens(["a", "b", "a"], values)
    assert found is not None
    assert found[0] == pytest.approx(9 / 5)
    assert found[1:] == [1.0, 5.0]  # only the one, only the other
    same = mean_of_tokens(["a", "b"], [np.array([2.0]), np.array([2.0, 2.0])])
    assert same == [2.0, 2.0, 2.0]
    assert mean_of_tokens([], []) is None
    assert mean_of_tokens(["a"], [np.empty(0)]) is None


def test_figures_tell_the_excess_and_the_hard_problems_apart() -> None:
    texts = [
        Tokens("a", np.array([1.0, 7.0]), np.array([0.5, 0.5])),
        Tokens("b", np.array([2.0]), np.array([1.0])),
    ]
    row = summarize({WHOLE: texts, CONTENT: []}, ["b"])
    assert row[WHOLE]["texts"] == row[WHOLE]["problems"] == 2
    assert row[WHOLE]["nll"][0] == pytest.approx(10 / 3)
    assert row[WHOLE]["excess"][0] == pytest.approx(8 / 3)
    assert row[WHOLE]["below_one_percent"] == pytest.approx(1 / 3)
    assert row[WHOLE]["hard"]["nll"] == [2.0, 2.0, 2.0]
    assert row[WHOLE]["excess_per_text"] == pytest.approx((8 - 1 + 2 - 1) / 2)
    assert row[CONTENT]["nll"] is None
    assert row[CONTENT]["excess_per_text"] is None
    assert row[CONTENT]["below_one_percent"] is None


@pytest.mark.slow
def test_the_whole_of_it_on_a_few_problems(tmp_path: Path, trainee: Any) -> None:
    assert main(["--problems", "16", "--out", str(tmp_path / "out")]) == 0
    figures = json.loads((tmp_path / "out" / "on_policy.json").read_text())
    assert figures["own solutions"]["texts"] == figures["references, full"]["texts"] == 16
    assert figures["own solutions"]["nll"][0] < 0.2 < figures["references, full"]["nll"][0]
