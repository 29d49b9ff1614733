"""The stages of InT's pipeline (arXiv 2601.14209), each a function from rows to rows.

What differs from the published notebooks:
1. Locating and proposing are two calls with typed outputs; no reply is repaired by hand, and one that cannot be read
   stays as a row that says so.
2. The leak check is by value and by what is said (`leaks.py`), not by substring.
3. Guided rollouts are asked for in batches and stop as `CollectSettings` says (`filtering.py` has the rules); the
   published 32 per candidate are `enough=None, miss=0`.
4. Of several candidates the one with the most guided success is kept, not the first that can be read.
5. A step with an equation that is false is dropped (`soundness.py`): guided success does not notice it.
6. Where a problem has no reference solution the critic is asked without one; the row says so.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from stepwise.data.examples import Example, unique
from stepwise.errors import BackendError
from stepwise.grading import Verdict, grade_many
from stepwise.interventions.critic import ask_all, model_name
from stepwise.interventions.guiding import Wanted, chosen, counts_of, guided_by
from stepwise.interventions.leaks import LeakVerdict, answer_due, check_leak
from stepwise.interventions.rows import Candidate, Failure, GuidedRollout, Located, Made, Rollout, parent
from stepwise.interventions.settings import CollectSettings
from stepwise.interventions.soundness import false_equations
from stepwise.models.base import Backend, Completion, Request
from stepwise.seeds import seed_for
from stepwise.steps import split_steps
from stepwise.types import Problem, Usage

if TYPE_CHECKING:
    from stepwise.config import Config

AnyRollout = TypeVar("AnyRollout", bound=Rollout)


def sample_rollouts(
    problems: Sequence[Problem], backend: Backend, config: Config, settings: CollectSettings
) -> list[Rollout]:
    """`settings.rollouts` solutions of each problem, not graded yet. Raises BackendError where most of them fail."""
    requests = [_request(p, (), seed_for(config.seed, p.id, "rollouts"), settings.rollouts, config, settings)
                for p in problems]  # fmt: skip
    rows = []
    for written, request in _asked(backend, requests):
        name, problem = f"{request.problem.id}/r{written.sample}", request.problem.id
        made = _made(backend.name, request.seed, config, settings, written.sample)
        rows.append(Rollout(name, problem, written.sample, written.text, written.finish, made, written.usage,
                            written.token_ids, written.error))  # fmt: skip
    return rows


def grade_rollouts(rollouts: Sequence[AnyRollout], problems: Mapping[str, Problem]) -> list[AnyRollout]:
    r"""The same rollouts with verdicts; without a box it is NO_ANSWER, and those that failed stay without one."""
    pairs = [(row.answer, parent(problems, row.problem, row.id).answer) for row in rollouts]
    verdicts = grade_many(pairs)
    return [
        row if row.finish == "error" else dataclasses.replace(row, verdict=verdict)
        for row, verdict in zip(rollouts, verdicts, strict=True)
    ]


def keep_failures(rollouts: Sequence[Rollout], most: int | None = None) -> list[Failure]:
    """Attempts that ended wrong or without an answer, the same text once; at most `most` of each problem.

    What could not be judged (see `Verdict`) is no failure of the model and is left out.
    """
    wrong = [r for r in rollouts if r.verdict in (Verdict.WRONG, Verdict.NO_ANSWER) and r.steps]
    copies = Counter((r.problem, r.steps) for r in wrong)
    kept: dict[tuple[str, tuple[str, ...]], Failure] = {}
    per_problem: Counter[str] = Counter()
    for row in wrong:
        key = (row.problem, row.steps)
        if key not in kept and (most is None or per_problem[row.problem] < most) and row.verdict is not None:
            kept[key] = Failure(row.id, row.problem, row.steps, row.answer, row.verdict, copies[key])
            per_problem[row.problem] += 1
    return list(kept.values())


def locate_errors(
    failures: Sequence[Failure],
    problems: Mapping[str, Problem],
    localizer: Any,
    config: Config,
    settings: CollectSettings,
) -> list[Located]:
    """The first error of each attempt by an ErrorLocalizer. Raises BackendError where its model is not there."""
    items = [{"problem": parent(problems, f.problem, f.id), "steps": list(f.steps)} for f in failures]
    seeds = [seed_for(config.seed, f.id, "locate") for f in failures]
    found = ask_all(localizer, items, seeds, settings, "locating")
    return [
        Located(
            f"{f.id}/l", f.problem, f.id, made.first_error, _made(model_name(localizer), seed, config, settings),
            made.get("critical_error"), made.localization.reason if made.localization else "", made.failure or "",
            _has_reference(item["problem"]), made.usage,
        )
        for f, item, seed, made in zip(failures, items, seeds, found, strict=True)
    ]  # fmt: skip


def propose_candidates(
    located: Sequence[Located],
    failures: Mapping[str, Failure],
    problems: Mapping[str, Problem],
    proposer: Any,
    config: Config,
    settings: CollectSettings,
) -> list[Candidate]:
    """`config.critic.candidates` steps in place of each first error that was found, each with a seed of its own.

    `proposer` is an InterventionProposer with `candidates=1`. Of several candidates the first is greedy where
    `config.critic.temperature` is 0, and only the others are drawn at the proposer's temperature. A step of several
    paragraphs becomes one paragraph. Raises BackendError where its model is not there.
    """
    asked = [(row, k) for row in located if row.first_error is not None and not row.failed
             for k in range(config.critic.candidates)]  # fmt: skip
    items = [
        {
            "problem": parent(problems, row.problem, row.id),
            "steps": list(parent(failures, row.failure, row.id).steps),
            "first_error": row.first_error,
        }
        for row, _ in asked
    ]
    seeds = [seed_for(config.seed, row.failure, "propose", k) for row, k in asked]
    greedy = [k == 0 and config.critic.candidates > 1 and not config.critic.temperature for _, k in asked]
    found = ask_all(proposer, items, seeds, settings, "proposing", greedy)
    rows = []
    for (row, k), item, seed, made in zip(asked, items, seeds, found, strict=True):
        step, failed = made.intervention, made.failure or ""
        content = "" if step is None else "\n".join(split_steps(step.content))
        location = row.first_error or 0 if step is None else step.location
        rows.append(Candidate(
            f"{row.failure}/c{k}", row.problem, row.failure, location, content,
            _made(model_name(proposer), seed, config, settings, k), failed or ("" if content else "the step is empty"),
            with_reference=_has_reference(item["problem"]), usage=made.usage,
        ))  # fmt: skip
    return rows


def check_candidates(
    candidates: Sequence[Candidate], failures: Mapping[str, Failure], problems: Mapping[str, Problem]
) -> list[Candidate]:
    """The same candidates with what the leak check says; those that failed stay without."""
    rows = []
    for row in candidates:
        failure, problem = parent(failures, row.failure, row.id), parent(problems, row.problem, row.id)
        if row.failed:
            rows.append(row)
            continue
        trace = failure.trace(problem)
        found = check_leak(
            row.content,
            problem.answer or "",
            problem=problem.question,
            prefix=failure.steps[: row.location],
            answer_due=answer_due(trace, row.location),
        )
        rows.append(dataclasses.replace(row, leak=found.verdict, leak_reason=found.reason, leak_text=found.matched))
    return rows


def check_sums(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates with the first equation in them that is false, where there is one."""
    found = [(row, [] if row.failed else false_equations(row.content)) for row in candidates]
    return [dataclasses.replace(row, unsound=wrong[0].text) if wrong else row for row, wrong in found]


