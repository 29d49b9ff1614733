import dataclasses

import pytest

from stepwise.report.shell import COLUMNS, caption
from stepwise.report.words import MISSING, percent, quantity
from tests.report import sample


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1 k"),
        (1234, "1.23 k"),
        (12_340, "12.3 k"),
        (123_400, "123 k"),
        (999_600, "1.00 M"),
        (1.5e12, "1.50 T"),
        (4e21, "4000 E"),
        (None, MISSING),
    ],
)
def test_large_numbers_keep_three_digits_and_take_a_suffix(value: float | None, text: str) -> None:
    assert quantity(value) == text


def test_what_is_not_known_is_a_dash_and_never_zero() -> None:
    unknown = {"accuracy": None, "accuracy_low": None, "accuracy_high": None, "strong_share": None}
    row = dataclasses.replace(sample.rows()[0], **unknown, parameter_tokens=None, seconds=None)
    written = {column.title: column.text(row) for column in COLUMNS}
    dashes = {title for title, text in written.items() if text == MISSING}
    assert dashes == {"Accuracy", "95 % interval", "Strong share", "Parameter tokens", "Seconds"}
    assert percent(0.0) == "0.0 %"


def test_columns_are_sorted_by_numbers_and_not_by_their_text() -> None:
    row = sample.rows()[4]
    values = [column.value(row) for column in COLUMNS]
    assert isinstance(values[0], str)
    assert all(isinstance(value, int | float) for value in values[1:])


def test_the_caption_says_how_many_problems_stand_behind_the_rows() -> None:
    rows = sample.rows()
    assert caption(rows).startswith("200 problems per policy")
    assert caption((rows[0], dataclasses.replace(rows[1], n=50))).startswith("50 to 200 problems")
    assert caption((dataclasses.replace(rows[0], n=1),)).startswith("1 problem per")
    assert caption(()) == "No policy was measured."
