"""Policies learned by reinforcement in a simulator of the routing problem: TRIM-Agg and TRIM-Seq, run without torch.

What differs from TRIM (arXiv 2601.10245, the method's section on learned policies, and its published code):
1. Training is in a simulator fitted to traces (`simulator`), then, if wanted, with the models themselves (`tuning`).
2. Actions may be wider: besides keeping a draft and having the strong model write the step, the strong model may write
   several steps on end or all that are left. Drafts may have a price, without which wider actions cannot pay.
3. TRIM-Seq is not in the published code. Here: a transformer of two layers, 32 units and four heads, without dropout,
   over the pairs (score, tokens / 300) of the committed steps and the draft; what it makes of the draft goes to heads
   like TRIM-Agg's. A transformer as in the paper, and because all earlier steps are equally near to it: an early low
   score counts until the end. Solutions have at most some 30 steps, so what attention costs does not matter.
4. It decides for the likeliest action; the published choice between that and drawing is not known.
5. A step without a score (the strong model's own, where it is not scored) counts as scored 1; an empty draft as 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.errors import ConfigError
from stepwise.routing.policy import Action, Escalate, HandOver, Keep, View, When
from stepwise.types import Step

Array = NDArray[np.float64]
Kind = Literal["agg", "seq"]
Weights = Mapping[str, Array]
FOR_GOOD = 2**31  # a run of the strong model that no solution outlasts
TOKENS, STEPS = 300.0, 30.0  # what TRIM divides a step's tokens and its index by
LAYERS, HEADS = 2, 4  # of TRIM-Seq
_FROZEN = ConfigDict(extra="forbid")
_STEM = "learned-"
_MAKE = "train it with python -m programs.train_router"


@dataclass(frozen=True, config=_FROZEN)
class Pair:
    """Names of the models that a policy was made for, as the configuration names them, and the configuration's hash."""

    weak: str
    strong: str
    scorer: str
    config: str = ""

    def check(self, *, weak: str | None = None, strong: str | None = None, scorer: str | None = None) -> None:
        """Raise `ConfigError` where one of the models is another; None is not checked.

        A model that was loaded tells its name without the kind of backend and with a hash of its weights
        ("lab-weak@11989165" for "llamacpp/lab-weak"); what either side does not say is not checked.
        """
        for role, name in (("weak", weak), ("strong", strong), ("scorer", scorer)):
            ours = getattr(self, role)
            if name is not None and not _same(ours, name):
                raise ConfigError(
                    f"the learned policy is for the {role} model {ours!r}, the router has {name!r}; {_MAKE} for these "
                    "models, or force it"
                )


def _same(one: str, other: str) -> bool:
    (name, _, mark), (name2, _, mark2) = (model.rpartition("/")[2].partition("@") for model in (one, other))
    return name == name2 and (not mark or not mark2 or mark == mark2)


@dataclass(frozen=True, config=_FROZEN)
class Figures:
    """What a policy did on `n` episodes or problems: share right, tokens for each, and the objective with its standard
    error.
    """

    n: int
    accuracy: float
    strong_tokens: float
    draft_tokens: float
    objective: float
    error: float


@dataclass(frozen=True, config=_FROZEN)
class LearnedCard:
    """What a learned policy is good for.

    Attributes:
        kind: "agg" or "seq".
        price: lambda, what a strong token costs where a right solution is worth 1; the operating point.
        runs: its actions: how many steps the strong model writes, 0 to keep the draft.
        draft_share: price of a drafted and scored token, as a share of a strong one's.
        pair: the models it is for.
        settings: of the training; `batches`: after how many the best weights were found.
        simulated: in the simulator, on episodes that neither training nor the choice of weights has seen.
        live: on the held-out problems that weights were chosen by, before and after training with the models; none
            where there was no such training.
    """

    kind: Kind
    price: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    runs: tuple[int, ...]
    draft_share: float
    pair: Pair
    settings: dict[str, Any]
    batches: int
    simulated: Figures | None = None
    live: tuple[Figures, Figures] | None = None


