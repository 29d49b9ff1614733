"""One side of one case of `training_memory`, alone in its process: a job as JSON on standard input, figures on the last
line of standard output.

Both sides train the same adapter on the same model: weights, first adapter, rows, loss, optimizer, micro-batches and
checkpointing are equal, so that loss and gradient norm of the first step are too, and are given back as evidence.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from stepwise.config import Config
from stepwise.config.training import LoraConfig

from .training_memory_meter import Meter

Side = Literal["stepwise", "trl"]
Base = Literal["float32", "bfloat16", "4bit"]
RATE = 1e-4


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Case:
    """What is trained: `rows` sequences of `prompt` + `completion` tokens per step, `micro` of them at a time, on the
    first `layers` layers of a shape (None: all).
    """

    shape: str
    layers: int | None
    method: Literal["sft", "grpo"]
    base: Base
    rows: int
    prompt: int
    completion: int
    micro: int
    checkpointing: bool

    @property
    def tokens(self) -> int:
        """Tokens of a step, prompts included."""
        return self.rows * (self.prompt + self.completion)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Job:
    """A case for one side; `model` is a directory in transformers' layout, `lora` as in the configuration."""

    side: Side
    case: Case
    model: str
    lora: LoraConfig
    device: str
    repeats: int
    threads: int
    seed: int


class Data:
    """Random rows of a case, and an advantage for each: ids (rows, prompt + completion)."""

    def __init__(self, job: Job) -> None:
        vocabulary = json.loads((Path(job.model) / "config.json").read_text())["vocab_size"]
        rng = np.random.default_rng(job.seed)
        case = job.case
        self.ids = rng.integers(0, vocabulary, (case.rows, case.prompt + case.completion))
        self.advantages = rng.standard_normal(case.rows)


def run(job: Job) -> dict[str, Any]:
    """The figures of a job: those of `Meter.result`, and loss and gradient norm of the first step."""
    data, meter = Data(job), Meter(job.device, job.repeats)
    import torch

    torch.set_num_threads(job.threads)
    sides = {"stepwise": _ours, "trl": _trl_sft if job.case.method == "sft" else _trl_grpo}
    loss, norm = sides[job.side](job, data, meter)
    return {**meter.result(), "loss": loss, "grad_norm": norm}


def _config(job: Job) -> Config:
    case = job.case
    width = case.prompt + case.completion
    return Config.load(
        None,
        [
            f"seed={job.seed}",
            f"models.weak.model={json.dumps(f'llamacpp/{job.model}/none.gguf')}",
            f"models.weak.train_from={json.dumps(job.model)}",
            f"models.weak.context={max(width, 64)}",
            f"lora.rank={job.lora.rank}",
            f"lora.alpha={job.lora.alpha}",
            f"lora.tile={job.lora.tile}",
            f"lora.base={case.base}",
            f"lora.device={job.device}",
            f"lora.checkpointing={json.dumps(case.checkpointing)}",
            f"lora.micro_tokens={case.micro * width}",
            "sft.clip_norm=1.0",
            "rl.clip_norm=1.0",
            "rl.loss=dr_grpo",
            f"rl.max_tokens={case.completion}",
        ],
    )


def _ours(job: Job, data: Data, meter: Meter) -> tuple[float, float]:
    """Steps of the library's own functions."""
    from stepwise.training.lora import load_trainee
    from stepwise.training.losses import rollout_weights
    from stepwise.training.policy import RolloutRow, update
    from stepwise.training.rendering import TokenRow
    from stepwise.training.supervised import weighted_nll
    from stepwise.training.trainer import train_step

    case, cfg = job.case, _config(job)
    trainee = load_trainee(cfg)
    optimizer = trainee.optimizer(RATE)
    weights = rollout_weights([case.completion] * case.rows, cfg.rl.loss, case.completion)
    ones = np.ones(case.completion)

    def supervised() -> tuple[float, float]:
        rows = [TokenRow(tuple(line), case.prompt, tuple(ones.tolist())) for line in data.ids.tolist()]

        def loss(part: Any) -> tuple[Any, dict[str, float]]:
            return weighted_nll(trainee, part, cfg.lora.tile), {}

        means, norm = train_step(trainee, optimizer, rows, loss, cfg.lora, RATE, cfg.sft.clip_norm, job.seed)
        return means["loss"], norm

    def reinforced() -> tuple[float, float]:
        rows = [
            RolloutRow(
                tuple(line[: case.prompt]), tuple(line[case.prompt :]), advantages=advantage * ones, weight=weight
            )
            for line, advantage, weight in zip(data.ids.tolist(), data.advantages, weights, strict=True)
        ]
        figures, _ = update(trainee, rows, cfg, lambda: trainee.step(optimizer, RATE, 1.0))
        return figures["loss"], figures["grad_norm"]

    found = []
    for _ in range(meter.steps):
        meter.begin()
        found.append(supervised() if case.method == "sft" else reinforced())
        meter.end()
    return found[0]


