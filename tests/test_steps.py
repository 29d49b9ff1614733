r"""Splitting text into steps, and finding boxes and the final answer in it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwise.steps import (
    boxed,
    extract_answer,
    has_answer,
    next_block,
    normalize_text,
    split_steps,
)
from stepwise.steps.thoughts import open_thought, solution_part

PIECES = ["a", "b", " ", "\t", "\n", "\n\n", "\r\n", "\r", "```", "~~~", "````", "`", "\\boxed{", "}", "{", "\\"]
PIECES += ["\\[", "\\]", "$$", "[asy]", "[/asy]", "\\begin{align*}", "\\end{align*}"]
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
        (r"\boxed{1} \boxed{}", "1"),
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


DISPLAYS = [
    "[asy]\ndraw(a);\n\ndot(b);\n[/asy]",
    "\\[\na\n\n= b\n\\]",
    "so \\[ a\n\n= b \\] holds",
    "$$\na\n\n= b\n$$",
    "$$a\n\n= b$$",
    "\\begin{align*}\na&=b\\\\\n\nc&=d\n\\end{align*}",
    "\\begin{tabular}{c}\na\n\n\nb\n\\end{tabular}",
    "\\begin{cases}\\begin{array}{c}\n\n1\\end{array}\n\n2\\end{cases}",
    "\\[\\begin{pmatrix}1\\\\[4pt]\n\n2\\end{pmatrix}\\]",
    "\\begin{array}{c}\\begin{array}{c}1\n\n\\end{array}\n\n2\\end{array}",
    "\\begin{align*}\n" + "\\\\\n\n".join("abcdefgh") + "\n\\end{align*}",
    "\\begin{align2}\na\n\nb\\end{align2}",
    "[ASY]\ndraw(a);\n\ndot(b);\n[/ASY]",
    "<asy>\ndraw(a);\n\ndot(b);\n</asy>",
]


@pytest.mark.parametrize("display", DISPLAYS)
def test_a_blank_line_in_a_drawing_a_formula_or_an_environment_does_not_end_a_step(display):
    text = f"First.\n\n{display}\n\nLast."
    assert len(split_steps(text)) == 3
    assert split_steps(text)[2] == "Last."
    assert split_steps("\n\n".join(split_steps(text))) == split_steps(text)


@pytest.mark.parametrize(
    "text",
    [
        "\\[a=b\\]\n\nc",
        "$$a=b$$\n\nc",
        "[asy]draw(a);[/asy]\n\nc",
        "\\begin{align}a\\end{align}\n\nc",
        "It costs \\$5 and \\$6.\n\nc",
        "\\begin{proof} So.\n\nc",
        "the row \\\\[4pt] ends\n\nc",
        "`\\[` opens a formula, and \\verb|$$| too\n\nc",
        "$\\left\\[ a \\right)$\n\nc",
        "\\begin{claim} So.\n\nc",
    ],
)
def test_what_is_closed_on_its_line_or_holds_prose_keeps_nothing_together(text):
    assert len(split_steps(text)) == 2


def test_a_formula_that_is_never_closed_does_not_swallow_the_solution():
    steps = split_steps("\n\n".join(["\\[ a = b", *"cdefghij"]))
    assert len(steps) == 5
    assert steps[1:] == list("ghij")
    assert next_block("\\[", "") == "\\[\n "


def test_texts_without_blank_lines_are_split_by_a_mode_that_is_asked_for():
    text = "Intro\n1. Add 2 and 3.\n   It is 5.\n2) Double it.\n**Step 3:** \\boxed{10}"
    assert split_steps(text) == [text]
    assert split_steps(text, mode="numbered") == [
        "Intro",
        "1. Add 2 and 3.\n   It is 5.",
        "2) Double it.",
        "**Step 3:** \\boxed{10}",
    ]
    assert split_steps("a = 1\nb = 2\n\\[\nx\n\ny\n\\]\n\n1.5 litres", mode="lines") == [
        "a = 1",
        "b = 2",
        "\\[\nx\n\ny\n\\]",
        "1.5 litres",
    ]
    assert split_steps("Step one: add.\nStep two: stop.", mode="numbered") == ["Step one: add.", "Step two: stop."]
    assert split_steps("1.5 litres\n2.5 litres", mode="numbered") == ["1.5 litres\n2.5 litres"]


NO_ANSWERS = [
    r"\boxed{}",
    r"\boxed{ }",
    r"\boxed{\ }",
    r"\boxed{...}",
    r"\boxed{\ldots}",
    r"\boxed{?}",
    r"\boxed{\_\_\_}",
    r"\boxed{___}",
    r"\boxed{answer}",
    r"\boxed{your answer}",
    r"\boxed{\text{answer}}",
    r"\boxed{\text{Final Answer}}",
    r"\boxed{<answer>}",
    r"\boxed{[your answer here]}",
    r"\boxed{\square}",
    r"\boxed{XXX}",
    r"\boxed{\text{the final answer}}",
    r"\boxed{\phantom{0}}",
    "`\\boxed{7}`",
    "``\\boxed{7}``",
    "```\n\\boxed{7}\n```",
    "~~~latex\n\\boxed{7}\n~~~",
    "<think>\\boxed{7}</think>",
    "<think>\\boxed{7}",
    "<Thinking>\\boxed{7}</Thinking>",
    "<thought>\\boxed{7}</thought>",
    "<reasoning>\\boxed{7}</reasoning>",
    "[THINK]\\boxed{7}[/THINK]",
    "[THINK]\\boxed{7}",
    "<|begin_of_thought|>\\boxed{7}<|end_of_thought|>",
    "<|channel|>analysis<|message|>\\boxed{7}",
    "<|channel|>analysis<|message|>\\boxed{7}<|end|><|start|>assistant<|channel|>final<|message|>",
    "analysisWe try \\boxed{7}",
    "the template began it: \\boxed{7}</think>",
    "the template began it: \\boxed{7}[/THINK]",
]


@pytest.mark.parametrize("box", NO_ANSWERS)
def test_a_box_that_is_no_answer_ends_nothing_and_hides_no_answer(box):
    assert not has_answer(box)
    assert extract_answer(box) is None
    assert extract_answer(f"{box}\nIt is \\boxed{{42}}.") == (None if open_thought(box) else "42")


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<think>a</think>", ""),
        ("a</think> b <think>", "<think>"),
        ("no thought", ""),
        ("[THINK] so", "[THINK]"),
        ("<|channel|>analysis<|message|>x", "<|channel|>analysis"),
        ("<|channel|>analysis<|message|>x<|end|><|channel|>final<|message|>", ""),
    ],
)
def test_a_thought_that_a_prompt_or_the_steps_before_leave_open_is_known(text, thought):
    assert open_thought(text) == thought
    assert has_answer(thought + "\\boxed{7}") == (not thought)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$x=\boxed{3}$ or $x=\boxed{-3}$", "3, -3"),
        (r"The roots are $\boxed{3}$ and $\boxed{-3}$.", "3, -3"),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1, 2, 3"),
        (r"\(\boxed{1}\) or \(\boxed{2}\)", "1, 2"),
        (r"$a=\boxed{1}$, $b=\boxed{2}$", "a = 1, b = 2"),
        (r"First \boxed{3}; no, \boxed{1}", "1"),
        (r"\boxed{3}. Checking again: \boxed{4}", "4"),
        ("\\boxed{3}\n\n\\boxed{4}", "4"),
        (r"\boxed{3} is wrong and \boxed{4} right", "4"),
        (r"not \boxed{3} but \boxed{4}", "4"),
    ],
)
def test_boxes_that_are_joined_are_one_answer_and_a_correction_is_the_last(text, answer):
    assert extract_answer(text) == answer
