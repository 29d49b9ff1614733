"""`train_probe`: a head on the weak model's states, from solutions with labelled steps; no torch.

The weak model reads each solution once, up to its first error, under the solve prompt and with the adapter that is
attached; what it computed is kept in `states.jsonl`, so that a run that was stopped goes on there, and a second fit on
the same solutions takes seconds. Problems are split into training, validation (on which components and ridge, the
calibration and the threshold are chosen) and test, whose figures are on the card.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwise.config import Config
from stepwise.data.scorer_quality import ScorerQuality, judged_pairs, measure_scores, threshold_of
from stepwise.data.step_labels import (
    LabelledSolution,
    LabelSplits,
    check_step_labels,
    load_step_labels,
    split_by_problem,
    with_splitter,
)
from stepwise.errors import BackendError, DataError, NothingToLearnError
from stepwise.io import append_rows, read_rows
from stepwise.models.base import Generator
from stepwise.models.driver import Driver
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.scorers.calibration import fit_calibration
from stepwise.models.scorers.head import Head, HeadCard, describe, fit_weights
from stepwise.models.scorers.probe import read_solution, refuse_without_states
from stepwise.models.shared import load_engine
from stepwise.models.states import Floats, pack, unpack
from stepwise.models.store import key_of
from stepwise.records import record, to_json
from stepwise.runs.directory import RunDirectory, opened
from stepwise.runs.progress import progress
from stepwise.types import Step

STATES = "states.jsonl"
_AT_ONCE = 8  # solutions that are read at once
Vectors = Sequence[Floats]


@record()
class _ReadSolution:
    """The packed vectors of a solution's steps up to its first error, and what reading them cost in tokens."""

    key: str
    vectors: tuple[str, ...]
    tokens: int


def train_probe(
    labels: str | Path | Sequence[LabelledSolution] | Any,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    states: str | Path | None = None,
) -> Path:
    """Fit a head on the states of `cfg.models.weak`; returns its directory, `out`/head, which [scorer] takes with kind
    "probe". `labels` is whatever `load_step_labels` reads. `states` is the file to keep states in, for several fits on
    the same solutions; by default `out`/states.jsonl.

    Raises DataError for labels that teach nothing or are of other steps, CapabilityError for a model behind an API,
    both before anything is computed.

    Example:
        head = train_probe("processbench.json", sw.Config.lab(), "out/probe")
        sw.load_scorer({"kind": "probe", "model": f"probe/{head}"}, weak="llamacpp/lab-weak")
    """
    cfg = Config.of(cfg, "cfg")
    refuse_without_states(cfg.models.weak)
    given: Any = labels
    listed = isinstance(labels, list) and all(isinstance(s, LabelledSolution) for s in labels)
    solutions = with_splitter(given if listed else load_step_labels(given), cfg.prompt.splitter)
    splits = split_by_problem(solutions, cfg.seed)
    check_step_labels(splits)
    ends = {s.first_error is None for s in splits.validation if s.complete}
    if len(ends) < 2:
        raise NothingToLearnError(
            f"the {len(splits.validation)} validation solutions are {'all wrong' if False in ends else 'never wrong'}; "
            "a threshold needs some that are right throughout and some that are not, so give more problems"
        )
    arguments = {"labels": key_of({"solutions": [to_json(s) for s in solutions]})}
    with opened(out, program="probe", config=cfg, arguments=arguments) as directory:
        with LlamaCppBackend(load_engine(cfg.models.weak), cfg.prompt) as weak:
            vectors, tokens = read_all(weak, solutions, Path(states) if states else directory.claim(STATES))
            card = HeadCard(weak.name, weak.prompt_hash, weak.engine.width, cfg.prompt.splitter)
        began = time.process_time()
        of = dict(zip(solutions, vectors, strict=True))
        head = fit_head(card, *([(s, of[s]) for s in part] for part in splits[:2]))
        quality = _quality_of(head, splits, of)
        facts = {
            "problems": {name: len({s.problem_id for s in part}) for name, part in splits._asdict().items()},
            "sources": sorted({s.source for s in solutions}),
            "tokens read": tokens,
            "seconds of fitting": round(time.process_time() - began, 1),
            **quality,
        }
        head = head._replace(card=_with(head.card, facts=facts))
        folder = directory.made() / "head"
        head.save(folder)
    return folder


