"""TRIM-Agg and TRIM-Seq, policies learned by reinforcement: the networks in numpy, and the files that hold them.

TRIM (arXiv 2601.10245, the method's section on learned policies) maximises E[right - lambda * tokens of the strong
model's steps]. TRIM-Agg decides from five numbers (`_features`), TRIM-Seq from all scores and tokens so far (`_pairs`);
training is in `ppo`. What differs from the paper and its published code:

1. Training is in a simulator fitted to traces; TRIM trains with the models themselves.
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

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stepwise.errors import ConfigError, ExportError, reason_of
from stepwise.io import parse_json, whole_file, write_text
from stepwise.models.safetensors import Checkpoint
from stepwise.records import from_json, record, to_json
from stepwise.routing.names import ModelNames
from stepwise.routing.policy import FOR_GOOD, Action, Escalate, HandOver, Keep, Policy, View, When

Array = NDArray[np.float64]
Kind = Literal["agg", "seq"]
Weights = Mapping[str, Array]
LAYERS, HEADS = 2, 4  # of TRIM-Seq
_TOKENS, _STEPS = 300.0, 30.0  # what TRIM divides a step's tokens and its index by
_STEM = "learned-"
_REMEDY = "train it with stepwise train_router"


@record()
class Performance:
    """What a policy did on `n` episodes or problems: share right, tokens for each, and the objective with its standard
    error.

    >>> Performance.of([1, 0], strong=[10, 20], draft=[50, 50], price=0.01, draft_share=0.0).objective
    0.35
    """

    n: int
    accuracy: float
    strong_tokens: float
    draft_tokens: float
    objective: float
    error: float

    @classmethod
    def of(cls, right: Any, strong: Any, draft: Any, price: float, draft_share: float) -> Performance:
        """Means over episodes, from what each of them was and took, (n,) each."""
        right, strong, draft = (np.asarray(values, dtype=float) for values in (right, strong, draft))
        objective = right - price * (strong + draft_share * draft)
        accuracy, strong_tokens, draft_tokens, mean = (float(v.mean()) for v in (right, strong, draft, objective))
        error = float(objective.std() / math.sqrt(len(right)))
        return cls(len(right), accuracy, strong_tokens, draft_tokens, mean, error)


@record()
class LearnedCard:
    """What a learned policy is good for.

    Attributes:
        kind: "agg" or "seq".
        price: lambda, what a strong token costs where a right solution is worth 1; the operating point.
        runs: its actions: how many steps the strong model writes, 0 to keep the draft.
        draft_share: price of a drafted and scored token, as a share of a strong one's.
        pair: the models it is for.
        settings: of the training; `batches`: after how many the best weights were reached.
        simulated: in the simulator, on episodes that neither training nor the choice of weights has seen.

    Example:
        card = LearnedCard.read(files_of("policies", 0.001)[1])
        print(card.kind, card.price, card.simulated.accuracy)
    """

    kind: Kind
    price: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    runs: tuple[int, ...]
    draft_share: float
    pair: ModelNames
    settings: dict[str, Any]
    batches: int
    simulated: Performance | None = None

    @classmethod
    def read(cls, path: Path) -> LearnedCard:
        """The card in a JSON file; raises `ConfigError` where there is none that can be read."""
        try:
            row = parse_json(path.read_text(encoding="utf-8"))
            row.pop("live", None)  # of a training with the models, before 0.1.0
            return from_json(cls, json.dumps(row))
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path} is no card of a learned policy ({reason_of(error)}); {_REMEDY}") from error


@record()
class Learned(Policy):
    """A trained policy: TRIM-Agg or TRIM-Seq, for one of the prices that were trained.

    Args:
        path: directory that `stepwise train_router` wrote: for each price `learned-PRICE.safetensors` and a card.
        price: lambda, one of the trained; None where only one was.
        force: use it for other models than it was trained for.

    Raises `ConfigError` where there is no such policy; `check_models` says whether it is for the router's models.

    Example:
        sw.StepRouter(weak, strong, scorer, Learned("out/learned", price=0.002))
    """

    path: str
    price: float | None = None
    force: bool = False

    name: ClassVar[str] = "learned"
    when: ClassVar[When] = "after"
    needs_scores: ClassVar[bool] = True
    dial: ClassVar[str] = "price"

    def __post_init__(self) -> None:
        wanted, trained = self.price, self.prices
        near = [x for x in trained if wanted is None or math.isclose(x, wanted, rel_tol=1e-9)]
        if len(near) != 1:
            listed = ", ".join(f"{x:g}" for x in trained)
            raise ConfigError(f"routing.price is {wanted!r}; {self.path} has policies for {listed}")
        object.__setattr__(self, "price", near[0])

    @cached_property
    def prices(self) -> tuple[float, ...]:
        """The operating points that were trained, by size: those that `at` takes."""
        names = [card.stem.removeprefix(_STEM) for card in Path(self.path).glob(f"{_STEM}*.json")]
        if not names:
            raise ConfigError(f"routing.path is {self.path!r}, where there is no learned policy; {_REMEDY}")
        try:
            return tuple(sorted(map(float, names)))
        except ValueError as error:
            raise ConfigError(f"a card in {self.path} is not named after a price ({error}); {_REMEDY}") from None

    @cached_property
    def card(self) -> LearnedCard:
        """What it is good for."""
        return LearnedCard.read(files_of(self.path, self.price)[1])

    @cached_property
    def weights(self) -> dict[str, Array]:
        """All tensors of the network, in double precision; raises `ConfigError` where they cannot be read."""
        path, _ = files_of(self.path, self.price)
        try:
            file = Checkpoint([path])
            return {name: file.read(name).astype(np.float64) for name in file.places}
        except (OSError, ExportError) as error:
            raise ConfigError(f"{path} holds no weights of a learned policy ({error}); {_REMEDY}") from error

    @classmethod
    def write(cls, directory: str | Path, card: LearnedCard, weights: Weights, force: bool = False) -> Self:
        """Write the weights, then the card, which says that the policy is there; a checkpoint of its training goes."""
        from safetensors.numpy import save_file

        weights_file, card_file = files_of(directory, card.price)
        with whole_file(weights_file) as draft:
            save_file({name: value.astype(np.float32) for name, value in weights.items()}, draft, metadata={})
        write_text(card_file, to_json(card) + "\n")
        card_file.with_suffix(".checkpoint").unlink(missing_ok=True)
        return cls(str(directory), card.price, force)

    def check_models(self, *, weak: str | None = None, strong: str | None = None, scorer: str | None = None) -> None:
        """Raise `ConfigError` unless these are the models it was trained for, or `force` is set."""
        if not self.force:
            self.card.pair.check(ModelNames(weak or "", strong or "", scorer))

    def decide(self, view: View) -> Action:
        """The likeliest action."""
        scores, tokens = seen(view)
        share = _softmax(forward(self.card.kind, self.weights, scores[None], tokens[None])[0])
        best = int(share.argmax())
        run, reason = self.card.runs[best], f"probability {share[best]:.2f}, of keeping {share[0]:.2f}"
        if run >= FOR_GOOD:
            return HandOver(reason)
        return Escalate(run, reason) if run else Keep(reason)


def seen(view: View) -> tuple[Array, Array]:
    """Scores and tokens of the committed steps and the draft, (T,) each; NaN where a step has no score.

    >>> view = View(Problem("p", "?"), (Step("So 3.", "weak", 0.9),), Step("And 4.", "weak", 0.2))
    >>> seen(view)[0]
    array([0.9, 0.2])
    """
    steps = (*view.steps, *([view.draft] if view.draft else ()))
    scores = np.array([np.nan if step.score is None else step.score for step in steps], dtype=float)
    if view.draft is not None and view.draft.score is None and not view.draft.text.strip():
        scores[-1] = 0.0
    return scores, np.array([step.usage.generated_tokens for step in steps], dtype=float)


def _features(scores: Array, tokens: Array) -> Array:
    """TRIM-Agg's five, (B, 5), of scores and tokens (B, T) of committed steps and a draft: least and product of the
    earlier scores (1 where there are none), the draft's score, its tokens / 300, its index / 30.
    """
    filled = np.where(np.isnan(scores), 1.0, scores)  # (B, T)
    earlier = np.concatenate([np.ones((len(filled), 1)), filled[:, :-1]], axis=1)
    index = np.full(len(filled), (filled.shape[1] - 1) / _STEPS)
    return np.stack([earlier.min(1), earlier.prod(1), filled[:, -1], tokens[:, -1] / _TOKENS, index], axis=1)


def _pairs(scores: Array, tokens: Array) -> Array:
    """TRIM-Seq's input, (B, T, 2): score and tokens / 300 of each step."""
    return np.stack([np.where(np.isnan(scores), 1.0, scores), tokens / _TOKENS], axis=2)


