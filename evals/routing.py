"""Every routing policy on the same held-out lab problems, at the same costs, with one answer for each request.

Arms (--arms, default all): thresholds on scores and other signals, beliefs, plans, whole-problem routers, the weak
model drawn again or voting, and bounds that know the truth. Each is fitted and calibrated on other problems (splits
train and val) and measured at about a dozen operating points under several seeds; the models' answers are shared
through a cache, so that arms are paired and a killed run goes on where it was. Prints a table for each cost, sentences
on four claims and the router's own overhead; writes rows.jsonl, fit.json, routing.json and report.html. Lab figures: a
test bed, no benchmark.

--scorer makes the scorer worse and --split changes the problems; without --refit the policies stay as fitted on the
scorer as it is and on the usual problems.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt

from stepwise.report import Report, write_report
from stepwise.report.words import percent
from stepwise.routing.compare import judge
from stepwise.routing.policies import Threshold
from stepwise.routing.pomdp.fit import FitCard
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program

from .routing_arms import NAMES as ARM_NAMES
from .routing_arms import Arm, Material, chosen
from .routing_overhead import overhead
from .routing_rows import Cost, Row, costs, policy_rows
from .routing_samples import BEST, sampled
from .routing_tables import ON_THE_PLOT, compared, sentences, show
from .routing_world import ELSEWHERE, SCORERS, World, opened, problems_of

OVERHEAD_PROBLEMS = 64


class SizeOptions(Options):
    """The options that say how long a run takes."""

    problems: PositiveInt = 200
    """measured"""
    seeds: PositiveInt = 3
    """runs with other seeds"""
    points: PositiveInt = 12
    """per arm"""
    fit: PositiveInt = 300
    """fitting problems"""
    calibrate: PositiveInt = 200
    """as many others for the settings"""
    resamples: PositiveInt = 400
    """of the bootstrap"""
    cache: Path | None = None
    """answers to share with other runs; else in --out"""


class _Options(SizeOptions):
    arms: tuple[str, ...] = Field((), description=f"some of: {', '.join(ARM_NAMES)}")
    learned: tuple[Path, ...] = ()
    """that programs.train_router wrote, each an arm"""
    split: str = "test"
    """problems that are measured on"""
    scorer: str = Field("plain", description="; ".join(f"{name}: {what}" for name, (what, _) in SCORERS.items()))
    refit: bool = False
    """fit with this scorer, on other problems of this split"""
    samples: int = 32
    """for the votes; 0: none"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args = run.args
    arms = chosen(args.arms, args.learned)
    with opened(run.config, args.cache or run.path("calls.jsonl")) as world:
        material = material_of(world, args, args.scorer, args.split, args.refit)
        rows = measured(run, material, arms, "rows.jsonl", range(args.seeds))
        if args.samples and not args.arms:
            rows += votes(run, material, range(args.seeds))
        own = own_work(run, material)
        run.say(world.cache.summary())
        material.fit().save(run.path("fit.json"))
        counted = costs(world.sizes)
    report(run, rows, own, counted, material.fit().card)


def material_of(world: World, args: SizeOptions, scorer: str, split: str, refit: bool) -> Material:
    """What the arms are fitted on, and what they are measured on. Problems of the split itself only with `refit`, and
    then others than those measured.
    """
    usual = split == "test" or not refit
    fitting = problems_of("train", args.fit) if usual else problems_of(split, args.fit, ELSEWHERE)
    others = problems_of("val", args.calibrate) if usual else problems_of(split, args.calibrate, ELSEWHERE + args.fit)
    measured_on = problems_of(split, args.problems)
    return Material(world, scorer, scorer if refit else "plain", fitting, others, measured_on, args.points)


def measured(run: Run[Any], m: Material, arms: Sequence[Arm], file: str, seeds: Sequence[int]) -> list[Row]:
    """A row for every arm, setting and seed; those in the file are not measured again."""
    done = {(row.arm, row.setting, row.seed): row for row in run.rows(file, Row)}
    rows = []
    with progress(f"arms, {m.scorer} scorer", len(arms)) as advance:
        for arm in arms:
            for row in _of_arm(m, arm, seeds, done):
                if (row.arm, row.setting, row.seed) not in done:
                    run.write(file, row)
                rows.append(row)
            advance(1)
    return rows


def _of_arm(
    m: Material, arm: Arm, seeds: Sequence[int], done: dict[tuple[str, float | None, int], Row]
) -> Iterator[Row]:
    scorer = "truth" if arm.truth else m.scorer
    for policy in arm.policies(m):
        for seed in seeds:
            known = done.get((arm.name, policy.point, seed))
            if known is not None:
                yield known
                continue
            m.world.reset_cache()
            router = m.world.router(policy, seed, scorer=scorer)
            found = judge(router, router.solve_all(m.measured, progress=False))
            yield Row.of(arm.name, arm.level, policy.point, seed, found)


def votes(run: Run[_Options], m: Material, seeds: Sequence[int]) -> list[Row]:
    """Rows of the votes and of the best of k."""
    done = run.rows("votes.jsonl", Row)
    for seed in seeds:
        if not any(row.seed == seed and row.arm == BEST for row in done):
            fresh = sampled(m.world, m.measured, seed, m.scorer, run.args.samples)
            run.write("votes.jsonl", *fresh)
            done += fresh
    return done


def own_work(run: Run[_Options], m: Material) -> list[dict[str, Any]]:
    """The router's own work, for the policies that do most of it."""
    done = run.rows("overhead.jsonl")
    if done:
        return done
    from .routing_arms import ARMS

    wanted = [arm for arm in ARMS if arm.name in ("planned", "published", "belief, memoryless pair")]
    policies = [Threshold(0.5), *(arm.policies(m)[len(arm.policies(m)) // 2] for arm in wanted)]
    found = [dict(row) for row in overhead(m.world, policies, m.measured[:OVERHEAD_PROBLEMS])]
    run.write("overhead.jsonl", *found)
    return found


def report(
    run: Run[_Options], rows: Sequence[Row], own: Sequence[dict[str, Any]], counted: Sequence[Cost], card: FitCard
) -> None:
    """Print the tables and sentences; write routing.json and the page."""
    samples = run.args.resamples
    result: dict[str, Any] = {"costs": {}, "overhead": list(own)}
    for cost in counted:
        lines = compared(rows, cost, samples=samples)
        show(run, cost, lines)
        result["costs"][cost.key] = [line._asdict() for line in lines]
    said = sentences(rows, counted, card, samples=samples)
    said += [
        f"The router's own work under {row['policy']}: {percent(row['share_of_decoding'])} of the processor time of "
        f"decoding ({row['router']:.2f} s beside {row['decoding']:.2f} s, scoring {row['scoring']:.2f} s, "
        f"{row['problems']} problems)."
        for row in own
    ]
    for sentence in said:
        run.say(sentence)
    result["sentences"] = said
    run.path("routing.json").write_text(json.dumps(result, indent=1, default=_plain) + "\n", encoding="utf-8")
    page = Report(
        title="Routing in the lab",
        subtitle="Every policy on the same held-out problems; some of the arms are drawn, the table of all is printed.",
        rows=tuple(policy_rows(rows, ON_THE_PLOT, counted[2])),
        meta={"scorer": run.args.scorer, "problems": run.args.split, "configuration": run.config.hash},
        notes=tuple(said),
        lab=True,
    )
    run.say(f"Plots: {write_report(run.path('report.html'), page).resolve().as_uri()}")


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
