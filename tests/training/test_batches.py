import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.errors import DataError
from stepwise.training.batches import micro_batches, pad


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
