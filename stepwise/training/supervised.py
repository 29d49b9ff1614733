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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.call_cache import key_of
from stepwise.config import Config
from stepwise.errors import DataError
from stepwise.interventions.data import read_examples
from stepwise.interventions.rows import Example
from stepwise.train_config import LoraConfig, SftConfig
from stepwise.training.batches import micro_batches, pad
from stepwise.training.lora import Trainee, load_trainee
from stepwise.training.optimizing import (
    apply_gradients,
    check_finite,
    cosine,
    keep_rows,
    make_optimizer,
    memory_errors,
    peak_bytes,
)
from stepwise.training.rendering import TokenRow, render_all
from stepwise.training.state import claim_state, load_state, save_state
from stepwise.types import to_json

if TYPE_CHECKING:
    from stepwise.rundir import RunDirectory

OnStep = Callable[[dict[str, Any]], None]


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
    from stepwise.rundir import own_directory

    rows, again = _examples(dataset), _examples(replay) if replay is not None else []
    arguments = describe(rows, again, adapter)
    with own_directory(out, program="sft", config=cfg, arguments=arguments) as directory:
        return sft_in(directory, rows, cfg, adapter=adapter, replay=again, sinks=sinks)


def describe(rows: Sequence[Example], replay: Sequence[Example], adapter: str | Path | None) -> dict[str, Any]:
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
    """Which rows make up each optimizer step; replay rows are counted on after the others.

    Every epoch is shuffled anew. With `tokens` set, as many epochs as that takes, and the last step is the one that
    reaches it.
    """
    losses = [sum(weight > 0 for weight in row.weights) for row in (*rows, *replay)]
    plan: list[list[int]] = []
    seen, epoch = 0, 0
    while settings.tokens is not None or epoch < settings.epochs:
        rng = random.Random(f"{seed}|sft|{epoch}")
        order = list(range(len(rows)))
        extra = round(len(rows) * settings.replay / (1 - settings.replay))
        while extra > 0:
            order += [len(rows) + i for i in rng.sample(range(len(replay)), min(extra, len(replay)))]
            extra -= len(replay)
        rng.shuffle(order)
        for first in range(0, len(order), settings.batch):
            plan.append(order[first : first + settings.batch])
            seen += sum(losses[i] for i in plan[-1])
            if settings.tokens is not None and seen >= settings.tokens:
                return plan
        epoch += 1
    return plan


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
    """Optimizer steps over `plan`, one list of rows each, from the last checkpoint in `directory` on.

    Writes metrics.jsonl, and a checkpoint every `sft.save_every` steps, which names `data` (a hash); DataError where a
    checkpoint there names other data. Raises DataError for a loss that is not finite,
    with the batch on disk; BackendError where memory runs out.
    """
    from stepwise.jsonl import append_rows
    from stepwise.progress import progress
    from stepwise.training.sinks import STATE, open_sinks

    settings, out = cfg.sft, directory.made()
    optimizer = make_optimizer(trainee, settings.learning_rate, settings.weight_decay)
    checkpoint = claim_state(directory)
    metrics, failed = directory.claim("metrics.jsonl"), directory.claim("failed-batch.jsonl")
    directory.claim(STATE)
    done, kept = load_state(checkpoint, trainee, optimizer) or (0, {"tokens": 0})
    tokens = int(kept["tokens"])
    if kept.get("data", data) != data:
        raise DataError(f"{checkpoint} belongs to other data than was given now; give another --out, or --overwrite")
    keep_rows(metrics, done)
    with ExitStack() as stack:
        others = stack.enter_context(open_sinks(sinks, out, out.name, cfg.model_dump(mode="json")))
        bar = stack.enter_context(progress(label, len(plan)))
        bar(done)
        if done < len(plan):
            probe(trainee, plan[done:], cfg.lora)
        for step in range(done, len(plan)):
            rate, began = cosine(step, len(plan), settings.learning_rate, settings.warmup), time.monotonic()
            made = train_step(trainee, optimizer, plan[step], cfg, rate, cfg.seed * 1_000_003 + step)
            batch = [dataclasses.asdict(row) for row in plan[step]]
            check_finite({"loss": made.loss, "grad_norm": made.grad_norm}, batch, failed)
            tokens += made.tokens
            row = {
                "step": step + 1,
                "loss": made.loss,
                "tokens": tokens,
                "grad_norm": made.grad_norm,
                "learning_rate": rate,
                "rows": len(plan[step]),
                "seconds": round(time.monotonic() - began, 4),
                "peak_bytes": peak_bytes(trainee.device),
            }
            append_rows(metrics, [row])
            others.log(step + 1, row)
            bar.note(f"loss {made.loss:.3f}, {tokens:,} tokens")
            bar(1)
            if (step + 1) % settings.save_every == 0 or step + 1 == len(plan):
                save_state(checkpoint, step + 1, trainee, optimizer, {"tokens": tokens, "data": data})


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: weighted mean loss in nats per token, tokens with a loss, and the gradient's norm."""

    loss: float
    tokens: int
    grad_norm: float


def train_step(
    trainee: Trainee, optimizer: Any, rows: Sequence[TokenRow], cfg: Config, rate: float, seed: int
) -> StepResult:
    """One optimizer step on `rows`: the loss is sum(w * -log p) / sum(w) over all their target tokens."""
    import torch

    torch.manual_seed(seed)  # dropout is all that is random here
    total = sum(sum(row.weights) for row in rows)
    loss = 0.0
    with memory_errors(cfg.lora):
        for part in _parts(rows, cfg.lora):
            piece = weighted_nll(trainee, part, cfg.lora.tile) / total
            piece.backward()
            loss += float(piece.detach())
        norm = apply_gradients(trainee, optimizer, rate, cfg.sft.clip_norm)
    return StepResult(loss, sum(sum(w > 0 for w in row.weights) for row in rows), norm)


def weighted_nll(trainee: Trainee, rows: Sequence[TokenRow], tile: int) -> Any:
    """sum(w * -log p) over the target tokens of `rows`, a scalar tensor."""
    import torch

    from stepwise.training.logprobs import token_logprobs

    def tensor(values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(trainee.device)

    ids = tensor(pad([row.ids for row in rows], trainee.tokenizer.eos_token_id))  # (B, T)
    there = tensor(pad([[True] * len(row.ids) for row in rows], False))
    weights = tensor(pad([[0.0] * row.prompt + list(row.weights) for row in rows], 0.0))
    found = token_logprobs(trainee.model, ids, there, weights > 0, tile=tile).logprobs
    return -(found * weights.to(found.dtype)).sum()


def probe(trainee: Trainee, plan: Sequence[Sequence[TokenRow]], how: LoraConfig) -> None:
    """Forward and backward over the largest micro-batch of the plan: a lack of memory shows before the work."""
    parts = (part for rows in plan for part in _parts(rows, how))
    largest = max(parts, key=lambda part: len(part) * max(len(row.ids) for row in part))
    with memory_errors(how):
        weighted_nll(trainee, largest, how.tile).backward()
    trainee.model.zero_grad(set_to_none=True)


def _parts(rows: Sequence[TokenRow], how: LoraConfig) -> Iterator[list[TokenRow]]:
    for group in micro_batches([len(row.ids) for row in rows], how.micro_tokens):
        yield [rows[i] for i in group]


def _examples(source: Any) -> list[Example]:
    if isinstance(source, Sequence) and not isinstance(source, str) and all(isinstance(row, Example) for row in source):
        return list(source)
    return read_examples(source)
