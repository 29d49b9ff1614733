"""What a routing run is set to, whatever its policy."""

from __future__ import annotations

from pydantic import Field

from stepwise.config import SamplingConfig
from stepwise.prompt import SolvePrompt
from stepwise.records import record


@record()
class RouteSettings:
    """How steps are drawn and when a trace ends.

    `window` bounds the problems that are open at once (None: as many as the models' curves want, all where they have
    none). `prompt` is what the models put around a question; here it bounds what a request may cost and says where
    steps end. `run`, the hash of a configuration, goes into every request. `allow_lab` lets the lab's scorer judge
    other models. Without `keep_local` answers of models in this process are not kept.

    Example:
        >>> RouteSettings(max_steps=12, seed=1).window is None
        True
    """

    sampling: SamplingConfig = SamplingConfig()
    max_steps: int = Field(default=30, ge=1)
    seed: int = Field(default=0, ge=0)
    window: int | None = Field(default=None, ge=1)
    prompt: SolvePrompt = SolvePrompt()
    run: str = ""
    allow_lab: bool = False
    keep_local: bool = True
