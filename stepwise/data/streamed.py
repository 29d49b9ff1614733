"""Problems of a JSON Lines file read as they are needed, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepwise.data.columns import RowReader, columns_of
from stepwise.errors import DataError
from stepwise.grading import check_gold
from stepwise.io import parse_json, rows_text
from stepwise.types import Problem

_ENDINGS = (".jsonl", ".ndjson")


def digest_of(problems: Any) -> str:
    """What tells these problems from others: a `StreamedProblems`' own, or that of a sequence.

    >>> digest_of([Problem("p", "1 + 1?")]) == digest_of([Problem("p", "1 + 2?")])
    False
    """
    if isinstance(problems, StreamedProblems):
        return problems.digest
    return hashlib.sha256(rows_text(problems).encode()).hexdigest()[:16]


def streamed(
    source: str | None, n: int | None = None, columns: str | Mapping[str, str] | None = None
) -> StreamedProblems | None:
    """The problems of a source that can be read so, None for any other.

    >>> streamed("gsm8k")
    """
    if source is None or not source.endswith(_ENDINGS) or not Path(source).is_file():
        return None
    return StreamedProblems(Path(source), n, columns)


class StreamedProblems:
    r"""The first `n` problems of a file, with the columns that `load_problems` knows; `digest` tells files apart.

    A row that is no problem is a DataError when its turn comes, as is a gold answer that cannot be graded. Ids that
    occur twice are not looked for.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "problems.jsonl"
    >>> _ = path.write_text('{"question": "1 + 1?", "answer": "2"}\n' * 3)
    >>> problems = StreamedProblems(path, n=2)
    >>> len(problems), next(iter(problems)).answer
    (2, '2')
    """

    def __init__(self, path: Path, n: int | None = None, columns: str | Mapping[str, str] | None = None) -> None:
        self.path, self._columns = path, columns_of(columns)
        digest, rows = hashlib.sha256(), 0
        with path.open("rb") as file:
            for line in file:
                if n is not None and rows >= n:
                    break
                digest.update(line)
                rows += bool(line.strip())
        if not rows:
            raise DataError(f"{path} has no rows; give at least one problem, one JSON object per line")
        self._rows, self.digest = rows, digest.hexdigest()[:16]

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[Problem]:
        reader, done = RowReader(self._columns), 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if done == self._rows:
                    return
                if not line.strip():
                    continue
                place = f"{self.path}, line {number}"
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise DataError(f"{place}: not JSON ({error}); mend or remove that line") from None
                if not isinstance(row, dict):
                    raise DataError(f"{place} is {row!r:.60}; it must be an object with question and answer")
                problem, _ = reader.read(row, place, "")
                try:
                    if problem.answer is not None:
                        check_gold(problem)
                except DataError as error:
                    raise DataError(f"{place}: {error}") from None
                done += 1
                yield problem
