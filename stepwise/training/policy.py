"""Passes over a batch of rollouts: padding, micro-batches, log-probabilities, updates. All tensors are (B, T) over
prompt and rollout together, padded on the right. And the passes of a teacher over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepwise.config import Config
from stepwise.config.training import RlConfig
from stepwise.errors import ConfigError
from stepwise.models.engine import Engine
from stepwise.training import losses
from stepwise.training.batches import micro_batches
from stepwise.training.logprobs import LogProbs, pad, token_logprobs
from stepwise.training.lora import Trainee
from stepwise.training.memory import fitted
from stepwise.types import Problem

Floats = NDArray[np.float64]
_MAX_LOGITS = 1 << 25  # numbers that one call brings back at most (128 MB): a whole vocabulary for every token read
_OTHER = "a teacher reads the student's token ids: give a models.strong of the same family as models.weak"
# Tokens of the lab, Qwen and Llama 3 that solutions never hold, in the order of preference.


_RESERVED = ("<|reserved_0|>", "<|vision_pad|>", "<|reserved_special_token_0|>", "<|fim_pad|>")


def _nothing() -> Floats:
    return np.zeros(0)


@dataclass(eq=False)
class RolloutRow:
    """One rollout to train on: ids of the prompt and as sampled, and of each sampled token (T,) the sampler's
    log-probability and the advantage; the rollout's weight (`losses.rollout_weights`).

    `class_weight` and `reward` are for LaSeR's loss; weight 0 leaves the rollout out of it. (T,) too, each None where
    the loss does without: `sampled`, False where the token is not the policy's (None: all are); `old`
    log-probabilities, before the first update (None: those of the update itself, where there is only one), those under
    the `base`, and a `correction` for the sampler (weights).

    >>> RolloutRow(prompt=(5, 7), ids=(9, 2), reward=1.0).length
    4
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    sampler: Floats = field(default_factory=_nothing)
    reward: float = 0.0
    advantages: Floats = field(default_factory=_nothing)
    weight: float = 0.0
    class_weight: float = 0.0
    sampled: NDArray[np.bool_] | None = None
    old: Floats | None = None
    base: Floats | None = None
    correction: Floats | None = None

    @property
    def length(self) -> int:
        """Tokens of prompt and rollout."""
        return len(self.prompt) + len(self.ids)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(T,), whether the policy sampled the token."""
        return np.ones(len(self.ids), dtype=np.bool_) if self.sampled is None else self.sampled


class _Batch:
    """Rows as tensors on the trainee's device. `mask` (B, T) is True on sampled tokens; `mark` is a token that stands
    behind each rollout (None: none does).
    """

    def __init__(self, trainee: Trainee, rows: Sequence[RolloutRow], mark: int | None = None) -> None:
        self.rows, self._trainee = rows, trainee
        tail = () if mark is None else (mark,)
        self._ids = self._tensor(pad([(*row.prompt, *row.ids, *tail) for row in rows], trainee.tokenizer.eos_token_id))
        self._attention = self._tensor(pad([[True] * (row.length + len(tail)) for row in rows], False))
        sampled = [[False] * len(row.prompt) + row.mask.tolist() for row in rows]
        self._wanted = self._tensor(pad([[*line, *(True for _ in tail)] for line in sampled], False))
        self.mask = self._tensor(pad([[*line, *(False for _ in tail)] for line in sampled], False))

    def logprobs(self, tile: int, *, entropy: bool = False) -> LogProbs:
        """Log-probabilities of the sampled tokens, and of the mark behind them, with gradients."""
        inputs = (self._ids, self._attention, self._wanted)
        return token_logprobs(self._trainee.model, *inputs, tile=tile, entropy=entropy)

    def per_token(self, values: Sequence[Floats | None], like: Tensor) -> Tensor | None:
        """One array per row, an entry per sampled token, as (B, T) of the type of `like` with zeros elsewhere; None
        where a row has none.
        """
        placed = np.zeros(tuple(self.mask.shape))
        for line, row, row_values in zip(placed, self.rows, values, strict=True):
            if row_values is None:
                return None
            line[len(row.prompt) : row.length] = row_values
        return like.new_tensor(placed)

    def of_rows(self, values: Tensor) -> list[Floats]:
        """The entries of each row's sampled tokens (T,) in a tensor (B, T)."""
        lines = values.detach().cpu().double().numpy()
        return [line[len(row.prompt) : row.length].copy() for line, row in zip(lines, self.rows, strict=True)]

    def at_mark(self, values: Tensor) -> Tensor:
        """The entry (B,) of the token behind each rollout in a tensor (B, T)."""
        return values[list(range(len(self.rows))), [row.length for row in self.rows]]

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._trainee.device)


