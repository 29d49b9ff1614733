"""Interventions from routing: steps that a strong model wrote where the weak model's draft was the problem.

A router escalates for many reasons, and a strong model's step is an intervention only where the discarded draft would
have lost what the step has won. So both are followed by rollouts of the weak model, as many of each, and the step is
kept where its success is higher beyond doubt (Beta(1, 1) posteriors). The other steps that succeed are distillation:
they are written to a file of their own, with the origin "strong". Asking the expert only where the learner's own action
is worse is gated DAgger's idea (SafeDAgger, arXiv 1605.06450; ThriftyDAgger, arXiv 2109.08273); their gates are a
learned risk or novelty before the action, this one is the measured outcome after it.

A draft stands as the failed attempt, the strong model's step as its candidate: checks, rollouts and choice are those of
`pipeline`.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from stepwise.config import Config
from stepwise.data.examples import Example
from stepwise.data.problems import check_problems
from stepwise.errors import ConfigError, DataError
from stepwise.grading import Verdict, grade, grade_many
from stepwise.interventions.checks.candidates import check_candidates, survivors
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.interventions.chunks import working, write_sealed
from stepwise.interventions.collection import unsound
from stepwise.interventions.filtering import counts_of
from stepwise.interventions.pipeline import Attempts, Chunk, guide, select
from stepwise.interventions.rows import Candidate, FailedAttempt, GuidedRollout, Made, by_id, spent
from stepwise.interventions.settings import CollectSettings, Writers, hash_of
from stepwise.io import read_rows
from stepwise.models.store import key_of
from stepwise.records import record, to_json
from stepwise.runs.chunks import run_chunks, sealed_counts, sealed_rows
from stepwise.runs.directory import RunDirectory
from stepwise.steps import boxed, extract_answer
from stepwise.types import Problem, Trace

Kind = Literal["intervention", "distillation", "no success"]
Named = tuple[str, Trace]
"""A trace with its id."""
_NONE = (0, 0)
_FILES = ("failures", "candidates", "guided", "comparisons", "examples", "distillation", "counts")


@record()
class _GuidedComparison:
    """What followed the strong model's step, and what followed the draft; `id` is the candidate's.

    `helps` is the probability that the step's success is higher than the draft's, given the counts.
    """

    id: str
    problem: str
    successes: int
    guided: int
    draft_successes: int
    draft_guided: int
    helps: float
    kind: Kind


def from_routing(
    traces: str | Path | Iterable[Trace],
    cfg: Config,
    out: str | Path | RunDirectory,
    *,
    settings: CollectSettings | None = None,
    confident: float = 0.95,
    writers: Writers | None = None,
    licence: str = "other",
) -> Path:
    """Make a dataset of the escalated steps of `traces` in the directory `out`; returns its path.

    Beside it lie its card, distillation.jsonl with a card of its own (steps that succeed, but whose draft was not the
    problem), and the rows of all stages. Going on after an interruption needs no more than the same call. `confident`
    is how sure it must be that a step succeeds more often than its draft. Raises DataError for traces that cannot be
    used, and for a directory of another run; BackendError where the model is gone, OSError where the disk is full, and
    BudgetExceededError where the next chunk would pass a cap of `budget`: what was sealed before stays.

    Example:
        traces = router.solve_all(sw.load_problems("gsm8k", split="train", n=200))
        path = from_routing(traces, sw.Config.lab(), "out/routing")
    """
    if not 0.5 <= confident < 1:
        raise ConfigError(f"confident is {confident}; give a probability of at least 0.5 and below 1")
    settings, given = settings or CollectSettings(), read_traces(traces)
    digest = key_of({"traces": [to_json(trace) for trace in given]})
    arguments = {**settings.model_dump(), "confident": confident, "traces": digest}
    with working(out, "from_routing", cfg, arguments, writers) as (directory, crew):
        problems: dict[str, Problem] = {}
        named, seen = list[Named](), Counter[str]()
        for trace in given:
            name = trace.problem.id
            if trace.splitter != cfg.prompt.splitter:
                raise DataError(
                    f"the trace of {name!r} has steps by the splitter {trace.splitter!r}, the configuration by "
                    f"{cfg.prompt.splitter!r}; give the configuration that it was routed with"
                )
            if problems.setdefault(name, trace.problem) != trace.problem:
                raise DataError(
                    f"the problem id {name!r} stands for different problems; give every problem an id of its own"
                )
            named.append((f"{name}/t{seen[name]}", trace))
            seen[name] += 1
        checked = check_problems(problems.values())
        usable = by_id(checked.problems)
        members = [(name, trace) for name, trace in named if trace.problem.id in usable]

        def finish() -> Path:
            guided = sealed_rows(directory.path, "guided", GuidedRollout)
            card = {
                "problems": {"used": len(checked.problems), "left out": checked.excluded},
                "what became of what": dict(sealed_counts(directory.path)),
                "generated tokens": {"guided": spent(guided).generated_tokens},
            }
            shown = {**settings.model_dump(), "enough": None, "confident": confident}  # all are asked for
            write_sealed(directory, cfg, card, shown, licence=licence, stage="distillation", name="distillation")
            return write_sealed(directory, cfg, card, shown, licence=licence)

        return run_chunks(
            directory, members, settings.chunk, _FILES, partial(_compared, cfg, settings, confident), finish, crew=crew,
            label="comparing escalated steps",
        )  # fmt: skip


def read_traces(source: str | Path | Iterable[Trace]) -> list[Trace]:
    """Traces as `stepwise route` writes them (traces.jsonl, or its directory), the last one of a problem tried again.

    Raises DataError for a file that is missing, has no rows or rows that are no traces.

    Example:
        traces = read_traces("out/route")  # its traces.jsonl
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


