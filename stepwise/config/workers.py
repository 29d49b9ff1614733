"""[workers]: where the chunks of a run are done."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from stepwise.config.errors import FrozenConfig
from stepwise.errors import ConfigError


class WorkersConfig(FrozenConfig):
    """One process, or the actors of a Ray cluster; the files are the same.

    Example:
        >>> WorkersConfig(backend="ray", actors_per_node=2).resources
        {'CPU': 1.0}
    """

    backend: Literal["process", "ray"] = "process"
    """ray: each chunk is a task of a Ray actor (`pip install stepwise[ray]`)"""
    address: str | None = None
    """of a running cluster, "HOST:PORT" or "auto"; unset: one of this machine alone, for the time of the run"""
    actors_per_node: int = Field(default=1, ge=1)
    """each loads the models once"""
    resources: dict[str, float] = Field(default={"CPU": 1.0})
    """what an actor takes of its node: CPU, GPU, memory (bytes), or a name of your own"""
    patience: float = Field(default=300.0, gt=0)
    """seconds that a run waits for an actor to come up where none is left"""

    def refuse(self, what: str) -> None:
        """Raise ConfigError where workers are asked for, and `what` runs in one process."""
        if self.backend != "process":
            raise ConfigError(
                f'workers.backend = "{self.backend}": {what} runs in one process; set it to "process". On Ray run '
                "stepwise route --chunk N, intervene --accept success, build_dataset and label_steps"
            )

    @field_validator("resources", mode="before")
    @classmethod
    def _are_amounts(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for name, amount in value.items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
                raise ValueError(f"{name} is {amount!r}; give a number of at least 0, for example {{ CPU = 1 }}")
        return {name: float(amount) for name, amount in value.items()}
