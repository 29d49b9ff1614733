"""Scorers that need a model, each asked for one labelled solution at a time; what they say is kept row by row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from stepwise.config import Config, LoadConfig, ScorerConfig, is_lab
from stepwise.data.step_labels import LabelledSolution
from stepwise.models import load_backend
from stepwise.models.base import Request
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.scorers import Scored, Scorer, load_scorer, score_items
from stepwise.models.scorers.judge import JudgeScorer, Message
from stepwise.models.shared import load_engine
from stepwise.models.store import key_of
from stepwise.records import record
from stepwise.routing import Agreement, View
from stepwise.runs.progress import progress
from stepwise.runs.shell import Run
from stepwise.seeds import stable_hash
from stepwise.types import Step, Usage, as_problem

ROWS = "rows.jsonl"
P_YES = "judge, P(yes)"
ANSWER_TOKENS = 16  # of a number in words
Ask = Callable[[LabelledSolution], Scored]
Load = Callable[[ExitStack], Ask]
"""Loads a scorer within a stack that closes it."""


@record()
class Row:
    """What `scorer` said of the steps of a solution up to its first error, and what that cost."""

    scorer: str
    key: str
    scores: tuple[float, ...]
    usage: Usage
    seconds: float
    error: str = ""


class Settings(NamedTuple):
    """Of the arms that have some."""

    samples: int = 3
    template: str = "thinkprm"
    votes: int = 1
    critique_tokens: int = 128


def arms_of(config: Config, weak: bool, scorers: Sequence[str], settings: Settings) -> dict[str, Load]:
    """By name, the cheapest first: `scorers` as [scorer] takes them, and, where there is a `weak` model, what it says
    as a judge (a lab model answers no questions), draws and writes.
    """
    arms: dict[str, Load] = {spec: partial(_loaded, spec, config) for spec in scorers}
    if not weak:
        return arms
    model, agreement = config.models.weak, {f"agreement of {settings.samples}": partial(_agreement, config, settings)}
    if is_lab(model.model):
        return arms | agreement
    fields: dict[str, Any] = {name: getattr(model, name) for name in LoadConfig.model_fields}
    critic = {"kind": "generative", **settings._asdict()}
    del critic["samples"]

    def load(more: dict[str, Any]) -> Load:
        return partial(_loaded, ScorerConfig(**fields, **more), config)

    return {
        **arms,
        P_YES: load({"kind": "judge"}),
        "judge, a number in words": partial(_in_words, config),
        **agreement,
        f"generative, {settings.template}": load(critic),
    }


def asked(
    run: Run[Any], arms: Mapping[str, Load], solutions: Sequence[LabelledSolution]
) -> dict[str, dict[LabelledSolution, Row]]:
    """By scorer and solution what was said, by this start and earlier ones."""
    keys = {s: key_of({"question": s.question, "steps": s.steps[: s.judged.stop]}) for s in solutions}
    known = {(row.scorer, row.key): row for row in run.rows(ROWS, Row)}
    for name, load in arms.items():
        todo = [s for s in solutions if (name, keys[s]) not in known]
        if not todo:
            continue
        with ExitStack() as stack, progress(name, len(solutions), done=len(solutions) - len(todo)) as advance:
            ask = load(stack)
            for s in todo:
                began = time.process_time()
                said = ask(s)
                row = Row(name, keys[s], tuple(said.scores), said.usage, time.process_time() - began, said.error)
                run.write(ROWS, row)
                known[name, keys[s]] = row
                advance(1)
    return {name: {s: known[name, keys[s]] for s in solutions} for name in arms}


def _loaded(spec: Any, config: Config, stack: ExitStack) -> Ask:
    return _of_scorer(load_scorer(spec, prompt=config.prompt), stack)


def _of_scorer(scorer: Scorer, stack: ExitStack) -> Ask:
    stack.callback(scorer.close)
    return lambda s: score_items(scorer, [(s.question, s.steps[: s.judged.stop])])[0]


def _in_words(config: Config, stack: ExitStack) -> Ask:
    """The judge as it is asked behind an API, on the engine."""
    engine = stack.enter_context(load_engine(config.models.weak))
    return _of_scorer(JudgeScorer(partial(_answer, engine), engine.name, requests=1), stack)


def _answer(engine: Engine, chat: list[Message]) -> tuple[str, Usage]:
    ids = engine.chat_ids(chat, enable_thinking=False)
    (made,) = engine.generate([GenerationJob(tuple(ids), ANSWER_TOKENS, temperature=0.0)])
    return made.text, Usage(engine.name, 1, len(ids), made.evaluated_tokens, len(made.ids))


def _agreement(config: Config, settings: Settings, stack: ExitStack) -> Ask:
    """Share of other drafts of each step by the weak model that come to its result."""
    samples, sampling = settings.samples, config.sampling
    signal = Agreement(samples)
    weak: Any = load_backend(config.models.weak, prompt=config.prompt)
    stack.callback(weak.close)

    def ask(s: LabelledSolution) -> Scored:
        problem, steps = as_problem(s.question), tuple(Step(text, "given") for text in s.steps[: s.judged.stop])
        requests = [
            Request(problem, steps[:i], max_tokens=sampling.max_step_tokens, n=samples, top_p=sampling.top_p,
                    top_k=sampling.top_k, temperature=sampling.temperature, seed=stable_hash(problem.id, i) % 2**31)
            for i in range(len(steps))
        ]  # fmt: skip
        made = weak.continue_solutions(requests)
        others = [tuple(Step(each.text, "weak") for each in made if each.request == i) for i in range(len(steps))]
        views = (View(problem, steps[:i], step, resamples=others[i]) for i, step in enumerate(steps))
        scores = [signal.value(view) or 0.0 for view in views]
        return Scored(scores, sum((each.usage for each in made), Usage()))

    return ask
