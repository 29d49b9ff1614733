"""Several endpoints behind LiteLLM's Router: sticky by problem, and what one of them does wrong costs retries alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from stepwise import BackendError, Problem, Step, StepRouter
from stepwise.config import BudgetConfig, ModelConfig
from stepwise.models.base import Completion, Request
from stepwise.models.budget import Ledger
from stepwise.models.endpoints import Endpoints
from stepwise.models.litellm import LiteLLMBackend
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.routing import Always
from tests.models.killed import NEEDED, killed_and_gone_on_with, slow
from tests.models.test_litellm import JSON, error, reply
from tests.models.test_money import HOSTILE, raw
from tests.scorers.stand_in import Answer, Answers, StandIn, in_turn, serving

PROBLEMS = [Problem(f"p{i}", f"What is {i} + {i}?") for i in range(16)]
FINE = in_turn(reply("fine"))


@contextmanager
def routed(*servers: Answers | str, settings: Sequence[dict[str, Any]] = (), **more: Any) -> Iterator[
    tuple[Endpoints, list[StandIn]]
]:  # fmt: skip
    """Endpoints in front of stand-ins, or of addresses; `settings` are those of each."""
    with ExitStack() as stack:
        running = [stack.enter_context(serving(each)) if callable(each) else None for each in servers]
        urls = [each.url if each else str(given) for each, given in zip(running, servers, strict=True)]
        given = [*settings, *[{}] * (len(urls) - len(settings))]
        endpoints = [{"api_base": f"{url}/v1", **own} for url, own in zip(urls, given, strict=True)]
        fields = {"model": "openai/m", "continuation": "prefill", "endpoints": endpoints, **more}
        with Endpoints(ModelConfig(**fields), attempts=4, backoff=0.01) as model:
            yield model, [each for each in running if each]


def texts(made: Sequence[Completion]) -> Counter[str]:
    return Counter(each.text or each.finish for each in made)


def places(server: StandIn) -> set[str]:
    """The problems that a server was asked about."""
    return {str(body["messages"][0]["content"]) for _, body, _ in server.requests}


def test_a_problem_stays_at_one_endpoint_whatever_is_asked_about_it() -> None:
    with routed(FINE, FINE, FINE) as (model, servers):
        for prefix in ((), (Step("One.", "weak"),), (Step("One.", "weak"), Step("Two.", "strong"))):
            assert texts(model.continue_solutions([Request(p, prefix, n=2) for p in PROBLEMS])) == {"fine": 32}
        assert sum(len(server.requests) for server in servers) == 96
        shares = [places(server) for server in servers]
        assert all(shares)
        assert sum(map(len, shares)) == len(PROBLEMS)


def test_weights_are_shares_of_the_problems_and_orders_come_first() -> None:
    urls = ["http://a", "http://b", "http://c"]
    with routed(*urls, settings=[{"weight": 3.0}, {}, {"order": 2, "weight": 50.0}]) as (model, _):
        ranks = [model.ranked(f"problem {i}") for i in range(2000)]
    assert {rank[2] for rank in ranks} == {2}
    assert 0.71 < sum(rank[0] == 0 for rank in ranks) / 2000 < 0.79
    with routed(*reversed(urls), settings=[{"order": 2, "weight": 50.0}, {}, {"weight": 3.0}]) as (model, _):
        again = [[2 - place for place in model.ranked(f"problem {i}")] for i in range(2000)]
    assert again == ranks  # whatever the order in the file


@pytest.mark.parametrize(
    "bad",
    [error(500), error(429, "slow", **{"Retry-After": "60"}), error(401), error(404), Answer(b"<html>", 200, JSON),
     Answer(reply("fine").body, 200, JSON, cut=True)],
    ids=["500", "429", "401", "404", "html", "cut off"],
)  # fmt: skip
def test_a_failing_endpoint_costs_retries_and_no_problem(bad: Answer) -> None:
    with routed(FINE, in_turn(bad), FINE, cooldown=60.0, sequences=4) as (model, servers):
        made = model.continue_solutions([Request(p) for p in PROBLEMS])
        assert texts(made) == {"fine": 16}
        tried = len(servers[1].requests)
        assert 1 <= tried <= 8  # those in flight when it failed first
        assert sum(each.usage.retries for each in made) == tried
        assert {each.usage.calls for each in made} == {1}
        assert {each.usage.model for each in made} == {model.backends[0].name, model.backends[2].name}
        assert texts(model.continue_solutions([Request(p, n=2) for p in PROBLEMS])) == {"fine": 32}
        assert len(servers[1].requests) == tried  # it rests


def test_a_rested_endpoint_is_asked_again() -> None:
    with routed(FINE, in_turn(error(500), reply("fine")), cooldown=0.2) as (model, servers):
        theirs = [p for p in PROBLEMS if model.ranked(p.id)[0] == 1]
        assert texts(model.continue_solutions([Request(theirs[0])])) == {"fine": 1}
        time.sleep(0.3)
        before = len(servers[0].requests)
        assert texts(model.continue_solutions([Request(p) for p in theirs])) == {"fine": len(theirs)}
        assert len(servers[0].requests) == before


def test_where_all_fail_for_a_moment_they_are_waited_for() -> None:
    both = [in_turn(error(503), reply("fine")) for _ in range(2)]
    with routed(*both, cooldown=0.1) as (model, _):
        (made,) = model.continue_solutions([Request(PROBLEMS[0])])
        assert (made.text, made.usage.retries, made.usage.calls) == ("fine", 2, 1)


@pytest.mark.parametrize(("statuses", "kind"), [((401, 403), "gone"), ((503, 401), "again"), ((401, 503), "again")])
def test_where_all_fail_for_good_the_failure_says_what_it_means(statuses: tuple[int, int], kind: str) -> None:
    with routed(*(in_turn(error(status, "so it is")) for status in statuses), cooldown=0.01) as (model, servers):
        (made,) = model.continue_solutions([Request(PROBLEMS[0])])
        assert made.failed is not None
        assert made.failed.kind == kind
        assert "so it is" in made.error
        assert made.usage.calls == 1
        assert made.usage.retries == sum(len(server.requests) for server in servers) - 1


def test_what_an_endpoint_refuses_is_not_sent_to_others() -> None:
    def picky(_: str, body: dict[str, Any]) -> Answer:
        return error(400, "too long") if "7 + 7" in json.dumps(body) else reply("fine")

    with routed(picky, picky) as (model, servers):
        made = model.continue_solutions([Request(p) for p in PROBLEMS])
        assert [p.id for p, each in zip(PROBLEMS, made, strict=True) if each.failed] == ["p7"]
        assert sum(len(server.requests) for server in servers) == len(PROBLEMS)


def test_an_error_of_our_own_is_raised_and_not_taken_for_an_endpoint_at_rest() -> None:
    class Broken(LiteLLMBackend):
        def _part(self, request: Request) -> list[Completion]:
            raise ZeroDivisionError("a bug")

    with routed(FINE, FINE) as (model, servers):
        model.prepare()
        model.backends[:] = [Broken(place, attempts=1) for place in model.config.places]
        for backend in model.backends:
            backend.adopt(model.findings)
        with pytest.raises(ZeroDivisionError, match="a bug"):
            model.continue_solutions([Request(PROBLEMS[0])])
        assert not any(server.requests for server in servers)


def test_a_sample_that_came_is_kept_where_another_failed() -> None:
    def halves(_: str, body: dict[str, Any]) -> Answer:
        return error(500) if body["seed"] else reply("first")

    with routed(halves, in_turn(reply("second")), settings=[{}, {"order": 2}]) as (model, servers):
        made = model.continue_solutions([Request(PROBLEMS[0], n=2)])
    assert [each.text for each in made] == ["first", "second"]
    assert [len(server.requests) for server in servers] == [2, 1]


# ----- what holds for one endpoint holds for several


def test_what_a_hanging_endpoint_was_perhaps_billed_counts_for_the_caps() -> None:
    def hanging(path: str, body: dict[str, Any]) -> Answer:
        time.sleep(1.0)
        return reply("fine")

    ledger = Ledger(BudgetConfig(total_tokens=200, calls=2))
    with routed(hanging, FINE, settings=[{}, {"order": 2}], timeout=0.3) as (model, _):
        (made,) = Wrappers(ledger).model(model, "weak").continue_solutions([Request(PROBLEMS[0], max_tokens=50)])
    assert made.text == "fine"
    assert ledger.perhaps("weak").generated_tokens == 50
    assert ledger.remaining() == {"strong_tokens": None, "total_tokens": 200 - 50 - 7, "calls": 0.0, "money": None}


def test_caps_are_kept_to_the_token_and_the_report_tells_each_endpoint() -> None:
    ledger = Ledger(BudgetConfig(total_tokens=12 * 7 + 7))
    with routed(FINE, FINE, FINE) as (endpoints, _):
        model = Wrappers(ledger).model(endpoints, "strong")
        made = model.continue_solutions([Request(p, max_tokens=7) for p in PROBLEMS])
        assert texts(made) == {"fine": 12, "budget": 4}
        lines = [line for line in ledger.summary().splitlines() if line.startswith("of strong")]
        assert len(lines) == 3
        for name, usage in endpoints.usages.items():
            assert any(f"({name}): {usage.calls} calls" in line for line in lines)
        assert sum(usage.generated_tokens for usage in endpoints.usages.values()) == 84


def test_a_resumed_run_tells_what_each_endpoint_took_over_all_starts(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with routed(FINE, FINE) as (endpoints, servers), CallCache(path, replays_are_free=True) as store:
        Wrappers(Ledger(), store=store).model(endpoints, "strong").continue_solutions(map(Request, PROBLEMS))
        sent = [len(server.requests) for server in servers]
    with CallCache(path, replays_are_free=True) as store:
        router = StepRouter("openai/w", "openai/m", None, Always(), cache=store)
        router.count_stored()
        lines = [line for line in router.ledger.summary().splitlines() if line.startswith("of strong")]
        router.close()
    assert [int(line.split(": ")[1].split()[0]) for line in sorted(lines)] == [
        count for _, count in sorted(zip((backend.name for backend in endpoints.backends), sent, strict=True))
    ]


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_reply_is_bounded_in_time_bytes_and_depth_over_the_router(kind: str) -> None:
    answer, _ = HOSTILE[kind]
    began = time.monotonic()
    timeout = 5.0 if "packs" in kind else 0.5
    with routed(raw(answer), FINE, settings=[{}, {"order": 2}], timeout=timeout) as (model, _):
        (made,) = model.continue_solutions([Request(PROBLEMS[0])])
    assert (made.text, made.usage.retries) == ("fine", 1)
    assert time.monotonic() - began < 9.0


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("model", ["openai/m", "anthropic/m"])
def test_no_key_follows_a_redirect_over_the_router(status: int, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "not-a-real-one-at-all")
    with serving(in_turn(reply("stolen"))) as other:
        away = in_turn(Answer({}, status, {"Location": f"{other.url}/v1/chat/completions", **JSON}))
        with routed(away, away, model=model, api_key_env="SOME_KEY", cooldown=0.01) as (endpoints, servers):
            (made,) = endpoints.continue_solutions([Request(PROBLEMS[0])])
            assert made.finish == "error"
            assert all(server.requests for server in servers)
        assert not other.requests


def test_each_endpoint_gets_its_own_key_and_no_error_shows_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"FIRST_CREDENTIAL": "hunter2hunter2", "SECOND_CREDENTIAL": "swordfishswordfish"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    wrong = [in_turn(error(401, f"wrong key {value}")) for value in keys.values()]
    with routed(*wrong, settings=[{"api_key_env": name} for name in keys]) as (model, servers):
        made = model.continue_solutions([Request(p) for p in PROBLEMS[:4]])
    for server, value in zip(servers, keys.values(), strict=True):
        assert {headers["Authorization"] for _, _, headers in server.requests} == {f"Bearer {value}"}
    said = caplog.text + "".join(each.error for each in made)
    assert "wrong key" in said
    assert not any(value in said for value in keys.values())


def test_never_more_requests_are_in_flight_than_the_configuration_allows() -> None:
    with routed(FINE, FINE, sequences=2) as (model, servers):
        model.continue_solutions([Request(p) for p in PROBLEMS])
        assert max(server.most_in_flight for server in servers) <= 2


@pytest.mark.slow
def test_after_a_kill_no_answer_is_lost_or_bought_again_though_an_endpoint_fails(tmp_path: Path) -> None:
    with serving(slow) as one, serving(slow) as two, serving(in_turn(error(503))) as broken:
        addresses = [f"{server.url}/v1" for server in (one, broken, two)]
        end = killed_and_gone_on_with(tmp_path / "answers.jsonl", addresses, [one, two])
    assert end.lost <= end.open_requests <= 2 * 4
    assert end.spent.calls == NEEDED


# ----- probes and configurations


def probed(name: str) -> Answers:
    def answers(_: str, body: dict[str, Any]) -> Answer:
        return reply(f"{name} is what the one answers that was asked first of all here")

    return answers


def test_an_endpoint_that_is_down_at_the_start_is_taken_to_be_like_another() -> None:
    down: list[bool] = [True]

    def late(path: str, body: dict[str, Any]) -> Answer:
        return error(503) if down[0] else reply("fine")

    with routed(probed("a"), late, continuation="probe", cooldown=0.01) as (model, _):
        with pytest.warns(UserWarning, match="taken to be like another"):
            model.prepare()
        assert 0 < model.usage.calls <= 2 * 9
        assert model.findings.continuation == "prompt"
        down[0] = False
        theirs = [Request(p) for p in PROBLEMS if model.ranked(p.id)[0] == 1]
        assert texts(model.continue_solutions(theirs)) == {"fine": len(theirs)}


def test_where_no_endpoint_answers_the_error_names_all() -> None:
    with (
        routed(in_turn(error(401, "first no")), in_turn(error(401, "second no")), continuation="probe") as (model, _),
        pytest.raises(BackendError, match=r"no endpoint answers: .*first no.*; .*second no"),
    ):
        model.prepare()
