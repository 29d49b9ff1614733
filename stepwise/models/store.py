"""Answers of models that are kept: asked once, found again by everybody who asks the same.

A row is on its way to the disk when `add` returns, so a process that is killed at any moment loses nothing that was
added; a torn last line, as a crash of the machine may leave it, is cut off when the file is opened, and a line that
cannot be read costs that line.

A request to a server is written down before it is sent (`begin`). One that has no answer when the file is opened again
was perhaps billed: it counts in `perhaps` at the most that it can have cost.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import TypeAdapter

from stepwise.errors import DataError, redact
from stepwise.io import lock, locked, parse_json
from stepwise.types import Usage

_USAGE = TypeAdapter(Usage)
_FORM = 1  # of rows and keys; part of every key, so that another form is asked for anew


class Answer(NamedTuple):
    """A row: what `role` answered for the problem with this id, and what that really cost. `value` is plain JSON, None
    where it failed: such a row is never found, but counts in `spent`. `perhaps`: the most that tries which were not
    answered were billed beside it.

    >>> Answer("a1b2", "strong", "p7", Usage("M", 1, 20, 20, 4), value={"text": "So 3."}).problem
    'p7'
    """

    key: str
    role: str
    problem: str
    usage: Usage
    value: Any = None
    perhaps: Usage = Usage()


class CallCache:
    """Answers by key, in the JSON Lines file at `path`, or in memory alone without one. Thread safe.

    `replays_are_free`: what the file holds when it is opened has been paid for and counted, and a router neither
    reserves nor counts it again: for going on with a run. Without, a known answer counts as if it were
    asked for, so that policies are compared at the cost that each would have. `unanswered` has the requests that an
    earlier process had sent when it was killed, and `perhaps` what each may have cost.

    `shared`: other processes may have the file open so, too. What one of them was answered is found by the others from
    then on; what was sent and has no answer is then nobody's to count here (`SharedCaps` does).

    Raises `DataError` for a file that is no cache or that another process has open.

    Example:
        with CallCache("answers.jsonl") as cache:
            traces = sw.StepRouter("llamacpp/lab-weak", "llamacpp/lab-strong", cache=cache).solve_all(problems)
    """

    def __init__(self, path: str | Path | None = None, *, replays_are_free: bool = False, shared: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.replays_are_free, self._shared = replays_are_free, shared and self.path is not None
        self.hits: dict[str, int] = {}
        self.misses: dict[str, int] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._spent: dict[str, dict[str, Usage]] = {}  # by problem and role
        self._perhaps: dict[str, dict[str, Usage]] = {}
        self._by_model: dict[tuple[str, str], Usage] = {}  # and by role
        self._open: dict[str, Answer] = {}  # sent and not answered, as what it may cost
        self._lock = threading.Lock()
        self._file = io.BytesIO() if self.path is None else _opened(self.path, alone=not shared)
        self._end = 0
        try:
            with self._alone():
                self._read()
        except DataError:
            self._file.close()
            raise
        self.unanswered = () if self._shared else tuple(self._open.values())
        self.add(self.unanswered)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: str) -> Any:
        """The value kept under `key`, None where there is none."""
        with self._lock:
            if key not in self._places and self._shared:
                with self._alone():
                    self._read()
            place = self._places.get(key)
            if place is None:
                return None
            self._file.seek(place[0])
            return json.loads(self._file.read(place[1]))["value"]

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers; a later one under the same key counts."""
        with self._lock:
            for answer in answers:
                row = answer._asdict() | {"usage": _dumped(answer.usage)}
                row["perhaps"] = _dumped(answer.perhaps)
                if not row["perhaps"]:  # as in files of earlier versions
                    del row["perhaps"]
                length = len(line := _line(row))
                self._note(answer, self._write(line) - length, length)

    def begin(self, key: str, role: str, problem: str, most: Usage) -> None:
        """Write down that what `key` stands for is sent to a server now, and the most that it may be billed."""
        with self._lock:
            self._write(_line({"sent": key, "role": role, "problem": problem, "usage": _dumped(most)}))
            self._open[key] = Answer(key, role, problem, Usage(), None, most)

    def _write(self, line: bytes) -> int:
        """Put a line at the end of the file; returns where the next one goes. Needs the lock."""
        with self._alone():
            if self._shared:
                self._read()  # so that the end is known
            self._file.seek(0, io.SEEK_END)
            self._file.write(line)
            self._file.flush()
            self._end += len(line)
        return self._end

    def _alone(self) -> AbstractContextManager[None]:
        """No other process writes meanwhile; needed where the file is shared."""
        return locked(self._file.fileno()) if self._shared else nullcontext()

    def spent(self, problem: str | None = None) -> dict[str, Usage]:
        """What was really spent by role, over all starts, failures included; on one problem, or on all."""
        return self._sum(self._spent, problem)

    def perhaps(self, problem: str | None = None) -> dict[str, Usage]:
        """The most that was billed beside that, for requests without an answer, by role; those that are being asked now
        are not among them.
        """
        return self._sum(self._perhaps, problem)

    def spent_by_model(self) -> list[tuple[str, Usage]]:
        """Role and usage for each model, and each endpoint of one, that was asked, over all starts."""
        with self._lock:
            return [(role, usage) for (role, _), usage in self._by_model.items()]

    def _sum(self, of: Mapping[str, Mapping[str, Usage]], problem: str | None) -> dict[str, Usage]:
        with self._lock:
            accounts = of.values() if problem is None else [of.get(problem, {})]
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
        self._open.pop(answer.key, None)
        for of, usage in ((self._spent, answer.usage), (self._perhaps, answer.perhaps)):
            account = of.setdefault(answer.problem, {})
            account[answer.role] = account.get(answer.role, Usage()) + usage
        asked = answer.role, answer.usage.model
        self._by_model[asked] = self._by_model.get(asked, Usage()) + answer.usage
        if answer.value is not None:
            self._places[answer.key] = (start, length)

    def _read(self) -> None:
        """Note every whole row behind those that are known, and cut a torn one off. Needs the lock."""
        garbled, rows, begun = list[int](), 0, self._end
        self._file.seek(self._end)
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):  # of a process that was killed
                self._file.truncate(self._end)
                break
            try:
                answer = _answer_of(line)
            except (ValueError, TypeError, KeyError, AttributeError):
                garbled.append(number)
            else:
                rows += 1
                if answer.value is _SENT:
                    self._open[answer.key] = answer._replace(value=None)
                else:
                    self._note(answer, self._end, len(line))
            self._end += len(line)
        if garbled and not rows and not begun:
            raise DataError(
                f"{self.path}, line {garbled[0]}: not a row of a cache of answers; remove it, or give another file"
            )
        if garbled:
            warnings.warn(
                f"{self.path}: lines {', '.join(map(str, garbled[:5]))}{' ...' * (len(garbled) > 5)} cannot be read; "
                "what they held is asked for again, and is in no sum of what was spent", stacklevel=4,
            )  # fmt: skip


