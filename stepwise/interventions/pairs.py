"""Pairs for preference training such as DPO (arXiv 2305.18290): the intervention against the step it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from stepwise.data.examples import Example
from stepwise.interventions.rows import Failure, by_id, parent
from stepwise.steps import SEPARATOR


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
