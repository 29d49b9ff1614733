"""Watch the lab's weak model solve problems with the strong one called in only where it is needed, and learn from it.

Routes held-out lab problems under ten policies, then with the weak model as it is after one and after two rounds of
`stepwise loop` (adapters and probes that ship with the lab). Prints what each cost and solved, follows one problem
through the rounds, and writes a page to look at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pydantic import PositiveInt

from stepwise import __version__, critics, routing
from stepwise.config import Config, ScorerConfig
from stepwise.grading import GRADER_VERSION
from stepwise.io import write_text
from stepwise.lab import ROUNDS, LabProblem, round_path
from stepwise.lab.problems import generate
from stepwise.models.store import CallCache
from stepwise.report import Report, TraceView, summary_table, write_report
from stepwise.report.first_try import money_of
from stepwise.rounds.detector import detection
from stepwise.routing import Always, Never, Policy, Random, Threshold
from stepwise.routing.compare import Measured, compare, in_words
from stepwise.routing.deciding import label_of
from stepwise.routing.estimates import by_family
from stepwise.routing.metrics import cpt_interpolated
from stepwise.routing.planning import plan_routing
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem

POLICIES: tuple[Policy, ...] = (
    Never(),
    Always(),
    *(Random(p) for p in (0.2, 0.5)),
    *(Threshold(t) for t in (0.1, 0.5, 0.9, 0.95, 0.97, 0.98)),
)
LATER: tuple[Policy, ...] = (Never(), *(Threshold(t) for t in (0.5, 0.9)))
"""What the weak model of later rounds is routed under, with the scorer that the loop had."""
PROBED: tuple[Policy, ...] = (Threshold(0.9),)
"""What the last round's is routed under with the probe that was fitted to what it writes."""
TARGET = 0.8
PRICES = {"weak": (0.1, 0.4), "strong": (2.5, 10.0)}
"""Money per million prompt and generated tokens where the configuration has none: examples, of a small hosted model and
a large one."""
MOST_SHOWN = 2
MOST_FIRST = 20


@dataclass(frozen=True)
class _Round:
    """A round's configuration and what was measured with it."""

    number: int
    config: Config
    measured: list[Measured]

    @property
    def probed(self) -> bool:
        return self.config.scorer.kind == "probe"

    def under(self, label: str) -> Measured | None:
        return next((m for m in self.measured if m.label == label), None)

    def named(self) -> list[Measured]:
        """As table and page show it: a line of its own for each round after the first."""
        name = f"round {self.number}{' with a probe' if self.probed else ''}"
        if not self.number:
            return self.measured
        return [
            replace(
                m, label=f"{name}: {m.label}", family=name,
                views=tuple(replace(view, policy=f"{name}: {view.policy}") for view in m.views),
            )
            for m in self.measured
        ]  # fmt: skip


class _Options(Options):
    problems: PositiveInt = 200
    """problems to route"""
    show: int = MOST_SHOWN
    """repaired solutions to print"""


def _problems_of(args: _Options) -> list[Problem]:
    return [made.problem for made in generate("test", args.problems)]


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    return plan_routing(config, POLICIES, _problems_of(args))


def _repaired(measured: list[Measured]) -> list[TraceView]:
    """Solutions that the weak model gets wrong alone and gets right with the fewest escalated steps."""
    alone = next(m for m in measured if m.family == "never")
    routed = [m for m in measured if m.family == "threshold"]
    found: dict[str, tuple[int, TraceView]] = {}
    for m in routed:
        for view, right, was_right in zip(m.views, m.correct, alone.correct, strict=True):
            strong = sum(step.author == "strong" for step in view.trace.steps)
            if right and not was_right and strong < found.get(view.trace.problem.id, (99, None))[0]:
                found[view.trace.problem.id] = (strong, view)
    return [view for _, view in sorted(found.values(), key=lambda pair: pair[0])]


def _first_repairs(measured: list[Measured]) -> list[TraceView]:
    """Every trace, those first in which few strong steps made the difference."""
    repairs = _repaired(measured)[:MOST_FIRST] if any(m.family == "never" for m in measured) else []
    first = {id(view) for view in repairs}
    return [*repairs, *(view for m in reversed(measured) for view in m.views if id(view) not in first)]


def _at_round(config: Config, number: int, *, probed: bool = False) -> Config:
    """The configuration with the weak model of a round that ships with the lab, or with its probe as the scorer too."""
    folder = round_path(number)
    weak = config.models.weak.model_copy(update={"adapter": str(folder / "adapter.gguf")})
    probe = ScorerConfig(kind="probe", model=f"probe/{folder / 'head'}")
    models = config.models.model_copy(update={"weak": weak})
    return config.model_copy(update={"models": models, **({"scorer": probe} if probed else {})})


