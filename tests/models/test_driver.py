"""The driver: batches follow from the inputs, nobody waits for itself, and what fails or is stopped ends cleanly."""

from __future__ import annotations

import asyncio
import contextvars
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import ModelConfig
from stepwise.errors import BackendError
from stepwise.models import load_backend
from stepwise.models.base import Completion, Request
from stepwise.models.driver import Batcher, Driver, outside
from stepwise.models.engine.worker import Worker
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.types import Problem, Step
from tests.fakes import ScriptedBackend

PROBLEMS = [Problem(f"p{i}", f"Mia has {i} apples and buys {i + 3} more. How many has she?") for i in range(8)]


@pytest.fixture(scope="module")
def model(tiny_gguf_path: Path) -> Iterator[LlamaCppBackend]:
    config = ModelConfig(model=f"llamacpp/{tiny_gguf_path}", context=512, kv_type="f32", flash_attention=False)
    loaded = load_backend(config)
    assert isinstance(loaded, LlamaCppBackend)
    with loaded:
        yield loaded


def request(problem: Problem, steps: list[Step], seed: int = 0) -> Request:
    return Request(problem, tuple(steps), max_tokens=5 + seed % 7, temperature=0.9, seed=seed, stop="solution")


async def solve(model: LlamaCppBackend, problem: Problem, delay: random.Random | None = None) -> list[Completion]:
    """Three pieces of a solution, each in another way of waiting."""
    steps: list[Step] = []
    results = []
    for index in range(3):
        if delay is not None:  # a server that answers when it likes, or a thread that does
            pause = delay.random() * 0.01
            await (asyncio.to_thread(time.sleep, pause) if index % 2 else outside(asyncio.sleep(pause)))
        one = request(problem, steps, index)
        if delay is not None and index == 2:  # a synchronous door, as LiteLLM's handler has one
            result = (await asyncio.to_thread(model.continue_solutions, [one]))[0]
        else:
            result = await model.generate(one)
        steps.append(Step(result.text, "weak", usage=result.usage, token_ids=result.token_ids))
        results.append(result)
    return results


def test_runs_are_equal_to_the_bit_whatever_the_clock_does(model: LlamaCppBackend) -> None:
    runs, calls = [], []
    for seed in range(4):
        model.reset_cache()
        before = model.engine.counters.decode_calls
        delay = random.Random(seed)
        runs.append(Driver([model.engine]).run([solve(model, problem, delay) for problem in PROBLEMS]))
        calls.append(model.engine.counters.decode_calls - before)
    assert runs[0] == runs[1] == runs[2] == runs[3]  # texts, ids and every log-probability
    assert len(set(calls)) == 1


def test_a_batch_of_coroutines_is_the_batch_of_one_call(model: LlamaCppBackend) -> None:
    requests = [request(problem, [], 3) for problem in PROBLEMS]
    model.reset_cache()
    together = model.continue_solutions(requests)
    model.reset_cache()
    before = model.engine.counters.decode_calls
    results = Driver([model.engine]).run([model.generate(one) for one in requests])
    assert [(r.text, r.logprobs) for r in results] == [(r.text, r.logprobs) for r in together]
    assert model.engine.counters.decode_calls - before <= 5 + 3 + 1


def test_a_coroutine_that_ends_a_step_joins_the_running_batch_at_the_next_token(model: LlamaCppBackend) -> None:
    model.reset_cache()
    before = model.engine.counters.decode_calls
    results = Driver([model.engine]).run([solve(model, problem) for problem in PROBLEMS])
    longest = max(sum(len(result.token_ids) for result in steps) for steps in results)
    assert model.engine.counters.decode_calls - before <= longest + 3  # no turn for waiting; the first reads prompts


def test_a_synchronous_door_on_the_drivers_own_thread_raises(model: LlamaCppBackend) -> None:
    async def wrong() -> list[Completion]:
        return model.continue_solutions([request(PROBLEMS[0], [])])

    with pytest.raises(BackendError, match="await the model's coroutine"):
        Driver([model.engine]).run([wrong()])

    async def nested() -> Any:
        return Driver().run([asyncio.sleep(0)])

    with pytest.raises(BackendError, match="would wait for itself"):
        Driver().run([nested()])


def test_other_threads_and_drivers_are_served_while_one_has_the_engine(model: LlamaCppBackend) -> None:
    async def other(problem: Problem) -> Completion:
        """A whole run of another driver, inside a thread that a coroutine of this one waits for."""
        inner = asyncio.to_thread(lambda: Driver([model.engine]).run([model.generate(request(problem, [], 1))]))
        return (await inner)[0]

    outcome: list[Any] = []
    stranger = threading.Thread(target=lambda: outcome.extend(model.continue_solutions([request(PROBLEMS[0], [], 2)])))

    async def hold() -> None:
        stranger.start()
        await asyncio.to_thread(stranger.join, 20)

    results = Driver([model.engine]).run([other(PROBLEMS[1]), hold(), other(PROBLEMS[2])])
    assert results[0].finish != "error"
    assert outcome[0].text == model.continue_solutions([request(PROBLEMS[0], [], 2)])[0].text


def test_adapters_and_caches_are_changed_between_turns_from_any_thread(model: LlamaCppBackend) -> None:
    async def change() -> None:
        await asyncio.to_thread(model.reset_cache)
        await asyncio.to_thread(model.set_adapter, None)

    results = Driver([model.engine]).run([solve(model, PROBLEMS[0]), change(), solve(model, PROBLEMS[1])])
    assert len(results[0]) == len(results[2]) == 3


