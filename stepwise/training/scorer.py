"""A process reward model of one's own: a LoRA adapter of the weak model that answers with a label token where each step
ends. It reads with the weak model's weights, unmerged, on a cache of its own.

What differs from Math-Shepherd (arXiv 2312.08935, section 3.3):
1. The loss is the cross-entropy of one label token against the other, -y log s(z) - (1 - y) log s(-z) with z the
   difference of their logits, as the score is read; labels may be soft, and a step without one has no loss.
2. Token ids and the positions of labels are those of the scorer's own layout, counted while ids are put together.
3. Scores are made probabilities on problems left out for it, and the test problems have been in neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stepwise.config import Config, ScorerConfig
from stepwise.config.training import PrmConfig
from stepwise.data.scorer_quality import judged_pairs, measure_scores, threshold_of
from stepwise.data.step_labels import (
    LabelledSolution,
    LabelSplits,
    check_step_labels,
    load_step_labels,
    split_by_problem,
    with_splitter,
)
from stepwise.errors import DataError
from stepwise.io import read_rows
from stepwise.models.engine import Engine
from stepwise.models.scorers.calibration import fit_calibration
from stepwise.models.scorers.label_token import LabelTokenScorer
from stepwise.models.scorers.load import local_scorer
from stepwise.models.shared import load_engine
from stepwise.runs.directory import RunDirectory, opened
from stepwise.runs.progress import announce
from stepwise.seeds import seed_for
from stepwise.training.adapters import base_directory, check_adapter, read_card
from stepwise.training.batches import for_few_rows, plan_steps
from stepwise.training.cards import add_scorer
from stepwise.training.logprobs import decoder_and_head, pad
from stepwise.training.lora import Trainee, load_trainee
from stepwise.training.trainer import finish, finished_adapter, fit, run_arguments

_RATE = 1.75e10  # weights times tokens that one core trained a second, of models of 135 and 500 million weights


def train_scorer(
    labels: str | Path | Sequence[LabelledSolution] | Any,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    adapter: str | Path | None = None,
    curve: Sequence[float] = (),
    problems: int | None = None,
    tokens: int | None = None,
    sinks: Sequence[str] = (),
) -> Path:
    """Train a scorer on solutions with labelled steps; returns its directory, `out`/adapter, which [scorer] takes.

    `labels` is whatever `load_step_labels` reads. Problems are split into training, validation (calibration, threshold)
    and test, whose figures are in the card. `adapter` is an earlier one to go on with. `curve` are shares of the
    training problems that are trained on too, each from the start, in `out`/curve; `problems` is how many of them are
    used. `tokens` is what the labels cost, for the card. The same call goes on where it was stopped.

    Raises DataError for labels that teach nothing or are of other steps, ConfigError for label tokens that the model
    has not, BackendError where memory runs out.

    Example:
        scorer = train_scorer("out/label_steps", sw.Config.lab(), "out/scorer")
        sw.load_scorer(scorer).score("What is 1 + 1?", ["1 + 1 = 2."])
    """
    cfg = Config.of(cfg, "cfg")
    solutions = with_splitter(load_step_labels(labels), cfg.prompt.splitter)
    splits = split_by_problem(solutions, cfg.seed)
    check_step_labels(splits)
    used = _first_problems(splits.train, problems, cfg.seed)
    arguments = run_arguments(adapter, labels=used, validation=splits.validation, test=splits.test)
    with opened(out, program="scorer", config=cfg, arguments=arguments) as directory:
        if (finished := finished_adapter(directory, str(arguments["data"]))) is not None:
            return finished
        if adapter is not None:
            check_adapter(adapter, base_directory(cfg.models.weak), cfg.prompt)
        with _reader(cfg) as engine:
            scorer = local_scorer(engine, _spec(cfg), cfg.prompt)
            rows = scorer_rows(scorer, used, cfg.models.weak.context or engine.context)
            ids = [engine.token_id(cfg.prm.good), engine.token_id(cfg.prm.bad)]
            _say_cost(rows, curve, cfg, engine.parameters)
        points = []
        for share in curve:
            n = max(1, round(share * len({s.problem_id for s in used})))
            part = directory.made() / "curve" / f"{n}-{arguments['data'][:8]}"  # never of other labels
            card = read_card(train_scorer(solutions, cfg, part, adapter=adapter, problems=n)) or {}
            points.append(_brief(card["scorer"]))
        folder = _fitted(cfg, rows, ids, used, directory, adapter, str(arguments["data"]), sinks)
        spent = {
            "labels": sum(row.num_trained for row in rows),
            "problems": len({s.problem_id for s in used}),
            "tokens that the labels cost": tokens,
            "tokens read": sum(rows[i].size for batch in _plan(rows, cfg) for i in batch),
            "seconds": round(sum(step["seconds"] for step in read_rows(directory.path / "metrics.jsonl")), 1),
        }
        facts = {**_measured(cfg, folder, splits), "spent": spent}
        add_scorer(folder, {**facts, "curve": [*points, _brief(facts)] if curve else []})
        return folder


@dataclass(frozen=True)
class ScorerRow:
    """What the scorer reads of a solution, and the labels at `positions`, after each of which a label token is due.

    >>> ScorerRow((1, 2, 3, 4), (1, 3), (1.0, 0.0)).num_trained
    2
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    labels: tuple[float, ...]

    @property
    def size(self) -> int:
        """Tokens that are read."""
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        """Labels."""
        return len(self.labels)

    @property
    def weight(self) -> float:
        """Every label counts the same."""
        return float(len(self.labels))


