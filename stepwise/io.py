"""Files that survive a crash: JSON Lines on disk when the call returns, and files written whole or not at all."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stepwise.errors import DataError, redact
from stepwise.records import from_json, to_json

_KINDS = {int: "an integer", float: "a number", str: "a text", dict: "an object", list: "a list"}


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Add rows (the library's types, or dictionaries) at the end of `path`, flushed and synced to disk as one chunk.

    A last line that an earlier crash left without its line end is cut off first. Parent directories are made.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> append_rows(path, [{"n": 1}])
    >>> append_rows(path, [{"n": 2}])
    >>> read_rows(path)
    [{'n': 1}, {'n': 2}]
    """
    append_text(path, rows_text(rows))


def rows_text(rows: Iterable[Any]) -> str:
    r"""Rows (the library's types, or dictionaries) as JSON Lines, without secrets.

    >>> rows_text([{"n": 1}])
    '{"n": 1}\n'
    """
    return redact("".join(to_json(row) + "\n" for row in rows), shapes=False, as_json=True)


def append_text(path: Path, text: str, *, sync: bool = True) -> None:
    """`append_rows` for rows that are text already (`rows_text`); without `sync` a crash of the machine may lose them,
    the end of this process does not.

    Example:
        append_text(Path("out/rows.jsonl"), rows_text([{"n": 1}]))
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(_whole_bytes(path))
        file.write(text.encode())
        file.flush()
        if sync:
            os.fsync(file.fileno())


def lock(descriptor: int) -> bool:
    """Lock an open file or directory until it is closed, or the process ends in whatever way; False where another
    process has it. Where the system or the file system has no locks, nothing is locked.

    >>> import tempfile
    >>> with open(tempfile.mkdtemp() + "/file", "w") as file:
    ...     lock(file.fileno())
    True
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Hold the lock of an open file, once whoever has it lets go. Raises OSError where the file system has no locks.

    >>> import tempfile
    >>> with open(tempfile.mkdtemp() + "/file", "w") as file, locked(file.fileno()):
    ...     _ = file.write("alone")
    """
    if sys.platform == "win32":
        raise OSError("this system has no such locks")
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields the path of a draft beside `path` to write to; it is synced and takes the name once the block has ended.

    Where the block raises, the draft is removed and what stood at `path` stays. Parent directories are made.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.bin"
    >>> with whole_file(path) as draft:
    ...     _ = draft.write_bytes(b"all of it")
    >>> path.read_bytes()
    b'all of it'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    r"""Write `text` in UTF-8 and without secrets, whole or not at all; a lone surrogate becomes "?".

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "new" / "note.txt"
    >>> write_text(path, "done\n")
    >>> path.read_text()
    'done\n'
    """
    with whole_file(path) as draft:
        safe = redact(text, shapes=False, as_json=Path(path).suffix in (".json", ".jsonl"))
        draft.write_text(safe, encoding="utf-8", errors="replace", newline="\n")


def write_rows(path: str | Path, rows: Iterable[Any]) -> None:
    r"""Write JSON Lines (see `append_rows`), whole or not at all.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "problems.jsonl"
    >>> write_rows(path, [{"id": "1", "question": "1 + 1?"}])
    >>> path.read_text()
    '{"id": "1", "question": "1 + 1?"}\n'
    """
    write_text(path, "".join(to_json(row) + "\n" for row in rows))


def read_rows(path: Path, cls: type[Any] | None = None, *, finished: bool = False) -> list[Any]:
    """Every whole row of `path` as `cls` (None: dictionaries); a missing file has no rows.

    A last line without its line end was being written when the program died, and is left out. `finished` is for a file
    that nobody is writing, such as one that a person made: its last line counts without a line end, and blank lines and
    a byte order mark are passed over. Any other line that is not JSON, or does not fit `cls`, raises DataError with its
    number.

    >>> import tempfile
    >>> from stepwise.types import Problem
    >>> path = Path(tempfile.mkdtemp()) / "problems.jsonl"
    >>> write_rows(path, [Problem("1", "1 + 1?", "2")])
    >>> read_rows(path, Problem)[0].answer
    '2'
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    return parse_rows(data if finished else data[: _whole_bytes(path)], str(path), cls, finished=finished)


def iter_rows(path: Path, cls: type[Any]) -> Iterator[Any]:
    """`read_rows`, one after the other, for files that are larger than memory.

    >>> list(iter_rows(Path("no file"), dict))
    []
    """
    if path.exists():
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield from parse_rows(line, f"{path}, line {number}", cls)


def parse_rows(data: bytes, where: str, cls: type[Any] | None = None, *, finished: bool = False) -> list[Any]:
    r"""The rows in `data`, which is called `where` in errors; see `read_rows`.

    >>> parse_rows(b'{"n": 1}\n\n{"n": 2}', "data", finished=True)
    [{'n': 1}, {'n': 2}]
    """
    data = data.removeprefix(codecs.BOM_UTF8) if finished else data
    rows = []
    for number, line in enumerate(data.split(b"\n") if finished else data.split(b"\n")[:-1], start=1):
        if finished and not line.strip():
            continue
        try:
            rows.append(parse_json(line) if cls is None else from_json(cls, line))
        except ValueError as error:
            raise DataError(
                f"{where}, line {number}: not a valid row ({_reason(error)}); mend or remove that line"
            ) from None
    return rows


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds; raises ValueError for any other text, also for one that is nested too deep.

    >>> parse_json('{"a": 1}')
    {'a': 1}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path: str | Path, remedy: str, fields: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The JSON object in `path`; DataError with file, reason and `remedy` where there is none, or where one of its
    `fields` (a key, or keys joined by full stops) is missing or of another type; a float may be written as an int.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "card.json"
    >>> write_text(path, '{"rank": 16}')
    >>> read_json(path, "give the card of an adapter")
    {'rank': 16}
    >>> read_json(path, "give the card of an adapter", {"rank": int})["rank"]
    16
    """
    try:
        value = parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {remedy}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not JSON ({error!s:.200}); {remedy}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object, but a {type(value).__name__}; {remedy}")
    for name, kind in (fields or {}).items():
        field: Any = value
        for key in name.split("."):
            field = field.get(key) if isinstance(field, dict) else None
        right = isinstance(field, (int, float) if kind is float else kind) and not isinstance(field, bool)
        if not right or (kind is float and not abs(field) <= sys.float_info.max):
            raise DataError(f"{path}: {name} is {field!r:.80}, not {_KINDS[kind]}; {remedy}")
    return value


def _reason(error: ValueError) -> str:
    """One line: what is wrong with which field, and what was there."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}, not {e['input']!r:.60}" for e in error.errors()[:3]
    )


def _whole_bytes(path: Path) -> int:
    """Length of the file up to and including its last line end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