def read_all(weak: Generator, solutions: Sequence[LabelledSolution], file: Path) -> tuple[list[Vectors], int]:
    """The vectors of the steps of each solution up to its first error, and the tokens that were read for all of them,
    by this call and earlier ones; `file` keeps them. Raises BackendError where one cannot be read.

    Example:
        vectors, tokens = read_all(weak, load_step_labels("processbench.json"), Path("states.jsonl"))
    """
    keys = [_key(weak, s) for s in solutions]
    known = {row.key: row for row in (read_rows(file, _ReadSolution) if file.is_file() else [])}
    todo = {key: s for key, s in zip(keys, solutions, strict=True) if key not in known}

    async def read(key: str, s: LabelledSolution) -> None:
        steps = [Step(text, "given") for text in s.steps[: s.judged.stop]]
        vectors, usage, error = await read_solution(weak, s.question, steps)
        if error:
            raise BackendError(f"problem {s.problem_id!r} cannot be read: {error}")
        known[key] = _ReadSolution(key, tuple(map(pack, vectors)), usage.evaluated_tokens)
        append_rows(file, [known[key]])
        advance(1)

    with progress("reading", len(todo)) as advance:
        Driver(weak.engines).run([read(*item) for item in todo.items()], window=_AT_ONCE)
    vectors: list[Vectors] = [[_unpacked(text) for text in known[key].vectors] for key in keys]
    return vectors, sum(known[key].tokens for key in set(keys))


def _key(weak: Generator, s: LabelledSolution) -> str:
    model = weak.name.rpartition("@")[2]
    return key_of({"model": model, "prompt": weak.prompt_hash, "read": [s.question, *s.steps[: s.judged.stop]]})


def _unpacked(text: str) -> Floats:
    vector = unpack(text)
    if vector is None:
        raise DataError(f"{STATES}: a row without a vector; remove the file, and the solutions are read again")
    return vector


def fit_head(
    card: HeadCard,
    train: Sequence[tuple[LabelledSolution, Vectors]],
    validation: Sequence[tuple[LabelledSolution, Vectors]],
) -> Head:
    """Fit on the solutions of `train`; what is chosen, the calibration and the threshold are by `validation`.

    Example:
        head = fit_head(HeadCard(weak.name, weak.prompt_hash, width), pairs[:400], pairs[400:])
    """
    fit = fit_weights(*_rows(train), *_rows(validation))
    head = Head(fit.weight, fit.bias, _with(card, components=fit.components, ridge=fit.ridge))
    held, raw = [s for s, _ in validation], [head.raw(vectors) for _, vectors in validation]
    values, labels = zip(*[pair for group in judged_pairs(whole(raw, held), held) for pair in group], strict=True)
    head = head._replace(card=_with(head.card, calibration=fit_calibration(values, labels)))
    scores = whole([head.scores(vectors) for _, vectors in validation], held)
    return head._replace(card=_with(head.card, threshold=threshold_of(scores, held)))


def _quality_of(head: Head, splits: LabelSplits, vectors: dict[LabelledSolution, Vectors]) -> dict[str, Any]:
    """What the head is worth on the test problems, for the card; the calibration error also before calibration."""
    raw = whole([head.raw(vectors[s]) for s in splits.test], splits.test)
    scores = whole([head.scores(vectors[s]) for s in splits.test], splits.test)
    before, quality = (measure_scores(each, splits.test, head.card.threshold) for each in (raw, scores))
    return {"test": _described(quality), "ece before calibration": round(before.ece, 4)}


def _described(quality: ScorerQuality) -> dict[str, Any]:
    """The figures of a scorer as plain JSON, to four decimals."""
    counts = {name: getattr(quality, name) for name in ("solutions", "right_steps", "first_errors")}
    intervals = {name: getattr(quality, name) for name in ("auroc", "f1")}
    rounded = {name: value and [round(part, 4) for part in value] for name, value in intervals.items()}
    return {**counts, **rounded, "ece": round(quality.ece, 4)}


def whole(scores: Iterable[Sequence[float]], solutions: Sequence[LabelledSolution]) -> list[list[float]]:
    """Scores up to the first error with a neutral one for each step behind it, which nothing looks at.

    >>> whole([[0.9, 0.2]], [LabelledSolution.of("1 + 1?", ["It is 2.", "So 3.", "Done."], [1, 0, None])])
    [[0.9, 0.2, 1.0]]
    """
    return [[*part, *[1.0] * (len(s.steps) - len(part))] for part, s in zip(scores, solutions, strict=True)]


def _rows(part: Sequence[tuple[LabelledSolution, Vectors]]) -> tuple[Any, Any]:
    """Descriptions (N, F) and labels (N,) of all steps that have a label, up to first errors."""
    pairs = [
        (row, s.labels[i])
        for s, vectors in part
        for i, row in zip(s.judged, describe(vectors), strict=True)
        if s.labels[i] is not None
    ]
    x, y = zip(*pairs, strict=True)
    return np.stack(x), np.array(y, float)


def _with(card: HeadCard, **fields: Any) -> HeadCard:
    return HeadCard(**{**{name: getattr(card, name) for name in vars(card)}, **fields})
