"""What a loop saves, against what its parts and distillation save, at its cost.

Stated before any of it is run. The target is the weak model's accuracy before round 1 plus .8 of the gap to the strong
model, on test problems that no arm is trained on. The unit is strong tokens a test problem to come to it, by mixing the
settings of the policy; n is --problems test problems and --seeds seeds. Arms: no training; plain RL, and interventions
from failures alone with RL, at the loop's FLOPs (they buy nothing); whole strong solutions for a quarter to twice the
loop's strong tokens, with RL up to its FLOPs; the loop; its strong steps as lessons in the prompt (arXiv 2509.22984).
Each is routed with [scorer] as it is and with a probe fitted to what it writes itself. The claim: the loop's point lies
below the line of strong tokens at the target against weak accuracy through the doses of distillation, both with the
refitted scorer; where no dose comes to its weak accuracy it is not comparable. One seed of one weak model is a smoke
run. Costs are axes of their own: FLOPs (2 per weight and token read or written, what [rl] counts; labels of the probe
apart), strong tokens bought, problems whose reference was used. Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

import stepwise as sw
from stepwise.config import ScorerConfig
from stepwise.data.examples import Example, read_examples, unique
from stepwise.data.step_labels import load_step_labels
from stepwise.errors import NothingToLearnError
from stepwise.interventions.collection import read_stage
from stepwise.interventions.datasets import write_dataset
from stepwise.interventions.settings import BuildSettings, CollectSettings
from stepwise.interventions.step_labels import label_steps
from stepwise.interventions.step_search import LabelSettings
from stepwise.io import read_rows
from stepwise.lab.problems import generate
from stepwise.models.caps import spent_in
from stepwise.models.store import CallCache
from stepwise.records import record
from stepwise.rounds import LoopPoint, LoopResult, LoopSettings
from stepwise.rounds.caps import measure
from stepwise.rounds.results import point_of
from stepwise.rounds.scoring import auroc_of, fit_scorer
from stepwise.routing import Always, Never, Policy, StepRouter, Threshold
from stepwise.routing.deciding import label_of
from stepwise.routing.metrics import cpt_interpolated
from stepwise.runs.shell import Options, Run, program
from stepwise.seeds import stable_hash
from stepwise.stats import Interval, percentile
from stepwise.training import grpo, sft
from stepwise.training.evaluation import with_adapter
from stepwise.types import Usage

TARGET = 0.8
DOSES = (0.25, 0.5, 1.0, 2.0)
SETTINGS = (0.1, 0.3, 0.5, 0.7, 0.9)
ARMS = ("none", "rl", "int", *(f"distilled, {dose:g}" for dose in DOSES), "loop", "lessons")
SCORERS = ("as it was", "refitted")
_LESSONS = 4


class _Options(Options):
    seeds: PositiveInt = 8
    train: PositiveInt = 200
    """training problems"""
    problems: PositiveInt = 300
    """test problems"""
    rounds: PositiveInt = 2
    samples: PositiveInt = 2
    """solutions of each test problem by the weak model alone"""
    arms: tuple[str, ...] = ARMS
    collect: CollectSettings = Field(CollectSettings(), exclude=True)


@record()
class _Trained:
    """An arm after training: `adapter` ("" for the untrained model), `system` (its prompt's), and what it cost."""

    arm: str
    seed: int
    adapter: str
    system: str
    flops: float
    strong_tokens: int
    references: int


@record()
class _Routed:
    """An arm under one scorer: points of all policies on the test problems, AUROC on what it writes there."""

    arm: str
    seed: int
    scorer: str
    auroc: Interval | None
    points: tuple[LoopPoint, ...]


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    trained, routed = run.rows("trained.jsonl", _Trained), run.rows("routed.jsonl", _Routed)
    for seed in range(run.args.seeds):
        for arm in dict.fromkeys(("none", "loop", *run.args.arms)):  # the others are set by these two
            one = next((row for row in trained if (row.arm, row.seed) == (arm, seed)), None)
            if one is None:
                one = _Seed(run, seed).train(arm, [row for row in trained if row.seed == seed])
                trained.append(one)
                run.write("trained.jsonl", one)
            for scorer in SCORERS:
                if not any((row.arm, row.seed, row.scorer) == (arm, seed, scorer) for row in routed):
                    routed.append(_Seed(run, seed).route(one, scorer))
                    run.write("routed.jsonl", routed[-1])
    _show(run, trained, routed)


class _Seed:
    """All arms of one seed, in a folder of their own."""

    def __init__(self, run: Run[_Options], seed: int) -> None:
        self.args, self.seed = run.args, seed
        self.cfg = run.config.model_copy(update={"seed": run.config.seed + seed})
        self.folder = run.directory.claim(f"seed-{seed}", folder=False)
        parts = (("train", self.args.train), ("val", self.args.problems), ("test", self.args.problems))
        self.train_on, self.validation, self.test = (
            [made.problem for made in generate(split, n)] for split, n in parts
        )
        sizes = {}
        for role in ("weak", "strong"):
            with closing(sw.load_backend(getattr(self.cfg.models, role), prompt=self.cfg.prompt)) as model:
                sizes[role] = model.parameters or 0
        self.sizes = {**sizes, "critic": sizes["weak"], "scorer": sizes["weak"]}

    def train(self, arm: str, done: Sequence[_Trained]) -> _Trained:
        """Make the arm's adapter; all but "none" and "loop" are made at the loop's cost."""
        if arm == "none":
            return _Trained(arm, self.seed, "", "", 0.0, 0, 0)
        if arm == "loop":
            return self._loop()
        loop, collected, folder = self.folder / "loop", self.folder / "loop" / "round-1" / "collect", self.folder / arm
        whole = next(row for row in done if row.arm == "loop")
        if arm == "lessons":
            steps = [row.intervention for row in read_examples(loop / "round-1" / "escalations" / "dataset.jsonl")]
            system = "\n\n".join(["Steps that were right in other problems:", *steps[:_LESSONS]])
            return dataclasses.replace(whole, arm=arm, adapter="", system=system)
        rows: list[Example] = []
        flops, bought, references = 0.0, 0, 0
        if arm == "int":
            rows, references = read_examples(collected / "dataset.jsonl"), len(self.train_on)
            flops = self._flops(spent_in(collected))
        elif arm.startswith("distilled"):
            rows, bought = self._solutions(float(arm.rpartition(" ")[2]) * whole.strong_tokens)
            flops = self._flops([("strong", Usage(generated_tokens=bought))])
        adapter = None
        if rows:
            adapter = sft(unique(rows), self.cfg, folder / "sft")
            flops += self._of_sft(folder / "sft")
        steps_of_loop = [row["flops"] for n in range(1, self.args.rounds + 1)
                         for row in read_rows(loop / f"round-{n}" / "rl" / "metrics.jsonl")]  # fmt: skip
        each = float(np.mean(steps_of_loop)) if steps_of_loop else 0.0
        if batches := int((whole.flops - flops) / each) if each else 0:
            cfg = self.cfg.model_copy(update={"rl": self.cfg.rl.model_copy(update={"steps": batches})})
            try:
                adapter = grpo(self.train_on, cfg, folder / "rl", adapter=adapter)
                flops += sum(row["flops"] for row in read_rows(folder / "rl" / "metrics.jsonl"))
            except NothingToLearnError as error:
                print(f"{arm}: {error}", file=sys.stderr)
        return _Trained(arm, self.seed, str(adapter or ""), "", flops, bought, references)

    def _loop(self) -> _Trained:
        settings = LoopSettings(
            rounds=self.args.rounds, samples=self.args.samples, refit="probe", settings=SETTINGS,
            collect=self.args.collect,
        )  # fmt: skip
        out = self.folder / "loop"
        result = sw.loop(
            self.train_on, self.cfg, out, validation=self.validation, test=self.test, settings=settings
        )  # fmt: skip
        flops, bought = 0.0, 0
        for done in result.rounds[1:]:
            stages = out / f"round-{done.number}"
            calls = [pair for name in ("collect", "escalations", "labels-train") for pair in spent_in(stages / name)]
            with CallCache(stages / "answers.jsonl") as cache:
                calls += cache.spent().items()
            bought += sum(usage.generated_tokens for role, usage in calls if role == "strong")
            flops += self._flops(calls) + self._of_sft(stages / "sft")
            flops += sum(row["flops"] or 0.0 for row in read_rows(stages / "rl" / "metrics.jsonl"))
        adapter = result.rounds[-1].adapter or ""
        return _Trained("loop", self.seed, adapter, "", flops, bought, len(self.train_on))

    def _solutions(self, tokens: float) -> tuple[list[Example], int]:
        """Right solutions by the strong model, for at most so many tokens that it wrote, wrong ones included."""
        settings = BuildSettings(per_problem=4, collect=self.args.collect)
        path = write_dataset("strong", self.train_on, self.cfg, self.folder / "strong", settings=settings)
        rows, written, kept = read_examples(path), 0, list[Example]()
        for rollout in read_stage(path.parent, "rollouts"):
            if written + rollout.usage.generated_tokens > tokens:
                break
            written += rollout.usage.generated_tokens
            kept += [row for row in rows if row.parents["rollout"] == rollout.id]
        return kept, written

    def _flops(self, calls: Iterable[tuple[str, Usage]]) -> float:
        return float(sum(2 * self.sizes[role] * (u.generated_tokens + u.evaluated_tokens) for role, u in calls))

    def _of_sft(self, folder: Path) -> float:
        rows = read_rows(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
        return 6.0 * self.sizes["weak"] * (rows[-1]["tokens"] if rows else 0)

    def route(self, arm: _Trained, scorer: str) -> _Routed:
        """The arm on the test problems, under every setting; the probe is fitted to training problems alone."""
        folder, cfg = self.folder / arm.arm / "routed", self.cfg
        models = cfg.models.model_copy(update={"weak": with_adapter(cfg.models.weak, arm.adapter or None)})
        prompt = cfg.prompt.model_copy(update={"system": arm.system}) if arm.system else cfg.prompt
        cfg = cfg.model_copy(update={"models": models, "prompt": prompt})
        by = LabelSettings(attempts=4, by="critic")
        held_out = load_step_labels(label_steps(self.validation, cfg, folder / "labels-validation", settings=by))
        if scorer == "refitted":
            labels = load_step_labels(label_steps(self.train_on, cfg, folder / "labels", settings=by))
            spec: ScorerConfig = fit_scorer("probe", labels, cfg, folder / "probe")
            cfg = cfg.model_copy(update={"scorer": spec})
        policies: list[Policy] = [Never(), *([Always()] if arm.arm == "none" else []), *map(Threshold, SETTINGS)]
        points = []
        with (
            CallCache(folder / f"{scorer}.answers.jsonl") as cache,
            StepRouter.from_config(cfg, policy=Never(), cache=cache) as router,
        ):
            settings = router.settings
            for policy in policies:
                measured = []
                for sample in range(self.args.samples if isinstance(policy, Never) else 1):
                    seed = stable_hash(cfg.seed, sample, "rounds") if sample else cfg.seed
                    router.settings = dataclasses.replace(settings, seed=seed)
                    measured.append(measure(router, policy, self.test))
                router.settings = settings
                points.append(point_of(0, "test", measured))
        return _Routed(arm.arm, self.seed, scorer, auroc_of(held_out, cfg), tuple(points))


def tokens_at_target(arm: _Routed, none: _Routed, index: Any = slice(None)) -> float | None:
    """Strong tokens a test problem to come to the target, which is `none`'s, by mixing settings; None where none does.

    Example:
        tokens_at_target(routed["loop"], routed["none"])
    """
    weak, strong = (_point(none, policy).at(index) for policy in (Never(), Always()))
    points = [point.at(index) for point in arm.points]
    own, wanted = points[0], weak.accuracy + TARGET * (strong.accuracy - weak.accuracy)
    return own.cost if own.accuracy >= wanted else cpt_interpolated(points, weak, strong, TARGET)


def _point(arm: _Routed, policy: Policy) -> LoopPoint:
    return LoopResult(0.0, (), arm.points).point(0, label_of(policy))


def paired(ours: Sequence[_Routed], none: Sequence[_Routed], draws: int = 500) -> Interval | None:
    """Tokens at the target of `none` less those of an arm, with a 95 % interval; seeds and problems are drawn again.

    Example:
        paired([routed["loop"]], [routed["none"]])
    """
    rng, n = np.random.default_rng(0), len(none[0].points[0].right)

    def difference(seeds: Any, index: Any) -> float | None:
        found = [(tokens_at_target(none[s], none[s], index), tokens_at_target(ours[s], none[s], index)) for s in seeds]
        gains = [before - now for before, now in found if before is not None and now is not None]
        return float(np.mean(gains)) if len(gains) == len(found) else None

    value = difference(range(len(none)), np.arange(n))
    drawn = [difference(rng.integers(len(none), size=len(none)), rng.integers(n, size=n)) for _ in range(draws)]
    return None if value is None else percentile([value, *(x for x in drawn if x is not None)])


def _show(run: Run[_Options], trained: Sequence[_Trained], routed: Sequence[_Routed]) -> None:
    rows = []
    for arm in dict.fromkeys(row.arm for row in trained):
        cost = [row for row in trained if row.arm == arm]
        for scorer in SCORERS:
            ours = [row for row in routed if (row.arm, row.scorer) == (arm, scorer)]
            none = [row for row in routed if (row.arm, row.scorer) == ("none", "as it was")]
            weak = np.mean([_point(row, Never()).at().accuracy for row in ours])
            found = [tokens_at_target(row, base) for row, base in zip(ours, none, strict=True)]
            known, gain = [x for x in found if x is not None], paired(ours, none)
            areas = [row.auroc.value for row in ours if row.auroc is not None]
            bought = float(np.mean([row.strong_tokens for row in cost])) / run.args.train
            rows.append((
                arm, scorer, f"{np.mean([row.flops for row in cost]):.2e}", f"{bought:.1f}",
                f"{np.mean([row.references for row in cost]):.0f}", f"{weak:.1%}",
                f"{np.mean(areas):.3f}" if areas else "-",
                f"{np.mean(known):.1f}" if len(known) == len(found) else "-",
                "-" if gain is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*gain),
            ))  # fmt: skip
    name = "A smoke run: " if run.args.seeds < 8 else ""
    run.table(
        f"{name}{run.args.seeds} seeds, {run.args.problems} test problems",
        ("arm", "scorer", "FLOPs", "strong tokens bought\na training problem", "references", "weak alone", "AUROC",
         "strong tokens\nat the target", "less than without training"),
        rows,
    )  # fmt: skip
    run.say(json.dumps({"target": TARGET, "arms": list(ARMS), "doses": list(DOSES)}))


if __name__ == "__main__":
    sys.exit(main())
