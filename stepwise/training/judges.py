"""Who says where a rollout goes wrong, for the credit schemes that ask: the scorer, the critic, or a function. And the
teacher, who reads it along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepwise import credit
from stepwise.errors import ConfigError
from stepwise.training.teacher import load_teacher
from stepwise.types import Problem

if TYPE_CHECKING:
    from stepwise.config import Config

Locate = Callable[[Problem, Sequence[str]], int | None]
WARM = 0.7
"""Temperature of the critic where several critiques of a rollout are asked for and none is set."""


@dataclass(frozen=True)
class Judges:
    """Those that the scheme asks; the others are None. `forget` empties the caches of those that were loaded here, and
    `close` frees them. `critic_size` is the critic's number of parameters, None if unknown.
    """

    scorer: Any = None
    critic: Any = None
    locate: Locate | None = None
    teacher: Any = None
    critic_size: int | None = None
    forget: Callable[[], None] = lambda: None
    close: Callable[[], None] = lambda: None


def asked(cfg: Config) -> str:
    """Whom the scheme of `cfg` asks: "scorer", "critic", "locate", "teacher", or "" where it asks nobody."""
    how = cfg.rl.credit
    if "first_error" in credit.NEEDS[how.scheme]:
        return "locate" if how.first_error == "given" else how.first_error
    return {"scores": "scorer", "critiques": "critic", "teacher": "teacher"}.get("".join(credit.NEEDS[how.scheme]), "")


def load_judges(cfg: Config, scorer: Any = None, critic: Any = None, locate: Locate | None = None) -> Judges:
    """The judge that the scheme asks: the one given, else the scorer, critic or teacher that the configuration has.

    Raises ConfigError where `locate` is needed and missing, or a judge is given and not asked, or the teacher is not
    local; what loading raises.
    """
    who, how = asked(cfg), cfg.rl.credit
    given = {"scorer": scorer, "critic": critic, "locate": locate}
    for name, judge in given.items():
        if judge is not None and name != who:
            raise ConfigError(
                f'{name} is given, but rl.credit.scheme = "{how.scheme}" with first_error = "{how.first_error}" asks '
                f"{who or 'nobody'}; leave it out, or change the scheme"
            )
    if who == "locate":
        if locate is None:
            raise ConfigError(
                'rl.credit.first_error is "given", but no function was; give grpo locate(problem, steps), or set '
                'first_error to "scorer" or "critic"'
            )
        return Judges(locate=locate)
    if who == "scorer":
        return Judges(scorer=scorer, forget=_forgets(scorer)) if scorer is not None else _own_scorer(cfg)
    if who == "critic":
        return Judges(critic=critic) if critic is not None else _own_critic(cfg)
    if who == "teacher":
        teacher = load_teacher(cfg)
        return Judges(teacher=teacher, forget=teacher.forget, close=teacher.close)
    return Judges()


def _own_scorer(cfg: Config) -> Judges:
    from stepwise.models.scorers import load_scorer

    scorer = load_scorer(cfg.scorer, prompt=cfg.prompt)
    return Judges(scorer=scorer, forget=_forgets(scorer), close=getattr(scorer, "close", lambda: None))


def _forgets(scorer: Any) -> Callable[[], None]:
    found: Callable[[], None] = getattr(scorer, "forget", lambda: None)
    return found


def _own_critic(cfg: Config) -> Judges:
    from stepwise.critics import ErrorLocalizer

    how = cfg.critic
    if "critiques" in credit.NEEDS[cfg.rl.credit.scheme] and cfg.rl.credit.critiques > 1 and not how.temperature:
        cfg = cfg.model_copy(update={"critic": how.model_copy(update={"temperature": WARM})})
    critic = ErrorLocalizer.from_config(cfg)
    if not cfg.models.critic.local:
        return Judges(critic=critic)
    from stepwise.models.shared import shared_engine

    engine = shared_engine(cfg.models.critic)
    return Judges(critic=critic, critic_size=engine.parameters, forget=engine.forget)