def _escalations(
    traces: Sequence[Named], config: Config, settings: CollectSettings
) -> tuple[list[FailedAttempt], list[Candidate], Counter[str]]:
    """Escalated steps that replaced a draft, in traces that ended right: drafts as failed attempts, whose end is not
    known, steps as candidates, and what was left out.

    A step that was escalated before a draft was written has none to be compared with, and is counted.
    """
    counts: Counter[str] = Counter()
    failures, candidates = [], []
    verdicts = grade_many([(trace.answer, trace.problem.answer) for _, trace in traces])
    counts["traces"] += len(traces)
    counts["traces that ended right"] += verdicts.count(Verdict.CORRECT)
    for (name, trace), verdict in zip(traces, verdicts, strict=True):
        for place, step in enumerate(trace.steps if verdict is Verdict.CORRECT else ()):
            if step.author == "weak":
                continue
            counts["escalated steps"] += 1
            draft = next((d for d in reversed(step.discarded) if d.author == "weak" and d.text.strip()), None)
            if draft is None:
                counts["escalated before there was a draft"] += 1
            elif draft.text == step.text:
                counts["the same as the draft"] += 1
            else:
                attempt_id, problem = f"{name}/s{place}", trace.problem.id
                steps = (*(step.text for step in trace.steps[:place]), draft.text)
                failures.append(
                    FailedAttempt(
                        attempt_id,
                        problem,
                        steps,
                        extract_answer(draft.thought + draft.text),
                        Verdict.NO_ANSWER,
                        splitter=trace.splitter,
                    )
                )
                author = step.usage.model or step.author
                made = Made(author, config.prompt.hash, hash_of(config, settings), config.seed)
                candidates.append(Candidate(
                    f"{attempt_id}/c0", problem, attempt_id, place, step.text, made, with_reference=False,
                    usage=step.usage,
                ))  # fmt: skip
    return failures, candidates, counts


