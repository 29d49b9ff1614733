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
3. The scorer is the configuration's throughout. It was made for the untrained model, and misses more of the errors of
   a model whose kind of errors training has changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from stepwise.config import Config
from stepwise.data.examples import read_examples, unique
from stepwise.data.problems import check_problems, load_problems
from stepwise.errors import ConfigError, DataError
from stepwise.interventions.collection import collect
from stepwise.interventions.datasets import write_dataset
from stepwise.interventions.from_routing import from_routing
from stepwise.interventions.settings import CollectSettings
from stepwise.io import append_rows, read_json, read_rows, write_rows, write_text
from stepwise.models.caps import spent_in
from stepwise.models.store import CallCache, key_of
from stepwise.records import Section, to_json
from stepwise.rounds.results import LoopPoint, LoopResult, LoopRound, Part, point_of
from stepwise.routing import Always, Exploring, Never, Policy, StepRouter, policy_from_config
from stepwise.routing.compare import Measured, compare
from stepwise.routing.deciding import label_of
from stepwise.routing.query import question_key, refuse_overlap
from stepwise.runs.directory import RunDirectory, opened
from stepwise.runs.progress import announce
from stepwise.seeds import stable_hash
from stepwise.stats import Interval, bootstrap
from stepwise.training import grpo, sft
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
    `settings.rounds` may be raised later. Caps of [budget] hold for each stage. Raises DataError for problems that are
    in two of the three or have no answer, ConfigError for a policy without an operating point; else as `collect`,
    `sft`, `grpo` and `StepRouter` do.

    Example:
        config = sw.Config.lab()
        parts = {name: [lab.problem for lab in sw.lab.generate(name, 100)] for name in ("train", "val", "test")}
        result = loop(parts["train"], config, "out/loop", validation=parts["val"], test=parts["test"])
        result.rounds[-1].setting
    """
    cfg, settings = Config.of(cfg, "cfg"), LoopSettings.of(settings, "settings")
    train = check_problems(load_problems(problems)).problems
    parts: dict[Part, list[Problem]] = {"validation": load_problems(validation), "test": load_problems(test)}
    _check(train, parts, policy_from_config(cfg.routing))
    digest = key_of({"problems": [[to_json(p) for p in some] for some in (train, *parts.values())]})
    arguments = {**settings.model_dump(mode="json", exclude={"rounds"}), "problems": digest}
    with opened(out, program="loop", config=cfg, arguments=arguments) as directory:
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
        self.cfg, self.directory, self.train, self.parts, self.settings = cfg, directory, train, parts, settings
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
        """Learn (not before round 1), choose the setting, measure."""
        adapter, change = before, None
        rows: dict[str, int] = {}
        spent: dict[str, Usage] = {}
        if number:
            adapter, rows, spent = self._learn(number, before)
            self._measure(number, "validation", adapter, [Never()])
            change = self._change(number)
        rolled_back = change is not None and change.high < 0
        if rolled_back:
            announce(f"round {number} is rolled back: the weak model became worse on validation problems")
            adapter = before
        arms = [Never(), *([] if number else [Always()]), *map(self.policy.at, self.settings.settings)]
        measured = self.rounds[-1].measured if rolled_back else number
        if not rolled_back:
            self._measure(number, "validation", adapter, arms)
        setting, held = self._choose(measured)
        if not rolled_back:
            self._measure(number, "test", adapter, arms, shown=setting)
        kept = str(adapter) if adapter else None
        done = LoopRound(number, kept, rows, spent, change, rolled_back, measured, setting, held)
        append_rows(self.directory.claim("rounds.jsonl"), [done])
        self.rounds.append(done)

    def _learn(self, number: int, before: Path | None) -> tuple[Path | None, dict[str, int], dict[str, Usage]]:
        """The adapter of a round, what it was trained on, and what that took."""
        cfg, made = self._with(before), self.settings.collect
        traces = self._routed(number, cfg)
        failures = collect(self.train, cfg, self._folder(number, "collect"), settings=made)
        escalations = from_routing(traces, cfg, self._folder(number, "escalations"), settings=made)
        rows = unique([*read_examples(failures), *read_examples(escalations)])
        adapter = before
        if rows:
            folder = self._folder(number, "replay")
            own = write_dataset("rejection", failures.parent, cfg, folder) if self.cfg.sft.replay else None
            adapter = sft(rows, self.cfg, self._folder(number, "sft"), adapter=adapter, replay=own)
        else:
            announce(f"round {number}: nothing to learn from; every intervention was lost on the way")
        if self.settings.reinforce:
            adapter = grpo(self.train, self.cfg, self._folder(number, "rl"), adapter=adapter)
        origins = [row.origin for row in rows]
        calls = [pair for trace in traces for pair in trace.usage.items()]
        calls += [pair for stage in ("collect", "escalations") for pair in spent_in(self._folder(number, stage))]
        spent = {role: sum((u for r, u in calls if r == role), Usage()) for role in sorted({r for r, _ in calls})}
        return adapter, {origin: origins.count(origin) for origin in sorted(set(origins))}, spent

    def _routed(self, number: int, cfg: Config) -> list[Trace]:
        """Traces of the training problems under the last round's setting."""
        policy = Exploring(self.policy.at(self.rounds[number - 1].setting), self.settings.explore)
        path = self.directory.claim(f"round-{number}/traces.jsonl")
        done = [trace for trace in read_rows(path, Trace) if trace.finish != "error"]
        with (
            CallCache(self.directory.claim(f"round-{number}/answers.jsonl"), replays_are_free=True) as cache,
            StepRouter.from_config(cfg, policy=policy, cache=cache) as router,
        ):
            router.count_stored()
            told, name = lambda trace: append_rows(path, [trace]), f"round {number}: routing"
            return router.solve_all(self.train, resume=done, on_trace=told, description=name)

    def _measure(
        self, number: int, part: Part, adapter: Path | None, policies: Sequence[Policy], shown: float | None = None
    ) -> None:
        """Points of the policies that have none yet; what the policy at the setting `shown` did is kept, to look at."""
        known = {(point.round, point.part, point.policy) for point in self.points}
        missing = [policy for policy in policies if (number, part, label_of(policy)) not in known]
        if not missing:
            return
        problems, folder = self.parts[part], f"round-{number}"
        with (
            CallCache(self.directory.claim(f"{folder}/{part}.answers.jsonl")) as cache,
            StepRouter.from_config(self._with(adapter), policy=Never(), cache=cache) as router,
        ):
            for policy in missing:
                measured, settings = list[Measured](), router.settings
                for sample in range(self.settings.samples if isinstance(policy, Never) else 1):
                    seed = stable_hash(self.cfg.seed, sample, "loop") if sample else self.cfg.seed
                    router.settings = dataclasses.replace(settings, seed=seed)
                    measured += compare(router, policy, problems)
                router.settings = settings
                if shown is not None and policy.point == shown:
                    write_rows(self.directory.claim(f"{folder}/{TRACES}"), measured[0].views)
                self.points.append(point_of(number, part, measured))
                append_rows(self.directory.claim("points.jsonl"), [self.points[-1]])

    def _target(self) -> float:
        """The accuracy on validation problems that is to be held, as it was written down before round 1."""
        path = self.directory.claim("target.json")
        if not path.exists():
            weak, strong = (self._of(0, label_of(policy)).at().accuracy for policy in (Never(), Always()))
            write_text(path, f'{{"accuracy": {weak + self.settings.target * max(0.0, strong - weak)!r}}}\n')
        return float(read_json(path, "give another directory (--out)")["accuracy"])

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

    def _with(self, adapter: Path | None) -> Config:
        models = self.cfg.models
        return self.cfg.model_copy(
            update={"models": models.model_copy(update={"weak": with_adapter(models.weak, adapter)})}
        )

    def _folder(self, number: int, stage: str) -> Path:
        return self.directory.claim(f"round-{number}/{stage}")
