"""A policy or a signal of a user: checked where it is handed in, saved, loaded, calibrated, compared; it may fail."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, ClassVar

import pytest

import stepwise as sw
from programs import route
from stepwise.config import Config
from stepwise.errors import ConfigError, PluginError
from stepwise.report.shell import caption
from stepwise.routing import Escalate, HandOver, Keep, Look, Never, Signalled, View, load_policy, save_policy
from stepwise.routing.calibration import calibrate
from stepwise.routing.calibration_result import Calibrated
from stepwise.routing.compare import compare
from stepwise.routing.deciding import decide
from stepwise.routing.saved import policy_from_config, policy_to_dict
from stepwise.routing.signals import as_signal
from tests.routing.lab_world import LabWorld
from tests.routing.scripted import STRONG, WEAK, one

HERE = __name__
P = sw.Problem("p", "How many?", "4")


class Late(sw.Policy):
    """The strong model writes every step from `start` on."""

    dial = "start"

    def __init__(self, start: float = 2):
        self.start = start

    def decide(self, view: View) -> Any:
        return Escalate() if view.index >= self.start else Keep()


class Length(sw.Signal):
    """Tokens of the draft."""

    worse = "high"
    evidence = "draft"

    def value(self, view: View) -> float:
        return view.tokens


class Moody(sw.Policy):
    """Raises at the third step of problems whose id ends in 1."""

    when = "after"

    def decide(self, view: View) -> Any:
        if view.index == 2 and view.problem.id.endswith("1"):
            raise ZeroDivisionError("no reason")
        return Keep()


@pytest.fixture
def world() -> LabWorld:
    return LabWorld(12, "train")


def router(world: LabWorld, policy: Any = None, **settings: Any) -> sw.StepRouter:
    return sw.StepRouter(world.weak, world.strong, world.scorer, policy, **settings)


def test_a_policy_needs_nothing_but_decide(world: LabWorld) -> None:
    trace = one(WEAK, STRONG, Late(1))
    assert [step.author for step in trace.steps][:3] == ["weak", "strong", "strong"]
    assert (Late().name, Late().point, Late().at(3).start, Late.when) == ("Late", 2, 3, "before")


def test_a_class_without_arguments_is_taken_and_an_import_path(
    world: LabWorld,
) -> None:
    assert isinstance(router(world, Late).policy, Late)
    assert isinstance(router(world, f"{HERE}:Late").policy, Late)


def broken(**attributes: Any) -> Any:
    """A class with `decide` and these attributes."""
    return type("Mine", (sw.Policy,), {"decide": lambda self, view: Keep(), **attributes})


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (lambda: broken(when="afer")(), r"policy: Mine\.when is 'afer'; did you mean 'after'\?"),
        (
            lambda: broken(need_scores=True)(),
            "Mine has 'need_scores', which no Policy has; did you mean 'needs_scores'",
        ),
        (lambda: broken(looks=("score",))(), r"Mine\.looks is 'score'; did you mean 'scores'\?"),
        (lambda: broken(dial="x")(), r"Mine\.dial is 'x'"),
        (
            lambda: broken(decide=lambda self: Keep())(),
            r"Mine\.decide must take one argument: def decide\(self, view\)",
        ),
        (
            lambda: type("Mine", (), {"decide": lambda self, view: Keep()})(),
            r"Mine is no Policy; write `class Mine\(Pol",
        ),
        (
            lambda: type("Mine", (sw.Policy,), {})(),
            r"Mine has no decide\(\), which every Policy must have; add `def dec",
        ),
        (lambda: type("Mine", (sw.Policy,), {"decid": 1})(), r"Mine has no decide\(\).*rename 'decid'"),
        (lambda: lambda view: Keep(), "function.; give a class that inherits from Policy"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_handed_in(world: LabWorld, policy: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        router(world, policy())
    with pytest.raises(ConfigError, match=says):
        router(world).with_policy(policy())


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (True, r"Mine\.decide\(\) returned True, which is no action; return Keep\(\)"),
        (None, "returned None, which is no action"),
        (Keep, r"Keep is the class, write Keep\(\)"),
        (Look("rating"), "looks for 'rating' which is not in its `looks`"),
    ],
)
def test_a_return_value_that_is_no_action_names_class_method_and_remedy(returned: Any, says: str) -> None:
    with pytest.raises(PluginError, match=says) as caught:
        one(WEAK, STRONG, broken(decide=lambda self, view: returned)())
    assert "at step 0 of problem 'p'" in str(caught.value)


def test_a_policy_that_raises_costs_its_problem_and_not_the_run(world: LabWorld, caplog: Any) -> None:
    told: list[sw.Trace] = []
    with caplog.at_level(logging.WARNING, "stepwise"):
        traces = router(world, Moody()).solve_all(world.problems, progress=False, on_trace=told.append)
    lost = [trace for trace in traces if trace.finish == "error"]
    assert {trace.problem.id for trace in lost} == {p.id for p in world.problems if p.id.endswith("1")}
    assert 0 < len(lost) < len(traces) == len(told)
    trace = lost[0]
    assert trace.note == (
        f"the policy failed at step 2 of problem {trace.problem.id!r}: "
        "Moody.decide() raised ZeroDivisionError: no reason"
    )
    assert len(trace.steps) == 2
    assert len(trace.abandoned) == 1  # what the draft cost is not lost
    assert f"{len(lost)} of {len(traces)} problems were lost" in caplog.text
    assert "Traceback" not in caplog.text


def test_lost_problems_are_counted_and_said_without_any_logging_set_up(world: LabWorld) -> None:
    (measured,) = results = compare(router(world, Moody()), Moody(), world.problems, progress=False)
    assert 0 < measured.failed == measured.row.failed < len(world.problems)
    assert str(results).splitlines()[1].split()[-1] == str(measured.failed)
    assert f"counted as wrong: {measured.failed} under Moody" in caption([measured.row])
    assert not [each for each in logging.getLogger("stepwise").handlers if isinstance(each, logging.NullHandler)]


def test_a_dial_that_is_no_argument_is_named() -> None:
    class BadDial(Late):
        dial = "begin"

    with pytest.raises(ConfigError, match=r"BadDial takes no 'begin'; it takes start"):
        BadDial().at(3)


def test_a_policy_that_fails_everywhere_is_an_error_with_its_cause(world: LabWorld) -> None:
    class Broken(sw.Policy):
        def decide(self, view: View) -> Any:
            return view.draft.text  # type: ignore[union-attr]

    with pytest.raises(PluginError, match=r"step 0 of problem .*Broken\.decide\(\) raised AttributeError") as caught:
        router(world, Broken()).solve_all(world.problems, progress=False)
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize("value", ["high", float("nan"), object()])
def test_a_signal_that_is_no_number_names_its_class(value: Any) -> None:
    signal = type("Odd", (sw.Signal,), {"evidence": "draft", "value": lambda self, view: value})()
    with pytest.raises(PluginError, match=r"Odd\.value\(\) returned .*return a float, or None"):
        one(WEAK, STRONG, Signalled(signal, 0.5))


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"worse": "hi"}, r"Odd\.worse is 'hi'; did you mean 'high'"),
        ({"when": "befor"}, r"Odd\.when is 'befor'; did you mean 'before'"),
        ({"evidence": "score"}, r"Odd\.evidence is 'score'; did you mean 'scores'"),
        ({"valu": 1, "value": sw.Signal.value}, r"Odd has no value\(\)"),
    ],
)
def test_a_wrong_signal_is_refused_where_it_is_handed_in(attributes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        as_signal(type("Odd", (sw.Signal,), {"value": lambda self, view: 0.0, **attributes}))


OWN = [Late(3), Signalled(Length(), 20.0), Signalled(as_signal(f"{HERE}:Length"), 20.0, "resample")]


@pytest.mark.parametrize("policy", OWN, ids=lambda policy: policy.family)
def test_parts_of_a_user_are_saved_and_loaded_where_their_module_is_allowed(policy: Any, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    save_policy(path, policy)
    again = load_policy(path, allow_import=[HERE]).policy
    assert policy_to_dict(again) == policy_to_dict(policy)
    with pytest.raises(ConfigError, match=f"in a saved file.*--allow-import {HERE}"):
        load_policy(path)


def test_a_policy_that_cannot_be_made_again_is_not_saved(tmp_path: Path) -> None:
    class Inner(Late):
        pass

    for policy, says in ((Inner(), "move it to a file of its own"), (Forgetful(1), "self.start = start")):
        with pytest.raises(ConfigError, match=says):
            save_policy(tmp_path / "policy.json", policy)
    with pytest.raises(ConfigError, match="Late cannot be saved"):
        save_policy(tmp_path / "policy.json", Late(start=Path("x")))  # type: ignore[arg-type]


class Forgetful(sw.Policy):
    """Keeps its argument under another name."""

    def __init__(self, start: int):
        self._first = start

    def decide(self, view: View) -> Any:
        return Keep()


def test_a_configuration_names_a_policy_or_a_signal_by_its_path(tmp_path: Path) -> None:
    overrides = [f"routing.policy={HERE}:Late", "routing.options.start=4"]
    policy = policy_from_config(Config.load(None, overrides).routing)
    assert isinstance(policy, Late)
    assert policy.start == 4
    file = tmp_path / "config.toml"
    options = f'{{ signal = "{HERE}:Length", threshold = 20.0 }}'
    file.write_text(f'[routing]\npolicy = "signal"\noptions = {options}\n')
    signalled = policy_from_config(Config.load(file).routing)
    assert policy_to_dict(signalled) == policy_to_dict(Signalled(Length(), 20.0))
    with pytest.raises(ConfigError, match="Late takes no 'strt'; did you mean 'start'"):
        policy_from_config(Config.load(None, [overrides[0], "routing.options.strt=4"]).routing)
    with pytest.raises(ConfigError, match=r"routing\.policy.*is 'treshold'; did you mean 'threshold'"):
        Config.load(None, ["routing.policy=treshold"])


def test_the_command_line_takes_a_policy_by_its_path(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    LabWorld(6, split="test").install(monkeypatch)
    start = ["--n", "6", "--set", f"routing.policy={HERE}:Late"]
    assert route.main(["--out", str(tmp_path / "out"), *start]) == 0
    assert route.main(["--out", str(tmp_path / "out"), *start]) == 0  # goes on: it is the same policy
    saved = ["--out", str(tmp_path / "two"), "--n", "6", "--policy", str(tmp_path / "out" / "policy.json")]
    assert route.main(saved) == 2
    assert f"--allow-import {HERE}" in capsys.readouterr().err
    assert route.main([*saved, "--allow-import", HERE, "--overwrite"]) == 0


def test_a_router_saves_and_loads_a_policy_of_a_user(world: LabWorld, tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    router(world, Late(5)).save(path)
    same = router(world, Late())
    same.load(path)  # its module is here already
    assert same.policy.start == 5
    other = router(world, Never())
    with pytest.raises(ConfigError, match="--allow-import"):
        other.load(path)
    other.load(path, allow_import=[HERE])
    assert isinstance(other.policy, Late)


def test_policies_of_a_user_are_compared_and_calibrated_like_ours(world: LabWorld, tmp_path: Path) -> None:
    arms = compare(router(world), [Never(), Late(2), Signalled(Length(), 20.0)], world.problems, progress=False)
    assert [arm.label for arm in arms] == ["Never (weak alone)", "Late 2.00", "Length 20.00"]
    assert arms[1].cost.strong_tokens > arms[0].cost.strong_tokens == 0
    made = calibrate(
        Late(), world.problems[:6], budget=40, router=router(world), measure_on=world.problems[6:], bounds=(0, 8),
        samples=50, progress=False,
    )  # fmt: skip
    made.save(tmp_path / "calibrated.json")
    assert Calibrated.load(tmp_path / "calibrated.json", allow_import=[HERE]).policy.point == made.policy.point
    with pytest.raises(ConfigError, match="--allow-import"):
        Calibrated.load(tmp_path / "calibrated.json")


def test_a_dataclass_is_a_policy_too(world: LabWorld) -> None:
    @dataclasses.dataclass
    class Every(sw.Policy):
        n: int = 2
        dial: ClassVar[str] = "n"

        def decide(self, view: View) -> Any:
            return HandOver() if view.index == self.n else Keep()

    assert router(world, Every(3)).policy.at(4) == Every(4)
    assert json.dumps(dataclasses.asdict(Every()))


def test_what_a_view_has_not_yet_is_said_where_a_policy_fails_over_it() -> None:
    class Early(sw.Policy):
        def decide(self, view: sw.View) -> sw.Keep:
            return sw.Keep(view.draft.text)  # type: ignore[union-attr]

    class Scored(sw.Policy):
        when = "after"

        def decide(self, view: sw.View) -> sw.Keep:
            return sw.Keep(str(view.scores[-1] < 0.5))  # type: ignore[operator]

    problem = sw.Problem("p", "1 + 1?")
    with pytest.raises(PluginError, match=r"view\.draft is None: set when = .after."):
        asyncio.run(decide(Early(), sw.View(problem)))
    with pytest.raises(PluginError, match=r"the steps are not scored; set needs_scores = True"):
        asyncio.run(decide(Scored(), sw.View(problem, (), sw.Step("So 2.", "weak"), scored=False)))


def test_a_scorer_that_is_none_is_refused_before_any_model_is_loaded() -> None:
    cfg = Config.load(None, ["scorer.kind=fractions:Fraction", "models.weak.model=llamacpp/nowhere.gguf"])
    with pytest.raises(ConfigError, match=r"scorer\.kind is 'fractions:Fraction': Fraction is no Scorer"):
        sw.StepRouter.from_config(cfg, policy=sw.Threshold(0.5))
