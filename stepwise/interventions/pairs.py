"""Pairs for preference training such as DPO (arXiv 2305.18290): the intervention against the step it stands for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.errors import DataError
from stepwise.interventions.data import rows_in
from stepwise.interventions.rows import Example, Failure, by_id, parent
from stepwise.io import write_text
from stepwise.steps import SEPARATOR, split_steps

_TEXTS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Pair:
    """Two continuations of the same correct prefix, in steps; `prompt` is the question.

    `prompt_hash` is that of the prompt under which the attempt was made, None where the row does not say.
    """

    id: str
    prompt: str
    prefix: tuple[str, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    prompt_hash: str | None = None


def pairs(
    examples: Sequence[Example], failures: Iterable[Failure], *, conversational: bool = False
) -> list[dict[str, Any]]:
    """A row for each example whose attempt has a step in its place: `prompt` is the question, `chosen` and `rejected`
    are the kept prefix with the intervention and with the wrong step.

    What the two share cancels out of DPO's loss, so the prefix may stand in them, under whatever chat template.
    `conversational` gives lists of messages, as TRL's trainers take them. Both texts end in the middle of a solution:
    switch off an end-of-message token that a trainer would add. Raises DataError for an example whose attempt is not
    among the failures.
    """
    known = by_id(failures)
    rows = []
    for example in examples:
        steps = parent(known, example.parents.get("failure", ""), example.id).steps
        at = len(example.prefix)
        if at >= len(steps) or steps[at] == example.intervention:
            continue
        texts = {
            "prompt": ("user", example.question),
            "chosen": ("assistant", SEPARATOR.join((*example.prefix, example.intervention))),
            "rejected": ("assistant", SEPARATOR.join((*example.prefix, steps[at]))),
        }
        shown = {
            name: [{"role": role, "content": text}] if conversational else text for name, (role, text) in texts.items()
        }
        rows.append({"id": example.id, **shown, "answer": example.answer, "prompt_hash": example.prompt_hash})
    return rows


def write_pairs(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write pairs as JSON Lines, whole or not at all; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read_pairs(*sources: str | Path | Any) -> list[Pair]:
    """Pairs, those of the same texts once. A source is a JSON Lines file that `write_pairs` or the dataset builder
    wrote, a `datasets.Dataset`, or rows with the texts `prompt`, `chosen` and `rejected`.

    The prefix is the longest run of steps that `chosen` and `rejected` begin with. Raises DataError naming file, row
    and field: for a field without a text, and for texts of which one is, or begins with, the other.
    """
    found: dict[tuple[Any, ...], Pair] = {}
    for rows, where in map(rows_in, sources):
        for number, row in enumerate(rows, 1):
            pair = pair_of(row, f"{where}, row {number}", f"row {number}")
            found.setdefault((pair.prompt, pair.prefix, pair.chosen, pair.rejected), pair)
    return list(found.values())


def pair_of(row: Any, where: str, name: str) -> Pair:
    """One row as a pair, called `name` where it has no id; DataError names `where` and the field."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {row!r:.60}; it must be an object with prompt, chosen and rejected")
    prompt, chosen, rejected = (_text(row.get(field), f"{where}, field {field}") for field in _TEXTS)
    one, other = split_steps(chosen), split_steps(rejected)
    shared = len(list(takewhile(lambda steps: steps[0] == steps[1], zip(one, other, strict=False))))
    if shared == min(len(one), len(other)):
        short = "chosen" if len(one) <= len(other) else "rejected"
        what = "chosen equals rejected" if len(one) == len(other) else f"{short} is only the beginning of the other"
        raise DataError(f"{where}: {what}, so there is no step to prefer; leave the row out")
    steps = (tuple(one[:shared]), tuple(one[shared:]), tuple(other[shared:]))
    made_under = row.get("prompt_hash")
    return Pair(str(row.get("id") or name), prompt, *steps, None if made_under is None else str(made_under))


def _text(value: Any, where: str) -> str:
    """A text as `pairs` writes it, as it is or as the one message of a list."""
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} is {value!r:.60}; give a text, or a list with one message that has one")
    return value
