"""The whole pipeline: killed, refused, stopped, and gone on with."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from dspy.utils.exceptions import LMInvalidRequestError, LMProviderError

from stepwise.config import Config
from stepwise.data.examples import read_examples
from stepwise.errors import BackendError, BudgetExceededError, DataError
from stepwise.interventions.collection import _FATES, collect, funnel, read_stage
from stepwise.interventions.pipeline import sample_rollouts
from stepwise.interventions.rows import ROWS, WRITTEN
from stepwise.interventions.settings import CollectSettings
from stepwise.io import read_rows
from stepwise.models.base import Completion
from stepwise.types import Failure, Problem
from tests import limits
from tests.critics.critic import wanted
from tests.fakes import ScriptedBackend
from tests.interventions import world
from tests.interventions.world import CONFIG, SETTINGS

N = 12


FILTERED = SETTINGS.model_copy(update={"compare": 4, "fresh": 3, "batch": 2, "floor": 0.5, "miss": 0.2})


def run(out: Path, n: int = N, settings: CollectSettings = SETTINGS, **more: Any) -> Path:
    return collect(
        world.problems(n), CONFIG, out, settings=settings, writers=more.pop("writers", world.writers()), **more
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return files(out)


def killed(out: Path, n: int, settings: CollectSettings, last: int) -> None:
    """A start that is killed in the call with the number `last`."""

    def heard(call: int) -> None:
        if call == last:
            os.kill(os.getpid(), signal.SIGKILL)

    run(out, n, settings, writers=world.counted(heard))


def files(out: Path) -> dict[str, bytes]:
    """Everything but the run's card, which has times, and what was paid, which holds what a killed start has lost."""
    left_out = ("run.json", "spent.jsonl")
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in left_out}


