"""InT's data pipeline on a page (arXiv 2601.14209, the section on collecting interventions): one chunk of problems.

`run_stages` is the whole of it: solve, grade, keep the failures, locate their first errors, propose a step in place of
each, check it, guide (let the weak model go on from behind it), select. Each stage is a function from rows to rows; the
stages stand below in their order. `collection.collect` does chunk after chunk and writes them down.

What differs from the published notebooks:
1. Locating and proposing are two calls with typed outputs; no reply is repaired by hand, and one that cannot be read
   stays as a row that says so.
2. The leak check is by value and by what is said (`checks.leaks`), not by substring.
3. Guided rollouts are asked for in batches and stop as `CollectSettings` says (`filtering` has the rules); the
   published 32 per candidate are `enough=None, miss=0`.
4. Of several candidates the one with the most guided success is kept, not the first that can be read.
5. A step that is not in a solver's form (`critics.form`), or has an equation that is false, is dropped (`checks.sums`):
   guided success does not notice it.
6. A step is accepted by a test against luck (`acceptance`), and not for one success, unless asked to.
7. Where a problem has no reference solution the critic is asked without one; the row says so.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from stepwise import critics
from stepwise.config import Config
from stepwise.critics.form import form_fault, invented_output
from stepwise.data.examples import Example, unique
from stepwise.errors import BackendError
from stepwise.grading import Verdict, grade_many
from stepwise.interventions.acceptance import PrefixRates
from stepwise.interventions.checks.candidates import check_candidates, survivors
from stepwise.interventions.filtering import Wanted, chosen, counts_of, guided_by
from stepwise.interventions.rows import (
    ROWS,
    Candidate,
    FailedAttempt,
    GuidedRollout,
    Located,
    Made,
    Rollout,
    by_id,
    first_of_each,
)
from stepwise.interventions.rows import parent as parent_of
from stepwise.interventions.settings import CollectSettings, Writers, hash_of
from stepwise.models.base import Backend, Completion, Request
from stepwise.models.caps import uncapped
from stepwise.models.failures import error_of
from stepwise.runs.progress import stage
from stepwise.seeds import seed_for
from stepwise.steps import Splitter, ends_step, join_steps, split_steps
from stepwise.steps.thoughts import open_thought
from stepwise.types import Problem, Step

AnyRollout = TypeVar("AnyRollout", bound=Rollout)
Attempts = Mapping[str, FailedAttempt]
"""Failed attempts by id."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some problems by id, who writes, and how: what every stage is given.

    Example:
        chunk = Chunk({"p1": problem}, Writers(config), config, CollectSettings(rollouts=8))
        examples = run_stages(chunk)["examples"]
    """

    problems: Mapping[str, Problem]
    writers: Writers
    config: Config
    settings: CollectSettings
    rates: PrefixRates = dataclasses.field(default_factory=PrefixRates, kw_only=True)
    """of the chunks before this one; `run_stages` adds its own"""

    @property
    def splitter(self) -> Splitter:
        """Where steps end."""
        return self.config.prompt.splitter

    def but(self, **changes: Any) -> Chunk:
        """The same chunk with other settings."""
        return dataclasses.replace(self, settings=self.settings.model_copy(update=changes))

    def made(self, model: str, seed: int, draw: int = 0) -> Made:
        """What a text by `model` comes from."""
        return Made(model, self.config.prompt.hash, hash_of(self.config, self.settings), seed, draw)


def run_stages(chunk: Chunk) -> dict[str, Sequence[Any]]:
    """The rows of every stage (the names of `ROWS`) for the problems of a chunk; nothing is written.

    Example:
        config = sw.Config.lab()
        problems = {lab.problem.id: lab.problem for lab in sw.lab.generate("train", 4)}
        rows = run_stages(Chunk(problems, Writers(config), config, CollectSettings()))
        rows["examples"]  # what a model is trained on
    """
    writers, settings = chunk.writers, chunk.settings
    rollouts = grade_rollouts(sample_rollouts(chunk, writers.weak), chunk.problems)
    failures = keep_failures(rollouts, settings.attempts)
    attempts = by_id(failures)
    located = locate_errors(failures, chunk)
    candidates = check_candidates(propose_candidates(located, attempts, chunk), attempts, chunk)
    if settings.accept == "test":
        candidates = chunk.rates.add(rollouts, failures, located).of(candidates)
    usable = survivors(candidates)
    guided = guide(usable, attempts, chunk)
    examples = select(usable, guided, attempts, chunk)
    return dict(zip(ROWS, (rollouts, failures, located, candidates, guided, examples), strict=True))


def sample_rollouts(chunk: Chunk, model: Backend) -> list[Rollout]:
    """`settings.rollouts` solutions of each problem by `model`, not graded yet. Raises BackendError where most fail.

    Example:
        rollouts = sample_rollouts(chunk, chunk.writers.weak)
    """
    requests = [
        rollout_request(
            chunk, problem, (), seed_for(chunk.config.seed, problem.id, "rollouts"), chunk.settings.rollouts
        )
        for problem in chunk.problems.values()
    ]
    rows = []
    for text, request in completed(model, requests, "solving"):
        made = chunk.made(model.name, request.seed, text.sample)
        rows.append(Rollout(
            f"{request.problem.id}/r{text.sample}", request.problem.id, text.sample, text.text, text.finish, made,
            text.usage, text.token_ids, text.error, cause=text.failure, thought=text.thought, splitter=chunk.splitter,
        ))  # fmt: skip
    return rows


def grade_rollouts(rollouts: Sequence[AnyRollout], problems: Mapping[str, Problem]) -> list[AnyRollout]:
    r"""The same rollouts with verdicts; without a box it is NO_ANSWER, and those that failed stay without one.

    >>> row = Rollout("p/r0", "p", 0, r"So \boxed{2}.", "answer", Made("weak", "", "", 0))
    >>> grade_rollouts([row], {"p": Problem("p", "1 + 1?", "2")})[0].verdict.name
    'CORRECT'
    """
    verdicts = grade_many([(row.answer, parent_of(problems, row.problem, row.id).answer) for row in rollouts])
    return [
        row if row.finish == "error" else dataclasses.replace(row, verdict=verdict)
        for row, verdict in zip(rollouts, verdicts, strict=True)
    ]


def keep_failures(rollouts: Sequence[Rollout], max_per_problem: int | None = None) -> list[FailedAttempt]:
    r"""Attempts that ended wrong or without an answer, the same text once; at most
    `max_per_problem` of each problem.

    What could not be judged (see `Verdict`) is no failure of the model and is left out.

    >>> row = Rollout("p/r0", "p", 0, r"So \boxed{3}.", "answer", Made("weak", "", "", 0), verdict=Verdict.WRONG)
    >>> keep_failures([row, row])[0].copies
    2
    """
    wrong = [r for r in rollouts if r.verdict in (Verdict.WRONG, Verdict.NO_ANSWER) and r.steps]
    copies = Counter((r.problem, r.steps) for r in wrong)
    different = first_of_each(wrong, lambda r: (r.problem, r.steps))
    return [
        FailedAttempt(r.id, r.problem, r.steps, r.answer, r.verdict, copies[r.problem, r.steps], r.splitter)
        for r in first_of_each(different, lambda r: r.problem, max_per_problem or len(different))
        if r.verdict is not None
    ]


def locate_errors(failures: Sequence[FailedAttempt], chunk: Chunk) -> list[Located]:
    """The first error of each attempt by the localizer. Raises BackendError where its model is not there.

    Example:
        located = locate_errors(keep_failures(rollouts), chunk)
    """
    localizer = chunk.writers.localizer
    items = [{"problem": chunk.problems[row.problem], "steps": list(row.steps)} for row in failures]
    seeds = [seed_for(chunk.config.seed, row.id, "locate") for row in failures]
    replies = critics.ask_all(localizer, items, seeds, label="locating", concurrency=chunk.settings.concurrency,
                              around=chunk.writers.around)  # fmt: skip
    model = critics.model_name(localizer)
    return [
        Located(
            f"{row.id}/l", row.problem, row.id, reply.first_error, chunk.made(model, seed),
            reply.get("critical_error"), reply.localization.reason if reply.localization else "", reply.failure or "",
            has_reference(chunk.problems[row.problem]), reply.usage, reply.get("error"),
        )
        for row, seed, reply in zip(failures, seeds, replies, strict=True)
    ]  # fmt: skip


def propose_candidates(located: Sequence[Located], attempts: Attempts, chunk: Chunk) -> list[Candidate]:
    """`config.critic.candidates` steps in place of each first error that was found, each with a seed of its own.

    Of several candidates the first is greedy where `config.critic.temperature` is 0, and only the others are drawn at
    the proposer's temperature. Where steps end at blank lines, a step of several paragraphs becomes one; where they end
    with what can be checked, one that does not end so has a fault of `form`. Raises BackendError where the proposer's
    model is not there.

    Example:
        candidates = propose_candidates(located, {row.id: row for row in failures}, chunk)
    """
    proposer, number = chunk.writers.proposer, chunk.config.critic.candidates
    errors = [row for row in located if row.first_error is not None and not row.failed]
    tasks = [(row, k) for row in errors for k in range(number)]
    items = [
        {
            "problem": chunk.problems[row.problem],
            "steps": list(attempts[row.failure].steps),
            "first_error": row.first_error,
        }
        for row, _ in tasks
    ]
    seeds = [seed_for(chunk.config.seed, row.failure, "propose", k) for row, k in tasks]
    greedy = [k == 0 and number > 1 and not chunk.config.critic.temperature for _, k in tasks]
    replies = critics.ask_all(
        proposer,
        items,
        seeds,
        label="proposing",
        concurrency=chunk.settings.concurrency,
        attempts=[k for _, k in tasks],
        greedy=greedy,
        around=chunk.writers.around,
    )
    rows, model = [], critics.model_name(proposer)
    for (row, k), seed, reply in zip(tasks, seeds, replies, strict=True):
        step, form = reply.intervention, ""
        content = "" if step is None else step.content.strip()
        if chunk.splitter == "paragraphs":
            content = "\n".join(split_steps(content))
        if content and chunk.settings.check_form:  # of the paragraphs as they were written
            texts, question = attempts[row.failure].steps, chunk.problems[row.problem].question
            form = form_fault(step.content, problem=question, prefix=texts[: step.location], wrong=texts[step.location])
        if content and not form and not ends_step(content, chunk.splitter):
            form = "it leads to what is not there"
        rows.append(Candidate(
            f"{row.failure}/c{k}", row.problem, row.failure, row.first_error or 0 if step is None else step.location,
            content, chunk.made(model, seed, k), reply.failure or ("" if content else "the step is empty"),
            with_reference=has_reference(chunk.problems[row.problem]), usage=reply.usage, cause=reply.get("error"),
            form=form,
        ))  # fmt: skip
    return rows


def guide(candidates: Sequence[Candidate], attempts: Attempts, chunk: Chunk) -> list[GuidedRollout]:
    """Graded rollouts of the weak model from behind each candidate, in batches, until the settings say that it is
    enough for it. Raises BackendError where most of a batch fails.

    Example:
        guided = guide(survivors(candidates), attempts, chunk)
    """
    weak = chunk.writers.weak

    def sample(wanted: Sequence[Wanted]) -> list[GuidedRollout]:
        requests = []
        for part in wanted:
            row, problem = part.candidate, chunk.problems[part.candidate.problem]
            prefix = row.splice(attempts[row.failure], problem).steps
            seed = seed_for(chunk.config.seed, row.id, "guided", part.first)
            requests.append(rollout_request(chunk, problem, prefix, seed, part.n))
        rollouts = []
        for text, request in completed(weak, requests, "guiding"):
            part = wanted[text.request]
            row, number = part.candidate, part.first + text.sample
            rollouts.append(GuidedRollout(
                f"{row.id}/g{number}", row.problem, number, text.text, text.finish,
                chunk.made(weak.name, request.seed, text.sample), text.usage, text.token_ids, text.error,
                cause=text.failure, candidate=row.id, phase=part.phase,
                thought=open_thought(
                    text.thought + join_steps((step.text for step in request.prefix), chunk.splitter)
                ), splitter=chunk.splitter,
            ))  # fmt: skip
        return [
            dataclasses.replace(row, verdict=None, error="it has code with an invented output")
            if row.verdict is Verdict.CORRECT and invented_output(row.text)
            else row
            for row in grade_rollouts(rollouts, chunk.problems)
        ]

    return guided_by(candidates, sample, chunk.settings)


def select(
    candidates: Sequence[Candidate], guided: Sequence[GuidedRollout], attempts: Attempts, chunk: Chunk
) -> list[Example]:
    """Examples from the candidates that are accepted: of each attempt the best one, or all (`settings.keep`).

    Their successes are those of the fresh rollouts, where there are any (`settings.fresh`); else of the very rollouts
    that chose them, so that a rate is too high on average. The same question and target occur once.

    Example:
        examples = select(candidates, guided, attempts, chunk)
    """
    counts = counts_of(guided) | counts_of(guided, fresh=True)
    weak = {row.candidate: row.made.model for row in guided}
    rows = []
    for row in chosen(candidates, guided, chunk.settings):
        problem = chunk.problems[row.problem]
        rows.append(Example(
            row.id, problem.question, problem.answer or "", attempts[row.failure].steps[: row.location], row.content,
            "distillation" if row.made.model == critics.REFERENCE else "intervention",
            {"problem": problem.id, "failure": row.failure, "candidate": row.id},
            {"weak": weak[row.id], "critic": row.made.model}, chunk.config.prompt.hash,
            hash_of(chunk.config, chunk.settings), row.made.seed, *counts[row.id], row.with_reference, problem.source,
            splitter=chunk.splitter,
        ))  # fmt: skip
    return unique(rows)


def has_reference(problem: Problem) -> bool:
    """Whether there is a reference solution to show the critic.

    >>> has_reference(Problem("p", "1 + 1?", "2")), has_reference(Problem("p", "1 + 1?", "2", "One and one is 2."))
    (False, True)
    """
    return bool(problem.reference and problem.reference.strip())


def rollout_request(chunk: Chunk, problem: Problem, prefix: Sequence[Step], seed: int, n: int) -> Request:
    """`n` whole solutions by the weak model that begin with `prefix`: `rollout_request(chunk, problem, (), 0, 4)`.

    Example: see `sample_rollouts`.
    """
    sampling = chunk.config.sampling
    return Request(
        problem, tuple(prefix), "solution", max_tokens=chunk.settings.max_tokens, n=n, seed=seed,
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, role="weak",
        run=uncapped(chunk.config).hash,
    )  # fmt: skip


def completed(model: Backend, requests: Sequence[Request], name: str) -> list[tuple[Completion, Request]]:
    """Every completion with its request. One request that is refused is a row; a model that is gone, or fails for most
    of them, raises BackendError, a cap BudgetExceededError. Example: `completed(weak, requests, "solving")`.
    """
    with stage(name):
        completions = model.continue_solutions(requests)
    failures = [failure for completion in completions if (failure := completion.failed) is not None]
    for failure in failures:
        if failure.kind in ("gone", "budget"):
            raise error_of(failure)
    if 2 * len(failures) > len(completions):
        first = failures[0].reason
        raise BackendError(f"{model.name} failed for {len(failures)} of {len(completions)} rollouts, first: {first}")
    return [(completion, requests[completion.request]) for completion in completions]
