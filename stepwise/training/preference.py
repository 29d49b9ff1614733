"""Preference training on an intervention against the wrong step in its place (DPO, arXiv 2305.18290, eq. 7).

What differs from the papers:
1. As in Step-DPO (arXiv 2406.18629, eq. 3) the two share a correct prefix, which is part of the prompt: forced, without
   a loss. Log-probabilities are summed over the steps after it, each with the blank line that ends it.
2. The reference is the policy at the start: the base, or the adapter that training goes on with. Its log-probabilities
   are computed once and kept in reference.json; no second model is held in memory.
3. `dpo.nll` adds the chosen step's mean loss per token (RPO, arXiv 2404.19733, section 2), 0 by default.
4. Without dropout: the first step's margin is 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stepwise.config import Config
from stepwise.data.examples import PreferencePair, read_pairs
from stepwise.errors import DataError
from stepwise.io import read_json, write_text
from stepwise.models.store import key_of
from stepwise.prompt import SolvePrompt
from stepwise.runs.directory import RunDirectory, opened
from stepwise.runs.progress import progress
from stepwise.training.adapters import LAYOUT, base_directory, check_adapter
from stepwise.training.batches import for_few_rows, micro_batches, plan_steps
from stepwise.training.checkpoint import check_same
from stepwise.training.logprobs import weighted_logprobs
from stepwise.training.lora import Trainee, load_trainee, memory_errors
from stepwise.training.rendering import TokenRow, check_prompt, prompt_ids, token_row
from stepwise.training.trainer import finish, finished_adapter, fit, run_arguments


def dpo(
    pairs: str | Path | Sequence[Mapping[str, Any]] | Sequence[PreferencePair] | Any,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    adapter: str | Path | None = None,
    sinks: Sequence[str] = (),
) -> Path:
    """Train an adapter of `models.weak` to prefer interventions; returns the adapter's directory, `out`/adapter.

    `pairs` is a file that the dataset builder wrote (kind pairs), a `datasets.Dataset`, or rows with `prompt` (the
    question), `chosen` and `rejected` (solutions that begin with the same steps), or what `read_pairs` makes of them.
    `out` is a directory, or one that is open already. `adapter` is a directory of an earlier adapter to go on with,
    which is then the reference, else the base is. `sinks` are names for `stepwise.training.sinks`. The same call goes
    on where it was stopped.

    `out`/metrics.jsonl has a row per step with means over its pairs: `loss`; `margin`, beta times the change of
    log p(chosen) - log p(rejected) since the start; `accuracy`, the share of pairs with a margin above 0;
    `logp_chosen` and `logp_rejected` in nats per step. Raises DataError, naming the row, for pairs that cannot be
    trained on, ConfigError for weights or settings, BackendError where memory runs out.

    Example:
        dpo("out/pairs/dataset.jsonl", sw.Config.lab(), "out/dpo")
    """
    cfg = Config.of(cfg, "cfg")
    is_parsed = isinstance(pairs, Sequence) and pairs and all(isinstance(pair, PreferencePair) for pair in pairs)
    parsed: list[PreferencePair] = [*pairs] if is_parsed else read_pairs(pairs, splitter=cfg.prompt.splitter)  # type: ignore[misc]
    arguments = run_arguments(adapter, rows=parsed)
    with opened(out, program="dpo", config=cfg, arguments=arguments) as directory:
        if not parsed:
            raise DataError("there are no pairs; make some with stepwise build_dataset --kind pairs")
        if adapter is not None:
            check_adapter(adapter, base_directory(cfg.models.weak), cfg.prompt)
        start_hash = None if adapter is None else hashlib.sha256((Path(adapter) / LAYOUT[1]).read_bytes()).hexdigest()
        data = key_of({**arguments, "begun": start_hash})
        if (finished := finished_adapter(directory, data)) is not None:
            return finished
        trainee = load_trainee(cfg, adapter=adapter)
        sides = [_render_pair(pair, trainee.tokenizer, cfg.prompt, trainee.context) for pair in parsed]
        before = _reference_logprobs(directory, trainee, [side for both in sides for side in both], cfg, data)
        rows = [_PairRow(*both, before[2 * i], before[2 * i + 1]) for i, both in enumerate(sides)]
        settings = for_few_rows(cfg.dpo, len(rows), cfg.models.weak.model)
        plan = plan_steps([row.num_trained for row in rows], settings, f"{cfg.seed}|dpo")
        batches = [[rows[i] for i in batch] for batch in plan]

        def loss(part: Sequence[_PairRow]) -> tuple[Tensor, dict[str, float]]:
            return _pair_losses(trainee, part, cfg)

        fit(
            trainee, batches, loss, settings, cfg, directory, data=data, label="preference training", sinks=sinks
        )  # fmt: skip
        return finish(directory, trainee, cfg, "dpo", {"pairs": parsed})


@dataclass(frozen=True)
class _PairRow:
    """Two continuations of one prompt and prefix, with the summed log-probabilities of their steps (in nats) under the
    reference; weights are 1 on the steps and 0 on the prefix.
    """

    chosen: TokenRow
    rejected: TokenRow
    reference_chosen: float
    reference_rejected: float

    @property
    def size(self) -> int:
        """Tokens of both, padding included."""
        return 2 * max(self.chosen.size, self.rejected.size)

    @property
    def num_trained(self) -> int:
        """Tokens of both steps."""
        return self.chosen.num_trained + self.rejected.num_trained

    @property
    def weight(self) -> float:
        """Every pair counts the same."""
        return 1.0


def _render_pair(
    pair: PreferencePair, tokenizer: Any, prompt: SolvePrompt, context: int | None = None
) -> tuple[TokenRow, TokenRow]:
    """The chosen and the rejected continuation as ids; DataError, naming the pair, as `rendering.render`."""
    where = f"pair {pair.id!r}"
    if pair.prompt_hash is not None:
        check_prompt(where, pair.prompt_hash, prompt)
    head = prompt_ids(tokenizer, prompt, pair.prompt)

    def side(name: str, steps: Sequence[str]) -> TokenRow:
        texts = [*((step, 0.0) for step in pair.prefix), *((step, 1.0) for step in steps)]
        return token_row(f"{where}, {name}", head, texts, tokenizer, context, splitter=prompt.splitter)

    return side("chosen", pair.chosen), side("rejected", pair.rejected)


def _reference_logprobs(
    directory: RunDirectory, trainee: Trainee, rows: Sequence[TokenRow], cfg: Config, data: str
) -> list[float]:
    """Summed log-probability of each row's step under the trainee as it is now, in nats; those in the run's directory
    where it has them. Raises DataError where they are of other data (a hash) than `data`.
    """
    path = directory.claim("reference.json")
    if path.is_file():
        saved = read_json(path, "remove it, and it is computed anew", {"logprobs": list})
        check_same(path, saved.get("data"), data)
        if len(saved["logprobs"]) != len(rows) or not all(isinstance(value, float) for value in saved["logprobs"]):
            raise DataError(f"{path} does not hold {len(rows)} numbers; remove it, and they are computed anew")
        return list(saved["logprobs"])
    logprobs = [0.0] * len(rows)
    with torch.no_grad(), memory_errors(cfg.lora), progress("reference", len(rows)) as bar:
        for part in micro_batches([row.size for row in rows], cfg.lora.micro_tokens):
            sums = weighted_logprobs(trainee, [rows[i] for i in part], cfg.lora.tile).sum(1)
            for i, value in zip(part, sums.tolist(), strict=True):
                logprobs[i] = value
            bar(len(part))
    write_text(path, json.dumps({"data": data, "logprobs": logprobs}) + "\n")
    return logprobs


def _pair_losses(trainee: Trainee, rows: Sequence[_PairRow], cfg: Config) -> tuple[Tensor, dict[str, float]]:
    """Sum of the losses of `rows`, a scalar tensor, and sums of what is logged beside it."""
    sides = [side for row in rows for side in (row.chosen, row.rejected)]
    policy = weighted_logprobs(trainee, sides, cfg.lora.tile).sum(1).view(-1, 2)  # (P, 2): chosen, rejected
    before = policy.new_tensor([(row.reference_chosen, row.reference_rejected) for row in rows])
    lengths = policy.new_tensor([row.chosen.num_trained for row in rows])
    losses, margins = preference_loss(policy, before, lengths, beta=cfg.dpo.beta, nll=cfg.dpo.nll)
    chosen, rejected = policy.detach().sum(0).tolist()
    return losses.sum(), {
        "margin": float(margins.sum()),
        "accuracy": float((margins > 0).sum()),
        "logp_chosen": chosen,
        "logp_rejected": rejected,
    }


def preference_loss(
    policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float, nll: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Losses (P,) of pairs, and their margins (P,), which are not differentiated.

    `policy` and `reference` (P, 2) are log-probabilities in nats, summed over the chosen step's tokens and the rejected
    one's; `lengths` (P,) count the chosen step's tokens. margin = beta * ((log pi(w) - log ref(w)) - (log pi(l) -
    log ref(l))), loss = -log sigmoid(margin) - nll * log pi(w) / length.

    >>> policy = torch.tensor([[-2.0, -6.0]])
    >>> losses, margins = preference_loss(policy, torch.tensor([[-4.0, -4.0]]), torch.tensor([3.0]), beta=0.1)
    >>> round(float(margins[0]), 3), round(float(losses[0]), 3)
    (0.4, 0.513)
    """
    change = policy - reference
    margins = beta * (change[:, 0] - change[:, 1])
    return -logsigmoid(margins) - nll * policy[:, 0] / lengths, margins.detach()
