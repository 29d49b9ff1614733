"""Test the tests: which of 200 small faults in routing, budget, interventions, credit and training they notice.

    python tools/mutants.py make                    # choose 200 in this tree, seeded; those that were tried stay
    python tools/mutants.py run --until 19:30       # try those without a verdict; the list keeps each as it comes
    python tools/mutants.py run --again survived    # try those that survived once more
    python tools/mutants.py show                    # how many were killed, and each survivor

A fault is tried in a copy of the tree, in a process forked from one that has imported the heavy packages. First every
test of the folders runs once without a fault while the functions it enters are noted (out/mutants/). A mutant runs the
tests that enter its function, the quickest first, then the rest of their files, until one fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from faults import mutants_of  # beside this script

ROOT = Path(__file__).resolve().parent.parent
LIST, NOTES = Path(__file__).with_name("mutants.json"), ROOT / "out" / "mutants"
BUDGET_TESTS = ["tests/test_budget.py", "tests/*/test_caps.py", "tests/models/test_money.py"]
PARTS = {  # part: (mutants, files under stepwise/, test folders and files)
    "credit": (20, ["credit"], ["tests/credit", "tests/training/test_crediting.py"]),
    "budget": (20, ["models/budget.py", "models/caps.py", "models/reservations.py"], BUDGET_TESTS),
    "interventions": (40, ["interventions"], ["tests/interventions"]),
    "training": (35, ["training"], ["tests/training"]),
    "routing": (85, ["routing"], ["tests/routing"]),
}
KEY = ("file", "function", "fault", "before", "after", "nth")
PER_FUNCTION = 2
SECONDS = 90  # of a processor, for one mutant
HEAVY = ("hypothesis", "numpy", "pydantic", "llama_cpp", "litellm", "dspy", "torch", "transformers", "peft")
Mutant = dict[str, Any]


def make(kept: Sequence[Mutant] = (), seed: int = 0) -> list[Mutant]:
    """Choose mutants in this tree, a share for each part, at most two in a function; those of `kept` stay."""
    rows: list[Mutant] = []
    for part, (count, folders, _) in PARTS.items():
        paths = [path for name in folders for path in ROOT.glob(f"stepwise/{name}")]
        paths = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))
        keys = [key for path in paths for key in mutants_of(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))]
        random.Random(f"{part} {seed}").shuffle(keys)
        mine = [row for row in kept if row["part"] == part]
        taken = Counter((row["file"], row["function"]) for row in mine)
        for key in keys:
            if len(mine) < count and taken[key[:2]] < PER_FUNCTION and not key[1].endswith("__repr__"):
                taken[key[:2]] += 1
                mine.append({"part": part, **dict(zip(KEY, key, strict=True))})
        rows += mine
    return [{**row, "id": number} for number, row in enumerate(rows)]


# ----- trials


class Noting:
    """A pytest plugin: the functions of stepwise that each passing test enters, and the processor seconds it takes."""

    def __init__(self) -> None:
        self.tests: dict[str, tuple[float, list[str]]] = {}
        self.failed: set[str] = set()
        self.seen: set[Any] = set()
        self.shared: dict[Any, set[Any]] = defaultdict(set)  # what setting up a fixture entered
        sys.settrace(self.enter)
        threading.settrace(self.enter)

    def enter(self, frame: Any, event: str, arg: object) -> None:
        """Python calls this when any function is entered."""
        self.seen.add(frame.f_code)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """A fixture is set up for the first test that has it, and counts for all of them."""
        before, self.seen = self.seen, set()
        yield
        self.shared[fixturedef] |= self.seen
        self.seen |= before

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        """One test with its fixtures."""
        sys.settrace(self.enter)
        self.seen, begin = set(), time.process_time()
        yield
        for fixtures in item._fixtureinfo.name2fixturedefs.values():
            self.seen.update(*(self.shared[fixture] for fixture in fixtures))
        sys.settrace(None)
        codes = [code for code in list(self.seen) if "/stepwise/" in code.co_filename]
        names = {f"{code.co_filename}:{code.co_qualname.replace('.<locals>', '')}" for code in codes}
        self.tests[item.nodeid] = (time.process_time() - begin, sorted(names))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test that fails without a fault says nothing about one."""
        if report.failed:
            self.failed.add(report.nodeid)


def notes(tree: Path, part: str) -> dict[str, tuple[float, list[str]]]:
    """Test -> (seconds, functions entered) for the tests of a part; kept in out/mutants/."""
    kept = NOTES / f"{part}.json"
    if not kept.exists():
        paths = sorted(path.relative_to(tree).as_posix() for name in PARTS[part][2] for path in tree.glob(name))
        print(f"{part}: running {' '.join(paths)} without a fault", flush=True)
        forked(tree, lambda: noted(tree, paths, kept), 3600)
    known = dict(json.loads(kept.read_text()))
    if not known:
        raise SystemExit(f"no test of {part} passes: see {NOTES / 'last.log'}, remove {kept} and try again")
    return known


def noted(tree: Path, paths: list[str], kept: Path) -> int:
    """Run tests with `Noting` and write what it noted."""
    noting = Noting()
    code = tests(paths, plugins=[noting])
    sys.settrace(None)
    found = {
        test: (seconds, [name.removeprefix(f"{tree}/") for name in names])
        for test, (seconds, names) in noting.tests.items()
        if test not in noting.failed
    }
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found))
    return code


