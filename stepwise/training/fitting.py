"""Fitting an adapter to rows in a plan of optimizer steps: what supervised and preference training share.

The loss of an optimizer step is the sum of what its rows add, divided by the sum of their shares, whatever the
micro-batches are. Nothing random is carried from step to step, so a run that is killed goes on as it would have.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from stepwise.config import Config
from stepwise.config.training import FitConfig, LoraConfig
from stepwise.errors import DataError
from stepwise.training.batches import micro_batches, pad
from stepwise.training.lora import Trainee
from stepwise.training.optimizing import (
    apply_gradients,
    check_finite,
    cosine,
    keep_rows,
    make_optimizer,
    memory_errors,
    peak_bytes,
)
from stepwise.training.rendering import TokenRow
from stepwise.training.state import claim_state, load_state, save_state

if TYPE_CHECKING:
    from stepwise.runs.directory import RunDirectory


class Trainable(Protocol):
    """A row that can be trained on, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def size(self) -> int:
        """Tokens that go through the model."""

    @property
    def share(self) -> float:
        """What it adds to the divisor of the loss."""

    @property
    def trained(self) -> int:
        """Tokens with a loss."""


Row = TypeVar("Row", bound=Trainable)


@dataclass(frozen=True)
class Objective(Generic[Row]):
    """What is minimised, and how.

    `loss` gives, for some rows of a step, the sum of their losses (a scalar tensor) and sums of other figures by name,
    which are logged divided as the loss is.
    """

    settings: FitConfig
    loss: Callable[[Trainee, Sequence[Row]], tuple[Any, Mapping[str, float]]]


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: loss, tokens with a loss, the gradient's norm, and the objective's other figures."""

    loss: float
    tokens: int
    grad_norm: float
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


def plan_steps(
    trained: Sequence[int], settings: FitConfig, name: str, members: Callable[[random.Random], list[int]]
) -> list[list[int]]:
    """Which rows make up each optimizer step, as positions in `trained`, their tokens with a loss.

    `members` gives the rows of an epoch, which is shuffled anew by a seed made of `name` and its number. With `tokens`
    set, as many epochs as that takes, and the last step is the one that reaches it.
    """
    plan: list[list[int]] = []
    seen, epoch = 0, 0
    while settings.tokens is not None or epoch < settings.epochs:
        rng = random.Random(f"{name}|{epoch}")
        order = members(rng)
        rng.shuffle(order)
        for first in range(0, len(order), settings.batch):
            plan.append(order[first : first + settings.batch])
            seen += sum(trained[i] for i in plan[-1])
            if settings.tokens is not None and seen >= settings.tokens:
                return plan
        epoch += 1
    return plan


def fit(
    trainee: Trainee,
    plan: Sequence[Sequence[Row]],
    objective: Objective[Row],
    cfg: Config,
    directory: RunDirectory,
    *,
    data: str,
    sinks: Sequence[str],
    label: str,
) -> None:
    """Optimizer steps over `plan`, one list of rows each, from the last checkpoint in `directory` on.

    Writes metrics.jsonl, and a checkpoint every `save_every` steps, which names `data` (a hash). Raises DataError where
    a checkpoint there names other data, and for a loss that is not finite, with the batch on disk; BackendError where
    memory runs out.
    """
    from stepwise.io import append_rows
    from stepwise.runs.progress import progress
    from stepwise.training.sinks import STATE, open_sinks

    settings, out = objective.settings, directory.made()
    optimizer = make_optimizer(trainee, settings.learning_rate, settings.weight_decay)
    checkpoint = claim_state(directory)
    metrics, failed = directory.claim("metrics.jsonl"), directory.claim("failed-batch.jsonl")
    directory.claim(STATE)
    done, kept = load_state(checkpoint, trainee, optimizer) or (0, {"tokens": 0})
    tokens = int(kept["tokens"])
    check_same(checkpoint, kept.get("data", data), data)
    keep_rows(metrics, done)
    with ExitStack() as stack:
        others = stack.enter_context(open_sinks(sinks, out, out.name, cfg.model_dump(mode="json")))
        bar = stack.enter_context(progress(label, len(plan)))
        bar(done)
        if done < len(plan):
            probe(trainee, plan[done:], objective, cfg.lora)
        for step in range(done, len(plan)):
            rate, began = cosine(step, len(plan), settings.learning_rate, settings.warmup), time.monotonic()
            made = fit_step(trainee, optimizer, plan[step], objective, cfg.lora, rate, cfg.seed * 1_000_003 + step)
            batch = [dataclasses.asdict(row) for row in plan[step]]
            check_finite({"loss": made.loss, "grad_norm": made.grad_norm}, batch, failed)
            tokens += made.tokens
            row = {
                "step": step + 1,
                "loss": made.loss,
                **made.figures,
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


def check_same(path: Path, found: Any, data: str) -> None:
    """Raise DataError where what lies at `path` was made from other data (a hash) than `data`."""
    if found != data:
        raise DataError(f"{path} belongs to other data than was given now; give another --out, or --overwrite")


def fit_step(
    trainee: Trainee,
    optimizer: Any,
    rows: Sequence[Row],
    objective: Objective[Row],
    how: LoraConfig,
    rate: float,
    seed: int,
) -> StepResult:
    """One optimizer step on `rows`; `seed` is that of its dropout."""
    import torch

    torch.manual_seed(seed)  # dropout is all that is random here
    total = sum(row.share for row in rows)
    loss, figures = 0.0, dict[str, float]()
    with memory_errors(how):
        for part in _parts(rows, how):
            summed, others = objective.loss(trainee, part)
            piece = summed / total
            piece.backward()
            loss += float(piece.detach())
            for name, value in others.items():
                figures[name] = figures.get(name, 0.0) + value / total
        norm = apply_gradients(trainee, optimizer, rate, objective.settings.clip_norm)
    return StepResult(loss, sum(row.trained for row in rows), norm, figures)


def probe(trainee: Trainee, plan: Sequence[Sequence[Row]], objective: Objective[Row], how: LoraConfig) -> None:
    """Forward and backward over the largest micro-batch of the plan: a lack of memory shows before the work."""
    parts = (part for rows in plan for part in _parts(rows, how))
    largest = max(parts, key=lambda part: len(part) * max(row.size for row in part))
    with memory_errors(how):
        objective.loss(trainee, largest)[0].backward()
    trainee.model.zero_grad(set_to_none=True)


def weighted_logprobs(trainee: Trainee, rows: Sequence[TokenRow], tile: int) -> Any:
    """Each token's w * log p, a tensor (B, T) in nats, 0 on prompts and padding."""
    import torch

    from stepwise.training.logprobs import token_logprobs

    def tensor(values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(trainee.device)

    ids = tensor(pad([row.ids for row in rows], trainee.tokenizer.eos_token_id))  # (B, T)
    there = tensor(pad([[True] * len(row.ids) for row in rows], False))
    weights = tensor(pad([[0.0] * row.prompt + list(row.weights) for row in rows], 0.0))
    found = token_logprobs(trainee.model, ids, there, weights > 0, tile=tile).logprobs
    return found * weights.to(found.dtype)


def _parts(rows: Sequence[Row], how: LoraConfig) -> Iterator[list[Row]]:
    for group in micro_batches([row.size for row in rows], how.micro_tokens):
        yield [rows[i] for i in group]