def survivors(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that give nothing away and hold no false equation, the same step at the same place of an attempt
    once.
    """
    kept: dict[tuple[str, int, str], Candidate] = {}
    for row in candidates:
        if row.leak is LeakVerdict.CLEAN and not row.unsound:
            kept.setdefault((row.failure, row.location, row.content), row)
    return list(kept.values())


def guide(
    candidates: Sequence[Candidate],
    failures: Mapping[str, Failure],
    problems: Mapping[str, Problem],
    backend: Backend,
    config: Config,
    settings: CollectSettings,
) -> list[GuidedRollout]:
    """Graded rollouts from behind each candidate, in batches, until `settings` says that it is enough for it.

    Raises BackendError where most of a batch fails.
    """

    def sample(wanted: Sequence[Wanted]) -> list[GuidedRollout]:
        requests = []
        for one in wanted:
            row = one.candidate
            problem = parent(problems, row.problem, row.id)
            prefix = row.splice(parent(failures, row.failure, row.id), problem).steps
            seed = seed_for(config.seed, row.id, "guided", one.first)
            requests.append(_request(problem, prefix, seed, one.n, config, settings))
        fresh = []
        for written, request in _asked(backend, requests):
            one = wanted[written.request]
            row, number = one.candidate, one.first + written.sample
            made = _made(backend.name, request.seed, config, settings, written.sample)
            fresh.append(GuidedRollout(
                f"{row.id}/g{number}", row.problem, number, written.text, written.finish, made, written.usage,
                written.token_ids, written.error, candidate=row.id, phase=one.phase,
            ))  # fmt: skip
        return grade_rollouts(fresh, problems)

    return guided_by(candidates, sample, settings)


def select(
    candidates: Sequence[Candidate],
    guided: Sequence[GuidedRollout],
    problems: Mapping[str, Problem],
    failures: Mapping[str, Failure],
    config: Config,
    settings: CollectSettings,
) -> list[Example]:
    """Examples from the candidates with a success: of each attempt the best one, or all (`settings.keep`).

    Their successes are those of the fresh rollouts, where there are any (`settings.fresh`); else of the very rollouts
    that chose them, so that a rate is too high on average. The same question and target occur once.
    """
    counts, fresh = counts_of(guided), counts_of(guided, fresh=True)
    weak = {made.candidate: made.made.model for made in guided}
    rows = [
        _example(row, problems[row.problem], failures[row.failure], fresh.get(row.id, counts[row.id]), weak[row.id],
                 config, settings)
        for row in chosen(candidates, guided, settings)
    ]  # fmt: skip
    return unique(rows)


def _example(
    row: Candidate,
    problem: Problem,
    failure: Failure,
    counts: tuple[int, int],
    weak: str,
    config: Config,
    settings: CollectSettings,
) -> Example:
    return Example(
        row.id, problem.question, problem.answer or "", failure.steps[: row.location], row.content, "intervention",
        {"problem": problem.id, "failure": failure.id, "candidate": row.id}, {"weak": weak, "critic": row.made.model},
        config.prompt.hash, settings.hash_with(config), row.made.seed, *counts,
        row.with_reference, problem.source,
    )  # fmt: skip


def _made(model: str, seed: int, config: Config, settings: CollectSettings, draw: int = 0) -> Made:
    return Made(model, config.prompt.hash, settings.hash_with(config), seed, draw)


def _request(problem: Problem, prefix: Any, seed: int, n: int, config: Config, settings: CollectSettings) -> Request:
    how = config.sampling
    return Request(
        problem, tuple(prefix), "solution", max_tokens=settings.max_tokens, n=n, temperature=how.temperature,
        top_p=how.top_p, top_k=how.top_k, seed=seed,
    )  # fmt: skip


def _asked(backend: Backend, requests: Sequence[Request]) -> list[tuple[Completion, Request]]:
    """Every continuation with its request; a backend that fails for most of them counts as gone."""
    written = backend.continue_solutions(requests)
    errors = [made.error for made in written if made.finish == "error"]
    if 2 * len(errors) > len(written):
        raise BackendError(f"{backend.name} failed for {len(errors)} of {len(written)} rollouts, first: {errors[0]}")
    return [(made, requests[made.request]) for made in written]


def _has_reference(problem: Any) -> bool:
    return bool(problem.reference and problem.reference.strip())


def spent(rows: Sequence[Rollout | Located | Candidate]) -> Usage:
    """What the texts of these rows cost."""
    return sum((row.usage for row in rows), Usage())
