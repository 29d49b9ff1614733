"""What credit schemes need besides outcomes (`credit.NEEDS`), and what finding it costs.

A rollout about which nothing can be found out (its judge failed) is masked. What differs from the papers:
1. VinePPO (arXiv 2410.01679): rollouts that begin alike share the estimates of what they have in common, and a
   continuation that comes to no answer has not succeeded.
2. CAPO (2508.02298): a critique is one pass of an ErrorLocalizer, shown the reference; one that stops at the first
   error names that step alone.
3. OPPO (2605.21851): the oracle is the reference solution, or the answer where there is none, after the question in the
   prompt of the policy itself.
4. Distillation: the student's log-probabilities are the sampler's, as it wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwise import credit
from stepwise.data.localization import first_below
from stepwise.errors import BackendError, DataError
from stepwise.interventions import stages
from stepwise.seeds import seed_for
from stepwise.steps import extract_answer
from stepwise.training.crediting import Known
from stepwise.training.learner import Learner
from stepwise.training.policy import Floats, forward
from stepwise.training.rendering import prompt_ids
from stepwise.training.rollouts import RlRollout
from stepwise.training.teacher import read_logprobs
from stepwise.types import Problem, Usage

if TYPE_CHECKING:
    from stepwise.grading import Verdict
    from stepwise.models.engine import GenerationJob

Found = tuple[list[Known], "Cost"]
_NO_STEPS: Mapping[str, Any] = {"first_error": 0, "scores": (0.0,), "critiques": ((0,),)}  # a text without steps


@dataclass(frozen=True)
class Cost:
    """Tokens that were generated and evaluated besides the rollouts, and the floating-point operations that takes: 2
    per parameter and token, None where a model does not say its size.
    """

    generated: int = 0
    evaluated: int = 0
    flops: float | None = 0.0

    @classmethod
    def of(cls, size: int | None, generated: int, evaluated: int) -> Cost:
        """What a model of `size` parameters spent."""
        return cls(generated, evaluated, None if size is None else 2.0 * size * (generated + evaluated))

    def __add__(self, other: Cost) -> Cost:
        flops = None if self.flops is None or other.flops is None else self.flops + other.flops
        return Cost(self.generated + other.generated, self.evaluated + other.evaluated, flops)


def gather(run: Learner, rollouts: Sequence[RlRollout], own: Sequence[Floats] | None) -> Found:
    """What `rl.credit.scheme` needs of each rollout, and what that cost.

    `own` has the trainer's log-probabilities of each rollout's tokens, for the scheme that compares them. Raises
    BackendError where a judge is not there, DataError for a step that `locate` names and the rollout has not.
    """
    known, cost = [Known() for _ in rollouts], Cost()
    for need in credit.NEEDS[run.cfg.rl.credit.scheme]:
        found, spent = evidence(run, rollouts, own) if need == "evidence" else _FINDERS[need](run, rollouts)
        cost += spent
        for i, what in enumerate(found):
            told = {f.name: v for f in dataclasses.fields(what) if (v := getattr(what, f.name)) is not None}
            known[i] = dataclasses.replace(known[i], **told)
    return known, cost


def first_errors(run: Learner, rollouts: Sequence[RlRollout]) -> Found:
    """The first error of each wrong rollout, by the judge that `rl.credit.first_error` names."""
    places, known = _places(rollouts, "first_error", wrong=True)
    by = {"scorer": _by_scorer, "critic": _by_critic, "given": _by_function}[run.cfg.rl.credit.first_error]
    found, cost = by(run, [rollouts[i] for i in places])
    return _put(known, places, found), cost


def step_scores(run: Learner, rollouts: Sequence[RlRollout]) -> Found:
    """The scorer's probability that each step is right, for each rollout with a reward."""
    places, known = _places(rollouts, "scores")
    found, cost = _scored(run, [rollouts[i] for i in places])
    return _put(known, places, found), cost


def _scored(run: Learner, rows: Sequence[RlRollout]) -> Found:
    from stepwise.models.scorers.base import score_items

    scorer = run.judges.scorer
    made = score_items(scorer, [(run.problems[row.problem], row.steps) for row in rows])
    errors = [one.error for one in made if one.error]
    if 2 * len(errors) > len(made):
        raise BackendError(
            f"scorer {scorer.name!r} failed for {len(errors)} of {len(made)} rollouts, first: {errors[0]}"
        )
    usage = sum((one.usage for one in made), Usage())
    known = [Known(failed=one.error) if one.error else Known(scores=tuple(one.scores)) for one in made]
    return known, Cost.of(scorer.parameters, usage.generated_tokens, usage.evaluated_tokens)


def _by_scorer(run: Learner, rows: Sequence[RlRollout]) -> Found:
    threshold = run.cfg.rl.credit.threshold
    scored, cost = _scored(run, rows)
    known = [
        what if what.scores is None else dataclasses.replace(what, first_error=first_below(what.scores, threshold))
        for what in scored
    ]
    return known, cost