def encoded(kind: Kind, step: NDArray[np.int64], scores: Array, tokens: Array) -> Array:
    """The input for D decisions at once, (D, 5) for "agg", (D, T, 2) for "seq", T the longest. `step` (D,) is the index
    of the draft; scores and tokens (D, N) are padded after it.

    >>> step, scores = np.array([1]), np.array([[0.9, 0.2]])
    >>> encoded("agg", step, scores, np.array([[12.0, 8.0]])).shape
    (1, 5)
    """
    if kind == "seq":
        longest = int(step.max()) + 1
        return _pairs(scores[:, :longest], tokens[:, :longest])
    x = np.empty((len(step), 5))
    for index in np.unique(step):
        at = step == index
        x[at] = _features(scores[at, : index + 1], tokens[at, : index + 1])
    return x


def positions(length: int, width: int) -> Array:
    """Sines and cosines of each place, (length, width), as in "Attention is all you need" (arXiv 1706.03762), 3.5.

    >>> positions(3, 4).round(2)[1]
    array([0.84, 0.01, 0.54, 1.  ])
    """
    angle = np.arange(length)[:, None] / 1e4 ** (2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def forward(kind: Kind, weights: Weights, scores: Array, tokens: Array) -> Array:
    """Logits of the actions, (B, A), for scores and tokens (B, T) of committed steps and a draft.

    Example:
        logits = forward("agg", policy.weights, np.array([[0.9, 0.2]]), np.array([[12.0, 8.0]]))  # (1, actions)
    """
    if kind == "agg":
        hidden = _features(scores, tokens)
        for layer in ("body.0", "body.1"):
            hidden = np.tanh(_norm(weights, f"{layer}.norm", _linear(weights, layer, hidden)))
    else:
        hidden = _transformer(weights, _pairs(scores, tokens))
    return _linear(weights, "actor.1", np.tanh(_linear(weights, "actor.0", hidden)))


def _softmax(logits: Array) -> Array:
    """Probabilities along the last axis.

    Example:
        >>> _softmax(np.array([0.0, 0.0]))
        array([0.5, 0.5])
    """
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def _transformer(weights: Weights, x: Array) -> Array:
    """What the transformer makes of the last place, (B, width), of pairs (B, T, 2)."""
    h = _linear(weights, "embed", x)
    batch, length, width = h.shape
    h = h + positions(length, width)
    for layer in (f"layer.{i}" for i in range(LAYERS)):
        parts = _linear(weights, f"{layer}.qkv", _norm(weights, f"{layer}.norm", h))
        q, k, v = parts.reshape(batch, length, 3, HEADS, width // HEADS).transpose(2, 0, 3, 1, 4)
        attention = _softmax(q @ k.swapaxes(2, 3) / math.sqrt(width // HEADS))  # (B, heads, T, T)
        mixed = (attention @ v).transpose(0, 2, 1, 3).reshape(batch, length, width)
        h = h + _linear(weights, f"{layer}.mix", mixed)
        inner = _linear(weights, f"{layer}.up", _norm(weights, f"{layer}.norm2", h))
        h = h + _linear(weights, f"{layer}.down", np.maximum(inner, 0.0))
    return _norm(weights, "norm", h[:, -1])


def _linear(weights: Weights, name: str, x: Array) -> Array:
    return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])


def files_of(directory: str | Path, price: float | None) -> tuple[Path, Path]:
    """Weights and card of the policy for `price`.

    Example:
        >>> [path.name for path in files_of("policies", 0.001)]
        ['learned-0.001.safetensors', 'learned-0.001.json']
    """
    stem = f"{_STEM}{price!r}"
    return Path(directory) / f"{stem}.safetensors", Path(directory) / f"{stem}.json"