def _parts_of(rows: Sequence[RolloutRow], cfg: Config) -> list[list[int]]:
    """Places of `rows` in micro-batches, the longest first."""
    return micro_batches([row.length for row in rows], cfg.lora.micro_tokens)


def forward(
    trainee: Trainee, rows: Sequence[RolloutRow], cfg: Config, *, mark: int | None = None, base: bool = False
) -> tuple[list[Floats], list[float]]:
    """One pass without gradients over all rows: log-probabilities of the sampled tokens (T,) of each, and that of the
    token `mark` behind it (0 without one). `base` switches the adapter off.

    Example:
        logprobs, _ = forward(trainee, rows, config)  # (T,) for each rollout
    """
    logprobs, marks = [_nothing()] * len(rows), [0.0] * len(rows)
    adapter_off: AbstractContextManager[Any] = trainee.model.disable_adapter() if base else nullcontext()
    with torch.no_grad(), adapter_off:
        for part in _parts_of(rows, cfg):
            batch = _Batch(trainee, [rows[i] for i in part], mark)
            values = batch.logprobs(cfg.lora.tile).logprobs
            mark_logprobs = [0.0] * len(part) if mark is None else batch.at_mark(values).cpu().double().tolist()
            for i, line, of_mark in zip(part, batch.of_rows(values), mark_logprobs, strict=True):
                logprobs[i], marks[i] = line, of_mark
    return logprobs, marks


def laser_token(cfg: Config, trainee: Trainee) -> int | None:
    """LaSeR's token: a reserved one that no text has; None where LaSeR is off.

    Example:
        token = laser_token(config, trainee)  # None where rl.laser is 0
    """
    if not cfg.rl.laser:
        return None
    for name in _RESERVED:
        token = trainee.tokenizer.convert_tokens_to_ids(name)
        if token is not None and token != trainee.tokenizer.unk_token_id:
            return int(token)
    raise ConfigError(
        f"rl.laser is {cfg.rl.laser}, but the tokenizer in {trainee.base} has none of the tokens "
        f"{', '.join(_RESERVED)}; set rl.laser = 0"
    )


def fitted_to(cfg: Config, trainee: Trainee, rows: Sequence[RolloutRow], state: dict[str, Any]) -> Config:
    """`cfg` with micro-batches that fit into memory, by a pass over the longest of `rows`; see `memory.fitted`.

    Example:
        config = fitted_to(config, trainee, rows, run.state)
    """
    longest = max(rows, key=lambda row: row.length)

    def probe() -> None:
        logprobs, _ = _Batch(trainee, [longest]).logprobs(cfg.lora.tile, entropy=True)
        logprobs.sum().backward()  # type: ignore[no-untyped-call]
        trainee.model.zero_grad(set_to_none=True)

    lora = fitted(cfg.lora, trainee.device, longest.length, probe, state)
    return cfg if lora is cfg.lora else cfg.model_copy(update={"lora": lora})


