"""The directory a run writes to: whose it is, what belongs to it, and how it ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from stepwise.config import Config
from stepwise.errors import DataError

_CARD = "run.json"


class RunDirectory:
    """Holds `run.json` (program, version, configuration and its hash, arguments, status, files) beside the run's files.

    A directory belongs to one program with one configuration and one set of arguments.
    """

    def __init__(self, path: Path, *, program: str, config: Config, arguments: Mapping[str, Any]) -> None:
        self.path = path
        self._began = time.time()
        self._card: dict[str, Any] = {
            "program": program,
            "version": _version(),
            "config_hash": config.hash,
            "arguments": json.loads(json.dumps(dict(arguments), default=str)),
            "config": config.model_dump(mode="json"),
            "status": "running",
            "files": [],
        }

    def check(self, *, overwrite: bool) -> None:
        """Raise DataError, with the remedy, when the directory holds another run or files that are no run's."""
        found = self._read()
        if found is None:
            if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
                raise DataError(
                    f"--out {self.path} exists and is no directory of a run; give a new or an empty directory"
                )
            return
        if overwrite:
            return
        for key in ("program", "version", "config_hash", "arguments"):
            if found.get(key) != self._card[key]:
                raise DataError(
                    f"--out {self.path} holds a run with another {key.replace('_', ' ')} ({found.get(key)}, now "
                    f"{self._card[key]}); give another --out, or --overwrite to remove that run's files first"
                )

    def open(self, *, anew: bool) -> bool:
        """Make or take over the directory; True when an earlier run is gone on with. `anew` removes its files first."""
        found = self._read()
        if found is not None and anew:
            for name in found.get("files", []):
                (self.path / name).unlink(missing_ok=True)
            found = None
        self.path.mkdir(parents=True, exist_ok=True)
        if found is not None:
            self._card["files"] = list(found.get("files", []))
        self._write()
        return found is not None

    def claim(self, name: str) -> Path:
        """Path of the run's own file `name` (relative, inside the directory); its parent directory exists."""
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()) or name == _CARD:
            raise DataError(f'"{name}" is no name for a file of a run; give a relative path inside {self.path}')
        if name not in self._card["files"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._card["files"].append(name)
            self._write()
        return path

    def close(self, status: Literal["finished", "interrupted", "failed"]) -> None:
        """Write down how the run ended and how long this start of it took, in seconds."""
        self._card |= {"status": status, "seconds": round(time.time() - self._began, 3)}
        self._write()

    def summary(self) -> str:
        """What is there so far, for the line after an interruption."""
        sizes = []
        for name in self._card["files"]:
            path = self.path / name
            if path.suffix == ".jsonl" and path.exists():
                rows = path.read_bytes().count(b"\n")
                sizes.append(f"{name} with {rows} rows")
        return f"{self.path} holds {', '.join(sizes)}" if sizes else f"{self.path} holds no rows yet"

    def _read(self) -> dict[str, Any] | None:
        path = self.path / _CARD
        if not path.exists():
            return None
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            return dict(card)
        except (ValueError, TypeError):
            raise DataError(f"{path} is not readable as the card of a run; remove it or give another --out") from None

    def _write(self) -> None:
        draft = self.path / (_CARD + ".new")
        draft.write_text(json.dumps(self._card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, self.path / _CARD)


def _version() -> str:
    try:
        return version("stepwise")
    except PackageNotFoundError:
        return "source"
