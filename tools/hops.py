"""Count what one has to read: library functions entered and files run through, for a routed step and for a problem.

    python tools/hops.py [--tree DIR] [--problem N] [--list]

One lab problem goes through `StepRouter.solve_all` under a threshold on scores, and through `stepwise route`; each in a
process of its own, with a profiler in every thread. Counted are functions of `stepwise/` and `programs/` (methods and
nested functions too; comprehensions, lambdas and the code of a module's body are not) and the files they stand in, from
the call on: loading the models is shown apart for `solve_all`, and counts for `route`. A routed step runs from one
decision of the policy to the next: what was decided is carried out, the next draft is written and scored. `--list`
prints the files with their functions. Exits with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from inspect import CO_OPTIMIZED
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROBLEM = 29  # of the test split: eight steps, of which the strong model writes the fifth
LIBRARY = ("stepwise/", "programs/")
ENGINE = ("stepwise/engine/", "stepwise/models/engine/")
OUTSIDE = (*ENGINE, "stepwise/grading/")
Functions = Counter[tuple[str, str]]  # (file, qualified name) and how often it was entered


class Profiler:
    """Counts entered functions of the tree in all threads that start after it, while it is `on`."""

    def __init__(self, tree: Path):
        self.on = False
        self.entered: Counter[CodeType] = Counter()
        self.crossings: Counter[tuple[CodeType, CodeType]] = Counter()
        self._tree = f"{tree}{os.sep}"
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self.on:
            self.entered[frame.f_code] += 1
            if frame.f_back is not None:
                self.crossings[frame.f_back.f_code, frame.f_code] += 1

    def stop(self) -> None:
        """Take the profiler out."""
        self.on = False
        sys.setprofile(None)
        threading.setprofile(None)

    def functions(self, before: Counter[CodeType] | None = None) -> Functions:
        """Those of the library that were entered, since the state `before` where one is given."""
        found: Functions = Counter()
        for code, count in (self.entered - (before or Counter())).items():
            file = self._file(code)
            if file and code.co_flags & CO_OPTIMIZED and not code.co_name.startswith("<"):
                found[file, code.co_qualname] += count
        return found

    def across(self) -> int:
        """Calls from one file of the library to another."""
        pairs = ((self._file(a), self._file(b), count) for (a, b), count in self.crossings.items())
        return sum(count for a, b, count in pairs if a and b and a != b)

    def _file(self, code: CodeType) -> str:
        """The file within the tree, "" for what is not the library's."""
        name = code.co_filename
        inside = name[len(self._tree) :].replace(os.sep, "/") if name.startswith(self._tree) else ""
        return inside if inside.startswith(LIBRARY) else ""


def watched(inner: Any, profiler: Profiler, asked: list[tuple[bool, Counter[CodeType]]]) -> Any:
    """A threshold that tells when it is asked; what is between two questions is one step."""

    def decide(self: Any, view: Any) -> Any:
        action = type(inner).decide(self, view)
        asked.append((type(action).__name__ != "Keep", profiler.entered.copy()))
        return action

    return type("Watched", (type(inner),), {"decide": decide})(inner.threshold)


def solve_all(tree: Path, number: int) -> dict[str, Any]:
    """One problem through the library's call."""
    profiler = Profiler(tree)
    import stepwise as sw

    problem = sw.lab.generate("test", 1, start=number)[0].problem
    from stepwise.routing import Threshold

    asked: list[tuple[bool, Counter[CodeType]]] = []
    policy = watched(Threshold(0.5), profiler, asked)
    names = [f"llamacpp/lab-{name}" for name in ("weak", "strong", "scorer")]
    profiler.on = True
    with sw.StepRouter(*names, policy) as router:
        loaded = profiler.entered.copy()
        trace = router.solve_all([problem], progress=False)[0]
        profiler.stop()
    steps = []
    for (escalated, before), (_, after) in pairwise(asked):
        later = Profiler.functions(profiler, before) - Profiler.functions(profiler, after)
        steps.append({"escalated": escalated, "functions": as_rows(later)})
    return {
        "steps": steps,
        "functions": as_rows(profiler.functions(loaded)),
        "with_loading": as_rows(profiler.functions()),
        "trace": [step.author for step in trace.steps],
    }


