"""Optimizer steps on a batch of rollouts whose advantages are known: forward passes, micro-batches, gradients.

All tensors are (B, T) over prompt and rollout together, padded on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stepwise.config.training import RlConfig
from stepwise.training import losses
from stepwise.training.batches import micro_batches, pad
from stepwise.training.logprobs import token_logprobs
from stepwise.training.lora import Trainee

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stepwise.config import Config

Floats = NDArray[np.float64]
OnPart = Callable[[Sequence[int], Mapping[str, float]], None]


@dataclass(frozen=True, eq=False)
class PolicyRow:
    """One rollout to train on: ids of the prompt and as sampled; of each sampled token (T,) the sampler's
    log-probability and the advantage; the rollout's weight (`losses.rollout_weights`).

    `class_weight` and `reward` are for LaSeR's loss; weight 0 leaves the rollout out of it.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    sampler: Floats
    advantages: Floats
    weight: float
    reward: float = 0.0
    class_weight: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of prompt and rollout."""
        return len(self.prompt) + len(self.ids)


@dataclass(frozen=True, eq=False)
class Pass:
    """What one forward pass over rows found, per row: log-probabilities of the sampled tokens (T,), and that of the
    token `mark` after them (None without one). `tokens` went through the model.
    """

    logprobs: list[Floats]
    marks: list[float] | None
    tokens: int


@dataclass(frozen=True)
class UpdateResult:
    """What the updates on one batch came to. Loss and gradient norm are means over the updates.

    `tokens` have a loss, counted once per update; `clipped` of them had no gradient because of the clip, and
    `divergence` is the sum of their divergences from the base. `entropy` is the mean in nats over the tokens of the
    first update, `passed` counts what went through the model, prompts included. `first` has the log-probabilities of
    the first update, per row.
    """

    loss: float
    grad_norm: float
    tokens: int
    clipped: int
    divergence: float
    entropy: float
    passed: int
    first: list[Floats]


@dataclass(frozen=True)
class Reference:
    """What the loss needs besides the rows: log-probabilities (T,) per row before the first update (`old`, None: those
    of the update itself, where there is only one) and under the base (None without a divergence), weights that correct
    for the sampler (None: none), and LaSeR's constant with the token that it is about (None: off).
    """

    old: list[Floats] | None = None
    base: list[Floats] | None = None
    correction: list[Floats] | None = None
    mark: int | None = None
    constant: float = 0.0


def forward(
    trainee: Trainee, rows: Sequence[PolicyRow], cfg: Config, *, mark: int | None = None, base: bool = False
) -> Pass:
    """One pass without gradients over all rows; `base` switches the adapter off."""
    import torch

    found: list[Floats] = [np.zeros(0)] * len(rows)
    marks = [0.0] * len(rows)
    alone: AbstractContextManager[Any] = trainee.base_alone() if base else nullcontext()
    with torch.no_grad(), alone:
        for part in _parts(rows, cfg):
            members = [rows[i] for i in part]
            batch = _Batch(trainee, members, mark)
            logprobs = token_logprobs(trainee.model, *batch.inputs, tile=cfg.lora.tile).logprobs
            for i, line, row in zip(part, _plain(logprobs), members, strict=True):
                found[i] = line[len(row.prompt) : row.length].copy()
                marks[i] = float(line[row.length]) if mark is not None else 0.0
    return Pass(found, None if mark is None else marks, sum(row.length for row in rows))


def update(
    trainee: Trainee,
    rows: Sequence[PolicyRow],
    cfg: Config,
    known: Reference,
    apply: Callable[[], float],
    check: OnPart,
) -> UpdateResult:
    """`rl.updates` optimizer steps on `rows`; `apply` makes one from the gradients and returns their norm.

    Micro-batches go longest first, and their gradients add up to those of the batch. `check` is called with the
    members (indices of rows) and the numbers of every micro-batch, and may raise.
    """
    rl = cfg.rl
    total = norm = entropy = divergence = 0.0
    clipped = 0
    first: list[Floats] = [np.zeros(0)] * len(rows)
    for number in range(rl.updates):
        for part in _parts(rows, cfg):
            members = [rows[i] for i in part]
            batch = _Batch(trainee, members, known.mark)
            found = token_logprobs(trainee.model, *batch.inputs, tile=cfg.lora.tile, entropy=number == 0)
            piece = _loss(found.logprobs, batch, part, rl, known)
            value = float(piece.total.detach())
            check(part, {"loss": value})
            piece.total.backward()  # type: ignore[no-untyped-call]
            total += value
            clipped += int(piece.clipped)
            divergence += float(piece.divergence)
            if found.entropy is not None:
                entropy += float(found.entropy[batch.mask].sum())
                for i, line, row in zip(part, _plain(found.logprobs), members, strict=True):
                    first[i] = line[len(row.prompt) : row.length].copy()
        step = apply()
        check(range(len(rows)), {"grad_norm": step})
        norm += step
    tokens, n = sum(len(row.ids) for row in rows), rl.updates
    passed = n * sum(row.length for row in rows)
    return UpdateResult(total / n, norm / n, n * tokens, clipped, divergence, entropy / tokens, passed, first)


def _loss(found: Tensor, batch: _Batch, part: Sequence[int], rl: RlConfig, known: Reference) -> losses.PolicyLoss:
    """The part of the batch's loss that the rows of `batch` (indices `part`) make up; `found` (B, T)."""
    import torch

    def placed(values: list[Floats] | None) -> Tensor | None:
        return None if values is None else batch.placed([values[i] for i in part], found.dtype)

    old = placed(known.old)
    weights = torch.tensor([row.weight for row in batch.rows], dtype=found.dtype, device=found.device)
    piece = losses.policy_loss(
        found,
        found.detach() if old is None else old,
        batch.placed([row.advantages for row in batch.rows], found.dtype),
        batch.mask,
        weights,
        loss=rl.loss,
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
        decay=rl.gamma * rl.trace,
        correction=placed(known.correction),
        reference=placed(known.base),
        kl=rl.kl,
    )
    if known.mark is None:
        return piece
    at = torch.tensor([row.length for row in batch.rows], device=found.device)
    scores = losses.self_scores(found.gather(1, at[:, None]).squeeze(1), known.constant)
    of_class = weights.new_tensor([row.class_weight for row in batch.rows])
    rewards = weights.new_tensor([row.reward for row in batch.rows])
    return piece._replace(total=piece.total + rl.laser * losses.self_score_loss(scores, rewards, of_class))


