"""Supervised training on interventions (InT, arXiv 2601.14209, the section on SFT).

What differs from the paper:
1. A LoRA adapter is trained, not all weights, so the learning rate is higher (the paper's is 1e-6 for all weights).
2. Tokens have loss weights by role: kept prefix, intervention, and what follows it in rows that have a suffix.
3. A share of the rows may be the model's own right solutions (replay): interventions alone make it forget.
4. The loss is the weighted mean over the tokens of an optimizer step, whatever the micro-batches are.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config import Config
from stepwise.config.training import SftConfig
from stepwise.data.examples import Example, read_examples
from stepwise.errors import DataError
from stepwise.models.store import key_of
from stepwise.runs.directory import RunDirectory, opened
from stepwise.training.adapters import check_adapter
from stepwise.training.logprobs import weighted_logprobs
from stepwise.training.lora import Trainee, base_directory, load_trainee
from stepwise.training.rendering import TokenRow, render_all
from stepwise.training.trainer import (
    Trainer,
    apply_gradients,
    check_finite,
    cosine,
    finish,
    make_optimizer,
    memory_errors,
    peak_bytes,
    plan_steps,
    split,
    try_largest,
)
from stepwise.types import to_json

if TYPE_CHECKING:
    from torch import Tensor


def sft(
    dataset: str | Path | Sequence[Example] | Any,
    cfg: Config,
    out: str | Path | RunDirectory,
    *,
    adapter: str | Path | None = None,
    replay: str | Path | Sequence[Example] | None = None,
    sinks: Sequence[str] = (),
) -> Path:
    """Train an adapter of `models.weak` on a dataset; returns the adapter's directory, `out`/adapter.

    `dataset` is a file that `collect` or the dataset builder wrote, a `datasets.Dataset`, or rows. `out` is a
    directory, or one that is open already. `adapter` is a directory of an earlier adapter to go on with, `replay` has
    the model's own right solutions for `sft.replay`, `sinks` are names for `stepwise.training.sinks`. The same call
    goes on where it was stopped. Raises DataError, naming the row, for rows that cannot be trained on, ConfigError for
    weights or settings, BackendError where memory runs out.
    """
    rows, again = _examples(dataset), _examples(replay or [])
    arguments = describe(rows, again, adapter)
    with opened(out, program="sft", config=cfg, arguments=arguments) as directory:
        if not rows:
            raise DataError("the dataset has no rows; collect interventions first")
        if cfg.sft.replay and not again:
            raise DataError(
                f"sft.replay is {cfg.sft.replay}, but no rows to replay were given; build them, or set it to 0"
            )
        if adapter is not None:
            check_adapter(adapter, base_directory(cfg.models.weak), cfg.prompt)
        trainee = load_trainee(cfg, adapter=adapter, dropout=True)
        tokens = render_all([*rows, *again], trainee.tokenizer, cfg.prompt, cfg.sft, trainee.context)
        plan = schedule(tokens[: len(rows)], tokens[len(rows) :], cfg.sft, cfg.seed)
        batches = [[tokens[i] for i in batch] for batch in plan]
        train_rows(trainee, batches, cfg, directory, data=str(arguments["data"]), sinks=sinks)
        return finish(directory, trainee, cfg, "sft", {"dataset": rows, "replay": again})


def describe(rows: Sequence[Any], replay: Sequence[Any], adapter: str | Path | None) -> dict[str, Any]:
    """What makes a run the same run: hashes of its data and where it starts."""
    digest = key_of({"rows": [to_json(row) for row in rows], "replay": [to_json(row) for row in replay]})
    return {"rows": len(rows), "replay": len(replay), "data": digest, "adapter": str(adapter) if adapter else None}


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
    batches: Sequence[Sequence[TokenRow]],
    cfg: Config,
    directory: RunDirectory,
    *,
    data: str = "",
    sinks: Sequence[str] = (),
    label: str = "supervised training",
) -> None:
    """One optimizer step on each of `batches`, from the last checkpoint in `directory` on, which names `data` (a hash).

    Raises DataError where a checkpoint there names other data, and for a loss that is not finite, with the batch on
    disk; BackendError where memory runs out.
    """
    settings, num_steps = cfg.sft, len(batches)
    optimizer = make_optimizer(trainee, settings.learning_rate, settings.weight_decay)
    with Trainer(
        directory, trainee, cfg, optimizer,
        num_steps=num_steps, save_every=settings.save_every, data=data, label=label, sinks=sinks,
    ) as run:  # fmt: skip
        try_largest(trainee, batches[run.done :], lambda part: weighted_nll(trainee, part, cfg.lora.tile), cfg.lora)
        for step in range(run.done, num_steps):
            began, rate = time.monotonic(), cosine(step, num_steps, settings.learning_rate, settings.warmup)
            loss, grad_norm = train_step(trainee, optimizer, batches[step], cfg, rate, cfg.seed * 1_000_003 + step)
            rows = [dataclasses.asdict(row) for row in batches[step]]
            check_finite({"loss": loss, "grad_norm": grad_norm}, rows, run.failed)
            tokens = run.state.get("tokens", 0) + sum(row.trained for row in batches[step])
            run.state["tokens"] = tokens
            row = {
                "step": step + 1,
                "loss": loss,
                "tokens": tokens,
                "grad_norm": grad_norm,
                "learning_rate": rate,
                "rows": len(rows),
                "seconds": round(time.monotonic() - began, 4),
                "peak_bytes": peak_bytes(trainee.device),
            }
            run.log(row, f"loss {loss:.3f}, {tokens:,} tokens")


def train_step(
    trainee: Trainee, optimizer: Any, rows: Sequence[TokenRow], cfg: Config, rate: float, seed: int
) -> tuple[float, float]:
    """One optimizer step on `rows`: its loss in nats per token, sum(w * -log p) / sum(w), and the gradient's norm.

    `seed` is that of its dropout.
    """
    import torch

    torch.manual_seed(seed)  # dropout is all that is random here
    total, loss = sum(row.share for row in rows), 0.0
    with memory_errors(cfg.lora):
        for part in split(rows, cfg.lora):
            piece = weighted_nll(trainee, part, cfg.lora.tile) / total  # the pieces' gradients add up to the batch's
            piece.backward()  # type: ignore[no-untyped-call]
            loss += float(piece.detach())
        return loss, apply_gradients(trainee, optimizer, rate, cfg.sft.clip_norm)


def weighted_nll(trainee: Trainee, rows: Sequence[TokenRow], tile: int) -> Tensor:
    """sum(w * -log p) over the target tokens of `rows`, a scalar tensor."""
    return -weighted_logprobs(trainee, rows, tile).sum()


def _examples(source: Any) -> list[Example]:
    if isinstance(source, Sequence) and not isinstance(source, str) and all(isinstance(row, Example) for row in source):
        return list(source)
    return read_examples(source)
