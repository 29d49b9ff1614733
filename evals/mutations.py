"""Texts that were edited, cut or damaged: what a reader of ours must answer with an error of ours, or read."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_VALUES: list[Any] = [
    "",
    "x",
    None,
    True,
    -1,
    0,
    10**400,
    1e308,
    float("inf"),
    float("nan"),
    [],
    {},
    [[]],
    {"a": 1},
    "\ud800",
    "\x1b[2J",
]


def _paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every part of a JSON value stands."""
    yield at
    for key in value if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ():
        yield from _paths_of(value[key], (*at, key))


def _changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy of `value` with `new` at one place; a key that goes, where `new` is Ellipsis."""
    if not at:
        return None if new is ... else new
    value = copy.deepcopy(value)
    inside = value
    for key in at[:-1]:
        inside = inside[key]
    if new is ...:
        del inside[at[-1]]
    else:
        inside[at[-1]] = new
    return value


def mutants(text: bytes, rng: random.Random, n: int) -> Iterator[bytes]:
    """Texts with a value put in another's place, keys removed, bytes flipped, cut, doubled, nested too deep."""
    try:
        value = json.loads(
            text.splitlines()[0] if text.count(b"\n") > 1 and text[:1] == b"{" and text[1:2] != b"\n" else text
        )
    except ValueError:
        value = None
    places = list(_paths_of(value)) if value is not None else []
    for _ in range(n if places else 0):
        new = rng.choice([*_VALUES, ...])
        yield json.dumps(_changed(value, rng.choice(places), new)).encode()
    for _ in range(n):
        data = bytearray(text)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data)
        yield text[: rng.randrange(len(text))]
    yield b"[" * 100_000
    yield b'{"a":' * 50_000
    yield text + text
    yield b"\xff\xfe"
    yield b"null"
    yield b"9" * 5000
    yield b""
