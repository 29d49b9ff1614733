r"""Splitting text into steps, and finding boxes and the final answer in it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.steps import boxed, extract_answer, normalize_text, solution_part, split_steps

PIECES = ["a", "b", " ", "\t", "\n", "\n\n", "\r\n", "\r", "```", "~~~", "````", "`", "\\boxed{", "}", "{", "\\"]
MESSY = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


def test_steps_are_what_stands_between_blank_lines():
    assert split_steps("One.\nStill one.\n\nTwo.") == ["One.\nStill one.", "Two."]


@pytest.mark.parametrize(
    "text",
    [
        "a\n\n\n\nb",
        "a\r\n\r\nb",
        "a\r\rb",
        "\n\na\n\nb\n\n",
        "a\n \t\nb",
        "a\n\n\u00a0\nb",
        "  \n\na\n   \n\n  \nb\n  ",
    ],
)
def test_line_ends_and_runs_of_blank_lines_are_normalised(text):
    assert split_steps(text) == ["a", "b"]
    assert normalize_text(text) == "a\n\nb"


@pytest.mark.parametrize("text", ["", "\n", " \n\n \r\n", "\t"])
def test_a_text_of_blank_lines_has_no_steps(text):
    assert split_steps(text) == []
    assert normalize_text(text) == ""


def test_spaces_inside_a_step_are_kept():
    assert split_steps("  a  \n\n\tb ") == ["  a  ", "\tb "]


@pytest.mark.parametrize("mark", ["```", "~~~", "````"])
def test_a_blank_line_in_a_code_fence_does_not_end_a_step(mark):
    code = f"{mark}python\nx = 1\n\n\ny = 2\n{mark}"
    assert split_steps(f"Compute.\n\n{code}\n\nDone.") == ["Compute.", code, "Done."]


def test_a_fence_is_closed_only_by_its_own_kind_and_length_without_more_on_the_line():
    for inner in ("~~~", "```", "````python"):
        code = f"````\na\n\n{inner}\n\nb\n````"
        assert split_steps(f"{code}\n\nc") == [code, "c"]


def test_backticks_within_one_line_open_no_fence():
    assert split_steps("Run ```x = 1``` now.\n\nb") == ["Run ```x = 1``` now.", "b"]
    assert split_steps("```x = 1```\n\nb") == ["```x = 1```", "b"]


def test_a_fence_that_is_never_closed_runs_to_the_end_without_blank_lines_behind_it():
    assert split_steps("a\n\n```\nx\n\ny\n \n\n") == ["a", "```\nx\n\ny"]


@given(MESSY)
def test_joining_the_steps_gives_back_any_normalised_text(text):
    steps = split_steps(text)
    normal = "\n\n".join(steps)
    assert all(step.strip() for step in steps)
    assert split_steps(normal) == steps
    assert normalize_text(normal) == normal == normalize_text(text)


@given(st.lists(st.from_regex(r"[ab.](?:[ab .]|\n[ab.])*", fullmatch=True), max_size=6))
def test_steps_without_blank_lines_come_back_as_they_were(steps):
    assert split_steps("\n\n".join(steps)) == steps


@given(MESSY)
def test_no_text_but_white_space_is_lost(text):
    def visible(value: str) -> str:
        return "".join(value.split())

    assert visible("".join(split_steps(text))) == visible(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{7}.", ["7"]),
        (r"\boxed{1} then \boxed {2}", ["1", "2"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\{1, 2\}}", [r"\{1, 2\}"]),
        (r"\boxed{a\\{b}}", [r"a\\{b}"]),
        (r"\fbox{3}", ["3"]),
        (r"\\boxed{4}", ["4"]),
        (r"\boxed{1} \boxed{2", ["1"]),
        (r"\boxed{2 \boxed{1}", ["1"]),
        (r"} \boxed{5} {", ["5"]),
        (r"{ \boxed{5}", ["5"]),
        (r"\boxed{}", [""]),
        (r"\boxed{\boxed{6}}", ["6"]),
        (r"\boxed{ \fbox{ \boxed{6} } }", ["6"]),
        (r"\boxed{(\boxed{1}, \boxed{2})}", [r"(\boxed{1}, \boxed{2})"]),
        (r"\boxed{\boxed{1}\boxed{2}}", [r"\boxed{1}\boxed{2}"]),
        (r"\boxed 5, boxed{5}, \boxedsize{5}", []),
        ("\\boxed{two\nlines}", ["two\nlines"]),
        ("\\boxed{5\\", []),
    ],
)
def test_boxes_are_found_by_matching_braces(text, found):
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} \boxed{ 2 }", "2"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{1} \boxed{}", None),
        (r"\boxed{ }", None),
        ("no box", None),
        ("", None),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> It is 2.", None),
        (r"\boxed{1}</think>a</think>\boxed{3}", "3"),
        (r"<think>I guess \boxed{1}", None),
        (r"\boxed{1} <think> or \boxed{2}", "1"),
    ],
)
def test_the_answer_is_the_last_closed_box_outside_of_the_reasoning(text, answer):
    assert extract_answer(text) == answer


def test_the_solution_part_is_the_text_itself_where_nothing_was_thought():
    assert solution_part("a\n\nb") == "a\n\nb"
    assert solution_part("x<think>y</think>z") == "z"


@settings(max_examples=200)
@given(MESSY)
def test_boxes_of_any_text_are_pieces_of_it(text):
    for content in boxed(text):
        assert "{" + content + "}" in text or content in text


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 20_000,
        "\\boxed{" * 20_000 + "5" + "}" * 20_000,
        "\\boxed{" + "\\boxed{1}" * 20_000 + "}",
        "{" * 200_000,
        "\\" * 200_001,
        "`" * 100_000,
        ("```\n" * 20_000),
    ],
    ids=["open boxes", "nested boxes", "boxes in a box", "braces", "backslashes", "backticks", "fences"],
)
def test_a_model_that_repeats_itself_does_not_stall_the_search(text):
    start = time.monotonic()
    extract_answer(text)
    split_steps(text)
    # Linear work takes well under a second; quadratic work would take minutes.
    assert time.monotonic() - start < 30
