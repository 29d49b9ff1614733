"""How far sampler and trainer may be apart at the first step."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from tests.training import rl_world

pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

from stepwise.training.sampler import EXACT, _tolerance


def test_the_tolerance_goes_by_weights_cache_and_trainer() -> None:
    exact = rl_world.config(None, "models.weak.kv_type=f32", "models.weak.flash_attention=false")
    assert _tolerance(exact, "ALL_F32", "float32") == EXACT
    grown = [
        _tolerance(exact, "ALL_F32", "float32"),
        _tolerance(rl_world.config(), "ALL_F32", "float32"),
        _tolerance(rl_world.config(), "MOSTLY_Q8_0", "float32"),
        _tolerance(rl_world.config(), "MOSTLY_Q8_0", "bfloat16"),
        _tolerance(rl_world.config(), "MOSTLY_Q4_K_M", "bfloat16"),
    ]
    assert grown == sorted(set(grown))
    assert _tolerance(rl_world.config(None, "rl.tolerance=0.5"), "ALL_F32", "float32") == 0.5
    unknown = _tolerance(exact, "MOSTLY_IQ2_XS", "float32")  # not measured: no less than any that was
    gaps = json.loads(files("stepwise.training").joinpath("sampler_gaps.json").read_text())["gaps"]
    for kind, row in ((kind, row) for model in gaps.values() for kind, row in model.items()):
        assert row["mean"] < _tolerance(exact, f"MOSTLY_{kind}", "float32") <= unknown
