"""Answers of models that are kept: asked once, found again by everybody who asks the same.

A row is on its way to the disk when `add` returns, so a process that is killed at any moment loses nothing that was
added; a torn last line, as a crash of the machine may leave it, is cut off when the file is opened.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import TypeAdapter, ValidationError

from stepwise.errors import DataError, redact
from stepwise.io import lock, parse_json
from stepwise.types import Usage

_USAGE = TypeAdapter(Usage)
_FORM = 1  # of rows and keys; part of every key, so that another form is asked for anew


class Answer(NamedTuple):
    """A row: what `role` answered for the problem with this id, and what that really cost. `value` is plain JSON, None
    where it failed: such a row is never found, but counts in `spent`.
    """

    key: str
    role: str
    problem: str
    usage: Usage
    value: Any = None


class CallCache:
    """Answers by key, in the JSON Lines file at `path`, or in memory alone without one. Thread safe.

    `replays_are_free`: what the file holds when it is opened has been paid for and counted, and a router neither
    reserves nor counts it again (see `paid`): for going on with a run. Without, a known answer counts as if it were
    asked for, so that policies are compared at the cost that each would have.

    Raises `DataError` for a file that is no cache or that another process has open.
    """

    def __init__(self, path: str | Path | None = None, *, replays_are_free: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.replays_are_free = replays_are_free
        self.hits: dict[str, int] = {}
        self.misses: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._spent: dict[str, dict[str, Usage]] = {}
        self._lock = threading.Lock()
        self._file = io.BytesIO() if self.path is None else _opened(self.path)
        self._end = self._read()
        self._began = self._end

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: str) -> Any:
        """The value kept under `key`, None where there is none."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            self._file.seek(place[0])
            return json.loads(self._file.read(place[1]))["value"]

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers; a later one under the same key counts."""
        with self._lock:
            lines = []
            for answer in answers:
                row = answer._replace(usage=_USAGE.dump_python(answer.usage, exclude_defaults=True))._asdict()
                line = redact(json.dumps(row), shapes=False).encode() + b"\n"
                self._note(answer, self._end, len(line))
                self._end += len(line)
                lines.append(line)
            self._file.seek(0, io.SEEK_END)
            self._file.write(b"".join(lines))
            self._file.flush()

    def paid(self, key: str) -> bool:
        """Whether the answer is free: it was there when the file was opened, and replays are free."""
        place = self._places.get(key) if self.replays_are_free else None
        return place is not None and place[0] < self._began

    def spent(self, problem: str | None = None) -> dict[str, Usage]:
        """What was really spent by role, over all starts, failures included; on one problem, or on all."""
        with self._lock:
            accounts = self._spent.values() if problem is None else [self._spent.get(problem, {})]
            total: dict[str, Usage] = {}
            for account in accounts:
                for role, usage in account.items():
                    total[role] = total.get(role, Usage()) + usage
            return total

    def count(self, role: str, hits: int, misses: int) -> None:
        """Note how many answers were found and how many were not."""
        with self._lock:
            self.hits[role] = self.hits.get(role, 0) + hits
            self.misses[role] = self.misses.get(role, 0) + misses

    @property
    def hit_rate(self) -> float | None:
        """Share of what was asked since the file was opened that was known, None before anything was asked."""
        hits, misses = sum(self.hits.values()), sum(self.misses.values())
        return hits / (hits + misses) if hits + misses else None

    def summary(self) -> str:
        """One line for a person: how much of what was asked since the file was opened was known, by role."""
        parts = [
            f"{role} {self.hits[role]:,} of {asked:,} ({self.hits[role] / asked:.0%})"
            for role in self.hits
            if (asked := self.hits[role] + self.misses[role])
        ]
        return f"answers found in the cache: {', '.join(parts) or 'nothing was asked'}"

    def close(self) -> None:
        """Close the file; calling it twice does nothing."""
        self._file.close()

    def __enter__(self) -> CallCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note(self, answer: Answer, start: int, length: int) -> None:
        account = self._spent.setdefault(answer.problem, {})
        account[answer.role] = account.get(answer.role, Usage()) + answer.usage
        if answer.value is not None:
            self._places[answer.key] = (start, length)

    def _read(self) -> int:
        """Note every whole row, cut a torn one off, and return where the next one goes."""
        end = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(end)
                break
            try:
                row = parse_json(line)
                answer = Answer(**{**row, "usage": _USAGE.validate_python(row["usage"])})
            except (ValueError, TypeError, KeyError, ValidationError):
                self._file.close()
                raise DataError(
                    f"{self.path}, line {number}: not a row of a cache of answers; remove it, or give another file"
                ) from None
            self._note(answer, end, len(line))
            end += len(line)
        return end


def key_of(parts: Mapping[str, Any]) -> str:
    """A key from plain JSON: equal parts have equal keys, in every process and on every machine."""
    text = json.dumps({"form": _FORM, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _opened(path: Path) -> BinaryIO:
    """The file, made where it is missing, and locked until it is closed, or the process ends in whatever way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    file = path.open("r+b")
    if not lock(file.fileno()):
        file.close()
        raise DataError(f"{path}: another process has this cache open; wait for it or give another file")
    return file
