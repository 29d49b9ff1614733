"""Every error has one root, a stdlib parent, and survives pickling (workers and processes hand them on)."""

from __future__ import annotations

import inspect
import pickle

import pytest

from stepwise import errors
from stepwise.errors import StepwiseError

CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, Exception)]
STDLIB = (ValueError, RuntimeError, ImportError)


def test_the_module_has_errors():
    assert len(CLASSES) > 5


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_is_caught_by_the_root_and_keeps_its_message(cls):
    with pytest.raises(StepwiseError, match="weak is 'x'; use a path"):
        raise cls("weak is 'x'; use a path")


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not StepwiseError], ids=lambda cls: cls.__name__)
def test_every_error_is_also_the_stdlib_error_that_a_caller_expects(cls):
    assert issubclass(cls, StepwiseError)
    assert issubclass(cls, STDLIB)
    assert cls.__name__.endswith("Error")
    assert cls.__doc__


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling(cls):
    back = pickle.loads(pickle.dumps(cls("what, where, remedy")))
    assert type(back) is cls
    assert back.args == ("what, where, remedy",)
    assert str(back) == "what, where, remedy"


def test_a_capability_error_is_a_backend_error():
    assert issubclass(errors.CapabilityError, errors.BackendError)
