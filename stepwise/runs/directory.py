"""The directory a run writes to: whose it is, what belongs to it, and how it ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stepwise import __version__
from stepwise.config import Config
from stepwise.errors import DataError, wrong_type
from stepwise.io import lock, read_json, write_text
from stepwise.plugins import is_import_path
from stepwise.plugins.identity import file_of, source_of

_CARD = "run.json"
_FROZEN = "engines.json"
CURRENT: ContextVar[RunDirectory | None] = ContextVar("stepwise_run_directory", default=None)
"""The directory of the run that is in progress."""


_WHAT = {"config_hash": "settings", "arguments": "arguments", "code": "code"}


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The keys that differ, with both values, at most five."""
    old, new = _flat(before), _flat(now)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    shown = [f"{key} was {old.get(key)!r:.80}, now {new.get(key)!r:.80}" for key in keys[:5]]
    return "; ".join([*shown, *([f"and {len(keys) - 5} more"] if len(keys) > 5 else [])]) or "of another version"


def _completed(settings: Any) -> Any:
    """Settings of a card with those at their default that came after it; as they are where they are valid no more."""
    try:
        return Config.model_validate(settings).model_dump(mode="json")
    except ValidationError:
        return settings


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return flat


def _modules(settings: Any) -> Iterator[str]:
    """The modules of all texts in plain JSON that may be the import path of a user's class."""
    if isinstance(settings, str) and is_import_path(settings):
        yield settings.partition(":")[0]
    elif isinstance(settings, dict | list):
        for part in settings.values() if isinstance(settings, dict) else settings:
            yield from _modules(part)