def _compared(
    cfg: Config, settings: CollectSettings, confident: float, models: Writers, traces: Sequence[Named]
) -> dict[str, Sequence[Any]]:
    """The rows of every stage for some traces."""
    models.reset_caches("weak")
    chunk = Chunk({trace.problem.id: trace.problem for _, trace in traces}, models, cfg, settings)
    failures, proposed, counts = _escalations(traces, cfg, settings)
    attempts = by_id(failures)
    candidates = check_candidates(proposed, attempts, chunk)
    usable = survivors(candidates)
    comparisons, guided = compare(usable, attempts, chunk, confident)
    leaks = Counter(row.leak for row in candidates)
    counts["steps that leak"] += leaks[LeakVerdict.LEAK]
    counts["steps with a false equation"] += unsound(candidates)
    counts["answer steps left out"] += leaks[LeakVerdict.ANSWER_STEP]
    counts.update(row.kind for row in comparisons)
    kinds = {row.id: row.kind for row in comparisons}
    rows: dict[str, list[Example]] = {"intervention": [], "distillation": []}
    for example in select(usable, guided, attempts, chunk):
        kind = kinds[example.parents["candidate"]]
        routed = kind == "intervention"
        rows[kind].append(dataclasses.replace(
            example, origin="routing" if routed else "strong", variant="" if routed else "step",
            models={"weak": example.models["weak"], "strong": example.models["critic"]},  # no critic had a part in it
            parents={**example.parents, "trace": example.parents["failure"].rpartition("/")[0]},
        ))  # fmt: skip
    return {
        "failures": failures, "candidates": candidates, "guided": guided, "comparisons": comparisons,
        "examples": rows["intervention"], "distillation": rows["distillation"], "counts": [dict(counts)],
    }  # fmt: skip


def compare(
    candidates: Sequence[Candidate], attempts: Attempts, chunk: Chunk, confident: float = 0.95
) -> tuple[list[_GuidedComparison], list[GuidedRollout]]:
    """Rollouts of the weak model behind each step and, where one of them ended right, behind its draft.

    `settings.guided` of each, without an early end after successes, which would bias the comparison; a step without a
    success may be given up. A draft that closes a box is graded as it is. Raises BackendError where most of a batch
    fails.

    Example:
        rows, guided = compare(candidates, attempts, chunk)
        print(sum(row.kind == "intervention" for row in rows))  # steps that help more than the draft
    """
    number = chunk.settings.guided
    all_of_them = dataclasses.replace(chunk, settings=chunk.settings.exactly(number))
    guided = guide(candidates, attempts, all_of_them.but(miss=chunk.settings.miss))
    of_steps = counts_of(guided)
    drafts = [
        dataclasses.replace(row, id=f"{row.failure}/draft", content=attempts[row.failure].steps[row.location])
        for row in candidates
        if of_steps.get(row.id, _NONE)[0]
    ]
    behind = guide([draft for draft in drafts if not boxed(draft.content)], attempts, all_of_them)
    of_drafts = counts_of(behind)
    for draft in drafts:
        if boxed(draft.content):
            right = grade(extract_answer(draft.content), chunk.problems[draft.problem].answer or "") is Verdict.CORRECT
            of_drafts[draft.id] = (number * right, number)
    rows = []
    for row in candidates:
        step, draft_counts = of_steps.get(row.id, _NONE), of_drafts.get(f"{row.failure}/draft", _NONE)
        helps = _more_often(*step, *draft_counts)
        kind: Kind = "intervention" if helps >= confident else "distillation"
        rows.append(
            _GuidedComparison(row.id, row.problem, *step, *draft_counts, helps, kind if step[0] else "no success")
        )
    return rows, [*guided, *behind]


def _more_often(successes: int, n: int, others: int, m: int) -> float:
    """Probability that a chance with `successes` of `n` is larger than one with `others` of `m`, under uniform priors.

    Exact: the sum over the first Beta's integer parameter. Raises ValueError for counts that are none.
    """
    if not (0 <= successes <= n and 0 <= others <= m):
        raise ValueError(f"{successes} of {n} and {others} of {m} are no counts of successes")
    a, b, c, d = 1 + others, 1 + m - others, 1 + successes, 1 + n - successes
    terms = (
        math.exp(_log_beta(a + i, b + d) - math.log(d + i) - _log_beta(1 + i, d) - _log_beta(a, b)) for i in range(c)
    )
    return min(1.0, math.fsum(terms))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
