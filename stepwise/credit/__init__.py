"""Credit per step: from a group of rollouts of one problem to advantages per token, shape (B, T).

`SCHEMES` has one function per scheme, by the name that `rl.credit.scheme` takes; `schemes` has them with their own
options and their formulas, `base` what a scheme or reward of one's own inherits from. Schemes that are losses
(GRPO-lambda, LaSeR) are in the training part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from stepwise.config.training import CreditConfig
from stepwise.credit.base import Credit, Reward, as_credit, as_reward
from stepwise.credit.group import Array, Group, has_signal
from stepwise.credit.schemes import capo, distill, first_error, oppo, outcome, pure_min, shuffled, vineppo, vppo

SchemeFunction = Callable[[Group, CreditConfig, int], Array]

SCHEMES: Mapping[str, SchemeFunction] = MappingProxyType(
    {
        "outcome": lambda group, cfg, seed: outcome(group, scale=cfg.scale, leave_one_out=cfg.leave_one_out),
        "first_error": lambda group, cfg, seed: first_error(group, blame=cfg.blame),
        "vppo": lambda group, cfg, seed: vppo(group, alpha=cfg.alpha, shorten=cfg.shorten, relu=cfg.relu),
        "vineppo": lambda group, cfg, seed: vineppo(group),
        "capo": lambda group, cfg, seed: capo(group, agree=cfg.agree, scale=cfg.scale),
        "pure_min": lambda group, cfg, seed: pure_min(group),
        "oppo": lambda group, cfg, seed: oppo(group, evidence_clip=cfg.evidence_clip),
        "distill": lambda group, cfg, seed: distill(group, clip=cfg.distill_clip),
        "shuffled": lambda group, cfg, seed: shuffled(group, blame=cfg.blame, seed=seed),
    }
)
"""name -> function of (group, cfg, seed); only `shuffled` reads the seed"""

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "outcome": "",
        "first_error": "first_error",
        "vppo": "first_error",
        "vineppo": "values",
        "capo": "critiques",
        "pure_min": "scores",
        "oppo": "evidence",
        "distill": "teacher",
        "shuffled": "first_error",
    }
)
"""name -> the optional field of `Group` that the scheme reads"""


class _Published(Credit):
    """A scheme of `SCHEMES` with the options of a configuration."""

    def __init__(self, cfg: CreditConfig) -> None:
        self.cfg, self.needs = cfg, NEEDS[cfg.scheme]  # type: ignore[misc]  # of the object, not of the class

    def advantages(self, group: Group, seed: int) -> Array:
        return SCHEMES[self.cfg.scheme](group, self.cfg, seed)


def load_credit(cfg: CreditConfig) -> Credit:
    """The scheme that `cfg.scheme` names, or the one at that import path; ConfigError for what is no scheme.

    Example:
        >>> from stepwise.config.training import CreditConfig
        >>> load_credit(CreditConfig(scheme="first_error")).needs
        'first_error'
    """
    return _Published(cfg) if cfg.scheme in SCHEMES else as_credit(cfg.scheme, "rl.credit.scheme")


def advantages(group: Group, cfg: CreditConfig, seed: int = 0) -> Array:
    """Advantages (B, T) of `group` under `cfg.scheme`; 0 on padding, forced tokens and, but for `distill`, rollouts
    without a reward.

    `seed` >= 0 is read by `shuffled` alone. Raises `DataError` where the group lacks a field that the scheme needs.

    >>> import numpy as np
    >>> group = Group([1.0, 0.0], np.ones((2, 3), dtype=bool), (((0, 3),), ((0, 1), (1, 3))), first_error=(None, 1))
    >>> advantages(group, CreditConfig(scheme="first_error")).tolist()
    [[0.5, 0.5, 0.5], [0.0, -1.0, -1.0]]
    """
    return load_credit(cfg).advantages(group, seed)


__all__ = [
    "NEEDS",
    "SCHEMES",
    "Credit",
    "Group",
    "Reward",
    "advantages",
    "as_credit",
    "as_reward",
    "capo",
    "distill",
    "first_error",
    "has_signal",
    "load_credit",
    "oppo",
    "outcome",
    "pure_min",
    "shuffled",
    "vineppo",
    "vppo",
]
