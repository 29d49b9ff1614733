"""Interventions from routing: steps that a strong model wrote where the weak model's draft was the problem.

A router escalates for many reasons, and a strong model's step is an intervention only where the discarded draft would
have lost what the step has won. So both are followed by rollouts of the weak model, as many of each, and the step is
kept where its success is higher beyond doubt (Beta(1, 1) posteriors). The other steps that succeed are distillation:
they are written to a file of their own, with the origin "strong". Asking the expert only where the learner's own action
is worse is gated DAgger's idea (SafeDAgger, arXiv 1605.06450; ThriftyDAgger, arXiv 2109.08273); their gates are a
learned risk or novelty before the action, this one is the measured outcome after it.

A draft stands as the failed attempt, the strong model's step as its candidate: checks, rollouts and choice are those of
`stages`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config import Config
from stepwise.data.examples import Example, unique, write_examples
from stepwise.data.problems import check_problems
from stepwise.errors import BudgetExceededError, ConfigError, DataError
from stepwise.grading import GRADER_VERSION, Verdict, grade_many
from stepwise.interventions import stages
from stepwise.interventions.caps import Spent
from stepwise.interventions.chunks import run_chunks, sealed_rows
from stepwise.interventions.comparing import Kind, compare
from stepwise.interventions.leaks import LeakVerdict
from stepwise.interventions.rows import Candidate, Failure, GuidedRollout, Made, by_id
from stepwise.interventions.settings import CollectSettings, uncapped
from stepwise.interventions.work import checked
from stepwise.io import read_rows
from stepwise.models.base import Backend
from stepwise.models.store import key_of
from stepwise.runs.plan import Planned
from stepwise.steps import extract_answer
from stepwise.types import Step, Trace, to_json

if TYPE_CHECKING:
    from stepwise.runs.directory import RunDirectory


FILES = ("failures", "candidates", "guided", "comparisons", "examples", "distillation", "counts", "spent")


@dataclasses.dataclass(frozen=True)
class Escalations:
    """The escalated steps of some traces: drafts as failed attempts, steps as candidates, and what was left out."""

    failures: list[Failure]
    candidates: list[Candidate]
    counts: Counter[str]


def read_traces(source: str | Path | Iterable[Trace]) -> list[Trace]:
    """Traces as `stepwise route` writes them (traces.jsonl, or its directory), the last one of a problem tried again.

    Raises DataError for a file that is missing, has no rows or rows that are no traces.
    """
    if not isinstance(source, str | Path):
        return list(source)
    path = Path(source)
    path = path / "traces.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the traces.jsonl that `stepwise route` wrote")
    last = {trace.problem.id: trace for trace in read_rows(path, Trace, finished=True)}
    if not last:
        raise DataError(f"{path} has no traces; route some problems first")
    return list(last.values())


def escalations(traces: Sequence[tuple[str, Trace]], config: Config, settings: CollectSettings) -> Escalations:
    """Escalated steps that replaced a draft, in traces that ended right; each trace comes with its id.

    A step that was escalated before a draft was written has none to be compared with, and is counted.
    """
    counts: Counter[str] = Counter()
    failures, candidates = [], []
    verdicts = grade_many([(trace.answer, trace.problem.answer) for _, trace in traces])
    for (name, trace), verdict in zip(traces, verdicts, strict=True):
        counts["traces"] += 1
        counts["traces that ended right"] += verdict is Verdict.CORRECT
        if verdict is not Verdict.CORRECT:
            continue
        for place, step in enumerate(trace.steps):
            if step.author == "weak":
                continue
            counts["escalated steps"] += 1
            draft = next((d for d in reversed(step.discarded) if d.author == "weak" and d.text.strip()), None)
            if draft is None:
                counts["escalated before there was a draft"] += 1
            elif draft.text == step.text:
                counts["the same as the draft"] += 1
            else:
                failures.append(_failure(f"{name}/s{place}", trace, place, draft))
                candidates.append(_candidate(f"{name}/s{place}", trace.problem.id, place, step, config, settings))
    return Escalations(failures, candidates, counts)


def from_routing(
    traces: str | Path | Iterable[Trace],
    cfg: Config,
    out: str | Path,
    *,
    settings: CollectSettings | None = None,
    confident: float = 0.95,
    weak: Backend | None = None,
    licence: str = "other",
) -> Path:
    """Make a dataset of the escalated steps of `traces` in the directory `out`; returns its path.

    Beside it lie its card, distillation.jsonl with a card of its own (steps that succeed, but whose draft was not the
    problem), and the rows of all stages. Going on after an interruption needs no more than the same call. `confident`
    is how sure it must be that a step succeeds more often than its draft. Raises DataError for traces that cannot be
    used, and for a directory of another run; BackendError where the model is gone, OSError where the disk is full, and
    BudgetExceededError where the next chunk would pass a cap of `budget`: what was sealed before stays.
    """
    from stepwise.runs.directory import opened

    settings = settings or CollectSettings()
    given = read_traces(traces)
    with opened(
        out, program="from_routing", config=uncapped(cfg), arguments=arguments_of(given, settings, confident)
    ) as own:
        return from_routing_in(own, given, cfg, settings, confident, weak, licence)


def plan_from_routing(traces: Sequence[Trace], settings: CollectSettings) -> list[Planned]:
    """The most that `from_routing` asks for: all escalated steps of all traces, and their drafts."""
    texts = [
        2 * len((trace.problem.question + trace.text).encode())
        for trace in traces
        for step in trace.steps
        if step.author != "weak" and step.discarded
    ]
    n = 2 * len(texts) * settings.guided
    return [Planned("weak", n, sum(texts), n * settings.max_tokens)]


def arguments_of(traces: Sequence[Trace], settings: CollectSettings, confident: float) -> dict[str, Any]:
    """What a directory of these traces belongs to."""
    if not 0.5 <= confident < 1:
        raise ConfigError(f"confident is {confident}; give a probability of at least 0.5 and below 1")
    return {**settings.model_dump(), "confident": confident, "traces": key_of({"traces": [to_json(t) for t in traces]})}


def from_routing_in(
    directory: RunDirectory,
    traces: Sequence[Trace],
    cfg: Config,
    settings: CollectSettings,
    confident: float = 0.95,
    weak: Backend | None = None,
    licence: str = "other",
) -> Path:
    """`from_routing` in a directory that is open already, as a program's is."""
    seen: Counter[str] = Counter()
    named = []
    for trace in traces:
        named.append((f"{trace.problem.id}/t{seen[trace.problem.id]}", trace))
        seen[trace.problem.id] += 1
    distinct = {trace.problem.id: trace.problem for trace in traces}
    if other := next((t.problem.id for t in traces if t.problem != distinct[t.problem.id]), None):
        raise DataError(f"the problem id {other!r} stands for different problems; give every problem an id of its own")
    found = check_problems(distinct.values())
    usable = {problem.id for problem in found.problems}
    members = [(name, trace) for name, trace in named if trace.problem.id in usable]
    card = {"problems": {"used": len(found.problems), "left out": found.excluded}}
    own = weak
    try:

        def work(chunk: Sequence[tuple[str, Trace]]) -> dict[str, Sequence[Any]]:
            nonlocal own
            if own is None:
                from stepwise.models import load_backend

                own = load_backend(cfg.models.weak, prompt=cfg.prompt)
            getattr(own, "forget", lambda: None)()
            return _work(chunk, own, cfg, settings, confident)

        run_chunks(directory, members, settings.chunk, work, FILES, "comparing escalated steps", cfg)
    except BudgetExceededError:
        _write(directory, card, cfg, settings, confident, licence)
        raise
    finally:
        if own is not None and weak is None:
            own.close()
    return _write(directory, card, cfg, settings, confident, licence)


