"""Several processes under the same caps and with the same answers: nothing is passed, bought twice or waited for in
vain, whoever is killed.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from stepwise.config import CapsConfig
from stepwise.errors import BudgetExceededError, ConfigError, DataError
from stepwise.models.budget import Ledger
from stepwise.models.replicas import SharedCaps
from stepwise.models.store import Answer, CallCache
from stepwise.types import Usage

SPENT = Usage("m", 1, 10, 10, 4)


def ledgers(**caps: int) -> list[Ledger]:
    """A run's, and that of a key under it."""
    run = Ledger(CapsConfig(**caps))
    return [run, run.under(CapsConfig(calls=30), "serve.api_keys.alice")]


def test_a_cap_holds_to_the_call_over_two_replicas_that_are_asked_at_once(tmp_path: Path) -> None:
    both = [ledgers(total_tokens=4 * 50) for _ in range(2)]
    shared = [SharedCaps(tmp_path, f"replica-{i}", each) for i, each in enumerate(both)]
    won = [0, 0]

    def work(place: int) -> None:
        for _ in range(20):
            with suppress(BudgetExceededError), both[place][0].for_problem().reserve("weak", 4) as held:
                held.settle(SPENT)
                won[place] += 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, [0, 1, 0, 1]))
    assert won[0] + won[1] == 50
    assert min(won) > 0
    assert [each[0].remaining()["total_tokens"] for each in both] == [0, 0]
    assert [each[0].usage("weak").calls for each in both] == won  # its own
    for each in shared:
        each.close()


def test_the_cap_of_a_key_holds_over_replicas_and_starts(tmp_path: Path) -> None:
    first = ledgers(total_tokens=1000)
    shared = SharedCaps(tmp_path, "first", first)
    for _ in range(20):
        with first[1].for_problem().reserve("weak", 4) as held:
            held.settle(SPENT)
    second = ledgers(total_tokens=1000)
    other = SharedCaps(tmp_path, "second", second)
    assert second[1].remaining()["calls"] == 10
    with pytest.raises(
        BudgetExceededError, match=r"alice.calls = 30: 20 spent, 0 reserved, and weak asks for up to 11"
    ):
        second[1].reserve("weak", 4, calls=11)
    assert second[0].remaining()["total_tokens"] == 1000 - 80
    shared.close()
    again = ledgers(total_tokens=1000)
    again[0].record("weak", Usage("m", 20, 200, 200, 80))  # as its spent.jsonl says
    third = SharedCaps(tmp_path, "first", again)
    assert second[0].remaining()["total_tokens"] == 1000 - 80
    third.close()
    other.close()


CLIENT = """
import sys, time
from stepwise.config import CapsConfig
from stepwise.models.budget import Ledger
from stepwise.models.replicas import SharedCaps
run = Ledger(CapsConfig(total_tokens=100))
shared = SharedCaps(sys.argv[1], "other", [run])
with run.reserve("weak", 20) as held:
    held.settle(__import__("stepwise").Usage("m", 1, 5, 5, 10))
run.reserve("weak", 60)
print("held", flush=True)
time.sleep(60)
"""


def test_what_a_killed_replica_had_set_aside_counts_as_spent(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", CLIENT, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    mine = Ledger(CapsConfig(total_tokens=100))
    shared = SharedCaps(tmp_path, "mine", [mine])

    async def ask(tokens: int) -> int:
        return (await mine.areserve("weak", tokens)).max_tokens

    with pytest.raises(DataError, match="another process is at work as 'other'"):
        SharedCaps(tmp_path, "other", [Ledger()])
    with pytest.raises(BudgetExceededError, match="10 spent, 60 reserved"):
        mine.reserve("weak", 40)
    with pytest.raises(BudgetExceededError, match="10 spent, 60 reserved"):  # not even if it gives all back
        asyncio.run(ask(91))
    process.kill()
    process.wait()
    with pytest.raises(BudgetExceededError, match="70 spent, 0 reserved"):
        mine.reserve("weak", 40)
    mine.reserve("weak", 30).cancel()
    restarted = Ledger(CapsConfig(total_tokens=100))
    restarted.record("weak", Usage("m", 1, 5, 5, 10))
    again = SharedCaps(tmp_path, "other", [restarted])
    assert restarted.remaining()["total_tokens"] == mine.remaining()["total_tokens"] == 30
    again.close()
    shared.close()


def test_who_waits_for_another_replica_gets_its_turn(tmp_path: Path) -> None:
    both = [Ledger(CapsConfig(total_tokens=10)) for _ in range(2)]
    shared = [SharedCaps(tmp_path, f"replica-{i}", [each]) for i, each in enumerate(both)]
    held = both[0].reserve("weak", 8)

    async def ask() -> int:
        waiting = asyncio.ensure_future(both[1].areserve("weak", 6))
        await asyncio.sleep(0)
        shared[1].poke()
        await asyncio.sleep(0)
        assert not waiting.done()
        held.settle(SPENT)
        shared[1].poke()
        return (await waiting).max_tokens

    assert asyncio.run(asyncio.wait_for(ask(), 10)) == 6
    for each in shared:
        each.close()


def test_what_stands_in_the_directory_must_be_sound(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"budget": {"spent": {"calls": "many"}}}')
    broken = Ledger(CapsConfig(calls=5))
    shared = SharedCaps(tmp_path, "mine", [broken])
    with pytest.raises(DataError, match=r"other.json does not say what a replica has spent; stop all replicas"):
        broken.reserve("weak", 1)
    (tmp_path / "other.json").unlink()
    with pytest.raises(ConfigError, match="no directory to share can be made there"):
        SharedCaps(tmp_path / "mine.json", "mine", [Ledger()])
    broken.reserve("weak", 1).cancel()
    shared.close()


def test_an_answer_that_one_process_was_given_is_found_by_the_others(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with (
        CallCache(path, replays_are_free=True, shared=True) as one,
        CallCache(path, replays_are_free=True, shared=True) as two,
    ):
        one.begin("a", "weak", "p", SPENT)
        assert two.find("a") is None
        one.add([Answer("a", "weak", "p", SPENT, {"text": "fine"})])
        two.add([Answer("b", "weak", "p", SPENT, {"text": "good"})])
        assert two.find("a") == {"text": "fine"}
        assert one.find("b") == {"text": "good"}
        with path.open("ab") as file:  # of a process that was killed as it wrote
            file.write(b'{"key": "c", "role": "we')
        one.add([Answer("d", "weak", "p", SPENT, {"text": "whole"})])
        assert two.find("c") is None
        assert two.find("d") == {"text": "whole"}
    with CallCache(path, shared=True) as later:
        assert len(later) == 3
    with CallCache(path) as alone:
        assert alone.spent()["weak"].calls == 3
        assert alone.unanswered == ()


def test_many_writers_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    caches = [CallCache(path, shared=True) for _ in range(4)]

    def write(place: int) -> None:
        for i in range(50):
            caches[place].add([Answer(f"{place}-{i}", "weak", "p", SPENT, {"n": i})])

    threads = [threading.Thread(target=write, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(caches[0].find(f"{place}-{i}") == {"n": i} for place in range(4) for i in range(50))
    for cache in caches:
        cache.close()
    with CallCache(path) as whole:
        assert len(whole) == 200