def _arms(config: Config) -> list[tuple[int, Config, tuple[Policy, ...]]]:
    """What is routed: each round's number and configuration, and the policies under it."""
    arms = [(0, config, POLICIES)]
    if _has_rounds(config):
        arms += [(number, _at_round(config, number), LATER) for number in ROUNDS]
        arms.append((ROUNDS[-1], _at_round(config, ROUNDS[-1], probed=True), PROBED))
    return arms


def _has_rounds(config: Config) -> bool:
    """Whether the rounds that ship go with these models."""
    lab = Config.lab()
    return (config.models.weak, config.models.strong, config.scorer, config.prompt) == (
        lab.models.weak, lab.models.strong, lab.scorer, lab.prompt,
    )  # fmt: skip


def _of_rounds(rounds: Sequence[_Round]) -> list[str]:
    """What the weak model of each round solves, and what the target costs, in words."""
    first = rounds[0]
    ends = [first.under(label_of(policy)) for policy in (Never(), Always())]
    if len(rounds) < 2 or None in ends:
        return []
    weak, strong = (m.point for m in ends if m is not None)
    lines = []
    for done in rounds:
        points = [m.point for m in done.measured]
        alone = done.under(label_of(Never()))
        cost = cpt_interpolated(points, weak, strong, TARGET)
        tokens = "there is none" if cost is None else f"{cost:.1f} strong tokens a problem"
        if alone is not None:
            name = f"After round {done.number}" if done.number else "Before round 1"
            lines.append(f"{name} the weak model alone solves {alone.accuracy:.1%}; {TARGET:.0%} of the gap: {tokens}.")
    return lines


def _as_detector(rounds: Sequence[_Round], made: Sequence[LabProblem], setting: float = 0.9) -> list[str]:
    """The scorer of each round as a detector of wrong drafts, which the lab knows, in words."""
    known, lines = {lab.problem: lab for lab in made}, []
    for done in rounds:
        if (m := done.under(label_of(Threshold(setting)))) is None:
            continue
        found = detection((view.trace for view in m.views), lambda problem, steps: known[problem].first_error(steps))
        if found.precision is not None and found.recall is not None and found.ece is not None:
            lines.append(
                f"Round {done.number}, {'probe' if done.probed else 'lab-scorer'} at {setting:g}: {found.escalated} of "
                f"{found.drafts} drafts escalated, {found.precision:.0%} of them wrong; of {found.wrong} wrong drafts "
                f"{found.recall:.0%} escalated and {found.missed} missed; calibration error {found.ece:.3f}."
            )
    return lines


def _money(rounds: Sequence[_Round], setting: float = 0.9) -> list[str]:
    """What all problems cost at the configured prices, in words."""
    models = rounds[0].config.models
    known = {"weak": models.weak, "strong": models.strong}
    prices = {role: PRICES[role] if model.price_in is None else model.prices for role, model in known.items()}
    given = all(model.price_in is not None for model in known.values())
    wanted = (label_of(Always()), label_of(Threshold(setting)))
    parts = [
        f"{shown.label} {spent:.4f}"
        for done in rounds
        for m, shown in zip(done.measured, done.named(), strict=True)
        if m.label in wanted and (spent := money_of(m, {**prices, "scorer": done.config.scorer.prices})) is not None
    ]
    each = "; ".join(f"{role} {' and '.join(f'{one:g}' for one in price or ())}" for role, price in prices.items())
    kind = "configured prices" if given else "example prices (set models.weak.price_in and its like)"
    return [f"Money at {kind}, per million prompt and generated tokens: {each}: {', '.join(parts)}."] if parts else []


def _followed(rounds: Sequence[_Round]) -> list[TraceView]:
    """One problem through the rounds: the weak model fails, an escalation repairs it, and after the last round the weak
    model solves it under the same policy with no escalation. Empty where there is none.
    """
    alone, last = rounds[0].under(label_of(Never())), [done for done in rounds if not done.probed][-1]
    if not last.number or alone is None:
        return []
    for policy in reversed(LATER[1:]):
        arms = [done.under(label_of(policy)) for done in (rounds[0], last)]
        before, after = (m.views if m is not None else () for m in arms)
        for views in sorted(zip(alone.views, before, after, strict=False), key=lambda each: len(each[0].trace.steps)):
            right = [view.verdict == "CORRECT" for view in views]
            if right == [False, True, True] and views[1].escalated and not views[2].escalated:
                return [views[0], views[1], replace(views[2], policy=f"round {last.number}: {views[2].policy}")]
    return []


