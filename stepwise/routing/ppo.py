"""Training TRIM-Agg and TRIM-Seq by proximal policy optimization, in the simulator.

Settings are those of TRIM's code (arXiv 2601.10245). Clipped objective: arXiv 1707.06347, equation 7; advantages: arXiv
1506.02438, equation 16, nothing discounted. What differs from TRIM's code, where that is known:

1. An update sees each batch as a whole, three times; in how many parts theirs does is not known.
2. Actions are drawn, and the old probabilities computed, without dropout; the update has it. TRIM-Seq has none at all.
3. Several strong steps on end are one decision; what they cost is its reward.
4. Hidden layers are initialised with gain sqrt(2), the critic's output with 1, all biases with 0.
5. Episodes come from a simulator, where TRIM asks the models for each of them.

Weights are a dictionary of tensors, named as `learned` reads them. Everything random follows from the seed and the
number of the batch, so a killed and resumed training gives the same policy as one that was left alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field

from stepwise.errors import ConfigError, MissingDependencyError
from stepwise.io import whole_file
from stepwise.records import record
from stepwise.routing import learned
from stepwise.routing.learned import Array, Kind, Learned, LearnedCard, Performance, Weights
from stepwise.routing.names import ModelNames
from stepwise.routing.policy import FOR_GOOD
from stepwise.routing.pomdp.simulator import Act, Decisions, Drafts, Ints, RouterSimulator
from stepwise.seeds import stable_hash

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

_WIDTH = {"agg": 64, "seq": 32}
_HEAD = 64
_Share = Annotated[float, Field(ge=0, le=1)]


@record()
class PpoSettings:
    """How a policy is trained; the defaults are TRIM's.

    >>> PpoSettings(price=1e-3, stay=(3,)).runs
    (0, 1, 3)
    """

    kind: Kind = "agg"
    price: float = Field(default=8e-4, ge=0, allow_inf_nan=False)  # lambda, where a right solution is worth 1
    # Price of a drafted and scored token over that of a strong one; 0, as published, makes wider actions worthless.
    draft_share: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    stay: tuple[Annotated[int, Field(ge=2)], ...] = ()  # numbers of steps that the strong model may also write on end
    hand_over: bool = False  # whether it may also write all that is left
    problems: int = Field(default=64, ge=1)  # in a batch
    batches: int = Field(default=1055, ge=1)  # TRIM: 10 epochs of 7,500 problems less the tenth held out
    epochs: int = Field(default=3, ge=1)  # passes over a batch
    learning_rate: float = Field(default=3e-4, gt=0, allow_inf_nan=False)  # at the start; it falls to 0 linearly
    gae_lambda: _Share = 0.95  # of generalised advantage estimation
    clip: float = Field(default=0.2, gt=0, allow_inf_nan=False)  # of the ratio, and of the change of the value
    value_weight: float = Field(default=0.5, ge=0, allow_inf_nan=False)  # of the critic's loss
    entropy: tuple[_Share, _Share] = (0.01, 0.001)  # its weight at the start and at the end
    max_grad_norm: float = Field(default=0.5, gt=0, allow_inf_nan=False)  # norm that gradients are cut to
    dropout: float = Field(default=0.1, ge=0, lt=1)  # in TRIM-Agg's two shared layers
    validate_every: int = Field(default=50, ge=1)  # batches between two looks at the held-out episodes
    validation: int = Field(default=2000, ge=1)  # those episodes, that the weights are chosen by
    test: int = Field(default=10_000, ge=1)  # other episodes, for the figures on the card
    seed: int = Field(default=0, ge=0)  # of everything that is drawn

    @property
    def runs(self) -> tuple[int, ...]:
        """The actions, as numbers of strong steps: keep, one, those of `stay`, all that are left."""
        return (0, 1, *sorted(set(self.stay)), *([FOR_GOOD] if self.hand_over else []))


def _initial(kind: Kind, choices: int, seed: int) -> Tensors:
    """Fresh weights for so many actions: orthogonal, the actor's output with gain 0.01."""
    import torch

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
        for layer in (f"layer.{i}" for i in range(learned.LAYERS)):
            norm(f"{layer}.norm", width)
            norm(f"{layer}.norm2", width)
            for part, out, into in (("qkv", 3, 1), ("mix", 1, 1), ("up", 4, 1), ("down", 1, 4)):
                linear(f"{layer}.{part}", out * width, into * width, 1.0)
        norm("norm", width)
    for head, out, gain in (("actor", choices, 0.01), ("critic", 1, 1.0)):
        linear(f"{head}.0", _HEAD, width)
        linear(f"{head}.1", out, _HEAD, gain)
    return weights


