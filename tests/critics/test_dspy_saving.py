"""Saving and loading: every module and setting, alone and inside programs, with its models, here and elsewhere."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import dspy
import pytest

import stepwise as sw
from stepwise import ErrorLocalizer, InterventionProposer, StepJudge, StepRouter, routing
from stepwise.config import ScorerConfig
from stepwise.critics.feedback import first_error_metric
from stepwise.critics.parameters import Predictor
from stepwise.critics.signatures import VerifyAttempt
from stepwise.errors import ConfigError, DataError
from stepwise.models.shared import close_engines
from tests.critics.critic import judged, proposed, reviewed, verified, wanted
from tests.critics.programs import Panel, Repair
from tests.critics.sums import imitator, sums
from tests.scripted_lm import Messages, ScriptedLM

EXACT = {"context": 2048, "sequences": 4, "kv_type": "f32", "flash_attention": False, "temperature": 0.0}
HALF = ScorerConfig(kind="constant", value=0.4)
STEPS = ["There are 41.", "41 - 4 = 39.", "So 39."]
ATTEMPT = {"problem": "How many are left?", "steps": STEPS}
FOUND = {**ATTEMPT, "first_error": 1}


def reply(messages: Messages) -> str:
    """Compact replies to every signature of the library."""
    match wanted(messages[-1]["content"]):
        case ["checks", *_]:
            return verified(1)
        case ["reason", "right"]:
            return judged(len(messages[-1]["content"]) % 2 == 0)
        case ["location", "content"]:
            return proposed(1, "41 - 4 = 37.")
        case ["solution"]:
            return "#solution: 41 - 4 = 37"
        case _:
            return reviewed(insight=True, advice="Name the idea.")


def used(program: Any, inputs: dict[str, Any]) -> tuple[Any, list[Messages]]:
    """The prediction and all that was asked, with the model that DSPy is configured with."""
    lm = ScriptedLM(reply)
    with dspy.context(lm=lm):
        return program(**inputs), lm.calls


SETTINGS: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    (ErrorLocalizer, {"temperature": 0.3, "max_chars": 100}, ATTEMPT),
    (ErrorLocalizer, {"method": "vote", "samples": 3, "temperature": 0.7}, {**ATTEMPT, "reference": "37"}),
    (ErrorLocalizer, {"method": "bisect", "adapter": "compact", "bare": True}, ATTEMPT),
    (ErrorLocalizer, {"method": "scorer", "scorer": HALF, "threshold": 0.3}, ATTEMPT),
    (StepJudge, {"max_chars": 60}, ATTEMPT),
    (InterventionProposer, {"candidates": 2, "temperature": 0.9, "revisions": 2}, {**FOUND, "answer": "37"}),
    (InterventionProposer, {"solve_first": False, "revisions": 0}, FOUND),
]  # fmt: skip


@pytest.mark.parametrize(("make", "settings", "inputs"), SETTINGS)
def test_a_module_loaded_asks_and_answers_as_the_one_that_was_saved(
    make: Any, settings: dict[str, Any], inputs: dict[str, Any], tmp_path: Path
) -> None:
    saved = make(**settings)
    for predictor in saved.predictors():
        predictor.signature = predictor.signature.with_instructions(
            f"Mind the units. {predictor.signature.instructions}"
        )
    saved.save(tmp_path / "module.json")
    alike = {name: settings[name] for name in ("method", "scorer", "solve_first", "revisions") if name in settings}
    loaded = make(**alike)
    loaded.load(tmp_path / "module.json")
    assert loaded.settings.values == saved.settings.values
    assert used(loaded, inputs) == used(saved, inputs)
    assert loaded.dump_state() == saved.dump_state()


@pytest.mark.parametrize("form", ["compact", "chat", "json"])
def test_the_format_is_saved_with_the_module(form: Any, tmp_path: Path) -> None:
    StepJudge(adapter=form).save(tmp_path / "judge.json")
    loaded = StepJudge()
    loaded.load(tmp_path / "judge.json")
    replies = {
        "compact": judged(True),
        "chat": "[[ ## reason ## ]]\nbecause\n\n[[ ## right ## ]]\ntrue\n\n[[ ## completed ## ]]",
        "json": '{"reason": "because", "right": true}',
    }
    with dspy.context(lm=ScriptedLM([replies[form]])):
        assert loaded(**ATTEMPT).right is True


@pytest.mark.parametrize(
    ("saved", "other", "message"),
    [
        (ErrorLocalizer(method="bisect"), ErrorLocalizer(), "saved with method = 'bisect', the module has 'one_pass'"),
        (InterventionProposer(solve_first=True), InterventionProposer(), "solve_first = True"),
        (
            ErrorLocalizer(method="scorer", scorer=HALF),
            ErrorLocalizer(method="scorer", scorer=ScorerConfig(kind="constant", value=0.6)),
            "scorer",
        ),
    ],
)
def test_a_state_of_another_kind_of_module_is_refused_and_changes_nothing(
    saved: Any, other: Any, message: str, tmp_path: Path
) -> None:
    before = other.dump_state()
    with pytest.raises(ConfigError, match=message):
        other.load_state(saved.dump_state())
    assert other.dump_state() == before


def test_modules_inside_a_program_of_the_user_are_saved_with_it(tmp_path: Path) -> None:
    saved, loaded = Panel("compact"), Panel()
    saved.judges[1].settings.values["max_chars"] = 30
    saved.by_name["vote"].settings.values["temperature"] = 0.4
    saved.repair.propose.propose.signature = saved.repair.propose.propose.signature.with_instructions("Be short.")
    saved.save(tmp_path / "panel.json")
    loaded.load(tmp_path / "panel.json")
    assert loaded.dump_state() == saved.dump_state()
    assert used(loaded, ATTEMPT) == used(saved, ATTEMPT)
    assert used(Panel(), ATTEMPT)[1] != used(saved, ATTEMPT)[1]


@pytest.mark.parametrize("method", ["one_pass", "bisect"])
def test_a_compiled_program_loaded_shows_the_same_examples(method: Any, tmp_path: Path) -> None:
    train, test = sums([0, 0, 1, None]), sums([1, 2, None], seed=9)
    with dspy.context(lm=imitator()):
        optimizer = dspy.BootstrapFewShot(metric=first_error_metric, max_bootstrapped_demos=1, max_labeled_demos=2)
        alone = optimizer.compile(ErrorLocalizer(method=method), trainset=train)
        within = optimizer.compile(Repair(method=method), trainset=train)
    for name, saved, loaded in [("a", alone, ErrorLocalizer(method=method)), ("w", within, Repair(method=method))]:
        saved.save(tmp_path / f"{name}.json")
        loaded.load(tmp_path / f"{name}.json")
        assert len(loaded.predictors()[0].demos) == 2
        for example in test:
            asked = []
            for program in (saved, loaded):
                with dspy.context(lm=(lm := imitator())):
                    asked.append(((program.find if name == "w" else program)(**example.inputs()), lm.calls))
            assert asked[0] == asked[1]
            assert asked[0][0].first_error == example.first_error


def test_copies_that_dspy_makes_share_scorer_and_adapter_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    class Unique(sw.Scorer):
        def score(self, problem: Any, steps: Any) -> list[float]:
            return [1.0 for _ in steps]

        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("a model in memory is not copied")

    scorer = Unique()
    localizer = ErrorLocalizer(method="scorer", scorer=scorer)
    assert localizer.deepcopy().scorer is scorer
    judge = StepJudge(adapter=(adapter := dspy.ChatAdapter()))
    copied = judge.deepcopy()
    assert copied._adapter is adapter
    assert copied.settings is not judge.settings
    assert copied.judge is not judge.judge
    assert "Failed to deep copy" not in capfd.readouterr().err


@pytest.fixture
def _no_engine_is_left() -> Iterator[None]:
    yield
    close_engines()


def local(path: Path, **settings: Any) -> Any:
    return sw.lm(f"llamacpp/{path}", **{**EXACT, **settings}, max_tokens=900, cache=False)


@pytest.mark.usefixtures("_no_engine_is_left")
def test_two_models_of_one_program_are_saved_and_found_again(tiny_gguf_path: Path, tmp_path: Path) -> None:
    from tests.tiny_models import tiny_gguf

    other = tiny_gguf(tmp_path / "other", seed=7)
    saved, loaded = Repair(local(tiny_gguf_path), local(other)), Repair()
    saved.save(tmp_path / "program.json")
    names = [predictor.lm.model for predictor in saved.predictors()]
    assert len({name.rpartition("@")[2] for name in names}) == 2
    found = saved(**ATTEMPT)
    close_engines()
    loaded.load(tmp_path / "program.json")
    assert [predictor.lm.model for predictor in loaded.predictors()] == names
    assert [predictor.lm.kwargs for predictor in loaded.predictors()] == [p.lm.kwargs for p in saved.predictors()]
    assert loaded(**ATTEMPT) == found
    assert found.failure is None


def test_an_address_is_loaded_from_a_trusted_file_only_and_a_key_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "value-of-the-key")
    where = {"api_base": "http://localhost:1/v1", "api_key_env": "SOME_KEY"}
    saved = Repair(sw.lm("openai/critic", **where), sw.lm("openai/author", temperature=0.3, **where))
    saved.save(tmp_path / "program.json")
    assert "value-of-the-key" not in (tmp_path / "program.json").read_text()
    for trusted in (False, True):
        loaded = Repair()
        loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=trusted)
        models = [predictor.lm for predictor in loaded.predictors()]
        assert [lm.model for lm in models] == ["openai/critic", "openai/author"]
        assert [lm.kwargs.get("api_base") for lm in models] == [where["api_base"] if trusted else None] * 2
        assert models[1].kwargs["temperature"] == 0.3
        assert {lm.engine for lm in models} == {"litellm"}


OWN = """
import json, sys
import dspy