def scorer_rows(
    scorer: LabelTokenScorer, solutions: Sequence[LabelledSolution], context: int | None = None
) -> list[ScorerRow]:
    """The solutions as `scorer` reads them, one row for each sequence of its layout that has a label. What is longer
    than `context` tokens is left out, and said; DataError where nothing is left.

    Example:
        rows = scorer_rows(scorer, load_step_labels("labels.jsonl"), context=2048)
    """
    rows, long = [], 0
    for s in solutions:
        labels = iter(s.labels)
        for ids, positions in scorer.layout.readings(s.question, s.steps, 0):
            known = [(at, label) for at, label in zip(positions, labels, strict=False) if label is not None]
            if context is not None and known and known[-1][0] >= context:
                long += 1
            elif known:
                places, values = zip(*known, strict=True)
                rows.append(ScorerRow(tuple(ids[: places[-1] + 1]), places, values))
    if long:
        announce(f"{long} sequences are longer than the context of {context} tokens and are left out")
    if not rows:
        raise DataError(f"no labelled solution fits into the context of {context} tokens; raise models.weak.context")
    return rows


def label_loss(trainee: Trainee, rows: Sequence[ScorerRow], good: int, bad: int) -> tuple[Tensor, dict[str, float]]:
    """Sum over all labels of the cross-entropy of token `good` against `bad`, a scalar tensor in nats; and how many are
    on the right side of one half.

    Example:
        loss, figures = label_loss(trainee, rows, engine.token_id("+"), engine.token_id("-"))
    """
    ids = torch.from_numpy(pad([row.ids for row in rows], trainee.tokenizer.eos_token_id)).to(trainee.device)  # (B, T)
    decoder, head = decoder_and_head(trainee.model)
    states = decoder(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)  # (B * T, H)
    places = [b * ids.shape[1] + position for b, row in enumerate(rows) for position in row.positions]
    exact = torch.promote_types(head.dtype, torch.float32)
    gap = head[good].to(exact) - head[bad].to(exact)  # (H,): the other rows of the head are not needed
    logits = states[torch.tensor(places, device=ids.device)].to(exact) @ gap  # (N,)
    labels = torch.tensor([label for row in rows for label in row.labels], dtype=exact, device=ids.device)
    loss = binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return loss, {"accuracy": float(((logits > 0) == (labels >= 0.5)).sum())}


def _first_problems(solutions: Sequence[LabelledSolution], problems: int | None, seed: int) -> list[LabelledSolution]:
    """Those of the first so many problems in an order of the seed's, so that fewer are a part of more."""
    ids = sorted({s.problem_id for s in solutions}, key=lambda name: seed_for(seed, "curve", name))
    return [s for s in solutions if s.problem_id in set(ids[:problems])]


