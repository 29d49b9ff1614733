"""TRIM's loop (arXiv 2601.10245, section 3): the weak model drafts a step, a scorer reads it, a policy decides.

What differs from TRIM:
1. A policy may decide before the draft is written, keep the strong model for several steps or for good, have the weak
   model draft again, or look for more evidence first; TRIM rewrites one step after seeing its draft and its score.
2. An end of message without a box ends the trace; TRIM's loop goes on asking until its limit of 30 steps.
3. A strong step is scored together with the draft after it, so it costs the scorer no call of its own; one that ends
   the solution is not scored.
4. Every draft's seed follows from (run seed, problem id, step, role, attempt) alone: up to the rounding of the models'
   sums, a trace does not depend on what else is in the batch, and the same prefix gets the same draft under every
   policy.
5. `policies.Threshold` compares strictly: a score equal to the threshold is kept.
6. Caps, on a problem and on the run, are kept by the models' wrappers, which reserve a whole step before it is asked
   for, or what is left, where that may do. A strong step that may not be paid for, or that the cap cut, is written by
   the weak model instead; the trace's note says which, and what was cut stands with the evidence.

One problem is one coroutine, `Solver.run`; `route.route_all` runs many, and the engines make batches of what they ask
for (`stepwise.models.driver`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from stepwise.errors import BudgetExceededError, PluginError, StepwiseError
from stepwise.models.base import Completion, Generator, Request
from stepwise.models.budget import ACCOUNT, Ledger
from stepwise.models.failures import error_of, failure_of
from stepwise.routing.deciding import decide, needs_scorer
from stepwise.routing.evidence import KINDS, WITH_DRAFT, Evidence, answered, check_logprobs
from stepwise.routing.policy import FOR_GOOD, Action, Escalate, HandOver, Keep, Look, Policy, Resample, View
from stepwise.routing.settings import RouteSettings
from stepwise.seeds import stable_hash
from stepwise.steps import leading_blank
from stepwise.types import Problem, Step, Trace, TraceFinish, Usage

MAX_COPIES = 2  # a step may stand twice in a trace; a third copy means that the models go in circles
LEAST_TOKENS = 8  # where a cap leaves less for a step, nobody is asked for it
MAX_DRAFTS = 16  # drafts of one step; a policy that resamples for ever is stopped here
Role = Literal["weak", "strong"]
OnTrace = Callable[[Trace], None]


class Solver:
    """One problem while it is solved: the steps so far, and the step that is being made.

    Example:
        trace = await Solver(problem, models, Threshold(0.5), RouteSettings(seed=1), Ledger()).run()
    """

    def __init__(
        self,
        problem: Problem,
        models: Any,
        policy: Policy,
        settings: RouteSettings,
        account: Ledger,
        on_step: OnTrace | None = None,
        on_trace: OnTrace | None = None,
    ):
        self.problem, self.models, self.policy, self.settings = problem, models, policy, settings
        self.account, self._on_step, self._on_trace = account, on_step, on_trace
        looks = policy.looks  # a collection, or a mapping that names what wants each
        self.looks = dict(looks) if isinstance(looks, Mapping) else dict.fromkeys(looks, policy.name)
        self._with_draft = frozenset(WITH_DRAFT) & set(self.looks)
        self._splitter = settings.prompt.splitter
        self.plugin_error: StepwiseError | None = None  # what ended this problem, where policy or scorer are at fault
        self.steps: list[Step] = []
        self.finish: TraceFinish = ""
        self.note = ""
        self.scorer_usage = Usage()
        self.strong_steps = 0  # steps that the strong model still writes before the policy is asked again
        # the step being made
        self.draft: Step | None = None
        self.draft_finish = ""
        self.drafts: list[Step] = []  # thrown away
        self.paid_evidence: list[Step] = []
        self.evidence = Evidence()
        self.undecided, self.decision = False, ""  # undecided: the policy wants to see the draft first
        self.refused_by = ""  # what stood in the way of the last model: what a cap had left
        self.refused: dict[str, list[int]] = {}  # by cap: the steps that the strong model did not write for it
        self.ended: TraceFinish = ""  # how the weak model's whole solution ended, once it was reviewed

    async def run(self) -> Trace:
        """The finished trace."""
        ACCOUNT.set(self.account)
        while not self.finish:
            await self._step()
            if self.policy.when == "solution":
                await self._after_step()
            if self._on_step is not None:
                self._on_step(self.trace())
        if self._on_trace is not None:
            self._on_trace(self.trace())
        return self.trace()

    async def _step(self) -> None:
        """One more step, or the end."""
        when = self.policy.when
        if not self.strong_steps and (when == "before" or (when == "question" and not self.steps)):
            await self._decide()
        while not (self.strong_steps or self.finish):  # draft, score, decide; again where the policy resamples
            await self._write("weak")
            if self.finish or not (when == "after" or self.undecided) or not await self._decide():
                break
        if self.strong_steps and not self.finish and not await self._write("strong"):
            self.strong_steps = 0
            self.decision = f"keep: {self.refused_by} ({self.decision})"
            await self._refused()
        if not self.finish:
            self._accept()

    async def _after_step(self) -> None:
        """Nothing here; see `route`, where a solution that has ended may be begun anew."""

    async def _refused(self) -> None:
        """The strong model may not be asked for this step: the weak one's draft stands."""
        if self.draft is None:
            await self._write("weak")

    async def _write(self, role: Role) -> bool:
        """Have a model write the step; False where a cap forbids it, without which the weak model cannot go on."""
        result = await self.ask(role, self.step_request(role))
        failure = result.failed
        if result.states and self.models.scorer is not None:  # a stored answer may have states that nobody asked for
            self.models.scorer.observe(self.problem, [_bare(step) for step in self.steps], result)
        if failure is not None and failure.kind == "budget":
            self.refused_by = self._left(failure.cap, result) if failure.cap else failure.reason
            if role == "weak":
                self._end("budget", f"the budget ended before step {len(self.steps)}: {self.refused_by}")
            else:
                self.refused.setdefault(failure.cap or failure.reason, []).append(len(self.steps))
            return False
        step = Step(
            result.text, role, usage=result.usage, token_ids=result.token_ids, token_stats=result.token_stats,
            thought=result.thought,
        )  # fmt: skip
        self._replace(step)
        self.draft_finish = result.finish
        self.evidence.logprobs = result.top_logprobs or ()
        if failure is not None:
            self._end("error", f"the {role} model failed at step {len(self.steps)}: {failure}")
        return True

    def _left(self, cap: str, result: Completion) -> str:
        """What the cap that forbade a step had left; nothing is left where the step was cut."""
        if result.usage.calls:
            return f"{cap} had {result.usage.generated_tokens} tokens left, which cut the step"
        left, needs = self.account.left_of(cap), min(LEAST_TOKENS, self.settings.sampling.max_step_tokens)
        return left + (f", a step needs {needs}" if cap.endswith("tokens") else "")

    async def _decide(self) -> bool:
        """Let the policy decide on what it wants to see; True where the weak model is to draft again."""
        if self.policy.needs_scores:
            await self.score()
        while not self.finish:
            try:
                action = await decide(self.policy, self._view())
            except PluginError as error:  # costs this problem and no other
                self.plugin_error = error
                self._end("error", str(error))
                break
            if not isinstance(action, Look):
                return self._act(action)
            self.evidence.done.add(action.what)
            if action.what == "draft":
                self.undecided = True
                break
            if action.what == "scores":
                await self.score()
            elif action.what in KINDS:
                await KINDS[action.what].gather(self, action)
        return False

    async def score(self) -> None:
        """Fill in the scores that are missing; a step keeps the score that was decided on."""
        drafted = [self.draft] if self.draft is not None and self.draft.text.strip() else []  # an empty one is left out
        texts = [_bare(step) for step in (*self.steps, *drafted)]
        known = sum(step.score is not None for step in self.steps)
        if len(texts) <= known:
            return
        result = await self.models.scorer.ascore(self.problem, texts, known)
        self.scorer_usage += result.usage
        place, failure = len(self.steps), result.failure
        if failure is not None and failure.kind == "budget":
            self._end("budget", f"the budget ended before step {place} was scored: {failure.cap}")
        elif failure is not None and failure.kind != "refused":
            raise error_of(failure, f"the scorer at step {place} of problem {self.problem.id!r}")
        elif result.error:
            self.plugin_error = result.as_error(self.models.scorer.name, self.problem) if result.broken else None
            self._end("error", f"the scorer failed at step {place}: {result.error}")
        else:
            self.steps = [
                step if step.score is not None else dataclasses.replace(step, score=score)
                for step, score in zip(self.steps, result.scores[:place], strict=True)
            ]
            if self.draft is not None and len(result.scores) > place:
                self.draft = dataclasses.replace(self.draft, score=result.scores[-1])

    def _act(self, action: Action) -> bool:
        """Note what the policy decided; True when the weak model is to draft again."""
        again = isinstance(action, Resample) and self.draft is not None and len(self.drafts) < MAX_DRAFTS - 1
        match action:
            case Escalate():
                self.strong_steps, word = action.steps, "escalate"
            case HandOver():
                self.strong_steps, word = FOR_GOOD, "hand over"
            case Resample() if again:
                word = "draft again"
            case Resample() | Keep():
                word = "keep"
        self.decision = f"{word}: {action.reason}" if action.reason else word
        if again and self.draft is not None:
            self.draft = dataclasses.replace(self.draft, decision=self.decision)
            self._replace(None)
        return again

    def _accept(self) -> None:
        """The draft becomes the next step, with the drafts before it and the evidence; the trace may end with it."""
        assert self.draft is not None
        step, finish, place = self.draft, self.draft_finish, f"step {len(self.steps)} ({self.draft.author})"
        if not step.text.strip():
            if finish == "eos":
                self._end("eos", f"ended without a boxed answer before {place}")
            else:
                self._end("repeat", f"{place} is empty")
            return
        ends = finish == "answer" or answered([*self.steps, step], self._splitter)
        step = dataclasses.replace(
            step, discarded=tuple(self.drafts), decision=self.decision, evidence=tuple(self.paid_evidence)
        )
        if self.steps and (late := leading_blank(step.text) if self._splitter == "calculations" else ""):
            self.steps[-1] = dataclasses.replace(self.steps[-1], text=self.steps[-1].text + late)
            step = dataclasses.replace(step, text=step.text.removeprefix(late))
        self.steps.append(step)
        self.draft, self.drafts, self.paid_evidence = None, [], []
        self.evidence, self.undecided = Evidence(), False
        if step.author == "strong":
            self.strong_steps -= 1
            self.decision = f"{self.decision.removesuffix(' (continued)')} (continued)"
        if ends:
            self._end("answer")
        elif finish == "eos":
            self._end("eos", f"ended without a boxed answer at {place}")
        elif finish == "length":
            self._end("length", f"{place} was cut at {step.usage.generated_tokens} tokens")
        elif finish == "repeat":
            self._end("repeat", f"{place} repeats itself")
        elif sum(other.text == step.text for other in self.steps) > MAX_COPIES:
            self._end("repeat", f"{place} stands in the solution more than {MAX_COPIES} times")
        elif len(self.steps) >= self.settings.max_steps:
            self._end("steps", f"no boxed answer after {self.settings.max_steps} steps")

    # ----- requests

    async def ask(self, role: Role, request: Request) -> Completion:
        """The completion. Raises `CapabilityError` (it lacks log-probabilities), `BackendError` (it is gone)."""
        model: Generator = getattr(self.models, role)
        if request.top_logprobs or request.marker or (role == "weak" and self._with_draft):
            try:
                await model.ready()
            except BudgetExceededError as refusal:
                return Completion.of_failure(failure_of(refusal), n=request.n)
            check_logprobs(model, role, self.looks)
        result = await model.generate(request)
        failure = result.failed
        if failure is not None and failure.kind == "budget" and result.usage.calls:  # what it got was too little
            cut = Step(result.text, role, usage=result.usage, decision=f"cut: {failure.cap}")
            self.paid_evidence.append(cut)
        return result

    def step_request(self, role: Role) -> Request:
        """The next step; its seed depends on the place alone, so that policies share drafts."""
        sampling, attempt = self.settings.sampling, len(self.drafts) if role == "weak" else 0
        return Request(
            self.problem,
            tuple(self.steps),
            max_tokens=sampling.max_step_tokens,
            least_tokens=min(LEAST_TOKENS, sampling.max_step_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=stable_hash(self.settings.seed, self.problem.id, len(self.steps), role, attempt),
            top_logprobs=int(role == "weak" and "logprobs" in self.looks),
            role=role,
            run=self.settings.run,
            attempt=attempt,
            marker=self.evidence.marker if role == "weak" else "",
            states=role == "weak" and needs_scorer(self.policy) and self.models.scorer.wants_states,
        )

    # ----- what others see

    def _view(self) -> View:
        evidence, come = self.evidence, self._with_draft if self.draft is not None else frozenset()
        return View(
            self.problem, tuple(self.steps), self.draft,
            self.draft_finish if self.draft is not None else "",
            len(self.drafts),
            self.settings.max_steps,
            self.account.unspent("strong_tokens"),
            self.settings.seed,
            self.ended,
            frozenset(evidence.done | come),
            evidence.first_token,
            evidence.logprobs,
            evidence.resamples,
            evidence.rating,
            evidence.verification,
            evidence.call,
            needs_scorer(self.policy),
        )  # fmt: skip

    def trace(self) -> Trace:
        """What there is of it so far."""
        loose = (*self.paid_evidence, *self.drafts)
        return Trace(self.problem, tuple(self.steps), self.finish, self.scorer_usage, self.note, loose, self._splitter)

    def interrupted(self) -> Trace:
        """Its trace when the user stops the run: as it is if finished, else with finish "interrupted"."""
        if self.finish:
            return self.trace()
        lost = (*self.paid_evidence, *self.drafts, *([self.draft] if self.draft else []))
        return dataclasses.replace(self.trace(), finish="interrupted", note="stopped by the user", abandoned=lost)

    def _end(self, finish: TraceFinish, note: str = "") -> None:
        """Close the trace; what was written for a step that never came to be is kept as abandoned."""
        self._replace(None)
        kept = [f"kept weak at step {', '.join(map(str, steps))}: {cap}" for cap, steps in self.refused.items()]
        self.finish = "capped" if kept and finish == "answer" else finish
        self.note = "; ".join([*([note] if note else []), *kept])

    def _replace(self, step: Step | None) -> None:
        """Put `step` in place of the draft, which joins the drafts thrown away."""
        if self.draft is not None:
            self.drafts.append(self.draft)
        seen = self.evidence  # of the place it stays, of the draft it goes
        done = seen.done - {"draft", "scores", "logprobs", "rating"}
        self.draft, self.evidence = (
            step,
            Evidence(done, seen.first_token, seen.resamples, call=seen.call, marker=seen.marker),
        )


def _bare(step: Step) -> str:
    """The text without its separators, which say nothing to a scorer."""
    return step.text.strip("\r\n")