class _Batch:
    """Rows as tensors on the trainee's device. `mask` (B, T) is True on sampled tokens, `inputs` are what
    `token_logprobs` takes: ids, what is no padding, and where log-probabilities are wanted (`mark` included).
    """

    def __init__(self, trainee: Trainee, rows: Sequence[PolicyRow], mark: int | None):
        self.rows, self._device = rows, trainee.device
        tail = () if mark is None else (mark,)
        ids = self._tensor(pad([(*row.prompt, *row.ids, *tail) for row in rows], trainee.tokenizer.eos_token_id))
        there = self._tensor(pad([[True] * (row.length + len(tail)) for row in rows], False))
        wanted = self._tensor(
            pad([[False] * len(row.prompt) + [True] * (len(row.ids) + len(tail)) for row in rows], False)
        )
        self._width = ids.shape[1]
        self.inputs = (ids, there, wanted)
        own = pad([[False] * len(row.prompt) + [True] * len(row.ids) + [False] * len(tail) for row in rows], False)
        self.mask = self._tensor(own)

    def placed(self, values: Sequence[Floats], dtype: torch.dtype) -> Tensor:
        """One array per row, an entry per sampled token, as (B, T) with zeros elsewhere."""
        import torch

        out = np.zeros((len(self.rows), self._width))
        for line, row, mine in zip(out, self.rows, values, strict=True):
            line[len(row.prompt) : row.length] = mine
        return torch.from_numpy(out).to(dtype).to(self._device)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        import torch

        return torch.from_numpy(values).to(self._device)


def _parts(rows: Sequence[PolicyRow], cfg: Config) -> Iterator[list[int]]:
    yield from micro_batches([row.length for row in rows], cfg.lora.micro_tokens)


def _plain(values: Tensor) -> Floats:
    found: Floats = values.detach().cpu().double().numpy()
    return found
