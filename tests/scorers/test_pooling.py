"""The pooling scorer against a stand-in for vLLM's /pooling."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from stepwise.config import ScorerConfig
from stepwise.errors import ConfigError, ScorerError
from stepwise.models.http import Server
from stepwise.models.scorers import PoolingScorer, Scored, load_scorer, score_items
from stepwise.types import Problem, Usage
from tests.scorers.stand_in import Answer, StandIn, in_turn, serving

P = Problem("p7", "How many?", "4")
MARK = "<extra_0>"


def scorer(stand_in: StandIn, **options: Any) -> PoolingScorer:
    return PoolingScorer(Server(stand_in.url, attempts=3, backoff=0.0), "prm", **options)


def pooled(rows: Any, tokens: int = 50) -> Answer:
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return Answer({"object": "list", "data": [{"index": 0, "object": "pooling", "data": rows}], "usage": usage})


def good_unless_wrong(path: str, body: dict[str, Any]) -> Answer:
    """Step pooling: a row of two probabilities per marker."""
    steps = body["messages"][-1]["content"].split(MARK)[:-1]
    return pooled([[0.75, 0.25] if "wrong" in text else [0.125, 0.875] for text in steps], tokens=10 * len(steps))


def test_each_step_gets_the_second_probability_of_its_row() -> None:
    with serving(good_unless_wrong) as stand_in:
        made = scorer(stand_in)
        assert made.score(P, ["fine", "wrong", "fine"]) == [0.875, 0.25, 0.875]
        path, body, _ = stand_in.requests[0]
        assert path == "/pooling"
        assert body["model"] == "prm"
        assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant"]
        assert body["messages"][1]["content"] == P.question
        assert body["messages"][2]["content"] == f"fine{MARK}wrong{MARK}fine{MARK}"
        assert made.usage == Usage(made.name, 1, 30, 30)


@pytest.mark.parametrize("rows", [[[0.5], [0.25]], [0.5, 0.25], [[0.5, 0.5], [0.75, 0.25]]])
def test_one_probability_or_two_or_a_flat_list_are_understood(rows: Any) -> None:
    with serving(in_turn(pooled(rows))) as stand_in:
        assert scorer(stand_in).score(P, ["a", "b"]) == [0.5, 0.25]


def test_a_known_solution_asks_nothing_and_a_longer_one_asks_once() -> None:
    with serving(good_unless_wrong) as stand_in:
        made = scorer(stand_in)
        made.score(P, ["a", "wrong"])
        assert made.score(P, ["a", "wrong"]) == [0.875, 0.25]
        assert len(stand_in.requests) == 1
        assert made.score(P, ["a", "wrong", "c"]) == [0.875, 0.25, 0.875]
        assert len(stand_in.requests) == 2
        assert made.incremental is False


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (pooled([[0.5, 0.5]]), "1 scores for 2 steps; is scorer.marker one token"),
        (pooled([[0.5, 0.5]] * 50, tokens=50), "50 scores for 2 steps; these are all tokens: .*step pooling"),
        (pooled([[0.5, 0.5], [2.5, -1.5]]), r"step 1 has \[2.5, -1.5\], which are no probabilities"),
        (pooled([[0.5, 0.5], [0.3, 0.4]]), r"step 1 has \[0.3, 0.4\], which are no probabilities"),
        (pooled([[0.5, 0.5], [float("nan"), 0.4]]), "step 1 has .*nan.*which are no probabilities"),
        (pooled([1.5, 0.5]), "step 0 has 1.5, which are no probabilities"),
        (pooled([[0.2, 0.3, 0.5]] * 2), "step 0 has .*expected one probability, or two"),
        (pooled([["0.5", "0.5"]] * 2), "step 0 has .*expected one probability, or two"),
        (pooled([None, None]), "step 0 has .*expected one probability, or two"),
        (pooled("AAAAPw=="), "no list of scores in the answer but 'AAAAPw=='"),
        (Answer({"data": []}), "no list of scores"),
        (Answer([1, 2]), "no list of scores"),
        (Answer(b"<html>"), "the body is not JSON"),
        (Answer(b'{"data": [{"da'), "the body is not JSON"),
        (Answer({}, 500), "HTTP 500"),
        (Answer({}, 429), "HTTP 429.*lower sequences"),
        (Answer({"error": {"message": "no pooling here"}}), "HTTP 200 with an error inside.*no pooling here"),
    ],
)
def test_each_fault_names_scorer_problem_value_and_remedy(answer: Answer, message: str) -> None:
    with serving(in_turn(answer)) as stand_in:
        made = scorer(stand_in)
        (recorded,) = score_items(made, [(P, ["a", "b"])])
        assert recorded.error
        assert recorded.scores == []
        with pytest.raises(ScorerError, match=f"scorer 'prm@{stand_in.url}', problem 'p7'.*{message}"):
            made.score(P, ["a", "b"])


def test_retries_are_counted_in_usage_whether_they_helped_or_not() -> None:
    bad = Answer({}, 503)
    with serving(in_turn(bad, bad, pooled([[0.5, 0.5]], tokens=9))) as stand_in:
        (helped,) = scorer(stand_in).score_detailed([(P, ["a"])])
        assert (helped.error, helped.usage.retries, helped.usage.prompt_tokens) == ("", 2, 9)
    with serving(in_turn(bad)) as stand_in:
        made = scorer(stand_in)
        (failed,) = made.score_detailed([(P, ["a"])])
        assert failed.usage.retries == 2
        assert made.usage == failed.usage


def test_one_bad_item_leaves_the_others_alone() -> None:
    def answer(path: str, body: dict[str, Any]) -> Answer:
        return Answer({}, 400) if body["messages"][1]["content"] == "bad" else good_unless_wrong(path, body)

    with serving(answer) as stand_in:
        items = [("fine", ["a"]), ("bad", ["a"]), ("fine too", ["wrong"])]
        fine, bad, other = scorer(stand_in).score_detailed(items)
        assert (fine.scores, other.scores) == ([0.875], [0.25])
        assert "HTTP 400" in bad.error


@pytest.mark.parametrize(
    ("question", "steps", "message"),
    [
        ("", ["a"], "the question is empty"),
        (" \n", ["a"], "the question is empty"),
        ("How?", ["a", ""], "step 1 is empty"),
        ("How?", ["a", "  "], "step 1 is empty"),
        ("How?", [f"a{MARK}b"], "step 0 contains the marker '<extra_0>'"),
        (f"How{MARK}?", ["a"], "the question contains the marker"),
    ],
)
def test_text_that_cannot_be_scored_is_refused_before_it_is_sent(question: str, steps: list[str], message: str) -> None:
    with serving(good_unless_wrong) as stand_in:
        made = scorer(stand_in)
        with pytest.raises(ScorerError, match=message):
            made.score(question, steps)
        assert stand_in.requests == []
        assert made.score_detailed([("How?", [])]) == [Scored([], Usage(made.name))]


def test_threads_share_one_scorer_and_requests_in_flight_are_bounded() -> None:
    with serving(good_unless_wrong) as stand_in:
        made = scorer(stand_in, requests=3)
        found: dict[int, list[list[float]]] = {}

        def work(k: int) -> None:
            found[k] = made.score_batch([(P, [f"t{k}", f"wrong {j}"]) for j in range(6)])

        threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(found[k] == [[0.875, 0.25]] * 6 for k in range(5))
        assert made.usage.calls == len(stand_in.requests) == 30
        assert 1 <= stand_in.most_in_flight <= 3
        made.close()
        made.close()


def test_it_is_loaded_from_a_configuration_that_names_the_server() -> None:
    with serving(good_unless_wrong) as stand_in:
        made = load_scorer(ScorerConfig(kind="pooling", model="vllm/Qwen/PRM", api_base=stand_in.url + "/v1"))
        assert made.score(P, ["wrong"]) == [0.25]
        assert stand_in.requests[0][1]["model"] == "Qwen/PRM"
    with pytest.raises(ConfigError, match=r'"vllm/\.\.\."'):
        load_scorer(ScorerConfig(kind="pooling", model="openai/x", api_base="http://localhost:1"))
