"""What becomes of answers and money when the network, a server, a file or the process itself goes wrong.

A model behind an API on loopback (`evals.fault_server`) fails on purpose, and keeps its own books. A client in a
process of its own asks it `requests` questions through the library's own wrappers, with its answers on disk, and is
started again until it has them all: after each fault of the server, and after kill -9 at random moments. Then files of
ours are damaged, and every reader must answer with an error of ours. The server's books count, never the client's:

    sent, faulty, billed   requests, faults injected (or kills), replies that the model wrote
    needed, had            answers that were asked for, and that the client ends with
    again                  good replies handed over whole beyond those, less what was open at a kill: bought twice
    perhaps                requests that the client counts as perhaps billed: at least the replies it never received

`--no-persist` is a client that keeps nothing on disk. It must fail; a table that it passes measures nothing. Writes
attacks.json; exit code 1 where a bar is missed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from evals.fault_server import FAULTS, FaultServer
from evals.mutations import mutants
from stepwise.config import Config
from stepwise.errors import DataError, StepwiseError
from stepwise.io import append_rows, read_rows, write_text
from stepwise.models.store import Answer, CallCache
from stepwise.routing import Threshold
from stepwise.routing.saved import load_policy, save_policy
from stepwise.runs.directory import RunDirectory
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem, Step, Trace, Usage

OPEN = 4  # requests in flight at most
STARTS = 40  # of one client, before it counts as stuck
_KILLS = "kill -9 at random moments"


class _Options(Options):
    requests: PositiveInt = 40
    """questions that each client asks"""
    kills: NonNegativeInt = 12
    """of the client that is killed"""
    mutants: PositiveInt = 300
    """damaged copies of each kind of file"""
    attacks: tuple[str, ...] = ()
    """names, all without it"""
    persist: bool = True
    """answers on disk; without it the client keeps nothing, and must fail"""


def client(url: str, path: str, requests: int) -> int:
    """Ask for every answer, with those of `path` known ("": nothing is kept); returns how many there are."""
    from stepwise.config import ModelConfig
    from stepwise.models.base import Request
    from stepwise.models.budget import Ledger
    from stepwise.models.driver import Driver
    from stepwise.models.litellm import LiteLLMBackend
    from stepwise.models.wrappers import Wrappers

    config = ModelConfig(model="openai/m", api_base=url, continuation="prefill", sequences=OPEN, timeout=1.0)
    problems = [Problem(f"p{i}", f"What is {i} + {i}?") for i in range(requests)]
    with ExitStack() as stack:
        store = stack.enter_context(CallCache(path, replays_are_free=True)) if path else None
        backend = stack.enter_context(LiteLLMBackend(config, attempts=4, backoff=0.02))
        model = Wrappers(Ledger(), store=store).model(backend, "weak")
        asked = [model.generate(Request(problem, max_tokens=50)) for problem in problems]
        made = Driver(exact=False).run(asked, window=OPEN)
    return sum(completion.failed is None for completion in made)


def measure(name: str, args: _Options, folder: Path) -> dict[str, Any]:
    """The row of one attack."""
    path, rng = folder / "answers.jsonl" if args.persist else None, random.Random(name)
    kills, starts, had = args.kills if name == _KILLS else 0, 0, 0
    with FaultServer("none" if kills else name, delay=0.05 if kills else 0.0) as server:
        given = (server.url, str(path or ""), args.requests)
        while had < args.requests and starts < STARTS:
            starts += 1
            try:
                had = _in_a_process(given, server, rng, starts <= kills) if kills else client(*given)
            except StepwiseError:  # it stopped, as it should where a model is gone, and is started again
                had = 0
        log = Counter(server.log)
    perhaps = 0
    if path is not None:
        with CallCache(path) as store:
            perhaps = sum(usage.calls for usage in store.perhaps().values())
    killed = min(kills, starts - 1)
    beyond = max(0, log["answered"] - args.requests)
    again = beyond - min(beyond, OPEN * killed, perhaps)
    # A reply that was received whole and could not be used is known to be billed: the rest is "perhaps".
    received = log["injected"] if not kills and FAULTS[name].sent == "whole" else 0
    held = had == args.requests and again == 0 and log["billed"] - args.requests <= perhaps + received
    return {
        "attack": name, "starts": starts, "sent": log["requests"], "faulty": killed or log["injected"],
        "billed": log["billed"], "needed": args.requests, "had": had, "again": again, "perhaps": perhaps, "held": held,
    }  # fmt: skip


def _in_a_process(given: tuple[str, str, int], server: FaultServer, rng: random.Random, kill: bool) -> int:
    """What the client has in a process of its own; 0 where it is killed, after a random number of requests."""
    code = f"from evals.attacks import client; print(client{given!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    before, most = server.log["requests"], rng.randint(1, OPEN + given[2] // 8)
    while kill and server.log["requests"] - before < most and process.poll() is None:
        time.sleep(0.005)
    if kill and process.poll() is None:
        process.kill()
    return int(process.communicate()[0] or 0)


# ----- files


def _answers(path: Path) -> object:
    with CallCache(path, replays_are_free=True) as cache:
        return cache.spent(), cache.summary()


def _run_directory(path: Path) -> object:
    directory = RunDirectory(path.parent, program="p", config=Config(), arguments={})
    directory.check(overwrite=False)
    return directory


READERS: dict[str, Callable[[Path], object]] = {
    "answers.jsonl": _answers, "run.json": _run_directory, "policy.json": load_policy, "config.toml": Config.load,
    "traces.jsonl": lambda path: read_rows(path, Trace),
}  # fmt: skip


def _whole(folder: Path) -> dict[str, bytes]:
    """One good file for each reader."""
    with CallCache(folder / "answers.jsonl") as cache:
        cache.add([Answer("k", "weak", "p", Usage("m", 1, 2, 2, 3), {"text": "It is 3."})])
    directory = RunDirectory(folder / "run", program="p", config=Config(), arguments={})
    directory.claim("rows.jsonl").write_text("{}\n")
    with directory.ending():
        pass
    (folder / "run" / "run.json").rename(folder / "run.json")
    save_policy(folder / "policy.json", Threshold(0.5))
    write_text(folder / "config.toml", '[routing]\nthreshold = 0.4\n[models.weak]\nmodel = "llamacpp/lab-weak"\n')
    append_rows(folder / "traces.jsonl", [Trace(Problem("p", "q"), (Step("It is 3.", "weak", 0.5),), "answer")])
    return {name: (folder / name).read_bytes() for name in READERS}


def damage(name: str, text: bytes, folder: Path, n: int) -> dict[str, Any]:
    """How many damaged copies of a file were answered with an error of ours, or read; the rest are faults."""
    counts = dict.fromkeys(("copies", "refused", "read", "faults"), 0)
    for number, data in enumerate(mutants(text, random.Random(name), n)):
        path = folder / f"{name}-{number}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        counts["copies"] += 1
        try:
            READERS[name](path)
            counts["read"] += 1
        except StepwiseError:
            counts["refused"] += 1
        except Exception:
            counts["faults"] += 1
    return {"file": name, **counts, "held": counts["faults"] == 0}


# ----- the program


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    names = [_KILLS, *(name for name in FAULTS if name != "none")]
    if unknown := set(run.args.attacks) - set(names):
        raise DataError(f"--attacks {', '.join(sorted(unknown))}: no such attack; there are {', '.join(names)}")
    rows = []
    with progress("attacks", len(run.args.attacks or names)) as advance:
        for name in run.args.attacks or names:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, run.args, Path(folder)))
            advance(1)
    with tempfile.TemporaryDirectory() as folder:
        whole = _whole(Path(folder))
        files = [damage(name, whole[name], Path(folder) / "copies", run.args.mutants) for name in READERS]
    write_text(run.path("attacks.json"), json.dumps({"attacks": rows, "files": files}, indent=2) + "\n")
    codes = [run.held("The server's books", rows), run.held("Damaged files", files)]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
