"""Going on with a learned policy's training where it counts: with the models themselves, through the router.

What differs from TRIM (arXiv 2601.10245), which trains with the models from the start:
1. The policy comes from the simulator (`ppo.train`). Each batch costs model calls, so the learning rate is lower, and
   a checkpoint is written after each.
2. A tenth of the problems is held out, and weights are kept only if they do better there than those before.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stepwise.errors import DataError
from stepwise.routing import learned
from stepwise.routing.learned import Array, Kind, Learned, Performance, Weights
from stepwise.routing.metrics import usage_by_author
from stepwise.routing.policy import Action, Policy, View, When
from stepwise.routing.pomdp.simulator import Decisions
from stepwise.routing.ppo import PpoLearner, PpoSettings, rewards
from stepwise.seeds import stable_hash
from stepwise.types import Problem, Trace, Usage, to_json

if TYPE_CHECKING:
    from stepwise.routing.router import StepRouter


@dataclasses.dataclass(frozen=True, eq=False)
class _Explorer(Policy):
    """Draws actions by their probabilities, or takes the likeliest without `salt`, and keeps a note of each draft it
    was asked about, by problem and step.

    A draw depends on the run's seed, `salt`, the problem and the step alone.
    """

    kind: Kind
    weights: Weights
    runs: tuple[int, ...]
    salt: int | None = None
    notes: dict[str, dict[int, tuple[Array, Array, int]]] = dataclasses.field(
        default_factory=lambda: defaultdict(dict), repr=False
    )

    name: ClassVar[str] = "explorer"
    when: ClassVar[When] = "after"
    needs_scores: ClassVar[bool] = True

    def decide(self, view: View) -> Action:
        """Draw an action."""
        scores, tokens = learned.seen(view)
        share = learned.softmax(learned.forward(self.kind, self.weights, scores[None], tokens[None])[0])
        if self.salt is None:
            action = int(share.argmax())
        else:
            action = min(int(np.searchsorted(share.cumsum(), view.uniform(self.salt), side="right")), len(share) - 1)
        self.notes[view.problem.id][view.index] = scores, tokens, action
        return learned.action_of(self.runs[action], f"drawn with probability {share[action]:.2f}")

    def decisions(self, traces: Sequence[Trace]) -> Decisions:
        """What was decided in `traces`, each an episode, with what it cost; those without a decision have none."""
        rows: list[tuple[int, int, int, float, float, Array, Array]] = []
        for episode, trace in enumerate(traces):
            noted = self.notes.get(trace.problem.id, {})
            places = sorted(noted)
            for place, following in zip(places, [*places[1:], len(trace.steps)], strict=True):
                scores, tokens, action = noted[place]
                written = [s.usage.generated_tokens for s in trace.steps[place:following] if s.author == "strong"]
                draft = float(noted[following][1][-1]) if following in noted else 0.0
                rows.append((episode, place, action, float(sum(written)), draft, scores, tokens))
        if not rows:
            raise DataError("no trace has a decision; see why the models wrote nothing")
        rows.sort(key=lambda row: row[1])
        longest = max(len(row[5]) for row in rows)
        scores = np.stack([np.pad(row[5], (0, longest - len(row[5])), constant_values=np.nan) for row in rows])
        tokens = np.stack([np.pad(row[6], (0, longest - len(row[6]))) for row in rows])
        episodes, steps, actions, strong, drafts = (np.asarray([row[k] for row in rows]) for k in range(5))
        return Decisions(episodes, steps, actions, strong, drafts, scores, tokens)


def tune(
    policy: Learned,
    router: StepRouter,
    problems: Sequence[Problem],
    directory: str | Path,
    *,
    verdict: Callable[[Trace], bool],
    batches: int = 10,
    rate: float = 1e-4,
    advance: Callable[[int], None] = lambda _: None,
) -> Learned:
    """Go on training `policy` with the router's models, and save what comes of it in `directory`.

    A tenth of the problems is held out: weights are kept if they do better there than those before. `verdict` says
    whether a trace is right; traces that ended in an error are left out. Each batch is on disk before the next, so a
    killed call goes on where it was. Raises `ConfigError` for models that the policy was not trained for, `DataError`
    for fewer problems than 10.
    """
    policy.check_models(weak=router.card.weak, strong=router.card.strong, scorer=router.card.scorer)
    if len(problems) < 10:
        raise DataError(f"there are {len(problems)} problems to tune on; give at least 10")
    settings = PpoSettings(**{**policy.card.settings, "rate": rate, "entropy": (0.001, 0.001), "batches": batches})
    _, card_file = learned.files_of(directory, settings.price)
    if card_file.is_file():
        return Learned(str(directory), settings.price, policy.force)
    held, pool = problems[: len(problems) // 10], problems[len(problems) // 10 :]
    size = min(settings.problems, len(pool))

    def play(problems: Sequence[Problem], weights: Weights, salt: int | None = None) -> tuple[_Explorer, list[Trace]]:
        explorer = _Explorer(settings.kind, weights, settings.runs, salt)
        solved = router.with_policy(explorer).solve_all(problems, progress=False)
        kept = [trace for trace in solved if trace.finish != "error"]
        if not kept:
            raise DataError(f"every solution ended in an error, the first with: {solved[0].note}")
        return explorer, kept

    def look(weights: Weights) -> Performance:
        _, traces = play(held, weights)
        spent = [usage_by_author(trace) for trace in traces]
        strong, weak = ([each.get(a, Usage()).generated_tokens for each in spent] for a in ("strong", "weak"))
        right = [verdict(trace) for trace in traces]
        return Performance.of(right, strong, weak, settings.price, settings.draft_share)

    mark = str(stable_hash(policy.card, [problem.id for problem in problems], dataclasses.asdict(settings)))
    checkpoint = card_file.with_suffix(".checkpoint")
    learner, best, notes = PpoLearner.begin(checkpoint, settings, mark, policy.weights)
    before, after = (
        (Performance(**json.loads(notes[name])) for name in ("before", "after")) if notes else (look(best),) * 2
    )
    advance(learner.done)
    while learner.done < batches:
        turn, place = divmod(learner.done, len(pool) // size)  # the pool in a new order at each pass
        order = np.random.default_rng((settings.seed, 4, turn)).permutation(len(pool))
        batch = [pool[i] for i in order[place * size : (place + 1) * size]]
        explorer, traces = play(batch, learner.arrays(), learner.done)
        decisions, right = explorer.decisions(traces), [verdict(trace) for trace in traces]
        learner.update(decisions, rewards(decisions, right, settings.price, settings.draft_share))
        now = look(learner.arrays())
        if now.objective > after.objective:
            best, after = learner.arrays(), now
        learner.save(checkpoint, best, mark=mark, before=to_json(before), after=to_json(after))
        advance(1)
    return Learned.write(directory, dataclasses.replace(policy.card, live=(before, after)), best, policy.force)