def _trl() -> tuple[Any, Any]:
    """The packages datasets and trl, which have no types that could be checked."""
    return importlib.import_module("datasets"), importlib.import_module("trl")


def _trl_settings(job: Job, meter: Meter, folder: str) -> dict[str, Any]:
    """What SFTConfig and GRPOConfig have in common."""
    case = job.case
    return {
        "output_dir": folder,
        "max_steps": meter.steps,
        "per_device_train_batch_size": case.micro,
        "gradient_accumulation_steps": case.rows // case.micro,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": case.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": job.device == "cpu",
        "bf16": case.base != "float32",
        "fp16": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": job.seed,
    }


def _trl_model(job: Job) -> dict[str, Any]:
    """Base, tokenizer and adapter as the trainers of TRL take them."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stepwise.training.lora import four_bits

    options: dict[str, Any] = {"dtype": torch.float32 if job.case.base == "float32" else torch.bfloat16}
    if job.case.base == "4bit":
        options |= {"quantization_config": four_bits(job.device), "device_map": {"": job.device}}
    adapter = peft.LoraConfig(
        r=job.lora.rank, lora_alpha=job.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = AutoModelForCausalLM.from_pretrained(job.model, **options)
    torch.manual_seed(job.seed)  # the adapter's first weights are those of the other side
    return {"model": model, "processing_class": AutoTokenizer.from_pretrained(job.model), "peft_config": adapter}


def _train(trainer: Any, meter: Meter) -> tuple[float, float]:
    """Run a trainer of transformers under the meter; loss and gradient norm of its first step."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            meter.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            meter.end()

    trainer.add_callback(Steps())
    trainer.train()
    first = trainer.state.log_history[0]
    return float(first["loss"]), float(first["grad_norm"])


def _trl_sft(job: Job, data: Data, meter: Meter) -> tuple[float, float]:
    datasets, trl = _trl()
    case = job.case
    labels = np.where(np.arange(data.ids.shape[1]) < case.prompt, -100, data.ids)
    rows = datasets.Dataset.from_dict({"input_ids": data.ids.tolist(), "labels": labels.tolist()})
    with tempfile.TemporaryDirectory() as folder:
        config = trl.SFTConfig(**_trl_settings(job, meter, folder), max_length=data.ids.shape[1], packing=False)
        return _train(trl.SFTTrainer(**_trl_model(job), args=config, train_dataset=rows), meter)


def _trl_grpo(job: Job, data: Data, meter: Meter) -> tuple[float, float]:
    """The training part: rollouts and advantages are given, nothing is generated."""
    import torch

    datasets, trl = _trl()
    case = job.case
    trainer_class: Any = trl.GRPOTrainer

    class Trainer(trainer_class):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            ids = torch.from_numpy(data.ids).to(self.accelerator.device)
            ones = torch.ones_like(ids)
            return {
                "prompt_ids": ids[:, : case.prompt],
                "prompt_mask": ones[:, : case.prompt],
                "completion_ids": ids[:, case.prompt :],
                "completion_mask": ones[:, case.prompt :],
                "advantages": torch.from_numpy(data.advantages).float().to(ids.device),
                "num_items_in_batch": ones[:, case.prompt :].sum(),
            }

    prompts = datasets.Dataset.from_dict({"prompt": ["1 + 1 = ?"] * case.rows})
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            **_trl_settings(job, meter, folder),
            num_generations=case.rows,
            max_completion_length=case.completion,
            loss_type="dr_grpo",
            beta=0.0,
        )
        trainer = Trainer(
            **_trl_model(job), args=config, train_dataset=prompts, reward_funcs=lambda completions, **_: [0.0]
        )
        return _train(trainer, meter)


if __name__ == "__main__":
    print(json.dumps(run(TypeAdapter(Job).validate_json(sys.stdin.read()))))
