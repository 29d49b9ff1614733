"""The models by what they do in a collection and in the datasets made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from stepwise import critics
from stepwise.config import Config
from stepwise.models import load_backend
from stepwise.models.base import Backend, Generator, generator_of
from stepwise.models.shared import shared_engine
from stepwise.models.wrappers import Wrappers

Role = Literal["weak", "strong", "localizer", "proposer", "rewriter"]


class Writers:
    """The models by what they do, each loaded when it is first asked for. Those given are used as they are.

    `weak` and `strong` are backends, the others modules: ErrorLocalizer, InterventionProposer with one candidate, and
    SolutionRewriter. `around`, while it is set, is put around their calls.
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

    def _model(self, role: Literal["weak", "strong"]) -> Generator:
        model = self._writer(role, lambda config: load_backend(getattr(config.models, role), prompt=config.prompt))
        if self.around is not None and role not in self._wrapped:
            self._wrapped[role] = self.around.model(model, role)
        return self._wrapped.get(role) or generator_of(model)

    def _writer(self, role: str, load: Callable[[Config], Any]) -> Any:
        if role not in self._used:
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
        if asked and self._config.models.critic.local:
            shared_engine(self._config.models.critic).reset_cache()

    def close(self) -> None:
        """Free the backends that were loaded here."""
        for role in {"weak", "strong"} & (self._used.keys() - self._given):
            self._used.pop(role).close()


@contextmanager
def in_use(writers: Writers | None, config: Config) -> Iterator[Writers]:
    """`writers` as they are, or those of the configuration, which are freed at the end."""
    if writers is not None:
        yield writers
        return
    own = Writers(config)
    try:
        yield own
    finally:
        own.close()


def one_candidate(config: Config) -> Config:
    """The configuration with one candidate for each error; of several, each is a call of its own."""
    critic = config.critic
    warm = critic.temperature or (0.7 if critic.candidates > 1 else 0.0)  # greedy candidates would all be the same
    return config.model_copy(update={"critic": critic.model_copy(update={"candidates": 1, "temperature": warm})})