class Own(dspy.Module):
    def __init__(self):
        super().__init__()
        from stepwise import StepJudge
        self.parts = [StepJudge()]

    def forward(self, **attempt):
        return self.parts[0](**attempt)

if __name__ == "__main__":
    program = Own()
    program.load(sys.argv[1])
    found = program(**json.loads(sys.argv[2]))
    asked = program.predictors()[0].lm.history[-1]["kwargs"]["response_format"]
    print(json.dumps([found.failure, found.right, found.reason, asked["type"]]))
"""

# One process, since the imports are what takes the time: the programs saved whole first, while nothing of ours is
# imported but what their files name, then the user's own script as `python own.py` would run it.
ELSEWHERE = """
import json, runpy, sys
import dspy

for folder, inputs in json.loads(sys.argv[1]):
    found = dspy.load(folder, allow_pickle=True)(**inputs)
    trace = getattr(found, "trace", None)
    print(json.dumps([str(getattr(found, "failure", None)), found.first_error if trace is None else trace.text]))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PROBLEM = sw.lab.generate("test", 1)[0].problem.question


class Saved(NamedTuple):
    """Programs that are still loaded here, what they say, and the lines that a process with their files alone wrote."""

    critics: list[ErrorLocalizer]
    found: list[dspy.Prediction]
    router: StepRouter
    text: str
    judged: dspy.Prediction
    elsewhere: list[Any]


