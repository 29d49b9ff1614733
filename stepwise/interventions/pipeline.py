"""The whole pipeline in one call, in chunks of problems that are done whole or not at all.

A chunk has fixed members and begins with empty caches, since which sequences share a batch changes the last digits of
logits and so, now and then, a token. Its files are written in a directory of another name, which is renamed when all
of them are on disk; one that was not renamed is thrown away and made again. So whatever ends the process, the same
call later gives the same dataset as if nothing had happened, as far as the models themselves repeat their answers
(local ones do; with `concurrency` above 1 the critic's batches depend on timing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config import Config
from stepwise.data.examples import AnswerColumn, Example, QuestionColumn, unique, write_examples
from stepwise.data.problems import Checked, check_problems
from stepwise.errors import BudgetExceededError, DataError
from stepwise.grading import GRADER_VERSION
from stepwise.interventions import stages
from stepwise.interventions.account import STAGES, Account, OnChunk
from stepwise.interventions.caps import Caps, any_cap
from stepwise.interventions.chunks import chunk_folder, seal, sealed_rows
from stepwise.interventions.leaks import LeakVerdict
from stepwise.interventions.rows import Candidate, Failure, GuidedRollout, Located, Rollout, by_id
from stepwise.interventions.settings import CollectSettings, uncapped
from stepwise.interventions.telling import in_words
from stepwise.io import read_rows, write_rows
from stepwise.models.base import Backend
from stepwise.models.store import key_of
from stepwise.runs.progress import progress
from stepwise.types import Problem, to_json

if TYPE_CHECKING:
    from stepwise.runs.directory import RunDirectory

ROWS: dict[str, Any] = {
    "rollouts": Rollout,
    "failures": Failure,
    "located": Located,
    "candidates": Candidate,
    "guided": GuidedRollout,
    "examples": Example,
}
"""The stages by the names of their files, with the type of their rows."""


@dataclass(frozen=True)
class Models:
    """Who writes: the weak model's backend, an ErrorLocalizer and an InterventionProposer with one candidate.

    `forget` empties the caches of local models.
    """

    weak: Backend
    localizer: Any
    proposer: Any
    forget: Callable[[], None] = lambda: None

    @classmethod
    def from_config(cls, config: Config) -> Models:
        """Those that the configuration names; raises what loading them raises."""
        from stepwise.critics import ErrorLocalizer, InterventionProposer
        from stepwise.models import load_backend

        how = config.critic
        warm = how.temperature or (0.7 if how.candidates > 1 else 0.0)  # greedy candidates would all be the same
        one = config.model_copy(update={"critic": how.model_copy(update={"candidates": 1, "temperature": warm})})
        weak = load_backend(config.models.weak, prompt=config.prompt)

        def forget() -> None:
            from stepwise.models.shared import shared_engine

            getattr(weak, "forget", lambda: None)()
            if config.models.critic.local:
                shared_engine(config.models.critic).forget()

        return cls(weak, ErrorLocalizer.from_config(config), InterventionProposer.from_config(one), forget)


def collect(
    problems: Iterable[Problem],
    cfg: Config,
    out: str | Path,
    *,
    settings: CollectSettings | None = None,
    models: Models | None = None,
    licence: str = "other",
    on_chunk: OnChunk | None = None,
) -> Path:
    """Make the dataset of `problems` in the directory `out`; returns its path, the card is beside it.

    Going on after an interruption needs no more than the same call. `out/chunks` has the rows of all stages.
    `licence` is written into the card. `on_chunk` is called with a `Progress` after each chunk, also after
    those that an earlier start has sealed. Raises DataError for problems that cannot be used, and for a directory with
    other problems, settings or configuration or that another process works in; BackendError where a model is gone, and
    OSError where the disk is full; BudgetExceededError where a cap of `budget` would be passed: what was sealed before
    stays. Caps do not make it another run: it goes on when they are raised.
    """
    from stepwise.runs.directory import opened

    settings = settings or CollectSettings()
    checked = check_problems(problems)
    digest = key_of({"problems": [to_json(p) for p in checked.problems], "excluded": sorted(checked.excluded)})
    arguments = {**settings.model_dump(), "problems": digest}
    with opened(out, program="collect", config=uncapped(cfg), arguments=arguments) as directory:
        return collect_in(directory, checked, cfg, settings, models, licence, on_chunk)


def collect_in(
    directory: RunDirectory,
    checked: Checked,
    cfg: Config,
    settings: CollectSettings,
    models: Models | None = None,
    licence: str = "other",
    on_chunk: OnChunk | None = None,
    columns: tuple[QuestionColumn, AnswerColumn] = ("question", "answer"),
) -> Path:
    """`collect` in a directory that is open already, as a program's is; `columns` are names in the dataset.

    Where a cap of `budget` is reached, the dataset of what is sealed is written, and BudgetExceededError raised.

    The problems are written to problems.jsonl; DataError where the run began with others.

    Without `on_chunk` it shows a progress bar of its own; with it, showing how far it is is left to the caller.
    """
    _remember(directory, checked.problems)
    try:
        _chunks(checked.problems, cfg, settings, models, directory, on_chunk)
    except BudgetExceededError:
        _dataset(checked, cfg, settings, directory, licence, columns)
        raise
    return _dataset(checked, cfg, settings, directory, licence, columns)


def work(
    problems: Sequence[Problem], config: Config, settings: CollectSettings, models: Models
) -> dict[str, Sequence[Any]]:
    """The rows of every stage for some problems, from empty caches; nothing is written."""
    models.forget()
    known = by_id(problems)
    rollouts = stages.grade_rollouts(stages.sample_rollouts(problems, models.weak, config, settings), known)
    failures = stages.keep_failures(rollouts, settings.attempts)
    attempts = by_id(failures)
    located = stages.locate_errors(failures, known, models.localizer, config, settings)
    proposed = stages.propose_candidates(located, attempts, known, models.proposer, config, settings)
    candidates = stages.check_candidates(proposed, attempts, known)
    if settings.check_sums:
        candidates = stages.check_sums(candidates)
    kept = stages.survivors(candidates)
    guided = stages.guide(kept, attempts, known, models.weak, config, settings)
    examples = stages.select(kept, guided, known, attempts, config, settings)
    return dict(zip(ROWS, (rollouts, failures, located, candidates, guided, examples), strict=True))


def read_stage(out: str | Path, stage: str) -> list[Any]:
    """All rows of one stage (a name of `ROWS`) in the sealed chunks of `out`, in order."""
    if stage not in ROWS:
        raise DataError(f"stage {stage!r} is none of {', '.join(ROWS)}")
    return sealed_rows(out, stage, ROWS[stage])


def funnel(out: str | Path) -> dict[str, int]:
    """How many rows reached each stage, of the sealed chunks of `out`."""
    rollouts, located, candidates = (read_stage(out, name) for name in ("rollouts", "located", "candidates"))
    guided, examples = read_stage(out, "guided"), unique(read_stage(out, "examples"))
    leaks = Counter(row.leak for row in candidates)
    return {
        "rollouts": len(rollouts),
        "rollouts without a text": sum(row.finish == "error" for row in rollouts),
        "failed attempts": len(read_stage(out, "failures")),
        "errors located": sum(row.first_error is not None for row in located),
        "attempts that the critic finds right": sum(row.first_error is None and not row.failed for row in located),
        "localizations that failed": sum(bool(row.failed) for row in located),
        "candidates": len(candidates),
        "proposals that failed": sum(bool(row.failed) for row in candidates),
        "candidates that leak": leaks[LeakVerdict.LEAK],
        "answer steps left out": leaks[LeakVerdict.ANSWER_STEP],
        "candidates with a false equation": sum(
            row.leak is LeakVerdict.CLEAN and bool(row.unsound) for row in candidates
        ),
        "candidates guided": len({row.candidate for row in guided}),
        "guided rollouts": len(guided),
        "guided rollouts that end right": sum(row.verdict == "CORRECT" for row in guided),
        "examples": len(examples),
    }


def _remember(own: RunDirectory, problems: Sequence[Problem]) -> None:
    """Write the problems down, or compare them with those that the run began with: a file may have been changed."""
    path = own.claim("problems.jsonl")
    if not path.exists():
        write_rows(path, problems)
    elif read_rows(path, Problem) != list(problems):
        raise DataError(f"{path}: the run began with other problems; give another --out, or --overwrite to begin anew")


def _chunks(
    problems: Sequence[Problem],
    config: Config,
    settings: CollectSettings,
    models: Models | None,
    own: RunDirectory,
    on_chunk: OnChunk | None,
) -> None:
    folder = chunk_folder(own)
    account, caps, asked = Account(config, len(problems)), _caps(config, own, folder.parent), None
    with ExitStack() as stack:
        advance = stack.enter_context(progress("collecting", len(problems))) if on_chunk is None else None
        for first in range(0, len(problems), settings.chunk):
            members = problems[first : first + settings.chunk]
            sealed = folder / f"{first // settings.chunk:05d}"
            for name in ROWS:  # a chunk is the run's own before it is there, so that --overwrite finds it
                own.claim(f"chunks/{sealed.name}/{name}.jsonl", folder=False)
            before = sealed.exists()
            if before:
                rows = _rows(sealed)
            else:
                if caps is not None:
                    caps.check(first, len(members))
                if models is None:
                    models = Models.from_config(config)
                    stack.callback(models.weak.close)
                asked = asked or (caps.capped(models) if caps is not None else models)
                rows = work(members, config, settings, asked)
                seal(sealed, rows)
            now = account.add(rows, len(members), before=before)
            if on_chunk is not None:
                on_chunk(now)
            if advance is not None:
                advance(len(members), in_words(now))


def _caps(config: Config, own: RunDirectory, out: Path) -> Caps | None:
    """The caps of the run; None where there are none, so that nothing is written for them.

    What chunks have cost that were sealed when there were none is counted now.
    """
    if not any_cap(config):
        return None
    caps, account = Caps(config, own.claim("spent.jsonl")), Account(uncapped(config), 0)
    account.add({name: read_stage(out, name) for name in ROWS}, 0, before=True)
    caps.catch_up(account.ledger)
    return caps


def _rows(sealed: Path) -> dict[str, Sequence[Any]]:
    return {name: read_rows(sealed / f"{name}.jsonl", kind) for name, kind in ROWS.items()}


def _dataset(
    checked: Checked,
    config: Config,
    settings: CollectSettings,
    own: RunDirectory,
    licence: str,
    columns: tuple[QuestionColumn, AnswerColumn],
) -> Path:
    out = own.path
    examples = unique(read_stage(out, "examples"))
    writers = {name: read_stage(out, name) for name in STAGES}
    card = {
        "funnel": funnel(out),
        "problems": {
            "used": len(checked.problems),
            "left out": checked.excluded,
            "without a reference solution": len(checked.without_reference),
        },
        "models": {name: sorted({row.made.model for row in rows}) for name, rows in writers.items()},
        "generated tokens": {name: stages.spent(rows).generated_tokens for name, rows in writers.items()},
        "settings": {
            **settings.model_dump(),
            "drop_after": settings.drop_after,
            "configuration": uncapped(config).hash,
            "prompt": config.prompt.hash,
            "sampling": config.sampling.model_dump(),
            "critic": config.critic.model_dump(),
            "seed": config.seed,
            "grader": GRADER_VERSION,
        },
    }
    path = own.claim("dataset.jsonl")
    own.claim("dataset.md")
    question, answer = columns
    return write_examples(path, examples, card=card, licence=licence, question=question, answer=answer)
