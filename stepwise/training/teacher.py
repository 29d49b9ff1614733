"""The teacher of on-policy distillation (`rl.credit.scheme` "distill"): models.strong, reading what the student wrote.

It reads the student's own token ids, so both must have the same tokens and write prompts alike: checked before anything
is sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.types import Problem

if TYPE_CHECKING:
    from stepwise.models.engine import Engine

MOST_LOGITS = 1 << 25
"""Numbers that one call brings back at most (128 MB): a whole vocabulary for every token that is read."""
_OTHER = "a teacher reads the student's token ids: give a models.strong of the same family as models.weak"


def load_teacher(cfg: Config) -> Engine:
    """models.strong on an engine of its own; ConfigError where it is not local, and what `load_engine` raises."""
    from stepwise.models.engine import load_engine

    strong = cfg.models.strong
    if not strong.local:
        raise ConfigError(
            f'models.strong.model is "{strong.model}", but rl.credit.scheme = "distill" needs the log-probabilities of '
            'every token, from the in-process engine; write "llamacpp/PATH.gguf", or choose another scheme'
        )
    return load_engine(strong)


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
    engine: Engine, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[list[NDArray[np.float64] | str], int]:
    """Log p(token | all before it) of every token of each (prompt, rollout), neither empty: (T,) per rollout, or why
    it could not be read. With how many tokens were evaluated.

    Of all calls together no more than `MOST_LOGITS` logits are in memory at once; each goes on in the cache of the one
    before.
    """
    size = engine.vocabulary.size
    found: list[NDArray[np.float64] | str] = [np.zeros(len(ids)) for _, ids in sequences]
    evaluated = 0
    for part in _parts([len(ids) for _, ids in sequences], max(1, MOST_LOGITS // size)):
        whole = [(*sequences[i][0], *sequences[i][1]) for i, _, _ in part]
        # The logits of a token stand at the position before it.
        wanted = [range(len(sequences[i][0]) + a - 1, len(sequences[i][0]) + b - 1) for i, a, b in part]
        made = engine.score(whole, [list(places) for places in wanted], range(size))
        evaluated += sum(one.evaluated_tokens for one in made)
        for (i, start, stop), one in zip(part, made, strict=True):
            values = found[i]
            if one.error:
                found[i] = one.error
            elif not isinstance(values, str):
                values[start:stop] = _logprobs(one.logits, sequences[i][1][start:stop])
    return found, evaluated


def _logprobs(logits: NDArray[np.float32], ids: Sequence[int]) -> NDArray[np.float64]:
    """Of each row of `logits` (T, V), the log-probability of its token of `ids` (T,)."""
    logits -= logits.max(axis=1, keepdims=True)
    total: NDArray[np.float64] = np.exp(logits).sum(axis=1, dtype=np.float64)
    found: NDArray[np.float64] = logits[np.arange(len(ids)), list(ids)].astype(np.float64) - np.log(total)
    return found


def _parts(lengths: Sequence[int], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """Calls of at most `most` tokens each: (index, start, stop) of what is read of the sequences of these lengths."""
    part: list[tuple[int, int, int]] = []
    room = most
    for i, length in enumerate(lengths):
        start = 0
        while start < length:
            stop = min(length, start + room)
            part.append((i, start, stop))
            room, start = room - (stop - start), stop
            if not room:
                yield part
                part, room = [], most
    if part:
        yield part
