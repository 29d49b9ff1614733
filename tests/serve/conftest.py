"""Servers on a free port of loopback, each in a thread: on the lab's models, and on models that follow a script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from stepwise.config import Config
from stepwise.errors import BackendError
from stepwise.models.budget import Ledger
from stepwise.models.scorers import Item, Scored
from stepwise.routing.policies import Never
from stepwise.routing.router import StepRouter
from stepwise.serve.running import RunningServer
from stepwise.serve.service import Service
from stepwise.types import Problem
from tests.fakes import Line, ScriptedBackend, ScriptedScorer

Serve = Callable[..., Any]


@contextmanager
def served(
    router: StepRouter, config: Config, ledger: Ledger | None = None, ledgers: Mapping[str, Ledger] | None = None,
    secrets: Mapping[str, str] | None = None, grace: float = 30.0, patience: float = 30.0, **more: Any,
) -> Iterator[tuple[RunningServer, httpx.Client]]:  # fmt: skip
    """A running server, and a client of it."""
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"port": 0})})
    server, ready = (
        RunningServer(router, config, ledger or Ledger.for_config(config), ledgers, secrets, grace, patience, **more),
        threading.Event(),
    )
    thread = threading.Thread(target=server.run, args=(ready.set,), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            yield server, client
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def lab_router() -> Iterator[StepRouter]:
    with Service.router(Config.lab()) as router:
        yield router


@pytest.fixture(scope="session")
def lab(lab_router: StepRouter) -> Iterator[httpx.Client]:
    """A client of a server on the lab's models."""
    with served(lab_router, Config.lab()) as (_, client):
        yield client


class _Scorer(ScriptedScorer):
    broken = False

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        if self.broken:
            raise BackendError("the scorer was told to fail")
        return super().score_detailed(items)


class World:
    """Models that follow a script: three steps that repeat the question, by a weak model whose second scores low."""

    def __init__(self) -> None:
        self.weak = ScriptedBackend(self._script("weak"), "scripted-weak")
        self.strong = ScriptedBackend(self._script("strong"), "scripted-strong")
        self.scorer = _Scorer(self._scores)
        self.wait = threading.Event()
        """what every step of a question with "slow" in it waits for, and with "later" every one but the first"""

    def _script(self, role: str) -> Callable[[Problem, tuple[str, ...], int], Line]:
        def write(problem: Problem, prefix: tuple[str, ...], seed: int) -> Line:
            if "slow" in problem.question or ("later" in problem.question and prefix):
                assert self.wait.wait(30)
            return Line(self.steps(problem.question, [role] * 3)[len(prefix)])

        return write

    @staticmethod
    def steps(question: str, roles: Sequence[str] = ("weak", "strong", "weak")) -> list[str]:
        return [
            f"{roles[0]} begins {question}",
            f"{roles[1]} goes on with {question}",
            rf"{roles[2]}: \boxed{{{question}}}",
        ]

    @staticmethod
    def _scores(problem: Problem, steps: tuple[str, ...]) -> list[float]:
        return [0.1 if step.startswith("weak goes") else 0.9 for step in steps]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def serve(world: World) -> Iterator[Serve]:
    """Starts a server on the models of `world`, set by overrides of the configuration; returns a client of it."""
    open_servers = []

    def start(*overrides: str, ledger: Ledger | None = None, **more: Any) -> httpx.Client:
        router = StepRouter(world.weak, world.strong, world.scorer, Never(), allow_lab=True)
        running = served(router, Config.load(None, overrides), ledger, **more)
        open_servers.append(running)
        return running.__enter__()[1]

    yield start
    world.wait.set()
    for running in open_servers:
        running.__exit__(None, None, None)


def ask(client: httpx.Client, question: str, *, key: str = "", **fields: Any) -> httpx.Response:
    """A chat request with one question."""
    body = {"model": "router", "messages": [{"role": "user", "content": question}], **fields}
    return client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"} if key else {})
