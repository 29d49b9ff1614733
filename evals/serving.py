"""The server under load, beside the same router in one process: throughput, time to the first step, latency, memory.

For each number of clients, --requests requests are streamed from `stepwise serve` in a process of its own, each client
asking the next question once it has its answer, and the same questions are routed by `StepRouter.solve_all` with as
many problems open. Both are greedy; "other texts" counts answers that are not those of all problems at once, as
near-ties turn with the batch. With --beside URL the same questions go to a server that has the strong model alone
(llama-server, llama_cpp.server, vLLM), started by whoever asks, once the router's server has ended. With --memory N, N
other questions: bytes and descriptors that the server has more of at the end than after a tenth of them (Linux), 10,000
or more, since its caches fill up over the first thousands.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
from pydantic import NonNegativeInt, PositiveInt

from stepwise.errors import BackendError
from stepwise.lab.problems import generate
from stepwise.prompt import SolvePrompt
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
    beside: str | None = None
    """address of a server of the strong model alone, http://localhost:8080"""
    memory: NonNegativeInt = 0
    """requests to measure memory by"""


_COLUMNS = {
    "clients": "clients", "tokens_per_second": "tokens/s", "requests_per_second": "requests/s",
    "in_process": "in process", "share": "share", "first_median": "first, s", "first_p95": "p95",
    "whole_median": "whole, s", "p95_by_median": "p95/median", "other_texts": "other texts",
}  # fmt: skip


class _Place(NamedTuple):
    """A server and the model to ask there; under `prompt`, which the router has of its own."""

    url: str
    model: str
    prompt: SolvePrompt | None = None
    settings: Mapping[str, Any] = MappingProxyType({"seed": 0})


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
            row, answers = _measured(_Place(url, "router"), problems, count)
            wrong = sum(answer.text != texts[p.question] for p, answer in zip(problems, answers, strict=True))
            row |= {"in_process": alone[count], "share": row["tokens_per_second"] / alone[count], "other_texts": wrong}
            rows.append(row)
            missed += [f"{count} clients: p95"] * (row["p95_by_median"] >= LATENCY_BAR)
            missed += [f"{count} clients: throughput"] * (row["share"] < THROUGHPUT_BAR)
        grown = _growth(process.pid, url, run.args.memory) if run.args.memory else None
    if grown is not None:
        missed += ["memory"] * (grown[0] >= BYTES_BAR) + ["descriptors"] * (grown[1] > 0)
        run.say(f"{grown[0]:,.0f} bytes a request, {grown[1]} descriptors more after {run.args.memory:,} requests")
    beside = _strong_alone(run, problems) if run.args.beside else []
    run.path("serving.json").write_text(json.dumps({"rows": rows, "beside": beside, "growth": grown}, indent=1) + "\n")
    _show(run, f"{len(problems)} requests", rows)
    if beside:
        _show(run, "the same questions, by the strong model alone", beside)
    return run.missed(missed)


def _show(run: Run[_Options], title: str, rows: Sequence[dict[str, Any]]) -> None:
    run.table(title, [_COLUMNS[name] for name in rows[0]], [
        [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ])  # fmt: skip


def _measured(place: _Place, problems: Sequence[Problem], count: int) -> tuple[dict[str, Any], list[_Asked]]:
    """What `count` clients see of a server that has answered them once already."""
    asyncio.run(_load(place, problems[:count], count))  # what an engine does at its first tokens is not counted
    began = time.monotonic()
    answers = asyncio.run(_load(place, problems, count))
    seconds = time.monotonic() - began
    whole, first = ([getattr(answer, name) for answer in answers] for name in ("whole", "first"))
    row = {
        "clients": count, "tokens_per_second": sum(answer.tokens for answer in answers) / seconds,
        "requests_per_second": len(answers) / seconds, "first_median": statistics.median(first),
        "first_p95": _quantile(first, 0.95), "whole_median": statistics.median(whole),
        "p95_by_median": _quantile(whole, 0.95) / statistics.median(whole),
    }  # fmt: skip
    return row, answers


def _strong_alone(run: Run[_Options], problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """The rows of --beside, under the same prompt and limit of tokens, greedy."""
    url, config = str(run.args.beside).rstrip("/").removesuffix("/v1"), run.config
    (model, *_) = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    tokens = config.routing.max_steps * config.sampling.max_step_tokens
    context = config.models.strong.context
    settings = {"temperature": 0.0, "max_tokens": tokens if context is None else min(tokens, context // 2)}
    place = _Place(url, model["id"], config.prompt, settings)
    return [_measured(place, problems, count)[0] for count in run.args.clients]


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
    out = ["--out", str(run.path("server")), "--overwrite", "--port", "0"]
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


async def _load(place: _Place, problems: Sequence[Problem], count: int) -> list[_Asked]:
    """The answers to all problems, asked by `count` clients."""
    waiting, answers = iter(enumerate(problems)), dict[int, _Asked]()
    # A connection each: servers close those that they were asked over a hundred times.
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=place.url, timeout=600, limits=limits) as client:

        async def work() -> None:
            for number, problem in waiting:
                answers[number] = await _ask(client, place, problem.question)

        await asyncio.gather(*(work() for _ in range(count)))
    return [answers[number] for number in range(len(problems))]


async def _ask(client: httpx.AsyncClient, place: _Place, question: str) -> _Asked:
    messages = place.prompt.messages(question) if place.prompt else [{"role": "user", "content": question}]
    body = {"model": place.model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    body |= place.settings
    began, first, text, tokens = time.monotonic(), 0.0, "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            first = first or (time.monotonic() - began if text else 0.0)
            tokens = chunk["usage"]["completion_tokens"] if chunk.get("usage") else tokens
    return _Asked(first, time.monotonic() - began, tokens, text)


def _growth(pid: int, url: str, count: int) -> tuple[float, int]:
    """Bytes a request and descriptors that a server has more of over the last nine tenths of `count` requests."""
    problems = [made.problem for made in generate("train", count)]
    start = -(-count // 10)
    asyncio.run(_load(_Place(url, "router"), problems[:start], 16))
    before = _held(pid)
    asyncio.run(_load(_Place(url, "router"), problems[start:], 16))
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
