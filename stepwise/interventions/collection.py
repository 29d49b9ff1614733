"""The whole pipeline in one call: problems in, a dataset with its card and the rows of all stages out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stepwise.config import Config
from stepwise.data.examples import unique
from stepwise.data.problems import CheckedProblems, check_problems
from stepwise.errors import ConfigError, DataError
from stepwise.interventions.acceptance import PrefixRates
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.interventions.chunks import working, write_sealed
from stepwise.interventions.pipeline import Chunk, run_stages
from stepwise.interventions.rows import ROWS, WRITTEN, Candidate, by_id, spent
from stepwise.interventions.settings import CollectSettings, Writers
from stepwise.io import read_rows, write_rows
from stepwise.models.budget import Ledger
from stepwise.models.store import key_of
from stepwise.records import to_json
from stepwise.runs.chunks import run_chunks, sealed_rows
from stepwise.runs.directory import RunDirectory
from stepwise.types import Problem


def collect(
    problems: Any,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    settings: CollectSettings | Mapping[str, Any] | None = None,
    writers: Writers | None = None,
    licence: str = "other",
) -> Path:
    """Make the dataset of `problems` in the directory `out`; returns its path, the card is beside it.

    Going on after an interruption needs no more than the same call. `out/chunks` has the rows of all stages, and
    `out/problems.jsonl` the problems, which are whatever `load_problems` takes. `licence` is written into the card.

    Raises DataError for problems that cannot be used, and for a directory with other problems, settings or
    configuration or that another process works in; BackendError where a model is gone, and OSError where the disk is
    full; BudgetExceededError where a cap of `budget` would be passed: what was sealed before stays, and has become a
    dataset. Caps do not make it another run: it goes on when they are raised.

    Example:
        config = sw.Config.lab()
        problems = [lab.problem for lab in sw.lab.generate("train", 20)]
        path = collect(problems, config, "out/int", settings=CollectSettings(rollouts=4, guided=8))
        examples = read_examples(path)  # stepwise.data.examples
    """
    cfg, began = Config.of(cfg, "cfg"), time.monotonic()
    settings = CollectSettings.of(settings, "settings")
    checked = problems if isinstance(problems, CheckedProblems) else check_problems(problems)
    digest = key_of({"problems": [to_json(p) for p in checked.problems], "excluded": sorted(checked.excluded)})
    arguments = {**settings.model_dump(), "problems": digest}
    if settings.accept == "test" and cfg.workers.backend != "process":
        raise ConfigError(
            f'workers.backend = "{cfg.workers.backend}": the test of a step counts the attempts of all chunks '
            'before its own, so that they are done in order; set accept to "success", or workers.backend to "process"'
        )
    (writers or Writers(cfg)).refuse_lab()
    with working(out, "collect", cfg, arguments, writers) as (directory, crew):
        _remember(directory, checked.problems)
        account, rates = _Account(crew.ledger), PrefixRates()
        work = partial(_stages, cfg, settings, rates)

        def sealed(folder: Path, members: int, before: bool) -> str:
            rows = {name: read_rows(folder / f"{name}.jsonl", kind) for name, kind in ROWS.items()}
            account.add(rows, members, before=before)
            if before:  # `run_stages` adds its own
                rates.add(rows["rollouts"], rows["failures"], rows["located"])
            return account.note(time.monotonic() - began)

        def finish() -> Path:
            return _write(directory, checked, cfg, settings, licence)

        return run_chunks(
            directory, checked.problems, settings.chunk, list(ROWS), work, finish, crew=crew,
            label="collecting", on_sealed=sealed,
        )  # fmt: skip


def _stages(
    cfg: Config, settings: CollectSettings, rates: PrefixRates, models: Writers, members: Sequence[Problem]
) -> dict[str, Sequence[Any]]:
    """The rows of a chunk; on workers elsewhere `rates` is empty, and not looked at."""
    models.reset_caches("weak", "localizer", "proposer")
    return run_stages(Chunk(by_id(members), models, cfg, settings, rates=rates))


def read_stage(out: str | Path, stage: str) -> list[Any]:
    """All rows of one stage (a name of `ROWS`) in the sealed chunks of `out`, in order.

    Example:
        wrong = [row for row in read_stage("out/int", "rollouts") if row.verdict == "WRONG"]
    """
    if stage not in ROWS:
        raise DataError(f"stage {stage!r} is none of {', '.join(ROWS)}")
    return sealed_rows(out, stage, ROWS[stage])


def funnel(out: str | Path) -> dict[str, int]:
    """How many rows reached each stage, of the sealed chunks of `out`. What became of the rows of a stage does not
    overlap: a candidate is counted at the first check that it failed, a guided rollout is fresh or not.

    Example:
        funnel("out/int")["examples"]
    """
    rows = {name: read_stage(out, name) for name in ROWS}
    rollouts, located, candidates, _ = (rows[name] for name in WRITTEN)
    tried, examples = {row.candidate for row in rows["guided"]}, unique(rows["examples"])
    fates = Counter(_fate(row, tried) for row in candidates)
    fresh = [row for row in rows["guided"] if row.phase == "fresh"]
    guided = [row for row in rows["guided"] if row.phase != "fresh"]
    return {
        "rollouts": len(rollouts),
        "rollouts without a text": sum(row.finish == "error" or not row.text.strip() for row in rollouts),
        "failed attempts": len(rows["failures"]),
        "errors located": sum(row.first_error is not None for row in located),
        "attempts that the critic finds right": sum(row.first_error is None and not row.failed for row in located),
        "localizations that failed": sum(bool(row.failed) for row in located),
        "candidates": len(candidates),
        **{name: fates[name] for name in _FATES},
        "guided rollouts": len(guided),
        "guided rollouts that end right": sum(row.verdict == "CORRECT" for row in guided),
        "guided rollouts with an invented output": sum(bool(row.error) and row.finish != "error" for row in guided),
        "fresh rollouts": len(fresh),
        "fresh rollouts that end right": sum(row.verdict == "CORRECT" for row in fresh),
        "examples": len(examples),
        "examples with no right fresh rollout": sum(bool(fresh) and not row.successes for row in examples),
    }


_FATES = (
    "proposals that failed", "candidates that leak", "answer steps left out", "candidates in no solver's form",
    "candidates with a false equation", "candidates proposed twice, or not guided", "candidates guided",
)  # fmt: skip


def _fate(row: Candidate, guided: Collection[str]) -> str:
    """At which check a candidate stopped: one of `_FATES`."""
    leak = row.leak
    stops = (bool(row.failed), leak is LeakVerdict.LEAK, leak is LeakVerdict.ANSWER_STEP, bool(row.form),
             bool(row.unsound), row.id not in guided, True)  # fmt: skip
    return _FATES[stops.index(True)]


def unsound(candidates: Iterable[Any]) -> int:
    """How many candidates give nothing away and state a false equation.

    >>> from stepwise.interventions.rows import Candidate, Made
    >>> row = Candidate("c", "p", "p/r0", 1, "So 10 / 2 = 30.", Made("critic", "", "", 0), leak=LeakVerdict.CLEAN,
    ...                 unsound="10 / 2 = 30")
    >>> unsound([row])
    1
    """
    return sum(row.leak is LeakVerdict.CLEAN and bool(row.unsound) for row in candidates)


class _Account:
    """Adds up the rows of sealed chunks; `ledger` has what all starts have spent."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self._counts = ledger, Counter[str]()
        self._tokens_before = ledger.usage().generated_tokens

    def add(self, rows: Mapping[str, Sequence[Any]], num_problems: int, *, before: bool = False) -> None:
        """Count a chunk of so many problems; `before`: an earlier start sealed it."""
        guided = [row.verdict for row in rows["guided"] if row.phase != "fresh"]
        self._counts.update(examples=len(rows["examples"]), guided=len(guided), right=guided.count("CORRECT"))
        self._counts["problems"] += num_problems
        self._counts["problems before"] += num_problems if before else 0

    def note(self, seconds: float) -> str:
        """One line for the progress bar: "examples 41, guided 12% right, 310k tokens, 0.42 of 5.00 spent".

        The rate is of what was done in the `seconds` since this start.
        """
        counts, total, left = self._counts, self.ledger.usage(), self.ledger.remaining()
        parts = [f"examples {counts['examples']:,}"]
        if counts["guided"]:
            parts.append(f"guided {counts['right'] / counts['guided']:.0%} right")
        tokens, more = total.generated_tokens, left["total_tokens"]
        parts.append(f"{_short(tokens)}{'' if more is None else f' of {_short(tokens + more)}'} tokens")
        if total.cost is None:
            parts.append("no price known")
        elif total.cost or left["money"] is not None:
            cap = "" if left["money"] is None else f" of {total.cost + left['money']:.2f}"
            parts.append(f"{total.cost:.2f}{cap} spent")
        done = counts["problems"] - counts["problems before"]
        if done and seconds > 0:
            parts.append(f"{_short((tokens - self._tokens_before) / seconds)} tokens/s")
        return ", ".join(parts)


