r"""Where a continuation ends, token by token, and what its text is."""

from __future__ import annotations

import pytest

from stepwise.models.engine.stopping import Ending, StopRule, clean_text, open_fence, repeats
from stepwise.steps import split_steps


def run(pieces: list[str | bytes], mode: str = "step", fence: bytes = b"") -> tuple[Ending | None, str, bytes]:
    """Push pieces until one ends it; (ending, text, what was pushed after the end)."""
    rule = StopRule(mode, fence)  # type: ignore[arg-type]
    for piece in pieces:
        ending = rule.push(piece if isinstance(piece, bytes) else piece.encode())
        if ending:
            return ending, clean_text(bytes(rule.data[: ending.content])), bytes(rule.data[ending.end :])
    return None, clean_text(bytes(rule.data)), b""


@pytest.mark.parametrize(
    "pieces",
    [
        ["2+2=4", ".\n\n"],
        ["2+2=4.", "\n", "\n"],
        ["2+2=4.", "\n \t", "\n"],
        ["2+2=4.", "\n\n\n"],
        ["\n\n", "2+2=4.", "\n\n"],
        ["  \n2+2=4.", "\r\n", "\r\n"],
        ["2+2=4.\n\nAnd then"],
    ],
)
def test_a_blank_line_ends_a_step_however_it_is_cut_into_tokens(pieces: list[str]) -> None:
    ending, text, _ = run([*pieces, "never seen"])
    assert ending is not None
    assert ending.finish == "step"
    assert text == "2+2=4."


def test_what_a_token_holds_after_the_blank_line_is_told_apart() -> None:
    assert run(["4.\n\nAnd"])[2] == b"And"
    assert run(["4.\n", "\n\n\n"])[2] == b"\n\n"


def test_a_single_newline_does_not_end_a_step() -> None:
    assert run(["a\n", "b\n", "c"])[:2] == (None, "a\nb\nc")


def test_a_blank_line_in_a_code_fence_does_not_end_a_step() -> None:
    ending, text, _ = run(["```py\n", "a\n\n", "b\n```", "\n", "\n"])
    assert ending is not None
    assert text == "```py\na\n\nb\n```"
    assert run(["x\n\n", "y"], fence=b"```")[0] is None
    assert open_fence("text\n~~~\ncode") == b"~~~"
    assert open_fence("```\na\n```") == b""


@pytest.mark.parametrize(
    "text",
    [
        "```x``` is inline code",
        "````\na\n```\n\nb\n````",
        "```\na\n```py\n\nb\n```",
        "~~~\n```\n~~~",
        "```\r\na\n```",
        "a\n\u3000",
    ],
)
def test_a_code_fence_is_what_split_steps_takes_for_one(text: str) -> None:
    ending, step, _ = run([*text, "\n", "\n", "The next step."])
    assert ending is not None
    assert split_steps(text + "\n\nThe next step.") == [*split_steps(step), "The next step."]
    assert open_fence(text) == b""


def test_leading_blank_lines_alone_never_end_a_step() -> None:
    assert run(["\n", "\n\n", " \n"])[:2] == (None, "")


@pytest.mark.parametrize("mode", ["step", "solution"])
def test_a_closed_box_ends_at_the_line_end(mode: str) -> None:
    ending, text, _ = run(["So \\boxed{\\frac{1", "}{2}", "}. Done", ".\n", "more"], mode)
    assert ending is not None
    assert ending.finish == "answer"
    assert text == "So \\boxed{\\frac{1}{2}}. Done."


def test_an_open_box_or_one_inside_thinking_is_no_answer() -> None:
    assert run(["\\boxed{4\n", "x"])[0] is None
    assert run(["<think>\\boxed{4}</think>\n"])[0] is None
    assert run(["<think>Perhaps \\boxed{4}?\n", "No.\n"])[0] is None


def test_a_solution_runs_on_over_blank_lines_until_the_answer() -> None:
    ending, text, _ = run(["a\n\n", "b\n\n", "\\boxed{1}\n\n"], "solution")
    assert ending is not None
    assert (ending.finish, text) == ("answer", "a\n\nb\n\n\\boxed{1}")


