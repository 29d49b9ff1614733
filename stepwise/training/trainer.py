"""What the methods share: one optimizer step, one checkpoint, one metrics file, and the end of a run.

Nothing random is carried from step to step: random numbers follow from the run's seed and the step, so that a run that
is killed goes on from its last checkpoint as it would have.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from stepwise.config import Config
from stepwise.config.training import FitConfig, LoraConfig
from stepwise.errors import BudgetExceededError, DataError
from stepwise.io import append_rows, read_json, read_rows, write_rows
from stepwise.models.store import key_of
from stepwise.records import to_json
from stepwise.runs.directory import RunDirectory
from stepwise.runs.progress import announce, progress
from stepwise.training.adapters import LAYOUT
from stepwise.training.batches import in_words, micro_batches
from stepwise.training.cards import Method, curves_of, write_card
from stepwise.training.checkpoint import CHECKPOINT_FILES, check_same, load_checkpoint, save_checkpoint
from stepwise.training.lora import Trainee, memory_errors, peak_bytes
from stepwise.training.memory import fitted
from stepwise.training.sinks import STATE, open_sinks


class _TrainedRow(Protocol):
    """A row of a dataset as `fit` takes it; a dataclass."""

    @property
    def size(self) -> int:
        """Tokens that go through the model, padding included."""

    @property
    def num_trained(self) -> int:
        """Tokens with a loss."""

    @property
    def weight(self) -> float:
        """The row's share of the mean that the loss of a step is."""


Row = TypeVar("Row", bound=_TrainedRow)
Loss = Callable[[Sequence[Row]], tuple[Tensor, dict[str, float]]]
_METRICS, _CHECKPOINT, _ADAPTER = "metrics.jsonl", "checkpoint", "adapter"
_ADAPTER_FILES = (*LAYOUT, "adapter.gguf", "README.md", "card.json")


class Trainer:
    """The files of a training run, gone on with from its last checkpoint; used in a `with` block.

    `done` is the number of optimizer steps that the checkpoint has, `state` what the method keeps in it beside the
    adapter and the optimizer (plain JSON). `data` is a hash of what is trained on: DataError for a checkpoint of other
    data. `failed` is where a batch goes whose loss is not finite; `plan` is said before the first step.

    Example:
        saving = {"num_steps": 100, "save_every": 20, "save_minutes": 10.0}
        with Trainer(directory, trainee, config, optimizer, **saving, data="a1b2", label="SFT", plan="") as run:
            print(run.done, "steps are done already")
    """

    def __init__(
        self,
        directory: RunDirectory,
        trainee: Trainee,
        cfg: Config,
        optimizer: torch.optim.Optimizer,
        *,
        num_steps: int,
        save_every: int,
        save_minutes: float,
        data: str,
        label: str,
        plan: str,
        sinks: Sequence[str] = (),
    ) -> None:
        self.trainee, self.optimizer, self.num_steps = trainee, optimizer, num_steps
        self._save_every, self._save_seconds, self._saved_at = save_every, 60 * save_minutes, time.monotonic()
        out = directory.made()
        for folder in (_CHECKPOINT, f"{_CHECKPOINT}.old"):  # claimed, so that --overwrite removes them
            for name in CHECKPOINT_FILES:
                directory.claim(f"{folder}/{name}")
        self._checkpoint, self._metrics = out / _CHECKPOINT, directory.claim(_METRICS)
        self.failed = directory.claim("failed-batch.jsonl")
        directory.claim(STATE)
        self.done, self.state = load_checkpoint(self._checkpoint, trainee, optimizer)
        self._logged = self._saved = self.done
        self._updates = trainee.num_updates  # of the optimizer, in all that is logged
        check_same(self._checkpoint, self.state.setdefault("data", data), data)
        rows = read_rows(self._metrics)
        if len(rows_before := [row for row in rows if row.get("step", 0) <= self.done]) < len(rows):
            write_rows(self._metrics, rows_before)  # the steps after the checkpoint are done again
        self._stack = ExitStack()
        self._sinks = self._stack.enter_context(open_sinks(sinks, out, cfg.model_dump(mode="json"), self.done + 1))
        announce(f"{label}: {plan}")
        self._bar = self._stack.enter_context(progress(label, num_steps, done=self.done))

    def log(self, row: Mapping[str, Any], note: str) -> None:
        """The end of a step: write the row of its metrics, and a checkpoint where it is time for one."""
        step = int(row["step"])
        append_rows(self._metrics, [row])
        self._logged, self._updates = step, self.trainee.num_updates
        self._sinks.log(step, row)
        self._bar(1, note)
        late = time.monotonic() - self._saved_at >= self._save_seconds
        if step % self._save_every == 0 or step == self.num_steps or late:
            self._save()

    def _save(self) -> None:
        save_checkpoint(self._checkpoint, self._logged, self.trainee, self.optimizer, self.state)
        self._saved, self._saved_at = self._logged, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # Stopped between two steps, by a cap or by Ctrl-C, the weights are those of the last step that was logged.
        whole = self.trainee.num_updates == self._updates and self._logged > self._saved
        if whole and isinstance(error, BudgetExceededError | KeyboardInterrupt):
            self._save()
        self._stack.__exit__(kind, error, trace)


