"""Thoughts in a text: which marks begin and end them, and what stands outside of them."""

from __future__ import annotations

import re

from stepwise.errors import DataError, wrong_type

_THOUGHT_BEGINS = re.compile(
    r"<(?:think|thinking|thought|thoughts|reasoning|seed:think)>|\[THINK\]|<\|(?:begin_of_thought|START_THINKING)\|>|◁think▷"
    r"|<\|channel\|>\s*(?:analysis|commentary)|\Aanalysis(?=[A-Z])",
    re.IGNORECASE,
)
_THOUGHT_ENDS = re.compile(
    r"</(?:think|thinking|thought|thoughts|reasoning|seed:think)>|\[/THINK\]|<\|(?:end_of_thought|END_THINKING)\|>|◁/think▷"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>\s*final\s*(?:<\|message\|>)?|assistantfinal(?=\S)",
    re.IGNORECASE,
)


def check_text(text: object) -> None:
    """Raise DataError for what is no text.

    >>> check_text("a text")
    """
    if not isinstance(text, str):
        raise DataError(wrong_type("text", text, "give a str, such as trace.text"))


def solution_part(text: str) -> str:
    """What stands outside of the reasoning: after the last thought that ends, and before one that begins behind it.

    Thoughts are <think>, <thinking>, <thought>, <reasoning>, [THINK], <|begin_of_thought|> and gpt-oss's analysis
    channel; a template may have opened one in the prompt, so that only its end is in the text.

    Example:
        >>> solution_part("maybe 3</think>It is 4.")
        'It is 4.'
    """
    return outside_thoughts(text)[0]


def open_thought(text: str) -> str:
    """The mark of the thought that `text` (a prompt, the steps before) leaves open, "" for none.

    >>> open_thought("<think>Let me see."), open_thought("<think>Let me see.</think> It is 3.")
    ('<think>', '')
    """
    return outside_thoughts(text)[1]


def prompt_thought(prompt: str) -> str:
    r"""The mark with which a chat template opens a thought at the end of `prompt`, "" for none; what a question says
    of such marks opens nothing.

    Example:
        >>> prompt_thought("<|im_start|>assistant\n<think>\n"), prompt_thought("What is <think>?<|im_end|>")
        ('<think>', '')
    """
    *_, last = [None, *_THOUGHT_BEGINS.finditer(prompt)]
    return last[0] if last and not prompt[last.end() :].replace("<|message|>", "").strip() else ""


def without_marks(text: str) -> str:
    """`text` with a space for every mark of a thought.

    >>> without_marks("<think>2 + 2</think>4")
    ' 2 + 2 4'
    """
    return _THOUGHT_ENDS.sub(" ", _THOUGHT_BEGINS.sub(" ", text))


def is_thought_mark(text: str) -> bool:
    """Whether `text` is a mark that begins or ends a thought, such as "[THINK]", and nothing else.

    >>> is_thought_mark("<think>"), is_thought_mark("<b>")
    (True, False)
    """
    return bool(_THOUGHT_BEGINS.fullmatch(text) or _THOUGHT_ENDS.fullmatch(text))


def after_thought(text: str, thought: str = "") -> tuple[str, bool]:
    """`text` without the thought at its beginning, which `text` itself or, before it, a prompt (with the mark
    `thought`) began; and whether that thought is still open, so that nothing is left.

    Example:
        >>> after_thought("[THINK]Perhaps 3.[/THINK]It is 4."), after_thought("Perhaps 3.", "<think>")
        (('It is 4.', False), ('', True))
    """
    begin = _THOUGHT_BEGINS.search(text)
    first = begin is not None and not text[: begin.start()].strip()
    end = _THOUGHT_ENDS.search(text, begin.end() if begin and first else 0)
    if end and (first or not begin or end.start() < begin.start()):
        return text[end.end() :], False
    return ("", True) if first or thought else (text, False)


def outside_thoughts(text: str) -> tuple[str, str]:
    """What stands behind the last thought that ends, up to one that begins there; and the mark of that, "" for none.

    >>> outside_thoughts("<think>2 + 2</think>It is 4.<think>Or")
    ('It is 4.', '<think>')
    """
    check_text(text)
    start = max((end.end() for end in _THOUGHT_ENDS.finditer(text)), default=0)
    begin = _THOUGHT_BEGINS.search(text, start)
    return (text[start : begin.start()], begin[0]) if begin else (text[start:], "")