def _short(count: float) -> str:
    """A count in few characters: 950, 31k, 2.4M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.{int(count < 10 * unit)}f}{name}"
    return f"{count:.0f}"


def _remember(directory: RunDirectory, problems: Sequence[Problem]) -> None:
    """Write the problems down, or compare them with those that the run began with: a file may have been changed."""
    path = directory.claim("problems.jsonl", is_input=True)
    if not path.exists():
        write_rows(path, problems)
    elif read_rows(path, Problem) != list(problems):
        raise DataError(f"{path}: the run began with other problems; give another --out, or --overwrite to begin anew")


def _write(
    directory: RunDirectory, checked: CheckedProblems, config: Config, settings: CollectSettings, licence: str
) -> Path:
    """The dataset of what is sealed, and its card."""
    rows = {name: read_stage(directory.path, name) for name in WRITTEN}
    card = {
        "funnel": funnel(directory.path),
        "problems": {
            "used": len(checked.problems),
            "left out": checked.excluded,
            "without a reference solution": len(checked.without_reference),
        },
        "models": {name: sorted({row.made.model for row in found}) for name, found in rows.items()},
        "generated tokens": {name: spent(found).generated_tokens for name, found in rows.items()},
    }
    shown = {**settings.model_dump(), "drop_after": settings.drop_after, "critic": config.critic.model_dump()}
    return write_sealed(directory, config, card, shown, licence=licence)
