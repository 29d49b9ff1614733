r"""When a continuation ends, decided on its bytes, and what its text is then.

- a blank line ends a step: two newlines with nothing but spaces between, in one token or in several, once there is
  text, and outside of code, drawings and formulas as `split_steps` sees them (`stop="solution"` runs on over it);
  under the splitter "calculations" a step ends after a line where `StepEnds` says, and holds the line ends behind it;
- an answer: the line on which a \boxed{} with an answer closed has ended, or the message has; a box in a thought, also
  in one that the prompt opened, in code, empty or with a placeholder is none (`stepwise.steps.has_answer`);
- repetition: the last ids are one run of at most `_MAX_PERIOD` ids, at least `_MIN_REPEATS` times over, `_MIN_SPAN`
  ids or more;
- one of the strings that the caller gave (`stops`), anywhere in the text: what stands before it counts.

Bytes that are not UTF-8 become U+FFFD in the text; the ids keep them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepwise.steps import SplitMode, StepEnds, has_answer, leading_blank, next_block
from stepwise.types import Finish

Stop = Literal["none", "step", "solution"]
_MAX_PERIOD = 64
_MIN_REPEATS = 4
_MIN_SPAN = 60
_CHECK_EVERY = 8
_LEADING = re.compile(r"\A(?:[ \t]*\r?\n)+")
_TRAILING = re.compile(r"(?:\r?\n[ \t]*)+\r?\Z|\r\Z")


def clean_text(data: bytes) -> str:
    r"""The text of a step: decoded, without blank lines at either end.

    >>> clean_text(b"\n  2 + 2 = 4.\n\n")
    '  2 + 2 = 4.'
    """
    return _TRAILING.sub("", _LEADING.sub("", data.decode("utf-8", "replace")))


def open_fence(text: str) -> bytes:
    r"""What `text` leaves open in which a blank line ends no step (see `next_block`), empty if nothing.

    >>> open_fence("Run this:\n```python\nprint(1)")
    b'```'
    """
    fence = ""
    for line in text.split("\n"):
        fence = next_block(fence, line)
    return fence.encode()


def repeats(ids: list[int]) -> bool:
    """Whether `ids` end in a short run repeated exactly, by the numbers above.

    >>> repeats([1, 2, 3] * 20), repeats(list(range(60)))
    (True, False)
    """
    n = len(ids)
    if n < _MIN_SPAN:
        return False
    last = ids[-1]
    for period in range(1, _MAX_PERIOD + 1):
        span = max(_MIN_REPEATS * period, _MIN_SPAN)
        if span > n:
            return False
        if ids[n - 1 - period] == last and ids[n - span + period :] == ids[n - span : n - period]:
            return True
    return False


@dataclass(frozen=True)
class Ending:
    """How it ended: `content` bytes stand before the blank line or line end that ended it, which lies at `end`.

    >>> Ending("step", content=5, end=7).finish
    'step'
    """

    finish: Finish
    content: int
    end: int


class StopRule:
    r"""Follows one continuation as it grows.

    `fence`: what the prefix left open (see `open_fence`); `stops`: strings that end it with finish "step"; `thought`:
    the mark of a thought that prompt or prefix left open (see `stepwise.steps.thoughts.open_thought`). `splitter`: see
    `stepwise.steps.Splitter`.

    >>> rule = StopRule("step")
    >>> rule.push(b"2 + 2 = 4."), rule.push(b"\n\n")
    (None, Ending(finish='step', content=10, end=12))
    """

    __slots__ = ("_fence", "_line", "_longest", "_seen", "_step_ends", "_stops", "_thought",
                 "data", "mode")  # fmt: skip

    def __init__(
        self,
        mode: Stop,
        fence: bytes = b"",
        stops: Sequence[bytes] = (),
        thought: str = "",
        splitter: SplitMode = "paragraphs",
    ):
        self.mode = mode
        self._step_ends = StepEnds(fence.decode()) if splitter == "calculations" else None
        self._thought = thought
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self.data = bytearray()
        self._line = 0  # where the current line starts
        self._seen = False  # whether there was a line that is not blank
        self._fence = fence.decode()

    def push(self, piece: bytes) -> Ending | None:
        """Add the bytes of one token; the ending where they complete one. Costs nothing unless they hold a newline."""
        self.data += piece
        if self._stops:
            # A stop string that ends in this piece may have begun in an earlier one.
            start = max(0, len(self.data) - len(piece) - self._longest + 1)
            places = [at for stop in self._stops if (at := self.data.find(stop, start)) >= 0]
            if places:
                return Ending("step", min(places), min(places))
        if self.mode == "none" or b"\n" not in piece:
            return None
        while (newline := self.data.find(b"\n", self._line)) >= 0:
            line, start = self.data[self._line : newline].decode("utf-8", "replace"), self._line
            self._line = newline + 1
            ended = False
            if self._step_ends is None:
                self._fence = next_block(self._fence, line.rstrip("\r"))
            else:
                ended = self._step_ends.after(line.rstrip("\r"))
                self._fence = self._step_ends.block
            if line.strip():
                self._seen = True
                if self._has_answer(newline):
                    return Ending("answer", newline, newline + 1)
            if self._step_ends is not None:
                if ended and self.mode == "step":
                    behind = self.data[newline + 1 :].decode("utf-8", "replace")
                    end = newline + 1 + len(leading_blank(behind).encode())
                    return Ending("step", end, end)
            elif line.strip():
                continue
            elif self._seen and not self._fence and self.mode == "step":
                return Ending("step", start - 1, newline + 1)
        return None

    def _has_answer(self, end: int) -> bool:
        if b"boxed" not in self.data and b"fbox" not in self.data:
            return False
        return has_answer(self._thought + self.data[:end].decode("utf-8", "replace"))

    def text(self, ending: Ending) -> str:
        """What counts of it: without blank lines at either end, unless steps hold their separators."""
        data = bytes(self.data[: ending.content])
        return clean_text(data) if self._step_ends is None else data.decode("utf-8", "replace")

    @property
    def in_fence(self) -> bool:
        """Whether code, a drawing or a formula is open at the end of the last whole line."""
        return bool(self._fence)

    def repeated(self, ids: list[int]) -> bool:
        """Whether the continuation has degenerated; looked at every few tokens."""
        return self.mode != "none" and len(ids) % _CHECK_EVERY == 0 and repeats(ids)

    def last(self, finish: Finish) -> Ending:
        """The ending where nothing in the text caused it; a closed box makes it an answer under any text rule."""
        answered = self.mode != "none" and self._has_answer(len(self.data))
        return Ending("answer" if answered else finish, len(self.data), len(self.data))
