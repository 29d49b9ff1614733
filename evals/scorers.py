"""Every scorer that can run here, on labelled solutions and as a router: quality, cost, and what routing by it buys.

--labels (files in the columns of `load_step_labels`; --lab N: lab-weak's solutions of N problems of the lab) are scored
up to the first error of each solution, by

  published scores   of rows that have `scores`; the place of a step, its length, and both together: no model is needed
  --probe DIR        heads of `stepwise train probe`; and one fitted here, on the problems that are not measured on;
                     log-probabilities and entropies of the tokens. All of them come from one pass of the weak model,
                     which --states keeps; a router pays nothing for it
  --scorer SPEC      scorers as [scorer] takes them: directories of `stepwise train scorer`, llamacpp/lab-scorer
  --weak FILE        (also --model) as a judge (P(yes), Yes or No, a number in words), agreement of its drafts with the
                     step, and a generative reward model; --skip and --only choose by the names in the table

What a model says of a solution is kept in rows.jsonl. AUROC is of right steps against first errors, F1 ProcessBench's,
ECE as the scores come and after Platt's calibration; 95 % intervals are over problems. Thresholds and calibration are
chosen on the even half and figures are of the odd one where rows have both (column `half`), else by cross-validation.

--route N: N problems (--problems, or the lab's) are routed by thresholds on these scores, which flag --shares of the
drafts of --calibrate other problems; see `evals.scorers_routing`. Killed at any moment, it goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import PositiveFloat, PositiveInt

from stepwise.config import is_lab, model_name
from stepwise.data.step_labels import LabelledSolution, load_step_labels, with_splitter
from stepwise.data.tables import read_table
from stepwise.errors import DataError
from stepwise.lab.problems import generate
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.scorers.head import Head, HeadCard
from stepwise.models.scorers.probe import ProbeScorer
from stepwise.models.shared import load_engine
from stepwise.models.sizes import settled
from stepwise.runs.shell import Options, Run, program
from stepwise.seeds import stable_hash
from stepwise.training.head import read_all

from .own_scorer import solved
from .probe import HEAD, LENGTH, PLACE, PLAIN, head_fit
from .scorers_arms import P_YES, Settings, arms_of, asked
from .scorers_routing import route
from .scorers_tables import CHEAP, Fit, cheap, fixed, quality_of, show, splits_of

YES_OR_NO = "judge, Yes or No"


class _Options(Options):
    neutral = ("n", "only", "skip", "scorer", "probe", "folds", "batch", "route", "shares", "majority", "ratio")

    labels: tuple[Path, ...] = ()
    """files of labelled solutions"""
    lab: PositiveInt | None = None
    """solutions of N problems of the lab, four of each"""
    n: PositiveInt | None = None
    """solutions of each file, drawn by their questions"""
    folds: PositiveInt = 5
    """of problems, where the rows have no halves"""
    weak: Annotated[str | None, Parameter(("--weak", "--model"))] = None
    """a GGUF: who reads, judges, draws and, with --route, drafts"""
    strong: str | None = None
    """a GGUF, for --route"""
    probe: tuple[Path, ...] = ()
    """directories of heads"""
    scorer: tuple[str, ...] = ()
    """directories or names of scorers"""
    states: Path | None = None
    """where states of labelled solutions are kept, by default in --out"""
    only: tuple[str, ...] = ()
    """scorers whose names begin so"""
    skip: tuple[str, ...] = ()
    """not those whose names begin so"""
    samples: PositiveInt = 3
    """drafts that agree or do not"""
    template: str = "thinkprm"
    """of critiques"""
    votes: PositiveInt = 1
    """critiques of a step"""
    critique_tokens: PositiveInt = 128
    """of a critique"""
    route: PositiveInt | None = None
    """problems to route"""
    problems: str | None = None
    """measured on with --route; without it, the lab's"""
    train: str = "gsm8k:train"
    """problems to set thresholds on, with --problems"""
    calibrate: PositiveInt = 100
    """of those"""
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.6)
    """of drafts that a threshold flags"""
    majority: tuple[PositiveInt, ...] = (1, 3, 5, 9)
    """solutions of the weak model that vote"""
    ratio: PositiveFloat | None = None
    """weights of the strong model over the weak one's to count parameter-tokens with; their own"""
    batch: PositiveInt = 16
    """problems at once"""

    def overrides(self) -> list[str]:
        """The models."""
        given = {"weak": self.weak, "strong": self.strong}
        return [f"models.{role}.model={model_name(model)}" for role, model in given.items() if model]

    def wants(self, name: str) -> bool:
        """Whether the scorer of that name is to be measured."""
        return not name.startswith(self.skip or ("\0",)) and (not self.only or name.startswith(self.only))


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args = run.args
    run.config = settled(run.config, ["weak", "strong"] if args.route else ["weak"] if args.weak else [])
    for path in args.labels:
        _measured(run, path.stem, *_read(path))
    if args.lab:
        known = solved(run.config, generate("test", args.lab), samples=4)
        halves = {s: "odd" if at % 2 else "even" for at, s in known}
        _measured(run, f"lab, {args.lab} problems", {s: {} for s in halves}, halves)
    if args.route:
        route(run)


