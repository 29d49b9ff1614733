"""A client of hosted models that is killed with answers in flight, and goes on with the answers that were kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from stepwise.config import ModelConfig
from stepwise.models.base import Request
from stepwise.models.budget import Ledger
from stepwise.models.driver import Driver
from stepwise.models.endpoints import Endpoints
from stepwise.models.litellm import LiteLLMBackend
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.types import Problem, Usage
from tests.models.test_litellm import reply
from tests.scorers.stand_in import Answer, StandIn

NEEDED = 12 * 3


def client(path: str, *addresses: str) -> int:
    """How many of the answers to 12 problems, 3 samples of each, are the ones that `slow` gives; kept in `path`."""
    fields: dict[str, Any] = {"model": "openai/m", "continuation": "prefill", "sequences": 4}
    if len(addresses) > 1:
        fields["endpoints"] = [{"api_base": address} for address in addresses]
    else:
        fields["api_base"] = addresses[0]
    make = Endpoints if len(addresses) > 1 else LiteLLMBackend
    with make(ModelConfig(**fields)) as backend, CallCache(path, replays_are_free=True) as store:
        model = Wrappers(Ledger(), store=store).model(backend, "weak")
        requests = [Request(Problem(f"p{i}", f"What is {i} + {i}?"), n=3, max_tokens=50) for i in range(12)]
        made = Driver(exact=False).run([model.generate(request) for request in requests])
    return sum(sample.text == "fine" for each in made for sample in each.samples)


def slow(_: str, body: dict[str, Any]) -> Answer:
    """What servers of a test answer, late enough for something to be in flight when the client is killed."""
    time.sleep(0.03)
    return reply("fine")


class AfterKill(NamedTuple):
    """Requests bought again, requests whose answer was not there after the kill, and what the store says at the end."""

    lost: int
    open_requests: int
    perhaps: Usage | None
    spent: Usage


def killed_and_gone_on_with(path: Path, addresses: list[str], answering: list[StandIn]) -> AfterKill:
    """Kill a client in a process of its own once the servers `answering` were sent 12 requests, and go on here."""

    def asked() -> int:
        return sum(len(server.requests) for server in answering)

    command = [sys.executable, "-c", "import sys; from tests.models.killed import client; client(*sys.argv[1:])"]
    with subprocess.Popen([*command, str(path), *addresses], cwd=Path(__file__).parents[2]) as process:
        while asked() < 12 and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with CallCache(path) as store:
        open_requests = len(store.unanswered)
    assert client(str(path), *addresses) == NEEDED
    with CallCache(path) as store:
        return AfterKill(asked() - NEEDED, open_requests, store.perhaps().get("weak"), store.spent()["weak"])