def _by_critic(run: Learner, rows: Sequence[RlRollout]) -> Found:
    from stepwise.grading import Verdict
    from stepwise.interventions.rows import Failure
    from stepwise.interventions.settings import CollectSettings

    failures = [
        Failure(row.id, row.problem, row.steps, extract_answer(row.text), row.verdict or Verdict.WRONG) for row in rows
    ]
    made = stages.locate_errors(failures, run.problems, run.judges.critic, run.cfg, CollectSettings())
    usage = sum((one.usage for one in made), Usage())
    known = [Known(failed=one.failed) if one.failed else Known(one.first_error) for one in made]
    return known, Cost.of(run.judges.critic_size, usage.generated_tokens, usage.evaluated_tokens)


def _by_function(run: Learner, rows: Sequence[RlRollout]) -> Found:
    assert run.judges.locate is not None
    known = []
    for row in rows:
        place = run.judges.locate(run.problems[row.problem], row.steps)
        if place is not None and not 0 <= place < len(row.steps):
            raise DataError(
                f"locate named step {place} of rollout {row.id!r}, which has {len(row.steps)}; it must return a "
                "0-based step, or None"
            )
        known.append(Known(place))
    return known, Cost()


def critiques(run: Learner, rollouts: Sequence[RlRollout]) -> Found:
    """`rl.credit.critiques` critiques of each rollout with a reward; those that failed are left out."""
    from stepwise.interventions.critic import ask_all
    from stepwise.interventions.settings import CollectSettings

    places, known = _places(rollouts, "critiques")
    number, rows = run.cfg.rl.credit.critiques, [rollouts[i] for i in places]
    asked = [(row, k) for row in rows for k in range(number)]
    items = [{"problem": run.problems[row.problem], "steps": list(row.steps)} for row, _ in asked]
    seeds = [seed_for(run.cfg.seed, row.id, "critique", k) for row, k in asked]
    made = ask_all(run.judges.critic, items, seeds, CollectSettings(), "criticizing")
    usage = sum((one.usage for one in made), Usage())
    found = []
    for place in range(len(rows)):
        said = made[place * number : (place + 1) * number]
        votes = tuple(wrong_steps(one) for one in said if one.failure is None)
        found.append(Known(critiques=votes) if votes else Known(failed=str(said[0].failure)))
    cost = Cost.of(run.judges.critic_size, usage.generated_tokens, usage.evaluated_tokens)
    return _put(known, places, found), cost


def wrong_steps(said: Any) -> tuple[int, ...]:
    """The steps that an ErrorLocalizer's prediction calls wrong: the first error, and what its checks say after it."""
    if said.first_error is None:
        return ()
    later = (i for i, right in enumerate(said.verdicts) if not right and i > said.first_error)
    return (int(said.first_error), *later)


def boundary_values(run: Learner, rollouts: Sequence[RlRollout]) -> Found:
    """For each rollout with a reward, the share of `rl.credit.continuations` fresh continuations that end right, from
    the prompt, from behind each step but the last, and the outcome itself.

    A boundary of which nothing could be judged has the value of the one before it (the prompt: 1/2).
    """
    places, known = _places(rollouts, "values")
    prefixes: dict[tuple[int, ...], tuple[RlRollout, int]] = {}  # token ids -> whose they are, and how many are sampled
    for i in places:
        row = rollouts[i]
        for start, _ in row.spans:
            prefixes.setdefault((*run.prompts[row.problem], *row.token_ids[:start]), (row, start))
    shares, cost = _success(run, prefixes)
    found = []
    for i in places:
        row, values = rollouts[i], [0.5]
        for start, _ in row.spans or ((0, 0),):
            share = shares.get((*run.prompts[row.problem], *row.token_ids[:start]))
            values.append(values[-1] if share is None else share)
        found.append(Known(values=(*values[1:], row.reward or 0.0)))
    return _put(known, places, found), cost


def _success(
    run: Learner, prefixes: Mapping[tuple[int, ...], tuple[RlRollout, int]]
) -> tuple[dict[tuple[int, ...], float | None], Cost]:
    """The share of fresh continuations of each prefix that end right, None where none could be judged."""
    from stepwise.grading import Verdict, grade_many

    engine, n = run.sampler.engine, run.cfg.rl.credit.continuations
    jobs = [_continuation(run, ids, row, start) for ids, (row, start) in prefixes.items()]
    made = engine.generate(jobs)
    owners = list(prefixes.values())
    pairs = []
    for one in made:
        row, start = owners[one.job]
        written = engine.detokenize(row.token_ids[:start]).decode("utf-8", "replace") + one.text
        pairs.append((extract_answer(written), run.problems[row.problem].answer))
    verdicts = grade_many(pairs)
    shares: dict[tuple[int, ...], float | None] = {}
    for place, ids in enumerate(prefixes):
        group = range(place * n, (place + 1) * n)
        judged: list[Verdict] = [
            verdicts[i]
            for i in group
            if made[i].finish != "error" and (verdicts[i].carries_reward or verdicts[i] is Verdict.NO_ANSWER)
        ]
        shares[ids] = judged.count(Verdict.CORRECT) / len(judged) if judged else None
    generated, evaluated = sum(len(one.ids) for one in made), sum(one.evaluated_tokens for one in made)
    return shares, Cost.of(engine.parameters, generated, evaluated)


