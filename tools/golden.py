"""Show that nothing measured changes: run an old commit and this tree on one machine, and compare what they compute.

    python tools/golden.py compare                       # against commit 6ee369c; three to six minutes on one core
    python tools/golden.py compare --old COMMIT --parts traces credit --problems 12
    python tools/golden.py record FILE                   # the tree in the current directory, as JSON (.gz: compressed)
    python tools/golden.py diff OLD NEW                  # two such files

Parts: `traces`, 60 lab problems under eight policies in arithmetic that no batch changes, so that they can be equal to
the bit whatever the loop is; `shipped`, the same as users run it, where a trace may part at one draw by rounding, which
is then shown; `collection`, `supervised`, `preference`, `reinforcement`, `pomdp`, `fit`, `credit`. Exits with 1 where
anything differs that rounding does not explain. `compare` needs git and the [train] extra.

The committed test reads tests/golden/lab.json.gz, made in a checkout of the old commit:

    python tools/golden.py record tests/golden/lab.json.gz --parts traces collection pomdp fit credit
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goldens import agreement, collected, parts, read, traces

OLD = "6ee369c"
ROOT = Path(__file__).resolve().parent.parent
PARTS: dict[str, Callable[[int], Any]] = {
    "traces": lambda problems: traces.record(problems, "exact"),
    "shipped": lambda problems: traces.record(problems, "shipped"),
    "collection": lambda _: parts.collection(),
    "supervised": lambda _: parts.supervised(),
    "preference": lambda _: parts.preference(),
    "reinforcement": lambda _: parts.reinforcement(),
    "pomdp": lambda _: parts.pomdp(),
    "fit": lambda _: parts.fit(),
    "credit": lambda _: parts.credit(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recorder, comparer = commands.add_parser("record"), commands.add_parser("compare")
    differ = commands.add_parser("diff")
    recorder.add_argument("file", type=Path)
    comparer.add_argument("--old", default=OLD, metavar="COMMIT", help="default: %(default)s")
    comparer.add_argument("--keep", type=Path, metavar="DIR", help="leave old.json.gz and new.json.gz there")
    for command in (recorder, comparer):
        command.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
        command.add_argument("--problems", type=int, default=traces.PROBLEMS, metavar="N", help="of the traces")
    differ.add_argument("old", type=Path)
    differ.add_argument("new", type=Path)
    args = parser.parse_args(argv)
    if args.command == "record":
        record(args.file, args.parts, args.problems)
        return 0
    if args.command == "diff":
        return show(read(args.old), read(args.new))
    return compare(args.old, args.parts, args.problems, args.keep)


def record(file: Path, names: Sequence[str], problems: int) -> None:
    """Record parts of the tree in the current directory. Exits where another tree's code would run."""
    tree = Path.cwd()
    sys.path.insert(0, str(tree))
    import stepwise

    if not Path(stepwise.__file__ or "").is_relative_to(tree):
        sys.exit(f"python imports stepwise from {stepwise.__file__}; change to the root of the tree to record")
    found: dict[str, Any] = {}
    for name in names:
        began = time.monotonic()
        found[name] = PARTS[name](problems)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    text = json.dumps(found, separators=(",", ":")).encode()
    file.write_bytes(gzip.compress(text, 9, mtime=0) if file.suffix == ".gz" else text)


def compare(commit: str, names: Sequence[str], problems: int, keep: Path | None) -> int:
    """Record the old commit and this tree, one after the other, each in a process of its own, and show both."""
    with tempfile.TemporaryDirectory() as scratch, worktree(commit, Path(scratch) / "tree") as old:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: folder.resolve() / f"{name}.json.gz" for name in ("old", "new")}
        for (name, file), tree in zip(files.items(), (old, ROOT), strict=True):
            print(f"recording the {name} tree", file=sys.stderr, flush=True)
            command = [sys.executable, str(Path(__file__).resolve()), "record", str(file), "--problems", str(problems)]
            environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
            environment.pop("PYTHONPATH", None)
            subprocess.run([*command, "--parts", *names], cwd=tree, env=environment, check=True)
        return show(read(files["old"]), read(files["new"]))


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """A checkout of a commit of this repository, gone afterwards."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", "--quiet", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def show(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print what came of each part, then every difference; returns 1 where one is not explained, else 0."""
    failed, details = False, list[str]()
    print(f"{'part':38} what came of it")
    for part, value in old.items():
        if part not in new:
            print(f"{part:38} only in the old record")
            continue
        for name, verdicts in verdicts_of(part, value, new[part]).items():
            print(f"{name:38} {verdicts}{'  FAILED' if verdicts.failed else ''}")
            details += [f"[{name}] {line}" for line in verdicts.lines]
            failed = failed or verdicts.failed
        if part in traces_parts():
            details += costs(part, value, new[part])
            failed = failed or max(agreement.spent(new[part])) > traces.BINDING
    print("\n".join(["", *details]) if details else "\nno difference")
    return int(failed)


def verdicts_of(part: str, old: Any, new: Any) -> dict[str, agreement.Verdicts]:
    """Verdicts by the name of what was compared."""
    if part in traces_parts():
        return {f"{part}: {name}": verdicts for name, verdicts in agreement.compare_traces(old, new).items()}
    if part == "collection":
        return {part: collected.compare_collections(old, new)}
    found = agreement.Verdicts()
    for key in dict.fromkeys((*old, *new)):
        agreement.compare_values(old.get(key), new.get(key), found, f"{part}.{key}")
    return {part: found}


def costs(part: str, old: Any, new: Any) -> list[str]:
    """Totals of each policy where they differ, and whether the cap that binds was kept."""
    lines = []
    for name in dict.fromkeys(row["policy"] for row in old):
        before, after = agreement.totals(old, name), agreement.totals(new, name)
        if before != after:
            lines.append(f"[{part}: {name}] totals: {before} became {after}")
    spent = [agreement.spent(rows) for rows in (old, new)]
    kept = max(map(max, spent)) <= traces.BINDING
    return [*lines, f"[{part}] strong tokens of each group under a cap of {traces.BINDING}, old and new: {spent[0]}, "
            f"{spent[1]}: the cap {'holds' if kept else 'IS PASSED'}"]  # fmt: skip


def traces_parts() -> tuple[str, str]:
    """The parts that are lists of traces."""
    return ("traces", "shipped")


if __name__ == "__main__":
    sys.exit(main())
