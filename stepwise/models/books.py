"""What the workers of a run share: its caps, its answers, and what was found out about its models; all on disk.

`Books` has them, in one process beside the run's directory. A worker has a desk (`stepwise.models.desk`), which asks.

1. Under a cap every call is set aside in the books before it is made, and is written to holds.jsonl; books that are
   opened anew after a crash hold it still. Without a cap nothing is asked: what a call came to is told.
2. What a call came to is in spent.jsonl, and an answer that is kept in answers.jsonl, as in one process; a crash of the
   machine may lose what was spent on chunks that are not sealed.
3. A worker that is lost had begun calls. Those sent to a server count at the most that they can have cost, and so do
   those of local models under a cap. What had been told is there.
4. A message may come twice (it is sent again where the books were opened anew): one that ends a call which has ended
   does nothing; spending without a cap may then count twice, and never not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise.config import Config
from stepwise.io import parse_json, read_json, write_text
from stepwise.models.caps import Caps
from stepwise.models.reservations import Reservation, Tallies, add_tallies, reserve_at_once, reserved_before
from stepwise.models.store import Answer, CallCache
from stepwise.types import Usage

HOLDS, ANSWERS, FROZEN = "holds.jsonl", "answers.jsonl", "engines.json"
Granted = tuple[int, str]
"""Tokens, and the cap that cut them."""
_NOTHING = (0, "")


@dataclass(frozen=True)
class _Folder:
    """A run's directory, of which all names were claimed by the run itself."""

    path: Path

    def claim(self, name: str, **_: Any) -> Path:
        return self.path / name


@dataclass
class _Hold:
    """What a task has set aside."""

    task: str
    role: str
    most: Usage
    granted: Granted
    reservation: Reservation


