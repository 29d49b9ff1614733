"""Proposing a step in place of the first error."""

from __future__ import annotations

from typing import Any, Self

import dspy

from stepwise.config import Config
from stepwise.critics import signatures
from stepwise.critics.asking import Ask, Asking, Plan, critic_lm, failed
from stepwise.critics.formats import Format
from stepwise.critics.inputs import Steps, as_steps, bounded, fitted, fitting, question_and_reference
from stepwise.critics.parameters import Predictor
from stepwise.errors import ConfigError, DataError
from stepwise.types import Intervention, Problem


class InterventionProposer(Asking):
    """Writes a step to put in place of an attempt's first error (InT, arXiv 2601.14209, the method's section).

    With `solve_first` the model solves the problem by the reference before it proposes, and sees its solution.
    `revisions` is how often a proposal that fails the three-question self-check is rewritten; the check needs `answer`
    (or a Problem with one). `candidates` are drawn at `temperature`, each with its own solution and checks.

    The prediction has `intervention` (the first candidate whose last self-check found nothing, else the first, with a
    warning), `candidates`, `reviews` (for each candidate, the last self-check or None), and `failure`. A location past
    the first error cannot be proposed: it is asked for again.
    """

    def __init__(
        self,
        lm: Any = None,
        *,
        solve_first: bool = True,
        revisions: int = 1,
        candidates: int = 1,
        temperature: float | None = None,
        adapter: Format | Any | None = None,
        bare: bool = False,
        max_chars: int = 40_000,
    ) -> None:
        if candidates < 1 or revisions < 0:
            raise ConfigError(
                f"candidates is {candidates}, revisions {revisions}; give candidates >= 1, revisions >= 0"
            )
        super().__init__(
            lm, adapter, bare=bare, fixed=("solve_first", "revisions"), solve_first=solve_first, revisions=revisions,
            candidates=candidates, temperature=temperature, max_chars=max_chars,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The proposer that [critic] and models.critic describe."""
        how = config.critic
        return cls(
            critic_lm(config),
            solve_first=how.solve_first,
            revisions=how.revisions,
            candidates=how.candidates,
            temperature=how.temperature or None,
            adapter=how.format,
            bare=config.critic_is_bare,
        )

    def _make_predictors(self) -> None:
        propose, revise = signatures.ProposeIntervention, signatures.ReviseIntervention
        if self.setting("solve_first"):
            self.solve = Predictor(signatures.SolveByReference)
            worked = dspy.InputField(desc="your own solution of the problem")
            propose = propose.insert(2, "worked", worked, str)
        self.propose = Predictor(propose)
        if self.setting("revisions"):
            self.review = Predictor(signatures.ReviewIntervention)
            self.revise = Predictor(revise)

    def forward(
        self,
        problem: Problem | str,
        steps: Steps,
        first_error: int,
        reference: str | None = None,
        answer: str | None = None,
    ) -> dspy.Prediction:
        """Propose for one attempt; raises DataError where `first_error` names no step of it."""
        return self.run(self._planned(problem, steps, first_error, reference, answer))

    async def aforward(
        self,
        problem: Problem | str,
        steps: Steps,
        first_error: int,
        reference: str | None = None,
        answer: str | None = None,
    ) -> dspy.Prediction:
        """`forward` for asyncio."""
        return await self.arun(self._planned(problem, steps, first_error, reference, answer))

    def _planned(self, problem: Any, steps: Steps, first_error: int, reference: Any, answer: str | None) -> Plan:
        if answer is None and isinstance(problem, Problem):
            answer = problem.answer
        return self.plan(problem=problem, steps=steps, first_error=first_error, reference=reference, answer=answer)

    def plan(self, **inputs: Any) -> Plan:
        """See `Asking.plan`."""
        texts, first = as_steps(inputs["steps"]), inputs["first_error"]
        if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first < len(texts):
            raise DataError(f"first_error is {first!r}, but the attempt has steps 0 to {len(texts) - 1}")
        question, reference = question_and_reference(inputs["problem"], inputs["reference"])
        question, reference, texts, warnings = fitted(question, reference, texts, self.setting("max_chars"))
        given = {"problem": question, **({} if reference is None else {"reference": reference})}
        attempt = {"attempt": signatures.numbered(texts), "first_error": first}
        numbers = range(self.setting("candidates"))
        worked: list[dict[str, Any]] = [{} for _ in numbers]
        if self.setting("solve_first"):
            signature = fitting(self.solve.signature, given)
            answers = yield [Ask(self.solve, given, signature, self._config(i)) for i in numbers]
            worked = [{"worked": a.prediction.solution if a.prediction else "(none)"} for a in answers]
            warnings += [f"the solution written first is not used: {a.failure}" for a in answers if a.failure]
        signature = bounded(fitting(self.propose.signature, given), location=first)
        asks = [Ask(self.propose, {**given, **attempt, **worked[i]}, signature, self._config(i)) for i in numbers]
        proposals = yield asks
        if self.setting("revisions") and not inputs["answer"]:
            warnings.append("no answer is given, so no self-check was made")
        outcomes = []
        for number, proposal in enumerate(proposals):
            if proposal.prediction is None:
                outcomes.append((None, None))
                continue
            made = Intervention(proposal.prediction.location, proposal.prediction.content)
            outcomes.append((yield from self._reviewed(made, given, attempt, inputs["answer"], number, warnings)))
        kept = [(made, review) for made, review in outcomes if made is not None]
        if not kept:
            return failed(proposals[0].failure or "", candidates=[], reviews=[], warnings=warnings)
        best = next((made for made, review in kept if not _faults(review)), kept[0][0])
        if all(_faults(review) for _, review in kept):
            warnings.append(f"the self-check still says of the intervention: {', '.join(_faults(kept[0][1]))}")
        return dspy.Prediction(
            intervention=best, candidates=[made for made, _ in kept], reviews=[review for _, review in kept],
            failed_candidates=len(outcomes) - len(kept), failure=None, warnings=warnings,
        )  # fmt: skip

    def _reviewed(
        self,
        made: Intervention,
        given: dict[str, Any],
        attempt: dict[str, Any],
        answer: str | None,
        number: int,
        warnings: list[str],
    ) -> Any:
        """Plans the self-check and its revisions; returns the step as it ends and the last review."""
        review = None
        for left in range(self.setting("revisions"), -1, -1) if self.setting("revisions") and answer else ():
            proposed = {"location": made.location, "content": made.content, "answer": answer}
            signature = fitting(self.review.signature, given)
            (found,) = yield [Ask(self.review, {**given, **attempt, **proposed}, signature, self._config(number))]
            review = found.prediction
            warnings += [f"candidate {number} was not reviewed: {found.failure}"] if found.failure else []
            if not left or not _faults(review):
                break
            signature = bounded(fitting(self.revise.signature, given), location=attempt["first_error"])
            draft = {"draft": made.content, "advice": review.advice or "the self-check failed"}
            (again,) = yield [Ask(self.revise, {**given, **attempt, **draft}, signature, self._config(number))]
            if again.prediction is None:
                warnings.append(f"candidate {number} was not revised: {again.failure}")
                break
            made = Intervention(again.prediction.location, again.prediction.content)
        return made, review

    def _config(self, number: int) -> dict[str, Any]:
        temperature = self.setting("temperature")
        if self.setting("candidates") == 1:
            return {} if temperature is None else {"temperature": temperature}
        return {"temperature": 0.7 if temperature is None else temperature, "rollout_id": number + 1}


def _faults(review: Any) -> list[str]:
    """What a self-check found; nothing where there is none."""
    if review is None:
        return []
    named = {"contains_answer": "it contains the answer", "misses_insight": "an insight is missing",
             "too_late": "it comes too late"}  # fmt: skip
    return [text for field, text in named.items() if getattr(review, field)]
