"""Proximal policy optimization (arXiv 1707.06347) of TRIM-Agg and TRIM-Seq, with the settings of TRIM's code.

What differs from TRIM's code (arXiv 2601.10245), where that is known:
1. An update sees each batch as a whole, three times; in how many parts theirs does is not known.
2. Actions are drawn, and the old probabilities computed, without dropout; the update has it. TRIM-Seq has none at all.
3. Several strong steps on end are one decision; what they cost is its reward.
4. Hidden layers are initialised with gain sqrt(2), the critic's output with 1, all biases with 0.

Weights are a dictionary of tensors, named as `learned` reads them; torch is imported where they are made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.errors import ConfigError, MissingDependencyError
from stepwise.io import whole_file
from stepwise.routing.learned import HEADS, LAYERS, Array, Kind, actions, features, pairs, positions
from stepwise.routing.simulator import Decisions, Ints
from stepwise.seeds import stable_hash

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

_WIDTH = {"agg": 64, "seq": 32}
_HEAD = 64
_Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PpoSettings:
    """How a policy is trained; the defaults are TRIM's.

    Args:
        kind: "agg" or "seq".
        price: lambda, what a strong token costs where a right solution is worth 1.
        draft_share: price of a drafted and scored token, as a share of a strong one's; 0, as published, makes wider
            actions worthless.
        stay: numbers of steps that the strong model may also write on end, each at least 2.
        hand_over: whether it may also write all that is left.
        problems: in a batch; `batches`: of the training (TRIM: 10 epochs of 7,500 problems less the tenth held out).
        epochs: passes over a batch.
        rate: learning rate at the start; it falls to 0 linearly.
        trace: lambda of generalised advantage estimation (arXiv 1506.02438); nothing is discounted.
        clip: of the ratio of probabilities, and of the change of the value.
        value_weight: of the critic's loss.
        entropy: weight of the entropy at the start and at the end.
        most_gradient: norm that gradients are cut to.
        dropout: in TRIM-Agg's two shared layers.
        validate_every: batches between two looks at the held-out episodes, `validation` of them, that the weights are
            chosen by; `test`: other ones, for the figures on the card.
        seed: of everything that is drawn.
    """

    kind: Kind = "agg"
    price: float = Field(default=8e-4, ge=0, allow_inf_nan=False)
    draft_share: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    stay: tuple[Annotated[int, Field(ge=2)], ...] = ()
    hand_over: bool = False
    problems: int = Field(default=64, ge=1)
    batches: int = Field(default=1055, ge=1)
    epochs: int = Field(default=3, ge=1)
    rate: float = Field(default=3e-4, gt=0, allow_inf_nan=False)
    trace: _Share = 0.95
    clip: float = Field(default=0.2, gt=0, allow_inf_nan=False)
    value_weight: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    entropy: tuple[_Share, _Share] = (0.01, 0.001)
    most_gradient: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    validate_every: int = Field(default=50, ge=1)
    validation: int = Field(default=2000, ge=1)
    test: int = Field(default=10_000, ge=1)
    seed: int = Field(default=0, ge=0)

    @property
    def runs(self) -> tuple[int, ...]:
        """The actions, as numbers of strong steps."""
        return actions(self.stay, self.hand_over)


def initial(kind: Kind, choices: int, seed: int) -> Tensors:
    """Fresh weights for so many actions: orthogonal, the actor's output with gain 0.01."""
    torch = _torch()
    generator = torch.Generator().manual_seed(seed)
    weights: Tensors = {}

    def linear(name: str, out: int, into: int, gain: float = math.sqrt(2)) -> None:
        weights[f"{name}.weight"] = torch.empty(out, into)
        torch.nn.init.orthogonal_(weights[f"{name}.weight"], gain, generator=generator)
        weights[f"{name}.bias"] = torch.zeros(out)

    def norm(name: str, width: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    width = _WIDTH[kind]
    if kind == "agg":
        for layer, into in (("body.0", 5), ("body.1", width)):
            linear(layer, width, into)
            norm(f"{layer}.norm", width)
    else:
        linear("embed", width, 2)
        for layer in (f"layer.{i}" for i in range(LAYERS)):
            norm(f"{layer}.norm", width)
            norm(f"{layer}.norm2", width)
            for part, out, into in (("qkv", 3, 1), ("mix", 1, 1), ("up", 4, 1), ("down", 1, 4)):
                linear(f"{layer}.{part}", out * width, into * width, 1.0)
        norm("norm", width)
    for head, out, gain in (("actor", choices, 0.01), ("critic", 1, 1.0)):
        linear(f"{head}.0", _HEAD, width)
        linear(f"{head}.1", out, _HEAD, gain)
    return weights


def network(
    kind: Kind, weights: Mapping[str, Any], x: Tensor, last: Tensor, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Logits (B, A) and values (B,).

    `x` is (B, 5) for "agg", else (B, T, 2) and padded, with the draft at place `last` (B,). The logits are those of
    `learned.forward`.
    """
    torch = _torch()
    f = torch.nn.functional

    def linear(name: str, h: Tensor) -> Tensor:
        made: Tensor = f.linear(h, weights[f"{name}.weight"], weights[f"{name}.bias"])
        return made

    def norm(name: str, h: Tensor) -> Tensor:
        made: Tensor = f.layer_norm(h, h.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
        return made

    if kind == "agg":
        h = x
        for layer in ("body.0", "body.1"):
            h = f.dropout(torch.tanh(norm(f"{layer}.norm", linear(layer, h))), dropout, training=dropout > 0)
    else:
        h = linear("embed", x)
        batch, length, width = h.shape
        h = h + torch.as_tensor(positions(length, width), dtype=h.dtype)
        seen = torch.arange(length)[None] <= last[:, None]
        for layer in (f"layer.{i}" for i in range(LAYERS)):
            parts = linear(f"{layer}.qkv", norm(f"{layer}.norm", h)).view(batch, length, 3, HEADS, width // HEADS)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            mixed = f.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
            h = h + linear(f"{layer}.mix", mixed.transpose(1, 2).reshape(batch, length, width))
            h = h + linear(f"{layer}.down", torch.relu(linear(f"{layer}.up", norm(f"{layer}.norm2", h))))
        h = norm("norm", h[torch.arange(batch), last])
    logits, values = (linear(f"{head}.1", torch.tanh(linear(f"{head}.0", h))) for head in ("actor", "critic"))
    return logits, values[:, 0]


def encoded(kind: Kind, decisions: Decisions) -> Array:
    """What the network takes of each decision: (D, 5) for "agg", (D, T, 2) for "seq", T the longest."""
    if kind == "seq":
        longest = int(decisions.step.max()) + 1
        return pairs(decisions.scores[:, :longest], decisions.tokens[:, :longest])
    x = np.empty((len(decisions), 5))
    for step in np.unique(decisions.step):
        at = decisions.step == step
        x[at] = features(decisions.scores[at, : step + 1], decisions.tokens[at, : step + 1])
    return x


def rewards(decisions: Decisions, right: Any, price: float, draft_share: float = 0.0) -> Array:
    """What each decision earns, (D,): -`price` for each strong token, `draft_share` of that for each token of the next
    draft, and 1 for the last decision of an episode that is `right` (E,).
    """
    earned = -price * (decisions.strong_tokens + draft_share * decisions.draft_tokens)
    order = np.lexsort((decisions.step, decisions.episode))
    final = order[np.append(np.diff(decisions.episode[order]) != 0, True)]
    earned[final] += np.asarray(right)[decisions.episode[final]]
    return earned


def advantages(earned: Array, values: Array, episode: Ints, step: Ints, trace: float) -> Array:
    """Generalised advantage estimates (arXiv 1506.02438, equation 16) with nothing discounted; all arrays (D,)."""
    order = np.lexsort((step, episode))
    found, after, following = np.zeros(len(order)), 0.0, 0.0
    for place, i in reversed(list(enumerate(order))):
        if place + 1 == len(order) or episode[order[place + 1]] != episode[i]:
            after = following = 0.0
        after = earned[i] + following - values[i] + trace * after
        found[i], following = after, values[i]
    return found


def policy_loss(log_share: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The clipped objective, to be made small; (D,) each, logs of the chosen actions' probabilities."""
    ratio = (log_share - old).exp()
    worse: Tensor = _torch().minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -worse.mean()


def value_loss(values: Tensor, old: Tensor, target: Tensor, clip: float) -> Tensor:
    """Half the squared error, of the worse of the values and of those kept within `clip` of the old ones; (D,) each."""
    near = old + (values - old).clamp(-clip, clip)
    worse: Tensor = _torch().maximum((values - target) ** 2, (near - target) ** 2)
    return 0.5 * worse.mean()


class Learner:
    """Weights and the optimizer's state after `done` batches of `of`."""

    def __init__(self, settings: PpoSettings, weights: Mapping[str, Any] | None = None, of: int | None = None) -> None:
        torch = _torch()
        given = initial(settings.kind, len(settings.runs), settings.seed) if weights is None else weights
        self.settings, self.of, self.done = settings, of or settings.batches, 0
        self.weights: Tensors = {  # in the order of their names, which is that of the optimizer's state in a file
            name: torch.as_tensor(given[name]).to(torch.float32).clone().requires_grad_() for name in sorted(given)
        }
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=settings.rate)

    def arrays(self) -> dict[str, Array]:
        """The weights as `learned.forward` takes them."""
        return {name: value.detach().double().numpy() for name, value in self.weights.items()}

    def update(self, decisions: Decisions, earned: Array) -> None:
        """One batch. Dropout depends on the seed and the number of the batch alone."""
        torch, settings = _torch(), self.settings
        x = torch.as_tensor(encoded(settings.kind, decisions), dtype=torch.float32)
        last, action = torch.as_tensor(decisions.step), torch.as_tensor(decisions.action)
        with torch.no_grad():
            logits, old_values = network(settings.kind, self.weights, x, last)
            old = logits.log_softmax(-1).gather(1, action[:, None])[:, 0]
        gain = advantages(earned, old_values.double().numpy(), decisions.episode, decisions.step, settings.trace)
        target = old_values + torch.as_tensor(gain, dtype=torch.float32)
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        advantage = torch.as_tensor(gain, dtype=torch.float32)
        left = 1 - self.done / self.of
        entropy_weight = settings.entropy[1] + left * (settings.entropy[0] - settings.entropy[1])
        self.optimizer.param_groups[0]["lr"] = settings.rate * left
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_hash(settings.seed, self.done, "dropout"))
            for _ in range(settings.epochs):
                logits, values = network(settings.kind, self.weights, x, last, settings.dropout)
                logs = logits.log_softmax(-1)
                loss = policy_loss(logs.gather(1, action[:, None])[:, 0], old, advantage, settings.clip)
                loss = loss + settings.value_weight * value_loss(values, old_values, target, settings.clip)
                loss = loss + entropy_weight * (logs.exp() * logs).sum(-1).mean()
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.weights.values(), settings.most_gradient)
                self.optimizer.step()
        self.done += 1

    def save(self, path: Path, best: Mapping[str, Array], **notes: str) -> None:
        """Write weights, optimizer, the best weights so far and `notes` to one file, whole or not at all."""
        tensors = {f"weights.{name}": value.detach() for name, value in self.weights.items()}
        tensors |= {f"best.{name}": _torch().as_tensor(value) for name, value in best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        save_tensors(path, tensors, done=str(self.done), **notes)

    @classmethod
    def load(
        cls, path: Path, settings: PpoSettings, of: int | None = None
    ) -> tuple[Self, dict[str, Array], dict[str, str]]:
        """The inverse of `save`: the learner, the best weights and the notes."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                notes = dict(file.metadata())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path} is no checkpoint ({error}); remove it to begin anew") from error
        parts: dict[str, dict[str, Any]] = {"weights": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        made = cls(settings, parts["weights"], of)
        made.done = int(notes.pop("done"))
        state: dict[int, dict[str, Any]] = {}
        for name, value in parts["optimizer"].items():
            number, _, rest = name.partition(".")
            state.setdefault(int(number), {})[rest] = value
        made.optimizer.load_state_dict({**made.optimizer.state_dict(), "state": state})
        return made, {name: value.double().numpy() for name, value in parts["best"].items()}, notes


def save_tensors(path: Path, tensors: Mapping[str, Any], **notes: str) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with whole_file(path) as draft:
        save_file({name: value.contiguous() for name, value in tensors.items()}, draft, metadata=notes)


def settings_as_json(settings: PpoSettings) -> dict[str, Any]:
    """Plain JSON for the card."""
    return dataclasses.asdict(settings)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            'training a policy needs torch; install it with pip install "stepwise[train]"'
        ) from error
    return torch
