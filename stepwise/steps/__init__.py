r"""Text to steps and back, and the final answer in it.

A step is a stretch of a solution up to a blank line (InT and TRIM use the same unit), but for one in fenced code, an
[asy] drawing, a displayed formula or a LaTeX environment. `StepEnds` is another rule, which models can write by too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from stepwise.steps.thoughts import check_text, outside_thoughts

SEPARATOR = "\n\n"
Splitter = Literal["paragraphs", "calculations"]
"""Where a step ends: at a blank line; or where it has something to check, see `StepEnds`."""
SplitMode = Literal["paragraphs", "calculations", "numbered", "lines"]
"""Those, and for reading alone: an item of a numbered list begins a step as well, or every line does."""

_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})(.*)")
_TOKEN = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)
_DISPLAY = re.compile(
    r"[\[<]/?(?i:asy)[\]>]|(?<!\\)(?<!\\left)(?<!\\right)\\[\[\]]|(?<!\\)\$\$|\\(?:begin|end)\s*\{([A-Za-z]+\d*\*?)\}"
)
_PROSE_ENVIRONMENTS = (
    "document", "proof", "solution", "answer", "theorem", "lemma", "problem", "claim", "corollary", "proposition",
    "remark", "example", "definition",
)  # fmt: skip
_MAX_BLANK = 4  # blank lines after which a formula counts as one that was never closed, and a lead-in as a step
_MAX_BLANK_INSIDE = 32  # those of an environment, which is rarely left open
_SHORT = 60  # a line of fewer characters was ended and not wrapped
_HEADING = re.compile(r"\s*(?:#+\s.*|(?:\*\*|__)[^*_]*(?:\*\*|__)[\s:.]*)")
_TO_CHECK = re.compile(r"[\d=<>≤≥≈$]|\\[A-Za-z]")
_ENDED = re.compile(r"(?:[.!?;](?:\*\*|__|[)$\"'”}\]])*|\\[\])]|\$|\\end\s*\{[^}]*\})\s*\Z")
_LEADS = re.compile(r"[:：](?:\*\*|__|[*_])?\s*\Z")
_DIGIT, _EQUALS = re.compile(r"\d"), re.compile("[=≈]")
_ITEM = re.compile(
    r"\s*(?:[*#_]+\s*)?(?:step\s+(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten)|\(?\d{1,3}[.):](?!\d))(?:\W|$)",
    re.IGNORECASE,
)
_CODE = re.compile(r"(?<!`)(`{1,2})(?!`)[^`\n]+?\1(?!`)")
_VERBATIM = re.compile(rf"{_CODE.pattern}|\\verb\*?([^\sA-Za-z*])[^\n]*?\2")
_WRITTEN = re.compile(r"[^\W_]|\\\{|[∞∅]")
_WORD_FOR_ANSWER = r"(?:answer|result|value|solution|number|expression|ans)s?"
_PLACEHOLDER = re.compile(
    r"(?:\\text\s*\{)?[\s<\[(]*"
    rf"(?:(?:the|your|final|my|insert|put|correct|numerical|simplified|exact|here|\s)*\b{_WORD_FOR_ANSWER}"
    r"(?:\s+(?:here|goes here))?|x{3,}|\\(?:square|Box|ldots|cdots|dots|dotsc|cdot|blacksquare|phantom\s*\{.*\})"
    r"|TBD|TODO)[\s>\])}]*",
    re.IGNORECASE,
)
# Between two boxes that are one answer: `$x=\boxed{3}$ or $x=\boxed{-3}$`.
_JOINED = re.compile(
    r"[\s.]{0,2}(?:\$|\\[)\]])?\s*(?:\\q?quad\s*)?(?:,|;|,?\s*(?:\\text\s*\{\s*,?\s*)?(?:and|or)\b\s*\}?)\s*(?:\\q?quad\s*)?(?:\$|\\[(\[])?\s*"
    r"(?P<name>[A-Za-z](?:_\w|_\{\w+\})?\s*=\s*)?"
)
_NAME_BEFORE = re.compile(r"([A-Za-z](?:_\w|_\{\w+\})?)\s*=\s*\Z")


def encodable(text: str) -> str:
    r"""`text` with "?" for each lone surrogate, which no tokenizer, no model and no server takes.

    >>> encodable("half an emoji: \ud83d")
    'half an emoji: ?'
    """
    return text.encode("utf-8", "replace").decode()


def normalize_text(text: str) -> str:
    r"""Line ends as \n, and every run of blank lines as one blank line (outside code and formulas), none at either end.

    Example:
        >>> normalize_text("One.\r\n\r\n\r\nTwo.\n")
        'One.\n\nTwo.'
    """
    return SEPARATOR.join(split_steps(text))


def split_steps(text: str, mode: SplitMode = "paragraphs") -> list[str]:
    r"""The steps of a solution, without the blank lines between them.

    CRLF and runs of blank lines count as one blank line; there are no empty steps and no split inside a code fence
    (three or more ``` or ~~~, closed by a line of at least as many; one that is never closed runs to the end, as in
    CommonMark), an [asy] drawing, `\[ \]`, `$$` or an environment. `"\n\n".join(split_steps(text))` gives back any text
    that already has that form. For texts without blank lines, `mode` "numbered" also begins a step at "2." or "Step 2",
    and "lines" at every line.

    With "calculations" a step ends where `StepEnds` says, and the line ends behind it are its own: `join_steps(steps,
    "calculations")` gives back any text.

    Example:
        >>> split_steps("Add.\n\\[\n1+1\n\n=2\n\\]\n\nDone.")
        ['Add.\n\\[\n1+1\n\n=2\n\\]', 'Done.']
        >>> split_steps("1. Add.\n2. Done.", mode="numbered")
        ['1. Add.', '2. Done.']
        >>> split_steps("**Step 1**\n\nWe add:\n\n1 + 1 = 2.\n2 + 2 = 4.\n\nDone.", mode="calculations")
        ['**Step 1**\n\nWe add:\n\n1 + 1 = 2.\n', '2 + 2 = 4.\n\n', 'Done.']
    """
    check_text(text)
    if mode == "calculations":
        return _split_calculations(text)
    steps, lines, block = list[str](), list[str](), ""
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        inside, block = bool(block), next_block(block, line)
        begins = mode == "lines" or (mode == "numbered" and _ITEM.match(line) is not None)
        if (lines and not inside and (not line.strip() or begins)) or (lines and not line.strip() and not block):
            steps.append("\n".join(lines))
            lines = []
        if line.strip() or (block and lines):
            lines.append(line)
    while lines and not lines[-1].strip():
        lines.pop()
    return [*steps, "\n".join(lines)] if lines else steps


def join_steps(texts: Iterable[str], splitter: SplitMode = "paragraphs") -> str:
    r"""The text of these steps: with blank lines between, or, for "calculations", with the separators they hold.

    A step without one, such as another model's, gets a blank line too.

        >>> join_steps(["1 + 1 = 2.\n", "2 + 2 = 4.", "Done."], "calculations")
        '1 + 1 = 2.\n2 + 2 = 4.\n\nDone.'
    """
    *before, last = [*texts] or [""]
    return "".join([*(separated(text, splitter) for text in before), last])


def separated(text: str, splitter: SplitMode = "paragraphs") -> str:
    r"""A step's text with what stands between it and the next one.

    >>> separated("So 3."), separated("3 + 4 = 7\n", "calculations")
    ('So 3.\n\n', '3 + 4 = 7\n')
    """
    return text if splitter == "calculations" and text.endswith("\n") else text + SEPARATOR


def ends_step(text: str, splitter: SplitMode = "paragraphs") -> bool:
    """Whether a reader ends a step behind `text`, with whatever follows it.

    >>> ends_step("Now we add:", "calculations"), ends_step("3 + 4 = 7", "calculations")
    (False, True)
    """
    return split_steps(separated(text, splitter) + ".", splitter)[-1] == "."


class StepEnds:
    r"""Where steps end under the splitter "calculations", line by line, by what stands before a line's end alone: so
    that a model can be stopped there, and a reader finds the same steps.

    A step ends at a blank line, unless it is a lead-in: there is nothing to check in it (no number, relation or formula
    outside of headings and list marks) or it ends in a colon; after `_MAX_BLANK` blank lines it ends anyway. It also
    ends with a line that holds a calculation (a number, "=", a number), or is an item of a numbered list with something
    to check. Nothing ends inside code, drawings, formulas and environments.

        >>> ends = StepEnds()
        >>> [ends.after(line) for line in ("To find the total:", "", "3 + 4 = 7", "1. Take 7 eggs.", "2. Sell them.")]
        [False, False, True, True, False]
    """

    __slots__ = ("_content", "_leads", "_paragraphs", "_piece", "_seen", "block")

    def __init__(self, block: str = ""):
        self.block = block  # what is open; see `next_block`
        self._begin()

    def _begin(self) -> None:
        self._seen = self._content = self._leads = False  # seen: a line that is not blank
        self._piece, self._paragraphs = "", 0  # the line, or the lines of a block

    def after(self, line: str) -> bool:
        """Whether the step ends with this line (without its line end)."""
        self.block = next_block(self.block, line)
        if not line.strip() and not self.block and not self._piece:
            self._paragraphs += self._seen
            ended = self._seen and ((self._content and not self._leads) or self._paragraphs >= _MAX_BLANK)
        else:
            self._seen, self._piece = True, f"{self._piece}{line}\n"
            ended = not self.block and self._line()
        if ended:
            self._begin()
        return ended

    def _line(self) -> bool:
        """Take the line, or the lines of a block that closed; whether the step ends with it."""
        piece, self._piece = self._piece.rstrip(), ""
        last = piece.rpartition("\n")[2]
        if piece.lstrip()[:3] in ("```", "~~~") or "[asy]" in piece:
            self._content, self._leads = True, False
            return False
        item, digit = _ITEM.match(piece), _DIGIT.search(piece)
        equals = _EQUALS.search(piece, digit.end()) if digit else None
        calculation = equals is not None and _DIGIT.search(piece, equals.end()) is not None
        if calculation or (not _HEADING.fullmatch(piece) and _TO_CHECK.search(piece, item.end() if item else 0)):
            self._content = True
        self._leads = _LEADS.search(last) is not None
        whole = len(last) < _SHORT or _ENDED.search(last) is not None
        return self._content and not self._leads and whole and (calculation or item is not None)


def leading_blank(text: str, start: int = 0) -> str:
    r"""The whole blank lines that stand in `text` from `start` on, which belong to the step before.

    >>> leading_blank("\n \nSo 3.")
    '\n \n'
    """
    at = start
    while (newline := text.find("\n", at)) >= 0 and not text[at:newline].strip():
        at = newline + 1
    return text[start:at]


def _split_calculations(text: str) -> list[str]:
    steps, ends, start, at = list[str](), StepEnds(), 0, 0
    while (newline := text.find("\n", at)) >= 0:
        ended, at = ends.after(text[at:newline].rstrip("\r")), newline + 1
        if ended:
            at += len(leading_blank(text, at))
            steps.append(text[start:at])
            start = at
    return [*steps, text[start:]] if start < len(text) else steps


def next_block(block: str, line: str) -> str:
    r"""What is open after `line` in which a blank line ends no step, given what was open before it; "" for nothing.

    A code fence (its mark), `[asy]`, `\[`, `$$`, `\begin{...}` (as often as it is open within itself). Formulas and
    environments carry a newline for every run of blank lines that they held, and a space while one goes on; with too
    many of them they count as not closed.

    >>> next_block("", "```python"), next_block("```", "```"), next_block("", r"\[ x = 1")
    ('```', '', '\\[')
    """
    mark = block.rstrip("\n ") or block
    if mark[:1] in ("`", "~") and mark:
        fence = _FENCE.fullmatch(line)
        closed = fence is not None and fence[1].startswith(mark) and not fence[2].strip()
        return "" if closed else mark
    if not mark and (fence := _FENCE.fullmatch(line)):
        return fence[1]
    if not line.strip():
        if not mark or mark == "[asy]" or block.endswith(" "):
            return block
        block += "\n "
        return "" if block.count("\n") > (_MAX_BLANK_INSIDE if mark[1:2] == "b" else _MAX_BLANK) else block
    held = block.count("\n")
    if "`" in line or "\\verb" in line:
        line = _VERBATIM.sub("", line)
    for token in _DISPLAY.finditer(line):
        text = re.sub(r"\s", "", token[0]).lower().replace("<", "[").replace(">", "]")
        if not mark:
            begins = text in ("[asy]", "\\[", "$$") or text.startswith("\\begin")
            mark, held = text if begins and token[1] not in _PROSE_ENVIRONMENTS else "", 0
        elif mark.startswith("\\begin"):
            name = mark[: mark.index("}") + 1]
            mark = mark + name if text == name else mark.removesuffix(name) if text == f"\\end{name[6:]}" else mark
        elif text == {"[asy]": "[/asy]", "\\[": "\\]"}.get(mark, mark):
            mark = ""
    return mark + "\n" * held if mark else ""


def boxed(text: str) -> list[str]:
    r"""Contents of every closed \boxed{} or \fbox{} in order, found by matching braces; an escaped brace does not
    count.

    Of boxes inside one another the outermost closed one is listed, or the inner one where a box holds nothing but a
    box. Takes time linear in the text, whatever is in it.

    Example:
        >>> boxed(r"\boxed{\frac12} and \boxed{\boxed{3}}")
        ['\\frac12', '3']
    """
    return [content for _, _, content in _boxes(text)]


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Where each box begins and ends, and its content."""
    found: list[tuple[int, int, str]] = []
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
    return found


def has_answer(text: str) -> bool:
    r"""Whether a box with an answer was closed: not in a thought or in code, and not an empty one or a placeholder.

    >>> has_answer(r"So \boxed{2}."), has_answer(r"So \boxed{}."), has_answer(r"So \boxed{2")
    (True, False, False)
    """
    return bool(_answers(text)[1])


def extract_answer(text: str) -> str | None:
    r"""Content of the last box in `text` that is an answer, stripped; None when there is none.

    No answers are boxes in thoughts (see `solution_part`) or code, empty ones and placeholders (`\boxed{...}`,
    `\boxed{your answer}`). Boxes that are joined by a comma, "and" or "or" are one answer, with their names where these
    differ.

    Example:
        >>> extract_answer(r"So \boxed{42}. Remember: the answer goes in \boxed{}."), extract_answer("no box")
        ('42', None)
        >>> extract_answer(r"$x=\boxed{3}$ or $x=\boxed{-3}$")
        '3, -3'
    """
    part, boxes = _answers(text)
    if not boxes:
        return None
    joined = [boxes[-1]]
    names = [_NAME_BEFORE.search(part[: boxes[-1][0]])]
    for box in reversed(boxes[:-1]):
        if not _JOINED.fullmatch(part[box[1] : joined[0][0]]):
            break
        joined.insert(0, box)
        names.insert(0, _NAME_BEFORE.search(part[: box[0]]))
    contents = [content.strip() for _, _, content in joined]
    known = [name[1] for name in names if name]
    if len(joined) > 1 and len(set(known)) == len(joined):
        contents = [f"{name} = {content}" for name, content in zip(known, contents, strict=True)]
    return ", ".join(contents)


def _answers(text: str) -> tuple[str, list[tuple[int, int, str]]]:
    """The part outside of thoughts and code, and the boxes in it that are answers."""
    part, _ = outside_thoughts(text)
    if "boxed" not in part and "fbox" not in part:
        return part, []
    if "`" in part or "~~~" in part:
        part = _CODE.sub(" ", _without_fences(part))
    # Something is written in it (a letter, a digit, a set), and it does not only say where an answer would go.
    return part, [box for box in _boxes(part) if _WRITTEN.search(box[2]) and not _PLACEHOLDER.fullmatch(box[2].strip())]


def _without_fences(text: str) -> str:
    fence, lines = "", []
    for line in text.split("\n"):
        inside, fence = bool(fence), next_block(fence, line) if fence or _FENCE.fullmatch(line) else ""
        lines.append("" if inside or fence else line)
    return "\n".join(lines)