class RunDirectory:
    """Holds `run.json` (program, version, configuration and its hash, arguments, status, files) beside the run's files.

    A directory belongs to one program with one configuration and one set of arguments, and to one process at a time.

    Example:
        directory = RunDirectory(Path("out/mine"), program="mine", config=config, arguments={"n": 100})
        directory.check(overwrite=False)
        directory.open(anew=False)
    """

    def __init__(
        self, path: Path, *, program: str, config: Config, arguments: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`defaults`: the arguments that a run had which began before there were such arguments."""
        self.path = path
        self._defaults = dict(defaults or {})
        self.failed = False
        self.finished = False
        """Whether an earlier start of this run came to its end."""
        self._lock: int | None = None  # descriptor of the locked directory
        self._mine = False  # whether the card in the directory is this run's
        self._is_new = False  # whether the directory was made here
        self._inputs: set[str] = set()
        self._frozen: dict[str, Any] | None = None  # as in its file, once that is read
        self._replaced: list[str] | None = None  # files of an earlier run that go once this one has a file of its own
        self._began = time.time()
        self._card: dict[str, Any] = {
            "program": program,
            "version": __version__,
            "config_hash": config.hash,
            "arguments": json.loads(json.dumps(dict(arguments), default=str)),
            "config": (settings := config.model_dump(mode="json")),
            "code": {module: source_of(module) for module in sorted(set(_modules(settings))) if file_of(module)},
            "status": "running",
            "files": [],
        }

    def check(self, *, overwrite: bool) -> None:
        """Raise DataError, with the remedy, when the directory holds another run or files that are no run's."""
        found = read_card(self.path)
        if not found:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise DataError(
                    f"--out {self.path} exists and is no directory of a run; give a new or an empty directory"
                )
            return
        if overwrite:
            return
        for key in ("program", "config_hash", "arguments", "code"):
            before, now = found.get(key, {}), self._card[key]
            if before == now or (key == "code" and key not in found):  # its card is older than this
                continue
            if key == "config_hash":
                before, now = _completed(found.get("config", {})), self._card["config"]
            elif key == "arguments" and isinstance(before, dict):
                before = {**self._defaults, **before}
            if before == now:  # all that differs are options that there were not when the run began
                continue
            if isinstance(before, dict) and isinstance(now, dict):
                what = f"other {_WHAT[key]}: {_difference(before, now)}"
            else:
                what = f"another {key.replace('_', ' ')} ({before}, now {now})"
            raise DataError(
                f"--out {self.path} holds a run with {what}; give another --out, or --overwrite to remove that run's "
                "files first"
            )

    def open(self, *, anew: bool, later: bool = False) -> bool:
        """Take over what an earlier run left, True if there is any; with `anew` remove that run's files instead, or
        with `later` once this one has a file to put there, so that a run that comes to nothing costs none.

        Raises DataError where another process is at work in the directory.
        """
        if self.path.is_dir():
            self._take()
        found = read_card(self.path)
        if not found:
            return False
        files = [str(name) for name in found.get("files", [])]
        if anew:
            self._replaced = files
            if not later:
                self._replace()
            return False
        self.finished = found.get("status") == "finished"
        self._card["files"] = files
        self._write()
        self._mine = True
        return True

    def made(self) -> Path:
        """The directory, which exists from now on, with the run's card in it; DataError where another run began it."""
        if not self._mine:
            self._is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._take()
            if self._replaced is None and (self.path / _CARD).exists():
                raise DataError(f"another run began in --out {self.path} in the meantime; give another --out")
            self._write()
            self._mine = True
        return self.path

    def _replace(self) -> None:
        """Remove what an earlier run left that this one replaces."""
        for name in self._replaced or ():
            if not self.holds(name):
                self._remove(name)
        if self._replaced is not None and not self._mine:
            (self.path / _CARD).unlink(missing_ok=True)
        self._replaced = None

    def _take(self) -> None:
        """Lock the directory until `close`, or the end of the process whatever ends it."""
        if self._lock is None and os.name != "nt":  # Windows opens no directories
            self._lock = os.open(self.path, os.O_RDONLY)
        if self._lock is not None and not lock(self._lock):
            self._release()
            raise DataError(f"another process is at work in --out {self.path}; wait for it or give another")

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def claim(self, name: str, *, folder: bool = True, is_input: bool = False) -> Path:
        """Path of the run's own file `name` (relative, inside the directory; a * stands for the names of any folders).

        Its parent directory exists; with `folder` False it may be missing, and is left to the caller. `is_input`: it
        only repeats what the run was given, so that it counts for nothing that was done.
        """
        path = self._inside(name)
        if is_input:
            self._inputs.add(name)
        if not self.holds(name):
            if not is_input:
                self._replace()
            self.made()
            if folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._card["files"].append(name)
            self._write()
        return path

    def holds(self, name: str) -> bool:
        """Whether `name` is a file of this run, of an earlier start too."""
        return name in self._card["files"]

    def frozen(self, key: str) -> dict[str, Any]:
        """What an earlier start found out about its machine, {} for nothing: every later one goes by it."""
        path = self.path / _FROZEN
        if self._frozen is None:
            is_there = self.holds(_FROZEN) and path.exists()
            self._frozen = read_json(path, "give another directory (--out)") if is_there else {}
        return dict(self._frozen.get(key, {}))

    def freeze(self, key: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Keep `facts` for all later starts, unless there are some already; what is kept."""
        if not self.frozen(key):
            self._frozen = {**(self._frozen or {}), key: dict(facts)}
            write_text(self.claim(_FROZEN, is_input=True), json.dumps(self._frozen, indent=1) + "\n")
        return self.frozen(key)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """When the block ends, write down how, and how long this start of the run took, in seconds; then let go.

        The block may set `failed`. Where the run left no files, nothing is written, and of a run that failed before it
        had done anything nothing stays: with what was wrong put right, it may begin there.
        """
        status, before = "failed", CURRENT.set(self)
        try:
            yield
            status = "failed" if self.failed else "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            CURRENT.reset(before)
            self._card |= {"status": status, "seconds": round(time.time() - self._began, 3)}
            try:
                if self._mine and status == "failed" and not self._replaced and not self._has_results():
                    self._remove_all()
                elif self._mine:
                    self._write()
            except OSError:
                if status == "finished":  # else a full disk may be the very failure, not to be hidden by a second one
                    raise
            finally:
                self._release()

    def summary(self) -> str:
        """What is there so far, for the line after an interruption."""
        rows: dict[str, int] = {}
        for name in self._card["files"]:
            shown = re.sub(r"\d{3,}", "*", name)  # the like files of chunks and steps as one
            for path in self._files(name) if name not in self._inputs else ():
                if path.suffix == ".jsonl" and path.exists():
                    rows[shown] = rows.get(shown, 0) + path.read_bytes().count(b"\n")
        sizes = [f"{name} with {count} rows" for name, count in rows.items()]
        return f"{self.path} holds {', '.join(sizes)}" if sizes else f"{self.path} holds no rows yet"

    def _has_results(self) -> bool:
        """Whether there is anything in the run's files, but for what it was given."""
        names = (name for name in self._card["files"] if name not in self._inputs)
        return any(file.exists() and file.stat().st_size for name in names for file in self._files(name))

    def _files(self, name: str) -> Iterable[Path]:
        """The files that a name of the card stands for."""
        path = self._inside(name)
        return [self._inside(str(p.relative_to(self.path))) for p in self.path.glob(name)] if "*" in name else [path]

    def _remove_all(self) -> None:
        """Remove the run's files and its card, and the directory where it was made for it."""
        for name in self._card["files"]:
            self._remove(name)
        if any(path.name != _CARD for path in self.path.iterdir()):  # without a card no run could begin here again
            self._write()
            return
        (self.path / _CARD).unlink(missing_ok=True)
        if self._is_new:
            with suppress(OSError):  # somebody has put something there
                self.path.rmdir()

    def _remove(self, name: str) -> None:
        """Remove the run's file `name`, or the run within it, and the directories inside that are empty without it."""
        for path in list(self._files(name)):
            if read_card(path):
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.path:
                    break
                with suppress(OSError):  # not empty, or gone already
                    folder.rmdir()

    def _inside(self, name: str) -> Path:
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()) or name == _CARD:
            raise DataError(f'"{name}" is no name for a file of a run; give a relative path inside {self.path}')
        return path

    def _write(self) -> None:
        files = dict.fromkeys([*self._card["files"], *(self._replaced or ())])
        write_text(self.path / _CARD, json.dumps(self._card | {"files": [*files]}, indent=1, ensure_ascii=False) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """run.json of a run's directory; empty where there is none, DataError where it cannot be read.

    >>> import tempfile
    >>> read_card(Path(tempfile.mkdtemp()))  # no run's
    {}
    """
    path = folder / _CARD
    if not path.exists():
        return {}
    card = read_json(path, "remove it, or give another directory (--out)")
    if not isinstance(card.get("files", []), list):
        raise DataError(f"{path} lists no files of a run; remove it, or give another directory (--out)")
    return card


@contextmanager
def opened(
    out: str | Path | RunDirectory, *, program: str, config: Config, arguments: Mapping[str, Any]
) -> Iterator[RunDirectory]:
    """The directory of a run that a function of the library makes: `out`, gone on with where it is this run's already.

    How the block ends becomes the run's status. A RunDirectory that is open already, as a program's is, is used as it
    is and stays open. Raises DataError for a directory of another run, or of a process that is at work in it.

    Example:
        with opened("out/mine", program="mine", config=config, arguments={"n": 100}) as directory:
            write_rows(directory.claim("rows.jsonl"), rows)
    """
    if isinstance(out, RunDirectory):
        yield out
        return
    if not isinstance(out, str | os.PathLike):
        raise DataError(wrong_type("out", out, "give the path of a directory"))
    directory = RunDirectory(Path(out), program=program, config=config, arguments=arguments)
    directory.check(overwrite=False)
    directory.open(anew=False)
    with directory.ending():
        yield directory
