"""Work in chunks with fixed members, each done whole or not at all: what is on disk after a crash is what it would be.

The files of a chunk are written in a directory of another name, which is renamed when all of them are on disk; one that
was not renamed is thrown away and made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stepwise.interventions.caps import Caps, any_cap
from stepwise.io import append_rows, read_rows
from stepwise.runs.progress import progress

if TYPE_CHECKING:
    from stepwise.config import Config
    from stepwise.runs.directory import RunDirectory

T = TypeVar("T")
_OPEN = ".open"


def run_chunks(
    own: RunDirectory,
    members: Sequence[T],
    size: int,
    work: Callable[[Sequence[T]], Mapping[str, Sequence[Any]]],
    names: Sequence[str],
    label: str,
    config: Config,
) -> None:
    """Do `work` for `size` members at a time; what it returns, rows for all of the file `names`, is sealed as a chunk.

    Chunks that are sealed already are passed over. A bar called `label` shows how many members are done. Rows of the
    file "spent", one of the names (`caps.Spent`), say what a chunk cost: no chunk is begun that, at the mean cost of
    those before it, would pass a cap of [budget]; then BudgetExceededError is raised. The first one is not held back.
    """
    folder = chunk_folder(own)
    with progress(label, len(members)) as advance:
        for first in range(0, len(members), size):
            place = folder / f"{first // size:05d}"
            for name in names:  # a chunk is the run's own before it is there, so that --overwrite finds it
                own.claim(f"chunks/{place.name}/{name}.jsonl", folder=False)
            if not place.exists():
                if any_cap(config):
                    Caps(config, own.claim("spent.jsonl")).check(first, len(members[first : first + size]))
                rows = work(members[first : first + size])
                append_rows(own.claim("spent.jsonl"), rows["spent"])  # before it is sealed: it is paid for
                seal(place, {name: rows[name] for name in names})
            advance(len(members[first : first + size]))


def chunk_folder(own: RunDirectory) -> Path:
    """Where the chunks of a run lie; what an earlier start left open is thrown away."""
    folder = own.made() / "chunks"
    folder.mkdir(exist_ok=True)
    for left in folder.glob(f"*{_OPEN}"):
        shutil.rmtree(left)
    return folder


def seal(folder: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    """Write the files of a chunk, and give it its name once they are on disk."""
    draft = folder.with_name(folder.name + _OPEN)
    draft.mkdir()
    for name, found in rows.items():
        append_rows(draft / f"{name}.jsonl", found)
    os.replace(draft, folder)
    with suppress(OSError, AttributeError):  # not every system lets a directory be synced
        place = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def sealed_rows(out: str | Path, name: str, kind: type[T]) -> list[T]:
    """The rows of the file `name` (without its ending) in all sealed chunks of `out`, in order."""
    return [row for folder in sealed_chunks(out) for row in read_rows(folder / f"{name}.jsonl", kind)]


def sealed_chunks(out: str | Path) -> list[Path]:
    """The folders of the chunks of `out` that are whole, in order."""
    return sorted(p for p in (Path(out) / "chunks").glob("*") if p.is_dir() and p.suffix != _OPEN)