def tests(names: list[str], *options: str, plugins: Sequence[object]) -> int:
    """Run pytest in this process."""
    fixed = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0"]
    return int(pytest.main([*fixed, *options, *names], plugins=list(plugins)))


def forked(tree: Path, work: Callable[[], int], seconds: float) -> tuple[str, float]:
    """Run `work` in a forked process in `tree`: "passed", "failed" or "late", and the processor seconds it took."""

    def child() -> None:
        os.setsid()
        os.chdir(tree)
        NOTES.mkdir(parents=True, exist_ok=True)
        out = os.open(NOTES / "last.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
        code = work()
        sys.stdout.flush()
        os._exit(code)

    before = os.times()
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(5 * seconds)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    after = os.times()
    took = after.children_user + after.children_system - before.children_user - before.children_system
    late = process.exitcode is None or process.exitcode < 0
    return "late" if late else "failed" if process.exitcode else "passed", took


def attempt(row: Mutant, tree: Path) -> Mutant:
    """Try one mutant: its verdict, the processor seconds, and what killed it."""
    files = sorted((tree / "stepwise").rglob("*.py"), key=lambda path: path != tree / row["file"])
    key = tuple(row[name] for name in KEY[1:])
    for path in files:  # where it was chosen, else where it has moved to
        source = path.read_bytes()
        file = path.relative_to(tree).as_posix()
        if (file, *key) in (places := mutants_of(file, source.decode())):
            break
    else:
        return {"verdict": "gone", "by": "not in this tree"}
    first, last, after = places[file, *key]
    known = notes(tree, row["part"])
    entering = [test for test, (_, names) in known.items() if f"{file}:{row['function']}" in names]
    entering.sort(key=lambda test: known[test][0])
    if not entering:
        return {"verdict": "survived", "by": "no test enters the function"}
    near = {test.partition("::")[0] for test in entering}
    rest = [test for test in known if test.partition("::")[0] in near and test not in entering]
    total, chosen = 0.0, list[str]()
    for test in [*entering, *rest]:
        total += known[test][0]
        if total < SECONDS / 3:
            chosen.append(test)
    try:
        path.write_bytes(source[:first] + after.encode() + source[last:])
        verdict, took = forked(tree, lambda: tests(chosen, "-x", "-o", "timeout=60", plugins=()), SECONDS)
    finally:
        path.write_bytes(source)
    lines = (NOTES / "last.log").read_text(errors="replace").splitlines()
    by = next((line.split(" ")[1] for line in lines if line.startswith(("FAILED ", "ERROR "))), "")
    word = {"passed": "survived", "failed": "killed", "late": "killed"}[verdict]
    return {"verdict": word, "by": by or (verdict if verdict == "late" else f"{len(chosen)} tests"), "s": round(took)}


def copied(tree: Path, folder: Path) -> Path:
    """A copy of what git would take of a tree, uncommitted changes among it."""
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode().split("\0")):
        if (tree / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, folder / name)
    return folder


def run(rows: list[Mutant], again: str, until: str, part: str) -> None:
    """Try the mutants without a verdict, or with the verdict `again`, and write each verdict down as it comes."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", LITELLM_LOCAL_MODEL_COST_MAP="True")
    for name in HEAVY:
        __import__(name)
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as scratch:
        tree = copied(ROOT, Path(scratch) / "tree")
        sys.path.insert(0, str(tree))
        os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
        for row in rows:
            if until and time.strftime("%H:%M") >= until:
                print(f"{until}: stopped")
                break
            if (row.get("verdict", "") == again) and part in ("", row["part"]):
                row.update(attempt(row, tree))
                write(rows)
                print(*(row[name] for name in ("id", "verdict", "file", "function", "fault")), row["by"], flush=True)


def write(rows: list[Mutant]) -> None:
    """One mutant a line."""
    draft = LIST.with_suffix(".new")
    draft.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    draft.replace(LIST)


def show(rows: list[Mutant]) -> None:
    """Print how many were killed, by part, and each that survived."""
    for part in (*PARTS, ""):
        counts = Counter(row.get("verdict", "not tried") for row in rows if part in ("", row["part"]))
        print(f"{part or 'all':14}", ", ".join(f"{count} {word}" for word, count in counts.most_common()))
    for row in rows:
        if row.get("verdict") == "survived":
            print(f"\n{row['id']} {row['file']} {row['function']}: {row['fault']} ({row['by']})  {row.get('note', '')}")
            print(f"  - {row['before']}\n  + {row['after']}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("make", "run", "show"))
    parser.add_argument("--until", default="", metavar="HH:MM", help="begin no mutant after this time of the day")
    parser.add_argument("--again", default="", metavar="VERDICT", help="those with this verdict (default: with none)")
    parser.add_argument("--part", default="", choices=("", *PARTS), help="of one part only")
    args = parser.parse_args(argv)
    rows: list[Mutant] = json.loads(LIST.read_text()) if LIST.exists() else []
    if args.command == "make":
        write(make([row for row in rows if row.get("verdict") in ("killed", "survived")]))
        return
    if args.command == "run":
        run(rows, args.again, args.until, args.part)
    show(rows)


if __name__ == "__main__":
    main()
