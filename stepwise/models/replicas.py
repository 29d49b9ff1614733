"""Several processes under the same caps: what each has spent and set aside stands in a directory that all of them read.

1. `SharedCaps` takes the place of a ledger's lock. Whoever decides about a reservation holds a file's lock besides, and
   for that moment counts what the other processes' files say as spent and set aside beside its own. What it changed is
   in its own file before the lock is let go, and so before anything is asked of a model.
2. A process is known by a name, and holds a lock on its file as long as it lives. What one that was killed had set
   aside may have been billed: it counts as spent.
3. Nobody is woken by another process: whoever waits for what another has set aside looks again at every `poke`.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from stepwise.errors import ConfigError, DataError
from stepwise.io import lock, locked, read_json
from stepwise.models.budget import Ledger
from stepwise.models.reservations import give_turns

_Amounts = dict[str, dict[str, Fraction]]
"""By the name of a ledger, and that of a cap."""


class SharedCaps:
    """The caps of `ledgers` (a run's and those under it, whose names must differ) over all processes that have
    `folder` open, this one under `name`.

    Each ledger has what this process spent over its own starts when it is handed in, and nothing set aside. Raises
    DataError where another process has that name, or for a file that cannot be read; ConfigError where there is no
    directory, or the file system has no locks.

    Example:
        shared = SharedCaps("shared", "replica-1", [caps.ledger, *keys.values()])
    """

    def __init__(self, folder: str | Path, name: str, ledgers: list[Ledger]) -> None:
        self._folder, self._name = Path(folder), name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._folder}: no directory to share can be made there ({error.strerror})") from None
        self._ledgers = {ledger._name: ledger for ledger in ledgers}
        self._files: dict[str, BinaryIO] = {}
        self._gate, self._threads = self._open("caps.lock"), threading.Lock()
        self._within, self._written = contextlib.ExitStack(), ""
        self._others: dict[str, tuple[dict[str, Fraction], dict[str, Fraction]]] = {}
        with self._alone():
            if not lock(self._open(f"{name}.lock").fileno()):
                raise DataError(f"{self._folder}: another process is at work as {name!r}; give each its own --out")
            before = self._read(name)
            self._lost = {ledger: _sum(rows["lost"], rows["held"]) for ledger, rows in before.items()}
            self._write()
        for ledger in ledgers:
            ledger._lock = self

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            self._within.enter_context(self._alone())
            self._others = self._seen()
            self._add(1)
        except BaseException:
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._add(-1)
            self._write()
        finally:
            self._leave()

    def poke(self) -> None:
        """Let those who wait look again at what other processes have given back."""
        run = next(iter(self._ledgers.values()))._levels[-1]
        if run._queue:
            with self:
                give_turns(run._queue)

    def close(self) -> None:
        """Let go of the name, and of the ledgers, which count for themselves then; calling it twice does nothing."""
        for ledger in self._ledgers.values():
            ledger._lock = self._threads
        for file in self._files.values():
            file.close()

    def _leave(self) -> None:
        try:
            self._within.close()
        finally:
            self._threads.release()

    def _open(self, name: str) -> BinaryIO:
        self._files[name] = (self._folder / name).open("ab")
        return self._files[name]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self._gate.fileno()))
            except OSError as error:
                reason = f"{self._folder}: its files cannot be locked ({error})"
                raise ConfigError(f"{reason}; take a local directory, or give each replica its own budget") from None
            yield

    def _seen(self) -> dict[str, tuple[dict[str, Fraction], dict[str, Fraction]]]:
        """By ledger, what is spent and what is set aside beside what this process's ledgers say."""
        spent: _Amounts = {name: dict(lost) for name, lost in self._lost.items()}
        held: _Amounts = {}
        for path in self._folder.glob("*.json"):
            if path.stem == self._name:
                continue
            with (self._folder / f"{path.stem}.lock").open("ab") as file:
                is_dead = lock(file.fileno())
            for name, rows in self._read(path.stem).items():
                sure = [rows["spent"], rows["lost"], *([rows["held"]] if is_dead else [])]
                spent[name] = _sum(spent.get(name, {}), *sure)
                held[name] = _sum(held.get(name, {}), {} if is_dead else rows["held"])
        return {name: (spent.get(name, {}), held.get(name, {})) for name in self._ledgers}

    def _add(self, sign: int) -> None:
        for name, (spent, held) in self._others.items():
            ledger = self._ledgers[name]
            for mine, theirs in ((ledger._spent, spent), (ledger._held, held)):
                for cap, amount in theirs.items():
                    mine[cap] += sign * amount

    def _read(self, name: str) -> dict[str, dict[str, dict[str, Fraction]]]:
        path = self._folder / f"{name}.json"
        if not path.exists():
            return {}
        remedy = "stop all replicas and remove it: what that one spent is then counted no more"
        found = read_json(path, remedy)
        try:
            return {
                ledger: {kind: {cap: Fraction(text) for cap, text in rows[kind].items()} for kind in _KINDS}
                for ledger, rows in found.items()
            }
        except (ValueError, KeyError, AttributeError, TypeError):
            raise DataError(f"{path} does not say what a replica has spent; {remedy}") from None

    def _write(self) -> None:
        rows: dict[str, dict[str, Mapping[str, Any]]] = {
            name: {"spent": ledger._spent, "held": ledger._held, "lost": self._lost.get(name, {})}
            for name, ledger in self._ledgers.items()
        }
        text = json.dumps({name: {kind: _shown(each[kind]) for kind in _KINDS} for name, each in rows.items()})
        if text != self._written:
            # Whole or not at all, and not synced: that is for machines that crash, and each call waits for this.
            draft = self._folder / f"{self._name}.draft"
            draft.write_text(text + "\n", encoding="utf-8")
            draft.replace(self._folder / f"{self._name}.json")
            self._written = text


_KINDS = ("spent", "held", "lost")


def _shown(amounts: Mapping[str, Any]) -> dict[str, str]:
    return {cap: str(amount) for cap, amount in amounts.items() if amount}


def _sum(*amounts: Mapping[str, Fraction]) -> dict[str, Fraction]:
    return {cap: sum((each.get(cap, Fraction()) for each in amounts), Fraction()) for cap in set().union(*amounts)}
