"""A token by which a model asks for help: never drawn inside of a text, its probability told where the text begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class CallMarker:
    """Stands where a grammar would, for one sample. `marker` is drawn at the first place if `may_call`, else nowhere.

    `call`: its log-probability at the first place under the plain distribution, None before the first draw.

    >>> marker = CallMarker(1, may_call=False)
    >>> marker.accepts(0), marker.masked(np.zeros(2, np.float32)).tolist(), round(marker.call, 3)
    (False, [0.0, -inf], -0.693)
    """

    def __init__(self, marker: int, may_call: bool) -> None:
        self.marker, self.may_call = marker, may_call
        self.call: float | None = None
        self._first = marker

    def accepts(self, token: int) -> bool:
        """False also for the first token, whatever it is, so that `masked` sees the logits there."""
        if self.call is None:
            self._first = token
            return False
        return token != self.marker

    def masked(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits (V,) to draw from: without the marker, or of the first token alone where it may stand."""
        allowed = logits.copy()
        if self.call is None:
            top = logits.max()
            self.call = float(logits[self.marker] - top - np.log(np.exp(logits - top).sum()))
            if self.may_call or self._first != self.marker:
                allowed[np.arange(len(logits)) != self._first] = -np.inf
                return allowed
        allowed[self.marker] = -np.inf
        return allowed

    def advance(self, token: int) -> Any:
        """Nothing is kept of what was drawn."""

    def close(self) -> None:
        """There is nothing to free."""