def test_the_end_of_the_message_is_an_answer_only_with_a_closed_box() -> None:
    rule = StopRule("step")
    rule.push(b"nothing")
    assert rule.last("eos").finish == "eos"
    rule.push(b" \\boxed{3}")
    assert rule.last("eos").finish == rule.last("length").finish == "answer"


def test_without_a_rule_only_the_end_counts() -> None:
    assert run(["a\n\n\\boxed{1}\n\n", "b"], "none")[0] is None


def test_bytes_that_are_not_text_are_kept_in_place() -> None:
    ending, text, _ = run([b"ab\xff", b"\n\n"])
    assert ending is not None
    assert text == "ab\ufffd"
    assert run(["é".encode()[:1], "é".encode()[1:], "\n\n"])[1] == "é"


def test_exact_repetition_is_seen_and_ordinary_text_is_not() -> None:
    assert repeats([1, 2, 3] * 20)
    assert repeats([9, 8] + [7] * 60)
    assert not repeats([7] * 59)
    assert not repeats(list(range(30)) * 3)  # three times is not yet four
    assert repeats(list(range(30)) * 4)
    assert not repeats([i * i % 97 for i in range(200)][:90])


def stopped(pieces: list[str], stops: list[str], mode: str = "none") -> bytes | None:
    """What stands before the stop, None where nothing stopped it."""
    rule = StopRule(mode, stops=[stop.encode() for stop in stops])  # type: ignore[arg-type]
    for piece in pieces:
        ending = rule.push(piece.encode())
        if ending:
            assert ending.finish == "step"
            return bytes(rule.data[: ending.end])
    return None


def test_a_stop_string_ends_a_text_however_it_is_cut_into_tokens() -> None:
    assert stopped(["Answer: 4 E", "N", "D and more"], ["END"]) == b"Answer: 4 "
    assert stopped(["END"], ["END"]) == b""
    assert stopped(["E", "N", "d"], ["END"]) is None
    assert stopped(["one two three"], ["three", "two"]) == b"one "  # the earliest counts, not the first in the list
    assert stopped(["caf", "é!"], ["é"]) == b"caf"


@pytest.mark.parametrize("thought", ["<think>", "[THINK]", "<|channel|>analysis"])
def test_a_box_in_a_thought_that_the_prompt_opened_ends_nothing(thought: str) -> None:
    rule = StopRule("solution", thought=thought)
    assert rule.push(b"Maybe \\boxed{3}\n") is None
    assert rule.last("length").finish == "length"
    ending = (
        "</think>" if thought == "<think>" else "[/THINK]" if thought == "[THINK]" else "<|channel|>final<|message|>"
    )
    assert rule.push(ending.encode() + b"It is \\boxed{4}.") is None
    assert rule.last("eos").finish == "answer"
    assert StopRule("solution").push(b"Maybe \\boxed{3}\n") == Ending("answer", 15, 16)


@pytest.mark.parametrize("box", ["\\boxed{}", "\\boxed{...}", "\\boxed{your answer}", "`\\boxed{3}`"])
def test_a_box_that_is_no_answer_ends_nothing(box: str) -> None:
    rule = StopRule("solution")
    assert rule.push(f"I put it in {box}.\n".encode()) is None
    ending = rule.push(b"So \\boxed{3}.\n")
    assert ending is not None
    assert ending.finish == "answer"


@pytest.mark.parametrize(
    "display", ["\\[\na\n\nb\n\\]", "$$\na\n\nb\n$$", "[asy]\na\n\nb\n[/asy]", "\\begin{align}\na\n\nb\n\\end{align}"]
)
def test_a_blank_line_in_a_formula_ends_no_step_however_it_is_cut_into_tokens(display: str) -> None:
    text = f"So\n{display}\n\nThen"
    for width in (1, 2, 3, 7, len(text)):
        ending, content, _ = run([text[i : i + width] for i in range(0, len(text), width)])
        assert ending is not None
        assert [content] == split_steps(text)[:1]
    left = open_fence(f"So\n{display[: len(display) // 2]}")
    assert left
    assert run([f"{display[len(display) // 2 :]}\n\nThen"], fence=left)[0] is not None
