"""A policy made for one model is refused for another, by whichever of its names the two are known."""

from __future__ import annotations

import pytest

from stepwise.config import ScorerConfig
from stepwise.errors import ConfigError
from stepwise.routing.names import ModelNames

JUDGE = ScorerConfig(kind="judge", model="llamacpp/models/Qwen2.5-1.5B-Instruct-Q4_K_M.gguf").title
HEAD = ScorerConfig(kind="classifier", model="transformers/models/Skywork-o1-Open-PRM-Qwen-2.5-1.5B").title
SERVED = ScorerConfig(kind="pooling", model="vllm/Qwen/Qwen2.5-Math-PRM-7B", api_base="http://localhost:8000").title
SAME = [
    ("llamacpp/lab-weak", "lab-weak@11989165"),
    ("llamacpp/models/Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B-Q8_0@0123abcd"),
    ("llamacpp//abs/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1@0123abcd"),
    ("llamacpp/hf:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/q.gguf", "q@0123abcd"),
    ("llamacpp/out/gguf/model.gguf", "gguf@0123abcd"),  # as an export is called
    ("llamacpp/./models/a.gguf", "llamacpp/models/a.gguf"),
    ("lab-weak@11989165", "lab-weak"),  # the hash is not known
    ("openai/gpt-5-mini", "openai/gpt-5-mini@http://localhost:8080"),
    ("vertex_ai/claude-sonnet-4@20250514", "vertex_ai/claude-sonnet-4@20250514"),
    (JUDGE, "judge Qwen2.5-1.5B-Instruct-Q4_K_M@0123abcd"),
    (HEAD, "Skywork-o1-Open-PRM-Qwen-2.5-1.5B bfloat16"),
    (SERVED, "Qwen/Qwen2.5-Math-PRM-7B@http://localhost:8000"),
    ("mine:Length with {}", "mine:Length {} 0123456789ab"),
]
OTHERS = [
    ("llamacpp/models/Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B-Q4_K_M@0123abcd"),
    ("llamacpp/models/Qwen3-0.6B-Q8_0.gguf", "llamacpp/models/Qwen3-1.7B-Q8_0.gguf"),
    ("lab-weak@11989165", "lab-weak@00000000"),
    ("lab-weak@11989165", "lab-weak@11989165+0a1b2c3d"),  # with an adapter
    ("vertex_ai/claude-sonnet-4@20250514", "vertex_ai/claude-sonnet-4@20251022"),
    ("vertex_ai/claude-sonnet-4@20250514", "vertex_ai/claude-sonnet-4"),
    ("openai/gpt-5", "azure/gpt-5"),
    ("anthropic/claude", "claude@0123abcd"),  # a GGUF of that name
    (JUDGE, "Qwen2.5-1.5B-Instruct-Q4_K_M@0123abcd"),  # the same model, read for label tokens
    (HEAD, "Qwen2.5-Math-PRM-7B bfloat16"),
    (SERVED, "Qwen/Qwen2.5-Math-PRM-72B@http://localhost:8000"),
]


def refusal(ours: str, theirs: str) -> str:
    """Why a policy made for the one model is not taken for the other, "" where it is."""
    try:
        ModelNames(weak=ours, strong="").check(ModelNames(weak=theirs, strong=""))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("ours", "theirs"), [*SAME, *((theirs, ours) for ours, theirs in SAME)])
def test_two_names_of_one_model_are_taken(ours: str, theirs: str) -> None:
    assert refusal(ours, theirs) == ""


@pytest.mark.parametrize(("ours", "theirs"), [*OTHERS, *((theirs, ours) for ours, theirs in OTHERS)])
def test_names_of_two_models_are_refused(ours: str, theirs: str) -> None:
    assert "the policy is for the weak model" in refusal(ours, theirs)