@pytest.mark.parametrize(("settings", "n"), [(SETTINGS, N), (FILTERED, 6)], ids=["plain", "filtered"])
def test_a_collection_killed_at_any_moment_gives_the_same_dataset(
    tmp_path: Path, settings: CollectSettings, n: int
) -> None:
    whole, out, calls, rng = tmp_path / "whole", tmp_path / "killed", list[int](), random.Random(7)
    run(whole, n, settings, writers=world.counted(calls.append))
    fork = multiprocessing.get_context("fork")
    for _ in range(5):  # none of them gets to the end
        child = fork.Process(target=killed, args=(out, n, settings, rng.randrange(1, len(calls) // 5)))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    run(out, n, settings)
    assert files(out) == files(whole)


def test_what_was_not_sealed_is_thrown_away_and_what_was_sealed_is_not_asked_again(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    gone = world.breaking("p6")
    with pytest.raises(BackendError, match="told to fail"):
        collect(world.problems(N), CONFIG, out, settings=SETTINGS, writers=world.writers(gone))
    assert [path.name for path in sorted((out / "chunks").iterdir())] == ["00000", "00001", "00002"]
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    (out / "chunks" / "00003.open").mkdir()
    (out / "chunks" / "00003.open" / "rollouts.jsonl").write_text("torn")
    again = ScriptedBackend(world.written, "weak")
    collect(world.problems(N), CONFIG, out, settings=SETTINGS, writers=world.writers(again))
    assert {request.problem.id for request in again.requests} == {f"p{i}" for i in range(6, N)}
    assert files(out) == whole


@pytest.mark.parametrize("at", [8, 11, 20])
def test_ctrl_c_loses_at_most_the_call_in_hand_where_the_models_are_not_the_labs(tmp_path: Path, at: int) -> None:
    config = Config.load(None, ["critic.candidates=2", 'models.weak.model="llamacpp/other.gguf"'])
    calls: list[int] = []
    collect(world.problems(4), config, tmp_path / "whole", settings=SETTINGS, writers=world.counted(calls.append))

    def stopping(call: int) -> None:
        if call == at:
            raise KeyboardInterrupt

    out, again = tmp_path / "out", list[int]()
    with pytest.raises(KeyboardInterrupt):
        collect(world.problems(4), config, out, settings=SETTINGS, writers=world.counted(stopping))
    assert (out / "dataset.jsonl").exists()
    collect(world.problems(4), config, out, settings=SETTINGS, writers=world.counted(again.append))
    assert (out / "dataset.jsonl").read_bytes() == (tmp_path / "whole/dataset.jsonl").read_bytes()
    in_hand = 8 * 4 if at == 20 else 1  # a scripted weak model is asked for all that waits at once
    assert at + len(again) <= len(calls) + in_hand


class ServiceUnavailable(Exception):
    """As a client may call it: nothing in its name says that it is an error."""


OUTAGES = [
    ConnectionError("refused"),
    ServiceUnavailable("come back later"),
    LMProviderError("the provider failed", status=503),
    TimeoutError("no answer"),
]


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda error: type(error).__name__)
def test_a_critic_that_is_gone_stops_the_collection_at_once_and_nothing_of_the_chunk_is_kept(
    tmp_path: Path, whole: dict[str, bytes], outage: Exception
) -> None:
    asked, out = [], tmp_path / "out"
    writers = world.writers()
    lm = writers.localizer.get_lm()
    honest = lm._replies

    def replies(messages: Any) -> str:
        asked.append(messages)
        if len(asked) > 12:  # in the second chunk
            raise outage
        return honest(messages)

    lm._replies = replies
    with pytest.raises(BackendError, match=r"nothing of this chunk is kept: .*(refused|later|failed|answer)"):
        run(out, writers=writers)
    sealed = [path.name for path in sorted((out / "chunks").iterdir())]
    assert sealed
    assert len(asked) == 13  # the others need not wait for it too
    if outage is OUTAGES[0]:  # whatever it was, it goes on in the same way
        run(out)
        assert files(out) == whole


def test_a_critic_that_refuses_one_prompt_costs_that_item_alone(tmp_path: Path) -> None:
    writers = world.writers()
    lm = writers.localizer.get_lm()
    honest, refused = lm._replies, []

    def replies(messages: Any) -> str:
        request = messages[-1]["content"]
        if "location" not in wanted(request) and "Add 20, 6, 29, 43." in request:
            refused.append(messages)
            raise LMInvalidRequestError("the prompt was flagged", status=400)
        return honest(messages)

    lm._replies = replies
    run(tmp_path, 4, writers=writers)
    located = read_stage(tmp_path, "located")
    lost = [row for row in located if row.problem == "p1"]
    assert len(refused) == len(lost) > 0
    for row in lost:
        assert row.failed == "LMInvalidRequestError: the prompt was flagged"
        assert row.cause == Failure("refused", row.failed)
    assert all(row.cause is None and not row.failed for row in located if row.problem != "p1")
    assert {row.problem for row in read_stage(tmp_path, "candidates")} == {"p0", "p2", "p3"}
    assert funnel(tmp_path)["localizations that failed"] == len(lost)


def test_a_weak_model_that_is_gone_says_so_whatever_share_of_the_rollouts_failed() -> None:
    class Gone(ScriptedBackend):
        def continue_solutions(self, requests: Any) -> Any:
            failed = Completion.of_failure(Failure("gone", "connection reset"))
            return [failed, *super().continue_solutions(requests)[1:]]

    with pytest.raises(BackendError, match="connection reset"):
        sample_rollouts(world.chunk(world.problems(4)), Gone(world.written, "weak"))


def test_a_full_disk_leaves_the_chunk_unsealed(tmp_path: Path) -> None:
    def written(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        end = f" so {'o' * 9_000}." if problem.id == "p3" else "."
        return world.written(problem, prefix, seed).replace(".", end)

    writers = world.writers(ScriptedBackend(written, "weak"))
    with limits.no_file_over(8_000), pytest.raises(OSError, match="too large"):
        run(tmp_path, 4, writers=writers)
    assert (tmp_path / "chunks" / "00000").is_dir()
    assert not (tmp_path / "chunks" / "00001").exists()


def test_another_configuration_settings_or_problems_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, n=2)
    with pytest.raises(DataError, match=r"other settings: seed was 0, now 1"):
        collect(
            world.problems(2), CONFIG.model_copy(update={"seed": 1}), out, settings=SETTINGS, writers=world.writers()
        )
    with pytest.raises(DataError, match="other arguments"):
        run(out, n=3)
    changed = SETTINGS.model_copy(update={"guided": 9})
    with pytest.raises(DataError, match="other arguments"):
        collect(world.problems(2), CONFIG, out, settings=changed, writers=world.writers())


def test_the_dataset_its_card_and_the_rows_of_each_stage_agree(tmp_path: Path) -> None:
    problems = [*world.problems(4), Problem("bad", "Add ((.", "((")]
    path = collect(problems, CONFIG, tmp_path, settings=SETTINGS, writers=world.writers(), licence="cc-by-4.0")
    card = json.loads(path.with_suffix(".md").read_text().partition("```json\n")[2].partition("\n```")[0])
    counts = funnel(tmp_path)
    assert card["funnel"] == counts
    assert set(card["problems"]["left out"]) == {"bad"}
    assert card["models"] == {"rollouts": ["weak"], "located": ["critic"], "candidates": ["critic"], "guided": ["weak"]}
    assert card["settings"]["configuration"] == CONFIG.hash
    examples = read_examples(path)
    assert examples == read_stage(tmp_path, "examples")
    assert counts["examples"] == len(examples) > 0
    assert counts["rollouts"] == 12
    assert counts["errors located"] == counts["failed attempts"] > 0
    assert counts["candidates"] == sum(counts[name] for name in _FATES) > 0
    phases = [row.phase for row in read_stage(tmp_path, "guided")]
    assert (counts["guided rollouts"], counts["fresh rollouts"]) == (
        len(phases) - phases.count("fresh"), phases.count("fresh"),
    )  # fmt: skip
    assert all(read_stage(tmp_path, name) for name in ROWS)


def test_the_line_beside_the_bar_is_that_of_the_rows_and_says_what_an_earlier_start_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, n=6)
    counts = funnel(tmp_path)
    share = counts["guided rollouts that end right"] / counts["guided rollouts"]
    tokens = sum(row.usage.generated_tokens for name in WRITTEN for row in read_stage(tmp_path, name))
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"collecting: 6/6, 0 s, examples {counts['examples']}, guided {share:.0%} right" in re.sub(
        r", \d+ s(?:, [\d.]+/(?:s|min))?", ", 0 s", last
    )
    assert "tokens/s" in last
    assert sum(row["usage"]["generated_tokens"] for row in read_rows(tmp_path / "spent.jsonl")) == tokens > 0
    run(tmp_path, n=6)  # all of it was done before: there is no rate
    again = capsys.readouterr().err.splitlines()[-1]
    assert f"examples {counts['examples']}" in again
    assert "tokens/s" not in again


def capped_at(limit: int | None) -> Config:
    cap = [] if limit is None else [f"budget.total_tokens={limit}"]
    return Config.load(None, ["critic.candidates=2", "critic.max_tokens=64", *cap])


def test_a_collection_that_met_a_cap_goes_on_when_it_is_raised_and_ends_as_if_there_had_been_none(
    tmp_path: Path,
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "capped"
    collect(world.problems(N), capped_at(None), whole, settings=SETTINGS, writers=world.writers())
    used = sum(row.usage.generated_tokens for name in WRITTEN for row in read_stage(whole, name))

    def capped(limit: int) -> Path:
        return collect(world.problems(N), capped_at(limit), out, settings=SETTINGS, writers=world.writers())

    with pytest.raises(BudgetExceededError, match=r"budget\.total_tokens"):
        capped(used * 5 // 8)
    sealed = len(list((out / "chunks").iterdir()))
    assert 0 < sealed < N // 2
    with pytest.raises(BudgetExceededError, match=r"budget\.total_tokens"):
        capped(used * 5 // 8 + 1)
    assert len(list((out / "chunks").iterdir())) == sealed
    capped(used * 10)
    assert files(out) == files(whole)


def test_what_was_spent_before_there_was_a_cap_counts_under_it(tmp_path: Path) -> None:
    gone = world.breaking("p6")
    with pytest.raises(BackendError, match="told to fail"):
        collect(world.problems(N), capped_at(None), tmp_path, settings=SETTINGS, writers=world.writers(gone))
    used = sum(row["usage"]["generated_tokens"] for row in read_rows(tmp_path / "spent.jsonl"))
    assert used >= sum(row.usage.generated_tokens for name in WRITTEN for row in read_stage(tmp_path, name)) > 0
    untouched = ScriptedBackend(world.written, "weak")
    with pytest.raises(BudgetExceededError, match=f"{used:,} spent"):
        collect(world.problems(N), capped_at(used + 50), tmp_path, settings=SETTINGS, writers=world.writers(untouched))
    assert not untouched.requests


def test_a_false_equation_is_counted_and_goes_no_further_unless_that_is_switched_off(tmp_path: Path) -> None:
    def models() -> Any:
        made = world.writers()
        lm = made.proposer.get_lm()
        honest = lm._replies
        lm._replies = lambda messages: (
            honest(messages).replace(" = ", " = 9") if is_proposal(messages) else honest(messages)
        )
        return made

    def is_proposal(messages: Any) -> bool:
        return "location" in wanted(messages[-1]["content"])

    for name, on in (("on", True), ("off", False)):
        settings = SETTINGS.model_copy(update={"check_sums": on})
        collect(world.problems(4), CONFIG, tmp_path / name, settings=settings, writers=models())
    on, off = funnel(tmp_path / "on"), funnel(tmp_path / "off")
    assert on["candidates with a false equation"] > 0 == on["candidates guided"]
    assert off["candidates with a false equation"] == 0 < off["candidates guided"]
