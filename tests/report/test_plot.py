import dataclasses
import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.pages import tag
from stepwise.report.charts import COSTS, NARROW, WIDE, legend, plot_svg, ticks
from stepwise.routing.compare import PolicyRow
from tests.report import sample
from tests.report.markup import HOSTILE, Elements


def points(svg: str) -> list[dict[str, str | None]]:
    return [attributes for attributes in Elements(svg).named("g") if attributes.get("class") == "point"]


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.key)
@pytest.mark.parametrize("canvas", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_row_has_one_point_and_one_interval_bar(cost, canvas) -> None:
    svg = plot_svg(sample.rows(), cost, canvas)
    assert len(points(svg)) == len(sample.rows())
    assert svg.count('class="interval') == len(sample.rows())


def test_each_family_has_one_line_through_its_points() -> None:
    lines = [a for a in Elements(plot_svg(sample.rows(), COSTS[0])).named("path") if "series" in (a.get("class") or "")]
    assert [str(line["d"]).count("L") + 1 for line in lines] == [6, 4]
    assert [line["class"] for line in lines] == ["series f0", "series f1"]


def test_hovering_a_point_names_policy_accuracy_interval_and_cost() -> None:
    svg = plot_svg(sample.rows(), COSTS[0])
    assert "threshold 0.7: 90.0 % (85.8–94.2), 40.8 strong tokens per problem, 34.0 % strong, 200 problems" in svg


def test_dearer_is_further_right_and_better_is_further_up() -> None:
    circles = [a for a in Elements(plot_svg(sample.rows(), COSTS[0])).named("circle") if a.get("class") == "hit"]
    xs = [float(str(a["cx"])) for a in circles]
    ys = [float(str(a["cy"])) for a in circles]
    costs = [row.strong_tokens for row in sample.rows()]
    assert sorted(range(12), key=lambda i: xs[i]) == sorted(range(12), key=lambda i: costs[i])
    assert sorted(range(12), key=lambda i: -ys[i]) == sorted(range(12), key=lambda i: sample.rows()[i].accuracy)


def test_rows_without_accuracy_or_without_this_cost_are_left_out() -> None:
    rows = list(sample.rows())
    rows[1] = dataclasses.replace(rows[1], accuracy=None)
    rows[2] = dataclasses.replace(rows[2], parameter_tokens=None)
    assert len(points(plot_svg(rows, COSTS[0]))) == 11
    assert len(points(plot_svg(rows, COSTS[2]))) == 10


def test_with_nothing_to_draw_it_says_so() -> None:
    assert "No policy has both" in plot_svg((), COSTS[0])
    bare = [dataclasses.replace(row, parameter_tokens=None) for row in sample.rows()]
    assert "<svg" not in plot_svg(bare, COSTS[2])


def test_a_row_without_an_interval_has_no_bar() -> None:
    row = dataclasses.replace(sample.rows()[1], accuracy_low=None, accuracy_high=None)
    svg = plot_svg([row], COSTS[0])
    assert len(points(svg)) == 1
    assert 'class="interval' not in svg


def _row(family: str, tokens: int, accuracy: float, n: int) -> PolicyRow:
    return PolicyRow(family, family, 0.5, accuracy, accuracy, accuracy, None, tokens, tokens, tokens * 1e9, 1, None, n)


one_row = st.builds(
    _row,
    st.sampled_from(["never", "always", "threshold", "random", *"abcdefgh"]),
    st.integers(0, 10**12),
    st.floats(0, 1),
    st.integers(1, 10**6),
)


@given(st.lists(one_row, min_size=1, max_size=12), st.sampled_from([WIDE, NARROW]))
def test_every_point_lies_inside_the_drawing(rows: list[PolicyRow], canvas: Any) -> None:
    for cost in COSTS:
        svg = plot_svg(rows, cost, canvas)
        assert not re.search(r"\b(nan|inf)\b", re.sub("<title>.*?</title>", "", svg))
        hits = [a for a in Elements(svg).named("circle") if a.get("class") == "hit"]
        assert len(hits) == len(rows)
        for hit in hits:
            assert canvas.left - 0.1 <= float(str(hit["cx"])) <= canvas.width - canvas.right + 0.1
            assert canvas.top - 0.1 <= float(str(hit["cy"])) <= canvas.height - canvas.bottom + 0.1


SIZES = st.floats(0, 1e15) | st.floats(0, 1e-9)


@given(SIZES, SIZES, st.integers(2, 10))
def test_ticks_are_rising_and_cover_the_range(low: float, span: float, wanted: int) -> None:
    marks = ticks(low, low + span, wanted)
    assert all(a < b for a, b in itertools.pairwise(marks))
    assert 2 <= len(marks) <= 2 * wanted + 2
    assert marks[0] <= low + 1e-6 * span + 1e-9 * low
    assert marks[-1] >= low + span * (1 - 1e-6) - 1e-9 * low


def test_the_legend_names_families_and_single_models_once_each() -> None:
    assert [name for _, name in legend(sample.rows())] == [
        "threshold",
        "random",
        "weak model alone",
        "strong model alone",
    ]
    assert legend(()) == []


@pytest.mark.parametrize("bad", HOSTILE)
def test_names_and_attributes_are_escaped(bad: str) -> None:
    found = Elements(tag("text", bad, class_=bad)).found
    assert [name for name, _ in found] == ["text"]
    assert list(found[0][1]) == ["class"]


def test_more_families_than_shapes_still_look_different() -> None:
    rows = [_row(f"family {i}", 100 + i, 0.5, 10) for i in range(12)]
    assert len({swatch for swatch, _ in legend(rows)}) == 12


def test_the_two_single_models_are_joined_and_one_alone_is_not() -> None:
    assert plot_svg(sample.rows(), COSTS[0]).count('class="chord"') == 1
    assert 'class="chord"' not in plot_svg(sample.rows()[:-1], COSTS[0])


def test_settings_are_written_beside_points_where_there_is_room() -> None:
    texts = re.findall(r'class="setting [^"]*">([^<]*)<', plot_svg(sample.rows(), COSTS[0]))
    assert {"0.5", "0.7", "0.9", "0.75"} <= set(texts)
    crowd = [_row("threshold", 100, 0.5, 10) for _ in range(30)]
    assert plot_svg(crowd, COSTS[0]).count('class="setting') <= 6
