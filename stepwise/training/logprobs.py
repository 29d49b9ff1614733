"""Log-probabilities of chosen tokens under a causal language model, without ever holding all its logits.

`log_softmax(model(ids).logits)` of 8 sequences of 1,024 tokens over a vocabulary of 151,936 is a tensor of 5 GB, and
training holds several of them. Here the layers run once, the hidden states of the wanted positions are gathered, and
the head runs over tiles of so many positions and a block of the vocabulary, in the forward pass and once more in the
backward pass: no tensor is larger than a tile beyond what the layers themselves need. A frozen head gets no gradient
and pays for none.

The idea is that of the fused losses of Liger Kernel (arXiv 2410.10989, section 3.2) and of the chunked log-probs of
TRL 1.16. What is done differently:

1. Plain torch, no kernels of our own.
2. The logits are recomputed in the backward pass instead of a gradient that is made in the forward pass, so that any
   loss can stand on the log-probabilities (Liger Kernel).
3. Logits are float32 also where weights are in half precision: rounding one to bfloat16 moves it by up to 0.4 %.
4. No attention mask reaches the layers: padding on the right cannot be seen by the tokens before it, and attention
   without a mask takes its fastest path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stepwise.errors import DataError
from stepwise.training.lora import Trainee
from stepwise.training.rendering import TokenRow

T = TypeVar("T", int, float, bool)
_PLAIN_HEADS = ("llama", "qwen2", "qwen3")  # model types whose logits are one matrix product with the hidden state
_BLOCK = 8192


class LogProbs(NamedTuple):
    """What `token_logprobs` found; zero where it was not asked. Shapes (B, T).

    Example:
        found = token_logprobs(model, ids, attention, wanted, entropy=True)
        print(found.logprobs.shape, found.entropy.mean())
    """

    logprobs: Tensor
    """log p(ids[b, t] | ids[b, :t]) in nats, differentiable"""
    entropy: Tensor | None
    """entropy in nats of the distribution that the token was drawn from; None where it was not asked for"""


def token_logprobs(
    model: nn.Module,
    ids: Tensor,
    attention: Tensor,
    wanted: Tensor,
    *,
    tile: int = 1024,
    entropy: bool = False,
    block: int = _BLOCK,
) -> LogProbs:
    """Log-probabilities of the tokens `ids[wanted]`, each given all tokens before it in its row.

    `model` is a causal language model of transformers (Llama, Qwen2, Qwen3), plain or with a LoRA adapter of PEFT on
    its layers; `ids` (B, T) are token ids padded on the right, `attention` (B, T) is True on tokens and False on
    padding, `wanted` (B, T) is True where a log-probability is asked for, never in the first column. `tile` is the
    number of positions whose logits are in memory at a time, for `block` tokens of the vocabulary each. The result is
    float32 (float64 for a model in float64) and differentiable in the model's parameters, the head's included where it
    is trained; the entropy is not.
    Raises DataError for wrong shapes, padding that is not on the right, and a model whose head is another.

    Example:
        ids = torch.tensor([tokenizer("1 + 1 = 2")["input_ids"]])  # (1, T)
        wanted = torch.ones_like(ids, dtype=torch.bool)
        wanted[:, 0] = False  # nothing stands before the first token
        print(token_logprobs(model, ids, torch.ones_like(wanted), wanted).logprobs.sum())
    """
    decoder, head = decoder_and_head(model)
    _check(ids, attention, wanted, tile)
    chosen = wanted.flatten().nonzero().squeeze(1)  # (N,) positions in the flattened batch
    states = decoder(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, H)
    # A token is predicted by the position before it, which is in the same row: the first column is never wanted.
    states = states.flatten(0, 1).index_select(0, chosen - 1)  # (N, H)
    targets = ids.flatten().index_select(0, chosen)
    given = (states.to(head.dtype), head, targets, tile, block, entropy)
    values, entropies = _TiledLogprobs.apply(*given)  # type: ignore[no-untyped-call]
    empty = torch.zeros(ids.numel(), dtype=values.dtype, device=values.device)
    return LogProbs(
        logprobs=empty.index_copy(0, chosen, values).view_as(ids),
        entropy=empty.index_copy(0, chosen, entropies).view_as(ids) if entropy else None,
    )


def weighted_logprobs(trainee: Trainee, rows: Sequence[TokenRow], tile: int) -> Tensor:
    """Each token's w * log p, (B, T) in nats, 0 on prompts and padding.

    Example:
        loss = -weighted_logprobs(trainee, rows, tile=1024).sum()
    """

    def tensor(values: Any) -> Tensor:
        return torch.from_numpy(values).to(trainee.device)

    ids = tensor(pad([row.ids for row in rows], trainee.tokenizer.eos_token_id))  # (B, T)
    attention = tensor(pad([[True] * len(row.ids) for row in rows], False))
    weights = tensor(pad([[0.0] * row.prompt + list(row.weights) for row in rows], 0.0))
    logprobs = token_logprobs(trainee.model, ids, attention, weights > 0, tile=tile).logprobs
    return logprobs * weights.to(logprobs.dtype)


def pad(rows: Sequence[Sequence[T]], fill: T) -> NDArray[np.generic]:
    """Rows of unequal length as one array (B, T), filled on the right.

    >>> pad([[5, 7, 9], [5]], 0).tolist()
    [[5, 7, 9], [5, 0, 0]]
    """
    width = max((len(row) for row in rows), default=0)
    padded = np.full((len(rows), width), fill)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def _check(ids: Tensor, attention: Tensor, wanted: Tensor, tile: int) -> None:
    """Raises DataError for anything that would give wrong numbers; one synchronisation with the device."""
    if tile < 1:
        raise DataError(f"tile is {tile}; it must be at least 1")
    if ids.ndim != 2 or ids.dtype != torch.long:
        raise DataError(f"ids is of shape {tuple(ids.shape)} and type {ids.dtype}; it must be (B, T) of torch.long")
    for name, mask in (("attention", attention), ("wanted", wanted)):
        if mask.shape != ids.shape or mask.dtype != torch.bool:
            raise DataError(
                f"{name} is of shape {tuple(mask.shape)} and type {mask.dtype}; "
                f"it must be of the shape of ids, {tuple(ids.shape)}, and of torch.bool"
            )
    first, padding, left = torch.stack(
        [wanted[:, :1].any(), (wanted & ~attention).any(), (attention[:, 1:] & ~attention[:, :-1]).any()]
    ).tolist()
    if first:
        raise DataError("wanted is True in the first column; the first token of a row has nothing before it")
    if padding:
        raise DataError("wanted is True where attention is False; padding has no log-probability")
    if left:
        raise DataError("attention has tokens after padding; pad the rows on the right")


def decoder_and_head(model: Any) -> tuple[Any, Tensor]:
    """The layers without the head, and the head's matrix (V, H). Raises DataError for a head that is more than that.

    Example:
        decoder, head = decoder_and_head(trainee.model)
    """
    if hasattr(model, "get_base_model"):  # PEFT's wrapper; the adapter's layers stand inside the base model
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise DataError("the adapter is a learned prompt, which stands outside the layers; use a LoRA adapter")
        model = model.get_base_model()
    kind = model.config.model_type
    if kind not in _PLAIN_HEADS:
        raise DataError(f"the model is of type {kind!r}; supported are {', '.join(_PLAIN_HEADS)}")
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or getattr(head, "bias", None) is not None:
        raise DataError(
            f"the model's head is a {type(head).__module__}.{type(head).__name__}, not a plain matrix; leave the head "
            "(lm_head) out of the adapter's target_modules and modules_to_save, unquantized and without a bias"
        )
    return model.get_decoder(), head.weight


class _TiledLogprobs(torch.autograd.Function):
    """Log-probabilities (N,) of targets (N,) from states (N, H) and a head (V, H), and entropies (N,) or (0,)."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, targets: Tensor, tile: int, block: int, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        tiles = zip(torch.split(states, tile), torch.split(targets, tile), strict=True)
        parts = [_normalize(part, head, chosen, block, entropy) for part, chosen in tiles]
        picked, normalizers, entropies = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        ctx.save_for_backward(states, head, targets, normalizers)
        ctx.tile, ctx.block = tile, block
        ctx.mark_non_differentiable(entropies)
        return picked - normalizers, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        states, head, targets, normalizers = ctx.saved_tensors
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        of_head = torch.zeros_like(head, dtype=_exact(head)) if ctx.needs_input_grad[1] else None
        for start in range(0, len(states), ctx.tile):
            rows = slice(start, start + ctx.tile)
            given = (states[rows], head, targets[rows], normalizers[rows], outer[rows], ctx.block)
            of_tile = _add_gradients(*given, with_states=of_states is not None, of_head=of_head)
            if of_states is not None and of_tile is not None:
                of_states[rows] = of_tile
        return of_states, None if of_head is None else of_head.to(head.dtype), None, None, None, None


