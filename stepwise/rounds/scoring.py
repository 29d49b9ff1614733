"""A round's scorer: made anew from what the new weak model writes, and measured on validation problems.

A scorer that was made for one model's errors misses those of a model whose kind of errors training has changed. So
solutions of the new weak model are labelled (`label_steps`: by the critic with the reference, or by rollouts), and
the scorer follows them: a probe on the model's states, an adapter, or the calibration alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from stepwise.config import Config, ScorerConfig
from stepwise.data.scorer_quality import judged_pairs, measure_scores
from stepwise.data.step_labels import LabelledSolution, check_step_labels, split_by_problem
from stepwise.errors import ConfigError, NothingToLearnError
from stepwise.io import write_text
from stepwise.models.caps import uncapped
from stepwise.models.scorers import load_scorer
from stepwise.models.scorers.calibration import Calibration, fit_calibration
from stepwise.models.scorers.label_token import LabelTokenScorer
from stepwise.records import record, to_json
from stepwise.stats import Interval
from stepwise.training.head import train_probe

Refit = Literal["auto", "none", "calibration", "probe", "scorer"]
CALIBRATION = "calibration.json"


@record()
class LoopScorer:
    """The scorer of a round. `kind` is what was made anew, "none" where it is the one before; `note` says why.

    `spec` is what [scorer] takes, `labels` the number of solutions of training problems that it was fitted to. On the
    weak model's own solutions of validation problems, with `first_errors` of them wrong, `auroc` is of right steps
    against first errors, `configured` that of the configuration's [scorer]; None where it was not measured.

    >>> LoopScorer("none", {}, 0, 12, None, None, "too few labels").note
    'too few labels'
    """

    kind: Refit
    spec: Mapping[str, Any]
    labels: int
    first_errors: int
    auroc: Interval | None
    configured: Interval | None
    note: str = ""

    @property
    def config(self) -> ScorerConfig:
        """As [scorer] has it."""
        return ScorerConfig(**self.spec)


def kind_of(refit: Refit, scorer: ScorerConfig) -> Refit:
    """What is made anew in each round: for "auto" a probe where [scorer] is one, the calibration of label tokens that
    are read here, else nothing. Raises ConfigError for the calibration of another kind.

    >>> kind_of("auto", ScorerConfig())
    'calibration'
    """
    has_map = scorer.kind == "label_token" and scorer.local
    if refit == "calibration" and not has_map:
        raise ConfigError(
            f'refit = "calibration" is for label tokens of a local model, and [scorer] is {scorer.title}; give '
            '"probe", "scorer" or "none"'
        )
    if refit != "auto":
        return refit
    return "probe" if scorer.kind == "probe" else "calibration" if has_map else "none"


def forced(scorer: ScorerConfig) -> ScorerConfig:
    """`scorer`, a probe also for a weak model that it was not fitted for.

    >>> forced(ScorerConfig()) == ScorerConfig()
    True
    """
    return ScorerConfig(**{**scorer.model_dump(), "force": True}) if scorer.kind == "probe" else scorer


def fit_scorer(kind: Refit, labelled: Sequence[LabelledSolution], cfg: Config, folder: Path) -> ScorerConfig:
    """The scorer of kind `kind` fitted to `labelled`, in `folder`; `cfg` has the weak model and the scorer so far.

    Raises NothingToLearnError where the labels are too few, or all of one kind.

    Example:
        scorer = fit_scorer("probe", load_step_labels("out/labels"), config, Path("out/scorer"))
    """
    if kind == "calibration":
        path = folder / CALIBRATION
        if not path.is_file():
            write_text(path, to_json(_calibration(labelled, cfg)) + "\n")
        return ScorerConfig(**{**cfg.scorer.model_dump(), "calibration": str(path)})
    check_step_labels(split_by_problem(labelled, cfg.seed))
    if kind == "probe":
        return ScorerConfig(kind="probe", model=f"probe/{train_probe(list(labelled), uncapped(cfg), folder)}")
    from stepwise.training.scorer import train_scorer  # torch

    return ScorerConfig.of(str(train_scorer(list(labelled), uncapped(cfg), folder)), "scorer")


def _calibration(labelled: Sequence[LabelledSolution], cfg: Config) -> Calibration:
    with closing(load_scorer(cfg.scorer, prompt=cfg.prompt)) as scorer:
        if not isinstance(scorer, LabelTokenScorer):
            raise ConfigError(f"[scorer] {cfg.scorer.title} has no calibration to fit")
        scorer.calibration = Calibration()  # of the scores as they are read
        scores = scorer.score_batch([(s.question, s.steps) for s in labelled])
    pairs = [pair for group in judged_pairs(scores, labelled) for pair in group]
    if len({label >= 0.5 for _, label in pairs}) < 2:
        raise NothingToLearnError(f"the {len(labelled)} labelled solutions have no right or no wrong step")
    return fit_calibration([score for score, _ in pairs], [label for _, label in pairs], cfg.prm.calibration)


def auroc_of(labelled: Sequence[LabelledSolution], cfg: Config) -> Interval | None:
    """AUROC of [scorer]'s scores of right steps against first errors, 95 % over problems; None for a scorer that asks a
    server, and where either kind is missing.

    Example:
        auroc_of(load_step_labels("out/labels"), config)
    """
    asks = cfg.scorer.kind in ("judge", "pooling", "generative") or cfg.scorer.api_base is not None
    if asks or not labelled:
        return None
    with closing(load_scorer(cfg.scorer, prompt=cfg.prompt, weak=cfg.models.weak)) as scorer:
        scores = scorer.score_batch([(s.question, s.steps) for s in labelled])
    return measure_scores(scores, labelled, 0.5).auroc
