import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.config.training import DpoConfig, LoraConfig, SftConfig
from stepwise.errors import BackendError, DataError
from stepwise.io import read_rows
from stepwise.training.batches import for_few_rows, in_words, micro_batches, plan_steps
from stepwise.training.logprobs import pad
from stepwise.training.lora import memory_errors
from stepwise.training.trainer import check_finite


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_every_row_is_in_one_micro_batch_and_none_passes_the_budget_unless_it_is_alone(
    lengths: list[int], budget: int
) -> None:
    groups = micro_batches(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget


def test_the_longest_rows_come_first() -> None:
    assert micro_batches([2, 9, 5, 5], 10) == [[1], [2, 3], [0]]


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"lora\.micro_tokens"):
        micro_batches([1], 0)


def test_rows_are_padded_on_the_right() -> None:
    assert np.array_equal(pad([[1, 2, 3], [4]], 0), [[1, 2, 3], [4, 0, 0]])
    assert pad([[1.5], [2.5, 3.5]], 0.0).dtype == np.float64


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_lack_of_memory_names_the_settings_to_lower(error: Exception) -> None:
    words = r"lora\.micro_tokens \(now 777\).*lora\.tile.*lora\.checkpointing"
    with pytest.raises(BackendError, match=words), memory_errors(LoraConfig(micro_tokens=777)):
        raise error
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(LoraConfig()):
        raise RuntimeError("shapes do not fit")


def test_a_batch_with_a_number_that_is_not_finite_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "failed.jsonl"
    check_finite({"loss": 1.0}, [{"id": 1}], path)
    assert not path.exists()
    with pytest.raises(DataError, match=r"loss is nan, grad_norm is inf; the batch is in .*failed\.jsonl"):
        check_finite({"loss": math.nan, "grad_norm": math.inf}, [{"id": 1}, {"id": 2}], path)
    assert [row["id"] for row in read_rows(path)] == [1, 2]


def test_few_rows_are_trained_in_small_batches_unless_a_batch_is_set() -> None:
    mine = "llamacpp/mine.gguf"
    few = for_few_rows(SftConfig(), 14, mine)
    assert few.batch == 2
    steps = plan_steps([10] * 14, few, "name")
    assert len(steps) == 28
    assert in_words(14, len(steps), few) == (
        "14 rows: 28 optimizer steps, learning rate 0.0002 at its peak; for so few rows a batch is 2 "
        "(sft.batch = 64 would make 4)"
    )
    assert for_few_rows(DpoConfig(), 1, mine).batch == 1
    assert for_few_rows(SftConfig(), 320, mine).batch == 64  # 20 steps
    assert for_few_rows(SftConfig(), 319, mine).batch == 63
    for kept in (SftConfig(batch=64), SftConfig(tokens=1000)):
        assert for_few_rows(kept, 14, mine) == kept
    assert for_few_rows(SftConfig(), 14, "llamacpp/lab-weak") == SftConfig()  # its figures were measured so
    assert in_words(14, 4, SftConfig(batch=64)).endswith("that is few: sft.batch = 2 would make 28 (now 64)")
    assert "few" not in in_words(2000, 125, for_few_rows(SftConfig(), 2000, mine))
