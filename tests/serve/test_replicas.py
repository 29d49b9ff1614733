"""Two replicas of a server: one budget, one store of answers, and one of them may be killed at any moment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from stepwise.config import BudgetConfig, CapsConfig
from stepwise.errors import DataError
from stepwise.models.budget import Ledger
from stepwise.models.replicas import SharedCaps
from stepwise.models.store import CallCache
from tests.models.test_litellm import reply
from tests.scorers.stand_in import Answer, serving
from tests.serve.conftest import Serve, World, ask

KEY = "alice-has-a-key-of-her-own"


def test_a_directory_that_cannot_be_read_for_a_moment_ends_no_waiting(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    class Shared:
        looked = 0

        def poke(self) -> None:
            self.looked += 1
            if self.looked < 3:
                raise DataError("two.json cannot be read")

    shared = Shared()
    serve(shared=shared)
    deadline = time.monotonic() + 60
    while shared.looked < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert shared.looked >= 4
    assert [record.getMessage() for record in caplog.records if record.name == "stepwise.serve"] == [
        "what other replicas have spent cannot be read: two.json cannot be read"
    ]


def test_a_cap_on_a_key_holds_over_both_and_an_answer_is_made_once(serve: Serve, world: World, tmp_path: Path) -> None:
    clients, keys = [], []
    with ExitStack() as stack:
        for name in ("one", "two"):
            run = Ledger(BudgetConfig(calls=40))
            keys.append(run.under(CapsConfig(calls=20), "serve.api_keys.alice"))
            shared = SharedCaps(tmp_path, name, [run, keys[-1]])
            stack.callback(shared.close)
            store = stack.enter_context(CallCache(tmp_path / "answers.jsonl", replays_are_free=True, shared=True))
            more = {"ledger": run, "ledgers": {"alice": keys[-1]}, "secrets": {"alice": KEY}}
            clients.append(serve(**more, shared=shared, store=store))
        first = ask(clients[0], "q", key=KEY, seed=7).json()
        again = ask(clients[1], "q", key=KEY, seed=7).json()
        assert again["choices"][0]["message"] == first["choices"][0]["message"]
        assert again["stepwise"]["usage"] == {}
        assert sum(map(len, world.weak.batches)) == 3
        named = [ask_named(client, "r", "a-name-of-the-proxy") for client in clients]
        assert named[0]["choices"][0]["message"] == named[1]["choices"][0]["message"]
        assert named[0]["stepwise"]["seed"] == named[1]["stepwise"]["seed"]
        spent = sum(ledger.usage().calls for ledger in keys)
        with ThreadPoolExecutor(8) as pool:
            codes = list(pool.map(lambda i: ask(clients[i % 2], f"b{i}", key=KEY).status_code, range(16)))
        assert 429 in codes
        calls = [ledger.usage("weak").calls + ledger.usage("strong").calls for ledger in keys]
        assert sum(calls) == 20
        assert min(calls) > 0
        assert spent < 20
        for client in clients:
            assert "serve.api_keys.alice.calls" in ask(client, "c", key=KEY).json()["error"]["message"]


def ask_named(client: httpx.Client, question: str, name: str) -> Any:
    body = {"model": "router", "messages": [{"role": "user", "content": question}]}
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": name}
    response = client.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


CONFIG = """
[models.weak]
model = "openai/m"
api_base = "{url}/v1"
continuation = "prefill"
[models.strong]
model = "openai/m"
api_base = "{url}/v1"
continuation = "prefill"
[scorer]
kind = "constant"
[routing]
policy = "never"
[serve]
port = 0
shared = "{shared}"
answers = true
[serve.api_keys.alice]
api_key_env = "ALICE_KEY"
calls = 40
"""


class Replica:
    """`stepwise serve` in a process of its own."""

    def __init__(self, config: Path, out: Path) -> None:
        command = [sys.executable, "-m", "stepwise.cli", "serve", "--config", str(config), "--out", str(out)]
        environment = os.environ | {"ALICE_KEY": KEY}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if "is served" in line)
        url = re.search(r"http://\S+?(?=/v1)", line)
        assert url
        self.client = httpx.Client(base_url=url[0], timeout=60)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.client.close()


@pytest.mark.slow
def test_a_replica_that_is_killed_in_a_request_costs_what_was_in_flight_alone(tmp_path: Path) -> None:
    killed, sent = threading.Event(), Counter[tuple[str, int]]()

    def answers(_: str, body: dict[str, Any]) -> Answer:
        question = next(each["content"] for each in body["messages"] if each["role"] == "user")
        done = body["messages"][-1]["content"].count("\n\n") if body["messages"][-1]["role"] == "assistant" else 0
        sent[question, done] += 1
        if "slow" in question and done == 3 and not killed.wait(60):
            return Answer({}, 500)
        return reply(f"Step {done} of {question}." if done < 5 else "It is \\boxed{6}.")

    with serving(answers) as server:
        config = tmp_path / "served.toml"
        config.write_text(CONFIG.format(url=server.url, shared=tmp_path / "shared"))
        one, two = Replica(config, tmp_path / "one"), Replica(config, tmp_path / "two")
        try:
            ask_named(two.client, "quick?", "name 0")
            with ThreadPoolExecutor(1) as pool:
                lost = pool.submit(ask_named, one.client, "slow?", "name 1")
                deadline = time.monotonic() + 60
                while not sent["slow?", 3] and time.monotonic() < deadline:
                    time.sleep(0.02)
                one.process.kill()
                one.process.wait()
                with pytest.raises(httpx.TransportError):
                    lost.result()
            killed.set()
            made = ask_named(two.client, "slow?", "name 1")  # as a proxy asks the next one
            assert made["choices"][0]["message"]["content"].startswith("Step 0 of slow?.\n\nStep 1 of slow?.")
            assert made["choices"][0]["message"]["content"].endswith("\\boxed{6}.")
            assert {place: count for place, count in sent.items() if count > 1} == {("slow?", 3): 2}
            assert made["stepwise"]["usage"]["weak"]["calls"] == 3  # of six: the others were received by the first
            again = Replica(config, tmp_path / "one")
            try:
                bought = sum(sent.values())
                for i in range(8):
                    ask([two, again][i % 2].client, f"more {i}?", key=KEY)
                assert sum(sent.values()) > bought
                assert sum(sent.values()) <= 40
                for replica in (two, again):
                    refused = ask(replica.client, "one more?", key=KEY)
                    assert refused.status_code == 429, refused.text
                    assert "serve.api_keys.alice.calls" in json.dumps(refused.json())
            finally:
                again.stop()
        finally:
            two.stop()
            one.process.kill()
    rows = [json.loads(line) for line in (tmp_path / "shared" / "answers.jsonl").read_text().splitlines()]
    kept = Counter(row["key"] for row in rows if "key" in row)
    assert max(kept.values()) == 1