def _spec(cfg: Config) -> ScorerConfig:
    reading: dict[str, Any] = cfg.prm.model_dump(include={"layout", "marker", "good", "bad"})
    return ScorerConfig(model=cfg.models.weak.model, **reading)


def _reader(cfg: Config) -> Engine:
    """The weak model's weights, without an adapter."""
    return load_engine(cfg.models.weak.model_copy(update={"adapter": None}), curve=None)


def _plan(rows: Sequence[ScorerRow], cfg: Config) -> list[list[int]]:
    return plan_steps([row.num_trained for row in rows], _settings(rows, cfg), f"{cfg.seed}|scorer")


def _settings(rows: Sequence[ScorerRow], cfg: Config) -> PrmConfig:
    return for_few_rows(cfg.prm, len(rows), cfg.models.weak.model)


def _say_cost(rows: Sequence[ScorerRow], curve: Sequence[float], cfg: Config, parameters: int) -> None:
    """What is about to be trained, before anything is."""
    tokens = (1 + sum(curve)) * sum(rows[i].size for batch in _plan(rows, cfg) for i in batch)
    announce(
        f"{sum(row.num_trained for row in rows):,} labels in {len(rows):,} sequences: {tokens:,.0f} tokens are read"
        f"{f' in {len(curve) + 1} runs' if curve else ''}, about {tokens * parameters / _RATE:,.0f} s on one core"
    )


def _fitted(
    cfg: Config,
    rows: Sequence[ScorerRow],
    ids: Sequence[int],
    used: Sequence[LabelledSolution],
    directory: RunDirectory,
    adapter: str | Path | None,
    data: str,
    sinks: Sequence[str],
) -> Path:
    """The adapter's directory; what it was trained with is freed."""
    trainee = load_trainee(cfg, adapter=adapter, dropout=True)
    batches = [[rows[i] for i in batch] for batch in _plan(rows, cfg)]

    def loss(part: Sequence[ScorerRow]) -> tuple[Tensor, dict[str, float]]:
        return label_loss(trainee, part, *ids)

    settings = _settings(rows, cfg)
    fit(trainee, batches, loss, settings, cfg, directory, data=data, label="training of a scorer", sinks=sinks)
    return finish(directory, trainee, cfg, "scorer", {"labels": used})


def _brief(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A point of a learning curve."""
    return {"spent": facts["spent"], **facts["test"]["after"]}


def _fits(scorer: LabelTokenScorer, s: LabelledSolution, context: int) -> bool:
    return all(len(ids) <= context for ids, _ in scorer.layout.readings(s.question, s.steps, 0))


def _measured(cfg: Config, folder: Path, splits: LabelSplits) -> dict[str, Any]:
    """Calibration and threshold from the validation problems, and what both are worth on the test problems."""
    with _reader(cfg) as engine:
        engine.set_adapter(folder / "adapter.gguf")
        scorer = local_scorer(engine, _spec(cfg), cfg.prompt)
        parts = [[s for s in part if _fits(scorer, s, engine.context)] for part in splits[1:]]
        scores = [scorer.score_batch([(s.question, s.steps) for s in part]) for part in parts]
    flat = [pair for group in judged_pairs(scores[0], parts[0]) for pair in group]
    calibration = fit_calibration([score for score, _ in flat], [label for _, label in flat], cfg.prm.calibration)
    calibrated = [[[calibration(value) for value in values] for values in part] for part in scores]
    test = {}
    for name, (validation, tested) in {"before": scores, "after": calibrated}.items():
        threshold = threshold_of(validation, parts[0])
        test[name] = dataclasses.asdict(measure_scores(tested, parts[1], threshold))
    return {
        "reading": {name: getattr(_spec(cfg), name) for name in ("layout", "marker", "good", "bad")},
        "splitter": cfg.prompt.splitter,
        "calibration": dataclasses.asdict(calibration),
        "threshold": test["after"]["threshold"],
        "test": test,
    }
