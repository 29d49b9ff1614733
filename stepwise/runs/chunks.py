"""Work in chunks with fixed members, each done whole or not at all: what is on disk after a crash is what it would be.

A chunk begins with empty caches, since which sequences share a batch changes the last digits of logits and so, now and
then, a token. Its files are written in a directory of another name, which is renamed when all of them are on disk; one
that was not renamed is thrown away and made again. So whatever ends the process, the same call later gives the same
files as if nothing had happened, as far as the models themselves repeat their answers (local ones do; with
`concurrency` above 1 the critic's batches depend on timing). That holds for the lab. Where answers are dear, of models
behind an API and of local ones that are not the lab's, each is on disk when it arrives, in answers.jsonl: a chunk that
is done again has it for nothing, and what is asked beside it may differ in its last digits.

Who does the chunks is the crew's affair: this process, one after the other, or workers elsewhere, many at a time.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from stepwise.errors import BudgetExceededError
from stepwise.io import append_text, read_rows, rows_text
from stepwise.runs.directory import RunDirectory
from stepwise.runs.progress import progress

T = TypeVar("T")
Part = tuple[int, Sequence[Any]]
"""A chunk's number and its members."""
Work = Callable[[Any, Sequence[Any]], Mapping[str, Sequence[Any]]]
"""Rows by the name of their file, of a crew's models and the members of a chunk."""
Sealed = Callable[[Path, int, bool], str | None]
"""Hears of a chunk that is sealed: its folder, its number of members, whether an earlier start sealed it. What it
returns stands beside the bar."""
_OPEN = ".open"


class Members(Protocol):
    """What is done in chunks: a sequence, or anything of known length that can be read through.

    Example:
        run_chunks(directory, load_problems("gsm8k"), 8, ["traces"], work, finish, crew=crew, label="routing")
    """

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


class Crew(Protocol):
    """Who does the chunks.

    Example:
        for number, texts in crew.map(work, enumerate([problems[:8], problems[8:]])): ...
    """

    def check(self, done: int, coming: int) -> None:
        """Raise BudgetExceededError where `coming` members, at the mean cost of the `done` ones, would pass a cap."""

    def map(self, work: Work, parts: Iterable[Part]) -> Iterator[tuple[int, Mapping[str, str]]]:
        """The chunks' files by name, as text, each as soon as it is done; takes a part when somebody is free."""


def run_chunks(
    directory: RunDirectory,
    members: Members,
    size: int,
    names: Sequence[str],
    work: Work,
    finish: Callable[[], Path],
    *,
    crew: Crew,
    label: str,
    on_sealed: Sealed | None = None,
) -> Path:
    """Do `work` for `size` members at a time, then `finish`; what it returns is returned.

    What `work` returns, rows for all of the file `names`, is sealed as a chunk; chunks that are sealed already are
    passed over. `label` names the bar to show. No chunk is begun that, at the mean cost of those before it, would pass
    a cap: then, where `work` itself meets one, and after Ctrl-C, what is sealed is finished before the exception goes
    on. Neither members nor rows are held: memory does not grow with their number.

    Example:
        out = run_chunks(directory, problems, 20, ["rollouts"], lambda models, part: {"rollouts": solved(models, part)},
                         finish, crew=crew, label="solving")
    """
    folder = directory.made() / "chunks"
    folder.mkdir(exist_ok=True)
    for left in folder.glob(f"*{_OPEN}"):  # what an earlier start left open
        shutil.rmtree(left)
    for name in names:  # the run's own before they are there, so that --overwrite finds them
        directory.claim(f"chunks/*/{name}.jsonl", folder=False)
    sizes = dict[int, int]()  # of the chunks that are in hand
    sealed = handed = 0  # members that are sealed, or were begun

    def told(number: int, num: int, before: bool) -> None:
        note = on_sealed(_place(folder, number), num, before) if on_sealed else None
        advance(0 if before else num, note)

    def unsealed() -> Iterator[Part]:
        nonlocal sealed, handed
        for number, part in enumerate(_parts(members, size)):
            if _place(folder, number).exists():
                sealed, handed = sealed + len(part), handed + len(part)
                told(number, len(part), True)
                continue
            # Of what others have in hand half is taken to be paid for; without a sealed chunk nothing is known.
            half = (handed - sealed) // 2 if sealed else 0
            crew.check(sealed + half, handed - sealed - half + len(part))
            sizes[number], handed = len(part), handed + len(part)
            yield number, part

    try:
        last = (len(members) - 1) // size
        done = sum(1 for _ in os.scandir(folder)) * size
        done -= (last + 1) * size - len(members) if _place(folder, last).exists() else 0
        with progress(label, len(members), done=done) as advance:
            for number, texts in crew.map(work, unsealed()):
                _seal(_place(folder, number), texts)
                sealed += sizes[number]
                told(number, sizes.pop(number), False)
    except (BudgetExceededError, KeyboardInterrupt):
        finish()
        raise
    return finish()


def texts_of(rows: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    r"""The files of a chunk by name, as text.

    >>> texts_of({"rows": [{"n": 1}]})
    {'rows': '{"n": 1}\n'}
    """
    return {name: rows_text(part) for name, part in rows.items()}


def _parts(members: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(members)
    while part := list(islice(rest, size)):
        yield part


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}"


def _seal(folder: Path, texts: Mapping[str, str]) -> None:
    """Write the files of a chunk, and give it its name once they are on disk."""
    draft = folder.with_name(folder.name + _OPEN)
    draft.mkdir()
    for name, text in texts.items():
        append_text(draft / f"{name}.jsonl", text)
    os.replace(draft, folder)
    with suppress(OSError, AttributeError):  # not every system lets a directory be synced
        place = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def sealed_files(out: str | Path, name: str) -> list[Path]:
    """The files `name` (without its ending) of all sealed chunks of `out`, in order.

    >>> sealed_files("out/nothing", "rollouts")
    []
    """
    folders = [p for p in (Path(out) / "chunks").glob("*") if p.is_dir() and p.suffix != _OPEN]
    return [folder / f"{name}.jsonl" for folder in sorted(folders, key=lambda p: (len(p.name), p.name))]


def sealed_rows(out: str | Path, name: str, kind: type[T]) -> list[T]:
    """The rows of the file `name` (without its ending) in all sealed chunks of `out`, in order.

    >>> sealed_rows("out/nothing", "rollouts", dict)
    []
    """
    return [row for file in sealed_files(out, name) for row in read_rows(file, kind)]


def sealed_counts(out: str | Path) -> Counter[str]:
    """What became of what, over all sealed chunks of `out`.

    Example:
        print(sealed_counts("out/int")["examples"])
    """
    counts: Counter[str] = Counter()
    for row in sealed_rows(out, "counts", dict):
        counts.update(row)
    return counts