def _continuation(run: Learner, ids: tuple[int, ...], row: RlRollout, start: int) -> GenerationJob:
    from stepwise.models.engine import GenerationJob

    rl = run.cfg.rl
    seed = seed_for(run.cfg.seed, row.id, "value", start)
    return GenerationJob(
        ids, max_tokens=max(1, rl.max_tokens - start), n=rl.credit.continuations, temperature=rl.temperature,
        top_p=rl.top_p, top_k=rl.top_k, seed=seed, stop="solution",
    )  # fmt: skip


def evidence(run: Learner, rollouts: Sequence[RlRollout], own: Sequence[Floats] | None) -> Found:
    """Log p(token | oracle) - log p(token) under the policy as it is, for each rollout with a reward."""
    if own is None:
        raise DataError(
            "there are no log-probabilities of the trainer to compare with; give the pass over the rollouts"
        )
    places, known = _places(rollouts, "evidence", stepless=True)
    prompts = {name: oracle_prompt(run, run.problems[name]) for name in {rollouts[i].problem for i in places}}
    room = run.trainee.context
    fits = [i for i in places if len(prompts[rollouts[i].problem]) + len(rollouts[i].token_ids) <= room]
    for i in set(places) - set(fits):
        known[i] = Known(failed=f"with the oracle in its prompt it is longer than the context of {room} tokens")
    rows = [run.row(rollouts[i], prompt=prompts[rollouts[i].problem]) for i in fits]
    if not rows:
        return known, Cost()
    seen = forward(run.trainee, rows, run.cfg)
    found = [Known(evidence=told - own[i]) for i, told in zip(fits, seen.logprobs, strict=True)]
    return _put(known, fits, found), Cost.of(run.sampler.engine.parameters, 0, seen.tokens)


def oracle_prompt(run: Learner, problem: Problem) -> list[int]:
    """Token ids of the prompt with the reference solution, or the answer, after the question."""
    told = f"Reference solution:\n{problem.reference}" if problem.reference else f"The answer is {problem.answer}."
    return prompt_ids(run.trainee.tokenizer, run.cfg.prompt, f"{problem.question}\n\n{told}")


def teacher_gaps(run: Learner, rollouts: Sequence[RlRollout]) -> Found:
    """Log p(token) of the teacher less the sampler's, for each rollout with tokens, whether it has a reward or not."""
    engine = run.judges.teacher
    places = [i for i, row in enumerate(rollouts) if row.token_ids and row.finish != "error"]
    rows = [rollouts[i] for i in places]
    made, evaluated = read_logprobs(engine, [(run.prompts[row.problem], row.token_ids) for row in rows])
    errors = [one for one in made if isinstance(one, str)]
    if 2 * len(errors) > len(made):
        raise BackendError(f"{engine.name} failed for {len(errors)} of {len(made)} rollouts, first: {errors[0]}")
    found = [
        Known(failed=one) if isinstance(one, str) else Known(teacher=one - np.array(row.logprobs))
        for one, row in zip(made, rows, strict=True)
    ]
    return _put([Known() for _ in rollouts], places, found), Cost.of(engine.parameters, 0, evaluated)


def _places(
    rollouts: Sequence[RlRollout], need: str, *, wrong: bool = False, stepless: bool = False
) -> tuple[list[int], list[Known]]:
    """The rollouts to find something out about, and what is known of all of them without asking.

    Only those with a reward (`wrong`: reward 0) are asked about. One without steps is a wrong step as a whole, which
    needs no judge, unless `stepless`.
    """
    known, places = [], []
    for i, row in enumerate(rollouts):
        asked = row.reward is not None and not (wrong and row.reward)
        plain = asked and not row.steps and not stepless and need in _NO_STEPS
        known.append(Known(**{need: _NO_STEPS[need]}) if plain else Known())
        if asked and not plain:
            places.append(i)
    return places, known


def _put(known: list[Known], places: Sequence[int], found: Sequence[Known]) -> list[Known]:
    for i, what in zip(places, found, strict=True):
        known[i] = what
    return known


_FINDERS: dict[str, Callable[[Learner, Sequence[RlRollout]], Found]] = {
    "first_error": first_errors,
    "scores": step_scores,
    "values": boundary_values,
    "critiques": critiques,
    "teacher": teacher_gaps,
}
