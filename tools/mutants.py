"""Test the tests: which of 200 small faults in routing, budget, interventions, credit and training they notice.

    python tools/mutants.py run --sample 40 --seed 0 --jobs 1       # in this tree; prints killed, survived, gone
    python tools/mutants.py run --sample 40 --save new              # and notes the results in mutants.json
    python tools/mutants.py find                                    # where each of them is in this tree
    python tools/mutants.py make                                    # choose 200 anew in this tree (not after a move)

tools/mutants.json holds each as file, function, the statement's text and its text with the fault. In another tree the
statement is found by its text, wherever it stands, first in a function of the same name. Where it is gone, a successor
takes its place: the same kind of fault in the likest statement of a function of that name. Else the mutant is gone and
counts neither way. A mutant is tried in a copy of the tree on the test files that are closest to its module, those of
its name first, as many of five as take `--budget` CPU seconds in all; one that fails without a fault is not taken.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from closest import tests_of
from mutations import Site, changed, changes, sites_of

ROOT = Path(__file__).resolve().parent.parent
FILE = Path(__file__).with_name("mutants.json")
SHARES = {"routing": 85, "budget": 20, "interventions": 40, "credit": 20, "training": 35}
PER_FUNCTION = 2
TESTS = {  # folders of tests for a part of the library, where they do not have its name
    "budget": ("tests/test_budget.py", "tests/routing/test_caps.py", "tests/interventions/test_caps.py"),
    "credit": ("tests/credit/", "tests/training/test_crediting.py"),
}
MOST_FILES, LIKE, PATIENCE = 5, 0.6, 5
Mutant = dict[str, Any]


@dataclass
class Found:
    """Where a mutant is in a tree, with the text of its fault there; `how` is "same", "moved" or "successor"."""

    how: str
    site: Site
    text: str


def make(seed: int = 0) -> list[Mutant]:
    """Choose mutants in this tree: a share for each part, at most two in a function."""
    rng, found = random.Random(f"mutants {seed}"), list[Mutant]()
    everything = sites_of(ROOT)
    for part, count in SHARES.items():
        here = [site for site in everything if part_of(site.file) == part]
        choices = [(site, kind, text) for site in here for kind, text in changes(site)]
        rng.shuffle(choices)
        taken: Counter[tuple[str, str]] = Counter()
        for site, kind, text in choices:
            place = (site.file, site.function)
            if taken.total() < count and taken[place] < PER_FUNCTION and not site.function.endswith("__repr__"):
                taken[place] += 1
                row = {"file": site.file, "function": site.function, "statement": site.kind, "text": site.text}
                found.append({"id": len(found), "part": part, **row, "fault": kind, "mutated": text})
    return found


def part_of(file: str) -> str:
    """The part of the library that a file belongs to: its folder's, or its own name where that is a part."""
    folder, name = Path(file).parts[1], Path(file).stem
    return name if name in SHARES and folder not in SHARES and folder != "report" else folder


def find(mutant: Mutant, everything: Sequence[Site]) -> Found | None:
    """The mutant's place among the sites of a tree, or its successor's; None where it is gone."""
    same = [site for site in everything if site.kind == mutant["statement"] and site.text == mutant["text"]]
    name = mutant["function"].rpartition(".")[2]
    same.sort(key=lambda site: (site.function != mutant["function"], site.function.rpartition(".")[2] != name,
                                Path(site.file).name != Path(mutant["file"]).name))  # fmt: skip
    if same:
        there = same[0].file == mutant["file"] and same[0].function == mutant["function"]
        return Found("same" if there else "moved", same[0], mutant["mutated"])
    near = [site for site in everything if site.function.rpartition(".")[2] == name]
    pairs = [(site, text) for site in near for kind, text in changes(site) if kind == mutant["fault"]]
    scored = [
        (difflib.SequenceMatcher(None, mutant["text"], site.text).ratio(), i) for i, (site, _) in enumerate(pairs)
    ]
    likest = max(scored, default=(0.0, 0), key=lambda pair: (pair[0], -pair[1]))
    if likest[0] < LIKE:
        return None
    return Found("successor", *pairs[likest[1]])


# ----- trials


@dataclass
class Trial:
    """A copy of a tree in which mutants are tried one after the other."""

    tree: Path

    def run(self, files: Iterable[str], limit: float) -> tuple[str, str, float]:
        """What pytest says of test files: "passed", "failed" or "late", the first failure, and the CPU seconds taken.

        Late is what takes more than `limit` CPU seconds, or `PATIENCE` times as many by the clock.
        """
        options = ("-x", "-q", "-m", "not slow", "--hypothesis-seed=0", "-p", "no:cacheprovider")
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(round(limit)), *options, "-o", f"timeout={limit:.0f}", *files],
            cwd=self.tree, env=_environment(), text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=PATIENCE * limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "late", "", limit
        lines = said.splitlines()
        took = next((float(line.split()[1]) for line in reversed(lines) if line.startswith("CPU ")), None)
        if took is None:  # it was ended before it could say so
            return ("late" if process.returncode < 0 else "failed"), "", limit
        failure = next((line for line in lines if line.startswith(("FAILED ", "ERROR "))), "")
        # 5: no test was collected, as where all of a file are slow
        verdict = "passed" if process.returncode in (0, 5) else "failed"
        return verdict, failure.split(" - ")[0].partition(" ")[2], took


_RUN = """
import os, resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
sys.path.insert(0, "")
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
import pytest
code = int(pytest.main(sys.argv[1:]))
print("CPU", sum(os.times()[:4]), flush=True)
sys.exit(code)
"""