def finish(
    directory: RunDirectory, trainee: Trainee, cfg: Config, method: Method, data: Mapping[str, Sequence[Any]]
) -> Path:
    """Write the adapter (PEFT's layout and GGUF) with its card to the run's folder adapter; returns the folder.

    `data` has the rows that were trained on by name; curves are read from metrics.jsonl.

    Example:
        folder = finish(directory, trainee, config, "sft", {"dataset": rows})
    """
    for name in _ADAPTER_FILES:
        directory.claim(f"{_ADAPTER}/{name}")
    folder = trainee.save(directory.path / _ADAPTER)
    trainee.export(folder / "adapter.gguf")
    curves = curves_of(read_rows(directory.path / _METRICS))
    given = {name: rows for name, rows in data.items() if rows}
    write_card(folder, method, cfg, trainee.base, data=given, curves=curves)
    return folder


def finished_adapter(directory: RunDirectory, data: str) -> Path | None:
    """The adapter of a run on `data` (a hash) that has come to its end already, None for any other run. Raises
    DataError where it was made from other data.

    Example:
        adapter = finished_adapter(directory, data="a1b2")
    """
    state, folder = directory.path / _CHECKPOINT / "state.json", directory.path / _ADAPTER
    if not directory.finished or not state.is_file() or not (folder / "card.json").is_file():
        return None
    known = read_json(state, "remove it, and the run begins anew", {"extra": dict})["extra"].get("data")
    check_same(state.parent, known, data)
    announce(f"the adapter is trained already: {folder}")
    return folder


def run_arguments(adapter: str | Path | None, **data: Sequence[Any]) -> dict[str, Any]:
    """What makes a run the same run: how many rows of what, a hash over them, and the adapter that it begins with.

    Example:
        arguments = run_arguments(None, dataset=rows)  # {"dataset": 120, "data": "a1b2...", "adapter": None}
    """
    rows = {name: [to_json(row) for row in given] for name, given in data.items() if given}
    counts = {name: len(given) for name, given in rows.items()}
    return {**counts, "data": key_of(rows), "adapter": str(adapter) if adapter else None}


def fit(
    trainee: Trainee,
    batches: Sequence[Sequence[Row]],
    loss: Loss[Row],
    settings: FitConfig,
    cfg: Config,
    directory: RunDirectory,
    *,
    data: str,
    label: str,
    sinks: Sequence[str] = (),
) -> None:
    """One optimizer step on each of `batches`, from the last checkpoint in `directory` on, which names `data` (a hash).

    `loss` gives of some rows the sum of their losses, a scalar tensor, and sums of what is logged beside it; a step's
    loss is the mean by the rows' weights. Raises DataError where a checkpoint there names other data, where the first
    gradient is 0, so that nothing would be trained, and for a loss that is not finite, with the batch on disk;
    BackendError where memory runs out.

    Example:
        fit(trainee, batches, loss, config.sft, config, directory, data="a1b2", label="training")
    """
    optimizer = trainee.optimizer(settings.learning_rate, settings.weight_decay)
    plan = in_words(len({id(row) for rows in batches for row in rows}), len(batches), settings)
    with Trainer(
        directory, trainee, cfg, optimizer,
        num_steps=len(batches), save_every=settings.save_every, save_minutes=settings.save_minutes, data=data,
        label=label, plan=plan, sinks=sinks,
    ) as run:  # fmt: skip
        lora = _fitted(trainee, batches[run.done :], loss, cfg.lora, run.state)
        _try_largest(trainee, batches[run.done :], loss, lora)
        for step in range(run.done, len(batches)):
            start_time, rows = time.monotonic(), batches[step]
            rate = _cosine(step, len(batches), settings.learning_rate, settings.warmup)
            seed = cfg.seed * 1_000_003 + step
            means, grad_norm = train_step(trainee, optimizer, rows, loss, lora, rate, settings.clip_norm, seed)
            plain = [dataclasses.asdict(row) for row in rows]  # type: ignore[call-overload]
            check_finite({"loss": means["loss"], "grad_norm": grad_norm}, plain, run.failed)
            if step == 0 and grad_norm == 0:
                raise DataError(
                    f"{label}: the gradient of the first step is 0, so that nothing would be trained; look at its "
                    f"{len(rows)} rows, first {plain[0]!s:.200}"
                )
            run.state["tokens"] = run.state.get("tokens", 0) + sum(row.num_trained for row in rows)
            row = {
                "step": step + 1,
                **means,
                "tokens": run.state["tokens"],
                "grad_norm": grad_norm,
                "learning_rate": rate,
                "rows": len(rows),
                "seconds": round(time.monotonic() - start_time, 4),
                "peak_bytes": peak_bytes(trainee.device),
            }
            run.log(row, f"loss {means['loss']:.3f}, {row['tokens']:,} tokens")


