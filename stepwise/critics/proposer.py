"""Proposing a step in place of the first error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import dspy

from stepwise import critics
from stepwise.config import Config
from stepwise.critics import signatures
from stepwise.critics.form import form_fault
from stepwise.critics.formats import Format
from stepwise.critics.inputs import Steps, as_steps, question_and_reference
from stepwise.critics.module import CriticModule, critic_lm
from stepwise.critics.reference import NO_REFERENCE, next_step
from stepwise.critics.results import caught, failed
from stepwise.errors import ConfigError, DataError
from stepwise.plugins import check_choice
from stepwise.types import Intervention, Problem


class InterventionProposer(CriticModule):
    """Writes a step to put in place of an attempt's first error (InT, arXiv 2601.14209, the method's section).

        InterventionProposer("llamacpp/lab-critic")(problem=problem, steps=["2 + 2 = 5."], first_error=0).intervention

    The defaults are those of [critic], for small models; InT's own form is `solve_first=True, revisions=1`. With
    `solve_first` the model solves the problem by the reference before it proposes, and sees its solution. `revisions`
    is how often a proposal that fails the three-question self-check is rewritten; the check needs `answer` (or a
    Problem with one). `candidates` are drawn at `temperature`, each with its own solution and checks.

    The prediction has `intervention` (the first candidate that is a step in form, see `form_fault`, and whose last
    self-check found nothing, else the first, with a warning), `candidates`, `reviews` (for each candidate, the last
    self-check or None), and `failure`. A location past the first error cannot be proposed: it is asked for again.

    With `source="reference"` no model is asked: the reference's next step is the proposal, never its last one.
    """

    def __init__(
        self,
        lm: Any = None,
        *,
        solve_first: bool = False,
        revisions: int = 0,
        candidates: int = 1,
        source: Literal["model", "reference"] = "model",
        temperature: float | None = None,
        adapter: Format | Any | None = None,
        bare: bool | None = None,
        max_chars: int = 40_000,
        callbacks: Sequence[Any] = (),
    ) -> None:
        if candidates < 1 or revisions < 0:
            raise ConfigError(
                f"candidates is {candidates}, revisions {revisions}; give candidates >= 1, revisions >= 0"
            )
        check_choice("source", source, ("model", critics.REFERENCE))
        worked = dspy.InputField(desc="your own solution of the problem")
        solve = {"solve": signatures.SolveByReference} if solve_first else {}
        propose = signatures.ProposeIntervention
        check = {"review": signatures.ReviewIntervention, "revise": signatures.ReviseIntervention} if revisions else {}
        predictors = {**solve, "propose": propose.insert(2, "worked", worked, str) if solve_first else propose, **check}
        super().__init__(
            predictors if source == "model" else {}, lm, adapter, ("solve_first", "revisions"), bare=bare,
            solve_first=solve_first, revisions=revisions, candidates=candidates, source=source,
            temperature=temperature, max_chars=max_chars, callbacks=callbacks,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: Config | str | Path) -> Self:
        """The proposer that [critic] and models.critic describe."""
        config = Config.of(config, "config")
        settings = config.critic
        if settings.method == critics.REFERENCE:
            return cls(source="reference")
        return cls(
            critic_lm(config),
            solve_first=settings.solve_first,
            revisions=settings.revisions,
            candidates=settings.candidates,
            temperature=settings.temperature or None,
            adapter=settings.format,
            bare=config.critic_is_bare,
        )

    async def run(
        self,
        problem: Problem | str,
        steps: Steps,
        first_error: int,
        reference: str | None = None,
        answer: str | None = None,
    ) -> dspy.Prediction:
        """Propose for one attempt; raises DataError where `first_error` names no step of it."""
        last = len(as_steps(steps)) - 1
        if not isinstance(first_error, int) or isinstance(first_error, bool) or not 0 <= first_error <= last:
            raise DataError(f"first_error is {first_error!r}, but the attempt has steps 0 to {last}")
        if answer is None and isinstance(problem, Problem):
            answer = problem.answer
        if self.setting("source") == critics.REFERENCE:
            return _of_reference(*question_and_reference(problem, reference), as_steps(steps)[:first_error])
        given, texts = self.prepared(problem, steps, reference)
        attempt = {**given, "attempt": signatures.numbered(texts), "first_error": first_error}
        numbers, warnings = range(self.setting("candidates")), list[str]()
        worked: list[dict[str, str]] = [{} for _ in numbers]
        if self.setting("solve_first"):
            solved = await asyncio.gather(*(self._stage(self.solve, given, number) for number in numbers))
            worked = [{"worked": "(none)" if isinstance(each, Exception) else each.solution} for each in solved]
            warnings += [f"the solution written first is not used: {e}" for e in solved if isinstance(e, Exception)]
        proposals = await asyncio.gather(
            *(self._stage(self.propose, {**attempt, **worked[number]}, number) for number in numbers)
        )
        if self.setting("revisions") and not answer:
            warnings.append("no answer is given, so no self-check was made")
        kept = [
            await self._reviewed(Intervention(each.location, each.content), attempt, answer, number, warnings)
            for number, each in enumerate(proposals)
            if not isinstance(each, Exception)
        ]
        if not kept:
            return failed(str(proposals[0]), warnings=warnings)
        read = as_steps(steps)
        forms = [
            form_fault(step.content, problem=given["problem"], prefix=read[: step.location], wrong=read[step.location])
            for step, _ in kept
        ]
        in_form = [pair for pair, fault in zip(kept, forms, strict=True) if not fault] or kept
        best = next((step for step, review in in_form if not _faults(review)), in_form[0][0])
        if all(forms):
            warnings.append(f"the intervention is not one step of a solution: {forms[0]}")
        if all(_faults(review) for _, review in kept):
            warnings.append(f"the self-check still says of the intervention: {', '.join(_faults(kept[0][1]))}")
        return dspy.Prediction(
            intervention=best, candidates=[step for step, _ in kept], reviews=[review for _, review in kept],
            failed_candidates=len(proposals) - len(kept), failure=None, warnings=warnings,
        )  # fmt: skip

    async def _reviewed(
        self, step: Intervention, attempt: dict[str, Any], answer: str | None, number: int, warnings: list[str]
    ) -> tuple[Intervention, Any]:
        """Candidate `number` after its self-checks and revisions, and the last self-check."""
        review: Any = None
        for left in range(self.setting("revisions"), -1, -1) if self.setting("revisions") and answer else ():
            proposed = {"location": step.location, "content": step.content, "answer": answer}
            review = await self._stage(self.review, {**attempt, **proposed}, number)
            if isinstance(review, Exception):
                warnings.append(f"candidate {number} was not reviewed: {review}")
                return step, None
            if not left or not _faults(review):
                break
            draft = {"draft": step.content, "advice": review.advice or "the self-check failed"}
            again = await self._stage(self.revise, {**attempt, **draft}, number)
            if isinstance(again, Exception):
                warnings.append(f"candidate {number} was not revised: {again}")
                break
            step = Intervention(again.location, again.content)
        return step, review

    async def _stage(self, predictor: Any, inputs: dict[str, Any], number: int) -> Any:
        """What `predictor` says for candidate `number`, no location past the first error, or why it cannot be read."""
        signature = signatures.fitting(predictor.signature, inputs)
        if "location" in signature.output_fields:
            signature = signatures.bounded(signature, self.first_number, location=inputs["first_error"])
        config = self.sampling(None if self.setting("candidates") == 1 else number, 0.7)
        return await caught(self.call(predictor, inputs, signature, config))


def _of_reference(question: str, reference: str | None, prefix: list[str]) -> dspy.Prediction:
    """The reference's next step as the proposal."""
    if reference is None:
        return failed(NO_REFERENCE)
    content = next_step(reference, question, prefix)
    if content is None:
        return failed("the reference has no next step but its last one, which states the answer")
    step = Intervention(len(prefix), content)
    return dspy.Prediction(
        intervention=step, candidates=[step], reviews=[None], failed_candidates=0, failure=None, warnings=[]
    )


def _faults(review: Any) -> list[str]:
    """What a self-check found; nothing where there is none."""
    if review is None:
        return []
    named = {"contains_answer": "it contains the answer", "misses_insight": "an insight is missing",
             "too_late": "it comes too late"}  # fmt: skip
    return [text for field, text in named.items() if getattr(review, field)]
