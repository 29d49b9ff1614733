"""StepRouter as a DSPy module: prediction, threads, usage, callbacks, saving, and taking up where it stopped."""

from __future__ import annotations

import asyncio
import copy
import io
import subprocess
import sys
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from stepwise.config import BudgetConfig, Config, SamplingConfig
from stepwise.errors import ConfigError, DataError
from stepwise.models.callbacks import HISTORY
from stepwise.prompt import SolvePrompt
from stepwise.routing import Always, Never, Random, RoutingInterrupted, StepRouter, Threshold
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Trace, Usage, as_problem
from tests.fakes import ScriptedBackend, ScriptedScorer
from tests.routing import world


def router(policy: Any = None, **settings: Any) -> StepRouter:
    made = world.models()
    return StepRouter(made.weak, made.strong, made.scorer, policy, **settings)


def test_importing_stepwise_and_the_policies_loads_no_heavy_package() -> None:
    code = (
        "import sys, stepwise; from stepwise.routing import Threshold, Always, route_all;"
        "from stepwise import load_scorer;"
        "import stepwise.routing.metrics, stepwise.routing.compare;"
        "print([m for m in ('dspy', 'torch', 'litellm', 'llama_cpp', 'sympy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_prediction_has_the_answer_and_the_trace() -> None:
    made = router()
    prediction = made(question="How many apples?")
    assert isinstance(made, dspy.Module)
    assert isinstance(prediction.trace, Trace)
    assert prediction.answer == prediction.trace.answer in ("7", "8")
    assert prediction.trace.problem == as_problem("How many apples?")
    assert made(problem=Problem("x", "How many?")).trace.problem.id == "x"
    assert asyncio.run(router().acall(question="How many apples?")).trace == prediction.trace
    with pytest.raises(DataError, match="one of the two"):
        made()


def test_evaluate_with_four_threads_gives_what_one_lockstep_batch_gives() -> None:
    problems = world.problems(24)
    batch = router().solve_all(problems, progress=False)
    devset = [dspy.Example(problem=p, answer=p.answer).with_inputs("problem") for p in problems]
    threaded = router()
    seen: dict[str, Trace] = {}

    def metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        seen[example.problem.id] = prediction.trace
        return bool(prediction.answer == example.answer)

    result = dspy.Evaluate(devset=devset, metric=metric, num_threads=4, display_progress=False)(threaded)
    texts = {t.problem.id: [(s.text, s.author, s.score) for s in t.steps] for t in batch}
    assert {key: [(s.text, s.author, s.score) for s in t.steps] for key, t in seen.items()} == texts
    assert result.score == pytest.approx(100 * sum(map(world.right, batch)) / len(batch), abs=0.01)
    assert threaded.ledger.usage("weak").generated_tokens == cost_of(batch).all_tokens - cost_of(batch).strong_tokens


def test_dspy_hears_of_the_usage_of_every_model() -> None:
    made = router()
    with dspy.track_usage() as tracker:
        traces = made.solve_all(world.problems(6), progress=False)
    spent: dict[str, Usage] = {}
    for trace in traces:
        for usage in trace.usage.values():
            spent[usage.model] = spent.get(usage.model, Usage()) + usage
    told = tracker.get_total_tokens()
    assert set(told) == set(spent) == {"w", "s", "scripted-scorer"}
    for name, usage in spent.items():
        assert told[name]["completion_tokens"] == usage.generated_tokens
        assert told[name]["prompt_tokens"] == usage.prompt_tokens
        assert told[name]["prompt_tokens_details"]["cached_tokens"] == usage.prompt_tokens - usage.evaluated_tokens


def test_a_prediction_carries_its_usage_when_dspy_tracks_it() -> None:
    with dspy.context(track_usage=True):
        prediction = router(Always())(question="How many?")
    assert prediction.get_lm_usage()["s"]["completion_tokens"] == cost_of([prediction.trace]).strong_tokens


class Recorder(BaseCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.events: list[tuple[str, str, int]] = []
        self.asked: list[tuple[str, str, str]] = []
        self.outputs: list[Any] = []

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.events.append(("module", "start", 1))

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.events.append((instance.model, "start", 1))
        self.asked.append((instance.role, instance.model.split("/")[0], inputs["messages"][-1]["content"]))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.events.append(("", "failed" if exception else "end", int(outputs is not None)))
        self.outputs.append(outputs)


def test_dspy_callbacks_see_the_module_and_each_request() -> None:
    recorder = Recorder()
    made = router(Never())
    with dspy.context(callbacks=[recorder]):
        made.solve_all(world.problems(3), progress=False)
        assert sorted(recorder.events) == [("", "end", 1)] * 3 * world.LENGTH + [("w", "start", 1)] * 3 * world.LENGTH
        recorder.events.clear()
        made(question="?")
        assert recorder.events[:2] == [("module", "start", 1), ("w", "start", 1)]
        recorder.events.clear()
        made.models.weak.broken = True
        with pytest.raises(RuntimeError):
            made.solve_all(world.problems(3), progress=False)
        assert sorted(recorder.events) == [("", "failed", 0)] * 3 + [("w", "start", 1)] * 3


def test_a_callback_is_told_what_it_is_told_of_a_language_model_of_dspys() -> None:
    recorder = Recorder()
    made = router(Threshold(0.5), callbacks=[recorder], budget={"strong_tokens": 0})
    trace = made.solve_all(world.problems(1), progress=False)[0]
    question, first = trace.problem.question, trace.steps[0]
    assert recorder.asked[:3] == [("weak", "w", question), ("scorer", "scripted-scorer", first.text),
                                  ("weak", "w", first.text)]  # fmt: skip
    assert recorder.outputs[:2] == [[first.text], [f"{first.score:.3f}"]]


class Raising(BaseCallback):  # type: ignore[misc]
    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        raise ValueError("no start")

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        raise KeyError("no end")


def test_a_callback_that_raises_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    quiet, told = router(Threshold(0.5)), router(Threshold(0.5))
    with dspy.context(callbacks=[Raising()]):
        traces = told.solve_all(world.problems(3), progress=False)
    assert traces == quiet.solve_all(world.problems(3), progress=False)
    assert {"the callback 'Raising' failed in on_lm_start: no start"} < {record.message for record in caplog.records}


def test_the_history_has_every_call_and_there_is_no_language_model_to_get_or_set() -> None:
    made, out = router(Threshold(0.5)), io.StringIO()
    trace = made(question="How many?").trace
    calls = made.ledger.usage("weak").calls + made.ledger.usage("strong").calls
    assert sum(entry["kwargs"]["role"] != "scorer" for entry in made.history) == calls
    made.inspect_history(n=len(made.history), file=out)
    assert all(step.text in out.getvalue() for step in trace.steps)
    assert made.with_policy(Always()).history == []
    with pytest.raises(ConfigError, match=r"no dspy\.LM: it asks {'weak': 'w'"):
        made.get_lm()
    with pytest.raises(ConfigError, match="that it was made with"):
        made.set_lm(dspy.LM("openai/x"))


def test_histories_keep_the_last_calls_of_routers_and_leave_those_of_others_alone() -> None:
    from dspy.clients.base_lm import GLOBAL_HISTORY

    others = [{"model": "openai/x", "kwargs": {}, "number": number} for number in range(3)]
    made, calls = router(Threshold(0.5)), 0
    made.history.extend(others)
    GLOBAL_HISTORY.extend(others)
    while calls <= HISTORY:
        made(question=f"How many, {calls}?")
        calls = made.ledger.usage().calls
    for history in (made.history, GLOBAL_HISTORY):
        ours = [entry for entry in history if "role" in entry["kwargs"]]
        assert len(ours) == HISTORY
        assert [entry for entry in history if entry in others] == others
    for other in others:
        GLOBAL_HISTORY.remove(other)


def test_copies_share_the_models_and_a_new_policy_has_a_budget_of_its_own() -> None:
    made = router(Threshold(0.4), budget=BudgetConfig(strong_tokens=200))
    for other in (copy.deepcopy(made), made.deepcopy(), made.with_policy(Always())):
        assert other.models is made.models
    assert made.with_policy(Always()).policy == Always()
    assert made.policy == Threshold(0.4)
    made.solve_all(world.problems(10), progress=False)
    assert made.ledger.usage("strong").calls > 0
    assert made.with_policy(Always()).ledger.usage("strong").calls == 0
    assert made.deepcopy().ledger is made.ledger


def test_the_budget_of_a_router_holds_over_all_its_calls() -> None:
    made = router(Always(), budget=BudgetConfig(strong_tokens=200), sampling=SamplingConfig(max_step_tokens=16))
    traces = [made(problem=problem).trace for problem in world.problems(12)]
    assert 200 - 16 < cost_of(traces).strong_tokens <= 200


def test_an_interrupted_run_is_taken_up_without_asking_twice() -> None:
    problems, finished = world.problems(8), []
    made = router(Never(), window=2)

    def told(trace: Trace) -> None:
        finished.append(trace)
        if len(finished) == 4:
            raise KeyboardInterrupt

    with pytest.raises(RoutingInterrupted) as caught:
        made.solve_all(problems, progress=False, on_trace=told)
    assert [t.problem for t in caught.value.traces] == problems
    with pytest.raises(RoutingInterrupted) as twice:
        made.solve_all(
            problems, progress=False, resume=finished, on_trace=lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
        )
    assert [t.problem for t in twice.value.traces] == problems
    assert [t for t in twice.value.traces if t in finished] == sorted(finished, key=lambda t: problems.index(t.problem))
    again = router(Never())
    traces = again.solve_all(problems, progress=False, resume=caught.value.traces)
    assert traces == router(Never()).solve_all(problems, progress=False)
    asked = {request.problem.id for request in again.models.weak.requests}
    assert asked == {p.id for p in problems} - {t.problem.id for t in finished}
    assert again.solve_all(problems, progress=False, resume=traces) == traces


def test_a_trace_of_another_problem_with_the_same_id_is_not_taken_over() -> None:
    old = router(Never()).solve_all([Problem("p0", "Another question?")], progress=False)
    fresh = router(Never()).solve_all(world.problems(1), progress=False, resume=old)
    assert fresh[0].problem == world.problems(1)[0]


def test_the_progress_bar_goes_to_standard_error_and_reaches_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    router().solve_all(world.problems(4), description="scripted")
    out, err = capsys.readouterr()
    assert out == ""
    assert "scripted: 4/4" in err


def test_only_models_loaded_here_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepwise.routing import loaded as module

    loaded = ScriptedBackend(world.strong_step, "loaded")
    monkeypatch.setattr(module, "load_backend", lambda spec, **_: spec if spec is weak else loaded)
    weak = ScriptedBackend(world.weak_step, "w")
    with StepRouter(weak, "llamacpp/lab-strong", ScriptedScorer({})) as made:
        made.with_policy(Never()).close()
        assert loaded.closed == 0
    made.close()
    assert (weak.closed, loaded.closed) == (0, 1)


def test_a_configuration_describes_the_whole_router(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepwise.routing import loaded as module

    specs: list[Any] = []

    def load(spec: Any, *, prompt: SolvePrompt) -> Any:
        specs.append((spec.model, prompt))
        return ScriptedBackend({}, spec.model)

    def scorer(spec: Any, *, prompt: SolvePrompt, weak: Any) -> Any:
        specs.append((spec.model, prompt))
        return ScriptedScorer({})

    monkeypatch.setattr(module, "load_backend", load)
    monkeypatch.setattr(module, "load_scorer", scorer)
    config = Config.load(
        overrides=[
            "routing.policy=random",
            "routing.probability=0.2",
            "seed=9",
            "budget.strong_tokens=7",
            "routing.max_steps=5",
            "models.strong.sequences=70",
        ]
    )
    made = StepRouter.from_config(config)
    assert made.policy == Random(0.2)
    assert (made.settings.seed, made.settings.max_steps, made.budget.strong_tokens) == (9, 5, 7)
    assert made.settings.window == 70  # the weak model takes 64
    assert [model for model, _ in specs] == ["llamacpp/lab-weak", "llamacpp/lab-strong", "llamacpp/lab-scorer"]
    assert all(prompt == config.prompt for _, prompt in specs)
    assert "policy=Random(p=0.2" in repr(made)
    assert StepRouter.from_config(Config()).policy == Threshold(0.5)


def test_the_labs_scorer_is_refused_for_a_model_that_is_not_the_labs() -> None:
    config = Config.load(overrides=["models.weak.model=llamacpp/other.gguf"])
    with pytest.raises(ConfigError, match=r"llamacpp/lab-scorer is of the lab.*the weak model is llamacpp/other.gguf"):
        StepRouter.from_config(config)


def test_a_policy_that_looks_at_scores_needs_a_scorer_when_the_router_is_made() -> None:
    with pytest.raises(ConfigError, match="scorer="):
        StepRouter(ScriptedBackend({}), ScriptedBackend({}))
    assert StepRouter(ScriptedBackend({}), ScriptedBackend({}), policy=Never()).models.scorer is None


def test_an_example_of_dspys_is_a_problem_and_a_trace_says_what_each_author_spent() -> None:
    made, example = router(), dspy.Example(question="How many?", answer="7").with_inputs("question")
    trace = made(problem=example).trace
    assert (trace.problem.question, trace.problem.answer) == ("How many?", "7")
    assert made.solve_all([example], progress=False)[0].problem == trace.problem
    assert sum(usage.generated_tokens for usage in trace.usage.values()) == cost_of([trace]).all_tokens
    with pytest.raises(DataError, match="question is ''; give the text of a question"):
        made(question="")