@dataclass(frozen=True, config=_FROZEN)
class Learned:
    """A trained policy: TRIM-Agg or TRIM-Seq, for one of the prices that were trained.

    Args:
        path: directory that programs.train_router wrote: for each price `learned-PRICE.safetensors` and a card.
        price: lambda, one of the trained; None where only one was.
        force: use it for other models than it was trained for.

    Raises a ValueError where there is no such policy; `check` says whether it is for a pair of models.
    """

    path: str
    price: float | None = None
    force: bool = False

    name: ClassVar[str] = "learned"
    when: ClassVar[When] = "after"
    needs_scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        trained = self.prices
        if self.price is None and len(trained) == 1:
            object.__setattr__(self, "price", trained[0])
        near = [x for x in trained if self.price is not None and math.isclose(x, self.price, rel_tol=1e-9)]
        if not near:
            raise ConfigError(
                f"routing.price is {self.price!r}; {self.path} has policies for {', '.join(f'{x:g}' for x in trained)}"
            )

    @cached_property
    def prices(self) -> tuple[float, ...]:
        """The operating points that were trained, by size: those that `at` takes."""
        found = [_price_of(card) for card in sorted(Path(self.path).glob(f"{_STEM}*.json"))]
        if not found:
            raise ConfigError(f"routing.path is {self.path!r}, where there is no learned policy; {_MAKE}")
        return tuple(sorted(found))

    @cached_property
    def card(self) -> LearnedCard:
        """What it is good for."""
        assert self.price is not None
        return read_card(files_of(self.path, self.price)[1])

    @cached_property
    def weights(self) -> dict[str, Array]:
        """The network's, in double precision."""
        assert self.price is not None
        return read_weights(files_of(self.path, self.price)[0])

    def check(self, *, weak: str | None = None, strong: str | None = None, scorer: str | None = None) -> None:
        """Raise `ConfigError` unless these are the models it was trained for, or `force` is set."""
        if not self.force:
            self.card.pair.check(weak=weak, strong=strong, scorer=scorer)

    def decide(self, view: View) -> Action:
        """The likeliest action."""
        scores, tokens = seen(view)
        share = softmax(forward(self.card.kind, self.weights, scores[None], tokens[None])[0])
        best = int(share.argmax())
        return action_of(self.card.runs[best], f"probability {share[best]:.2f}, of keeping {share[0]:.2f}")

    @property
    def point(self) -> float | None:
        """The price."""
        return self.price

    def at(self, x: float) -> Self:
        """The policy trained for price `x`; raises a ValueError that lists the trained ones where `x` is none."""
        return dataclasses.replace(self, price=x)


def action_of(run: int, reason: str) -> Action:
    """The action that has the strong model write `run` steps, none for 0."""
    if run >= FOR_GOOD:
        return HandOver(reason)
    return Escalate(run, reason) if run else Keep(reason)


def actions(stay: Sequence[int] = (), hand_over: bool = False) -> tuple[int, ...]:
    """Keep, one strong step, `stay` steps, all that are left: as numbers of strong steps."""
    return (0, 1, *sorted(set(stay)), *([FOR_GOOD] if hand_over else []))


def seen(view: View) -> tuple[Array, Array]:
    """Scores and tokens of the committed steps and the draft, (T,) each; NaN where a step has no score."""
    steps = (*view.steps, *([view.draft] if view.draft else ()))
    scores = np.array([np.nan if step.score is None else step.score for step in steps], dtype=float)
    if view.draft is not None and view.draft.score is None and not view.draft.text.strip():
        scores[-1] = 0.0
    return scores, np.array([_tokens(step) for step in steps], dtype=float)


def _tokens(step: Step) -> int:
    return step.usage.generated_tokens


