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
from typing import Any

from torch import Tensor

from stepwise.config import Config
from stepwise.config.training import SftConfig
from stepwise.data.examples import Chat, Example, read_training_rows
from stepwise.errors import DataError
from stepwise.runs.directory import RunDirectory, opened
from stepwise.training.adapters import base_directory, check_adapter
from stepwise.training.batches import for_few_rows, plan_steps
from stepwise.training.logprobs import weighted_logprobs
from stepwise.training.lora import Trainee, load_trainee
from stepwise.training.rendering import TokenRow, render_all
from stepwise.training.trainer import finish, finished_adapter, fit, run_arguments


def sft(
    dataset: str | Path | Sequence[Example | Chat] | Any,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    adapter: str | Path | None = None,
    replay: str | Path | Sequence[Example] | None = None,
    sinks: Sequence[str] = (),
) -> Path:
    """Train an adapter of `models.weak` on a dataset; returns the adapter's directory, `out`/adapter.

    `dataset` is a file that `collect` or the dataset builder wrote, a `datasets.Dataset`, or rows; rows with `messages`
    or `prompt` and `completion` are read, too (see `read_training_rows`). `out` is a directory, or one that is open
    already. `adapter` is a directory of an earlier adapter to go on with, `replay` has the model's own right solutions
    for `sft.replay`, `sinks` are names for `stepwise.training.sinks`. The same call goes on where it was stopped.
    Raises DataError, naming the row, for rows that cannot be trained on, ConfigError for weights or settings,
    BackendError where memory runs out.

    Example:
        adapter = sft("out/intervene/dataset.jsonl", sw.Config.lab(), "out/sft")
        weak = sw.ModelConfig(model="llamacpp/lab-weak", adapter=str(adapter / "adapter.gguf"))
    """
    cfg = Config.of(cfg, "cfg")
    rows, again = (read_training_rows(source, cfg.prompt) for source in (dataset, replay or []))
    arguments = run_arguments(adapter, rows=rows, replay=again)
    with opened(out, program="sft", config=cfg, arguments=arguments) as directory:
        if (finished := finished_adapter(directory, str(arguments["data"]))) is not None:
            return finished
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
        train_rows(trainee, tokens[: len(rows)], cfg, directory, replay=tokens[len(rows) :],
                   data=str(arguments["data"]), sinks=sinks)  # fmt: skip
        return finish(directory, trainee, cfg, "sft", {"dataset": rows, "replay": again})


def _schedule(rows: Sequence[TokenRow], replay: Sequence[TokenRow], settings: SftConfig, seed: int) -> list[list[int]]:
    """Which rows make up each optimizer step; replay rows are counted on after the others. See `plan_steps`."""

    def members(rng: random.Random) -> list[int]:
        order = list(range(len(rows)))
        extra = round(len(rows) * settings.replay / (1 - settings.replay))
        while extra > 0:
            order += [len(rows) + i for i in rng.sample(range(len(replay)), min(extra, len(replay)))]
            extra -= len(replay)
        return order

    return plan_steps([row.num_trained for row in (*rows, *replay)], settings, f"{seed}|sft", members)


def train_rows(
    trainee: Trainee,
    rows: Sequence[TokenRow],
    cfg: Config,
    directory: RunDirectory,
    *,
    replay: Sequence[TokenRow] = (),
    data: str = "",
    sinks: Sequence[str] = (),
    label: str = "supervised training",
) -> None:
    """`fit` on rows of tokens, with a share of those of `replay` in every epoch: the loss of a step is
    sum(w * -log p) / sum(w), in nats, over its target tokens.

    Example:
        train_rows(trainee, render_all(examples, trainee.tokenizer, config.prompt, config.sft), config, directory)
    """
    every, settings = [*rows, *replay], for_few_rows(cfg.sft, len(rows), cfg.models.weak.model)
    batches = [[every[i] for i in batch] for batch in _schedule(rows, replay, settings, cfg.seed)]

    def loss(part: Sequence[TokenRow]) -> tuple[Tensor, dict[str, float]]:
        return weighted_nll(trainee, part, cfg.lora.tile), {}

    fit(trainee, batches, loss, settings, cfg, directory, data=data, label=label, sinks=sinks)


def weighted_nll(trainee: Trainee, rows: Sequence[TokenRow], tile: int) -> Tensor:
    """sum(w * -log p) over the target tokens of `rows`, a scalar tensor.

    Example:
        loss = weighted_nll(trainee, rows, config.lora.tile) / sum(row.weight for row in rows)
    """
    return -weighted_logprobs(trainee, rows, tile).sum()
