"""Proof that two records part by rounding: the draw, or the comparison with a threshold, at which they part.

A step is drawn token by token: each token is the inverse of the cumulative distribution at one number in [0, 1), which
follows from run seed, problem, step, role and attempt alone. Where two records drew different tokens after the same
prefix, the distribution is computed again here, by llama.cpp's own high-level API and with seeds written out below, not
by the library that is being checked. Both tokens' shares must lie within `NEAR` of that number: nothing but rounding
then decides between them. As models are shipped (half-precision cache, flash attention) rounding is coarser: shares of
tokens and scores move by several thousandths with the shape of a batch.
"""

from __future__ import annotations

import atexit
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

NEAR = {"exact": 1e-3, "shipped": 1e-2}  # how far rounding reaches, by `traces.ARITHMETIC`; in probability
RUN_SEED, TEMPERATURE = 0, 0.7  # of `traces.solve`: the defaults of a router
REWARD = 100.0  # what a right answer is worth to a plan
_SPLIT = np.uint64(0x9E3779B97F4A7C15)
_COMPARED = re.compile(r"(-?[\d.]+(?:e-?\d+)?) (?:<=|>=|<|>) (-?[\d.]+(?:e-?\d+)?)")
_WORTH = re.compile(r"worth (-?[\d.]+) .*?, (-?[\d.]+) ")


@dataclass(frozen=True)
class Finding:
    """Where two records of one trace part, and whether rounding explains it; `how` is for people."""

    rounding: bool
    how: str


def stable_hash(*parts: object) -> int:
    """The seed of a place: 63 bits of the SHA-256 of the parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniform(seed: int, sample: int, position: int) -> float:
    """The number in [0, 1) of token `position` (0-based) of sample `sample` of a request with `seed`."""
    with np.errstate(over="ignore"):
        key = _mixed(_mixed(np.uint64(seed) + _SPLIT) + _SPLIT * np.uint64(sample + 1))
        return float(_mixed(key + _SPLIT * np.uint64(2 * position)) >> np.uint64(11)) * 2.0**-53


def _mixed(x: np.uint64) -> np.uint64:
    """SplitMix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def margin(logits: np.ndarray, number: float, tokens: Sequence[int], temperature: float = TEMPERATURE) -> float:
    """How far `number` lies from the share of [0, 1) of the farther one of `tokens`; logits (V,).

    Greedy where `temperature` is 0: the probability by which the likeliest token beats the least likely of `tokens`.
    """
    heat = temperature or 1.0
    weights = np.exp((logits.astype(np.float64) - logits.max()) / heat)
    shares = weights / weights.sum()
    if not temperature:
        return float(shares.max() - min(shares[token] for token in tokens))
    ends = np.cumsum(shares)
    return max(max(0.0, ends[t] - shares[t] - number, number - ends[t]) for t in tokens)


class Model:
    """A lab model by llama.cpp's high-level API: token ids and logits."""

    def __init__(self, name: str):
        from llama_cpp import Llama

        import stepwise as sw

        path = str(sw.lab.model_path(name))
        self.llama = Llama(path, n_ctx=2048, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False)
        atexit.register(self.llama.close)  # at the interpreter's end it could not be freed any more
        self.template = self.llama.metadata["tokenizer.chat_template"]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, special tokens among them."""
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=True))

    def prompt(self, question: str) -> list[int]:
        """Token ids up to where the solution begins."""
        from jinja2 import Template

        messages = [{"role": "user", "content": question}]
        chat = Template(self.template).render(messages=messages, add_generation_prompt=True, enable_thinking=False)
        return self.ids(chat)

    def step(self, own: Sequence[int], text: str) -> list[int]:
        """Token ids of a step and the blank line after it, as sampled where this model sampled it."""
        ends = {self.llama.token_eos(), *self.ids("<|im_end|>")}
        ids = [token for token in own if token not in ends]
        if not ids:
            return self.ids(text + "\n\n")
        written = self.llama.detokenize(ids)
        return ids if written.endswith(b"\n\n") else ids + self.ids("\n" if written.endswith(b"\n") else "\n\n")

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """What follows `ids`, (V,)."""
        self.llama.reset()
        self.llama.eval(list(ids))
        return np.array(self.llama.scores[len(ids) - 1], dtype=np.float32)


@lru_cache(maxsize=4)
def model(name: str) -> Model:
    """A lab model, loaded once."""
    return Model(name)


def sampled(
    trace: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]],
    pair: Sequence[Mapping[str, Any]],
    place: Sequence[Any],
) -> Finding:
    """The first token at which a `pair` of texts part that were drawn after the same steps.

    `place` are the parts of the seed after the problem's id, and the number of the sample. Both texts are by the same
    author; a text without ids is tokenized.
    """
    author, (*parts, sample) = pair[0]["author"], place
    writer = model(f"lab-{author}")
    old, new = (list(one["ids"]) or writer.step((), one["text"]) for one in pair)
    where = f"step {len(before)} ({author})"
    ids = writer.prompt(trace["question"])
    for step in before:
        ids += writer.step(step["ids"] if step["author"] == author else (), step["text"])
    told = pair[0]["usage"]["prompt"]
    if len(ids) != told:
        return Finding(False, f"{where}: its prefix has {len(ids)} tokens here and {told} in the record")
    seed = stable_hash(RUN_SEED, trace["problem"], *parts)
    return turned(writer, ids, (old, new), (seed, sample), trace["arithmetic"], where)


def turned(
    writer: Model,
    ids: Sequence[int],
    pair: Sequence[Sequence[int]],
    source: tuple[int, int],
    arithmetic: str,
    where: str,
) -> Finding:
    """The draw at which two samples part that follow on `ids`, from a `source` of numbers (seed and sample)."""
    old, new = pair
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
    if at is None:
        return Finding(False, f"{where}: one text is the beginning of the other, which no draw explains")
    off = margin(writer.logits([*ids, *old[:at]]), uniform(*source, at), (old[at], new[at]))
    return Finding(
        off < NEAR[arithmetic], f"{where}, token {at}: the draw lies {off:.1e} from the farther of the two tokens"
    )


def decided(pair: Sequence[str], step: int, near: float) -> Finding:
    """Two decisions that differ on the same texts: each value must lie within `near` of its threshold."""
    gaps = []
    for text in pair:
        if found := _COMPARED.search(text):
            gaps.append(abs(float(found[1]) - float(found[2])))
        elif found := _WORTH.search(text):
            gaps.append(abs(float(found[1]) - float(found[2])) / REWARD)
    shown = ", ".join(f"{gap:.1e}" for gap in gaps) or "no number to compare"
    return Finding(
        bool(gaps) and max(gaps) <= near,
        f"step {step}: decided {pair[0]!r} and {pair[1]!r}, from the threshold by {shown}",
    )
