"""Going on with a learned policy's training where it counts: with the models themselves, through the router.

Every batch costs model calls, so the policy comes from the simulator, the learning rate is lower, and a checkpoint is
written after each batch.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stepwise.errors import ConfigError, DataError
from stepwise.routing.learned import Array, Figures, Kind, Learned, Weights, action_of, files_of, forward, seen, softmax
from stepwise.routing.learning import Advance, figures_of, write_policy
from stepwise.routing.metrics import usage_by_author
from stepwise.routing.policy import Action, View, When
from stepwise.routing.ppo import Learner, PpoSettings, rewards, settings_as_json
from stepwise.routing.simulator import Decisions
from stepwise.seeds import stable_hash
from stepwise.types import Problem, Trace, Usage, to_json

if TYPE_CHECKING:
    from stepwise.routing.router import StepRouter


@dataclasses.dataclass(frozen=True, eq=False)
class Explorer:
    """Draws actions by their probabilities and keeps a note of each draft it was asked about, by problem and step.

    A draw depends on the run's seed, `salt`, the problem and the step alone.
    """

    kind: Kind
    weights: Weights
    runs: tuple[int, ...]
    salt: int
    notes: dict[str, dict[int, tuple[Array, Array, int]]] = dataclasses.field(
        default_factory=lambda: defaultdict(dict), repr=False
    )

    name: ClassVar[str] = "explorer"
    when: ClassVar[When] = "after"
    needs_scores: ClassVar[bool] = True
    point: ClassVar[None] = None

    def decide(self, view: View) -> Action:
        """Draw an action."""
        scores, tokens = seen(view)
        share = softmax(forward(self.kind, self.weights, scores[None], tokens[None])[0])
        action = min(int(np.searchsorted(share.cumsum(), view.uniform(self.salt), side="right")), len(share) - 1)
        self.notes[view.problem.id][view.index] = scores, tokens, action
        return action_of(self.runs[action], f"drawn with probability {share[action]:.2f}")

    def at(self, x: float) -> Explorer:
        """Itself: there is nothing to set."""
        return self

    def decisions(self, traces: Sequence[Trace]) -> Decisions:
        """What was decided in `traces`, each an episode, with what it cost; those without a decision have none."""
        rows = list[tuple[int, int, int, float, float, Array, Array]]()
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
        scores, tokens = np.full((len(rows), longest), np.nan), np.zeros((len(rows), longest))
        for i, row in enumerate(rows):
            scores[i, : len(row[5])], tokens[i, : len(row[6])] = row[5], row[6]
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
    advance: Advance = lambda _: None,
) -> Learned:
    """Go on training `policy` with the router's models, and save what comes of it in `directory`.

    A tenth of the problems is held out: weights are kept if they do better there than those before. `verdict` says
    whether a trace is right; traces that ended in an error are left out. Each batch is on disk before the next, so a
    killed call goes on where it was. Raises `ConfigError` for models that the policy was not trained for, `DataError`
    for fewer problems than 10.
    """
    policy.check(weak=router.card.weak, strong=router.card.strong, scorer=router.card.scorer)
    if len(problems) < 10:
        raise DataError(f"there are {len(problems)} problems to tune on; give at least 10")
    settings = PpoSettings(**{**policy.card.settings, "rate": rate, "entropy": (0.001, 0.001), "batches": batches})
    _, card_file = files_of(directory, settings.price)
    if not card_file.is_file():
        Path(directory).mkdir(parents=True, exist_ok=True)
        live = _Live(router, settings, verdict, problems)
        mark = str(stable_hash(policy.card, [problem.id for problem in problems], settings_as_json(settings)))
        best, before, after = live.train(policy.weights, card_file.with_suffix(".checkpoint"), mark, advance)
        write_policy(directory, dataclasses.replace(policy.card, live=(before, after)), best)
        card_file.with_suffix(".checkpoint").unlink(missing_ok=True)
    return Learned(str(directory), settings.price, policy.force)


class _Live:
    """Batches of episodes with a router's models."""

    def __init__(
        self,
        router: StepRouter,
        settings: PpoSettings,
        verdict: Callable[[Trace], bool],
        problems: Sequence[Problem],
    ) -> None:
        self.router, self.settings, self.verdict = router, settings, verdict
        self.held, self.pool = problems[: len(problems) // 10], problems[len(problems) // 10 :]

    def train(
        self, start: dict[str, Array], checkpoint: Path, mark: str, advance: Advance
    ) -> tuple[dict[str, Array], Figures, Figures]:
        """The best weights, and what those at the start and they do on the held-out problems."""
        settings = self.settings
        if checkpoint.is_file():
            learner, best, notes = Learner.load(checkpoint, settings)
            before, after = (Figures(**json.loads(notes[name])) for name in ("before", "after"))
            if notes["mark"] != mark:
                raise ConfigError(f"{checkpoint} is of other settings; remove it, or give another directory")
        else:
            learner, best = Learner(settings, start), start
            before = after = self.look(best)
        advance(learner.done)
        for part in self.parts(learner.done):
            explorer = Explorer(settings.kind, learner.arrays(), settings.runs, learner.done)
            traces = self.traces(explorer, part)
            right = np.asarray([self.verdict(trace) for trace in traces])
            decisions = explorer.decisions(traces)
            learner.update(decisions, rewards(decisions, right, settings.price, settings.draft_share))
            now = self.look(learner.arrays())
            if now.objective > after.objective:
                best, after = learner.arrays(), now
            learner.save(checkpoint, best, mark=mark, before=to_json(before), after=to_json(after))
            advance(1)
        return best, before, after

    def look(self, weights: Weights) -> Figures:
        """What the likeliest actions do on the held-out problems."""
        traces = self.traces(_Likeliest(self.settings.kind, weights, self.settings.runs), self.held)
        spent = [usage_by_author(trace) for trace in traces]
        strong, weak = ([each.get(a, Usage()).generated_tokens for each in spent] for a in ("strong", "weak"))
        return figures_of([self.verdict(trace) for trace in traces], strong, weak, self.settings)

    def traces(self, policy: Explorer | _Likeliest, problems: Sequence[Problem]) -> list[Trace]:
        """Solutions that did not end in an error."""
        solved = self.router.with_policy(policy).solve_all(problems, progress=False)
        kept = [trace for trace in solved if trace.finish != "error"]
        if not kept:
            raise DataError(f"every solution ended in an error, the first with: {solved[0].note}")
        return kept

    def parts(self, done: int) -> Iterator[list[Problem]]:
        """The problems of each batch that is left: the pool in a new order at each pass."""
        size = min(self.settings.problems, len(self.pool))
        each = len(self.pool) // size
        for number in range(done, self.settings.batches):
            order = np.random.default_rng((self.settings.seed, 4, number // each)).permutation(len(self.pool))
            start = number % each * size
            yield [self.pool[i] for i in order[start : start + size]]


@dataclasses.dataclass(frozen=True, eq=False)
class _Likeliest:
    """`Learned` before it is saved."""

    kind: Kind
    weights: Weights
    runs: tuple[int, ...]

    name: ClassVar[str] = "learned"
    when: ClassVar[When] = "after"
    needs_scores: ClassVar[bool] = True
    point: ClassVar[None] = None

    def decide(self, view: View) -> Action:
        scores, tokens = seen(view)
        return action_of(self.runs[int(forward(self.kind, self.weights, scores[None], tokens[None])[0].argmax())], "")

    def at(self, x: float) -> _Likeliest:
        return self