def _work(
    chunk: Sequence[tuple[str, Trace]], weak: Backend, config: Config, settings: CollectSettings, confident: float
) -> dict[str, Sequence[Any]]:
    """The rows of every stage for some traces."""
    found = escalations(chunk, config, settings)
    problems, attempts = {trace.problem.id: trace.problem for _, trace in chunk}, by_id(found.failures)
    candidates = checked(found.candidates, attempts, problems, settings)
    kept = stages.survivors(candidates)
    compared, guided = compare(kept, attempts, problems, weak, config, settings, confident)
    leaks = Counter(row.leak for row in candidates)
    found.counts["steps that leak"] += leaks[LeakVerdict.LEAK]
    found.counts["steps with a false equation"] += sum(
        row.leak is LeakVerdict.CLEAN and bool(row.unsound) for row in candidates
    )
    found.counts["answer steps left out"] += leaks[LeakVerdict.ANSWER_STEP]
    found.counts.update(row.kind for row in compared)
    kinds = {row.id: row.kind for row in compared}
    rows: dict[Kind, list[Example]] = {"intervention": [], "distillation": []}
    for example in stages.select(kept, guided, problems, attempts, config, settings):
        kind = kinds[example.parents["candidate"]]
        rows[kind].append(_row(example, kind))
    return {
        "failures": found.failures, "candidates": candidates, "guided": guided, "comparisons": compared,
        "examples": rows["intervention"], "distillation": rows["distillation"], "counts": [dict(found.counts)],
        "spent": [Spent("weak", stages.spent(guided))],
    }  # fmt: skip


