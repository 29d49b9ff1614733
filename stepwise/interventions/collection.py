"""The whole pipeline in one call: problems in, a dataset with its card and the rows of all stages out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise.config import Config
from stepwise.data.examples import unique
from stepwise.data.problems import Checked, check_problems
from stepwise.errors import DataError
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.interventions.chunks import Caps, run_chunks, sealed_rows, wrapped, write_sealed
from stepwise.interventions.pipeline import Chunk, run_stages
from stepwise.interventions.rows import ROWS, WRITTEN, by_id, spent
from stepwise.interventions.settings import CollectSettings, Writers, in_use, uncapped
from stepwise.io import read_rows, write_rows
from stepwise.models.budget import Ledger
from stepwise.models.store import key_of
from stepwise.runs.directory import RunDirectory, opened
from stepwise.types import Problem, to_json


def collect(
    problems: Iterable[Problem] | Checked,
    cfg: Config,
    out: str | Path | RunDirectory,
    *,
    settings: CollectSettings | None = None,
    writers: Writers | None = None,
    licence: str = "other",
    on_chunk: Callable[[Progress], None] | None = None,
) -> Path:
    """Make the dataset of `problems` in the directory `out`; returns its path, the card is beside it.

    Going on after an interruption needs no more than the same call. `out/chunks` has the rows of all stages, and
    `out/problems.jsonl` the problems. `licence` is written into the card.
    `on_chunk` is called with a `Progress` after each chunk, also after those that an earlier start has sealed; without
    it a progress bar is shown. Raises DataError for problems that cannot be used, and for a directory with other
    problems, settings or configuration or that another process works in; BackendError where a model is gone, and
    OSError where the disk is full; BudgetExceededError where a cap of `budget` would be passed: what was sealed before
    stays, and has become a dataset. Caps do not make it another run: it goes on when they are raised.
    """
    settings = settings or CollectSettings()
    checked = problems if isinstance(problems, Checked) else check_problems(problems)
    digest = key_of({"problems": [to_json(p) for p in checked.problems], "excluded": sorted(checked.excluded)})
    arguments = {**settings.model_dump(), "problems": digest}
    with (
        opened(out, program="collect", config=uncapped(cfg), arguments=arguments) as directory,
        in_use(writers, cfg) as own,
        ExitStack() as stack,
    ):
        _remember(directory, checked.problems)
        account, caps = _Account(cfg, len(checked.problems)), Caps.of(cfg, directory)
        if caps is not None:  # what chunks have cost that were sealed when there were no caps counts too
            caps.catch_up(sealed_cost(directory.path, cfg))
        asked = stack.enter_context(wrapped(own, directory, cfg, caps))

        def work(members: Sequence[Problem]) -> dict[str, Sequence[Any]]:
            own.reset_caches("weak", "localizer", "proposer")
            return run_stages(Chunk(by_id(members), asked, cfg, settings))

        def sealed(folder: Path, members: int, before: bool) -> str:
            rows = {name: read_rows(folder / f"{name}.jsonl", kind) for name, kind in ROWS.items()}
            now = account.add(rows, members, before=before)
            if on_chunk is not None:
                on_chunk(now)
            return _in_words(now)

        def finish() -> Path:
            return _write(directory, checked, cfg, settings, licence)

        return run_chunks(
            directory, checked.problems, settings.chunk, list(ROWS), work, finish, caps=caps,
            label=None if on_chunk else "collecting", on_sealed=sealed,
        )  # fmt: skip


def read_stage(out: str | Path, stage: str) -> list[Any]:
    """All rows of one stage (a name of `ROWS`) in the sealed chunks of `out`, in order."""
    if stage not in ROWS:
        raise DataError(f"stage {stage!r} is none of {', '.join(ROWS)}")
    return sealed_rows(out, stage, ROWS[stage])


def funnel(out: str | Path) -> dict[str, int]:
    """How many rows reached each stage, of the sealed chunks of `out`."""
    rows = {name: read_stage(out, name) for name in ROWS}
    rollouts, located, candidates, guided = (rows[name] for name in WRITTEN)
    leaks = Counter(row.leak for row in candidates)
    return {
        "rollouts": len(rollouts),
        "rollouts without a text": sum(row.finish == "error" for row in rollouts),
        "failed attempts": len(rows["failures"]),
        "errors located": sum(row.first_error is not None for row in located),
        "attempts that the critic finds right": sum(row.first_error is None and not row.failed for row in located),
        "localizations that failed": sum(bool(row.failed) for row in located),
        "candidates": len(candidates),
        "proposals that failed": sum(bool(row.failed) for row in candidates),
        "candidates that leak": leaks[LeakVerdict.LEAK],
        "answer steps left out": leaks[LeakVerdict.ANSWER_STEP],
        "candidates with a false equation": unsound(candidates),
        "candidates guided": len({row.candidate for row in guided}),
        "guided rollouts": len(guided),
        "guided rollouts that end right": sum(row.verdict == "CORRECT" for row in guided),
        "examples": len(unique(rows["examples"])),
    }


def unsound(candidates: Iterable[Any]) -> int:
    """How many candidates give nothing away and state a false equation."""
    return sum(row.leak is LeakVerdict.CLEAN and bool(row.unsound) for row in candidates)


def sealed_cost(out: str | Path, config: Config) -> Ledger:
    """What the rows in the sealed chunks of `out` have cost."""
    account = _Account(config, 0)
    account.add({name: read_stage(out, name) for name in ROWS}, 0, before=True)
    return account.ledger


@dataclass(frozen=True)
class Progress:
    """How far a collection is, after a chunk; counts are of all chunks so far, those of earlier starts included.

    `examples` may count twice what two chunks have in common. `generated` has tokens by role ("weak", "critic", and
    "scorer" where it finds the errors). `money` is in the unit of the prices, None where a price is not known. `left`
    has what is left of each cap of `budget` that is set. `seconds` are of this start, which did all but
    `problems_before` problems and wrote all but `generated_before` tokens.
    """

    problems: int = 0
    problems_in_all: int = 0
    rollouts: int = 0
    failures: int = 0
    examples: int = 0
    guided: int = 0
    successes: int = 0
    generated: Mapping[str, int] | None = None
    money: float | None = None
    left: Mapping[str, float] | None = None
    seconds: float = 0.0
    problems_before: int = 0
    generated_before: int = 0


class _Account:
    """Adds up the rows of chunks and what they cost, under the caps and prices of a configuration."""

    def __init__(self, config: Config, problems: int) -> None:
        locates = "scorer" if config.critic.method == "scorer" else "critic"
        self._roles = {"rollouts": "weak", "located": locates, "candidates": "critic", "guided": "weak"}
        models = {"weak": config.models.weak, "critic": config.models.critic, "scorer": config.scorer}
        prices = {role: models[role].prices for role in dict.fromkeys(self._roles.values())}
        self.ledger = Ledger(config.budget, prices)
        self._counts: Counter[str] = Counter(problems_in_all=problems)
        self._began = time.monotonic()

    def add(self, rows: Mapping[str, Sequence[Any]], problems: int, *, before: bool) -> Progress:
        """Count a chunk of so many problems; `before`: an earlier start made it."""
        for stage, role in self._roles.items():
            self.ledger.record(role, spent(rows[stage]))
        self._counts.update({stage: len(rows[stage]) for stage in ("rollouts", "failures", "examples", "guided")})
        self._counts["successes"] += sum(row.verdict == "CORRECT" for row in rows["guided"])
        self._counts["problems"] += problems
        if before:
            self._counts["problems_before"] += problems
            self._counts["generated_before"] = self.ledger.usage().generated_tokens
        return Progress(
            **self._counts,
            generated={role: self.ledger.usage(role).generated_tokens for role in self._roles.values()},
            money=self.ledger.usage().cost,
            left={name: left for name, left in self.ledger.remaining().items() if left is not None},
            seconds=time.monotonic() - self._began,
        )


def _in_words(now: Progress) -> str:
    """One short line for the progress bar: "examples 41, guided 12 % right, 310k tokens, 0.42 of 5.00 spent"."""
    parts, left = [f"examples {now.examples:,}"], now.left or {}
    if now.guided:
        parts.append(f"guided {now.successes / now.guided:.0%} right")
    written = sum((now.generated or {}).values())
    cap = f" of {_short(written + left['total_tokens'])}" if "total_tokens" in left else ""
    parts.append(f"{_short(written)}{cap} tokens")
    if now.money is None:
        parts.append("no price known")
    elif now.money or "money" in left:
        cap = f" of {now.money + left['money']:.2f}" if "money" in left else ""
        parts.append(f"{now.money:.2f}{cap} spent")
    here = now.problems - now.problems_before
    if here and now.seconds > 0:
        parts.append(f"{_short((written - now.generated_before) / now.seconds)} tokens/s")
        seconds = (now.problems_in_all - now.problems) * now.seconds / here
        if seconds:
            parts.append(f"about {seconds:.0f} s left" if seconds < 120 else f"about {seconds / 60:.0f} min left")
    return ", ".join(parts)


def _short(count: float) -> str:
    """A count in few characters: 950, 31k, 2.4M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.{int(count < 10 * unit)}f}{name}"
    return f"{count:.0f}"


def _remember(directory: RunDirectory, problems: Sequence[Problem]) -> None:
    """Write the problems down, or compare them with those that the run began with: a file may have been changed."""
    path = directory.claim("problems.jsonl")
    if not path.exists():
        write_rows(path, problems)
    elif read_rows(path, Problem) != list(problems):
        raise DataError(f"{path}: the run began with other problems; give another --out, or --overwrite to begin anew")


def _write(directory: RunDirectory, checked: Checked, config: Config, settings: CollectSettings, licence: str) -> Path:
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