_SENT = object()


def _answer_of(line: bytes) -> Answer:
    """The row on a line; one that was only sent has the value `_SENT`. Raises whatever a line that is none leads to."""
    row = parse_json(line)
    usages = {name: _USAGE.validate_python(row[name]) for name in ("usage", "perhaps") if name in row}
    if any(min(usage.calls, usage.prompt_tokens, usage.evaluated_tokens, usage.generated_tokens) < 0
           for usage in usages.values()):  # fmt: skip
        raise ValueError("a count is negative")
    if not all(isinstance(row[name], str) for name in ("role", "problem")):
        raise TypeError("role and problem are texts")
    if "sent" in row:
        return Answer(str(row["sent"]), row["role"], row["problem"], Usage(), _SENT, usages["usage"])
    return Answer(**{**row, **usages})


def _line(row: Mapping[str, Any]) -> bytes:
    return redact(json.dumps(row), shapes=False, as_json=True).encode() + b"\n"


def _dumped(usage: Usage) -> Any:
    return _USAGE.dump_python(usage, exclude_defaults=True)


def key_of(parts: Mapping[str, Any]) -> str:
    """A key from plain JSON: equal parts have equal keys, in every process and on every machine.

    >>> key_of({"seed": 1, "text": "a"}) == key_of({"text": "a", "seed": 1})
    True
    """
    text = json.dumps({"form": _FORM, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _opened(path: Path, alone: bool) -> BinaryIO:
    """The file, made where it is missing; `alone`: locked until it is closed, or the process ends in whatever way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise DataError(f"{path}: the cache is a file, and this is a directory; give the path of a file in it")
    path.touch()
    file = path.open("r+b")
    if alone and not lock(file.fileno()):
        file.close()
        raise DataError(f"{path}: another process has this cache open; wait for it or give another file")
    return file
