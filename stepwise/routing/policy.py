"""What a policy is: it looks at the solution so far and decides who writes the step.

A policy is a frozen pydantic dataclass; its state lives in the `View` it is given, so one policy serves any number of
problems at once, in any order and from any thread. The router owns the loop and knows policies only through this
protocol.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from stepwise.errors import ConfigError
from stepwise.types import Problem, Step

When = Literal["question", "before", "after"]
_FROZEN = ConfigDict(extra="forbid")
_FAMILIES = ("stepwise.routing.simple", "stepwise.routing.planned")  # modules with POLICIES, the cheap to import first


@dataclass(frozen=True, config=_FROZEN)
class Keep:
    """Go on with the weak model: it writes this step ("before"), or its draft stands ("after")."""

    reason: str = dataclasses.field(default="", compare=False)


@dataclass(frozen=True, config=_FROZEN)
class Escalate:
    """The strong model writes this step and the `steps` - 1 after it; then the weak model goes on (TRIM: steps=1)."""

    steps: int = Field(default=1, ge=1)
    reason: str = dataclasses.field(default="", compare=False)


@dataclass(frozen=True, config=_FROZEN)
class HandOver:
    """The strong model writes this step and every step after it."""

    reason: str = dataclasses.field(default="", compare=False)


@dataclass(frozen=True, config=_FROZEN)
class Resample:
    """The weak model drafts this step again (only "after" a draft); costs no strong token. See `View.attempt`."""

    reason: str = dataclasses.field(default="", compare=False)


Action = Keep | Escalate | HandOver | Resample


@dataclass(frozen=True, config=_FROZEN)
class View:
    """What a policy sees. `steps` are those of the solution so far, with their scores where they were scored.

    `draft` is the weak model's proposal for the next step and `draft_finish` how it ended ("step", "answer", "eos",
    ...); None and "" when the policy decides before it is written. `attempt` counts the drafts thrown away for this
    step. `strong_tokens_left` is None when nothing caps them. `seed` is the run's.
    """

    problem: Problem
    steps: tuple[Step, ...] = ()
    draft: Step | None = None
    draft_finish: str = ""
    attempt: int = 0
    max_steps: int = 30
    strong_tokens_left: int | None = None
    seed: int = 0

    @property
    def index(self) -> int:
        """0-based index of the step to decide on."""
        return len(self.steps)

    @property
    def scores(self) -> tuple[float | None, ...]:
        """Scores of the steps so far, and the draft's last where there is a draft; None where a step was not scored."""
        return tuple(step.score for step in (*self.steps, *([self.draft] if self.draft else ())))

    @property
    def tokens(self) -> int:
        """Tokens of the draft, 0 without one."""
        return self.draft.usage.generated_tokens if self.draft else 0

    def uniform(self, salt: int = 0) -> float:
        """A number in [0, 1) that depends on (run seed, problem id, step index, attempt, `salt`) alone."""
        return stable_hash(self.seed, self.problem.id, self.index, self.attempt, salt, "policy") / 2**63


class Policy(Protocol):
    """Decides keep or escalate.

    `when` it is asked: once per "question", or at every step "before" or "after" the draft. `needs_scores`: the scorer
    is called (and paid for) only if this is true. `name` is the policy's name in a config.
    """

    name: ClassVar[str]
    when: ClassVar[When]
    needs_scores: ClassVar[bool]

    def decide(self, view: View) -> Action:
        """What to do at `view.index`; must depend on `view` and on the policy's own fields alone."""
        ...

    @property
    def point(self) -> float | None:
        """The operating point (its threshold, rate, price, ...), None for a policy that has none."""
        ...

    def at(self, x: float) -> Self:
        """The same policy at operating point `x`; a policy without one returns itself."""
        ...


def stable_hash(*parts: object) -> int:
    """A number in [0, 2**63), the same in every process and on every machine, from the parts' order and texts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """`{"policy": name, **fields}`, plain JSON; the inverse of `policy_from_dict`."""
    return {"policy": policy.name, **dataclasses.asdict(policy)}  # type: ignore[call-overload]


def policy_from_dict(settings: Mapping[str, Any]) -> Policy:
    """The policy named by `settings["policy"]` with those of the other settings that are its fields.

    Raises `ConfigError` for an unknown policy (naming the nearest) and for a wrong value; settings of other policies
    are ignored, so one `[routing]` table can hold them all.
    """
    name = str(settings.get("policy", ""))
    cls = _policy_class(name)
    fields = {field.name for field in dataclasses.fields(cls)}
    try:
        policy: Policy = cls(**{key: value for key, value in settings.items() if key in fields})
        return policy
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"routing.{key} is {reprlib.repr(first['input'])}: {first['msg']} (policy {name!r})"
        ) from error


def _policy_class(name: str) -> Any:
    known: dict[str, Any] = {}
    for family in _FAMILIES:
        known |= importlib.import_module(family).POLICIES
        if name in known:
            return known[name]
    import difflib

    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise ConfigError(f"routing.policy is {name!r}; did you mean {near[0]!r}? Known policies: {', '.join(known)}")


def policy_from_config(routing: Any) -> Policy:
    """The policy that a `RoutingConfig` asks for; raises `ConfigError` as `policy_from_dict` does."""
    settings = routing.model_dump()
    return policy_from_dict({**settings, "p": settings.get("probability")})