@pytest.fixture(scope="module")
def saved(tiny_gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("saved")
    forms = ("json", "compact")
    critics = [ErrorLocalizer(local(tiny_gguf_path, context=4096), adapter=form) for form in forms]
    predictor = critics[1].predictors()[0]  # its signature becomes a class that no module has
    predictor.signature = predictor.signature.with_instructions("Mind the units.")
    found = [critic(**ATTEMPT) for critic in critics]
    own = dspy.Module()
    own.parts = [StepJudge(local(tiny_gguf_path, context=4096), adapter="json")]
    own.save(folder / "own.json")
    (folder / "own.py").write_text(OWN)
    names, scorer = ("llamacpp/lab-weak", "llamacpp/lab-strong"), ScorerConfig(kind="constant", value=0.4)
    with StepRouter(*names, scorer, routing.Threshold(0.61), seed=4, max_steps=3) as router:
        whole: list[tuple[str, dict[str, Any]]] = []
        for number, (program, inputs) in enumerate([(router, {"problem": PROBLEM}), *((c, ATTEMPT) for c in critics)]):
            whole.append((str(folder / f"whole {number}"), inputs))
            program.save(whole[-1][0], save_program=True)
        (folder / "elsewhere.py").write_text(ELSEWHERE)
        command = [str(folder / "elsewhere.py"), json.dumps(whole), str(folder / "own.py"), str(folder / "own.json")]
        run = subprocess.run(
            [sys.executable, *command, json.dumps(ATTEMPT)], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-2000:]
        lines = [json.loads(line) for line in run.stdout.splitlines()[-4:]]
        yield Saved(critics, found, router, router(problem=PROBLEM).trace.text, own.parts[0](**ATTEMPT), lines)
    close_engines()


def test_another_process_finds_the_model_of_a_module_inside_a_users_program(saved: Saved) -> None:
    # a schema is sent, not a plea for JSON: the model is known for what it is
    assert saved.elsewhere[3] == [None, saved.judged.right, saved.judged.reason, "json_schema"]


def test_a_router_saved_whole_routes_as_before_in_another_process(saved: Saved) -> None:
    router = saved.router
    assert saved.elsewhere[0] == ["None", saved.text]
    again = pickle.loads(cloudpickle.dumps(router))
    with again:
        assert (again.policy, again.settings, again.prices) == (router.policy, router.settings, router.prices)
        assert again.models.weak is not router.models.weak
        assert again.state.module is again
    assert router(problem=PROBLEM).trace.text == saved.text  # the original's models are still open


def test_a_critic_saved_whole_says_the_same_in_another_process(saved: Saved) -> None:
    expected = [[str(result.failure), result.first_error] for result in saved.found]
    assert saved.elsewhere[1:3] == expected
    for critic, result in zip(saved.critics, saved.found, strict=True):
        for loaded in (pickle.loads(pickle.dumps(critic)), critic.deepcopy()):
            assert loaded.dump_state() == critic.dump_state()
            assert loaded(**ATTEMPT).first_error == result.first_error


def test_a_scorer_is_loaded_anew_and_one_that_was_handed_in_loaded_is_refused() -> None:
    critic = ErrorLocalizer(method="scorer", scorer=HALF)
    loaded = pickle.loads(pickle.dumps(critic))
    assert loaded.scorer.name == critic.scorer.name
    assert loaded(**ATTEMPT).first_error == critic(**ATTEMPT).first_error
    with sw.load_backend("llamacpp/lab-weak") as weak:
        router = StepRouter(weak, weak, policy=routing.Never())
        with pytest.raises(ConfigError, match=r"weak: a model that is loaded cannot be saved.*name"):
            pickle.dumps(router)


def test_a_saved_predictor_holds_no_code_of_its_own() -> None:
    predictor = Predictor(VerifyAttempt.with_instructions("Find the first error."))
    state = predictor.__getstate__()
    name, instructions, fields = state["signature"]
    assert (name, instructions) == (predictor.signature.__name__, "Find the first error.")
    assert list(fields) == list(VerifyAttempt.fields)
    loaded = pickle.loads(pickle.dumps(predictor))
    assert loaded.signature.equals(predictor.signature)
    ran = list[str]()

    class Bomb:
        def __reduce__(self) -> Any:
            return ran.append, ("run",)

    with pytest.raises(DataError, match="by an earlier version; make the program anew and load its state"):
        Predictor(VerifyAttempt).__setstate__({**state, "signature": cloudpickle.dumps(Bomb())})
    assert ran == []
