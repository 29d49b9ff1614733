"""Rows of any table: JSON Lines, JSON, CSV, parquet, a `datasets` object, a data frame, a data set of the hub.

Nothing here knows what the columns mean; `problems`, `examples` and `processbench` do.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwise.errors import DataError, MissingDependencyError, redact
from stepwise.io import parse_rows

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""The endings of files that are read."""
_INSTALL = 'install it with: pip install "stepwise[data]"'


def read_table(source: str | Path | Any, *, split: str = "", prefer: str = "") -> tuple[list[Any], str]:
    """The rows of a file or a dataset as they stand, and what errors call the place that they come from.

    `source` is a file, a directory with a file for each split, a `datasets` object, a pandas data frame, a pyarrow
    table or an iterable of rows. Of several splits `split` is taken, or else `prefer`; where there is only one and no
    `split` is given, that one. Raises DataError for what holds no rows, MissingDependencyError for parquet without
    pyarrow.

    >>> read_table([{"question": "What is 2 + 3?"}])
    ([{'question': 'What is 2 + 3?'}], 'the dataset')
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.is_dir():
            path = file_of_split(path, split, prefer)
        return _read_file(path), str(path)
    if isinstance(source, Mapping):
        return _choose_split(source, "the dataset", split, prefer), "the dataset"
    if hasattr(source, "to_pylist"):  # pyarrow.Table
        source = source.to_pylist()
    elif hasattr(source, "iterrows"):  # pandas.DataFrame, which would yield the names of its columns
        source = source.to_dict("records")
    if not isinstance(source, Iterable):
        raise DataError(f"{source!r:.60} holds no rows; give a file, a datasets.Dataset or a list of mappings")
    return list(source), "the dataset"


def read_hub(
    name: str,
    config: str | None = None,
    *,
    split: str = "",
    prefer: str = "",
    load_dataset: Callable[..., Any] | None = None,
) -> list[Any]:
    """The rows of the data set `name` ("ORG/NAME") on the hub; `load_dataset` is that of the package datasets.

    Splits are chosen as in `read_table`. Raises MissingDependencyError without the package, DataError where the hub
    has no such data set or cannot be reached.

    >>> read_hub("ORG/NAME", split="test", load_dataset=lambda name, config, split: [{"question": "1 + 1?"}])
    [{'question': '1 + 1?'}]
    """
    if load_dataset is None:
        try:
            import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise MissingDependencyError(
                f"{name}: reading from the hub needs the package datasets; {_INSTALL}, or give a local file"
            ) from error
        load_dataset = datasets.load_dataset
    try:
        loaded = load_dataset(name, config, **({"split": split} if split else {}))
    except Exception as error:  # the package's own errors, those of its HTTP library, no room on the disk
        reason = (redact(str(error)).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{name} could not be read from the hub ({reason}); check the name, connect to the network, or give the "
            "path of a local file"
        ) from error
    return _choose_split(loaded, name, split, prefer) if isinstance(loaded, Mapping) else list(loaded)


def parse_table(data: bytes, where: str) -> list[Any]:
    r"""The rows of JSON Lines or a JSON array, or the one JSON object. Raises DataError naming `where` and the line.

    >>> parse_table(b'[{"id": 1}, {"id": 2}]', "a file") == parse_table(b'{"id": 1}\n{"id": 2}\n', "a file")
    True
    """
    text = _decode(data, where)
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{where}: the JSON is nested too deep; give one flat object per row") from None
    except ValueError as error:
        if text.lstrip().startswith("["):  # an array, where no line stands for itself
            raise DataError(f"{where} is not JSON: {error}; mend it, or write one JSON object per line") from None
        return parse_rows(data, where, finished=True)
    return value if isinstance(value, list) else [value]


def file_of_split(directory: Path, split: str, prefer: str = "") -> Path:
    """The file of a split (its stem) in a directory, or the only file with data; DataError where it is not clear.

    Example:
        file = file_of_split(Path("gsm8k"), "test")  # gsm8k/test.jsonl, say
    """
    files = {file.stem: file for file in sorted(directory.iterdir()) if file.suffix in SUFFIXES}
    return Path(_choose(files, f"{directory} is a directory", split, prefer))


def _read_file(path: Path) -> list[Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a JSON Lines, JSON, CSV or parquet file")
    if path.suffix == ".parquet":
        try:
            from pyarrow import parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError as error:
            raise MissingDependencyError(f"{path}: parquet needs the package pyarrow; {_INSTALL}") from error
        try:
            return list(parquet.read_table(path).to_pylist())
        except (ValueError, OSError) as error:  # pyarrow.ArrowInvalid is a ValueError
            raise DataError(f"{path} is not parquet ({str(error).splitlines()[0]}); write it again") from None
    data = path.read_bytes()
    if data.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")):  # zip and Excel, gzip, old Excel
        raise DataError(f"{path} is compressed or a spreadsheet's own file; unpack it, or save it as CSV or JSON Lines")
    if path.suffix in (".csv", ".tsv"):
        return _parse_csv(data, path)
    rows = parse_table(data, str(path))
    if len(rows) == 1 and isinstance(rows[0], dict) and len(rows[0]) == 1:  # {"data": [{...}, ...]}
        (inner,) = rows[0].values()
        if inner and isinstance(inner, list) and all(isinstance(row, dict) for row in inner):
            return inner
    return rows


def _parse_csv(data: bytes, path: Path) -> list[Any]:
    text = io.StringIO(_decode(data, str(path)), newline="")
    head = text.getvalue().partition("\n")[0]
    # Spreadsheets write semicolons where numbers have commas, and tabs when asked for text.
    comma = next((mark for mark in ";\t" if mark in head and "," not in head), ",")
    try:
        rows = list(csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else comma, strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}; mend it, or save it as JSON Lines") from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number}: it has another number of fields than the first line; mend it")
    return list(rows)


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None


def _choose_split(splits: Mapping[str, Any], where: str, split: str, prefer: str) -> list[Any]:
    """The rows of one split of a `datasets.DatasetDict`."""
    rows = _choose(splits, f"{where} is a dictionary", split, prefer)
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise DataError(f"{where} is a dictionary without rows ({rows!r:.60}); give a list of rows")
    return list(rows)


def _choose(splits: Mapping[str, Any], where: str, split: str, prefer: str) -> Any:
    names: Sequence[str] = list(splits)
    name = split or (names[0] if len(names) == 1 else prefer)
    if name not in splits:
        listed = ", ".join(map(repr, names[:5])) or "empty"
        raise DataError(f"{where} ({listed}){f' without {split!r}' if split else ''}; give one of its splits")
    return splits[name]
