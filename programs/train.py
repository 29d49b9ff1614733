"""Train a LoRA adapter of models.weak: supervised on a dataset of interventions (sft), by preference over the wrong
step in their place (dpo), by reinforcement (rl), or as a scorer of steps (scorer). Or fit a scorer that costs nothing
on its states (probe).

sft takes --dataset, one file or several (interventions of intervene, other kinds of build_dataset), and --replay, a
file with the model's own right solutions for sft.replay. dpo takes --dataset with pairs (build_dataset --kind pairs);
[dpo] has its settings. rl takes --problems or --lab; [rl] says what is done, and
[rl.credit] what each step of a rollout is credited with; --hints, a file of intervene, begins the rollouts of its
problems with prefix and intervention; with rl.marker the weak model may ask models.strong for a step (sft on --kind
calls of build_dataset teaches it to). All take --adapter to go on with an earlier one. All settings
are in the configuration: --set sft.learning_rate=1e-4, --set rl.credit.scheme=vppo. Writes adapter/ (PEFT's layout,
adapter.gguf and a card), metrics.jsonl, rollouts/ and report.html. A killed run goes on at its last checkpoint.

scorer and probe take --labels, runs of label_steps or files of solutions with labelled steps (columns of ProcessBench,
PRM800K, Math-Shepherd, MR-GSM8K). [prm] has the settings of scorer; --curve trains on fewer problems too. For probe,
models.weak with its adapter reads each solution up to its first error once; --states FILE keeps what it computed for
other fits. Writes head/, which [scorer] takes: kind = "probe", model = "probe/DIRECTORY". It is for this model, adapter
and prompt alone.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from stepwise import training
from stepwise.config import Config, is_lab
from stepwise.data.examples import read_examples, read_pairs, read_training_rows, unique
from stepwise.data.problems import SOURCES, load_problems
from stepwise.data.step_labels import LabelledSolution, load_step_labels
from stepwise.errors import DataError
from stepwise.interventions.step_labels import tokens_of
from stepwise.lab.problems import generate
from stepwise.models.caps import Caps, uncapped
from stepwise.models.scorers.head import Head
from stepwise.models.scorers.probe import refuse_without_states
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.report import write_training_report
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.progress import announce
from stepwise.runs.shell import POSITIONAL, ColumnNames, Options, Run, one_of, program
from stepwise.training.adapters import adapter_directory, read_card
from stepwise.training.cards import add_evaluation
from stepwise.training.evaluation import Evaluated, evaluate
from stepwise.training.head import train_probe
from stepwise.training.rollouts import hints_of
from stepwise.types import Problem

BEFORE, AFTER = "before.jsonl", "after.jsonl"
"""What was measured on the test problems."""
CURVE = (0.25, 0.5)
"""Shares of the training problems that a learning curve has beside all of them."""


_WHERE = one_of("Problems")
_TESTS = one_of("Tests")


class _Options(Options):
    method: Annotated[Literal["sft", "dpo", "rl", "scorer", "probe"], POSITIONAL]
    """supervised, by preference, by reinforcement; on labelled steps: a scorer, a scorer on states"""
    dataset: tuple[Path, ...] = ()
    """sft, dpo: rows to train on"""
    replay: Path | None = None
    """sft: the model's own right solutions"""
    problems: Annotated[str | None, _WHERE] = Field(None, description=f"rl: {SOURCES}")
    columns: ColumnNames = None
    lab: Annotated[PositiveInt | None, _WHERE] = None
    """rl: N problems of the lab"""
    labels: tuple[Path, ...] = ()
    """scorer, probe: solutions with labelled steps, or runs of label_steps"""
    states: Path | None = None
    """probe: where states are kept, by default in --out"""
    hints: Path | None = None
    """rl: interventions to begin their problems with"""
    split: str = "train"
    """rl: of the lab's problems"""
    curve: bool = False
    """scorer: train on a quarter and a half of the problems as well"""
    adapter: Path | None = None
    """go on with this adapter, or that of this run"""
    sink: tuple[str, ...] = ()
    """tensorboard, wandb, mlflow, trackio"""
    test: Annotated[str | None, _TESTS] = None
    """problems to measure on before and after"""
    test_lab: Annotated[PositiveInt | None, _TESTS] = None
    """the same: N held-out problems of the lab"""
    samples: PositiveInt = 4
    """solutions of each test problem"""