def _normalize(
    states: Tensor, head: Tensor, targets: Tensor, size: int, entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one tile (n, H): logits of the targets (n,), logarithms of the normalizers (n,), entropies (n,) or (0,)."""
    picked, total, moment = (states.new_zeros(len(states), dtype=_exact(states)) for _ in range(3))
    top = torch.full_like(total, -torch.inf)
    for block in _blocks(head, size):
        logits = _product(states, head[block].t())  # (n, V of the block): all that follows is done in it
        place, inside = _place(targets, block)
        picked += torch.where(inside, logits.gather(1, place).squeeze(1), 0.0)
        higher = torch.maximum(top, logits.amax(1))
        shrink, top = (top - higher).exp(), higher  # sums so far were measured from a lower maximum; 0 at first
        if entropy:
            weights = (logits - top[:, None]).exp_()
            total = total * shrink + weights.sum(1)
            moment = moment * shrink + weights.mul_(logits).sum(1)
            del weights
        else:
            total = total * shrink + logits.sub_(top[:, None]).exp_().sum(1)
        del logits  # before the next block's are made
    normalizers = total.log() + top
    return picked, normalizers, normalizers - moment / total if entropy else moment[:0]  # H = log Z - mean logit


def _add_gradients(
    states: Tensor,
    head: Tensor,
    targets: Tensor,
    normalizers: Tensor,
    outer: Tensor,
    size: int,
    *,
    with_states: bool,
    of_head: Tensor | None,
) -> Tensor | None:
    """Gradient of sum(`outer` * log p) for the states of one tile (n, H), if wanted; the head's goes to `of_head`."""
    of_states = states.new_zeros(states.shape, dtype=_exact(states)) if with_states else None
    for block in _blocks(head, size):
        # d log p(target) / d logits = [target] - p
        slopes = _product(states, head[block].t()).sub_(normalizers[:, None]).exp_().mul_(-outer[:, None])  # (n, block)
        place, inside = _place(targets, block)
        slopes.scatter_add_(1, place, (outer * inside)[:, None])
        if of_states is not None:
            of_states += _product(slopes, head[block])
        if of_head is not None:
            of_head[block].addmm_(slopes.t(), states.to(slopes.dtype))
        del slopes  # before the next block's are made
    return of_states


def _blocks(head: Tensor, size: int) -> Iterator[slice]:
    for start in range(0, len(head), size):
        yield slice(start, min(start + size, len(head)))


def _place(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Columns (n, 1) of the targets in a block, 0 for those outside, and whether they are inside (n,)."""
    inside = (targets >= block.start) & (targets < block.stop)
    return ((targets - block.start) * inside)[:, None], inside


def _exact(values: Tensor) -> torch.dtype:
    """The type that sums are made in: float32, or float64 for a model in float64."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left` (n, k) @ `right` (k, m), in float32 also where `right` is in half precision."""
    exact = _exact(right)
    with torch.autocast(right.device.type, enabled=False):
        if right.dtype != exact and right.device.type == "cuda":  # tensor cores add up in float32, and give it back
            return torch.mm(left.to(right.dtype), right, out_dtype=exact)
        return left.to(exact) @ right.to(exact)
