"""Supervised training on interventions (InT, arXiv 2601.14209, the section on SFT).

What differs from the paper:
1. A LoRA adapter is trained, not all weights, so the learning rate is higher (the paper's is 1e-6 for all weights).
2. Tokens have loss weights by role: kept prefix, intervention, and what follows it in rows that have a suffix.
3. A share of the rows may be the model's own right solutions (replay): interventions alone make it forget.
4. The loss is the weighted mean over the tokens of an optimizer step, whatever the micro-batches are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config import Config
from stepwise.config.training import SftConfig
from stepwise.data.examples import Example, read_examples
from stepwise.errors import DataError
from stepwise.models.store import key_of
from stepwise.training.fitting import (
    Objective,
    StepResult,
    fit,
    fit_step,
    plan_steps,
    weighted_logprobs,
)
from stepwise.training.lora import Trainee, load_trainee
from stepwise.training.rendering import TokenRow, render_all
from stepwise.types import to_json

if TYPE_CHECKING:
    from stepwise.runs.directory import RunDirectory


def sft(
    dataset: str | Path | Sequence[Example] | Any,
    cfg: Config,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    replay: str | Path | Sequence[Example] | None = None,
    sinks: Sequence[str] = (),
) -> Path:
    """Train an adapter of `models.weak` on a dataset; returns the adapter's directory, `out`/adapter.

    `dataset` is a file that `collect` or the dataset builder wrote, a `datasets.Dataset`, or rows. `adapter` is a
    directory of an earlier adapter to go on with, `replay` has the model's own right solutions for `sft.replay`,
    `sinks` are names for `stepwise.training.sinks`. The same call goes on where it was stopped. Raises DataError,
    naming the row, for rows that cannot be trained on, ConfigError for weights or settings, BackendError where memory
    runs out.
    """
    from stepwise.runs.directory import opened

    rows, again = _examples(dataset), _examples(replay) if replay is not None else []
    arguments = describe(rows, again, adapter)
    with opened(out, program="sft", config=cfg, arguments=arguments) as directory:
        return sft_in(directory, rows, cfg, adapter=adapter, replay=again, sinks=sinks)


def describe(rows: Sequence[Any], replay: Sequence[Any], adapter: str | Path | None) -> dict[str, Any]:
    """What makes a run the same run: hashes of its data and where it starts."""
    digest = key_of({"rows": [to_json(row) for row in rows], "replay": [to_json(row) for row in replay]})
    return {"rows": len(rows), "replay": len(replay), "data": digest, "adapter": str(adapter) if adapter else None}


def sft_in(
    directory: RunDirectory,
    rows: Sequence[Example],
    cfg: Config,
    *,
    adapter: str | Path | None = None,
    replay: Sequence[Example] = (),
    sinks: Sequence[str] = (),
) -> Path:
    """`sft` in a directory that is open already, as a program's is."""
    from stepwise.training.finishing import finish
    from stepwise.training.identity import check_adapter
    from stepwise.training.lora import base_directory

    if not rows:
        raise DataError("the dataset has no rows; collect interventions first")
    if cfg.sft.replay and not replay:
        raise DataError(f"sft.replay is {cfg.sft.replay}, but no rows to replay were given; build them, or set it to 0")
    if adapter is not None:
        check_adapter(adapter, base_directory(cfg.models.weak), cfg.prompt)
    trainee = load_trainee(cfg, adapter=adapter, dropout=True)
    tokens = render_all([*rows, *replay], trainee.tokenizer, cfg.prompt, cfg.sft, trainee.context)
    plan = schedule(tokens[: len(rows)], tokens[len(rows) :], cfg.sft, cfg.seed)
    batches = [[tokens[i] for i in batch] for batch in plan]
    train_rows(trainee, batches, cfg, directory, data=str(describe(rows, replay, adapter)["data"]), sinks=sinks)
    return finish(directory, trainee, cfg, method="sft", data=[("dataset", rows), ("replay", replay)])


def schedule(rows: Sequence[TokenRow], replay: Sequence[TokenRow], settings: SftConfig, seed: int) -> list[list[int]]:
    """Which rows make up each optimizer step; replay rows are counted on after the others. See `plan_steps`."""

    def members(rng: random.Random) -> list[int]:
        order = list(range(len(rows)))
        extra = round(len(rows) * settings.replay / (1 - settings.replay))
        while extra > 0:
            order += [len(rows) + i for i in rng.sample(range(len(replay)), min(extra, len(replay)))]
            extra -= len(replay)
        return order

    return plan_steps([row.trained for row in (*rows, *replay)], settings, f"{seed}|sft", members)


def train_rows(
    trainee: Trainee,
    plan: Sequence[Sequence[TokenRow]],
    cfg: Config,
    directory: RunDirectory,
    *,
    data: str = "",
    sinks: Sequence[str] = (),
    label: str = "supervised training",
) -> None:
    """`fitting.fit` with the loss sum(w * -log p) / sum(w) over all target tokens of an optimizer step."""
    fit(trainee, plan, _objective(cfg), cfg, directory, data=data, sinks=sinks, label=label)


def train_step(
    trainee: Trainee, optimizer: Any, rows: Sequence[TokenRow], cfg: Config, rate: float, seed: int
) -> StepResult:
    """One optimizer step of `train_rows` on `rows`; the loss is in nats per token."""
    return fit_step(trainee, optimizer, rows, _objective(cfg), cfg.lora, rate, seed)


def weighted_nll(trainee: Trainee, rows: Sequence[TokenRow], tile: int) -> Any:
    """sum(w * -log p) over the target tokens of `rows`, a scalar tensor."""
    return -weighted_logprobs(trainee, rows, tile).sum()


def _objective(cfg: Config) -> Objective[TokenRow]:
    return Objective(cfg.sft, lambda trainee, rows: (weighted_nll(trainee, rows, cfg.lora.tile), {}))


def _examples(source: Any) -> list[Example]:
    if isinstance(source, Sequence) and not isinstance(source, str) and all(isinstance(row, Example) for row in source):
        return list(source)
    return read_examples(source)
