"""The commonest mistakes in scripts: each ends in an error of ours that says what to write, or does what was meant."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import stepwise as sw
from stepwise import routing
from stepwise.interventions import CollectSettings
from stepwise.models.scorers.load import ConstantScorer
from stepwise.types import Step, Trace
from tests.fakes import ScriptedBackend
from tests.mistakes import refused

P = sw.Problem("p", "What is 2 + 2?", "4")
TRACE = Trace(P, (Step("Two and two.", "weak"), Step(r"So it is \boxed{4}.", "weak")), "answer")
WEAK, STRONG, SCORER = "llamacpp/lab-weak", "llamacpp/lab-strong", "llamacpp/lab-scorer"


def script(problem: sw.Problem, prefix: tuple[str, ...], seed: int) -> str:
    return TRACE.steps[len(prefix)].text


def router(policy: Any = "never", **settings: Any) -> sw.StepRouter:
    return sw.StepRouter(ScriptedBackend(script), ScriptedBackend(script), ConstantScorer(0.5), policy, **settings)


def critic() -> sw.ErrorLocalizer:
    return sw.ErrorLocalizer(method="scorer", scorer=ConstantScorer(0.9))


class Coroutine(sw.Scorer):
    async def score(self, problem: sw.Problem, steps: Sequence[str]) -> Sequence[float]:
        return [0.5 for _ in steps]


class Wordy(sw.Policy):
    def decide(self, view: routing.View) -> Any:
        return "escalate"


def closed() -> Any:
    with sw.StepRouter(WEAK, WEAK, policy="never") as gone:
        pass
    return gone(P)


async def not_awaited() -> Any:
    made = router()
    answer = made.acall(problem=P)
    try:
        return made.cost(answer)
    finally:
        answer.close()


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # ----- models
    "no provider": (lambda: sw.StepRouter("lab-weak", STRONG, SCORER), sw.ConfigError, 'weak: .*mean "llamacpp/lab-we'),
    "no provider, API": (lambda: sw.load_backend("gpt-4o"), sw.ConfigError, '"openai/NAME"'),
    "provider misspelt": (lambda: sw.load_backend("llamacp/lab-weak"), sw.ConfigError, 'mean "llamacpp/lab-weak"'),
    "API provider misspelt": (lambda: sw.load_backend("opnai/gpt-4o"), sw.ConfigError, 'mean "openai/gpt-4o"'),
    "LM's provider misspelt": (lambda: sw.lm("opnai/gpt-4o"), sw.ConfigError, 'mean "openai/gpt-4o"'),
    "lab model misspelt": (lambda: sw.load_backend("llamacpp/lab-weka"), sw.BackendError, "mean 'lab-weak'"),
    "no such GGUF": (lambda: sw.load_backend("llamacpp/none.gguf"), sw.BackendError, "none.gguf: no such file; give"),
    "GGUF without provider": (lambda: sw.load_backend("x/y.gguf"), sw.ConfigError, 'mean "llamacpp/x/y.gguf"'),
    "path of a GGUF": (lambda: sw.load_backend(Path("none.gguf")), sw.BackendError, "none.gguf: no such file"),
    "hub id as a model": (lambda: sw.load_backend("Qwen/Qwen3"), sw.ConfigError, '"hf:Qwen/Qwen3/FILE.gguf" is down'),
    "hub id as a GGUF": (lambda: sw.load_backend("llamacpp/Qwen/Qwen3"), sw.BackendError, '"hf:Qwen/Qwen3/FILE.gguf"'),
    "hub id where a directory is meant": (
        lambda: sw.load_scorer({"kind": "classifier", "model": "transformers/Skywork/PRM"}),
        sw.BackendError,
        'config.json does not exist; give the directory .*; "hf:Skywork/PRM" is downloaded from the hub',
    ),
    "hub id without transformers/": (
        lambda: sw.load_scorer({"kind": "classifier", "model": "Skywork/PRM"}),
        sw.ConfigError,
        'written "transformers/..." with the directory .*"hf:Skywork/PRM"',
    ),
    "API model as scorer": (lambda: sw.load_scorer("openai/gpt-4o"), sw.ConfigError, 'kind = "judge"'),
    "kind misspelt": (lambda: sw.ScorerConfig(kind="clasifier"), sw.ConfigError, "mean 'classifier'"),
    "no model": (lambda: sw.StepRouter(None, STRONG, SCORER), sw.ConfigError, "weak: .*model must be given .provider/"),
    "number as model": (
        lambda: sw.StepRouter(3, STRONG, SCORER),
        sw.ConfigError,
        r"weak.* is 3 \(int\); give ModelConfig, a na",
    ),
    "class as model": (lambda: sw.load_backend(sw.ModelConfig), sw.ConfigError, "is the class ModelConfig; give Mod"),
    "model as scorer": (lambda: sw.load_scorer(sw.ModelConfig(model=SCORER)), sw.ConfigError, "give ScorerConfig"),
    "no scorer": (lambda: sw.StepRouter(WEAK, WEAK, policy="threshold"), sw.ConfigError, "pass scorer="),
    "model's setting misspelt": (lambda: sw.load_backend(WEAK, contxt=512), sw.ConfigError, "did you mean 'context'"),
    "LM's setting misspelt": (lambda: sw.lm("openai/m", temprature=0.5), sw.ConfigError, "did you mean 'temperature'"),
    "loaded model as LM": (
        lambda: sw.lm(ScriptedBackend(script)),
        sw.ConfigError,
        "lm is .*; give ModelConfig, a name",
    ),
    "adapter that is not there": (
        lambda: sw.load_backend(WEAK, adapter="x.gguf"),
        sw.BackendError,
        "x.gguf: no such f",
    ),
    "another base's adapter": (
        lambda: sw.load_backend(STRONG, adapter="lab-critic"),
        sw.BackendError,
        "adapter .* (was trained on other weights|does not fit)",
    ),
    "problem for a request": (
        lambda: sw.load_backend(WEAK).continue_solutions([P]),
        sw.DataError,
        r"\[Request\(problem",
    ),
    "text for a problem": (lambda: sw.Request("2 + 2?"), sw.DataError, "problem is '2 . 2..*instance of Problem"),
    # ----- router and policies
    "no policy to compare": (lambda: sw.compare(router(), [], [P]), sw.ConfigError, "policies is empty; give one or"),
    "name saved as a policy": (lambda: sw.save_policy("x.json", "never"), sw.ConfigError, "policy is 'never'"),  # type: ignore[arg-type]
    "text as a cost": (
        lambda: sw.compare(router(), ["never", "always"], [P], progress=False).difference(
            "never", "always", at_cost="x"
        ),
        sw.DataError,
        r"at_cost is 'x' \(str\); give strong tokens",
    ),
    "columns of different lengths": (
        lambda: sw.load_problems({"question": ["a?", "b?"], "answer": ["1"]}),
        sw.DataError,
        "the columns have different lengths .*'answer': 1",
    ),
    "threshold above 1": (lambda: sw.Threshold(1.5), sw.DataError, r"threshold is 1.5: .*scores lie in \[0, 1\]"),
    "threshold in words": (lambda: sw.Threshold("high"), sw.DataError, "threshold is 'high': .*valid number"),
    "policy misspelt": (lambda: router("treshold"), sw.ConfigError, "mean 'threshold'"),
    "number as policy": (
        lambda: router(0.5),
        sw.ConfigError,
        r"policy is 0.5 \(float\); give a class that inherits from Pol",
    ),
    "function as policy": (lambda: router(lambda view: sw.Keep()), sw.ConfigError, "give a class that inherits from P"),
    "file as policy": (lambda: router("policy.json"), sw.ConfigError, r"load_policy\('policy.json'\).policy"),
    "action in words": (lambda: router(Wordy)(P), sw.PluginError, r"returned 'escalate'.*return Keep\(\), Escalate"),
    "scorer that is a coroutine": (lambda: sw.load_scorer(Coroutine), sw.ConfigError, "`async def`.*write `def score`"),
    "cap misspelt": (lambda: router(budget={"strong_token": 5}), sw.ConfigError, "budget: .*mean 'strong_tokens'"),
    "number as budget": (lambda: router(budget=500), sw.ConfigError, "budget is 500 .*a dictionary of strong_tokens"),
    "number as sampling": (
        lambda: router(sampling=0.5),
        sw.ConfigError,
        "sampling is 0.5 .*a dictionary of temperature",
    ),
    "text as prompt": (
        lambda: router(prompt="Solve it."),
        sw.ConfigError,
        "prompt is 'Solve it.' .*dictionary of system",
    ),
    "number as cache": (lambda: router(cache=3), sw.ConfigError, r"cache is 3 \(int\); give a CallCache, or the path"),
    "directory as cache": (
        lambda: router(cache=Path.cwd()),
        sw.DataError,
        "the cache is a file, and this is a directory",
    ),
    "no problem": (lambda: router()(), sw.DataError, "takes question= or problem="),
    "number as problem": (lambda: router()(5), sw.DataError, "row 1 is 5; it must be an object with question"),
    "file as traces": (
        lambda: router().solve_all([P], resume="t.jsonl"),
        sw.DataError,
        "resume is 't.jsonl'.*give traces",
    ),
    "closed router": (closed, sw.BackendError, "closed; load it again"),
    "answer not awaited": (lambda: asyncio.run(not_awaited()), sw.DataError, "traces is a coroutine; await it"),
    "router swapped": (lambda: sw.compare([P], "never", router()), sw.ConfigError, "router is .*give a StepRouter"),
    "no router saved": (lambda: router().load(saved("{}")), sw.DataError, "holds no router .*that `save` wrote"),
    # ----- configuration
    "no such TOML": (lambda: sw.Config.load("none.toml"), sw.ConfigError, "none.toml: .*give the path of a TOML file"),
    "no such TOML, router": (
        lambda: sw.StepRouter.from_config("none.toml"),
        sw.ConfigError,
        "none.toml: .*give the path",
    ),
    "no such TOML, critic": (
        lambda: sw.ErrorLocalizer.from_config("none.toml"),
        sw.ConfigError,
        "none.toml: .*give the",
    ),
    "no such TOML, collection": (
        lambda: sw.collect([P], "none.toml", "out"),
        sw.ConfigError,
        "none.toml: .*give the path",
    ),
    "arguments swapped": (
        lambda: sw.collect(sw.Config.lab(), [P], "out"),
        sw.ConfigError,
        "cfg is .*give Config, the path",
    ),
    "path for Config": (lambda: sw.Config("my.toml"), sw.ConfigError, "takes its fields by name"),
    "dictionary for a path": (
        lambda: sw.Config.load({"seed": 1}),
        sw.ConfigError,
        r"path is .*give the path of a TOML",
    ),
    "key misspelt": (lambda: sw.Config.load(None, ["routing.treshold=1"]), sw.ConfigError, 'mean "routing.threshold"'),
    "section misspelt": (lambda: sw.Config(modles={}), sw.ConfigError, "mean 'models'"),
    "word for a number": (
        lambda: sw.Config.load(None, "routing.threshold=high"),
        sw.ConfigError,
        "'high' .*valid number",
    ),
    "changed in place": (lambda: setattr(sw.Config(), "seed", 3), sw.ConfigError, r"model_copy\(update={'seed': 3}\)"),
    "copy misspelt": (lambda: sw.Config().model_copy(update={"sed": 3}), sw.ConfigError, "mean 'seed'"),
    "role misspelt": (lambda: sw.Config().role("wek"), sw.ConfigError, "mean 'weak'"),
    "collection's setting misspelt": (lambda: CollectSettings(rollout=1), sw.ConfigError, "mean 'rollouts'"),
    "number as caps": (lambda: sw.Ledger(5), sw.ConfigError, "caps is 5 .*a dictionary of strong_tokens"),
    "no directory": (
        lambda: sw.collect([P], {}, None),
        sw.DataError,
        r"out is None \(NoneType\); give the path of a dir",
    ),
    # ----- data
    "no id": (lambda: sw.Problem(question="2 + 2?"), sw.DataError, "id must be given .*load_problems makes one"),
    "answer as number": (lambda: sw.Problem("1", "2 + 2?", 4), sw.DataError, "answer is 4: .*valid string"),
    "no such file": (
        lambda: sw.load_problems("none.csv"),
        sw.DataError,
        "none.csv: no such file; give a JSON Lines, JSON",
    ),
    "CSV without questions": (lambda: sw.load_problems(saved("a,b\n1,2\n", "file.csv")), sw.DataError, "field questio"),
    "named set misspelt": (lambda: sw.load_problems("gms8k"), sw.DataError, "did you mean 'gsm8k'"),
    "text as n": (lambda: sw.load_problems([P], n="1"), sw.DataError, "n is '1'; give how many"),
    "n below 0": (lambda: sw.lab.generate("test", -1), sw.DataError, "n is -1; give how many"),
    "split misspelt": (
        lambda: sw.lab.generate("tset", 1),
        sw.DataError,
        "'tset' is not one of pretrain, train, val, test",
    ),
    "number to grade": (lambda: sw.grade(4, "4"), sw.DataError, r"prediction is 4 \(int\); give it as text"),
    "trace to grade": (lambda: sw.grade(TRACE, "4"), sw.DataError, r"prediction is Trace.*; give it as text"),
    "no text": (
        lambda: sw.extract_answer(None),
        sw.DataError,
        r"text is None \(NoneType\); give a str, such as trace.text",
    ),
    "no steps": (
        lambda: critic()(problem=P, steps=None),
        sw.DataError,
        "steps is None .*give the texts of the steps, a T",
    ),
    "no steps to score": (lambda: ConstantScorer(0.5).score(P, None), sw.DataError, "steps is None .*give the texts"),
    "problems to score": (
        lambda: ConstantScorer(0.5).score_batch([P]),
        sw.DataError,
        "give a pair of a problem and its",
    ),
    "file as frame": (
        lambda: sw.traces_to_frame("t.jsonl"),
        sw.DataError,
        "traces is 't.jsonl'.*solve_all or sw.compare",
    ),
    "problems as frame": (
        lambda: sw.traces_to_frame([P]),
        sw.DataError,
        r"traces\[0\] is Problem.*solve_all or sw.compare",
    ),
}


def saved(text: str, name: str = "file.json") -> Path:
    path = Path(tempfile.mkdtemp()) / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_refused_with_the_remedy(name: str) -> None:
    call, kind, says = REFUSED[name]
    assert "\n" not in refused(call, kind, says)


@pytest.mark.parametrize(
    ("package", "call", "says"),
    [
        ("pandas", lambda: sw.traces_to_frame([TRACE]), r'pip install "stepwise\[data\]"'),
        ("datasets", lambda: sw.traces_to_dataset([TRACE]), r'pip install "stepwise\[data\]"'),
        ("datasets", lambda: sw.load_problems("org/name"), r'pip install "stepwise\[data\]"'),
        ("pyarrow", lambda: sw.load_problems(saved("", "file.parquet")), r'pip install "stepwise\[data\]"'),
        ("transformers", lambda: sw.load_scorer(classifier()), r'pip install "stepwise\[train\]"'),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    package: str, call: Callable[[], Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(sw.MissingDependencyError, match=says):
        call()


def classifier() -> sw.ScorerConfig:
    folder = saved('{"model_type": "qwen2"}', "config.json").parent
    (folder / "model.safetensors").touch()
    return sw.ScorerConfig(kind="classifier", model=f"transformers/{folder}")


def test_a_synchronous_call_inside_a_coroutine_names_the_coroutine() -> None:
    model = sw.load_backend(WEAK)

    class Blocking(sw.Policy):
        async def decide(self, view: routing.View) -> routing.Action:
            model.continue_solutions([sw.Request(view.problem)])
            return sw.Keep()

    with (
        sw.StepRouter(model, model, policy=Blocking()) as made,
        pytest.raises(sw.BackendError, match=r"await .*coroutine"),
    ):
        made(P)


def test_names_of_the_package_are_corrected() -> None:
    with pytest.raises(AttributeError, match="did you mean 'StepRouter'"):
        sw.Router  # noqa: B018
