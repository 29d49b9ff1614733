"""Constrained decoding: llama.cpp's grammar engine over one row of logits, and strictly valid UTF-8 on top.

A drawn token is tested alone first; only when it is refused are all candidates tested and another drawn from those
allowed. The result has the distribution of the model restricted to the grammar, and a model that mostly agrees with the
grammar pays for one token instead of the whole vocabulary.
"""

from __future__ import annotations

import codecs
import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise.errors import DataError
from stepwise.models.engine.context import LlamaContext, captured_log
from stepwise.models.engine.vocab import Vocabulary

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Constraint:
    """One running text under a GBNF grammar (rule `root`). Not thread safe; `close` frees it. V is the vocabulary.

    Raises DataError where the grammar cannot be read, with the parser's reason.

    Example:
        constraint = Constraint(context, vocabulary, 'root ::= "yes" | "no"')
        logits = constraint.masked(logits)  # -inf for all that neither begins "yes" nor "no"
    """

    def __init__(self, context: LlamaContext, vocabulary: Vocabulary, gbnf: str):
        self._lib, self._vocabulary = context.lib, vocabulary
        with captured_log() as lines:
            self._sampler = self._lib.llama_sampler_init_grammar(context.vocab, gbnf.encode(), b"root")
        if not self._sampler:
            raise DataError(
                f"the grammar cannot be read: {'; '.join(lines[-3:]) or 'no reason given'}; it needs a rule named root"
            )
        self._pending = b""  # the first bytes of a character that is not complete yet

    def accepts(self, token: int) -> bool:
        """Whether `token` may come next."""
        candidate = np.zeros(1, _CANDIDATE)
        candidate["id"] = token
        return bool(self._apply(candidate)[0]) and self._valid(token)

    def masked(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A copy (V,) of the row with -inf for every token that may not come next. Raises DataError where none may."""
        candidates = np.zeros(len(logits), _CANDIDATE)
        candidates["id"] = np.arange(len(logits), dtype=np.int32)
        fits = self._apply(candidates)
        if self._pending:  # few tokens go on in the middle of a character
            fits[[t for t in np.flatnonzero(fits).tolist() if not self._valid(t)]] = False
        else:
            if self._vocabulary.starts is None:  # once per vocabulary: which tokens may follow a whole character
                self._vocabulary.starts = np.array([self._valid(t) for t in range(self._vocabulary.size)])
            fits &= self._vocabulary.starts
        allowed = np.flatnonzero(fits)
        if not len(allowed):
            raise DataError("no token of the vocabulary continues the text under the grammar")
        row = np.full(len(logits), -np.inf, np.float32)
        row[allowed] = logits[allowed]
        return row

    def _apply(self, candidates: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of the candidates (C,), structs of the layout of llama_token_data, may come next by the grammar (C,).

        llama.cpp sets the logits of the others to -inf, in place.
        """
        array = self._lib.llama_token_data_array()
        array.data = ctypes.cast(candidates.ctypes.data, self._lib.llama_token_data_p)
        array.size, array.selected, array.sorted = len(candidates), -1, False
        self._lib.llama_sampler_apply(self._sampler, ctypes.byref(array))
        finite: npt.NDArray[np.bool_] = np.isfinite(candidates["logit"])
        return finite

    def _valid(self, token: int) -> bool:
        """Whether the token's bytes, of which a control token has none, go on in valid UTF-8.

        The grammar engine takes overlong forms.
        """
        if token in self._vocabulary.end_tokens:
            return not self._pending
        piece = self._vocabulary.token_bytes(token)
        return bool(piece) and _rest(self._pending + piece) is not None

    def advance(self, token: int) -> None:
        """Add `token`, which was accepted."""
        self._lib.llama_sampler_accept(self._sampler, token)
        self._pending = _rest(self._pending + self._vocabulary.token_bytes(token)) or b""

    def close(self) -> None:
        """Free the grammar's state; calling it twice does nothing."""
        if self._sampler:
            self._lib.llama_sampler_free(self._sampler)
            self._sampler = None


def _rest(data: bytes) -> bytes | None:
    """The incomplete character at the end of `data`, None where `data` is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return None
    return decoder.getstate()[0]
