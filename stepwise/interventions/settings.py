"""What a collection and a dataset ask for beside the configuration, and the models that write for them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stepwise import critics
from stepwise.config import Config
from stepwise.models import load_backend
from stepwise.models.base import Backend, Generator
from stepwise.models.caps import uncapped
from stepwise.models.lab_judges import critics_of, refuse_lab_judge
from stepwise.models.shared import keep_with_run, shared_engine
from stepwise.models.wrapped import generator_of
from stepwise.models.wrappers import Wrappers
from stepwise.records import Section
from stepwise.runs.progress import stage

Role = Literal["weak", "strong", "localizer", "proposer", "rewriter"]


class CollectSettings(Section):
    """How many of what. How many candidates are proposed for an attempt is `critic.candidates` of the configuration.

    When a candidate has had enough guided rollouts follows from `guided`, `enough`, `accept`, `floor`, `miss` and
    `batch`; see `stepwise.interventions.filtering`.

    >>> settings = CollectSettings(guided=32, floor=0.1, miss=0.3)
    >>> settings.drop_after  # .9 ** 12 <= .3
    12
    >>> settings.next_batch(successes=0, asked=4), settings.next_batch(successes=1, asked=4)
    (4, 0)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    rollouts: int = Field(default=4, ge=1)
    """solutions of each problem that the weak model writes at first"""
    max_tokens: int = Field(default=1024, ge=1)
    """most tokens of one solution, and of one guided continuation"""
    attempts: int | None = Field(default=None, ge=1)
    """most failed attempts of one problem that go on; None for all of them"""
    check_sums: bool = True
    """whether a candidate with an equation that is false is dropped"""
    check_form: bool = True
    """whether a candidate that is not one step in the solver's voice is dropped (`critics.form`)"""
    guided: int = Field(default=32, ge=1)
    """most guided rollouts of one candidate until it is known whether any ends right"""
    batch: int = Field(default=8, ge=1)
    """most guided rollouts of one candidate that are asked for at a time; a candidate begins with 2"""
    enough: int | None = Field(default=1, ge=1)
    """successes after which a candidate is asked no further; None asks for all"""
    floor: float = Field(default=0.1, gt=0, lt=1)
    """rate of success of a candidate that had better not be lost"""
    miss: float = Field(default=0.3, ge=0, lt=1)
    """highest probability of losing such a candidate; it is given up after the least n with (1-floor)^n <= miss
    failures without a success (12 by default); 0 never gives up"""
    accept: Literal["test", "success"] = "test"
    """test: a candidate needs more right rollouts than going on from the correct prefix would give by luck (see
    `stepwise.interventions.acceptance`); success: one is enough, as in InT"""
    level: float = Field(default=0.1, gt=0, lt=1)
    """accept "test": highest probability of so many right rollouts by luck"""
    keep: Literal["best", "first", "all"] = "best"
    """of an attempt's candidates with a success the best one, the one that has it first (then the others are asked no
    further), or all of them"""
    compare: int = Field(default=8, ge=0)
    """keep "best": guided rollouts, per attempt with several such candidates, to find out which one is the best"""
    fresh: int = Field(default=4, ge=0)
    """guided rollouts of a candidate that is kept, of which alone its rate is told; 0 tells it of those that chose it,
    which is too high on average"""
    chunk: int = Field(default=8, ge=1)
    """problems that are done together, and done again together after an interruption"""
    concurrency: int = Field(default=1, ge=1)
    """calls of the critic at a time; with more than one, batches and so last digits of logits depend on timing"""

    @property
    def drop_after(self) -> int | None:
        """Failures, with no success, after which a candidate is given up: the least n with (1 - floor)^n <= miss, in
        exact arithmetic; None for a `miss` of 0, which never gives up.
        """
        return _drop_after(self.floor, self.miss) if self.miss else None

    @property
    def compare_batch(self) -> int:
        """Rollouts of one candidate that are asked for at a time when it is compared."""
        return max(1, self.batch // 4)

    def next_batch(self, successes: int, asked: int, needed: int = 1) -> int:
        """How many rollouts to ask for next, of a candidate with so many `successes` in `asked` that is accepted with
        `needed` of them in `guided`; 0: no more, since it is accepted, given up, or cannot come to so many.
        """
        end = self.guided
        if successes + end - asked < needed or (self.enough is not None and successes >= max(self.enough, needed)):
            return 0
        if not successes and self.drop_after is not None:
            end = min(end, self.drop_after)
        if self.enough is None and (successes or self.drop_after is None):
            return min(self.batch, end - asked)  # all are asked for in any case
        return max(0, min(max(2, asked), self.batch, end - asked))

    def worst_filtering(self) -> tuple[int, int]:
        """The most (rollouts, batches) that one candidate can take until it has had enough."""
        worst = (0, 0)
        needs = (1, 2) if self.accept == "test" else (1,)  # with 2, one success is never enough
        for late, needed in product(range(self.guided), needs):  # the batch with the first success
            asked = batches = 0
            while size := self.next_batch(batches > late, asked, needed):
                asked, batches = asked + size, batches + 1
            worst = (max(worst[0], asked), max(worst[1], batches))
        return worst

    def worst_guiding(self, candidates: int) -> tuple[int, int]:
        """The most guided (rollouts, requests) of one attempt with so many candidates."""
        rollouts, batches = self.worst_filtering()
        compare = self.compare if self.keep == "best" and candidates > 1 else 0
        kept = candidates if self.keep == "all" else 1
        return (
            candidates * rollouts + compare + kept * self.fresh,
            candidates * batches - (-compare // self.compare_batch) + kept * bool(self.fresh),
        )

    def exactly(self, guided: int) -> CollectSettings:
        """These settings, but for exactly `guided` rollouts of each candidate, all of which are kept."""
        alike = {"accept": "success", "enough": None, "miss": 0.0, "keep": "all", "compare": 0, "fresh": 0}
        return self.model_copy(update={**alike, "guided": guided, "batch": min(guided, self.batch)})


class BuildSettings(Section):
    """How many of what, for the kinds of dataset that need it.

    Example:
        >>> BuildSettings(samples=4).per_problem
        4
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    per_problem: int = Field(default=4, ge=1)
    """most rows of one problem: right rollouts, rewrites, solutions by the strong model"""
    samples: int = Field(default=8, ge=1)
    """solutions of each problem that the weak model writes where there is no collection to take them from"""
    reflection: Literal["auto", "rewrite", "repair"] = "auto"
    """a whole rewrite in one call, or repaired step by step; auto: repair where the critic knows only its own task"""
    rounds: int = Field(default=3, ge=1)
    """repair: most errors that are put right in one attempt"""
    first_tokens: int = Field(default=8, ge=1)
    """first_tokens: length of the beginnings, in tokens of the weak model"""
    full_share: float = Field(default=0.1, ge=0, le=1)
    """first_tokens: share of problems whose whole solution is taken instead"""
    own_corpus: int = Field(default=1000, ge=1)
    """own_corpus: number of solutions"""
    chunk: int = Field(default=8, ge=1)
    """problems that are done together, and done again together after an interruption"""
    collect: CollectSettings = CollectSettings()
    """what is sampled or guided anew is as here"""


def hash_of(config: Config, settings: BaseModel, *kind: str) -> str:
    """Twelve hex digits for a configuration without its caps, the kind of a dataset and settings: in every row.

    >>> len(hash_of(Config.lab(), CollectSettings()))
    12
    """
    text = " ".join((uncapped(config).hash, *kind, settings.model_dump_json()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache
def _drop_after(floor: float, miss: float) -> int:
    fails, bound = 1 - Fraction(str(floor)), Fraction(str(miss))
    n = max(1, math.floor(math.log(miss) / math.log1p(-floor)) - 1)
    while fails**n > bound:
        n += 1
    return n


class Writers:
    """The models by what they do, each loaded when it is first asked for. Those given are used as they are.

    `weak` and `strong` are backends, the others modules: ErrorLocalizer, InterventionProposer with one candidate, and
    SolutionRewriter. `around`, while it is set, is put around their calls.

    Example:
        writers = Writers(config, weak=my_backend)  # the others are those of the configuration
        collect(problems, config, "out/int", writers=writers)
    """

    def __init__(
        self,
        config: Config,
        *,
        weak: Backend | None = None,
        strong: Backend | None = None,
        localizer: Any = None,
        proposer: Any = None,
        rewriter: Any = None,
    ) -> None:
        given = {"weak": weak, "strong": strong, "localizer": localizer, "proposer": proposer, "rewriter": rewriter}
        self._config = config
        self.around: Wrappers | None = None
        self._used: dict[str, Any] = {role: writer for role, writer in given.items() if writer is not None}
        self._given, self._wrapped = set(self._used), dict[str, Generator]()

    @property
    def weak(self) -> Generator:
        """The model that is to be trained."""
        return self._model("weak")

    @property
    def strong(self) -> Generator:
        """The model that steps are escalated to."""
        return self._model("strong")

    @property
    def localizer(self) -> Any:
        """Finds first errors."""
        return self._writer("localizer", critics.ErrorLocalizer.from_config)

    @property
    def proposer(self) -> Any:
        """Writes a step in place of an error."""
        return self._writer("proposer", lambda config: critics.InterventionProposer.from_config(one_candidate(config)))

    @property
    def rewriter(self) -> Any:
        """Writes a failed attempt anew."""
        return self._writer("rewriter", critics.SolutionRewriter.from_config)

    @property
    def given(self) -> list[Any]:
        """Those that were handed in."""
        return [self._used[role] for role in self._given]

    def refuse_lab(self) -> None:
        """Raise `ConfigError` where the critic is the lab's, the weak model is not, and that is not allowed."""
        cfg = self._config
        for role, judge in critics_of(cfg).items():
            weak = self._used.get("weak", cfg.models.weak)
            refuse_lab_judge(self._used.get(role, judge), "critic", weak, cfg.allow_lab)

    def _model(self, role: Literal["weak", "strong"]) -> Generator:
        model = self._writer(role, lambda config: load_backend(getattr(config.models, role), prompt=config.prompt))
        if self.around is not None and role not in self._wrapped:
            self._wrapped[role] = self.around.model(model, role)
        return self._wrapped.get(role) or generator_of(model)

    def _writer(self, role: str, load: Callable[[Config], Any]) -> Any:
        if role not in self._used:
            with stage(f"loading the {role}"):
                self._used[role] = load(self._config)
        return self._used[role]

    @contextmanager
    def within(self, around: Wrappers) -> Iterator[Writers]:
        """`around` is around every call, as long as the block is open."""
        self.around = around
        try:
            yield self
        finally:
            self.around, self._wrapped = None, {}

    def reset_caches(self, *roles: Role) -> None:
        """Empty the caches of the local models that are in use, those in `roles` included."""
        for role in {*roles, *self._used} & {"weak", "strong"}:
            getattr(self, role).reset_cache()
        asked = {*roles, *self._used} - self._given - {"weak", "strong"}
        if asked and self._config.models.critic.local and self._config.critic.method != critics.REFERENCE:
            shared_engine(self._config.models.critic).reset_cache()

    def close(self) -> None:
        """Free the backends that were loaded here."""
        for role in {"weak", "strong"} & (self._used.keys() - self._given):
            self._used.pop(role).close()


@contextmanager
def in_use(writers: Writers | None, config: Config) -> Iterator[Writers]:
    """`writers` as they are, or those of the configuration, which are freed at the end.

    Example:
        with in_use(None, config) as writers:  # freed at the end
            rollouts = sample_rollouts(Chunk(problems, writers, config, settings), writers.weak)
    """
    if writers is not None:
        keep_with_run(*writers.given)
        yield writers
        return
    loaded = Writers(config)
    try:
        yield loaded
    finally:
        loaded.close()


def one_candidate(config: Config) -> Config:
    """The configuration with one candidate for each error; of several, each is a call of its own.

    >>> one_candidate(Config.lab()).critic.candidates
    1
    """
    critic = config.critic
    warm = critic.temperature or (0.7 if critic.candidates > 1 else 0.0)  # greedy candidates would all be the same
    return config.model_copy(update={"critic": critic.model_copy(update={"candidates": 1, "temperature": warm})})