def _environment() -> dict[str, str]:
    single = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **single, "PYTHONPATH": ""}


@dataclass
class Chooser:
    """Picks the test files of a module by the CPU seconds they take without a fault; each is timed once."""

    budget: float
    also: Sequence[str] = ()
    times: dict[str, float | None] = field(default_factory=dict)  # None: it fails or is too slow
    lock: Lock = field(default_factory=Lock)

    def choose(self, trial: Trial, file: str, part: str) -> list[str]:
        """Of the closest files those that together take at most the budget."""
        parts = dict.fromkeys((part_of(file), part))  # where it stands, and where it stood
        folders = tuple(folder for name in parts for folder in TESTS.get(name, (f"tests/{name}/",)))
        chosen, total = list[str](), 0.0
        for name in tests_of(trial.tree, file, folders)[:MOST_FILES]:
            with self.lock:
                if name not in self.times:
                    verdict, _, seconds = trial.run([name], self.budget)
                    self.times[name] = seconds if verdict == "passed" else None
            known = self.times[name]
            if known is not None and total + known <= self.budget:
                chosen.append(name)
                total += known
        return [*chosen, *self.also]


# ----- runs


def copied(tree: Path, folder: Path) -> Path:
    """A copy of what git would take of a tree, uncommitted changes among it."""
    listed = subprocess.run(
        ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, stdout=subprocess.PIPE,
    ).stdout.decode()  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (tree / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, folder / name)
    return folder


def attempt(mutant: Mutant, found: Found | None, trial: Trial, chooser: Chooser, limit: float) -> dict[str, Any]:
    """Try one mutant; the copy is as it was afterwards."""
    if found is None:
        return {"verdict": "gone"}
    place = {"where": found.how, "file": found.site.file}
    path = trial.tree / found.site.file
    source = path.read_text("utf-8")
    files = chooser.choose(trial, found.site.file, mutant["part"])
    if not files:
        return {"verdict": "no tests", **place}
    try:
        path.write_text(changed(source, found.site, found.text), "utf-8")
        verdict, failure, seconds = trial.run(files, limit)
    finally:
        path.write_text(source, "utf-8")
    word = {"passed": "survived", "failed": "killed", "late": "timeout"}[verdict]
    return {"verdict": word, **place, "seconds": round(seconds), **({"by": failure} if failure else {"tests": files})}


def run(args: argparse.Namespace, mutants: list[Mutant]) -> int:
    """Try a sample and print what came of it; with `--save` each result is written down as it comes."""
    tree, lock = args.tree.resolve(), Lock()
    rng = random.Random(f"sample {args.seed}")
    sample = sorted(rng.sample(mutants, min(args.sample or len(mutants), len(mutants))), key=lambda row: row["id"])
    todo = [row for row in sample if not (args.save and args.save in row.get("results", {}))]
    everything, chooser, counts = sites_of(tree), Chooser(args.budget, args.also), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(args.jobs) as pool:
        trials: queue.Queue[Trial] = queue.Queue()
        for number in range(args.jobs):
            trials.put(Trial(copied(tree, Path(scratch) / str(number) / "tree")))

        def one(row: Mutant) -> None:
            trial = trials.get()
            try:
                result = attempt(row, find(row, everything), trial, chooser, args.timeout)
            finally:
                trials.put(trial)
            with lock:
                print(f"{row['id']:3} {result['verdict']:8} {row['file']} {row['function']}: {row['fault']}, "
                      f"{result.get('by', '')}", flush=True)  # fmt: skip
                row.setdefault("results", {})[args.save or "now"] = result
                if args.save:
                    write(mutants)

        list(pool.map(one, todo))
    counts.update(row["results"][args.save or "now"]["verdict"] for row in sample)
    print(", ".join(f"{count} {word}" for word, count in counts.most_common()) + f" of {len(sample)}")
    return 0


def write(mutants: list[Mutant]) -> None:
    """One mutant a line."""
    draft = FILE.with_suffix(".new")
    draft.write_text("[\n" + ",\n".join(json.dumps(row) for row in mutants) + "\n]\n")
    draft.replace(FILE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "find", "make"))
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to try (default: this one)")
    parser.add_argument("--sample", type=int, metavar="N", help="try N of them (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time, each in a copy of its own")
    parser.add_argument("--timeout", type=float, default=90.0, metavar="S", help="most CPU seconds for a mutant")
    parser.add_argument(
        "--budget", type=float, default=60.0, metavar="S", help="CPU seconds that its tests take at most"
    )
    parser.add_argument(
        "--also", nargs="*", default=[], metavar="FILE", help="test files to run for every mutant, last"
    )
    parser.add_argument("--save", metavar="NAME", help="note results under this name; those noted are not tried again")
    args = parser.parse_args(argv)
    if args.command == "make":
        write(make())
        return 0
    mutants: list[Mutant] = json.loads(FILE.read_text())
    if args.command == "run":
        return run(args, mutants)
    everything, counts = sites_of(args.tree.resolve()), Counter[str]()
    for row in mutants:
        found = find(row, everything)
        counts[found.how if found else "gone"] += 1
        where = f"{found.how} in {found.site.file} {found.site.function}: {found.text}" if found else "gone"
        print(f"{row['id']:3} {row['file']} {row['function']}, {row['text']!r:.60}: {where:.160}")
    print(", ".join(f"{count} {how}" for how, count in counts.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
