"""A local critic on an adapter and one behind a server, eight items at a time: collections are equal to the byte."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stepwise.interventions.collection import read_stage
from tests.routing.test_on_lab import shipped

pytestmark = pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")

COLLECT = """
import sys
import stepwise as sw
from stepwise.config import Config
from stepwise.critics import InterventionProposer
from stepwise.interventions import collect
from stepwise.interventions.settings import CollectSettings, Writers

base, out = sys.argv[1:]
config = Config.load(None, ["models.weak.kv_type=f32"])
settings = CollectSettings(rollouts=2, attempts=1, guided=2, batch=2, chunk=8, concurrency=8, max_tokens=256,
                           accept="success")
proposer = InterventionProposer(sw.lm("openai/critic", api_base=base), adapter="json", revisions=0, solve_first=False)
problems = [made.problem for made in sw.lab.generate("train", 8)]
collect(problems, config, out, settings=settings, writers=Writers(config, proposer=proposer))
"""


class Critic(BaseHTTPRequestHandler):
    """Proposes a step that depends on the prompt alone, after a while that depends on nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(random.random() * 0.05)
        text = "".join(str(message["content"]) for message in body["messages"])
        number = int(hashlib.sha256(re.sub(r"\s+", " ", text).encode()).hexdigest()[:4], 16) % 90
        reply = json.dumps({"location": 1, "content": f"Let me begin anew: there are {number} things to count."})
        message = {"role": "assistant", "content": reply}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "critic",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(text), "completion_tokens": 9, "total_tokens": len(text) + 9},
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Critic)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def collect(api: str, out: Path, seconds: float | None = None) -> bool:
    """Whether it came to its end, or was killed after `seconds`."""
    environment = {**os.environ, "OPENAI_API_KEY": "none", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", COLLECT, api, str(out)], env=environment) as process:
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False
    return True


def files(out: Path) -> dict[str, bytes]:
    """Everything but the run's card, which has times, and what was paid, which holds what a killed start has lost."""
    left_out = ("run.json", "spent.jsonl")
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in left_out}


def whole_and_killed(api: str, folder: Path, runs: int) -> tuple[dict[str, bytes], list[dict[str, bytes]]]:
    """The files of a collection that was left alone, and of each that was killed somewhere and gone on with."""
    whole, rng = folder / "whole", random.Random(1)
    began = time.monotonic()
    assert collect(api, whole)
    took = time.monotonic() - began
    assert len(read_stage(whole, "located")) > 3
    assert any(row.content for row in read_stage(whole, "candidates"))
    others = []
    for number in range(runs):
        out = folder / f"run{number}"
        collect(api, out, took * rng.uniform(0.3, 0.9))
        assert collect(api, out)
        others.append(files(out))
    return files(whole), others


@pytest.mark.slow
def test_a_collection_killed_and_gone_on_with_equals_the_whole_one(api: str, tmp_path: Path) -> None:
    whole, killed = whole_and_killed(api, tmp_path, 1)
    assert killed == [whole]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_collections_under_kill_9_are_equal_to_the_byte(api: str, tmp_path: Path) -> None:
    whole, killed = whole_and_killed(api, tmp_path, 19)
    assert killed == [whole] * 19
