"""The prompt that routing, collection and training share."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stepwise.errors import ConfigError
from stepwise.prompt import SolvePrompt


def test_without_a_system_text_there_is_one_message():
    assert SolvePrompt().messages("Why?") == [{"role": "user", "content": "Why?"}]


def test_the_system_text_comes_first():
    messages = SolvePrompt(system="Be brief.").messages("Why?")
    assert messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def test_braces_in_the_question_and_in_the_template_are_left_alone():
    prompt = SolvePrompt(user="{question} Box it as \\boxed{answer}.")
    question = "Let S = {1, {question}}; what is {0}?"
    assert prompt.messages(question)[0]["content"] == question + " Box it as \\boxed{answer}."


def test_thinking_is_off_by_default():
    assert SolvePrompt().template_args == {"enable_thinking": False}


def test_equal_prompts_have_equal_hashes_and_different_ones_do_not():
    one = SolvePrompt(system="s", template_args={"a": 1, "b": 2})
    same = SolvePrompt(system="s", template_args={"b": 2, "a": 1})
    assert one == same
    assert one.hash == same.hash
    others = [
        SolvePrompt(),
        SolvePrompt(system="t", template_args={"a": 1, "b": 2}),
        SolvePrompt(system="s", template_args={"a": 1}),
        SolvePrompt(system="s", user="{question}!", template_args={"a": 1, "b": 2}),
    ]
    assert len({prompt.hash for prompt in [one, *others]}) == 5
    assert len({one, same, *others}) == 5


def test_the_hash_is_the_same_in_another_process():
    code = "from stepwise.prompt import SolvePrompt; print(SolvePrompt(system='é').hash)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert SolvePrompt(system="é").hash == other
    assert len(other) == 12
    assert set(other) <= set("0123456789abcdef")


def test_a_prompt_is_frozen_and_knows_its_fields():
    with pytest.raises(ConfigError, match="SolvePrompt cannot be changed; make another"):
        SolvePrompt().system = "x"
    with pytest.raises(ConfigError, match="no field 'sistem'; did you mean 'system'"):
        SolvePrompt(sistem="x")


def test_a_user_text_without_the_question_is_refused():
    with pytest.raises(ConfigError, match=r"has no \{question\}"):
        SolvePrompt(user="Solve it.")


def test_one_prompt_does_not_share_its_arguments_with_the_next():
    SolvePrompt().template_args["enable_thinking"] = True
    assert SolvePrompt().template_args == {"enable_thinking": False}
