import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.config.training import LoraConfig
from stepwise.errors import BackendError, DataError
from stepwise.io import read_rows
from stepwise.training.logprobs import pad
from stepwise.training.lora import memory_errors
from stepwise.training.trainer import check_finite, micro_batches


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
