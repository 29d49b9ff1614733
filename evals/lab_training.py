"""The training loop of the lab's models: packed rows, Muon and AdamW, checkpoints; torch on a CPU or a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwise.errors import DataError

from .lab_corpus import END, EOT, IGNORE, Bundle, Example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM


@dataclass(frozen=True)
class Shape:
    """Size of a lab model (Qwen3 architecture; head dimension 64, one key-value head)."""

    hidden: int = 160
    layers: int = 4
    heads: int = 3
    feed_forward: int = 416
    context: int = 2048


@dataclass(frozen=True)
class Recipe:
    """One training run. `tokens` are tokens of the packed rows; `row` x `rows` tokens make a batch.

    The learning rate warms up and falls linearly; after the share `restart` of the tokens it begins once more, at
    `restart_rate` of the peak.
    """

    tokens: int
    seed: int = 0
    row: int = 400
    rows: int = 12
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warmup: float = 0.02
    final: float = 0.02
    restart: float = 1.0
    restart_rate: float = 0.5
    bf16: bool = True
    compile: bool = True

    @property
    def steps(self) -> int:
        """Optimizer steps in the run."""
        return max(1, self.tokens // (self.rows * self.row))


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A model with fresh weights and tied embeddings."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // 32) * 32,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(EOT),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return Qwen3ForCausalLM(config)


def spread_unused(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> int:
    """Set the embeddings of tokens that never occurred in training apart; says how many there are.

    Embeddings are tied, so training pushes all tokens that never come into one corner, where no adapter on the frozen
    model can tell one from another or write it. Each gets an offset of its own, of length 1 and across the direction of
    the corner: what the model says changes by less than 1e-5 nats a token.
    """
    import torch

    rows = model.get_input_embeddings().weight.detach()
    corner = torch.nn.functional.normalize(rows[len(tokenizer) :].mean(0), dim=0)
    unused = torch.nn.functional.normalize(rows, dim=1) @ corner > 0.9
    offsets = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)).to(rows)
    offsets -= (offsets @ corner)[:, None] * corner
    rows[unused] += torch.nn.functional.normalize(offsets, dim=1)[unused]
    return int(unused.sum())


@dataclass
class _Batch:
    """Packed rows, all of shape (R, L): ids, targets, positions within each document, document numbers (-1 pads), and
    branches of documents (0 for what all branches see).
    """

    ids: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    documents: np.ndarray
    branches: np.ndarray


def pack(examples: Iterator[Example | Bundle], rows: int, row: int, pad: int) -> Iterator[_Batch]:
    """Documents packed whole into rows, first fit over one batch; a document longer than a row is left out."""
    waiting: list[Example | Bundle] = []
    while True:
        ids = np.full((rows, row), pad, np.int64)
        targets = np.full((rows, row), IGNORE, np.int64)
        positions = np.zeros((rows, row), np.int64)
        documents, branches = np.full((rows, row), -1, np.int64), np.zeros((rows, row), np.int64)
        used, number = [0] * rows, 0
        misses: list[Example | Bundle] = []
        while len(misses) < 32:
            document = waiting.pop() if waiting else next(examples)
            n = len(document[0])
            if n > row:
                continue
            place = next((r for r in range(rows) if used[r] + n <= row), None)
            if place is None:
                misses.append(document)
                continue
            span = slice(used[place], used[place] + n)
            ids[place, span], positions[place, span], documents[place, span] = document[0], np.arange(n), number
            targets[place, span] = document[1]
            if isinstance(document, Bundle):
                positions[place, span], branches[place, span] = document.positions, document.branches
            used[place] += n
            number += 1
        waiting = misses
        yield _Batch(ids, targets, positions, documents, branches)


def _optimizers(model: Any, recipe: Recipe) -> list[Any]:
    import torch

    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in trained if p.ndim == 2 and "embed" not in n and recipe.muon_rate]
    others = [p for n, p in trained if p.ndim != 2 or "embed" in n or not recipe.muon_rate]
    muon = [torch.optim.Muon(matrices, lr=recipe.muon_rate, momentum=0.95, weight_decay=0.0)] if matrices else []
    adam = [torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)] if others else []
    return [*muon, *adam]


def _rate(done: float, recipe: Recipe) -> float:
    """Share of the peak learning rate when `done` of the tokens are seen."""
    if done >= recipe.restart:
        again = (done - recipe.restart) / (1 - recipe.restart)
        return max(recipe.final, recipe.restart_rate * (1 - again * (1 - recipe.final)))
    done /= recipe.restart
    if done < recipe.warmup:
        return done / recipe.warmup
    return max(recipe.final, 1 - (done - recipe.warmup) / (1 - recipe.warmup) * (1 - recipe.final))


def _loss_sum(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    import torch

    hidden = model.model(
        input_ids=ids, position_ids=positions, attention_mask={"full_attention": mask}
    ).last_hidden_state
    logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )


def train(
    model: Qwen3ForCausalLM,
    batches: Iterator[_Batch],
    recipe: Recipe,
    folder: Path,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train for `recipe.tokens`; a checkpoint every 5 % lets a killed run go on where it was, over the same batches."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizers = _optimizers(model, recipe)
    steps = recipe.steps
    first = _restore(folder, model, optimizers, recipe)
    loss_of = torch.compile(_loss_sum, dynamic=False) if recipe.compile else _loss_sum
    for step in range(steps):
        batch = next(batches)
        if step < first:
            continue
        for optimizer in optimizers:
            peak = recipe.muon_rate if isinstance(optimizer, torch.optim.Muon) else recipe.adam_rate
            for group in optimizer.param_groups:
                group["lr"] = peak * _rate(step / steps, recipe)
        ids, targets, positions, documents, branches = (
            torch.from_numpy(a).to(device)
            for a in (batch.ids, batch.targets, batch.positions, batch.documents, batch.branches)
        )
        same = (documents[:, :, None] == documents[:, None, :]).tril()
        same &= (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
        same = same[:, None]
        with torch.autocast(device, torch.bfloat16, enabled=recipe.bf16):
            loss = loss_of(model, ids, positions, same, targets) / (targets != IGNORE).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(1, steps // 20) == 0 or step + 1 == steps:
            _save(folder, model, optimizers, recipe, step + 1)
        if on_step:
            on_step(step + 1, float(loss.detach()))


def _save(folder: Path, model: Any, optimizers: list[Any], recipe: Recipe, step: int) -> None:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "step": step,
        "recipe": asdict(recipe),
    }
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")


def _restore(folder: Path, model: Any, optimizers: list[Any], recipe: Recipe) -> int:
    import torch

    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise DataError(f"{path} was made with {json.dumps(state['recipe'])}; give another --out or remove it")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