def route(tree: Path, number: int) -> dict[str, Any]:
    """One problem through the program."""
    import stepwise as sw
    from stepwise.cli import main

    problem = sw.lab.generate("test", 1, start=number)[0].problem
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "problem.jsonl"
        file.write_text(json.dumps({"id": problem.id, "question": problem.question, "answer": problem.answer}) + "\n")
        sys.argv = ["stepwise", "route", "--problems", str(file), "--out", str(Path(folder) / "out")]
        profiler = Profiler(tree)
        profiler.on = True
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
        profiler.stop()
    functions = as_rows(profiler.functions())
    return {"functions": functions, "with_loading": functions, "across": profiler.across()}


def here(tree: Path) -> None:
    """Import the library from `tree`, whatever checkout is installed."""
    sys.path.insert(0, str(tree))
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]


def as_rows(functions: Functions) -> list[list[Any]]:
    """Plain data."""
    return [[file, name, count] for (file, name), count in sorted(functions.items())]


def main(argv: Sequence[str] | None = None) -> int:
    """Count in the tree and print; returns 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to count in (default: this one)")
    parser.add_argument("--problem", type=int, default=PROBLEM, metavar="N", help="of the test split")
    parser.add_argument("--list", action="store_true", help="print files and functions")
    parser.add_argument("--count", choices=("solve_all", "route"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    tree = args.tree.resolve()
    if args.count:
        here(tree)
        found = {"solve_all": solve_all, "route": route}[args.count](tree, args.problem)
        print(f"\n{json.dumps(found)}")
        return 0
    return report({name: counted(name, tree, args.problem) for name in ("solve_all", "route")}, args.list)


def counted(name: str, tree: Path, number: int) -> dict[str, Any]:
    """What one of the two counts, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--tree", str(tree), "--problem", str(number)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [*command, "--count", name], cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(found: dict[str, dict[str, Any]], listed: bool) -> int:
    """Print the counts beside their limits."""
    inside, program = found["solve_all"], found["route"]
    writers, steps = inside["trace"], [(step["escalated"], step["functions"]) for step in inside["steps"]]
    print(f"one problem of {len(writers)} steps, {writers.count('strong')} of them by the strong model")
    for name, rows in (
        ("solve_all", inside["functions"]),
        ("solve_all, loading of the models included", inside["with_loading"]),
        ("route, all of the program", program["functions"]),
    ):
        calls = sum(row[2] for row in rows)
        print(f"{name}: {len(rows)} functions in {len(files(rows))} files, {calls:,} calls")
    print(f"calls of route from one file to another: {program['across']:,}")
    for escalated in (False, True):
        some = sorted((rows for kind, rows in steps if kind == escalated), key=len)
        for rows in some[len(some) // 2 :][:1]:
            print(
                f"a step that is {'escalated' if escalated else 'kept'} (median of {len(some)}): {len(rows)} functions "
                f"in {len(files(rows))} files, {len(rows) - len(outside(rows, ENGINE))} of the functions the engine's"
            )
    largest = max((outside(rows, ENGINE) for _, rows in steps), key=len)
    passed = [
        limit("files of solve_all outside engine and grading", len(files(outside(inside["functions"], OUTSIDE))), 20),
        limit("files of route", len(files(program["functions"])), 45),
        limit("functions of the largest step outside the engine", len(largest), 60),
    ]
    for title, rows in (
        ("the largest step", largest),
        ("solve_all", inside["functions"]),
        ("route", program["functions"]),
    ) if listed else ():  # fmt: skip
        print(f"\n{title}")
        for file in files(rows):
            print(f"  {file}: " + ", ".join(f"{name} x{count}" for place, name, count in rows if place == file))
    return int(any(passed))


def files(rows: Sequence[Sequence[Any]]) -> list[str]:
    """The files of some functions."""
    return sorted({row[0] for row in rows})


def outside(rows: Sequence[Sequence[Any]], folders: tuple[str, ...]) -> list[Sequence[Any]]:
    """The functions that stand in none of some folders."""
    return [row for row in rows if not row[0].startswith(folders)]


def limit(what: str, count: int, most: int) -> bool:
    """Print one count; returns whether it is above its limit."""
    print(f"{what}: {count} (at most {most}{', OVER' if count > most else ''})")
    return count > most


if __name__ == "__main__":
    sys.exit(main())
