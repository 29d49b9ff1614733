"""A LoRA adapter changes what is computed, and nothing computed under one is used under another."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from stepwise.errors import BackendError
from stepwise.models.engine import Engine, GenerationJob, context
from tests.engine.conftest import LoadEngine

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def adapter(tiny_gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from stepwise.training import export_lora_gguf
    from tests.training.test_export_lora import random_adapter

    folder = tmp_path_factory.mktemp("adapter")
    random_adapter(tiny_gguf_path.parent / "qwen3", folder / "peft")
    return export_lora_gguf(folder / "peft", folder / "adapter.gguf")


def rows(engine: Engine, ids: list[int]) -> np.ndarray:
    return engine.score([ids], [[len(ids) - 1]], range(50))[0].logits


def test_attaching_detaching_and_attaching_again_gives_what_fresh_engines_give(load: LoadEngine, adapter: Path) -> None:
    engine = load()
    ids = engine.tokenize("Mia has 12 apples and buys 5 more.\n\n")
    base, tuned = rows(load(), ids), rows(load(adapter=adapter), ids)
    half = rows_at_half = None
    assert np.abs(base - tuned).max() > 0.1
    for path, scale, expected in [
        (None, 1, base),
        (adapter, 1, tuned),
        (None, 1, base),
        (adapter, 0.5, None),
        (adapter, 1, tuned),
    ]:
        engine.set_adapter(path, scale)
        engine.generate([GenerationJob(tuple(ids), max_tokens=4, temperature=0.0)])
        if expected is not None:
            np.testing.assert_allclose(rows(engine, ids), expected, atol=1e-4)
        else:
            half = rows(engine, ids)
            fresh = load()
            fresh.set_adapter(adapter, 0.5)
            rows_at_half = rows(fresh, ids)
    assert half is not None
    np.testing.assert_allclose(half, rows_at_half, atol=1e-4)
    assert engine.counters.adapter_switches == 4


def test_of_many_adapters_only_the_last_stay_loaded_and_each_computes_what_it_should(
    load: LoadEngine, tiny_gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stepwise.training import export_lora_gguf
    from tests.training.test_export_lora import random_adapter

    monkeypatch.setattr(context, "MAX_ADAPTERS", 2)
    engine = load()
    ids = engine.tokenize("Mia has 12 apples and buys 5 more.\n\n")
    freed: list[int] = []
    free = engine._context.lib.llama_adapter_lora_free
    monkeypatch.setattr(engine._context.lib, "llama_adapter_lora_free", lambda one: (freed.append(1), free(one)))
    paths = []
    for alpha in (4, 8, 16, 32):
        random_adapter(tiny_gguf_path.parent / "qwen3", tmp_path / f"{alpha}", lora_alpha=alpha)
        paths.append(export_lora_gguf(tmp_path / f"{alpha}", tmp_path / f"{alpha}.gguf"))
    expected = [rows(load(adapter=path), ids) for path in paths]
    assert all(np.abs(a - b).max() > 1e-2 for a, b in itertools.pairwise(expected))
    for which in (0, 1, 2, 3, 2, 0, 1, 0, 3):
        engine.set_adapter(paths[which])
        np.testing.assert_allclose(rows(engine, ids), expected[which], atol=1e-4)
        assert len(engine._context._adapters) <= 2
    assert len(freed) == 5  # loaded 0 1 2 3, then 0 1 3: seven, of which two are left


def test_what_was_known_under_an_adapter_is_known_again_when_it_comes_back(load: LoadEngine, adapter: Path) -> None:
    engine = load()
    ids = engine.tokenize("Mia has 12 apples and buys 5 more.\n\n")
    rows(engine, ids)
    engine.set_adapter(adapter)
    assert engine.score([ids], [[len(ids) - 1]], [0])[0].evaluated_tokens == len(ids)
    engine.set_adapter(None)
    assert engine.score([ids], [[len(ids) - 1]], [0])[0].evaluated_tokens == 1


def test_the_name_tells_adapters_and_scales_apart(load: LoadEngine, adapter: Path) -> None:
    engine = load()
    names = [engine.name]
    for scale in (1.0, 0.5):
        engine.set_adapter(adapter, scale)
        names.append(engine.name)
    assert len(set(names)) == 3
    engine.set_adapter(None)
    assert engine.name == names[0]


def test_a_file_that_is_no_adapter_is_an_error_and_changes_nothing(
    load: LoadEngine, tiny_gguf_path: Path, tmp_path: Path
) -> None:
    engine = load()
    name = engine.name
    with pytest.raises(BackendError, match="does not fit"):
        engine.set_adapter(tiny_gguf_path)
    with pytest.raises(BackendError, match="no such file"):
        engine.set_adapter(tmp_path / "missing.gguf")
    with pytest.raises(BackendError, match="no such file"):
        load(adapter=tmp_path / "missing.gguf")
    assert engine.name == name
    assert len(engine.generate([GenerationJob((4, 5), max_tokens=3, ignore_end=True)])[0].ids) == 3


def test_engines_of_one_file_share_its_weights_and_nothing_else(load: LoadEngine, adapter: Path) -> None:
    one, two = load(), load(adapter=adapter)
    ids = one.tokenize("Mia has 12 apples and buys 5 more.\n\n")
    assert one._context.model == two._context.model
    base, tuned = rows(one, ids), rows(two, ids)
    assert np.abs(base - tuned).max() > 0.1
    np.testing.assert_allclose(rows(one, ids), base, atol=1e-4)  # the other's adapter and cache changed nothing
    assert (one.counters.cache_hits, two.counters.cache_hits) == (1, 0)
    two.close()
    np.testing.assert_allclose(rows(one, ids), base, atol=1e-4)  # the weights stay while anybody reads with them
    one.close()
    again = load(adapter=adapter)
    np.testing.assert_allclose(rows(again, ids), tuned, atol=1e-4)
