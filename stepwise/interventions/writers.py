"""The models by what they do in a collection and in the datasets made from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from stepwise import critics
from stepwise.config import Config
from stepwise.models import load_backend
from stepwise.models.base import Backend
from stepwise.models.shared import shared_engine

Role = Literal["weak", "strong", "localizer", "proposer", "rewriter"]


class Writers:
    """The models by what they do, each loaded when it is first asked for. Those given are used as they are.

    `weak` and `strong` are backends, the others modules: ErrorLocalizer, InterventionProposer with one candidate, and
    SolutionRewriter.
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
        self._config = config
        given = {"weak": weak, "strong": strong, "localizer": localizer, "proposer": proposer, "rewriter": rewriter}
        self._given = {role: writer for role, writer in given.items() if writer is not None}
        self._loaded: dict[str, Any] = {}

    @property
    def weak(self) -> Backend:
        """The model that is to be trained."""
        return self._writer("weak")  # type: ignore[no-any-return]

    @property
    def strong(self) -> Backend:
        """The model that steps are escalated to."""
        return self._writer("strong")  # type: ignore[no-any-return]

    @property
    def localizer(self) -> Any:
        """Finds first errors."""
        return self._writer("localizer")

    @property
    def proposer(self) -> Any:
        """Writes a step in place of an error."""
        return self._writer("proposer")

    @property
    def rewriter(self) -> Any:
        """Writes a failed attempt anew."""
        return self._writer("rewriter")

    def reset_caches(self, *roles: Role) -> None:
        """Empty the caches of the local models that are in use, those in `roles` included."""
        for role in roles:
            self._writer(role)
        for backend in ({**self._given, **self._loaded}.get(role) for role in ("weak", "strong")):
            getattr(backend, "forget", lambda: None)()
        if self._loaded.keys() & {"localizer", "proposer", "rewriter"} and self._config.models.critic.local:
            shared_engine(self._config.models.critic).forget()

    def close(self) -> None:
        """Free the backends that were loaded here."""
        for role in ("weak", "strong"):
            if role in self._loaded:
                self._loaded.pop(role).close()

    def _writer(self, role: Role) -> Any:
        if role in self._given:
            return self._given[role]
        if role not in self._loaded:
            config = self._config
            if role in ("weak", "strong"):
                self._loaded[role] = load_backend(getattr(config.models, role), prompt=config.prompt)
            elif role == "localizer":
                self._loaded[role] = critics.ErrorLocalizer.from_config(config)
            elif role == "proposer":
                self._loaded[role] = critics.InterventionProposer.from_config(one_candidate(config))
            else:
                self._loaded[role] = critics.SolutionRewriter.from_config(config)
        return self._loaded[role]


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
