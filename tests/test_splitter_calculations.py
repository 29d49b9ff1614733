"""The splitter "calculations": an exact round trip, what it merges and splits, and where the engine stops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.models.engine.stopping import StopRule
from stepwise.steps import join_steps, leading_blank, split_steps

LINES = st.lists(
    st.sampled_from(
        ["1. ", "2. ", "Step 2: ", "### ", "**Eggs**", "3 + 4 = 7", "So 5 eggs", "We add", " eggs", ":", ".", " ", "\n",
         "\n", "\n\n", "\n \n", "\r\n", "```", "\\[", "\\]", "[asy]", "[/asy]", "$$", "\\boxed{7}", "  ", "x" * 70, "é"]
    ),
    max_size=40,
)  # fmt: skip


@given(LINES | st.lists(st.text(max_size=20), max_size=6))
def test_steps_with_their_separators_give_back_any_text_and_are_found_again(pieces):
    text = "".join(pieces)
    steps = split_steps(text, "calculations")
    assert "".join(steps) == text == join_steps(steps, "calculations")
    assert split_steps(join_steps(steps, "calculations"), "calculations") == steps
    assert all(step.strip() for step in steps[:-1])


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("To find the total:\n\n3 + 4 = 7\n\nDone.", 2),  # a lead-in and its formula
        ("### Step 1\n\nHe has 3 eggs.\n\nDone.", 2),  # a heading
        ("We look at the eggs.\n\nThere are 3 of them.", 1),  # nothing to check
        ("1. 3 + 4 = 7\n2. 7 * 2 = 14\n3. Done with 14.", 3),  # a list
        ("1. Find the eggs.\n2. Find the price.\n\n3 + 4 = 7", 1),  # an outline is a lead-in
        ("3 + 4 = 7\n7 * 2 = 14\n", 2),  # several calculations
        ("- eggs: 3 + 4 = 7\n- money: 7 * 2 = 14", 2),
        ("So 3 + 4 = 7 eggs are left on this long line of a text that is wrapped\nat the margin.", 1),
        ("\\[\n3 + 4 = 7\n\n7 * 2 = 14\n\\]\n\\[ 1 + 1 = 2 \\]", 2),  # never inside of a formula
        ("```python\nx = 3 + 4\ny = 7\n```\nSo 7.", 1),  # nor of code
        ("[asy]\nx = 3 + 4 = 7;\n\ny = 2;\n[/asy]\nSo 7.", 1),
        ("a\n\nb\n\nc\n\nd\n\ne 3", 2),  # no lead-in goes on for ever
        ("He has 3 eggs and:\n\n4 + 3 = 7", 1),
        ("1.5 litres\n2.5 litres", 1),
    ],
)
def test_what_the_splitter_merges_and_what_it_splits(text, steps):
    assert len(split_steps(text, "calculations")) == steps


@given(LINES, st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_a_model_is_stopped_where_the_reader_splits_however_the_text_is_cut_into_tokens(pieces, widths):
    text = "".join(pieces)
    data, steps, at, token = text.encode(), [], 0, 0
    while at < len(data):
        rule, ending, start = StopRule("step", splitter="calculations"), None, at
        while ending is None and at < len(data):
            width, token = widths[token % len(widths)], token + 1
            ending = rule.push(data[at : at + width])
            at += width
        ending = ending or rule.last("eos")
        made, at = rule.text(ending), start + ending.content
        if ending.finish == "answer":  # what stands behind it is not drawn
            data = data[:at]
        late = leading_blank(made) if steps else ""  # as the router does
        if late:
            steps[-1] += late
        steps += [made.removeprefix(late)] if made != late else []
    assert steps == split_steps(data.decode(), "calculations")
