"""Whatever changes what a scorer says, or a policy does, changes its identity: no score of another is replayed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import ScorerConfig
from stepwise.models.http import Server
from stepwise.models.scorers import ConstantScorer, JudgeScorer, PerfectScorer, load_scorer
from stepwise.models.scorers.pooling import PoolingScorer
from stepwise.plugins import identity_of
from stepwise.plugins.identity import plain
from stepwise.prompt import SolvePrompt
from stepwise.routing import Always, Never, Random, Threshold
from stepwise.routing.policies import Judged
from stepwise.routing.query import Cascade
from tests.scorers.prm_models import save_prm
from tests.scorers.stand_in import Answer, serving


def _right_if(word: str) -> Callable[[Any, Any], list[bool]]:
    return lambda problem, steps: [word in step for step in steps]


class _Checker:
    def __call__(self, problem: Any, steps: Any) -> list[bool]:
        return [True for _ in steps]


def _judge(**changes: Any) -> JudgeScorer:
    return JudgeScorer(lambda chat: ("0.5", None), **({"name": "m", "ask": "probability"} | changes))  # type: ignore[arg-type, return-value]


HERE, THERE = Server("http://127.0.0.1:9/v1"), Server("http://127.0.0.1:8/v1")
PAIRS: list[tuple[Any, Any]] = [
    (ConstantScorer(0.5), ConstantScorer(0.25)),
    (PerfectScorer(_right_if("a")), PerfectScorer(_right_if("b"))),
    (PerfectScorer(lambda p, s: [True] * len(s)), PerfectScorer(lambda p, s: [False] * len(s))),
    (PerfectScorer(_Checker()), PerfectScorer(_Checker())),
    (_judge(), _judge(ask="verdict")),
    (_judge(), _judge(name="other")),
    (PoolingScorer(HERE, "m"), PoolingScorer(THERE, "m")),
    (PoolingScorer(HERE, "m"), PoolingScorer(HERE, "n")),
    (PoolingScorer(HERE, "m"), PoolingScorer(HERE, "m", marker="<x>")),
    (PoolingScorer(HERE, "m"), PoolingScorer(HERE, "m", system="Be strict.")),
]
POLICIES: list[tuple[Any, Any]] = [
    (Threshold(0.5), Threshold(0.6)),
    (Random(0.5), Random(0.4)),
    (Random(0.5), Random(0.5, seed=1)),
    (Never(), Always()),
    (Judged("openai/a"), Judged("openai/b")),
    (Judged("openai/a"), Judged("openai/a", api_base="http://127.0.0.1:9/v1")),
    (Judged("openai/a"), Judged("openai/a", temperature=0.5)),
    (Cascade(threshold=0.5), Cascade(threshold=0.6)),
    (Cascade(), Cascade(samples=4)),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_scorers_that_say_something_else_have_other_identities(one: Any, other: Any) -> None:
    assert one.identity != other.identity
    assert one.identity == one.identity


@pytest.mark.parametrize(("one", "other"), POLICIES)
def test_policies_that_do_something_else_have_other_identities(one: Any, other: Any) -> None:
    assert identity_of(one) != identity_of(other)


def test_functions_of_one_name_are_told_apart_by_what_they_hold() -> None:
    assert plain(_right_if("a")) == plain(_right_if("a")) != plain(_right_if("b"))

    def again(n: int) -> int:
        return again(n - 1) if n else 0

    json.dumps(plain(again))
    functions = [lambda x, k=k: x + k for k in range(3)]
    assert len({json.dumps(plain(function)) for function in functions}) == 3


def test_a_judge_on_another_server_is_another_judge() -> None:
    pytest.importorskip("litellm")
    spec = ScorerConfig(kind="judge", model="openai/m", api_base="http://127.0.0.1:9/v1")
    other = spec.model_copy(update={"api_base": "http://127.0.0.1:8/v1"})
    assert load_scorer(spec).identity != load_scorer(other).identity


def test_served_labels_depend_on_labels_prompt_and_server() -> None:
    def tokens(path: str, body: dict[str, Any]) -> Answer:
        return Answer({"tokens": [len(body["prompt"])] if body["prompt"] else []}, 200, {})

    with serving(tokens) as one, serving(tokens) as two:
        base = ScorerConfig(model="openai/m", api_base=f"{one.url}/v1")
        changed: list[dict[str, Any]] = [{}, {"api_base": f"{two.url}/v1"}, {"model": "openai/n"}, {"marker": "<m>"},
                                         {"good": "<g>"}, {"bad": "<b>"}]  # fmt: skip
        found = [load_scorer(base.model_copy(update=each)).identity for each in changed]
        found.append(load_scorer(base, prompt=SolvePrompt(system="Solve.")).identity)
    assert len(set(found)) == len(found)


def test_a_classifier_is_its_weights_tokenizer_type_and_marker(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from stepwise.models.scorers import ClassifierScorer

    first = save_prm(tmp_path / "a" / "prm")
    same = Path(shutil.copytree(first, tmp_path / "b" / "prm"))
    other = save_prm(tmp_path / "c" / "prm", seed=1)
    retold = Path(shutil.copytree(first, tmp_path / "d" / "prm"))
    template = retold / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    base = ClassifierScorer(first, dtype="float32")
    assert ClassifierScorer(same, dtype="float32").identity == base.identity
    found = [
        base.identity,
        ClassifierScorer(other, dtype="float32").identity,
        ClassifierScorer(retold, dtype="float32").identity,
        ClassifierScorer(first, dtype="bfloat16").identity,
        ClassifierScorer(first, dtype="float32", marker="<|im_end|>").identity,
    ]
    assert len(set(found)) == len(found)
