"""A user's own class by its import path: found, checked, and refused in words that say what to do."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from stepwise.errors import ConfigError
from stepwise.plugins import check_plugin, import_path, is_import_path, load_plugin, make_plugin

FILE = """
from tests.test_plugins import Shape

class Square(Shape):
    def __init__(self, side: float | None = 2):
        self.side = side
    def area(self):
        return self.side**2

class Half(Shape):
    pass

class Stranger:
    pass

unit = Square(1)

def perimeter(shape):
    return 4 * shape.side
"""


class Shape(ABC):
    @abstractmethod
    def area(self) -> float: ...


@dataclass
class Circle(Shape):
    radius: float = Field(gt=0)

    def area(self) -> float:
        return 3 * self.radius**2


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "shapes_of_mine.py").write_text(FILE)
    (tmp_path / "broken_of_mine.py").write_text("1 / 0")
    (tmp_path / "needy_of_mine.py").write_text("import nowhere_to_be_seen")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield "shapes_of_mine"
    sys.path[:] = path
    for name in [name for name in sys.modules if name.endswith("_of_mine")]:
        del sys.modules[name]


def test_a_class_an_object_and_a_function_are_found_in_the_current_directory(module: str) -> None:
    square = load_plugin(f"{module}:Square", Shape, field="shape")
    assert make_plugin(square, {"side": 3}, field="shape").area() == 9
    assert import_path(square) == import_path(square()) == f"{module}:Square"
    assert load_plugin(f"{module}:unit", Shape, field="shape").area() == 1
    assert load_plugin(f"{module}:perimeter", Callable, field="shape")(square()) == 8


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("shapes_of_mine.Square", "shape is 'shapes_of_mine.Square'; write an import path as"),
        ("shapes_of_yours:Square", "there is no module 'shapes_of_yours' in .* run from the directory that holds it"),
        ("shapes_of_mine.inner:Square", "there is no module 'shapes_of_mine.inner'"),
        ("shapes_of_mine.py:Square", r"write the module without \.py, as 'shapes_of_mine:Square'"),
        ("broken_of_mine:Square", "importing broken_of_mine failed, ZeroDivisionError: division by zero"),
        ("needy_of_mine:Square", "needy_of_mine imports 'nowhere_to_be_seen', which is not installed"),
        ("shapes_of_mine:Sqare", "shapes_of_mine has no 'Sqare'; did you mean 'Square'"),
        ("shapes_of_mine:Stranger", r"Stranger is no Shape; write `class Stranger\(Shape\)`"),
        ("shapes_of_mine:Half", r"Half has no area\(\), which every Shape must have; add `def area\(self\)"),
    ],
)
def test_what_cannot_be_used_is_refused_with_field_value_and_remedy(module: str, path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_plugin(path, Shape, field="shape")


def test_a_path_from_a_saved_file_is_imported_only_where_its_module_is_allowed(module: str) -> None:
    with pytest.raises(ConfigError, match=f"in a saved file.*--allow-import {module}"):
        load_plugin(f"{module}:Square", Shape, field="shape", allowed=())
    assert module not in sys.modules
    assert load_plugin(f"{module}:Square", Shape, field="shape", allowed=[module])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"radios": 1}, "Circle takes no 'radios'; did you mean 'radius'"),
        ({}, "Circle needs radius"),
        ({"radius": -1}, r"shape: Circle: radius is -1: input should be greater than 0$"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_their_names(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_plugin(Circle, options, field="shape")


def test_a_constructor_that_checks_nothing_has_its_types_checked(module: str) -> None:
    square = load_plugin(f"{module}:Square", Shape, field="shape")
    with pytest.raises(ConfigError, match=r"shape: Square: side is 'wide'; its __init__ wants float \| None"):
        make_plugin(square, {"side": "wide"}, field="shape")
    assert make_plugin(square, {"side": None}, field="shape").side is None


def test_an_object_takes_no_options_and_is_checked_like_a_class(module: str) -> None:
    unit = Circle(1)
    check_plugin(unit, Shape, field="shape")
    assert make_plugin(unit, {}, field="shape") is unit
    with pytest.raises(ConfigError, match="an object already, so it takes no radius"):
        make_plugin(unit, {"radius": 2}, field="shape")
    with pytest.raises(ConfigError, match=r"shape is 3 \(int\); give a class that inherits from Shape"):
        check_plugin(3, Shape, field="shape")


def test_a_class_inside_a_function_has_no_path() -> None:
    class Inner(Circle):
        pass

    with pytest.raises(ConfigError, match="move it to a file of its own"):
        import_path(Inner)


@pytest.mark.parametrize("text", ["threshold", "a.b", "C:/models/x", "llamacpp/lab-weak", "a:b:c", ":B", "a:"])
def test_other_names_are_no_import_paths(text: str) -> None:
    assert not is_import_path(text)
