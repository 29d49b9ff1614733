"""The teacher of on-policy distillation (`rl.credit.scheme` "distill"): models.strong, reading what the student wrote.

It reads the student's own token ids, so both must have the same tokens and write prompts alike: checked before anything
is sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.models.engine import Engine
from stepwise.types import Problem

_MAX_LOGITS = 1 << 25  # numbers that one call brings back at most (128 MB): a whole vocabulary for every token read
_OTHER = "a teacher reads the student's token ids: give a models.strong of the same family as models.weak"


def check_teacher(
    teacher: Engine, student: Engine, problems: Iterable[Problem], prompts: Mapping[str, Sequence[int]], cfg: Config
) -> None:
    """Raise ConfigError where `teacher` cannot read what `student` writes after `prompts` (ids by problem id).

    Tokens may be missing at the end of either vocabulary, where some models of a family have padding.
    """
    ours, theirs = student.vocabulary, teacher.vocabulary
    for token in range(min(ours.size, theirs.size)):
        if ours.text(token) != theirs.text(token):
            raise ConfigError(
                f"models.strong.model is {cfg.models.strong.model}, whose token {token} is {theirs.text(token)!r}, but "
                f"{ours.text(token)!r} in models.weak.model, {cfg.models.weak.model}; {_OTHER}"
            )
    for problem in problems:
        mine, read = list(prompts[problem.id]), teacher.prompt_ids(cfg.prompt, problem.question)
        if mine != read:
            raise ConfigError(
                f"models.strong.model is {cfg.models.strong.model}, which writes the prompt of problem {problem.id!r} "
                f"as {len(read)} tokens, but models.weak.model, {cfg.models.weak.model}, as {len(mine)}, or others: "
                f"another tokenizer or chat template; {_OTHER}"
            )
    longest = min(max(map(len, prompts.values())) + cfg.rl.max_tokens, cfg.models.weak.context)
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