def _tell(run: Run[_Options], views: Sequence[TraceView]) -> list[str]:
    """Show a problem through the rounds on the terminal; what the page says of it."""
    failed, repaired, learned = (view.trace for view in views)
    critic, proposer = (one.from_config(run.config) for one in (critics.ErrorLocalizer, critics.InterventionProposer))
    found = critic(problem=failed.problem, steps=failed.solution)
    lines = [f"One problem through the rounds, {failed.problem.id}: {failed.problem.question}"]
    if found.first_error is not None:
        made = proposer(problem=failed.problem, steps=failed.solution, first_error=found.first_error)
        wrong = failed.steps[found.first_error].text
        lines.append(
            f'The weak model fails at step {found.first_error + 1}, "{wrong}"; the critic, '
            f'shown the reference: {found.localization.reason}; its intervention: "{made.intervention.content}"'
        )
    strong = sum(step.author == "strong" for step in repaired.steps)
    lines.append(
        f"Routed before round 1 ({views[1].policy}), the strong model writes {strong} of {len(repaired.steps)} steps; "
        f"after the last round ({views[2].policy}) the weak model writes all {len(learned.steps)}, and is right."
    )
    for line, trace in zip(
        [*lines, ""], [None, *([failed] if len(lines) > 2 else []), repaired, learned], strict=False
    ):
        run.say(f"\n{line}")
        if trace is not None:
            trace.show()
    return lines


def _save(run: Run[_Options], rounds: Sequence[_Round], story: Sequence[str] = ()) -> Report:
    """Write the figures and the page; also of a part, after Ctrl-C."""
    measured, shown = rounds[0].measured, [m for done in rounds for m in done.named()]
    made, config = generate("test", run.args.problems), run.config
    words = [*in_words(measured), *_of_rounds(rounds), *_as_detector(rounds, made), *_money(rounds)]
    followed = _followed(rounds)
    ids = {id(view.trace) for view in followed}
    report = Report(
        title="Routing lab problems step by step",
        subtitle="A small model that slips, a larger one that repairs single steps, and what each policy saves.",
        rows=tuple(m.row for m in shown),
        traces=(*followed, *(view for view in _first_repairs(shown) if id(view.trace) not in ids)),
        meta={
            "weak model": config.models.weak.model,
            "strong model": config.models.strong.model,
            "scorer": config.scorer.title,
            "configuration": config.hash,
            "seed": str(config.seed),
            "made by": f"stepwise {__version__}, make demo, split test, temperature {config.sampling.temperature:g}, "
            f"prompt {config.prompt.hash}",
        },
        notes=(*words, *story),
        lab=True,
    )
    metrics = {
        "policies": [vars(m.row) for m in shown],
        "in_words": words,
        "figures": {f: {c: one and asdict(one) for c, one in row.items()} for f, row in by_family(measured).items()},
        "config": config.hash,
        "grader": GRADER_VERSION,
    }
    write_text(run.path("metrics.json"), json.dumps(metrics, indent=1) + "\n")
    run.page("report.html", lambda path: write_report(path, report), "the solutions step by step")
    return report


@program(_Options, doc=__doc__, plan=_plan, resumable=False)
def main(run: Run[_Options]) -> None:
    problems = _problems_of(run.args)
    arms = _arms(run.config)
    run.say(f"Routing {len(problems)} held-out lab problems under {len(POLICIES)} policies.")
    if len(arms) > 1:
        run.say(f"Then with the weak model after {' and '.join(map(str, ROUNDS))} rounds of learning.")
    rounds: list[_Round] = []

    def told(done: Measured) -> None:
        rounds[-1].measured.append(replace(done, seconds=None))  # of shared answers the clock says nothing
        run.write("traces.jsonl", *rounds[-1].named()[-1].views)

    try:
        for number, config, policies in arms:
            rounds.append(_Round(number, config, []))
            # What a round's policies ask alike is asked once, and counted in full for each of them.
            with routing.StepRouter.from_config(config, cache=CallCache()) as router:
                compare(router, policies, problems, on_measured=told)
    except KeyboardInterrupt:
        if rounds and rounds[0].measured:
            _save(run, rounds)
        raise
    traces = [view.trace for done in rounds for m in done.measured for view in m.views]
    run.refuse_failure([trace.note for trace in traces if trace.finish == "error"], len(traces), "solutions")
    followed = _followed(rounds)
    for view in [] if followed else _repaired(rounds[0].measured)[: run.args.show]:
        run.say(f"\nSolved with {view.policy}; the weak model alone gets it wrong:")
        view.trace.show()
    story = _tell(run, followed) if followed and run.args.show else []
    report = _save(run, rounds, story)
    run.console.print(summary_table(report, run.console.width))
    for line in report.notes[: len(report.notes) - len(story)]:
        run.say(line)


if __name__ == "__main__":
    sys.exit(main())