def update(
    trainee: Trainee,
    rows: Sequence[RolloutRow],
    cfg: Config,
    apply: Callable[[], float],
    check: Callable[[Sequence[int], Mapping[str, float]], None] = lambda part, values: None,
    laser: tuple[int, float] | None = None,
) -> tuple[dict[str, float], list[Floats]]:
    """`rl.updates` optimizer steps on `rows`; `apply` makes one from the gradients and returns their norm.

    Micro-batches go longest first, and their gradients add up to those of the batch. `check` is called with the members
    (indices of rows) and the numbers of every micro-batch, and may raise. `laser` is LaSeR's token and constant.
    Returns means over the updates (`loss`, `grad_norm`) and over tokens (`clip_share`: those without a gradient because
    of the clip; `kl`, from the base; `entropy` in the first update, in nats), and the log-probabilities of the first
    update, (T,) per row.

    Example:
        figures, logprobs = update(trainee, rows, config, lambda: trainee.step(optimizer, 1e-4, 1.0))
        print(figures["loss"], figures["grad_norm"])
    """
    n, clipped = cfg.rl.updates, 0
    loss = grad_norm = entropy = divergence = 0.0
    first = [np.zeros(0)] * len(rows)
    for number in range(n):
        for part in _parts_of(rows, cfg):
            batch = _Batch(trainee, [rows[i] for i in part], laser and laser[0])
            logprobs, entropies = batch.logprobs(cfg.lora.tile, entropy=number == 0)  # (B, T)
            piece = _loss(batch, logprobs, cfg.rl, laser)
            value = float(piece.total.detach())
            check(part, {"loss": value})
            piece.total.backward()  # type: ignore[no-untyped-call]
            loss += value
            clipped += int(piece.clipped)
            divergence += float(piece.divergence)
            if entropies is not None:
                entropy += float(entropies[batch.mask].sum())
                for i, line in zip(part, batch.of_rows(logprobs), strict=True):
                    first[i] = line
        norm = apply()
        check(range(len(rows)), {"grad_norm": norm})
        grad_norm += norm
    tokens = sum(int(row.mask.sum()) for row in rows)
    figures = {"loss": loss / n, "grad_norm": grad_norm / n, "entropy": entropy / tokens}
    return figures | {"clip_share": clipped / (n * tokens), "kl": divergence / (n * tokens)}, first


def _loss(batch: _Batch, logprobs: Tensor, rl: RlConfig, laser: tuple[int, float] | None) -> losses.PolicyLoss:
    """The part of the loss of all rows that those of `batch` make up; `logprobs` (B, T)."""
    rows = batch.rows
    old = batch.per_token([row.old for row in rows], logprobs)
    piece = losses.policy_loss(
        logprobs,
        logprobs.detach() if old is None else old,
        batch.per_token([row.advantages for row in rows], logprobs),  # type: ignore[arg-type]  # every row has some
        batch.mask,
        logprobs.new_tensor([row.weight for row in rows]),
        loss=rl.loss,
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
        decay=rl.trace,
        correction=batch.per_token([row.correction for row in rows], logprobs),
        reference=batch.per_token([row.base for row in rows], logprobs),
        kl=rl.kl,
    )
    if laser is None:
        return piece
    scores = losses.self_scores(batch.at_mark(logprobs), laser[1])
    rewards = logprobs.new_tensor([row.reward for row in rows])
    weights = logprobs.new_tensor([row.class_weight for row in rows])
    return piece._replace(total=piece.total + rl.laser * losses.self_score_loss(scores, rewards, weights))


def mismatch_of(logprobs: Sequence[Floats], rows: Sequence[RolloutRow]) -> losses.Mismatch:
    """How far the trainer, with `logprobs` (T,) of each of `rows`, is from the sampler that drew them.

    >>> row = RolloutRow((5,), (9, 2), np.array([-0.5, -1.0]))
    >>> mismatch_of([np.array([-0.5, -1.1])], [row]).mean.__round__(3)
    0.05
    """
    trainer = [line[row.mask] for line, row in zip(logprobs, rows, strict=True)]
    return losses.mismatch(np.concatenate(trainer), np.concatenate([row.sampler[row.mask] for row in rows]))


