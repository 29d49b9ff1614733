r"""Text to steps and back, and the final answer in it.

A step is a stretch of a solution up to a blank line (InT and TRIM use the same unit). A blank line inside a fenced code
block does not end a step.
"""

from __future__ import annotations

import re

SEPARATOR = "\n\n"
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})(.*)")
_TOKEN = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def encodable(text: str) -> str:
    """`text` with "?" for each lone surrogate, which no tokenizer, no model and no server takes."""
    return text.encode("utf-8", "replace").decode()


def normalize_text(text: str) -> str:
    r"""Line ends as \n, and every run of blank lines as one blank line (outside code fences), none at either end."""
    return SEPARATOR.join(split_steps(text))


def split_steps(text: str) -> list[str]:
    r"""The steps of a solution, without the blank lines between them.

    CRLF and runs of blank lines count as one blank line; there are no empty steps and no split inside a code fence
    (three or more ``` or ~~~, closed by a line of at least as many; one that is never closed runs to the end, as in
    CommonMark). `"\n\n".join(split_steps(text))` gives back any text that already has that form.

    >>> split_steps("3 + 4 = 7.\n\n\nSo it is \\boxed{7}.")
    ['3 + 4 = 7.', 'So it is \\boxed{7}.']
    """
    steps: list[str] = []
    lines: list[str] = []
    fence = ""
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        fence = next_fence(fence, line)
        if line.strip() or fence:
            lines.append(line)
        elif lines:
            steps.append("\n".join(lines))
            lines = []
    while lines and not lines[-1].strip():
        lines.pop()
    return [*steps, "\n".join(lines)] if lines else steps


def next_fence(fence: str, line: str) -> str:
    """The mark of the code fence that is open after `line`, given the one that was open before it; "" for none."""
    mark = _FENCE.fullmatch(line)
    if mark is None:
        return fence
    if not fence:
        return mark[1]
    return "" if mark[1].startswith(fence) and not mark[2].strip() else fence


def boxed(text: str) -> list[str]:
    r"""Contents of every closed \boxed{} or \fbox{} in order, found by matching braces; an escaped brace does not
    count.

    Of boxes inside one another the outermost closed one is listed, or the inner one where a box holds nothing but a
    box. Takes time linear in the text, whatever is in it.

    >>> boxed(r"\boxed{1}, then \boxed{\frac{1}{2}}")
    ['1', '\\frac{1}{2}']
    """
    found: list[tuple[int, int, str]] = []  # where each box begins and ends, and its content
    braces: list[tuple[int, int]] = []  # where what is open begins, and where its content does (-1: not a box)
    for token in _TOKEN.finditer(text):
        if token["box"] or token["open"]:
            braces.append((token.start(), token.end() if token["box"] else -1))
        elif token["close"] and braces:
            begin, start = braces.pop()
            if start < 0:
                continue
            inside = []
            while found and found[-1][0] > begin:
                inside.append(found.pop())
            alone = len(inside) == 1 and not (text[start : inside[0][0]] + text[inside[0][1] : token.start()]).strip()
            found.append((begin, token.end(), inside[0][2] if alone else text[start : token.start()]))
    return [content for _, _, content in found]


def solution_part(text: str) -> str:
    """What stands outside of the reasoning: after the last </think>, and before a <think> that follows it unclosed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def extract_answer(text: str) -> str | None:
    r"""Content of the last closed \boxed{} in `solution_part`, stripped; None when there is none or it is empty."""
    answers = boxed(solution_part(text))
    return (answers[-1].strip() or None) if answers else None
