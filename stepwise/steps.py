r"""Text to steps and back, and the final answer in it.

A step is a stretch of a solution up to a blank line (InT and TRIM use the same unit). A blank line inside a fenced code
block does not end a step.
"""

from __future__ import annotations

import re

SEPARATOR = "\n\n"
_FENCE = re.compile(r"^\s*(```|~~~)")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")


def normalize_text(text: str) -> str:
    """Line ends as \\n, and every run of blank lines as one blank line (outside code fences), none at either end."""
    return SEPARATOR.join(split_steps(text))


def split_steps(text: str) -> list[str]:
    """The steps of a solution, without the blank lines between them.

    CRLF and runs of blank lines count as one blank line; there are no empty steps and no split inside a code fence.
    `"\\n\\n".join(split_steps(text))` gives back any text that already has that form.
    """
    steps: list[str] = []
    lines: list[str] = []
    fence = ""
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        mark = _FENCE.match(line)
        if mark:
            fence = "" if fence == mark[1] else fence or mark[1]
        if line.strip() or fence:
            lines.append(line)
        elif lines:
            steps.append("\n".join(lines))
            lines = []
    if any(line.strip() for line in lines):
        steps.append("\n".join(lines).rstrip("\n"))
    return steps


def boxed(text: str) -> list[str]:
    """Contents of every closed \\boxed{} in order, found by matching braces; an escaped brace does not count."""
    found = []
    for start in _BOX.finditer(text):
        depth, i = 1, start.end()
        while i < len(text) and depth:
            if text[i] == "\\":
                i += 1
            else:
                depth += {"{": 1, "}": -1}.get(text[i], 0)
            i += 1
        if depth == 0:
            found.append(text[start.end() : i - 1])
    return found


def extract_answer(text: str) -> str | None:
    """Content of the last closed \\boxed{} after the last </think>, stripped; None when there is none or it is empty."""
    answers = boxed(text.rpartition("</think>")[2])
    return (answers[-1].strip() or None) if answers else None
