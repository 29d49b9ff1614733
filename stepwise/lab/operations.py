"""One operation of a problem."""

from __future__ import annotations

import random
from dataclasses import dataclass

from stepwise.lab.families import FAMILIES, Params


@dataclass(frozen=True)
class Operation:
    """One operation of a problem, with the people it speaks of and its sentence in the question.

    >>> Operation("gain", (5,), "Mia", "Leo", "Mia gets 5 coins.").value(20)
    25
    """

    family: str
    params: Params
    owner: str
    other: str
    sentence: str

    def value(self, before: int, wrong: bool = False) -> int | None:
        """The count after it, None where the rule gives no whole number."""
        family = FAMILIES[self.family]
        rule = family.wrong if wrong and family.wrong else family.right
        return rule.value(before, self.params)

    def step(self, before: int, items: str, rng: random.Random, wrong: bool = False) -> str:
        """The step of a solution that carries it out, by the right or the wrong rule."""
        family = FAMILIES[self.family]
        rule = family.wrong if wrong and family.wrong else family.right
        fields = self.fields(before, items, wrong)
        return (rng.choice(family.cues) + rule.work + ".").format(**fields)

    def fields(self, before: int, items: str, wrong: bool = False) -> dict[str, object]:
        """What the templates of its family may speak of."""
        family = FAMILIES[self.family]
        rule = family.wrong if wrong and family.wrong else family.right
        parts = rule.parts(before, self.params)
        numbers = dict(zip("ab", self.params, strict=False)) | dict(zip("p", parts, strict=False))
        counts = {"v": before, "w": rule.value(before, self.params)}
        return {**numbers, **counts, "A": self.owner, "B": self.other, "items": items}