def _plan(config: Config, args: _Options) -> list[PlannedCalls]:
    """Generation only: what is trained costs no model that is asked."""
    _check_inputs(args)
    if args.method == "probe":
        refuse_without_states(config.models.weak)
        read = [
            len("".join([s.question, *s.steps[: s.judged.stop]]).encode("utf-8", "replace")) for s in _labelled(args)
        ]
        frame = len(config.prompt.model_dump_json()) + 64  # a chat template adds a few tokens to the prompt
        return [PlannedCalls("weak", len(read), sum(read) + frame * len(read), 0)]
    samples = len(_tests_of(args)) * args.samples * 2
    rollouts = samples
    if args.method == "rl":
        rollouts += (config.rl.steps * config.rl.problems + config.rl.look) * config.rl.group
    prompt = max((len(p.question) for p in [*_problems_of(args), *_tests_of(args)]), default=0)
    planned = [PlannedCalls("weak", rollouts, rollouts * prompt, rollouts * config.rl.max_tokens)] if rollouts else []
    if args.method == "rl" and config.rl.marker:  # at the most it asks for each step
        asked, width = (rollouts - samples) * config.routing.max_steps, config.sampling.max_step_tokens
        planned.append(PlannedCalls("strong", asked, asked * (prompt + config.rl.max_tokens), asked * width))
    return planned


@program(_Options, doc=__doc__, plan=_plan, same_run=uncapped)
def main(run: Run[_Options]) -> None:
    _check_inputs(run.args)
    if run.args.method == "probe":
        _fit_probe(run)
        return
    args, cfg, tests = run.args, run.config, _tests_of(run.args)
    start = adapter_directory(args.adapter) if args.adapter is not None else None
    given: dict[str, Any] = {"adapter": start, "sinks": args.sink}
    problems, replay = _problems_of(args), read_examples(args.replay) if args.replay else []
    sources = args.dataset if args.method == "sft" else []
    rows = unique(row for path in sources for row in read_training_rows(path, cfg.prompt))
    pairs = read_pairs(*args.dataset, splitter=cfg.prompt.splitter) if args.method == "dpo" else []
    labels = _labelled(args) if args.method == "scorer" else []
    hints = hints_of(read_examples(args.hints), problems) if args.hints is not None else {}
    before = _measured(run, BEFORE, tests, start) if tests else None
    announce("loading what trains")
    try:
        if args.method == "sft":
            adapter = training.sft(rows, cfg, run.directory, replay=replay, **given)
        elif args.method == "dpo":
            adapter = training.dpo(pairs, cfg, run.directory, **given)
        elif args.method == "scorer":
            tokens, points = tokens_of(args.labels), CURVE if args.curve else ()
            adapter = training.train_scorer(labels, cfg, run.directory, tokens=tokens, curve=points, **given)
        else:
            adapter = training.grpo(problems, cfg, run.directory, hints=hints, **given)
    except KeyboardInterrupt:  # what is done has become a page, and a checkpoint to go on at
        _page(run)
        raise
    if tests:
        after = _measured(run, AFTER, tests, adapter)
        add_evaluation(adapter, before=before, after=after)
        if before is not None:
            run.say(
                f"pass@1 on {len(tests)} problems: {_share(before.accuracy)} before, {_share(after.accuracy)} after"
            )
    run.say(f"adapter: {adapter}")
    if args.method == "scorer":
        _show_scorer(run, adapter)
    else:
        run.say(f'use it: --set models.weak.adapter="{adapter / "adapter.gguf"}"')
    _page(run)


def _labelled(args: _Options) -> list[LabelledSolution]:
    return list(dict.fromkeys(s for path in args.labels for s in load_step_labels(path)))


def _fit_probe(run: Run[_Options]) -> None:
    folder = train_probe(_labelled(run.args), run.config, run.directory, states=run.args.states)
    card = Head.load(folder).card
    test, seconds = card.facts["test"], card.facts["seconds of fitting"]
    run.metrics(**test, threshold=card.threshold)
    intervals = (test[name] or [float("nan")] * 3 for name in ("auroc", "f1"))
    auroc, f1 = ("{:.3f} ({:.3f} to {:.3f})".format(*interval) for interval in intervals)
    run.say(
        f"{test['right_steps']} right steps, {test['first_errors']} first errors of test problems: AUROC {auroc}, "
        f"F1 {f1}, ECE {test['ece']:.3f} ({card.facts['ece before calibration']:.3f} before calibration)"
    )
    run.say(f"{card.components} components of the states, ridge {card.ridge:g}, fitted in {seconds:.1f} s")
    run.say(f'use it: --set scorer.kind="probe" --set scorer.model="probe/{folder}"')