# ---- the teacher of on-policy distillation: models.strong, reading what the student wrote ----
# Both must have the same tokens and write prompts alike, which is checked before anything is sampled.


def check_teacher(
    teacher: Engine, student: Engine, problems: Iterable[Problem], prompts: Mapping[str, Sequence[int]], cfg: Config
) -> None:
    """Raise ConfigError where `teacher` cannot read what `student` writes after `prompts` (ids by problem id).

    Tokens may be missing at the end of either vocabulary, where some models of a family have padding.

    Example:
        check_teacher(teacher, sampler.engine, problems, prompts, config)
    """
    ours, theirs = student.vocabulary, teacher.vocabulary
    for token in range(min(ours.size, theirs.size)):
        if ours.text(token) != theirs.text(token):
            raise ConfigError(
                f"models.strong.model is {cfg.models.strong.model}, whose token {token} is {theirs.text(token)!r}, but "
                f"{ours.text(token)!r} in models.weak.model, {cfg.models.weak.model}; {_OTHER}"
            )
    for problem in problems:
        student_ids, read = list(prompts[problem.id]), teacher.prompt_ids(cfg.prompt, problem.question)
        if student_ids != read:
            raise ConfigError(
                f"models.strong.model is {cfg.models.strong.model}, which writes the prompt of problem {problem.id!r} "
                f"as {len(read)} tokens, but models.weak.model, {cfg.models.weak.model}, as {len(student_ids)}, or "
                f"others: another tokenizer or chat template; {_OTHER}"
            )
    longest = min(max(map(len, prompts.values())) + cfg.rl.max_tokens, student.context)
    if teacher.context < longest:
        raise ConfigError(
            f"models.strong.context is {teacher.context}, but a prompt and its rollout may have {longest} tokens; "
            "raise it, or lower rl.max_tokens"
        )


def read_logprobs(
    engine: Engine, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], max_logits: int = _MAX_LOGITS
) -> tuple[list[NDArray[np.float64] | str], int]:
    """Log p(token | all before it) of every token of each (prompt, rollout), neither empty: (T,) per rollout, or why
    it could not be read. With how many tokens were evaluated.

    Of all calls together no more than `max_logits` logits are in memory at once; each goes on in the cache of the one
    before.

    Example:
        logprobs, evaluated = read_logprobs(engine, [(prompt_ids, rollout_ids)])
    """
    size, evaluated = engine.vocabulary.size, 0
    logprobs: list[NDArray[np.float64] | str] = [np.zeros(len(ids)) for _, ids in sequences]
    tokens = [(i, t) for i, (_, ids) in enumerate(sequences) for t in range(len(ids))]
    per_call = max(1, max_logits // size)
    for first in range(0, len(tokens), per_call):
        grouped = groupby(tokens[first : first + per_call], key=lambda token: token[0])
        part = [(i, [t for _, t in group]) for i, group in grouped]
        whole = [(*sequences[i][0], *sequences[i][1]) for i, _ in part]
        # The logits of a token stand at the position before it.
        positions = [[len(sequences[i][0]) + t - 1 for t in places] for i, places in part]
        results = engine.score(whole, positions, range(size))
        evaluated += sum(result.evaluated_tokens for result in results)
        for (i, places), result in zip(part, results, strict=True):
            values = logprobs[i]
            if result.error:
                logprobs[i] = result.error
            elif not isinstance(values, str):
                values[places] = _logprobs(result.logits, [sequences[i][1][t] for t in places])
    return logprobs, evaluated


def _logprobs(logits: NDArray[np.float32], ids: Sequence[int]) -> NDArray[np.float64]:
    """Of each row of `logits` (T, V), the log-probability of its token of `ids` (T,)."""
    logits -= logits.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = np.exp(logits).sum(axis=1, dtype=np.float64)
    chosen: NDArray[np.float64] = logits[np.arange(len(ids)), list(ids)].astype(np.float64) - np.log(total)
    return chosen
