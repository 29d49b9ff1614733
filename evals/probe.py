"""The head on the weak model's states: what it is worth on labelled solutions, and what it costs to write with them.

With --labels, the head is fitted and measured by cross-validation over problems (--folds): in each fold a fifth of the
other problems chooses components, ridge, calibration and threshold. Beside it stand scores that need no head: the place
of the step, its length, its least and its mean log-probability, its mean entropy; their thresholds are chosen on the
problems that are not measured on. AUROC is of right steps against first errors, F1 ProcessBench's, with 95 % intervals
over problems. What the model read is kept in --states: a killed run goes on there.

With --speed, solutions of --steps steps of --tokens tokens are written with and without states, in turn, and the
seconds of one core are compared: --counts problems at once, prompts and the engine's work included.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt

from stepwise.data.step_labels import (
    LabelledSolution,
    load_step_labels,
    measure_scores,
    split_by_problem,
    threshold_of,
    with_splitter,
)  # fmt: skip
from stepwise.models.engine import GenerationJob
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.scorers.head import Head, HeadCard
from stepwise.models.shared import load_engine
from stepwise.models.states import STATISTICS
from stepwise.runs.shell import Options, Run, program
from stepwise.seeds import seed_for
from stepwise.training.head import Vectors, fit_head, read_all, whole

Score = Callable[[LabelledSolution, Vectors], list[float]]


class _Options(Options):
    labels: Path | None = None
    """solutions with labelled steps"""
    states: Path | None = None
    """where states are kept, by default in --out"""
    n: PositiveInt | None = None
    """the first N solutions"""
    folds: PositiveInt = 5
    """of problems"""
    speed: bool = False
    """measure what states cost"""
    counts: tuple[PositiveInt, ...] = (1, 16)
    """problems at once"""
    steps: PositiveInt = 4
    """of a solution"""
    tokens: PositiveInt = 32
    """of a step"""
    repeats: PositiveInt = 5
    """of each, in turn"""


@program(_Options, doc=__doc__, resumable=True)
def main(run: Run[_Options]) -> None:
    args, cfg = run.args, run.config
    with LlamaCppBackend(load_engine(cfg.models.weak), cfg.prompt) as weak:
        if args.labels is not None:
            solutions = with_splitter(load_step_labels(args.labels), cfg.prompt.splitter)[: args.n]
            vectors, tokens = read_all(weak, solutions, args.states or run.path("states.jsonl"))
            card = HeadCard(weak.name, weak.prompt_hash, weak.engine.width, cfg.prompt.splitter)
            _show_quality(run, cross_validated(card, solutions, vectors, args.folds), solutions, tokens)
        if args.speed:
            _show_speed(run, [(n, *seconds_of(weak, n, args)) for n in args.counts])


def _statistic(name: str) -> Score:
    place = STATISTICS.index(name) - len(STATISTICS)
    sign = -1 if "entropy" in name else 1
    return lambda s, vectors: [float(np.exp(min(0.0, sign * vector[place]))) for vector in vectors]


def _scored_by(head: Head) -> Score:
    return lambda s, vectors: head.scores(vectors)


PLAIN: dict[str, Score] = {
    "place of the step": lambda s, vectors: [1 / (1 + i) for i in range(len(vectors))],
    "length of the step": lambda s, vectors: [1 / len(text) for text in s.steps[: len(vectors)]],
    **{name: _statistic(name) for name in ("least_logprob", "mean_logprob", "mean_entropy")},
}
"""Scores that need no head."""


def cross_validated(
    card: HeadCard, solutions: Sequence[LabelledSolution], vectors: Sequence[Vectors], folds: int
) -> list[dict[str, Any]]:
    """AUROC, F1 and calibration error of the head and of plain scores, each solution by what was fitted without its
    problem.
    """
    ids = sorted({s.problem_id for s in solutions}, key=lambda name: (seed_for(0, "folds", name), name))
    fold_of = {name: place % folds for place, name in enumerate(ids)}
    scores: dict[str, list[list[float]]] = {name: [[] for _ in solutions] for name in ("head", *PLAIN)}
    shifted: dict[str, list[list[float]]] = {name: [[] for _ in solutions] for name in ("head", *PLAIN)}
    of = dict(zip(solutions, vectors, strict=True))
    for fold in range(folds):
        others = [s for s in solutions if fold_of[s.problem_id] != fold]
        train, validation, _ = split_by_problem(others, fold, (0.2, 0.0))
        head = fit_head(card, *([(s, of[s]) for s in part] for part in (train, validation)))
        ways: dict[str, tuple[Score, float]] = {"head": (_scored_by(head), head.card.threshold)}
        for name, score in PLAIN.items():
            ways[name] = score, threshold_of(whole([score(s, of[s]) for s in others], others), others)
        for place, s in enumerate(solutions):
            for name, (score, threshold) in ways.items() if fold_of[s.problem_id] == fold else ():
                values = whole([score(s, of[s])], [s])[0]
                scores[name][place], shifted[name][place] = values, [value - threshold for value in values]
    rows = []
    for name in scores:
        quality = measure_scores(scores[name], solutions, 0.5)
        flagged = measure_scores(shifted[name], solutions, 0.0)
        rows.append({"score": name, "auroc": quality.auroc, "f1": flagged.f1, "ece": quality.ece})
    return rows


def _show_quality(run: Run[_Options], rows: Any, solutions: Sequence[LabelledSolution], tokens: int) -> None:
    errors = sum(s.first_error is not None for s in solutions)
    steps = sum(len(s.judged) for s in solutions)
    run.path("quality.json").write_text(json.dumps({"solutions": len(solutions), "rows": rows}, indent=2) + "\n")

    def shown(value: Any, digits: int) -> str:
        return "none" if value is None else "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*value, d=digits)

    run.table(
        f"{len(solutions)} solutions, {errors} first errors among {steps} steps, {tokens:,} tokens read",
        ("score", "AUROC", "F1", "ECE"),
        [
            (
                row["score"],
                shown(row["auroc"], 3),
                shown(row["f1"], 1),
                f"{row['ece']:.3f}" if row["score"] == "head" else "",
            )
            for row in rows
        ],
    )


def seconds_of(weak: LlamaCppBackend, problems: int, args: _Options) -> tuple[float, float]:
    """Seconds of one core to write the solutions of so many problems at once, without states and with, the median of
    --repeats runs of each, made in turn.
    """
    engine = weak.engine
    prompts = [
        tuple(engine.prompt_ids(weak.prompt, f"{i} pears and {i + 3} plums: how many?")) for i in range(problems)
    ]

    def write(states: bool) -> float:
        engine.reset_cache()
        prefixes, began = prompts, time.process_time()
        for step in range(args.steps):
            jobs = [
                GenerationJob(ids, args.tokens, seed=step * 1000 + i, ignore_end=True, states=states)
                for i, ids in enumerate(prefixes)
            ]
            prefixes = [(*ids, *made.ids) for ids, made in zip(prefixes, engine.generate(jobs), strict=True)]
        return time.process_time() - began

    write(False)
    seconds = [(write(False), write(True)) for _ in range(args.repeats)]
    plain, told = np.median(np.array(seconds), axis=0)
    return float(plain), float(told)


def _show_speed(run: Run[_Options], rows: Sequence[tuple[int, float, float]]) -> None:
    run.path("speed.json").write_text(json.dumps(rows) + "\n")
    tokens = run.args.steps * run.args.tokens
    run.table(
        f"solutions of {tokens} tokens, seconds of one core, medians of {run.args.repeats}",
        ("problems at once", "without states", "with states", "ratio"),
        [(str(n), f"{plain:.2f}", f"{told:.2f}", f"{told / plain:.3f}") for n, plain, told in rows],
    )


if __name__ == "__main__":
    raise SystemExit(main())
