"""Credit per step: from a group of rollouts of one problem to advantages per token, shape (B, T).

`SCHEMES` has one function per scheme, by the name that `rl.credit.scheme` takes; `schemes` has them with their own
options and their formulas. Schemes that are losses (GRPO-lambda, LaSeR) are in the training part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from stepwise.config.training import CreditConfig
from stepwise.credit.group import Array, Group, has_signal, step_advantages
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

NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "outcome": (),
        "first_error": ("first_error",),
        "vppo": ("first_error",),
        "vineppo": ("values",),
        "capo": ("critiques",),
        "pure_min": ("scores",),
        "oppo": ("evidence",),
        "distill": ("teacher",),
        "shuffled": ("first_error",),
    }
)
"""name -> the optional fields of `Group` that the scheme reads"""


def advantages(group: Group, cfg: CreditConfig, seed: int = 0) -> Array:
    """Advantages (B, T) of `group` under `cfg.scheme`; 0 on padding, forced tokens and, but for `distill`, rollouts
    without a reward.

    `seed` >= 0 is read by `shuffled` alone. Raises `DataError` where the group lacks a field that the scheme needs.
    """
    return SCHEMES[cfg.scheme](group, cfg, seed)


__all__ = [
    "NEEDS",
    "SCHEMES",
    "Group",
    "advantages",
    "capo",
    "distill",
    "first_error",
    "has_signal",
    "oppo",
    "outcome",
    "pure_min",
    "shuffled",
    "step_advantages",
    "vineppo",
    "vppo",
]
