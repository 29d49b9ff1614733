"""The label-token scorer on a fake engine: what it reads, what each step costs, and what it refuses."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.errors import ConfigError, ScorerError
from stepwise.models.scorers import LabelTokenScorer
from stepwise.prompt import SolvePrompt
from stepwise.types import Problem, Usage

P = Problem("p", "How many?", "4")
SPECIAL = {"<|score|>": 1, "<|good|>": 2, "<|bad|>": 3}


@dataclass
class Read:
    logits: npt.NDArray[np.float32]
    evaluated_tokens: int
    error: str = ""


@dataclass
class FakeEngine:
    """Logits from a function of the ids up to a position; a perfect prefix cache counts what is evaluated."""

    name: str = "fake"
    parameters: int = 7
    memory_bytes: int = 0
    calls: list[int] = field(default_factory=list)
    known: set[tuple[int, ...]] = field(default_factory=set)
    context: int = 10_000
    closed: int = 0

    def token_id(self, text: str) -> int:
        if text not in SPECIAL:
            raise ConfigError(f"no special token {text}")
        return SPECIAL[text]

    def step_ids(self, text: str) -> list[int]:
        return [10 + ord(char) for char in text + "\n\n"]

    def prompt_ids(self, prompt: SolvePrompt, question: str) -> list[int]:
        text = "".join(message["content"] for message in prompt.messages(question))
        return [5, *(10 + ord(char) for char in text), 6]

    def score(
        self, sequences: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], token_ids: Sequence[int]
    ) -> list[Read]:
        assert list(token_ids) == [2, 3]
        self.calls.append(len(sequences))
        return [self._read(list(ids), wanted) for ids, wanted in zip(sequences, positions, strict=True)]

    def _read(self, ids: list[int], wanted: Sequence[int]) -> Read:
        if len(ids) > self.context:
            return Read(np.empty((0, 2), np.float32), 0, f"{len(ids)} tokens do not fit")
        assert [ids[position] for position in wanted] == [1] * len(wanted)
        prefixes = {tuple(ids[:n]) for n in range(1, len(ids) + 1)}
        fresh = len(prefixes - self.known)
        self.known |= prefixes
        return Read(np.array([logits_at(ids[: p + 1]) for p in wanted], np.float32).reshape(-1, 2), fresh)

    def reset_cache(self) -> None:
        self.known.clear()

    def close(self) -> None:
        self.closed += 1


def logits_at(ids: Sequence[int]) -> tuple[float, float]:
    return (sum(ids) % 97 / 10, sum(i * id_ for i, id_ in enumerate(ids)) % 89 / 10)


def by_hand(steps: Sequence[str]) -> list[float]:
    ids = [5, *(10 + ord(c) for c in P.question), 6]
    scores = []
    for text in steps:
        ids += [*(10 + ord(c) for c in text + "\n\n"), 1]
        good, bad = logits_at(ids)
        scores.append(math.exp(good) / (math.exp(good) + math.exp(bad)))
    return scores


def test_a_score_is_the_softmax_of_the_two_labels_at_the_marker_after_each_step() -> None:
    scorer = LabelTokenScorer(FakeEngine())  # type: ignore[arg-type]
    steps = ["first", "second one", "third"]
    assert scorer.score(P, steps) == pytest.approx(by_hand(steps), rel=1e-5)
    assert scorer.score(P.question, steps) == scorer.score(P, steps)


def test_an_appended_step_costs_its_own_tokens_and_one_marker() -> None:
    engine = FakeEngine()
    scorer = LabelTokenScorer(engine)  # type: ignore[arg-type]
    (first,) = scorer.score_detailed([(P, ["abc"])])
    (second,) = scorer.score_detailed([(P, ["abc", "defgh"])])
    assert first.usage.evaluated_tokens == len(P.question) + 2 + len("abc\n\n") + 1
    assert second.usage.evaluated_tokens == len("defgh\n\n") + 1
    assert second.usage.prompt_tokens == first.usage.prompt_tokens + len("defgh\n\n") + 1
    assert scorer.usage == first.usage + second.usage
    assert (scorer.usage.calls, scorer.usage.generated_tokens) == (2, 0)


def test_a_solution_scored_before_costs_nothing_and_asks_the_engine_nothing() -> None:
    engine = FakeEngine()
    scorer = LabelTokenScorer(engine)  # type: ignore[arg-type]
    once = scorer.score(P, ["a", "b", "c"])
    (again,) = scorer.score_detailed([(P, ["a", "b", "c"])])
    (prefix,) = scorer.score_detailed([(P, ["a", "b"])])
    assert again.scores == once
    assert prefix.scores == once[:2]
    assert again.usage == prefix.usage == Usage("fake")
    assert len(engine.calls) == 1


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c c"]), max_size=4), max_size=6))
def test_scores_do_not_depend_on_batch_order_or_memory(solutions: list[list[str]]) -> None:
    whole = LabelTokenScorer(FakeEngine()).score_batch([(P, steps) for steps in solutions])  # type: ignore[arg-type]
    forgetful = LabelTokenScorer(FakeEngine(), memory=1)  # type: ignore[arg-type]
    backwards = [forgetful.score(P, steps) for steps in reversed(solutions)]
    assert whole == list(reversed(backwards))
    assert all(len(row) == len(steps) for row, steps in zip(whole, solutions, strict=True))


def test_no_steps_have_no_scores_and_cost_nothing() -> None:
    engine = FakeEngine()
    assert LabelTokenScorer(engine).score_batch([(P, []), (P, [])]) == [[], []]  # type: ignore[arg-type]
    assert engine.calls == []


def test_a_solution_that_is_too_long_fails_alone() -> None:
    scorer = LabelTokenScorer(FakeEngine(context=40))  # type: ignore[arg-type]
    short, long = scorer.score_detailed([(P, ["a"]), (P, ["x" * 60])])
    assert short.error == ""
    assert "do not fit" in long.error
    with pytest.raises(ScorerError, match=r"scorer 'fake', problem 'p': .*do not fit"):
        scorer.score(P, ["x" * 60])


def test_a_missing_label_token_is_an_error_at_load_time() -> None:
    with pytest.raises(ConfigError, match=r"<\|yes\|>"):
        LabelTokenScorer(FakeEngine(), good="<|yes|>")  # type: ignore[arg-type]


def test_scores_made_under_one_adapter_are_not_used_under_another() -> None:
    engine = FakeEngine()
    scorer = LabelTokenScorer(engine)  # type: ignore[arg-type]
    scorer.score(P, ["a"])
    engine.name = "fake+adapter"
    scorer.score(P, ["a"])
    assert engine.calls == [1, 1]


def test_another_system_text_gives_another_sequence() -> None:
    plain = LabelTokenScorer(FakeEngine()).score(P, ["a"])  # type: ignore[arg-type]
    assert LabelTokenScorer(FakeEngine(), prompt=SolvePrompt(system="Be exact.")).score(P, ["a"]) != plain  # type: ignore[arg-type]


def test_threads_share_one_scorer_and_every_token_is_counted() -> None:
    scorer = LabelTokenScorer(FakeEngine())  # type: ignore[arg-type]
    found: list[Usage] = []

    def work(k: int) -> None:
        found.extend(scorer.score_detailed([(P, [f"t{k}", f"u{j}"])])[0].usage for j in range(20))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found, Usage()) == scorer.usage


@pytest.mark.parametrize(
    ("question", "steps", "message"),
    [
        ("", ["a"], "the question is empty"),
        ("How?", ["a", ""], "step 1 is empty"),
        ("How?", ["a", "\n "], "step 1 is empty"),
    ],
)
def test_empty_texts_are_refused_before_the_engine_is_asked(question: str, steps: list[str], message: str) -> None:
    engine = FakeEngine()
    scorer = LabelTokenScorer(engine)  # type: ignore[arg-type]
    (fault,) = scorer.score_detailed([(question, steps)])
    assert message in fault.error
    assert fault.usage == Usage("fake")
    assert engine.calls == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error_and_are_not_remembered(value: float) -> None:
    class Broken(FakeEngine):
        broken = True

        def score(self, sequences: Any, positions: Any, token_ids: Any) -> list[Read]:
            made = super().score(sequences, positions, token_ids)
            for read in made if self.broken else ():
                read.logits[-1] = value
            return made

    engine = Broken()
    scorer = LabelTokenScorer(engine)  # type: ignore[arg-type]
    with pytest.raises(ScorerError, match="scorer 'fake', problem 'p', step 1: the score is nan; it must be"):
        scorer.score(P, ["a", "b"])
    engine.broken = False
    assert scorer.score(P, ["a", "b"]) == pytest.approx(by_hand(["a", "b"]), rel=1e-5)


def test_a_reader_that_gives_too_few_readings_is_an_error() -> None:
    class Short(FakeEngine):
        def score(self, sequences: Any, positions: Any, token_ids: Any) -> list[Read]:
            return [Read(read.logits[1:], 0) for read in super().score(sequences, positions, token_ids)]

    with pytest.raises(ScorerError, match="problem 'p': 1 scores for 2 steps"):
        LabelTokenScorer(Short()).score(P, ["a", "b"])  # type: ignore[arg-type]


def test_a_lone_surrogate_is_scored_as_a_question_mark() -> None:
    scorer = LabelTokenScorer(FakeEngine())  # type: ignore[arg-type]
    assert scorer.score(P, ["a\ud800"]) == scorer.score(P, ["a?"])
