"""The loop between both papers: what a strong model wrote is learned, so that the next round buys less of it.

A round (`_Loop.learn`): the training problems are routed (TRIM, arXiv 2601.10245), interventions are collected from
escalations whose draft was the problem and from failures with a reference (InT, arXiv 2601.14209), the weak model is
trained on them and then by reinforcement, and it takes its place behind the router. The policy's setting is chosen
anew on validation problems: the cheapest that holds the target. The target is `target` of the gap between both models,
and is written down before the first round. Test problems are measured on alone.

What differs from the papers, and from loops of others:
1. A share of the steps that the policy keeps is escalated all the same: what is learned from would else be what the
   scorer sees, and its blind spots would be what is left.
2. A round after which the weak model is worse on validation problems beyond doubt is rolled back.
3. The scorer is made anew in each round, on what the new weak model writes (`scoring`): one that was made for the
   untrained model misses the errors of a model whose kind of errors training has changed.
4. The caps of [budget] hold for all stages of all rounds together. What is measured is counted in full for each policy,
   also where the answer is known from another one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stepwise import routing, training
from stepwise.config import Config, ScorerConfig
from stepwise.data.examples import read_examples, unique
from stepwise.data.problems import check_problems, load_problems
from stepwise.data.step_labels import LabelledSolution, load_step_labels
from stepwise.errors import ConfigError, DataError, NothingToLearnError
from stepwise.interventions.collection import collect
from stepwise.interventions.datasets import write_dataset
from stepwise.interventions.from_routing import from_routing
from stepwise.interventions.settings import CollectSettings
from stepwise.interventions.step_labels import label_steps
from stepwise.interventions.step_search import LabelSettings
from stepwise.io import append_rows, read_json, read_rows, write_rows, write_text
from stepwise.models.caps import spent_in, uncapped
from stepwise.models.store import CallCache, key_of
from stepwise.records import Section, from_json, to_json
from stepwise.rounds.caps import left_for, less, measure, refuse_cut
from stepwise.rounds.results import LoopPoint, LoopResult, LoopRound, Part, point_of
from stepwise.rounds.scoring import LoopScorer, Refit, auroc_of, fit_scorer, forced, kind_of
from stepwise.routing import Always, Exploring, Never, Policy, policy_from_config
from stepwise.routing.compare import Measured
from stepwise.routing.deciding import label_of
from stepwise.routing.query import question_key, refuse_overlap
from stepwise.runs.directory import RunDirectory, opened
from stepwise.runs.progress import announce
from stepwise.seeds import stable_hash
from stepwise.stats import Interval, bootstrap
from stepwise.training.adapters import adapter_directory
from stepwise.training.evaluation import with_adapter
from stepwise.types import Problem, Trace, Usage

TRACES = "test.traces.jsonl"
"""In the folder of a round: what its policy did on the test problems, at the setting that was chosen."""


class LoopSettings(Section):
    """How the loop goes; what each stage does is in the configuration's sections.

    Example:
        >>> LoopSettings(rounds=3).explore
        0.05
    """

    rounds: int = Field(default=2, ge=1)
    """rounds of learning"""
    explore: float = Field(default=0.05, ge=0, lt=1)
    """share of the steps that the policy would keep which are escalated while training problems are routed"""
    samples: int = Field(default=2, ge=1)
    """solutions by the weak model alone of each validation and test problem"""
    target: float = Field(default=0.8, gt=0, le=1)
    """share of the gap between both models, before the first round, that routing is to hold"""
    settings: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """operating points of the policy that are tried"""
    reinforce: bool = True
    """whether supervised training is followed by [rl]"""
    refit: Refit = "auto"
    """what is made anew of the scorer in each round: a probe on the states of the weak model, a scorer (an adapter, by
    [prm]), the calibration alone, or none; auto: a probe where [scorer] is one, else the calibration of label tokens"""
    label_by: Literal["rollouts", "critic", "both"] | None = None
    """who labels steps for that; unset: the critic where every training problem has a reference, else rollouts"""
    label_attempts: int = Field(default=4, ge=1)
    """solutions of each problem that are labelled at most"""
    collect: CollectSettings = CollectSettings()
    """[collecting], for failures and for escalations"""


def loop(
    problems: Any,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    validation: Any,
    test: Any,
    settings: LoopSettings | Mapping[str, Any] | None = None,
) -> LoopResult:
    """Route, learn, and route again, for `settings.rounds` rounds; everything is kept in the directory `out`.

    `problems` are trained on, `validation` chooses settings and may roll a round back, `test` is measured on alone; all
    are whatever `load_problems` takes, and have answers. Stopped at any moment, the same call goes on where it was;
    `settings.rounds` may be raised later. Caps of [budget] hold for all stages of all rounds together: at one the loop
    ends with BudgetExceededError, and goes on when it is raised. Raises DataError for problems that are in two of the
    three or have no answer, ConfigError for a policy without an operating point, MissingDependencyError without
    stepwise[train]; else as `collect`, `sft`, `grpo` and `StepRouter` do.

    Example:
        config = sw.Config.lab()
        parts = {name: [lab.problem for lab in sw.lab.generate(name, 100)] for name in ("train", "val", "test")}
        result = loop(parts["train"], config, "out/loop", validation=parts["val"], test=parts["test"])
        result.rounds[-1].setting
    """
    training.require_training()  # before anything is bought
    cfg, settings = Config.of(cfg, "cfg"), LoopSettings.of(settings, "settings")
    train = check_problems(load_problems(problems)).problems
    parts: dict[Part, list[Problem]] = {"validation": load_problems(validation), "test": load_problems(test)}
    _check(train, parts, policy_from_config(cfg.routing))
    kind_of(settings.refit, cfg.scorer)
    digest = key_of({"problems": [[to_json(p) for p in some] for some in (train, *parts.values())]})
    arguments = {**settings.model_dump(mode="json", exclude={"rounds"}), "problems": digest}
    with opened(out, program="loop", config=uncapped(cfg), arguments=arguments) as directory:
        return _Loop(cfg, directory, train, parts, settings).run()


def _check(train: Sequence[Problem], parts: Mapping[Part, Sequence[Problem]], policy: Policy) -> None:
    if policy.point is None:
        raise ConfigError(f"routing.policy {policy.name!r} has no operating point to set anew; take another")
    for name, some in parts.items():
        if missing := [problem.id for problem in some if problem.answer is None]:
            raise DataError(
                f"{name}: problem {missing[0]!r} has no answer, so that nothing can be measured; leave it out"
            )
    keys = [question_key(problem) for problem in train]
    refuse_overlap(keys, [*parts["validation"], *parts["test"]], "the loop's weak model")
    refuse_overlap([question_key(p) for p in parts["validation"]], parts["test"], "the loop's setting")


class _Loop:
    """A loop in its directory: files of the loop itself, and a directory for every stage of every round."""

    def __init__(
        self, cfg: Config, directory: RunDirectory, train: Sequence[Problem], parts: Mapping[Part, Sequence[Problem]],
        settings: LoopSettings,
    ) -> None:  # fmt: skip
        self.capped, self.cfg, self.settings = cfg, uncapped(cfg), settings
        self.directory, self.train, self.parts = directory, train, parts
        self.policy = policy_from_config(cfg.routing)
        self.points: list[LoopPoint] = read_rows(directory.path / "points.jsonl", LoopPoint)
        self.rounds: list[LoopRound] = read_rows(directory.path / "rounds.jsonl", LoopRound)

    def run(self) -> LoopResult:
        """All rounds that are not done yet."""
        adapter = adapter_directory(own) if (own := self.cfg.models.weak.adapter) else None
        for number in range(self.settings.rounds + 1):
            if number == len(self.rounds):
                self._round(number, adapter)
            adapter = Path(kept) if (kept := self.rounds[number].adapter) else None
        return LoopResult(self._target(), tuple(self.rounds), tuple(self.points))

    def _round(self, number: int, before: Path | None) -> None:
        """Learn (not before round 1), make the scorer anew, choose the setting, measure."""
        adapter, change, notes = before, None, list[str]()
        rows: dict[str, int] = {}
        spent: dict[str, Usage] = {}
        scorer = self._scorer(number)
        if number:
            adapter, rows, spent = self._learn(number, before, scorer, notes)
            self._measure(number, "validation", self._with(adapter, forced(scorer)), [Never()])
            change = self._change(number)
        rolled_back = change is not None and change.high < 0
        if rolled_back:
            announce(f"round {number} is rolled back: the weak model became worse on validation problems")
            adapter, fitted = before, self.rounds[-1].scorer
        else:
            fitted = self._refitted(number, adapter, scorer)
            scorer = fitted.config
        arms = [Never(), *([] if number else [Always()]), *map(self.policy.at, self.settings.settings)]
        measured = self.rounds[-1].measured if rolled_back else number
        if not rolled_back:
            self._measure(number, "validation", self._with(adapter, scorer), arms)
        setting, held = self._choose(measured)
        if not rolled_back:
            self._measure(number, "test", self._with(adapter, scorer), arms, shown=setting)
        kept = str(adapter) if adapter else None
        done = LoopRound(number, kept, rows, spent, change, rolled_back, measured, setting, held, fitted, tuple(notes))
        append_rows(self.directory.claim("rounds.jsonl"), [done])
        self.rounds.append(done)

    def _scorer(self, number: int) -> ScorerConfig:
        """What scores when round `number` begins."""
        before = self.rounds[number - 1].scorer if number else None
        return before.config if before else self.cfg.scorer

    def _learn(
        self, number: int, before: Path | None, scorer: ScorerConfig, notes: list[str]
    ) -> tuple[Path | None, dict[str, int], dict[str, Usage]]:
        """The adapter of a round, what it was trained on, what that took; `notes` gets what had nothing to learn."""
        cfg, made = self._with(before, scorer), self.settings.collect
        traces = self._routed(number, cfg)
        folders = {stage: self._folder(number, stage) for stage in ("collect", "escalations", "rl")}
        failures = collect(self.train, self._left(cfg, folders["collect"]), folders["collect"], settings=made)
        left = self._left(cfg, folders["escalations"])
        escalations = from_routing(traces, left, folders["escalations"], settings=made)
        rows = unique([*read_examples(failures), *read_examples(escalations)])
        adapter = before
        if rows:
            folder = self._folder(number, "replay")
            own = write_dataset("rejection", failures.parent, cfg, folder) if self.cfg.sft.replay else None
            adapter = training.sft(rows, self.cfg, self._folder(number, "sft"), adapter=adapter, replay=own)
        else:
            notes.append("nothing to learn from: every intervention was lost on the way")
        if self.settings.reinforce:
            adapter = self._reinforced(number, adapter, folders["rl"], notes)
        for note in notes:
            announce(f"round {number}: {note}")
        origins = [row.origin for row in rows]
        calls = [pair for trace in traces for pair in trace.usage.items()]
        calls += [pair for stage in ("collect", "escalations") for pair in spent_in(folders[stage])]
        spent = {role: sum((u for r, u in calls if r == role), Usage()) for role in sorted({r for r, _ in calls})}
        return adapter, {origin: origins.count(origin) for origin in sorted(set(origins))}, spent

    def _reinforced(self, number: int, adapter: Path | None, folder: Path, notes: list[str]) -> Path | None:
        """The adapter after reinforcement; `adapter` where its rollouts have nothing to teach, as a file then says."""
        said = self.directory.claim(f"round-{number}/nothing-to-reinforce.json")
        if not said.exists():
            try:
                return training.grpo(self.train, self._left(self.cfg, folder), folder, adapter=adapter)
            except NothingToLearnError as error:
                write_text(said, json.dumps({"why": str(error)}) + "\n")
        notes.append(f"reinforcement was left out: {read_json(said, 'remove it')['why']}")
        return adapter

    def _refitted(self, number: int, adapter: Path | None, scorer: ScorerConfig) -> LoopScorer:
        """The scorer from now on, made anew on what the weak model writes with `adapter`, and what it is worth."""
        done = self.directory.claim(f"round-{number}/scorer.json")
        if done.exists():
            return from_json(LoopScorer, done.read_text(encoding="utf-8"))
        kind, note, labelled = kind_of(self.settings.refit, self.cfg.scorer), "", list[LabelledSolution]()
        cfg = self._with(adapter, scorer)
        held_out = self._labelled(number, "validation", self.parts["validation"], cfg)
        if kind != "none":
            labelled = self._labelled(number, "train", self.train, cfg)
            try:
                scorer = fit_scorer(kind, labelled, cfg, self._folder(number, "scorer"))
            except NothingToLearnError as error:
                kind, note = "none", f"the scorer is that of the round before: {error}"
                announce(f"round {number}: {note}")
        scorer = forced(scorer) if kind == "none" else scorer  # a probe was fitted for another adapter
        own, first = (auroc_of(held_out, self._with(adapter, each)) for each in (scorer, forced(self.cfg.scorer)))
        wrong = sum(s.first_error is not None for s in held_out)
        fitted = LoopScorer(kind, scorer.model_dump(mode="json"), len(labelled), wrong, own, first, note)
        write_text(done, to_json(fitted) + "\n")
        return fitted

    def _labelled(self, number: int, part: str, problems: Sequence[Problem], cfg: Config) -> list[LabelledSolution]:
        """Solutions of the weak model with labelled steps."""
        made, folder = self.settings.collect, self._folder(number, f"labels-{part}")
        shared = made.model_dump(include={"max_tokens", "chunk", "concurrency"})
        by = self.settings.label_by or ("critic" if all(p.reference for p in self.train) else "rollouts")
        labels = LabelSettings(attempts=self.settings.label_attempts, by=by, **shared)
        return load_step_labels(label_steps(problems, self._left(cfg, folder), folder, settings=labels))

    def _routed(self, number: int, cfg: Config) -> list[Trace]:
        """Traces of the training problems under the last round's setting."""
        policy = Exploring(self.policy.at(self.rounds[number - 1].setting), self.settings.explore)
        path = self.directory.claim(f"round-{number}/traces.jsonl")
        answers = self.directory.claim(f"round-{number}/answers.jsonl")
        done = [trace for trace in read_rows(path, Trace) if trace.finish != "error"]
        left = self._left(cfg, answers).budget
        with (
            CallCache(answers, replays_are_free=True) as cache,
            routing.StepRouter.from_config(cfg, policy=policy, cache=cache) as router,
        ):
            router.budget = left
            router.count_stored()
            told, name = lambda trace: append_rows(path, [trace]), f"round {number}: routing"
            traces = router.solve_all(self.train, resume=done, on_trace=told, description=name)
            refuse_cut(router, name, path)
        return traces

    def _measure(
        self, number: int, part: Part, cfg: Config, policies: Sequence[Policy], shown: float | None = None
    ) -> None:
        """Points of the policies that have none yet; what the policy at the setting `shown` did is kept, to look at."""
        known = {(point.round, point.part, point.policy) for point in self.points}
        missing = [policy for policy in policies if (number, part, label_of(policy)) not in known]
        if not missing:
            return
        problems, answers = self.parts[part], self.directory.claim(f"round-{number}/{part}.answers.jsonl")
        others = self._left(self.capped, answers)
        with CallCache(answers) as cache, routing.StepRouter.from_config(cfg, policy=Never(), cache=cache) as router:
            for policy in missing:
                measured, settings = list[Measured](), router.settings
                for sample in range(self.settings.samples if isinstance(policy, Never) else 1):
                    seed = stable_hash(self.cfg.seed, sample, "loop") if sample else self.cfg.seed
                    router.settings = dataclasses.replace(settings, seed=seed)
                    router.budget = less(others, cache.spent().items())
                    measured.append(measure(router, policy, problems))
                router.settings = settings
                if shown is not None and policy.point == shown:
                    write_rows(self.directory.claim(f"round-{number}/{TRACES}"), measured[0].views)
                self.points.append(point_of(number, part, measured))
                append_rows(self.directory.claim("points.jsonl"), [self.points[-1]])

    def _left(self, cfg: Config, stage: Path) -> Config:
        """`cfg` with what all other stages have left of the caps."""
        return cfg.model_copy(update={"budget": left_for(self.capped, self.directory.path, stage)})

    def _target(self) -> float:
        """The accuracy on validation problems that is to be held, as it was written down before round 1."""
        path = self.directory.claim("target.json")
        if not path.exists():
            weak, strong = (self._of(0, label_of(policy)).at().accuracy for policy in (Never(), Always()))
            write_text(path, f'{{"accuracy": {weak + self.settings.target * max(0.0, strong - weak)!r}}}\n')
        return float(read_json(path, "give another directory (--out)", {"accuracy": float})["accuracy"])

    def _choose(self, number: int) -> tuple[float, bool]:
        """The cheapest setting that holds the target on validation problems, else the most accurate one."""
        target = self._target()
        points = [
            (setting, self._of(number, label_of(self.policy.at(setting))).at()) for setting in self.settings.settings
        ]
        holding = [(point.cost, setting) for setting, point in points if point.accuracy >= target]
        if holding:
            return min(holding)[1], True
        return min(points, key=lambda each: (-each[1].accuracy, each[1].cost))[0], False

    def _change(self, number: int) -> Interval | None:
        """Accuracy of the weak model alone less that of the adapter before it, which an earlier round measured."""
        now, before = (self._of(n, label_of(Never())) for n in (number, self.rounds[-1].measured))
        gain = (np.array(now.right) - np.array(before.right)) / now.samples
        return bootstrap(lambda index: float(gain[index].mean()), len(gain))

    def _of(self, number: int, policy: str) -> LoopPoint:
        return LoopResult(0.0, (), tuple(self.points)).point(number, policy, "validation")

    def _with(self, adapter: Path | None, scorer: ScorerConfig) -> Config:
        models = self.cfg.models.model_copy(update={"weak": with_adapter(self.cfg.models.weak, adapter)})
        return self.cfg.model_copy(update={"models": models, "scorer": scorer})

    def _folder(self, number: int, stage: str) -> Path:
        return self.directory.claim(f"round-{number}/{stage}")