def features(scores: Array, tokens: Array) -> Array:
    """TRIM-Agg's five, (B, 5), of scores and tokens (B, T) of committed steps and a draft: least and product of the
    earlier scores (1 where there are none), the draft's score, its tokens / 300, its index / 30.
    """
    known = np.where(np.isnan(scores), 1.0, scores)
    earlier = np.concatenate([np.ones((len(known), 1)), known[:, :-1]], axis=1)
    index = np.full(len(known), (known.shape[1] - 1) / STEPS)
    return np.stack([earlier.min(1), earlier.prod(1), known[:, -1], tokens[:, -1] / TOKENS, index], axis=1)


def pairs(scores: Array, tokens: Array) -> Array:
    """TRIM-Seq's input, (B, T, 2): score and tokens / 300 of each step."""
    return np.stack([np.where(np.isnan(scores), 1.0, scores), tokens / TOKENS], axis=2)


def positions(length: int, width: int) -> Array:
    """Sines and cosines of each place, (length, width), as in "Attention is all you need" (arXiv 1706.03762), 3.5."""
    angle = np.arange(length)[:, None] / 1e4 ** (2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def forward(kind: Kind, weights: Weights, scores: Array, tokens: Array) -> Array:
    """Logits of the actions, (B, A), for scores and tokens (B, T) of committed steps and a draft."""
    if kind == "agg":
        hidden = _aggregate(weights, features(scores, tokens))
    else:
        hidden = _sequence(weights, pairs(scores, tokens))
    return _linear(weights, "actor.1", np.tanh(_linear(weights, "actor.0", hidden)))


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    result: Array = shifted / shifted.sum(-1, keepdims=True)
    return result


def _aggregate(weights: Weights, x: Array) -> Array:
    for layer in ("body.0", "body.1"):
        x = np.tanh(_norm(weights, f"{layer}.norm", _linear(weights, layer, x)))
    return x


def _sequence(weights: Weights, x: Array) -> Array:
    """What the transformer makes of the last place, (B, width)."""
    h = _linear(weights, "embed", x)
    batch, length, width = h.shape
    h = h + positions(length, width)
    for layer in range(LAYERS):
        name = f"layer.{layer}"
        parts = _linear(weights, f"{name}.qkv", _norm(weights, f"{name}.norm", h))
        q, k, v = parts.reshape(batch, length, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
        attention = softmax(q @ k.swapaxes(2, 3) / math.sqrt(width // HEADS))
        mixed = (attention @ v).transpose(0, 2, 1, 3).reshape(batch, length, width)
        h = h + _linear(weights, f"{name}.mix", mixed)
        inner = _linear(weights, f"{name}.up", _norm(weights, f"{name}.norm2", h))
        h = h + _linear(weights, f"{name}.down", np.maximum(inner, 0.0))
    return _norm(weights, "norm", h[:, -1])


def _linear(weights: Weights, name: str, x: Array) -> Array:
    result: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return result


def _norm(weights: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    result: Array = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return result


def files_of(directory: str | Path, price: float) -> tuple[Path, Path]:
    """Weights and card of the policy for `price`."""
    stem = f"{_STEM}{price!r}"
    return Path(directory) / f"{stem}.safetensors", Path(directory) / f"{stem}.json"


def _price_of(card: Path) -> float:
    try:
        return float(card.stem.removeprefix(_STEM))
    except ValueError:
        raise ConfigError(f"{card} is not named after a price; {_MAKE}") from None


def read_card(path: Path) -> LearnedCard:
    """The card in a JSON file; raises `ConfigError` where there is none that can be read."""
    from stepwise.types import from_json

    try:
        return from_json(LearnedCard, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no card of a learned policy ({str(error).splitlines()[0]}); {_MAKE}") from error


def read_weights(path: Path) -> dict[str, Array]:
    """All tensors of a safetensors file, in double precision; raises `ConfigError` where they cannot be read."""
    from stepwise.errors import ExportError
    from stepwise.export.safetensors import Checkpoint

    try:
        file = Checkpoint([path])
        return {name: file.read(name).astype(np.float64) for name in file.places}
    except (OSError, ExportError) as error:
        raise ConfigError(f"{path} holds no weights of a learned policy ({error}); {_MAKE}") from error


POLICIES: dict[str, Any] = {Learned.name: Learned}
