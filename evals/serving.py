"""The server under load, beside the same router in one process: throughput, time to the first step, latency, memory.

For each number of clients, --requests requests are streamed from `stepwise serve` in a process of its own, each client
asking the next question once it has its answer, and the same questions are routed by `StepRouter.solve_all` with as
many problems open. Both are greedy; "other texts" counts answers that are not those of all problems at once, as
near-ties turn with the batch. With --memory N, N other questions: bytes and descriptors that the server has more of at
the end than after a tenth of them (Linux), 10,000 or more, since its caches fill up over the first thousands.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from pydantic import NonNegativeInt, PositiveInt

from stepwise.errors import BackendError
from stepwise.lab.problems import generate
from stepwise.routing.router import StepRouter
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem

LATENCY_BAR = 4.0  # p95 / median
THROUGHPUT_BAR = 0.9  # of the same router in one process
BYTES_BAR = 1000.0  # a request


class _Options(Options):
    requests: PositiveInt = 64
    """requests for each number of clients"""
    clients: tuple[PositiveInt, ...] = (1, 4, 16)
    """clients at once"""
    memory: NonNegativeInt = 0
    """requests to measure memory by"""


class _Asked(NamedTuple):
    first: float
    whole: float
    tokens: int
    text: str


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    run.config = run.config.model_copy(
        update={"sampling": run.config.sampling.model_copy(update={"temperature": 0.0})}
    )  # what is drawn does not depend on the seed of a request
    problems = [made.problem for made in generate("test", run.args.requests)]
    with StepRouter.from_config(run.config) as router:
        alone = {count: _in_process(router, problems, count) for count in run.args.clients}
        texts = {trace.problem.question: trace.text for trace in router.solve_all(problems, progress=False)}
    rows, missed = [], []
    with _server(run) as (process, url):
        for count in run.args.clients:
            asyncio.run(_load(url, problems[:count], count))  # what an engine does at its first tokens is not counted
            began = time.monotonic()
            answers = asyncio.run(_load(url, problems, count))
            rate = sum(answer.tokens for answer in answers) / (time.monotonic() - began)
            wrong = sum(answer.text != texts[p.question] for p, answer in zip(problems, answers, strict=True))
            whole, first = ([getattr(answer, name) for answer in answers] for name in ("whole", "first"))
            tail = _quantile(whole, 0.95) / statistics.median(whole)
            rows.append({
                "clients": count, "tokens_per_second": rate, "in_process": alone[count], "share": rate / alone[count],
                "first_median": statistics.median(first), "first_p95": _quantile(first, 0.95),
                "whole_median": statistics.median(whole), "p95_by_median": tail, "other_texts": wrong,
            })  # fmt: skip
            missed += [f"{count} clients: p95"] * (tail >= LATENCY_BAR)
            missed += [f"{count} clients: throughput"] * (rate < THROUGHPUT_BAR * alone[count])
        grown = _growth(process.pid, url, run.args.memory) if run.args.memory else None
    if grown is not None:
        missed += ["memory"] * (grown[0] >= BYTES_BAR) + ["descriptors"] * (grown[1] > 0)
        run.say(f"{grown[0]:,.0f} bytes a request, {grown[1]} descriptors more after {run.args.memory:,} requests")
    run.path("serving.json").write_text(json.dumps({"rows": rows, "growth": grown}, indent=1) + "\n")
    columns = ["clients", "tokens/s", "in process", "share", "first, s", "p95", "whole, s", "p95/median", "other texts"]
    run.table(f"{len(problems)} requests", columns, [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ])  # fmt: skip
    return run.missed(missed)


def _in_process(router: StepRouter, problems: Sequence[Problem], count: int) -> float:
    """Tokens a second of the steps that stand, with `count` problems open."""
    for model in (router.models.weak, router.models.strong):
        model.reset_cache()  # type: ignore[attr-defined]
    windowed = router.with_policy(router.policy)
    windowed.settings = dataclasses.replace(router.settings, window=count)
    began = time.monotonic()
    traces = windowed.solve_all(problems, progress=False)
    tokens = sum(step.usage.generated_tokens for trace in traces for step in trace.steps)
    return tokens / (time.monotonic() - began)


@contextmanager
def _server(run: Run[_Options]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of the same configuration, and where it listens."""
    given = [f"--set={text}" for text in (*run.shared.set, "sampling.temperature=0.0")]
    config = ["--config", str(run.shared.config)] if run.shared.config else []
    out = ["--out", str(run.out / "server"), "--overwrite", "--port", "0"]
    command = [sys.executable, "-m", "stepwise.cli", "serve", *config, *given, *out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.match(r"(http://\S+)/v1 is served", line):
                    yield process, found[1]
                    return
            raise BackendError("the server did not start; the lines above say why")
        finally:
            process.terminate()


async def _load(url: str, problems: Sequence[Problem], count: int) -> list[_Asked]:
    """The answers to all problems, asked by `count` clients."""
    waiting, answers = iter(enumerate(problems)), dict[int, _Asked]()
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def work() -> None:
            for place, problem in waiting:
                answers[place] = await _ask(client, problem.question)

        await asyncio.gather(*(work() for _ in range(count)))
    return [answers[place] for place in range(len(problems))]


async def _ask(client: httpx.AsyncClient, question: str) -> _Asked:
    body = {"model": "router", "messages": [{"role": "user", "content": question}], "seed": 0, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    began, first, text, tokens = time.monotonic(), 0.0, "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.monotonic() - began
            chunk = json.loads(line.removeprefix("data: "))
            text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
            tokens = chunk["usage"]["completion_tokens"] if chunk["usage"] else tokens
    return _Asked(first, time.monotonic() - began, tokens, text)


def _growth(pid: int, url: str, count: int) -> tuple[float, int]:
    """Bytes a request and descriptors that a server has more of over the last nine tenths of `count` requests."""
    problems = [made.problem for made in generate("train", count)]
    start = -(-count // 10)
    asyncio.run(_load(url, problems[:start], 16))
    before = _held(pid)
    asyncio.run(_load(url, problems[start:], 16))
    after = _held(pid)
    return (after[0] - before[0]) / max(1, count - start), after[1] - before[1]


def _held(pid: int) -> tuple[int, int]:
    """Bytes in memory and open descriptors of a process, a second after its connections were closed."""
    time.sleep(1)
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    raise SystemExit(main())
