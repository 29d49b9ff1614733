from __future__ import annotations

import re

from stepwise.report.series import Bar, Line, _numbers, bars_svg, curves_svg, number, stage_svg
from tests.report.markup import HOSTILE, Elements


def paths(svg: str, name: str = "series") -> list[str]:
    return [str(a["d"]) for a in Elements(svg).named("path") if name in (a.get("class") or "")]


def test_a_value_that_is_not_known_breaks_the_curve_and_a_lone_value_is_a_dot() -> None:
    svg = curves_svg([Line("loss", [(1, 1.0), (2, 2.0), (3, None), (4, 3.0), (5, None), (6, 1.0), (7, 2.0)])], "s")
    assert [path.count("L") + 1 for path in paths(svg)] == [2, 2]
    assert len([a for a in Elements(svg).named("circle") if "mark" in str(a["class"])]) == 1


def test_later_is_further_right_and_more_is_further_up() -> None:
    path = paths(curves_svg([Line("x", [(1, 1.0), (2, 3.0), (5, 2.0)])], "s"))[0]
    xs, ys = zip(*[map(float, pair.split()) for pair in path[1:].split("L")], strict=True)
    assert xs[2] - xs[1] > 2 * (xs[1] - xs[0]) > 0
    assert ys[1] < ys[2] < ys[0]


def test_a_gap_at_either_end_leaves_its_steps_on_the_axis() -> None:
    assert re.findall(r">(\d+)</text>", str(curves_svg([Line("x", [(3, None), (4, 7.0), (9, None)])], "s")))[-2:] == [
        "3",
        "9",
    ]


def test_curves_are_told_apart_by_dashes_and_hovering_names_the_value() -> None:
    svg = curves_svg([Line("kept", [(1, 1), (2, 2)]), Line("all", [(1, 4), (2, 4)])], "s")
    styles = [str(a["class"]) for a in Elements(svg).named("path") if "series" in (a.get("class") or "")]
    assert styles == ["series f0 dash0", "series f1 dash1"]
    assert "kept, step 2: 2" in svg


def test_many_points_make_no_hover_places_and_nothing_to_draw_is_said() -> None:
    assert curves_svg([Line("x", [(i, float(i)) for i in range(5000)])], "s").count("<circle") == 0
    assert "No value is known." in curves_svg([Line("x", [(1, None)])], "s")


def test_equal_values_lie_inside_the_drawing() -> None:
    for value in (0.0, 3.0, -2.0, 1e-9):
        path = paths(curves_svg([Line("x", [(1, value), (2, value)])], "s"))[0]
        assert 10 <= float(path.split("L")[1].split()[1]) <= 142


def test_bars_are_as_high_as_their_counts() -> None:
    svg = bars_svg([Bar("0", 2, "two"), Bar("1", 0, "none"), Bar("2", 8, "eight")], "axis", "sum up")
    blocks = [float(str(a["height"])) for a in Elements(svg).named("rect") if "block" in str(a["class"])]
    assert blocks[1] == 0
    assert abs(blocks[2] - 4 * blocks[0]) < 0.2
    assert "eight" in svg
    assert Elements(svg).named("svg")[0]["aria-label"] == "sum up"


def test_bars_without_any_count_are_flat() -> None:
    assert "<svg" in bars_svg([Bar("0", 0, "none")], "axis", "s")
    assert "<svg" in bars_svg([], "axis", "s")


def test_a_stage_is_as_wide_as_its_share_of_the_widest() -> None:
    svg = stage_svg([("kept", "went on", 30), ("left", "lost", 10), ("left", "nothing", 0)], 80)
    widths = [float(str(a["width"])) + 2 for a in Elements(svg).named("rect")]
    assert widths == [375, 125]
    assert Elements(svg).named("svg")[0]["aria-label"] == "went on 30, lost 10"


def test_numbers_are_short_and_the_marks_of_an_axis_differ() -> None:
    assert [number(x) for x in (0, 0.25, -0.5, 12345.0, -12345.0, 0.0000328, -4e-4)] == [
        "0", "0.25", "-0.5", "12.3 k", "-12.3 k", "3.28e-5", "-4e-4",
    ]  # fmt: skip
    assert _numbers([0.99998, 0.99999, 1.0]) == ["0.99998", "0.99999", "1"]
    assert _numbers([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]


def test_no_name_can_become_markup() -> None:
    for bad in HOSTILE:
        drawn = [
            curves_svg([Line(bad, [(1, 1.0), (2, 2.0)])], bad),
            bars_svg([Bar(bad, 1, bad)], bad, bad),
            stage_svg([("kept", bad, 1)], 1),
        ]
        for svg in drawn:
            assert {tag for tag, _ in Elements(svg).found} <= {"svg", "g", "path", "text", "rect", "circle", "title"}