def _row(example: Example, kind: Kind) -> Example:
    """The example as one of routing: the step is the strong model's, and no critic had a part in it."""
    models = {"weak": example.models["weak"], "strong": example.models["critic"]}
    parents = {**example.parents, "trace": example.parents["failure"].rpartition("/")[0]}
    if kind == "intervention":
        return dataclasses.replace(example, origin="routing", models=models, parents=parents)
    return dataclasses.replace(example, origin="strong", models=models, parents=parents, variant="step")


def _write(
    own: RunDirectory, card: dict[str, Any], config: Config, settings: CollectSettings, confident: float, licence: str
) -> Path:
    counts: Counter[str] = Counter()
    for row in sealed_rows(own.path, "counts", dict):
        counts.update(row)
    guided = sealed_rows(own.path, "guided", GuidedRollout)
    card |= {
        "what became of what": dict(counts),
        "generated tokens": {"guided": stages.spent(guided).generated_tokens},
        "settings": {
            **settings.model_dump(),
            "enough": None,  # `compare` asks for all
            "confident": confident,
            "configuration": uncapped(config).hash,
            "prompt": config.prompt.hash,
            "sampling": config.sampling.model_dump(),
            "seed": config.seed,
            "grader": GRADER_VERSION,
        },
    }
    paths = {}
    for stage, name in (("distillation", "distillation"), ("examples", "dataset")):
        paths[name] = own.claim(f"{name}.jsonl")
        own.claim(f"{name}.md")
        write_examples(paths[name], unique(sealed_rows(own.path, stage, Example)), card=card, licence=licence)
    return paths["dataset"]


def _failure(name: str, trace: Trace, place: int, draft: Step) -> Failure:
    """The attempt as it would stand with the draft; what it would have ended in is not known."""
    steps = (*(step.text for step in trace.steps[:place]), draft.text)
    return Failure(name, trace.problem.id, steps, extract_answer(draft.text), Verdict.NO_ANSWER)


def _candidate(name: str, problem: str, place: int, step: Step, config: Config, settings: CollectSettings) -> Candidate:
    made = Made(step.usage.model or step.author, config.prompt.hash, settings.hash_with(config), config.seed)
    return Candidate(f"{name}/c0", problem, name, place, step.text, made, with_reference=False, usage=step.usage)
