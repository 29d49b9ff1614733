"""Sinks against stand-ins of their packages (put into sys.modules), which take exactly the calls that are made.

The packages themselves are no dependency of the tests; nothing here reaches a network.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stepwise.errors import ConfigError, MissingDependencyError
from stepwise.training.sinks import NAMES, STATE, _flat, _Sinks, numbers, open_sinks

pytest.importorskip("accelerate")  # before the stand-ins: it looks for packages when it is imported
CONFIG = {"seed": 3, "rl": {"credit": {"scheme": "vppo"}, "loss": "dapo"}, "prompt": {"system": "x" * 900}}


class Calls(list[tuple[Any, ...]]):
    """What the stand-ins were asked for, in order."""

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self if call[0] == name]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls()

    class Writer:
        def __init__(self, log_dir: str, *, purge_step: int):
            made.append(("tb.open", Path(log_dir).name, purge_step))

        def add_text(self, tag: str, text: str, global_step: int) -> None:
            made.append(("tb.text", tag, text, global_step))

        def add_scalar(self, tag: str, value: float, global_step: int) -> None:
            made.append(("tb.scalar", tag, value, global_step))

        def flush(self) -> None:
            made.append(("tb.flush",))

        def close(self) -> None:
            made.append(("tb.close",))

    class WandbRun:
        def log(self, data: dict[str, float], *, step: int) -> None:
            made.append(("wandb.log", data, step))

        def finish(self, *, exit_code: int) -> None:
            made.append(("wandb.finish", exit_code))

    def wandb_init(*, project, name, id, resume, dir, config, reinit) -> WandbRun:
        made.append(("wandb.init", project, name, id, resume, config, reinit))
        return WandbRun()

    def search_experiments(filter_string: str) -> list[Any]:
        return [SimpleNamespace(experiment_id="7")] if "'there'" in filter_string else []

    def create_experiment(name: str, **_: Any) -> str:
        made.append(("mlflow.experiment", name))
        return "9"

    def start_run(*, run_id: str | None, experiment_id: str, run_name: str, **_: Any) -> Any:
        made.append(("mlflow.run", experiment_id, run_name, run_id))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "abc"))

    class TrackioRun:
        def log(self, metrics: dict[str, float], *, step: int) -> None:
            made.append(("trackio.log", metrics, step))

        def finish(self) -> None:
            made.append(("trackio.finish",))

    def trackio_init(*, project, name, config, resume, embed) -> TrackioRun:
        made.append(("trackio.init", project, name, config, resume))
        return TrackioRun()

    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=Writer)
    stand_in(monkeypatch, "wandb", init=wandb_init)
    most = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    stand_in(
        monkeypatch, "mlflow", search_experiments=search_experiments, create_experiment=create_experiment,
        start_run=start_run, utils=SimpleNamespace(validation=most),
        log_metrics=lambda metrics, step: made.append(("mlflow.metrics", metrics, step)),
        log_params=lambda params: made.append(("mlflow.params", params)),
        end_run=lambda status="FINISHED": made.append(("mlflow.end", status)),
    )  # fmt: skip
    stand_in(monkeypatch, "trackio", init=trackio_init)
    return made


def test_every_sink_gets_the_numbers_of_every_step(calls: Calls, tmp_path: Path) -> None:
    with open_sinks(NAMES, tmp_path / "first", CONFIG) as sinks:
        sinks.log(1, {"step": 1, "reward": 0.5, "kl": None, "note": "text", "masked": 0})
        sinks.log(2, {"step": 2, "reward": 0.75, "kl": 0.1, "masked": 2})
    first, second = {"reward": 0.5, "masked": 0}, {"reward": 0.75, "kl": 0.1, "masked": 2}
    assert calls.named("wandb.log") == [(first, 1), (second, 2)]
    assert calls.named("trackio.log") == [(first, 1), (second, 2)]
    assert {(tag, step): value for tag, value, step in calls.named("tb.scalar")} == {
        **{(k, 1): v for k, v in first.items()},
        **{(k, 2): v for k, v in second.items()},
    }
    assert calls.named("mlflow.metrics") == [(first, 1), (second, 2)]


def test_every_sink_is_shown_the_configuration(calls: Calls, tmp_path: Path) -> None:
    with open_sinks(NAMES, tmp_path / "first", CONFIG) as sinks:
        sinks.log(1, {"loss": 1.0})
    assert calls.named("wandb.init")[0][4] == CONFIG
    assert calls.named("trackio.init")[0][2]["rl.credit.scheme"] == "vppo"
    assert "rl.loss = dapo" in calls.named("tb.text")[0][1]
    settings = {name: value for (params,) in calls.named("mlflow.params") for name, value in params.items()}
    assert settings["seed"] == "3"
    assert len(settings["prompt.system"]) == 500


def test_a_run_that_is_gone_on_with_stays_one_run(calls: Calls, tmp_path: Path) -> None:
    for step in (1, 5):
        with open_sinks(NAMES, tmp_path / "first", CONFIG, step) as sinks:
            sinks.log(step, {"loss": 1.0})
    ids, names = [c[2] for c in calls.named("wandb.init")], [c[1] for c in calls.named("trackio.init")]
    assert ids[0] == ids[1]
    assert names[0] == names[1]
    assert names[0].startswith("first-")
    assert {c[3] for c in calls.named("wandb.init")} == {"allow"}
    assert [c[2] for c in calls.named("mlflow.run")] == [None, "abc"]
    assert len(calls.named("mlflow.params")) == 1
    assert calls.named("tb.open") == [("tensorboard", 1), ("tensorboard", 5)]  # from 5 on, what was there is hidden
    assert set(json.loads((tmp_path / "first" / STATE).read_text())) == {"wandb", "mlflow", "trackio"}


def test_another_directory_of_the_same_name_is_another_run(calls: Calls, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        open_sinks(("wandb", "trackio"), tmp_path / parent / "run", CONFIG).close()
    assert len({c[2] for c in calls.named("wandb.init")}) == 2
    assert len({c[1] for c in calls.named("trackio.init")}) == 2


def test_the_experiment_of_mlflow_is_made_once(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_sinks(("mlflow",), tmp_path / "1", {}).close()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "there")
    open_sinks(("mlflow",), tmp_path / "2", {}).close()
    assert calls.named("mlflow.experiment") == [("stepwise",)]
    assert [c[0] for c in calls.named("mlflow.run")] == ["9", "7"]


@pytest.mark.parametrize(("failed", "code", "status"), [(False, 0, "FINISHED"), (True, 1, "FAILED")])
def test_how_the_run_ended_is_told(calls: Calls, tmp_path: Path, failed: bool, code: int, status: str) -> None:
    sinks = open_sinks(NAMES, tmp_path, {})
    if failed:
        with pytest.raises(KeyboardInterrupt), sinks:
            raise KeyboardInterrupt
    else:
        with sinks:
            sinks.log(1, {"loss": 1.0})
    sinks.close()  # does nothing any more
    assert calls.named("wandb.finish") == [(code,)]
    assert calls.named("mlflow.end") == [(status,)]
    assert len(calls.named("trackio.finish")) == 1
    assert len(calls.named("tb.close")) == 1


def test_without_names_nothing_is_imported_and_nothing_is_written(calls: Calls, tmp_path: Path) -> None:
    with open_sinks((), tmp_path / "new", CONFIG) as sinks:
        sinks.log(1, {"loss": 1.0})
    assert calls == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_named_with_its_pip_line(
    name: str, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    with pytest.raises(MissingDependencyError, match=f"pip install {name}"):
        open_sinks((name,), tmp_path, {})


def test_sinks_opened_before_one_that_is_missing_are_closed(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError):
        open_sinks(("wandb", "mlflow"), tmp_path, {})
    assert calls.named("wandb.finish") == [(1,)]


def test_an_unknown_name_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sinks is 'tensorbord'; did you mean 'tensorboard'\? it is one of"):
        open_sinks(("tensorbord",), tmp_path, {})


def test_a_sink_that_cannot_be_opened_stops_before_the_work_and_hides_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**settings: Any) -> None:
        raise RuntimeError("no login with key very-private-value")

    monkeypatch.setenv("WANDB_API_KEY", "very-private-value")
    stand_in(monkeypatch, "wandb", init=init)
    with pytest.raises(ConfigError, match=r"RuntimeError: no login with key \[secret\]"):
        open_sinks(("wandb",), tmp_path, {})


class Failing:
    """Fails at the steps given, and at closing where told to."""

    def __init__(self, steps: set[int], close: bool = False):
        self.steps, self.broken, self.seen = steps, close, []

    def log(self, values: Any, step: int) -> None:
        self.seen.append(step)
        if step in self.steps:
            raise ConnectionError("gone")

    def finish(self) -> None:
        if self.broken:
            raise TimeoutError("gone")


def test_a_failing_sink_is_told_once_stops_nothing_and_is_left_out_in_the_end() -> None:
    bad, good = Failing({2, 4, 5, 6}, close=True), Failing(set())
    sinks = _Sinks({"trackio": bad, "tensorboard": good})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(1, 9):
            sinks.log(step, {"loss": 1.0})
        sinks.close()
    assert len(told) == 1
    assert "'trackio' failed (ConnectionError: gone); training goes on" in str(told[0].message)
    assert bad.seen == [1, 2, 3, 4, 5, 6]  # one failure is forgiven, three in a row are not
    assert good.seen == list(range(1, 9))


def test_a_failure_at_closing_is_told_too() -> None:
    with pytest.warns(UserWarning, match="TimeoutError"):
        _Sinks({"trackio": Failing(set(), close=True)}).close()


def test_a_sink_that_works_says_nothing(calls: Calls, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with open_sinks(NAMES, tmp_path, CONFIG) as sinks:
            sinks.log(1, {"loss": 1.0})
    assert not said
    assert calls


def test_what_is_no_finite_number_is_left_out_and_zero_is_not() -> None:
    row = {"step": 4, "a": 0, "b": 0.0, "c": None, "d": float("nan"), "e": True, "f": "1", "g": float("inf")}
    assert numbers(row) == {"a": 0, "b": 0.0}


def test_nested_settings_become_dotted_names() -> None:
    assert _flat({"a": {"b": {"c": None}, "d": "x"}, "e": [1, 2]}) == {"a.b.c": "null", "a.d": "x", "e": "[1, 2]"}
