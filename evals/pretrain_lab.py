"""Make the lab's models from nothing: tokenizer, lab-weak, lab-strong, lab-scorer and the adapter lab-critic.

Safetensors and GGUF of each. About two hours on two CPU cores. A killed run goes on at its last checkpoint. `--install`
copies the result to where the library loads it from. `evals.lab` and `evals.conditioning` then measure it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from stepwise.models.safetensors import fingerprint, read_json
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.training.export.gguf import export_gguf, export_lora_gguf

from . import lab_corpus as corpus
from .lab_critic import criticized, repaired
from .lab_training import Recipe, Shape, new_model, pack, spread_unused, train

TOKENS = {"lab-weak": 9_000_000, "lab-strong": 4_500_000, "lab-scorer": 2_500_000, "lab-critic": 24_000_000}
START_FROM = {"lab-weak": None, "lab-strong": "lab-weak", "lab-scorer": "lab-weak", "lab-critic": "lab-weak"}
RANK = 64  # of the adapter lab-critic, on every linear layer of the frozen lab-weak


class _Options(Options):
    threads: int = 2
    """CPU threads"""
    share: float = 1.0
    """share of each model's tokens, to try it out"""
    seed: int = 0
    """seed of weights and corpora"""
    no_compile: bool = False
    """do not use torch.compile"""
    float32: bool = False
    """no bfloat16, which some CPUs only emulate"""
    only: tuple[Literal["lab-weak", "lab-strong", "lab-scorer", "lab-critic"], ...] = (
        "lab-weak",
        "lab-strong",
        "lab-scorer",
        "lab-critic",
    )
    """models to make"""
    base: Path | None = None
    """take tokenizer and lab-weak from an earlier run's directory"""
    repair: int = 0
    """N more tokens for lab-critic, on the steps that it writes"""
    critic: Path | None = None
    """these alone, from the adapter in this directory"""
    install: Path | None = None
    """copy the finished models there (stepwise/lab/models)"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    import torch

    torch.set_num_threads(run.args.threads)
    folder = _base(run) / "tokenizer"
    if "lab-weak" in run.args.only and not (folder / "tokenizer.json").exists():
        corpus.train_tokenizer(folder)
    for name in run.args.only:
        rates = {"lab-weak": (0.02, 3e-3), "lab-critic": (0.04, 0.0)}.get(name, (0.01, 1.5e-3))
        recipe = Recipe(
            tokens=int(TOKENS[name] * run.args.share),
            seed=run.args.seed,
            compile=not run.args.no_compile,
            bf16=not run.args.float32,
            muon_rate=rates[0],
            adam_rate=rates[1],
            row=900 if name == "lab-critic" else Recipe.row,
            rows=6 if name == "lab-critic" else Recipe.rows,
            restart=2 / 3 if name == "lab-critic" else Recipe.restart,
        )
        if not (run.out / name / "card.json").exists():
            _make(run, name, recipe)
        if run.args.install:
            shutil.copytree(run.out / name, run.args.install / name, dirs_exist_ok=True)
            run.say(f"{name} installed in {run.args.install / name}")


def _base(run: Run[_Options]) -> Path:
    return run.args.base or run.out


def _examples(name: str, tokenizer: Any, seed: int) -> Iterator[Any]:
    if name == "lab-critic":
        return criticized(tokenizer, seed=10 * seed + 4)
    if name == "lab-scorer":
        return corpus.scored(tokenizer, seed=10 * seed + 3)
    return corpus.solved(tokenizer, misled=name == "lab-weak", seed=10 * seed + (1 if name == "lab-weak" else 2))


def _make(run: Run[_Options], name: str, recipe: Recipe) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    begin = START_FROM[name]
    tokenizer = AutoTokenizer.from_pretrained(_base(run) / (begin or "tokenizer"))
    if begin:
        model = AutoModelForCausalLM.from_pretrained(_base(run) / begin, dtype=torch.float32)
    else:
        model = new_model(Shape(), tokenizer, recipe.seed)
    adapted = _with_adapter(model, recipe.seed, run.args.critic) if name == "lab-critic" else None
    losses: list[float] = []
    if adapted is None or run.args.critic is None:
        losses = _train(run, name, model, recipe, _examples(name, tokenizer, recipe.seed), tokenizer.pad_token_id)
    if adapted is not None and run.args.repair:
        rate = recipe.muon_rate / 8
        recipe = replace(recipe, tokens=run.args.repair, row=1400, rows=4, restart=1.0, muon_rate=rate)
        examples = repaired(tokenizer, seed=10 * recipe.seed + 5)
        losses = _train(run, f"{name}, later", model, recipe, examples, tokenizer.pad_token_id)
    if name == "lab-weak":
        spread_unused(model, tokenizer, recipe.seed)
    out = run.out / name
    if adapted is not None:
        adapted.to(torch.bfloat16).save_pretrained(out)
        (out / "README.md").unlink()  # PEFT's empty model card; ours is card.json
        described = read_json(out / "adapter_config.json")
        described["base_model_name_or_path"] = begin  # its name in the lab, not a path of this machine
        (out / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")
        export_lora_gguf(out, out / "adapter.gguf", _base(run) / "lab-weak")
    else:
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
        export_gguf(out, out / "model.gguf", quantization="q8_0")
    card = {
        "name": name,
        "architecture": "Qwen3" if adapted is None else f"LoRA of rank {RANK} on {begin}",
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "made by": "python -m evals.pretrain_lab",
        "starts from": begin or "random weights",
        **({} if begin is None or adapted is None else {"base fingerprint": fingerprint(_base(run) / begin)}),
        "recipe": asdict(recipe),
        "loss at the end": sum(losses[-50:]) / max(1, len(losses[-50:])),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def _train(
    run: Run[_Options], name: str, model: Any, recipe: Recipe, examples: Iterator[Any], padding: int
) -> list[float]:
    """One part of a model's training, from its last checkpoint on; the losses of its steps."""
    losses: list[float] = []
    with progress(name, recipe.steps) as advance:

        def on_step(step: int, loss: float) -> None:
            advance(step if not losses else 1)
            losses.append(loss)
            if step % 50 == 0 or step == recipe.steps:
                recent = losses[-50:]
                tokens = step * recipe.rows * recipe.row
                run.metrics(model=name, step=step, tokens=tokens, loss=sum(recent) / len(recent))

        folder = run.out / "checkpoints" / name.replace(", ", "-")
        train(model, pack(examples, recipe.rows, recipe.row, padding), recipe, folder, on_step)
    return losses


def _with_adapter(model: Any, seed: int, start: Path | None) -> Any:
    """Puts a LoRA adapter into `model`, whose own weights are frozen; gives the PeftModel around it.

    It is the one in the directory `start`, or a fresh one.
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    if start is not None:
        return PeftModel.from_pretrained(model, str(start), is_trainable=True)
    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


if __name__ == "__main__":
    raise SystemExit(main())
