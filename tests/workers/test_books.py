"""What workers share, without Ray: two desks at the same books, books that are opened anew, tasks that are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import Config
from stepwise.errors import BudgetExceededError
from stepwise.io import read_rows
from stepwise.models.books import Books
from stepwise.models.desk import Desk
from stepwise.models.store import Answer
from stepwise.runs.chunks import Part, run_chunks
from stepwise.runs.directory import opened
from stepwise.types import Usage


class Direct:
    """The way to the books where they are in the same process; `books` may be replaced."""

    def __init__(self, books: Books) -> None:
        self.books = books

    def call(self, method: str, *args: Any) -> Any:
        return self.books.call(method, *args)

    async def acall(self, method: str, *args: Any) -> Any:
        return await self.books.call(method, *args)

    tell = call

    def flush(self) -> None:
        pass


def config_of(**caps: int) -> Config:
    return Config.load(None, [f"budget.{name}={cap}" for name, cap in caps.items()])


def books_of(folder: Path, config: Config, start: str = "a", keeps: bool = False) -> Books:
    return Books(config, folder, keeps=keeps, start=start)


def used(tokens: int) -> Usage:
    return Usage("lab-weak", 1, 10, 10, tokens, cost=0.0)


def test_a_cap_holds_over_all_workers_and_who_waits_gets_what_another_gives_back(tmp_path: Path) -> None:
    config = config_of(total_tokens=100)
    line = Direct(books_of(tmp_path, config))
    first, second = Desk(config, line, keeps=False), Desk(config, line, keeps=False)

    async def both() -> list[int]:
        one = await first.ledger.for_problem().areserve("weak", 80)
        waiting = asyncio.ensure_future(second.ledger.for_problem().areserve("weak", 60))
        await asyncio.sleep(0)
        assert not waiting.done()  # 80 are set aside, and may be given back
        one.settle(used(30))
        two = await waiting
        two.settle(used(60))
        with pytest.raises(BudgetExceededError, match=r"budget\.total_tokens = 100: 90 spent"):
            await first.ledger.for_problem().areserve("weak", 11)
        cut = await second.ledger.for_problem().areserve("weak", 11, least_tokens=4)
        return [cut.max_tokens, cut.cut_by == "budget.total_tokens"]

    assert asyncio.run(both()) == [10, True]
    assert [row["usage"]["generated_tokens"] for row in read_rows(tmp_path / "spent.jsonl")] == [30, 60]
    assert first.ledger.unspent("total_tokens") == 10
    assert first.ledger.left_of("budget.total_tokens") == "budget.total_tokens has 10 of 100 left"


def test_books_that_are_opened_anew_hold_what_was_held(tmp_path: Path) -> None:
    config = config_of(total_tokens=100)
    line = Direct(books_of(tmp_path, config))
    desk = Desk(config, line, keeps=False)

    async def killed_between() -> None:
        settled = await desk.ledger.areserve("weak", 20)
        settled.settle(used(15))
        held = await desk.ledger.areserve("weak", 70)
        line.books = books_of(tmp_path, config)  # the process was killed, and begins again
        assert line.books.ledger.remaining()["total_tokens"] == 15
        with pytest.raises(BudgetExceededError):
            line.books.ledger.reserve("weak", 16)
        held.settle(used(50))
        assert line.books.ledger.remaining()["total_tokens"] == 35
        line.books.settle(held.name, used(50), None)  # the same message again, since its answer was lost
        assert line.books.ledger.remaining()["total_tokens"] == 35

    asyncio.run(killed_between())
    assert books_of(tmp_path, config).ledger.remaining()["total_tokens"] == 35


def test_the_same_request_for_a_hold_is_granted_once(tmp_path: Path) -> None:
    books = books_of(tmp_path, config_of(total_tokens=100))
    assert [books.hold("t/0", "t", "weak", 60, 5, 1) for _ in range(3)] == [(60, "")] * 3
    assert books.ledger.remaining()["total_tokens"] == 40


def test_what_a_lost_worker_had_begun_counts_at_its_most(tmp_path: Path) -> None:
    config = config_of(total_tokens=100)
    books = books_of(tmp_path, config)
    books.hold("4/0/0", "4/0", "weak", 60, 5, 1)
    books.hold("5/0/0", "5/0", "weak", 20, 5, 1)
    books.lose("4/0")
    assert books.ledger.usage("weak").generated_tokens == 60
    assert books.ledger.remaining()["total_tokens"] == 20
    later = books_of(tmp_path, config, start="b")  # the run was begun again: its workers are gone too
    assert later.ledger.usage("weak").generated_tokens == 80


def test_a_request_that_a_lost_worker_had_sent_counts_once(tmp_path: Path) -> None:
    config = Config.load(None, ["models.strong.model=openai/M", "models.strong.api_base=http://localhost:9/v1",
                                "budget.total_tokens=500", "allow_lab=true"])  # fmt: skip
    books = books_of(tmp_path, config, keeps=True)
    most = Usage("M", 1, 40, 40, 64)
    for task, key in (("4/0", "k1"), ("5/0", "k2")):
        books.hold(f"{task}/0", task, "strong", 64, 40, 1)
        books.begin(key, "strong", "p", most, task)
    books.add([tuple(Answer("k2", "strong", "p", used(9), {"text": "So 3."}))], "5/0")
    books.settle("5/0/0", used(9), None)
    books.lose("4/0")
    books.lose("5/0")
    assert books.ledger.usage("strong").generated_tokens == 73
    assert books.find("k2") == {"text": "So 3."}
    assert books.find("k1") is None
    assert books.of_store("perhaps", "p")["strong"].generated_tokens == 64
    books.close()
    assert books_of(tmp_path, config, start="b", keeps=True).ledger.usage("strong").generated_tokens == 73


def test_a_worker_that_is_lost_while_it_waits_gets_nothing(tmp_path: Path) -> None:
    books = books_of(tmp_path, config_of(total_tokens=100))

    async def waits() -> None:
        books.hold("1/0/0", "1/0", "weak", 90, 5, 1)
        waiting = asyncio.ensure_future(books.wait("2/0/0", "2/0", "weak", 50, 5, 1, 0))
        await asyncio.sleep(0)
        books.lose("2/0")
        books.settle("1/0/0", used(10), None)
        await waiting

    asyncio.run(waits())
    assert books.ledger.remaining()["total_tokens"] == 90


def test_what_an_earlier_start_lost_is_done_again_under_the_same_name(tmp_path: Path) -> None:
    config = config_of(total_tokens=200)
    books_of(tmp_path, config).hold("a/0", "3/0", "weak", 60, 5, 1)  # and the run is killed
    books = books_of(tmp_path, config, start="b")

    async def waits() -> tuple[int, str]:
        books.hold("b/0", "4/0", "weak", 100, 5, 1)
        waiting = asyncio.ensure_future(books.wait("b/1", "3/0", "weak", 50, 5, 1, 0))
        await asyncio.sleep(0)
        books.settle("b/0", used(10), None)
        return await waiting

    assert asyncio.run(waits()) == (50, "")


def test_what_a_lost_worker_still_asks_for_is_not_set_aside(tmp_path: Path) -> None:
    config = Config.load(None, ["models.strong.model=openai/M", "models.strong.api_base=http://localhost:9/v1",
                                "budget.total_tokens=500", "allow_lab=true"])  # fmt: skip
    books = books_of(tmp_path, config, keeps=True)
    books.lose("4/0")
    assert books.hold("4/0/1", "4/0", "strong", 64, 40, 1) == (0, "")  # nobody would give it back
    books.begin("k", "strong", "p", Usage("M", 1, 40, 40, 64), "4/0")  # its last words, on the way when it died
    assert books.ledger.usage("strong").generated_tokens == 64
    assert books.ledger.remaining()["total_tokens"] == 436
    books.close()
    assert books_of(tmp_path, config, start="b", keeps=True).ledger.usage("strong").generated_tokens == 64


def test_what_is_in_flight_is_not_taken_for_spent_where_the_next_chunk_is_reckoned(tmp_path: Path) -> None:
    books = books_of(tmp_path, config_of(total_tokens=100))
    books.hold("0/0/0", "0/0", "weak", 20, 5, 1)
    books.settle("0/0/0", used(20), None)
    books.hold("1/0/0", "1/0", "weak", 60, 5, 1)
    books.check(2, 6)  # 10 for each, and room for 8
    with pytest.raises(BudgetExceededError, match="20 spent on 2 problems"):
        books.check(2, 9)


def test_nothing_is_reckoned_before_a_chunk_is_sealed(tmp_path: Path) -> None:
    checked = list[tuple[int, int]]()

    class TwoAtOnce:
        def check(self, done: int, coming: int) -> None:
            checked.append((done, coming))

        def map(self, work: Any, parts: Iterable[Part]) -> Iterator[tuple[int, dict[str, str]]]:
            rest = iter(parts)
            in_hand = [next(rest), next(rest)]
            while in_hand:
                yield in_hand.pop(0)[0], {"rows": ""}
                in_hand += islice(rest, 1)

    with opened(tmp_path / "o", program="test", config=Config.lab(), arguments={}) as directory:
        run_chunks(
            directory, range(12), 4, ["rows"], lambda *_: {}, lambda: tmp_path, crew=TwoAtOnce(), label="testing"
        )
    assert checked == [(0, 4), (0, 8), (6, 6)]


def test_without_caps_nothing_is_asked_and_all_is_counted(tmp_path: Path) -> None:
    config = Config.lab()
    line = Direct(books_of(tmp_path, config))
    desk = Desk(config, line, keeps=False)

    def work() -> None:
        asyncio.run(asks())

    async def asks() -> None:
        for tokens in (3, 4):
            (await desk.ledger.for_problem().areserve("weak", 64)).settle(used(tokens))

    desk.run("0/0", work)
    assert line.books.totals()["calls"] == 3  # two that tell, one that ends
    assert line.books.ledger.usage("weak").generated_tokens == 7
    assert not [row for row in read_rows(tmp_path / "holds.jsonl") if "name" in row]


def test_what_the_accounts_of_problems_counted_is_in_the_summary(tmp_path: Path) -> None:
    config = Config.load(None, ["budget.problem.total_tokens=50"])
    line = Direct(books_of(tmp_path, config))
    desk = Desk(config, line, keeps=False)

    async def asks() -> None:
        account = desk.ledger.for_problem()
        (await account.areserve("weak", 40)).settle(used(35))
        with pytest.raises(BudgetExceededError, match=r"budget\.problem\.total_tokens"):
            await account.areserve("weak", 40)

    desk.run("0/0", lambda: asyncio.run(asks()))
    summary = line.books.ledger.summary()
    assert "cap on total_tokens of each problem: 50, at most 35 spent by one" in summary
    assert "requests refused by budget.problem.total_tokens: 1" in summary


def test_what_the_first_worker_found_out_holds_for_all(tmp_path: Path) -> None:
    config = Config.lab()
    line = Direct(books_of(tmp_path, config))
    first, second = Desk(config, line, keeps=False), Desk(config, line, keeps=False)
    assert first.freeze("m", {"threads": 4}) == {"threads": 4}
    assert second.freeze("m", {"threads": 64}) == {"threads": 4}
    assert Direct(books_of(tmp_path, config)).books.frozen("m") == {"threads": 4}
