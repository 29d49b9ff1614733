"""The head on the weak model's states: what it is worth on labelled solutions, and what it costs to write with them.

With --labels, the head is fitted and measured by cross-validation over problems (--folds): in each fold a fifth of the
other problems chooses components, ridge, calibration and threshold. Beside it stand scores that need no head: the place
of the step, its length, and both; its least and its mean log-probability, its mean entropy. Their calibration and
threshold are chosen on the problems that are not measured on. AUROC is of right steps against first errors, F1
ProcessBench's, with 95 % intervals over problems. What the model read is kept in --states: a killed run goes on there.
`evals.scorers` has the same lines among those of other scorers. With --layers, transformers reads the same tokens (of
models.weak.train_from, in bfloat16), and heads on the states of these layers stand beside one on its last: whether a
layer in the middle says more than the last one, before anybody pays for taking it out of llama.cpp.

With --speed, solutions of --steps steps of --tokens tokens are written with and without states, in turn, and the
seconds of one core are compared: --counts problems at once, prompts and the engine's work included.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import PositiveInt

from stepwise.data.step_labels import LabelledSolution, load_step_labels, split_by_problem, with_splitter
from stepwise.io import whole_file
from stepwise.models.base import Request
from stepwise.models.engine import GenerationJob
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.scorers.head import HeadCard
from stepwise.models.shared import load_engine
from stepwise.models.states import STATISTICS
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.training.head import Vectors, fit_head, read_all
from stepwise.types import Problem, Step

from .scorers_tables import (
    CHEAP,
    Fit,
    Fitted,
    Quality,
    Split,
    above,
    band,
    cheap,
    fixed,
    quality_of,
    show,
    splits_of,
)

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
    layers: tuple[PositiveInt, ...] = ()
    """layers of models.weak.train_from to fit heads on as well"""
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
            errors, steps = sum(s.first_error is not None for s in solutions), sum(len(s.judged) for s in solutions)
            title = f"{len(solutions)} solutions, {errors} first errors among {steps} steps, {tokens:,} tokens read"
            splits = splits_of(solutions, {}, args.folds)
            show(run, title, qualities(card, solutions, vectors, splits), {})
            if args.layers:
                _show_layers(run, card, solutions, _states_of_layers(run, weak, solutions, vectors), splits)
        if args.speed:
            _show_speed(run, [(n, *seconds_of(weak, n, args)) for n in args.counts])


def _statistic(name: str) -> Score:
    place = STATISTICS.index(name) - len(STATISTICS)
    sign = -1 if "entropy" in name else 1
    return lambda s, vectors: [float(np.exp(min(0.0, sign * vector[place]))) for vector in vectors]


HEAD, PLACE, LENGTH = "head, fitted here", "place of the step", "length of the step"
PLAIN: dict[str, Score] = {
    PLACE: lambda s, vectors: [1 / (1 + i) for i in range(len(vectors))],
    LENGTH: lambda s, vectors: [1 / len(text) for text in s.steps[: len(vectors)]],
    **{name: _statistic(name) for name in ("least_logprob", "mean_logprob", "mean_entropy")},
}
"""Scores that need no head."""


def head_fit(card: HeadCard, solutions: Sequence[LabelledSolution], vectors: Sequence[Vectors]) -> Fit:
    """A head fitted on the solutions that are chosen, a fifth of their problems for what is chosen itself."""
    of = dict(zip(solutions, vectors, strict=True))

    def fit(chosen: list[int]) -> Fitted:
        parts = split_by_problem([solutions[i] for i in chosen], 0, (0.2, 0.0))
        head = fit_head(card, *([(s, of[s]) for s in part] for part in parts[:2]))
        return Fitted(lambda i: head.raw(vectors[i]), head.card.calibration, head.card.threshold, anew=True)

    return fit


def qualities(
    card: HeadCard, solutions: Sequence[LabelledSolution], vectors: Sequence[Vectors], splits: Sequence[Split]
) -> list[Quality]:
    """The head and the scores that need none, each on problems that nothing of it was chosen on."""
    plain = {name: fixed([score(*pair) for pair in zip(solutions, vectors, strict=True)], solutions)
             for name, score in PLAIN.items()}  # fmt: skip
    fits = {HEAD: head_fit(card, solutions, vectors), **plain, CHEAP: cheap(solutions)}
    return [quality_of(name, fit, solutions, splits) for name, fit in fits.items()]


def _states_of_layers(
    run: Run[_Options], weak: LlamaCppBackend, solutions: Sequence[LabelledSolution], vectors: Sequence[Vectors]
) -> dict[str, list[Vectors]]:
    """The vectors with the states of each of --layers, and of the last, in place of the engine's; what was read is
    kept in --out, a file a solution.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from stepwise.training.adapters import base_directory, quiet

    folder = run.path("layers")
    folder.mkdir(exist_ok=True)
    base = base_directory(run.config.models.weak)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    last = model.config.num_hidden_layers
    layers = [*(layer for layer in run.args.layers if layer != last), last]
    found: dict[str, list[Vectors]] = {f"head, layer {layer} of {last}": [] for layer in layers}
    with progress("reading with transformers", len(solutions)) as advance, torch.inference_mode():
        for number, (s, known) in enumerate(zip(solutions, vectors, strict=True)):
            file = folder / f"{number}-{'-'.join(map(str, layers))}.npy"
            if not file.is_file():
                steps = [Step(text, "given") for text in s.steps[: len(known)]]
                prefixes = [
                    weak.prefix_ids(Request(Problem("probe", s.question), tuple(steps[:i])))
                    for i in range(len(steps) + 1)
                ]
                read = model.model(torch.tensor([prefixes[-1]]), output_hidden_states=True).hidden_states
                of = torch.stack([read[layer][0] for layer in layers]).float()  # (L, T, E)
                ends = [len(ids) for ids in prefixes]
                # (steps, L, 2, E): at the end of the step, and the mean over it
                states = [torch.stack([of[:, b - 1], of[:, a:b].mean(1)], 1) for a, b in pairwise(ends)]
                with whole_file(file) as draft, draft.open("wb") as out:
                    np.save(out, torch.stack(states).numpy().astype(np.float16))
            kept = np.load(file).astype(np.float32)
            for place, rows in enumerate(found.values()):
                rows.append([
                    np.concatenate([states[place].ravel(), vector[-len(STATISTICS) :]])
                    for states, vector in zip(kept, known, strict=True)
                ])  # fmt: skip
            advance(1)
    return found


def _show_layers(
    run: Run[_Options],
    card: HeadCard,
    solutions: Sequence[LabelledSolution],
    vectors: dict[str, list[Vectors]],
    splits: Sequence[Split],
) -> None:
    rows = [quality_of(name, head_fit(card, solutions, each), solutions, splits) for name, each in vectors.items()]
    table = [
        (row.name, band(row.auroc, ".3f"), band(above(row, rows[-1]), "+.3f"), band(row.f1, ".1f")) for row in rows
    ]
    for row in rows:
        run.metrics(scorer=row.name, auroc=row.auroc, above_last=above(row, rows[-1]), f1=row.f1)
    run.table("heads by layer", ("scorer", "AUROC (95 %)", "above the last layer", "F1, %"), table)


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
