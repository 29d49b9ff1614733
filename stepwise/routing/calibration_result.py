"""What a calibration comes to: the policy at its setting, every setting tried, and what it does on other problems."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from stepwise.errors import DataError, reason_of
from stepwise.io import parse_json
from stepwise.records import from_json, record
from stepwise.routing.deciding import label_of
from stepwise.routing.estimates import Estimate
from stepwise.routing.guarantee import Promise
from stepwise.routing.names import ModelNames
from stepwise.routing.policy import Policy
from stepwise.routing.saved import policy_from_dict, save_policy
from stepwise.types import InNotebook

Unit = Literal["strong_tokens", "share", "accuracy_lost"]


@record()
class CurvePoint:
    """One setting on the calibration problems: strong tokens per problem and accuracy.

    Example:
        [point.cost.value for point in calibrated.curve]
    """

    setting: float | None
    cost: Estimate
    accuracy: Estimate


@record()
class Achieved:
    """What the chosen setting did on problems that it was not chosen on, beside both models alone.

    Costs are strong tokens per problem; `share` is of the strong model's own, `pgr` of the gap. None where strong-only
    costs nothing, or where there is no gap.

    Example:
        print(calibrated.achieved.accuracy)  # 0.78 (0.7 to 0.85)
    """

    problems: int
    cost: Estimate
    share: Estimate
    accuracy: Estimate
    pgr: Estimate
    weak_accuracy: Estimate
    strong_accuracy: Estimate
    strong_cost: Estimate


@record()
class Calibrated(InNotebook):
    """A policy set for a budget. Plain JSON by `save` and `load`; `load_policy` reads the policy from the same file.

    Attributes:
        settings: of the policy, as `policy_to_dict` gives them.
        card: the models it was set for.
        budget, unit: as asked for; `limit`: the same in strong tokens per problem.
        reached: whether its cost on the calibration problems is within the budget; `note` says what is special, such
            as a budget that is not used up, or is passed on other problems (where `achieved.cost` has its interval).
        curve: every setting measured on the calibration problems, by rising cost. The setting was picked there, so the
            bands are those of each point, not of the best.
        calibrated_on: keys of the calibration questions (`query.question_key`).
        achieved: on other problems.
        promise: what holds of expected accuracy or spend, where that was asked for and is certified.

    Example: see `calibrate`.
    """

    settings: dict[str, Any]
    card: ModelNames
    budget: float
    unit: Unit
    limit: float
    reached: bool
    note: str
    curve: tuple[CurvePoint, ...]
    calibrated_on: tuple[str, ...]
    achieved: Achieved
    promise: Promise | None = None

    def __str__(self) -> str:
        """The policy, what it was set for, and what it does on other problems."""
        got, kind = self.achieved, "" if self.unit == "strong_tokens" else f" ({self.unit} {self.budget:g})"
        return "\n".join(filter(None, (
            f"{label_of(self.policy)}, set for {self.limit:.1f} strong tokens a problem{kind}",
            f"on {got.problems} other problems: strong tokens a problem {got.cost}, accuracy {got.accuracy}"
            + ("" if got.pgr.value is None else f", gap recovered {got.pgr}"),
            f"weak model alone: accuracy {got.weak_accuracy}; strong: {got.strong_accuracy}",
            f"promise: {self.promise}" if self.promise else "",
            f"note: {self.note}" if self.note else "",
        )))  # fmt: skip

    @property
    def policy(self) -> Policy:
        """The policy at its operating point."""
        return policy_from_dict(self.settings)

    def save(self, path: str | Path) -> None:
        """Write one JSON object."""
        row = dataclasses.asdict(self)
        del row["settings"], row["card"]
        save_policy(path, self.policy, self.card, **row)

    @classmethod
    def load(cls, path: str | Path, *, allow_import: Collection[str] = ()) -> Calibrated:
        """The inverse of `save`; raises `DataError` for a file that is missing or holds no calibration. For
        `allow_import` see `load_policy`.
        """
        try:
            row = parse_json(Path(path).read_text(encoding="utf-8"))
            made = from_json(cls, json.dumps({"settings": row.pop("policy"), **row}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} holds no calibration ({reason_of(error)}); make one with calibrate(...).save"
            ) from None
        policy_from_dict(made.settings, allowed=allow_import)
        return made
