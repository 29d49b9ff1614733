"""What an object of a user's is: other settings or other code are another text, and the same are the same."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.errors import ConfigError
from stepwise.models.scorers import ConstantScorer, PerfectScorer, Scorer
from stepwise.models.scorers.base import BatchScorer
from stepwise.plugins.identity import plain, source_of

WEIGHTS = "WEIGHT = 0.95\n"
SCORER = """
import stepwise as sw
from scores_help import WEIGHT

class Numbers(sw.Scorer):
    def __init__(self, tricky=("percent",), table=None):
        self.tricky, self.table = tricky, table
    def score(self, problem, steps):
        return [WEIGHT for _ in steps]
"""


class Words(Scorer):
    def __init__(self, words: Any = ("a",)) -> None:
        self.words = words
        self.network = object()  # made from the others: no setting
        self.calls: list[Any] = []
        self._count = 0

    def score(self, problem: Any, steps: Sequence[str]) -> Sequence[float]:
        self.calls.append(steps)
        self._count += 1
        return [0.5] * len(steps)


class Fast(BatchScorer):
    def __init__(self, words: Any = ("a",)) -> None:
        super().__init__("fast")
        self.words = words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("percent", "share"), ("bring",)),
        (["percent"], ["share"]),
        ({"a": 1.0}, {"a": 2.0}),
        ({1: 2}, {1: 3}),
        ({"a"}, {"b"}),
        (b"a", b"b"),
        (Path("a"), Path("b")),
        (re.compile("a"), re.compile("a", re.IGNORECASE)),
        (np.array([1.0, 2.0]), np.array([1.0, 2.5])),
        ([("a", {"b": [1]})], [("a", {"b": [2]})]),
        (Words(["a"]), Words(["b"])),
        (str.upper.__class__, Words),
        (len.__class__, source_of),
        (None, 0),
    ],
    ids=lambda value: type(value).__name__,  # no addresses: workers collect the same names
)
def test_settings_of_any_kind_tell_scorers_apart(one: Any, other: Any) -> None:
    for cls in (Words, Fast):
        assert cls(one).identity != cls(other).identity
        assert cls(one).identity == cls(one).identity


class Named(Scorer):
    """Keeps its argument under another name."""

    def __init__(self, language: str) -> None:
        self.words = {"en": ["a"], "de": ["ein"]}[language]

    def score(self, problem: Any, steps: Sequence[str]) -> Sequence[float]:
        return [0.5] * len(steps)


def test_arguments_count_under_whatever_name_they_are_kept() -> None:
    assert Named("en").identity != Named("de").identity == Named(language="de").identity


def test_an_argument_counts_as_it_stands_now() -> None:
    changed = Words(["a"])
    changed.words = ["b"]
    assert changed.identity == Words(["b"]).identity


def test_scoring_does_not_change_who_a_scorer_is() -> None:
    scorer = Words()
    before = scorer.identity
    scorer.score_batch([("1 + 1?", ["That is 2."])])
    assert scorer.identity == before


def test_an_argument_that_has_no_text_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"Words\.words is a object, of which .*give the class a property `identity`"):
        assert Words(object()).identity


def test_what_the_library_brings_keeps_its_name() -> None:
    assert ConstantScorer(0.5).identity == "constant 0.5"
    assert len({PerfectScorer(check).identity for check in (lambda p, s: [True], _never)}) == 2


def _never(problem: Any, steps: Any) -> list[bool]:
    return [False for _ in steps]


@pytest.fixture
def reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scorer]:
    monkeypatch.syspath_prepend(tmp_path)

    def reload(scorer: str = SCORER, weights: str = WEIGHTS) -> Scorer:
        for name, text in (("scores_help", weights), ("scores_mine", scorer)):
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        made = importlib.import_module("scores_mine").Numbers()
        sys.dont_write_bytecode = before
        return made  # type: ignore[no-any-return]

    return reload


def test_edited_code_is_another_scorer(reloaded: Callable[..., Scorer]) -> None:
    first = reloaded()
    assert reloaded().identity == first.identity
    assert reloaded(SCORER.replace("WEIGHT for", "0.3 for")).identity != first.identity
    assert reloaded(weights="WEIGHT = 0.3\n").identity != first.identity, "in a module that it imports"
    assert reloaded().identity == first.identity


def test_code_counts_as_it_was_when_it_was_loaded(reloaded: Callable[..., Scorer], tmp_path: Path) -> None:
    scorer = reloaded()
    before = scorer.identity
    (tmp_path / "scores_mine.py").write_text(SCORER + "# edited\n")
    assert scorer.identity == before


def test_the_library_and_python_are_no_code_of_a_users() -> None:
    assert source_of("stepwise.plugins") == source_of("json") == ""
    assert source_of("tests.test_identity") != ""


def test_code_without_a_file_is_kept_for_nobody_else() -> None:
    assert source_of("of_a_notebook") != source_of("of_a_notebook")


def test_sets_and_mappings_have_one_text_in_every_process() -> None:
    assert plain({"b", "a"}) == plain(frozenset({"a", "b"})) == ["a", "b"]
    assert plain({2: "b", 1: "a"}) == plain({1: "a", 2: "b"})
