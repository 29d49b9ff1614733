"""What a policy is: it looks at the solution so far and decides who writes the step; and a signal, one number for it.

A policy of your own is a class that inherits from `Policy` and has `decide`; everything else has a default. It keeps no
state between calls: what it may look at is in the `View` it is given, so one policy serves any number of problems at
once, in any order and from any thread. What it is set to (a threshold, say) is a field of a dataclass, or an argument
of `__init__` that is stored under its own name; then it can be saved, loaded and moved to another operating point.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Awaitable, Collection, Mapping
from typing import ClassVar, Literal, Self, get_args

from pydantic import Field

from stepwise.errors import PluginError
from stepwise.plugins import Plugin, make_plugin, options_of
from stepwise.records import record
from stepwise.seeds import stable_hash
from stepwise.types import Problem, Step, TraceFinish

Worse = Literal["high", "low"]
NAMES = {"never": "Never (weak alone)", "always": "Always (strong alone)"}
When = Literal["question", "before", "after", "solution"]
FOR_GOOD = 2**31  # a run of the strong model that no solution outlasts
Evidence = Literal[
    "draft", "scores", "first_token", "logprobs", "token_logprobs", "entropy", "resamples", "rating", "verification",
    "call",
]  # fmt: skip


@record()
class Keep:
    """Go on with the weak model: it writes this step ("before"), or its draft stands ("after").

    Example:
        >>> Keep("good enough")
        Keep(reason='good enough')
    """

    reason: str = dataclasses.field(default="", compare=False)


@record()
class Escalate:
    """The strong model writes this step and the `steps` - 1 after it; then the weak model goes on (TRIM: steps=1).

    Example:
        >>> Escalate(steps=2, reason="low score")
        Escalate(steps=2, reason='low score')
    """

    steps: int = Field(default=1, ge=1)
    reason: str = dataclasses.field(default="", compare=False)


@record()
class HandOver:
    """The strong model writes this step and every step after it.

    Example:
        >>> HandOver().reason
        ''
    """

    reason: str = dataclasses.field(default="", compare=False)


@record()
class Resample:
    """The weak model drafts this step again (only "after" a draft); costs no strong token. See `View.attempt`.

    Example:
        >>> Resample("unsure") == Resample()  # reasons do not count
        True
    """

    reason: str = dataclasses.field(default="", compare=False)


Action = Keep | Escalate | HandOver | Resample


@record()
class Look:
    """Not decided yet: get this evidence and ask again. What it costs is counted in the trace (`Step.evidence`).

    "draft": the weak model's draft. "scores": the scorer's, of every step so far and the draft. "first_token": the `n`
    likeliest for the first token of the step. "logprobs", and "token_logprobs" and "entropy" (`Step.token_stats`), come
    with every draft of a policy that names them in its `looks`. "resamples": `n` more drafts of this step. "rating":
    the strong model rates the draft. "verification": the weak model says `n` times if it is right. "call": how likely
    the weak model begins the step with `token`, by which it asks for help; the draft then holds no such token.

    Example:
        >>> Look("resamples", n=3)
        Look(what='resamples', n=3, token='')
    """

    what: Evidence
    n: int = Field(default=1, ge=1, le=64)
    token: str = ""


@record()
class View:
    """What a policy sees. `steps` are those of the solution so far, with their scores where they were scored.

    `draft` is the weak model's proposal for the next step and `draft_finish` how it ended ("step", "answer", "eos",
    ...); None and "" when the policy decides before it is written. `attempt` counts the drafts thrown away for this
    step. `strong_tokens_left` is None when nothing caps them. `seed` is the run's. The rest is what a policy looked
    for: `looked` names it, and what could not be had is empty or None although it is named.

    Attributes:
        ended: how the solution ended, for a policy on the "solution".
        looked: what there is evidence of.
        first_token: log-probabilities of the likeliest first tokens of this step, likeliest first.
        logprobs: for each token of the draft as drawn, log-probabilities of the likeliest, likeliest first.
        resamples: other drafts of this step.
        rating: of the draft by the strong model, 0 to 9.
        verification: what the weak model said of the solution, None where it cannot be read.
        call: log-probability that the weak model asks for help with this step.
        scored: whether the policy asked for scores.

    Example:
        >>> view = View(Problem("p", "1 + 1?"), (Step("One and one.", "weak", 0.9),), Step("That is 3.", "weak", 0.2))
        >>> view.index, view.scores
        (1, (0.9, 0.2))
    """

    problem: Problem
    steps: tuple[Step, ...] = ()
    draft: Step | None = None
    draft_finish: str = ""
    attempt: int = 0
    max_steps: int = 30
    strong_tokens_left: int | None = None
    seed: int = 0
    ended: TraceFinish = ""
    looked: frozenset[str] = frozenset()
    first_token: tuple[float, ...] = ()
    logprobs: tuple[tuple[float, ...], ...] = ()
    resamples: tuple[Step, ...] = ()
    rating: int | None = None
    verification: tuple[bool | None, ...] = ()
    call: float | None = None
    scored: bool = True

    @property
    def index(self) -> int:
        """0-based index of the step to decide on."""
        return len(self.steps)

    @property
    def scores(self) -> tuple[float | None, ...]:
        """Scores of the steps so far, and the draft's last where there is a draft; None where a step was not scored.

        Raises `PluginError` for a policy that did not ask for them (`needs_scores`).
        """
        if not self.scored:
            raise PluginError("view.scores: the steps are not scored; set needs_scores = True on the policy")
        return tuple(step.score for step in (*self.steps, *([self.draft] if self.draft else ())))

    @property
    def tokens(self) -> int:
        """Tokens of the draft, 0 without one."""
        return self.draft.usage.generated_tokens if self.draft else 0

    def uniform(self, salt: int = 0) -> float:
        """A number in [0, 1) that depends on (run seed, problem id, step index, attempt, `salt`) alone."""
        return stable_hash(self.seed, self.problem.id, self.index, self.attempt, salt, "policy") / 2**63


class Policy(Plugin):
    """Decides who writes a step: inherit from this and write `decide`.

    Attributes:
        name: what tables call it; the class's name where nothing else is said.
        when: it is asked once per "question", at every step "before" or "after" the draft, or once the weak model has
            ended its "solution" (`HandOver` then has the strong model solve the problem anew).
        needs_scores: whether the scorer is called (and paid for) before every decision.
        dial: the field that is the operating point (its threshold, rate, price, ...), "" for a policy without one.

    Example:
        A policy that has the strong model write every step from the third on:

        >>> class Late(Policy):
        ...     def __init__(self, start: int = 2):
        ...         self.start = start
        ...     def decide(self, view):
        ...         return Escalate() if view.index >= self.start else Keep()
        >>> Late().decide(View(Problem("p", "1 + 1?")))
        Keep(reason='')
    """

    name: ClassVar[str]
    when: ClassVar[When] = "before"
    needs_scores: ClassVar[bool] = False
    dial: ClassVar[str] = ""

    _choices = {"when": get_args(When)}  # noqa: RUF012

    @abstractmethod
    def decide(self, view: View) -> Action | Look | Awaitable[Action | Look]:
        """What to do at `view.index`; must depend on `view` and on the policy's own fields alone. A coroutine where it
        asks a model.
        """

    @property
    def looks(self) -> Collection[str]:
        """What it may `Look` for; a mapping also names, for errors, what wants it."""
        return ()

    @property
    def calls_per_step(self) -> Mapping[str, int]:
        """The most calls that one step takes of a role, for a plan; 1 of each that is not in it."""
        return {}

    @property
    def family(self) -> str:
        """What a comparison calls it at any operating point."""
        return self.name

    @property
    def point(self) -> float | None:
        """The operating point, None where there is nothing to set."""
        value: float | None = getattr(self, self.dial, None)
        return value

    def at(self, x: float) -> Self:
        """The same policy at operating point `x`; itself where there is nothing to set."""
        if not self.dial:
            return self
        return make_plugin(type(self), {**options_of(self), self.dial: x}, field=f"{type(self).__name__}.dial")  # type: ignore[no-any-return]

    def check_models(self, *, weak: str | None = None, strong: str | None = None, scorer: str | None = None) -> None:
        """Raise `ConfigError` where it knows what models it is for, and one of these is another."""
        return


class Signal(Plugin):
    """One number per step: inherit from this and write `value`; `Signalled` makes a policy of it.

    Attributes:
        name: what tables call it; the class's name where nothing else is said.
        when: "before" the draft is written, or "after".
        worse: which values call for the strong model, "high" or "low".
        evidence: what it looks at, besides the draft.

    Example:
        A long draft calls for the strong model:

        >>> class Length(Signal):
        ...     worse = "high"
        ...     evidence = "draft"
        ...     def value(self, view):
        ...         return view.tokens
        >>> Length().needs
        ()
    """

    name: ClassVar[str]
    when: ClassVar[Literal["before", "after"]] = "after"
    worse: ClassVar[Worse] = "low"
    evidence: ClassVar[Evidence] = "scores"

    _choices = {"when": ("before", "after"), "worse": get_args(Worse), "evidence": get_args(Evidence)}  # noqa: RUF012

    @property
    def needs(self) -> tuple[Look, ...]:
        """What to look for, in this order, "draft" left out."""
        return (Look(self.evidence),) if self.evidence != "draft" else ()

    @property
    def title(self) -> str:
        """What a comparison calls it."""
        return self.name

    @abstractmethod
    def value(self, view: View) -> float | None:
        """The number, None where the evidence is missing (it failed, or could not be read or afforded)."""
