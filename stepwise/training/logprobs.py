"""Log-probabilities of chosen tokens under a causal language model, without ever holding all its logits.

`log_softmax(model(ids).logits)` of 8 sequences of 1,024 tokens over a vocabulary of 151,936 is a tensor of 5 GB, and
training holds several of them. Here the layers run once, the hidden states of the wanted positions are gathered, and
the head runs over tiles of them, in the forward pass and once more in the backward pass, so that no tensor is larger
than (tile, V) beyond what the layers themselves need. A frozen head gets no gradient and pays for none.

The idea is that of the fused losses of Liger Kernel (arXiv 2410.10989, section 3.2) and of TRL's chunked log-probs.
What is done differently:

1. Plain torch, no kernels: tiles of positions instead of blocks of the vocabulary, so that the softmax needs one pass.
2. The logits are recomputed in the backward pass instead of a gradient that is made in the forward pass, so that any
   loss can stand on the log-probabilities.
3. No attention mask reaches the layers: padding on the right cannot be seen by the tokens before it, and attention
   without a mask takes its fastest path.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from stepwise.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn

_PLAIN_HEADS = ("llama", "qwen2", "qwen3")  # model types whose logits are one matrix product with the hidden state
_VOCABULARY_BLOCK = 8192  # rows of a low-precision head that are in float32 at a time, where no mixed product exists


@dataclass(frozen=True, eq=False)
class LogProbs:
    """What `token_logprobs` found; zero where it was not asked. Shapes (B, T)."""

    logprobs: Tensor
    """log p(ids[b, t] | ids[b, :t]) in nats, differentiable"""
    entropy: Tensor | None
    """entropy in nats of the distribution that the token was drawn from; None where it was not asked for"""


def token_logprobs(
    model: nn.Module, ids: Tensor, attention: Tensor, wanted: Tensor, *, tile: int = 1024, entropy: bool = False
) -> LogProbs:
    """Log-probabilities of the tokens `ids[wanted]`, each given all tokens before it in its row.

    `model` is a causal language model of transformers (Llama, Qwen2, Qwen3), plain or with a LoRA adapter of PEFT on
    its layers; `ids` (B, T) are token ids padded on the right, `attention` (B, T) is True on tokens and False on
    padding, `wanted` (B, T) is True where a log-probability is asked for, never in the first column. `tile` is the
    number of positions whose logits (tile, V) are in memory at a time. The result is float32 (float64 for a model in
    float64) and differentiable in the model's parameters, the head's included where it is trained; the entropy is not.
    Raises DataError for wrong shapes, padding that is not on the right, and a model whose head is another.
    """
    import torch

    decoder, head = _decoder_and_head(model)
    _check(ids, attention, wanted, tile)
    chosen = wanted.flatten().nonzero().squeeze(1)  # (N,) positions in the flattened batch
    states = decoder(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, H)
    # A token is predicted by the position before it, which is in the same row: the first column is never wanted.
    states = states.flatten(0, 1).index_select(0, chosen - 1)  # (N, H)
    targets = ids.flatten().index_select(0, chosen)
    found, spread = _tiled_logprobs().apply(states.to(head.dtype), head, targets, tile, entropy)
    empty = torch.zeros(ids.numel(), dtype=found.dtype, device=found.device)
    return LogProbs(
        logprobs=empty.index_copy(0, chosen, found).view_as(ids),
        entropy=empty.index_copy(0, chosen, spread).view_as(ids) if entropy else None,
    )


def _check(ids: Tensor, attention: Tensor, wanted: Tensor, tile: int) -> None:
    """Raises DataError for anything that would give wrong numbers; one synchronisation with the device."""
    import torch

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


def _decoder_and_head(model: Any) -> tuple[Any, Tensor]:
    """The layers without the head, and the head's matrix (V, H). Raises DataError for a head that is more than that."""
    from torch import nn

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


@cache
def _tiled_logprobs() -> Any:
    """The class of the autograd function; made at its first use, because torch is imported only where it is needed."""
    import torch
    from torch.autograd.function import once_differentiable

    class TiledLogprobs(torch.autograd.Function):
        """Log-probabilities (N,) of targets (N,) from states (N, H) and a head (V, H), and entropies (N,) or (0,)."""

        @staticmethod
        def forward(
            ctx: Any, states: Tensor, head: Tensor, targets: Tensor, tile: int, entropy: bool
        ) -> tuple[Tensor, Tensor]:
            n, exact = len(states), _exact(states.dtype)
            logprobs, normalizers = (states.new_empty(n, dtype=exact) for _ in range(2))
            entropies = states.new_empty(n if entropy else 0, dtype=exact)
            for start in range(0, n, tile):
                rows = slice(start, start + tile)
                logits = _logits(states[rows], head)  # the one tensor (tile, V); all that follows is done in it
                top = logits.amax(1, keepdim=True)
                logits -= top
                picked = logits.gather(1, targets[rows, None]).squeeze(1)
                if entropy:
                    weights = logits.exp()
                    total = weights.sum(1)
                    # H = log Z - sum p * logit, with logits measured from the largest
                    entropies[rows] = total.log() - weights.mul_(logits).sum(1) / total
                    del weights
                else:
                    total = logits.exp_().sum(1)
                logprobs[rows] = picked - total.log()
                normalizers[rows] = total.log() + top.squeeze(1)
                del logits  # before the next tile's are made
            ctx.save_for_backward(states, head, targets, normalizers)
            ctx.tile = tile
            ctx.mark_non_differentiable(entropies)
            return logprobs, entropies

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, outer: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
            states, head, targets, normalizers = ctx.saved_tensors
            of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
            of_head = torch.zeros_like(head, dtype=_exact(head.dtype)) if ctx.needs_input_grad[1] else None
            for start in range(0, len(states), ctx.tile):
                rows = slice(start, start + ctx.tile)
                logits, weight = _logits(states[rows], head), outer[rows, None]
                # d log p(target) / d logits = [target] - p
                slopes = logits.sub_(normalizers[rows, None]).exp_().mul_(-weight)
                slopes.scatter_add_(1, targets[rows, None], weight)
                if of_states is not None:
                    of_states[rows] = slopes.to(head.dtype) @ head
                if of_head is not None:
                    of_head.addmm_(slopes.t(), states[rows].to(slopes.dtype))
                del logits, slopes  # before the next tile's are made
            return of_states, None if of_head is None else of_head.to(head.dtype), None, None, None

    return TiledLogprobs


def _exact(kind: dtype) -> dtype:
    """The type that sums are made in: float32, or float64 for a model in float64."""
    import torch

    return torch.float64 if kind == torch.float64 else torch.float32


def _logits(states: Tensor, head: Tensor) -> Tensor:
    """Logits (n, V) of states (n, H), in float32 also where both are in half precision.

    Rounding logits to bfloat16 would move log-probabilities by up to 0.4 % of the logit, and entropies downwards.
    """
    import torch

    with torch.autocast(states.device.type, enabled=False):
        if states.dtype == _exact(states.dtype):
            return states @ head.t()
        if states.device.type == "cuda":  # tensor cores add up in float32, and can give that back
            return torch.mm(states, head.t(), out_dtype=torch.float32)
        logits = states.new_empty(len(states), len(head), dtype=torch.float32)
        wide = states.float()
        for start in range(0, len(head), _VOCABULARY_BLOCK):
            block = slice(start, start + _VOCABULARY_BLOCK)
            logits[:, block] = wide @ head[block].float().t()
        return logits