def test_after_a_run_the_engine_has_its_own_thread_again(model: LlamaCppBackend) -> None:
    for exact in (True, False):
        Driver([model.engine], exact=exact).run([solve(model, problem) for problem in PROBLEMS[:2]])
        assert model.continue_solutions([request(PROBLEMS[0], [])])[0].finish != "error"


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_what_one_coroutine_raises_cancels_the_others_and_is_raised(error: BaseException) -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise error

    with pytest.raises(type(error)):
        Driver().run([waits(), fails(), waits()])
    assert ended == ["cancelled"] * 2
    assert Driver().run([asyncio.sleep(0, "still works")]) == ["still works"]


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_waits_for_the_turn_that_an_engine_is_in() -> None:
    said: list[str] = []

    async def turns() -> None:
        os.kill(os.getpid(), signal.SIGINT)  # which the main thread gets, in its wait
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)  # somebody is impatient
        time.sleep(0.2)
        said.append("the turn is over")

    with pytest.raises(KeyboardInterrupt):
        Driver().run([turns()])
    assert said == ["the turn is over"]  # else its engine would be freed in the middle of it


class _InATurn:
    """A scheduler in the middle of a turn, which ends when it is allowed to."""

    def __init__(self) -> None:
        self.busy = self.interrupted = True
        self.begun, self.may_end, self.ended = threading.Event(), threading.Event(), False

    def add(self, units: list[Any]) -> None: ...

    def turn(self) -> None:
        self.begun.set()
        self.may_end.wait(10)
        self.busy, self.ended = False, True

    def abandon(self, error: Exception) -> list[Any]:
        return []


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_while_an_engine_is_closed_waits_for_its_turn_also_the_second_time() -> None:
    scheduler = _InATurn()
    worker = Worker(scheduler)  # type: ignore[arg-type]
    assert scheduler.begun.wait(10)

    def impatient() -> None:
        for _ in range(3):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        scheduler.may_end.set()

    threading.Thread(target=impatient).start()
    with pytest.raises(KeyboardInterrupt):
        worker.stop()
    assert scheduler.ended  # a `join` returns at once after one that was broken off, and the context would be freed
    worker.stop()


def test_no_thread_is_joined() -> None:
    calls = [path.name for path in sorted(Path("stepwise").rglob("*.py"))
             if re.search(r"(?:[Tt]hread|watcher)\w*\.join\(", path.read_text(encoding="utf-8"))]  # fmt: skip
    assert not calls  # Ctrl-C makes the next join return at once; wait for an event that the thread sets last


def test_at_most_a_window_of_coroutines_is_open() -> None:
    running, most = 0, 0

    async def work(index: int) -> int:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.002 * (index % 3))
        running -= 1
        return index

    assert Driver().run([work(i) for i in range(30)], window=4) == list(range(30))
    assert most == 4


def test_coroutines_run_in_the_callers_context() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")
    name.set("caller")

    async def read() -> tuple[str, str]:
        return name.get(), await asyncio.to_thread(name.get)

    assert Driver().run([read()]) == [("caller", "caller")]


def test_a_batcher_takes_everything_that_waits_when_it_is_free() -> None:
    batches: list[list[int]] = []

    def work(items: list[int]) -> list[int]:
        batches.append(items)
        return [item * 10 for item in items]

    batcher: Batcher[int, int] = Batcher(work)

    async def ask(index: int) -> int:
        first = await batcher.ask(index)
        return await batcher.ask(first) if index % 2 else first

    assert Driver().run([ask(i) for i in range(4)]) == [0, 100, 20, 300]
    assert batches == [[0, 1, 2, 3], [10, 30]]
    assert asyncio.run(batcher.ask(7)) == 70  # in somebody else's loop


def test_many_drivers_share_a_model_that_only_knows_batches() -> None:
    model = ScriptedBackend(lambda problem, prefix, seed: f"{problem.id} {len(prefix)}")
    results: list[Any] = []

    def run(problem: Problem) -> None:
        for index in range(20):
            results.extend(Driver().run([model.generate(Request(problem, seed=index))]))

    threads = [threading.Thread(target=run, args=(problem,)) for problem in PROBLEMS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(results) == 20 * len(PROBLEMS)


def test_a_thread_that_hangs_is_not_waited_for_when_the_run_is_stopped() -> None:
    go = threading.Event()

    async def hangs() -> None:
        await asyncio.to_thread(go.wait, 30)

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("enough")

    began = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        Driver().run([hangs(), fails()])
    assert time.monotonic() - began < 10
    go.set()


def test_a_run_from_reset_caches_is_that_of_a_model_just_loaded(tiny_gguf_path: Path) -> None:
    """What is killed and done again in a new process must not differ from what went on in an old one."""
    config = ModelConfig(model=f"llamacpp/{tiny_gguf_path}", context=512, kv_type="f32", flash_attention=False)
    with load_backend(config) as fresh:  # type: ignore[attr-defined]
        first = Driver([fresh.engine]).run([solve(fresh, problem) for problem in PROBLEMS])
        for size in (3, 7, 5):  # leaves gaps between streams behind
            Driver([fresh.engine]).run([solve(fresh, problem) for problem in PROBLEMS[:size]])
        fresh.reset_cache()
        again = Driver([fresh.engine]).run([solve(fresh, problem) for problem in PROBLEMS])
    assert again == first
