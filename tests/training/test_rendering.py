import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stepwise.config import Config
from stepwise.config.training import SftConfig
from stepwise.errors import ConfigError, DataError
from stepwise.prompt import SolvePrompt
from stepwise.steps import Splitter
from stepwise.training.rendering import _render, prompt_ids
from tests.training.sft_world import ROW, config, row

pytest.importorskip("transformers", reason='needs pip install "stepwise[train]"')
PROMPT = Config().prompt


@pytest.fixture(scope="module")
def tokenizer(tiny_gguf_path: Path) -> Any:
    from stepwise.training.lora import load_tokenizer

    return load_tokenizer(tiny_gguf_path.parent / "qwen3")


def target(tokenizer: Any, example: Any, **settings: float) -> tuple[str, list[float]]:
    made = _render(example, tokenizer, PROMPT, SftConfig(**settings))  # type: ignore[arg-type]
    return tokenizer.decode(made.ids[made.prompt :]), list(made.weights)


def test_the_target_is_prefix_and_intervention_with_the_blank_line_and_no_end_of_message(tokenizer: Any) -> None:
    text, weights = target(tokenizer, ROW)
    assert text == "Mia starts with 3 apples.\n\nAfter buying 4, there are 3 + 4 = 7 apples.\n\n"
    assert set(weights) == {1.0}


def test_a_whole_solution_ends_with_the_end_of_message(tokenizer: Any) -> None:
    whole = row(prefix=(), intervention="One.\n\nSo \\boxed{7}.", complete=True, origin="strong")
    assert target(tokenizer, whole)[0] == "One.\n\nSo \\boxed{7}.<|im_end|>"


def test_first_tokens_end_where_they_were_cut(tokenizer: Any) -> None:
    cut = row(prefix=(), intervention="Tom starts wi", origin="first_tokens")
    assert target(tokenizer, cut)[0] == "Tom starts wi"


def test_loss_weights_go_by_role(tokenizer: Any) -> None:
    example = row(prefix=("Tom starts.",), suffix="So \\boxed{7}.", complete=True)
    _, weights = target(tokenizer, example, prefix_weight=0.25, intervention_weight=2.0, suffix_weight=0.5)
    counts = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in
              ("Tom starts.\n\n", example.intervention + "\n\n", "So \\boxed{7}.")]  # fmt: skip
    assert weights == [0.25] * counts[0] + [2.0] * counts[1] + [0.5] * (counts[2] + 1)


@pytest.mark.parametrize("splitter", ["paragraphs", "calculations"])
def test_prompt_and_target_are_the_ids_that_the_engine_holds(
    tokenizer: Any, tiny_gguf_path: Path, splitter: Splitter
) -> None:
    pytest.importorskip("llama_cpp")
    from stepwise.models import load_backend
    from stepwise.models.base import Request
    from stepwise.types import Problem, Step

    prompt, example = SolvePrompt(splitter=splitter), ROW
    if splitter == "calculations":
        steps = ("Mia buys:\n\n3 + 4 = 7\n", "\\[\n7 * 2\n\n= 14\n\\]\n\n\n")
        example = row(prefix=steps, splitter=splitter, prompt_hash=prompt.hash)
    steps = tuple(Step(text, "weak") for text in (*example.prefix, example.intervention))
    with load_backend(config(tiny_gguf_path).models.weak, prompt=prompt) as backend:  # type: ignore[attr-defined]
        theirs = backend.prefix_ids(Request(Problem("p", example.question), steps))  # type: ignore[attr-defined]
    rendered = _render(example, tokenizer, prompt, SftConfig())
    assert list(rendered.ids) == theirs
    assert tokenizer.decode(rendered.ids[rendered.prompt :]) == example.target + "\n\n"


def test_another_prompts_row_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"p0/r0/c0.*another prompt"):
        target(tokenizer, dataclasses.replace(ROW, prompt_hash="other"))


def test_a_special_token_in_a_text_is_refused_by_name(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"step 1 holds the special token '<\|im_end\|>'"):
        target(tokenizer, row(intervention="So 7.<|im_end|>"))
    with pytest.raises(DataError, match="the question holds the special token"):
        target(tokenizer, row(question="What is <|im_start|>?"))


def test_a_text_that_does_not_tokenize_back_is_refused(tokenizer: Any) -> None:
    class Forgetful:
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [1]}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "something else"

        def apply_chat_template(self, messages: Any, add_generation_prompt: bool, **_: Any) -> str:
            return "a" if add_generation_prompt else "b"

    with pytest.raises(DataError, match=r"row 'p0/r0/c0', step 0 does not tokenize back"):
        _render(ROW, Forgetful(), PROMPT, SftConfig())


def test_a_template_without_a_generation_prompt_is_refused(tokenizer: Any) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="does not begin the assistant's message"):
        prompt_ids(other, PROMPT, "What?")


def test_a_row_over_the_context_or_without_a_loss_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="more than the context of 20"):
        _render(ROW, tokenizer, PROMPT, SftConfig(), 20)
    with pytest.raises(DataError, match="no token with a loss"):
        target(tokenizer, ROW, prefix_weight=0.0, intervention_weight=0.0)
