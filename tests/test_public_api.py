import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import stepwise as sw

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "dspy", "litellm", "llama_cpp", "sympy", "numpy", "pydantic", "rich")


def parameters(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]


def test_importing_the_library_imports_nothing_heavy() -> None:
    script = f"import sys, stepwise; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_names_for_data_and_configuration_load_no_model_library() -> None:
    heavy = [name for name in HEAVY if name not in ("numpy", "pydantic", "rich")]
    script = (
        "import sys, stepwise as sw; sw.Config.lab(); sw.Problem('a', 'b'); sw.Ledger(); sw.split_steps('a');"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sw.__all__)
def test_every_public_name_resolves_and_is_described(name: str) -> None:
    assert name in dir(sw)
    value = getattr(sw, name)
    assert inspect.getdoc(value), f"{name} has no docstring"


def test_lazy_names_and_the_list_of_names_are_the_same() -> None:
    assert {*sw._MODULE_OF, *sw._SUBPACKAGES} == set(sw.__all__)
    assert sw.__all__ == sorted(sw.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sw.nothing  # noqa: B018


def test_the_small_types_keep_their_fields_in_order() -> None:
    assert parameters(sw.Problem) == ["id", "question", "answer", "reference", "source", "metadata"]
    assert parameters(sw.Step)[:4] == ["text", "author", "score", "usage"]
    assert parameters(sw.Trace)[:3] == ["problem", "steps", "finish"]
    assert parameters(sw.Intervention) == ["location", "content"]
    assert parameters(sw.Localization)[0] == "first_error"


def test_functions_keep_their_parameters() -> None:
    assert parameters(sw.split_steps) == ["text", "mode"]
    assert parameters(sw.extract_answer) == ["text"]
    assert parameters(sw.grade)[:2] == ["prediction", "gold"]
    assert parameters(sw.Config.load) == ["path", "overrides"]
    assert parameters(sw.Config.lab) == []
    assert parameters(sw.load_backend)[0] == "spec"
    assert parameters(sw.load_scorer)[0] == "spec"
    assert parameters(sw.Scorer.score) == ["problem", "steps"]
    assert parameters(sw.Backend.continue_solutions) == ["requests"]


def test_the_router_takes_models_scorer_and_policy_and_builds_from_a_configuration() -> None:
    assert {"weak", "strong", "scorer", "policy"} <= set(parameters(sw.StepRouter.__init__))
    assert parameters(sw.StepRouter.from_config)[0] in ("config", "cfg")
    assert parameters(sw.StepRouter.solve_all)[0] == "problems"


def test_a_verdict_has_the_seven_agreed_values() -> None:
    names = ["CORRECT", "WRONG", "NO_ANSWER", "UNPARSEABLE_PREDICTION", "UNPARSEABLE_GOLD", "TIMEOUT", "ERROR"]
    assert [verdict.name for verdict in sw.Verdict] == names


def test_each_error_is_ours_and_the_stdlib_one_a_caller_expects() -> None:
    pairs = {
        sw.ConfigError: ValueError,
        sw.DataError: ValueError,
        sw.BackendError: RuntimeError,
        sw.CapabilityError: sw.BackendError,
        sw.ScorerError: ValueError,
        sw.ExportError: ValueError,
        sw.BudgetExceededError: RuntimeError,
        sw.GradingError: RuntimeError,
        sw.MissingDependencyError: ImportError,
    }
    for error, base in pairs.items():
        assert issubclass(error, sw.StepwiseError)
        assert issubclass(error, base)