class Books:
    """Caps, answers and facts of the run in `folder`. `start` names a start of the run: what workers of an earlier one
    had begun is lost. `keeps`: answers are kept.

    Example:
        books = Books(config, Path("out/route"), keeps=False, start="a1")
        books.summary()
    """

    def __init__(self, config: Config, folder: Path, *, keeps: bool, start: str) -> None:
        self._config, self._folder = config, folder
        self._caps = Caps(config, _Folder(folder), syncs=False)  # type: ignore[arg-type]
        self.ledger = self._caps.ledger
        self._store = CallCache(folder / ANSWERS, replays_are_free=True) if keeps else None
        for lost in self._store.unanswered if self._store else ():
            self._caps.add(lost.role, lost.perhaps)
        self._holds: dict[str, _Hold] = {}
        self._sent: dict[str, dict[str, tuple[str, str, Usage]]] = {}  # by task and key
        self._lost: set[str] = set()  # tasks
        self._calls, self._busy, self._asked = 0, 0.0, 0.0
        rows = _held(folder / HOLDS)
        self._log = (folder / HOLDS).open("a" if rows else "w", encoding="utf-8")
        self._restore(rows, start)
        self._write({"start": start})

    def _restore(self, rows: Mapping[str, Mapping[str, Any]], start: str) -> None:
        """Hold what was held when the process ended."""
        for name, row in rows.items():
            amounts = {"prompt_tokens": row["prompt_tokens"], "calls": row["calls"]}
            held = reserved_before(self.ledger, row["role"], row["tokens"], **amounts)
            self._note(name, row["task"], held, (row["tokens"], row["cut_by"]), row["prompt_tokens"], row["calls"])
        for task in {row["task"] for row in rows.values() if row["start"] != start}:
            self.lose(task)
        self._lost.clear()  # this start has tasks of the same names

    def _note(self, name: str, task: str, held: Reservation, granted: Granted, prompt_tokens: int, calls: int) -> None:
        most = Usage("", calls, prompt_tokens, prompt_tokens, granted[0])
        self._holds[name] = _Hold(task, held._role, most, granted, held)

    def _write(self, row: Mapping[str, Any]) -> None:
        self._log.write(json.dumps(row) + "\n")
        self._log.flush()  # survives this process; a crash of the machine ends the workers on it too

    def call(self, method: str, *args: Any) -> Any:
        """What a method says; the one door for workers elsewhere."""
        self._calls += 1
        return getattr(self, method)(*args)

    # ----- caps

    def hold(self, name: str, task: str, role: str, tokens: int, prompt_tokens: int, calls: int) -> Granted | None:
        """Set aside what a call may take at most; None where it would have to wait."""
        if (before := self._holds.get(name)) is not None:
            return before.granted
        if task in self._lost:  # its worker's last words
            return _NOTHING
        held = reserve_at_once(self.ledger, role, tokens, prompt_tokens=prompt_tokens, calls=calls)
        return None if held is None else self._begin(name, task, held, prompt_tokens, calls)

    async def wait(
        self, name: str, task: str, role: str, tokens: int, prompt_tokens: int, calls: int, least: int
    ) -> Granted:
        """The same, which waits for its turn as `Ledger.areserve` does; raises BudgetExceededError."""
        if (before := self._holds.get(name)) is not None:
            return before.granted
        held = await self.ledger.areserve(role, tokens, prompt_tokens=prompt_tokens, calls=calls, least_tokens=least)
        if task in self._lost:  # nobody waits any more
            held.cancel()
            return _NOTHING
        return self._begin(name, task, held, prompt_tokens, calls)

    def _begin(self, name: str, task: str, held: Reservation, prompt_tokens: int, calls: int) -> Granted:
        granted = (held.max_tokens, held.cut_by)
        self._note(name, task, held, granted, prompt_tokens, calls)
        self._write(
            {"name": name, "task": task, "role": held._role, "tokens": granted[0], "cut_by": granted[1],
             "prompt_tokens": prompt_tokens, "calls": calls}
        )  # fmt: skip
        return granted

    def settle(self, name: str, usage: Usage, perhaps: Usage | None) -> None:
        """A call that was set aside came to this."""
        if (hold := self._holds.pop(name, None)) is not None:
            hold.reservation.settle(usage, perhaps)  # in spent.jsonl first: a crash between the two counts it twice
            self._write({"end": name})

    def release(self, name: str) -> None:
        """A call that was set aside was not made."""
        if (hold := self._holds.pop(name, None)) is not None:
            hold.reservation.cancel()
            self._write({"end": name})

    def spend(self, role: str, usage: Usage, perhaps: Usage | None) -> None:
        """A call came to this, of a run without caps."""
        self._caps.add(role, usage, perhaps)

    def lose(self, task: str) -> None:
        """The worker of a task is lost: see the module, 3."""
        self._lost.add(task)
        for key, (role, problem, most) in self._sent.pop(task, {}).items():
            assert self._store is not None
            self._store.add([Answer(key, role, problem, Usage(), None, most)])
            self._caps.add(role, most)
        for name in [name for name, hold in self._holds.items() if hold.task == task]:
            hold = self._holds[name]
            if self._config.role(hold.role).local:  # type: ignore[arg-type]
                self.settle(name, hold.most, None)
            else:
                self.release(name)

    def end(self, task: str, tallies: Tallies, busy: float = 0.0, asked: float = 0.0) -> None:
        """A task has ended; what its own ledger counted, its seconds, and those that it waited for the books."""
        self._sent.pop(task, None)
        self._busy, self._asked = self._busy + busy, self._asked + asked
        self._caps.sync()
        add_tallies(self.ledger, *tallies)

    def check(self, done: int, coming: int) -> None:
        """See `Caps.check`."""
        self._caps.check(done, coming)

    def of_ledger(self, method: str, *args: Any) -> Any:
        """What the ledger says."""
        found = getattr(self.ledger, method)
        return found(*args) if callable(found) else found

    def totals(self) -> dict[str, float]:
        """How often the books were asked, the seconds of all tasks, and those that these waited for the books."""
        return {"calls": self._calls, "busy": self._busy, "asked": self._asked}

    # ----- answers

    def find(self, key: str) -> Any:
        """The value kept under a key."""
        return self._kept.find(key)

    def begin(self, key: str, role: str, problem: str, most: Usage, task: str) -> None:
        """See `CallCache.begin`."""
        self._sent.setdefault(task, {})[key] = (role, problem, most)
        self._kept.begin(key, role, problem, most)
        if task in self._lost:
            self.lose(task)

    def add(self, answers: Iterable[tuple[Any, ...]], task: str) -> None:
        """See `CallCache.add`."""
        made = [Answer(*answer) for answer in answers]
        for answer in made:
            self._sent.get(task, {}).pop(answer.key, None)
        self._kept.add(made)

    def of_store(self, method: str, problem: str) -> Mapping[str, Usage]:
        """What was spent on a problem ("spent"), or perhaps billed ("perhaps")."""
        found: Mapping[str, Usage] = getattr(self._kept, method)(problem)
        return found

    @property
    def _kept(self) -> CallCache:
        assert self._store is not None, "this run keeps no answers"
        return self._store

    # ----- facts

    def frozen(self, key: str) -> dict[str, Any]:
        """See `RunDirectory.frozen`."""
        path = self._folder / FROZEN
        found = read_json(path, "give another directory (--out)") if path.exists() else {}
        return dict(found.get(key, {}))

    def freeze(self, key: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what the first worker found out; what is kept."""
        path = self._folder / FROZEN
        found = read_json(path, "give another directory (--out)") if path.exists() else {}
        if not found.get(key):
            found[key] = json.loads(json.dumps(dict(facts)))
            write_text(path, json.dumps(found, indent=1) + "\n")
        return dict(found[key])

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        if self._store is not None:
            self._store.close()


def _held(path: Path) -> dict[str, dict[str, Any]]:
    """What holds.jsonl says is held, by name, and in which start of the run."""
    rows, start = dict[str, dict[str, Any]](), ""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                row = parse_json(line) if line.endswith(b"\n") else {}
                start = row.get("start", start)
                if "end" in row:
                    rows.pop(row["end"], None)
                elif "name" in row:
                    rows[row["name"]] = row | {"start": start}
    return rows
