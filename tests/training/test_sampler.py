"""How far sampler and trainer may be apart at the first step."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from stepwise.models.sizes import GgufFacts
from tests.training import rl_world

pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

from stepwise.training.sampler import EXACT, MARGIN, _tolerance

MEASURED = json.loads(files("stepwise.training").joinpath("sampler_gaps.json").read_text())["models"]
SMOL, QWEN = MEASURED["SmolLM2-135M-Instruct.Q4_1"], MEASURED["qwen2.5-coder-0.5b-instruct-q4_k_m"]


def _facts(quantization: str, architecture: str = "qwen3", width: int = 160) -> GgufFacts:
    fields = {"general.architecture": architecture, f"{architecture}.embedding_length": width}
    facts = GgufFacts(Path("model.gguf"), fields, vocab=0, weights=0)
    facts.__dict__["quantization"] = quantization  # a cached property, read from the header otherwise
    return facts


def test_the_tolerance_goes_by_weights_cache_and_trainer() -> None:
    exact = rl_world.config(None, "models.weak.kv_type=f32", "models.weak.flash_attention=false")
    f32, q8, q4 = _facts("ALL_F32"), _facts("Q8_0"), _facts("Q4_K_M")
    assert _tolerance(exact, f32, "float32") == EXACT
    grown = [
        _tolerance(exact, f32, "float32"),
        _tolerance(rl_world.config(), f32, "float32"),
        _tolerance(rl_world.config(), q8, "float32"),
        _tolerance(rl_world.config(), q8, "bfloat16"),
        _tolerance(rl_world.config(), q4, "bfloat16"),
    ]
    assert grown == sorted(set(grown))
    assert _tolerance(rl_world.config(None, "rl.tolerance=0.5"), f32, "float32") == 0.5


@pytest.mark.parametrize(
    ("architecture", "width", "nearest"),
    [
        ("llama", 576, [SMOL]),
        ("llama", 4096, [SMOL]),
        ("qwen2", 896, [QWEN]),
        ("qwen2", 1536, [QWEN]),
        ("qwen2", 512, [SMOL, QWEN]),  # narrower than what was measured, which loses more: the largest of all
        ("gemma3", 1152, [SMOL, QWEN]),
    ],
)
def test_a_model_is_held_to_what_was_measured_on_the_nearest_of_its_architecture(
    architecture: str, width: int, nearest: list[dict[str, dict[str, dict[str, float]]]]
) -> None:
    exact = rl_world.config(None, "models.weak.kv_type=f32", "models.weak.flash_attention=false")
    for kind, row in QWEN["gaps"].items():
        most = max(model["gaps"][kind]["mean"] for model in nearest)
        assert _tolerance(exact, _facts(kind, architecture, width), "float32") == EXACT + MARGIN * most > row["mean"]
    unknown = _tolerance(exact, _facts("IQ2_XS", architecture, width), "float32")  # no less than any that was measured
    assert unknown == EXACT + MARGIN * max(row["mean"] for model in nearest for row in model["gaps"].values())