def train_step(
    trainee: Trainee,
    optimizer: Any,
    rows: Sequence[Row],
    loss: Loss[Row],
    lora: LoraConfig,
    rate: float,
    clip_norm: float,
    seed: int,
) -> tuple[dict[str, float], float]:
    """One optimizer step on `rows`: means of the loss and of what is logged beside it, and the gradient's norm.

    Example:
        figures, norm = train_step(trainee, optimizer, rows, loss, config.lora, rate=1e-4, clip_norm=1.0, seed=1)
    """
    torch.manual_seed(seed)  # of dropout, which is all that is random here
    total, means = sum(row.weight for row in rows), dict[str, float]()
    with memory_errors(lora):
        for part in _parts(rows, lora):
            summed, figures = loss(part)
            piece = summed / total  # the pieces' gradients add up to the batch's
            piece.backward()  # type: ignore[no-untyped-call]
            shares = {"loss": float(piece.detach())} | {name: value / total for name, value in figures.items()}
            means = {name: means.get(name, 0.0) + share for name, share in shares.items()}
        return means, trainee.step(optimizer, rate, clip_norm)


def _parts(rows: Sequence[Row], lora: LoraConfig) -> list[list[Row]]:
    """`rows` in micro-batches of at most `lora.micro_tokens`."""
    return [[rows[i] for i in group] for group in micro_batches([row.size for row in rows], lora.micro_tokens)]


def _fitted(
    trainee: Trainee, batches: Sequence[Sequence[Row]], loss: Loss[Row], lora: LoraConfig, state: dict[str, Any]
) -> LoraConfig:
    """[lora] with micro-batches that fit into memory, by a pass over the longest row."""
    longest = max((row for rows in batches for row in rows), key=lambda row: row.size, default=None)
    if longest is None:
        return lora

    def probe() -> None:
        loss([longest])[0].backward()  # type: ignore[no-untyped-call]
        trainee.model.zero_grad(set_to_none=True)

    return fitted(lora, trainee.device, longest.size, probe, state)


def _try_largest(trainee: Trainee, batches: Sequence[Sequence[Row]], loss: Loss[Row], lora: LoraConfig) -> None:
    """Forward and backward over the largest micro-batch of `batches`: a lack of memory shows before the work."""
    parts = [part for rows in batches for part in _parts(rows, lora)]
    if parts:
        with memory_errors(lora):
            loss(max(parts, key=lambda part: len(part) * max(row.size for row in part)))[0].backward()  # type: ignore[no-untyped-call]
        trainee.model.zero_grad(set_to_none=True)


# ---- one step of the optimizer ----


def _cosine(step: int, steps: int, peak: float, warmup: float) -> float:
    """Learning rate of step `step` (0-based) of `steps`: up in a line, then down as a cosine to a tenth of the peak."""
    up = warmup * steps
    if step < up:
        return peak * (step + 1) / (up + 1)
    share = (step - up) / max(1.0, steps - up)
    return peak * (0.1 + (1 - 0.1) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def check_finite(values: Mapping[str, float], batch: Sequence[Any], path: Path) -> None:
    """Raise DataError where one of `values` is not finite, after writing the rows of `batch` to `path`.

    >>> check_finite({"loss": 0.7}, [], Path("failed.jsonl"))  # raises for {"loss": nan}
    """
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        write_rows(path, batch)
        raise DataError(
            f"training stopped: {', '.join(wrong)}; the batch is in {path}: look at it, or lower the learning rate"
        )