def _read(path: Path) -> tuple[dict[LabelledSolution, Mapping[str, Any]], dict[LabelledSolution, str]]:
    """The solutions with their published scores, in an order that follows from their questions, and their halves."""
    published, halves = dict[LabelledSolution, Mapping[str, Any]](), dict[LabelledSolution, str]()
    for row in read_table(path, prefer="labels")[0]:
        for s in load_step_labels([row]):
            published[s] = row.get("scores") or {}
            halves |= {s: row["half"]} if row.get("half") else {}
    order = sorted(published, key=lambda s: (stable_hash(s.question, "scorers"), s.steps))
    return {s: published[s] for s in order}, halves


def _measured(
    run: Run[_Options], title: str, published: Mapping[LabelledSolution, Mapping[str, Any]], halves: Mapping[Any, str]
) -> None:
    args = run.args
    solutions = with_splitter([*published][: args.n], run.config.prompt.splitter)
    splits = splits_of(solutions, halves, args.folds)
    names = dict.fromkeys(name for s in solutions for name in published[s])
    fits: dict[str, Fit] = {name: fixed([published[s].get(name) for s in solutions], solutions) for name in names}
    for name in (PLACE, LENGTH):
        fits[name] = fixed([PLAIN[name](s, [()] * len(s.judged)) for s in solutions], solutions)  # type: ignore[list-item]
    fits[CHEAP] = cheap(solutions)
    costs: dict[str, tuple[str, str]] = dict.fromkeys((PLACE, LENGTH, CHEAP), ("0", "0"))
    steps = sum(len(s.judged) for s in solutions)
    weak = bool(args.lab) or not is_lab(run.config.models.weak.model)
    if weak and any(map(args.wants, (HEAD, *PLAIN, "probe"))):
        fits |= _of_states(run, solutions, costs, steps)
    settings = Settings(args.samples, args.template, args.votes, args.critique_tokens)
    arms = {name: arm for name, arm in arms_of(run.config, weak, args.scorer, settings).items() if args.wants(name)}
    for name, said in asked(run, arms, solutions).items():
        scores = [None if said[s].error else said[s].scores for s in solutions]
        fits[name] = fixed(scores, solutions)
        if name == P_YES:  # what it would say is the likelier answer
            fits[YES_OR_NO] = fixed([each and [float(p >= 0.5) for p in each] for each in scores], solutions)
        usage = [said[s].usage for s in solutions]
        tokens = sum(each.evaluated_tokens + each.generated_tokens for each in usage)
        costs[name] = f"{tokens / steps:.0f}", f"{sum(said[s].seconds for s in solutions) / steps:.2f}"
    rows = []
    for name, fit in fits.items():
        if name == CHEAP or args.wants(name):
            try:
                rows.append(quality_of(name, fit, solutions, splits))
            except DataError as error:  # it gave no scores, say; the others are worth seeing
                run.say(f"{name} is left out: {error}")
    errors, problems = sum(s.first_error is not None for s in solutions), len({s.problem_id for s in solutions})
    chosen = "the other half" if len(splits) == 1 else f"{len(splits)} folds"
    run.say(f"{title}: {len(solutions)} solutions of {problems} problems, {errors} first errors among {steps} steps")
    show(run, f"{title}; chosen on {chosen}", rows, costs)


def _of_states(
    run: Run[_Options], solutions: Sequence[LabelledSolution], costs: dict[str, tuple[str, str]], steps: int
) -> dict[str, Fit]:
    """Heads and signals from what the weak model computes while it reads the solutions."""
    args, config = run.args, run.config
    fits: dict[str, Fit] = {}
    with LlamaCppBackend(load_engine(config.models.weak), config.prompt) as weak:
        began = time.process_time()
        vectors, tokens = read_all(weak, solutions, args.states or run.path("states.jsonl"))
        seconds = time.process_time() - began
        run.say(f"read by the weak model for its states: {tokens:,} tokens, {seconds:.0f} s in this start")
        card = HeadCard(weak.name, weak.prompt_hash, weak.engine.width, config.prompt.splitter)
        fits[HEAD] = head_fit(card, solutions, vectors)
        for path in args.probe:
            head = Head.load(path)
            ProbeScorer(weak, head)  # raises where the head is of another model
            fits[f"probe {path}"] = fixed([head.scores(each) for each in vectors], solutions)
        for name, score in PLAIN.items():
            fits[name] = fixed([score(*pair) for pair in zip(solutions, vectors, strict=True)], solutions)
    costs |= dict.fromkeys(fits, (f"{tokens / steps:.0f} read, 0 while writing", "0 while writing")) | costs
    return fits


if __name__ == "__main__":
    raise SystemExit(main())
