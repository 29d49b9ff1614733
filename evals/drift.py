"""What learning from a scorer's escalations leaves over: what the scorer does not see. In the lab, round by round.

lab-scorer was taught that the wrong rule of one family of operations is right: its planted blind spot. Each round
routes training problems that are new (a threshold on the scorer), trains lab-weak on the escalated steps of solutions
that ended right ([sft] as in `_TRAINING`, the model's own right solutions replayed), and measures scorers on what it
writes then. Stated before any of it is run. Arms: "gated" learns from what the scorer escalated; "random, 5 %" and
"random, 25 %" also from so many of the steps that it kept; "filtered" from those escalated steps alone from which the
weak model succeeds more often than from its own draft (`from_routing`); "refitted" routes with a probe that is fitted
anew before each round to what the weak model writes then, on labels of the lab's own rules, which see the family.
Measured is the AUROC of right steps against first errors, on validation problems with all families of the training
pool, and on others that hold the blind family alone, against its errors. The decay is an arm's AUROC after the last
round less that before the first, paired by problem, with the scorer that it routes with; an arm slows it where the
95 % interval of its change less that of "gated" lies above 0, and stops it where besides its own does not lie below 0.
Beside it stands a probe fitted once, before round 1, which shows a decay that is no matter of the planted family; so
does the AUROC against errors of the other families, which was added after a first round had been looked at. An
arm and round with fewer than 100 first errors of the blind family has no power: it is said, and the exit code is 1. One
seed is a smoke run: intervals are over problems, not over trainings. --rounds, --seeds and --arms may be changed later.
A killed run goes on where it was. Writes drift.json.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from stepwise.config import Config, ScorerConfig
from stepwise.data.examples import Example, read_examples, unique
from stepwise.data.step_labels import LabelledSolution
from stepwise.grading import Verdict, grade_many
from stepwise.interventions.from_routing import from_routing
from stepwise.interventions.settings import CollectSettings
from stepwise.lab.families import SCORER_BLIND_SPOT
from stepwise.lab.problems import SPLITS, Knobs, LabProblem, generate
from stepwise.models.scorers import load_scorer
from stepwise.models.store import CallCache
from stepwise.rounds.scoring import fit_scorer, forced
from stepwise.routing import Exploring, Never, Policy, StepRouter, Threshold
from stepwise.runs.shell import Options, Run, program
from stepwise.steps import join_steps
from stepwise.training import sft
from stepwise.training.evaluation import with_adapter
from stepwise.types import Trace

from .drift_tables import ANEW, ARMS, ONCE, PLANTED, Round, facts_of, show, without_power

_TRAINING = {"learning_rate": 1e-3, "epochs": 3, "batch": 16, "replay": 0.5}
_OTHERS = 100_000  # training problems from this number on are for fitting probes


class _Options(Options):
    neutral = ("rounds", "seeds", "arms")

    seeds: PositiveInt = 1
    rounds: PositiveInt = 2
    train: PositiveInt = 240
    """training problems a round, and others to fit a probe to"""
    problems: PositiveInt = 300
    """to measure on"""
    blind: PositiveInt = 300
    """others, with one operation of the blind family each"""
    threshold: float = 0.9
    """a step is escalated where its score is lower"""
    guided: PositiveInt = 8
    """rollouts from an escalated step, and from its draft, of the arm that filters"""
    arms: tuple[str, ...] = tuple(ARMS)


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> int:
    args, known = run.args, {(row.arm, row.seed, row.number): row for row in run.rows("rounds.jsonl", Round)}
    rounds: list[Round] = []

    def done(make: Callable[[], Round], arm: str, seed: int, number: int) -> Round:
        if (row := known.get((arm, seed, number))) is None:
            row = make()
            run.write("rounds.jsonl", row)
        rounds.append(row)
        return row

    for seed in range(args.seeds):
        study = _Study(run, seed)
        start = done(study.start, "start", seed, 0)
        before = dict.fromkeys(args.arms, start)
        for number in range(1, args.rounds + 1):
            for arm in args.arms:
                before[arm] = done(partial(study.learn, arm, before[arm], start), arm, seed, number)
    found = facts_of(rounds, args.problems)
    run.path("drift.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(run, found)
    return run.missed(without_power(found))


class _Study:
    """All arms of one seed, in a folder of their own."""

    def __init__(self, run: Run[_Options], seed: int) -> None:
        args = self.args = run.args
        self.seed, self.folder = seed, run.directory.claim(f"seed-{seed}", folder=False)
        cfg = run.config
        self.cfg = cfg.model_copy(update={"seed": cfg.seed + seed, "sft": cfg.sft.model_copy(update=_TRAINING)})
        alone = Knobs(families=(SCORER_BLIND_SPOT,), traps=(0.0, 1.0, 0.0), wording=SPLITS["val"][1].wording)
        self.measured_on = [*generate("val", args.problems), *generate("val", args.blind, knobs=alone)]

    def start(self) -> Round:
        """Before the first round; the probe that all arms have beside their scorer is fitted here."""
        return self._measured("start", 0, None, None, {}, 0)

    def learn(self, name: str, before: Round, start: Round) -> Round:
        """One more round of an arm."""
        arm, number, n = ARMS[name], before.number + 1, self.args.train
        folder = self.folder / name / f"round-{number}"
        problems = generate("train", n, start=(number - 1) * n)
        policy: Policy = Threshold(self.args.threshold)
        cfg = self._with(before.adapter, ScorerConfig(**before.probe) if arm.refit else None)
        traces = self._traces(cfg, Exploring(policy, arm.explore) if arm.explore else policy, problems, folder)
        rows, own = examples_of(traces, cfg)
        if arm.filtered:
            settings = CollectSettings(guided=self.args.guided, max_tokens=400)
            rows = read_examples(from_routing(traces, cfg, folder / "filter", settings=settings))
        adapter = str(sft(unique(rows), self.cfg, folder / "sft", adapter=before.adapter, replay=own))
        of = {lab.problem.id: lab for lab in problems}
        learned = Counter(_family(of[row.parents["problem"]], len(row.prefix)) for row in rows)
        tokens = sum(trace.usage["strong"].generated_tokens for trace in traces if "strong" in trace.usage)
        return self._measured(name, number, adapter, start, dict(learned), tokens)

    def _measured(
        self, name: str, number: int, adapter: str | None, start: Round | None, learned: dict[str, int], tokens: int
    ) -> Round:
        folder, cfg = self.folder / name / f"round-{number}", self._with(adapter)
        solutions = self._solutions(cfg, self.measured_on, folder)
        scorers, probe = {PLANTED: cfg.scorer}, dict[str, Any]()
        if start is None or ARMS[name].refit:
            others = generate("train", self.args.train, start=_OTHERS + number * self.args.train)
            fitted = fit_scorer("probe", self._solutions(cfg, others, folder), cfg, folder / "probe")
            probe = fitted.model_dump(mode="json")
            scorers[ANEW] = fitted
        scorers[ONCE] = forced(ScorerConfig(**(probe if start is None else start.probe)))
        scores = {}
        for title, spec in scorers.items():
            with closing(load_scorer(spec, prompt=cfg.prompt, weak=cfg.models.weak)) as scorer:
                found = scorer.score_batch([(s.question, s.steps[: s.judged.stop]) for s in solutions])
            scores[title] = tuple(map(tuple, found))
        errors = (
            "" if s.first_error is None else _family(lab, s.first_error)
            for lab, s in zip(self.measured_on, solutions, strict=True)
        )
        return Round(name, self.seed, number, adapter, probe, learned, tokens, tuple(errors), scores)

    def _solutions(self, cfg: Config, labs: Sequence[LabProblem], folder: Path) -> list[LabelledSolution]:
        """The weak model's own, with the lab's labels."""
        traces = self._traces(cfg, Never(), labs, folder)
        steps = [[step.text for step in trace.steps] or [""] for trace in traces]
        return [
            LabelledSolution.of_first_error(lab.problem.question, texts, lab.first_error(texts), "lab")
            for lab, texts in zip(labs, steps, strict=True)
        ]

    def _traces(self, cfg: Config, policy: Policy, labs: Sequence[LabProblem], folder: Path) -> list[Trace]:
        """What is known of the untrained model is shared by all arms."""
        place = folder if cfg.models.weak.adapter else self.folder
        place.mkdir(parents=True, exist_ok=True)
        with (
            CallCache(place / "answers.jsonl") as cache,
            StepRouter.from_config(cfg, policy=policy, cache=cache) as router,
        ):
            name = f"{'/'.join(folder.parts[-2:])}: {'alone' if isinstance(policy, Never) else 'routed'}"
            return list(router.solve_all([lab.problem for lab in labs], description=name))

    def _with(self, adapter: str | None, scorer: ScorerConfig | None = None) -> Config:
        weak = with_adapter(self.cfg.models.weak, Path(adapter) if adapter else None)
        models = self.cfg.models.model_copy(update={"weak": weak})
        return self.cfg.model_copy(update={"models": models, "scorer": scorer or self.cfg.scorer})


def _family(lab: LabProblem, place: int) -> str:
    return lab.operations[place].family if place < len(lab.operations) else "answer"


def examples_of(traces: Sequence[Trace], cfg: Config) -> tuple[list[Example], list[Example]]:
    """From traces that ended right: every step that was escalated and says something else than its draft, and the weak
    model's own whole solutions.
    """
    rows, own = list[Example](), list[Example]()
    verdicts = grade_many([(trace.answer, trace.problem.answer) for trace in traces])
    for trace in (t for t, verdict in zip(traces, verdicts, strict=True) if verdict is Verdict.CORRECT):
        escalated = [i for i, step in enumerate(trace.steps) if step.author != "weak"]
        for i in escalated:
            text = trace.steps[i].text
            if text not in {draft.text for draft in trace.steps[i].discarded}:
                rows.append(_example(trace, i, text, "routing", cfg))
        if not escalated:
            text = join_steps([step.text for step in trace.steps], trace.splitter)
            own.append(_example(trace, 0, text, "rejection", cfg))
    return rows, own


def _example(trace: Trace, place: int, text: str, origin: Literal["routing", "rejection"], cfg: Config) -> Example:
    problem, models = trace.problem, {"weak": cfg.models.weak.model, "strong": cfg.models.strong.model}
    return Example(
        f"{problem.id}/s{place}", problem.question, problem.answer or "",
        tuple(step.text for step in trace.steps[:place]), text, origin, {"problem": problem.id}, models,
        cfg.prompt.hash, cfg.hash, cfg.seed, 0, 0, with_reference=False, complete=origin == "rejection",
        splitter=trace.splitter,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