def _show_scorer(run: Run[_Options], adapter: Path) -> None:
    """What the card says that it is worth."""
    facts = (read_card(adapter) or {})["scorer"]
    points = facts["curve"] or [{"spent": facts["spent"], **facts["test"]["after"]}]
    run.table(
        "On the test problems",
        ("labels", "problems", "seconds", "AUROC (95 %)", "F1, %", "ECE"),
        [
            (
                f"{p['spent']['labels']:,}", f"{p['spent']['problems']:,}", f"{p['spent']['seconds']:,.0f}",
                *("none" if p[key] is None else "{:.3f} ({:.3f} to {:.3f})".format(*p[key]) for key in ("auroc", "f1")),
                f"{p['ece']:.3f}",
            )
            for p in points
        ],
    )  # fmt: skip
    before = facts["test"]["before"]
    run.say(f"AUROC is of right steps against first errors; before calibration the ECE was {before['ece']:.3f}.")
    run.say(f'use it: --set scorer.model="{adapter}"')


def _page(run: Run[_Options]) -> None:
    if (run.directory.path / "metrics.jsonl").is_file():
        run.page("report.html", lambda path: write_training_report(path, run.out), "the training")


def _check_inputs(args: _Options) -> None:
    """Raise DataError for an option that the method does not take, or that it needs."""
    method, rl, scores = args.method, args.method == "rl", args.method in ("scorer", "probe")
    maker = "build_dataset --kind pairs" if method == "dpo" else "intervene"
    if args.adapter is not None:
        adapter_directory(args.adapter)
    refused = [
        (
            scores and not args.labels,
            f"{method} needs --labels, solutions with labelled steps; make some with `stepwise label_steps`",
        ),
        (
            method == "probe" and (args.dataset or args.replay or args.problems or args.lab or args.adapter),
            "probe takes --labels alone; models.weak.adapter says under which adapter steps are written",
        ),
        (
            method == "scorer" and (args.dataset or args.replay or args.problems or args.lab),
            "scorer takes --labels, and --adapter to go on with an earlier one",
        ),
        (not scores and args.labels, f"{method} takes no --labels, which are for scorer and probe"),
        (method != "probe" and args.states, f"{method} takes no --states, which are for probe"),
        (
            rl and (args.dataset or args.replay),
            "rl trains on problems; give --problems FILE or --lab N, and --dataset to sft and dpo",
        ),
        (
            not rl and not scores and (args.problems is not None or args.lab is not None),
            f"{method} trains on a dataset; give --dataset FILE, and --problems or --lab to rl",
        ),
        (rl and args.problems is None and args.lab is None, "rl needs --problems FILE or --lab N"),
        (
            not rl and not scores and not args.dataset,
            f"{method} needs --dataset FILE; make one with `stepwise {maker}`",
        ),
        (
            method == "dpo" and args.replay,
            "--replay is for sft; leave it out, or set dpo.nll to hold the chosen steps up",
        ),
        (not rl and args.hints is not None, "--hints are for rl; sft and dpo take --dataset"),
        (method != "scorer" and args.curve, "--curve is for scorer; leave it out"),
        (
            scores and (args.test is not None or args.test_lab is not None),
            "--test and --test-lab are of models that solve problems; a scorer is measured on a part of its labels",
        ),
    ]
    for wrong, message in refused:
        if wrong:
            raise DataError(message)


def _problems_of(args: _Options) -> list[Problem]:
    """What reinforcement trains on."""
    if args.method != "rl":
        return []
    return (
        load_problems(args.problems, split="train", columns=args.columns)
        if args.lab is None
        else _lab(args.split, args.lab)
    )


def _tests_of(args: _Options) -> list[Problem]:
    """What is measured on before and after; none without --test or --test-lab."""
    if args.test is not None:
        return load_problems(args.test, split="test", columns=args.columns)
    return _lab("test", args.test_lab) if args.test_lab is not None else []


def _measured(run: Run[_Options], name: str, tests: list[Problem], adapter: Path | None) -> Evaluated:
    """What the file `name` says of `adapter`; measured where an earlier start has not, within the caps of the run.

    The answers of models that are not the lab's are kept as they come.
    """
    known: list[Evaluated] = run.rows(name, Evaluated)
    if not known:
        cfg, caps = run.config, Caps(run.config, run.directory, are_results=False, apart="evaluation")
        with ExitStack() as stack:
            store = None
            if not is_lab(cfg.models.weak.model):
                path = run.directory.claim("evaluation.jsonl")
                store = stack.enter_context(CallCache(path, replays_are_free=True))
            around = Wrappers(caps.ledger, cfg.prompt, store, run=uncapped(cfg).hash)
            known = [evaluate(cfg, tests, adapter, run.args.samples, around)]
        run.write(name, *known)
    return known[0]


def _lab(split: str, n: int) -> list[Problem]:
    return [made.problem for made in generate(split, n)]


def _share(value: float | None) -> str:
    return "none judged" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    sys.exit(main())