def _network(
    kind: Kind, weights: Mapping[str, Any], x: Tensor, last: Tensor, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Logits (B, A) and values (B,).

    `x` is (B, 5) for "agg", else (B, T, 2) and padded, with the draft at place `last` (B,). The logits are those of
    `learned.forward`.
    """
    import torch
    import torch.nn.functional as f

    def linear(name: str, h: Tensor) -> Tensor:
        return f.linear(h, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, h: Tensor) -> Tensor:
        return f.layer_norm(h, h.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    if kind == "agg":
        h = x
        for layer in ("body.0", "body.1"):
            h = f.dropout(norm(f"{layer}.norm", linear(layer, h)).tanh(), dropout, training=dropout > 0)
    else:
        h = linear("embed", x)
        (batch, length, width), heads = h.shape, learned.HEADS
        h = h + torch.as_tensor(learned.positions(length, width), dtype=h.dtype)
        visible = torch.arange(length)[None] <= last[:, None]
        for layer in (f"layer.{i}" for i in range(learned.LAYERS)):
            parts = linear(f"{layer}.qkv", norm(f"{layer}.norm", h)).view(batch, length, 3, heads, width // heads)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            mixed = f.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None])
            h = h + linear(f"{layer}.mix", mixed.transpose(1, 2).reshape(batch, length, width))
            h = h + linear(f"{layer}.down", linear(f"{layer}.up", norm(f"{layer}.norm2", h)).relu())
        h = norm("norm", h[torch.arange(batch), last])
    logits, values = (linear(f"{head}.1", linear(f"{head}.0", h).tanh()) for head in ("actor", "critic"))
    return logits, values[:, 0]


def rewards(decisions: Decisions, right: Any, price: float, draft_share: float = 0.0) -> Array:
    """The reward of each decision, (D,): -`price` for each strong token, `draft_share` of that for each token of the
    next draft, and 1 for the last decision of an episode that is `right` (E,).

    Example:
        reward = rewards(episodes.decisions, episodes.right, price=1e-3)  # (D,), of `world.play(...)`
    """
    reward = -price * (decisions.strong_tokens + draft_share * decisions.draft_tokens)
    order = np.lexsort((decisions.step, decisions.episode))
    final = order[np.append(np.diff(decisions.episode[order]) != 0, True)]
    reward[final] += np.asarray(right)[decisions.episode[final]]
    return reward


def advantages(reward: Array, values: Array, episode: Ints, step: Ints, gae_lambda: float) -> Array:
    """Generalised advantage estimates (arXiv 1506.02438, equation 16) with nothing discounted; all arrays (D,).

    Example:
        >>> episode, step = np.zeros(2, dtype=int), np.arange(2)
        >>> advantages(np.array([0.0, 1.0]), np.zeros(2), episode, step, gae_lambda=0.5)
        array([0.5, 1. ])
    """
    order = np.lexsort((step, episode))
    result, after, following = np.zeros(len(order)), 0.0, 0.0
    for place, i in reversed(list(enumerate(order))):
        if place + 1 == len(order) or episode[order[place + 1]] != episode[i]:
            after = following = 0.0
        after = reward[i] + following - values[i] + gae_lambda * after
        result[i], following = after, values[i]
    return result


def _policy_loss(log_share: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The clipped objective (arXiv 1707.06347, equation 7), to be made small; (D,) each, logs of the chosen actions'
    probabilities.
    """
    ratio = (log_share - old).exp()
    return -(ratio * advantage).minimum(ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def _value_loss(values: Tensor, old: Tensor, target: Tensor, clip: float) -> Tensor:
    """Half the squared error, of the worse of the values and of those kept within `clip` of the old ones; (D,) each."""
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * ((values - target) ** 2).maximum((near - target) ** 2).mean()


class _PpoLearner:
    """Weights and the optimizer's state after `done` batches."""

    def __init__(self, settings: PpoSettings, weights: Tensors | None = None) -> None:
        import torch

        weights = weights or _initial(settings.kind, len(settings.runs), settings.seed)
        self.settings, self.done = settings, 0
        # in the order of their names, which is that of the optimizer's state in a file
        self.weights: Tensors = {name: weights[name].clone().requires_grad_() for name in sorted(weights)}
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=settings.learning_rate)

    def arrays(self) -> dict[str, Array]:
        """The weights as `learned.forward` takes them."""
        return {name: value.detach().double().numpy() for name, value in self.weights.items()}

    def update(self, decisions: Decisions, reward: Array) -> None:
        """One batch. Dropout depends on the seed and the number of the batch alone."""
        import torch

        settings = self.settings
        inputs = learned.encoded(settings.kind, decisions.step, decisions.scores, decisions.tokens)
        x = torch.as_tensor(inputs, dtype=torch.float32)
        last, action = torch.as_tensor(decisions.step), torch.as_tensor(decisions.action)
        with torch.no_grad():
            logits, old_values = _network(settings.kind, self.weights, x, last)
            old = logits.log_softmax(-1).gather(1, action[:, None])[:, 0]
        gain = advantages(reward, old_values.double().numpy(), decisions.episode, decisions.step, settings.gae_lambda)
        target = old_values + torch.as_tensor(gain, dtype=torch.float32)
        advantage = torch.as_tensor((gain - gain.mean()) / (gain.std() + 1e-8), dtype=torch.float32)
        left = 1 - self.done / settings.batches
        entropy_weight = settings.entropy[1] + left * (settings.entropy[0] - settings.entropy[1])
        self.optimizer.param_groups[0]["lr"] = settings.learning_rate * left
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_hash(settings.seed, self.done, "dropout"))
            for _ in range(settings.epochs):
                logits, values = _network(settings.kind, self.weights, x, last, settings.dropout)
                logs = logits.log_softmax(-1)
                loss = _policy_loss(logs.gather(1, action[:, None])[:, 0], old, advantage, settings.clip)
                loss = loss + settings.value_weight * _value_loss(values, old_values, target, settings.clip)
                loss = loss + entropy_weight * (logs.exp() * logs).sum(-1).mean()
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(self.weights.values(), settings.max_grad_norm)
                self.optimizer.step()
        self.done += 1

    def save(self, path: Path, best: Weights, **notes: str) -> None:
        """Write weights, optimizer, the best weights so far and `notes` to one file, whole or not at all."""
        import torch
        from safetensors.torch import save_file

        state = self.optimizer.state_dict()["state"]
        parts = {"weights": self.weights, "best": best, **{f"optimizer.{i}": state[i] for i in state}}
        tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        with whole_file(path) as draft:
            flat = {name: torch.as_tensor(value).detach().contiguous() for name, value in tensors.items()}
            save_file(flat, draft, metadata={"done": str(self.done), **notes})

    @classmethod
    def begin(cls, path: Path, settings: PpoSettings, mark: str) -> tuple[Self, Weights, dict[str, str]]:
        """Learner, best weights and notes of the checkpoint at `path`, of fresh weights where there is none; raises
        `ConfigError` for a damaged one, and for one with another `mark`.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return cls(settings), {}, {}
        try:
            with safe_open(path, framework="pt") as file:
                notes = dict(file.metadata())
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path} is no checkpoint ({error}); remove it to begin anew") from error
        if notes["mark"] != mark:
            raise ConfigError(f"{path} is of other settings; remove it, or give another directory")

        def part(prefix: str) -> dict[str, Any]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        learner = cls(settings, part("weights."))
        learner.done = int(notes["done"])
        state = {i: part(f"optimizer.{i}.") for i in range(len(learner.weights))}
        learner.optimizer.load_state_dict({**learner.optimizer.state_dict(), "state": state})
        return learner, {name: value.double().numpy() for name, value in part("best.").items()}, notes


def _acting(kind: Kind, weights: Weights, rng: np.random.Generator | None = None) -> Act:
    """Draws actions by their probabilities; without `rng`, takes the likeliest, as `Learned` does."""

    def act(drafts: Drafts) -> Any:
        logits = learned.forward(kind, weights, drafts.scores, drafts.tokens)
        return (logits if rng is None else logits + rng.gumbel(size=logits.shape)).argmax(1)

    return act


def train(
    world: RouterSimulator,
    settings: PpoSettings,
    models: ModelNames,
    directory: str | Path,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Learned:
    """The policy for `settings.price`, trained in `world` for `models` and saved in `directory`.

    The weights kept are those that did best on held-out episodes; the card's figures are of others. One that is there
    with the same settings is taken as it is, a checkpoint is gone on from. `advance` is called with the number of
    batches done. Raises `ConfigError` where the directory holds a policy or a checkpoint of this price with other
    settings.

    Example:
        policy = train(world, PpoSettings(price=1e-3), ModelNames("lab-weak", "lab-strong"), "policies")
    """
    if find_spec("torch") is None:
        raise MissingDependencyError('training a policy needs torch; install it with pip install "stepwise[train]"')
    saved, price = dataclasses.asdict(settings), settings.price
    card_file = learned.files_of(directory, price)[1]
    if card_file.is_file():
        card = LearnedCard.read(card_file)
        if (card.settings, card.pair) != (json.loads(json.dumps(saved)), models):
            raise ConfigError(f"{card_file} is of a policy with other settings; give another directory")
        advance(settings.batches)
        return Learned(str(directory), price)

    def play(weights: Weights, n: int, stream: int) -> Performance:
        episodes = world.play(_acting(settings.kind, weights), n, runs=settings.runs, seed=(settings.seed, stream))
        spent = episodes.strong_tokens, episodes.draft_tokens
        return Performance.of(episodes.right, *spent, price, settings.draft_share)

    mark = str(stable_hash(repr(world), world.tokens, world.law, saved, models))
    checkpoint = card_file.with_suffix(".checkpoint")
    learner, best, notes = _PpoLearner.begin(checkpoint, settings, mark)
    value, at = float(notes.get("found", -math.inf)), int(notes.get("at", 0))
    advance(learner.done)
    while learner.done < settings.batches:
        rng = np.random.default_rng((settings.seed, 1, learner.done))
        act, seed = _acting(settings.kind, learner.arrays(), rng), (settings.seed, 0, learner.done)
        episodes = world.play(act, settings.problems, runs=settings.runs, seed=seed)
        learner.update(episodes.decisions, rewards(episodes.decisions, episodes.right, price, settings.draft_share))
        advance(1)
        if learner.done % settings.validate_every == 0 or learner.done == settings.batches:
            now = play(learner.arrays(), settings.validation, 2).objective
            if now > value:
                best, value, at = learner.arrays(), now, learner.done
            learner.save(checkpoint, best, mark=mark, found=repr(value), at=str(at))
    figures = play(best, settings.test, 3)
    card = LearnedCard(settings.kind, price, settings.runs, settings.draft_share, models, saved, at, figures)
    return Learned.write(directory, card, best)
