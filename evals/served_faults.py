"""What becomes of requests to `stepwise serve` when the strong model behind it fails, by that model's own books.

A router whose weak and strong model are APIs on loopback (`evals.fault_server`) is served; every step is escalated, so
that each request needs one reply of the strong model, which fails at every `every`-th of its requests (or at each, in
the row "down"). Clients ask `requests` questions, four at a time.

    answered, marked   replies with status 200, and those of them that say that the strong model was down
    refused            replies that say so with another status
    lost               requests without any reply
    again              good replies that the strong model handed over whole beyond those that stand in an answer
    billed             replies that the strong model wrote
    counted, perhaps   those in the server's ledger: by the tokens that replies told, and those that may be billed

Held: none lost, none bought again, everything billed is counted. Writes served_faults.json; exit code 1 otherwise.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from pydantic import PositiveInt

from evals.fault_server import FAULTS, TOKENS, FaultServer
from stepwise.config import Config, ModelConfig
from stepwise.errors import DataError
from stepwise.io import write_text
from stepwise.models.budget import Ledger
from stepwise.models.scorers import ConstantScorer
from stepwise.routing import Always, StepRouter
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.serve.running import RunningServer

_OPEN = 4  # clients at once
_DOWN = "down: 503 at every request"


class _Options(Options):
    requests: PositiveInt = 20
    """questions asked under each fault"""
    every: PositiveInt = 5
    """which of the strong model's replies goes wrong"""
    faults: tuple[str, ...] = ()
    """names, all without it"""


@contextmanager
def _served(router: StepRouter, ledger: Ledger) -> Iterator[str]:
    """Where a server of `router` listens."""
    ready = threading.Event()
    server = RunningServer(router, Config.load(None, ["serve.port=0", "serve.max_tokens=200"]), ledger)
    thread = threading.Thread(target=server.run, args=(ready.set,), daemon=True)
    thread.start()
    ready.wait(30)
    try:
        yield server.url
    finally:
        server.stop()
        thread.join(60)


def measure(name: str, requests: int, every: int) -> dict[str, Any]:
    """The row of one fault."""
    fault, often = ("503", 1) if name == _DOWN else (name, every)
    with ExitStack() as stack:
        weak = stack.enter_context(FaultServer("none"))
        strong = stack.enter_context(FaultServer(fault, every=often))
        models = [ModelConfig(model="openai/m", api_base=each.url, continuation="prefill", sequences=_OPEN, timeout=1.0)
                  for each in (weak, strong)]  # fmt: skip
        router = stack.enter_context(StepRouter(models[0], models[1], ConstantScorer(0.2), Always(), max_steps=1))
        ledger = Ledger()
        url = stack.enter_context(_served(router, ledger))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=120))

        def ask(number: int) -> dict[str, Any] | None:
            body = {"model": "router", "messages": [{"role": "user", "content": f"What is {number} + {number}?"}],
                    "stepwise": {"steps": True}}  # fmt: skip
            try:
                reply = client.post("/v1/chat/completions", json=body)
                return {"status": reply.status_code, **reply.json()}
            except (httpx.HTTPError, ValueError):
                return None

        with ThreadPoolExecutor(_OPEN) as pool:
            replies = list(pool.map(ask, range(requests)))
        books, known = dict(strong.log), ledger.usage("strong")
        told, perhaps = known.generated_tokens // TOKENS, ledger.perhaps("strong").calls
    answered = [reply for reply in replies if reply is not None and reply["status"] == 200]
    choices = [choice for reply in answered for choice in reply["stepwise"]["choices"]]
    standing = sum(step["author"] == "strong" for choice in choices for step in choice["steps"])
    lost, again = replies.count(None), max(0, books.get("answered", 0) - standing)
    return {
        "fault": name, "requests": requests, "injected": books.get("injected", 0), "answered": len(answered),
        "marked": sum(bool(choice["down"]) for choice in choices), "refused": len(replies) - lost - len(answered),
        "lost": lost, "again": again, "billed": books.get("billed", 0), "counted": told,
        "perhaps": perhaps, "held": lost == 0 and again == 0 and told + perhaps >= books.get("billed", 0),
    }  # fmt: skip


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    names, args = [*FAULTS, _DOWN], run.args
    if unknown := set(args.faults) - set(names):
        raise DataError(f"--faults {', '.join(sorted(unknown))}: no such fault; there are {', '.join(names)}")
    rows = []
    with progress("faults", len(args.faults or names)) as advance:
        for name in args.faults or names:
            rows.append(measure(name, args.requests, args.every))
            advance(1)
    write_text(run.path("served_faults.json"), json.dumps(rows, indent=2) + "\n")
    return run.held("Faults of the strong model, through the server", rows)


if __name__ == "__main__":
    sys.exit(main())
