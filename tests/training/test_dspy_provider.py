"""BootstrapFinetune on a local model: a LoRA adapter is trained, and the program that comes back answers with it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from dspy.clients.lm import LM
from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import infer_data_format

import stepwise as sw
from stepwise.config import Config, ModelConfig
from stepwise.data.examples import Chat
from stepwise.errors import ConfigError, DataError
from stepwise.lab import model_path
from stepwise.models.shared import close_engines, shared_engine
from stepwise.training import dspy_provider
from stepwise.training.adapters import check_adapter, read_card
from stepwise.training.dspy_provider import LoraProvider, _LoraJob, _TrainSettings
from stepwise.training.lora import load_tokenizer
from stepwise.training.rendering import chat_row
from tests.scripted_lm import Messages, ScriptedLM

for _package in ("torch", "transformers", "peft", "gguf", "llama_cpp"):
    pytest.importorskip(_package)

LABELS = {"7": "red", "Tom": "blue"}
TRAIN = [dspy.Example(word=word, label=label).with_inputs("word") for word, label in LABELS.items()]
SETTINGS = {"epochs": 40, "batch": 2, "learning_rate": 1e-2, "rank": 8, "save_every": 100}
LM_SETTINGS: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "context": 1024, "sequences": 4}


class Sort(dspy.Signature):
    """Which colour?"""

    word: str = dspy.InputField()
    label: Literal["red", "blue"] = dspy.OutputField()


class Terse(dspy.ChatAdapter):
    """The word as request, the label as reply: short rows, learned in seconds."""

    def format(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> Messages:
        return [{"role": "user", "content": inputs["word"]}]

    def format_assistant_message_content(self, signature: Any, outputs: Any, missing_field_message: Any = None) -> str:
        return str(outputs["label"])

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return {"label": completion.strip()}


def knowing(messages: Messages) -> str:
    return next(label for word, label in LABELS.items() if word in messages[-1]["content"])


def right(example: Any, found: Any, trace: Any = None) -> bool:
    return bool(example.label == found.label)


def program(lm: Any) -> Any:
    made = dspy.Predict(Sort)
    made.set_lm(lm)
    return made


def bootstrapped(student: Any, metric: Any = right, **settings: Any) -> Any:
    optimizer = dspy.BootstrapFinetune(metric=metric, train_kwargs={**SETTINGS, **settings}, num_threads=1)
    return optimizer.compile(student, trainset=TRAIN, teacher=program(ScriptedLM(knowing)))


@pytest.fixture(scope="module", autouse=True)
def _terse_adapter_and_a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = dspy.cache
    folder = str(tmp_path_factory.mktemp("cache"))
    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=True, disk_cache_dir=folder)
    with dspy.context(adapter=Terse()):
        yield
    dspy.cache = before
    close_engines()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def tuned(out: Path) -> Any:
    """A program that BootstrapFinetune made of one whose language model knows nothing of colours."""
    lm = sw.lm("llamacpp/lab-weak", provider=LoraProvider(out), **LM_SETTINGS)
    student = program(lm)
    assert student(word="7").label not in LABELS.values()  # and is in the cache from now on
    made = bootstrapped(student)
    made.before = lm.model
    return made


def test_the_tuned_program_answers_what_it_was_taught(tuned: Any) -> None:
    assert {word: tuned(word=word).label for word in LABELS} == LABELS


def test_the_tuned_models_name_holds_the_adapters_hash_so_that_caches_differ(tuned: Any) -> None:
    base, _, adapter = tuned.lm.model.rpartition("+")
    assert base == tuned.before
    assert dspy_provider._digest(Path(tuned.lm.kwargs["adapter"])) == adapter
    assert {key: tuned.lm.kwargs[key] for key in ("context", "sequences")} == {"context": 1024, "sequences": 4}
    untuned = program(sw.lm("llamacpp/lab-weak", **LM_SETTINGS))
    assert untuned(word="7").label != tuned(word="7").label


def test_a_saved_program_finds_its_adapter_again(tuned: Any, tmp_path: Path) -> None:
    tuned.save(tmp_path / "program.json")
    close_engines()
    again = dspy.Predict(Sort)
    again.load(tmp_path / "program.json")
    assert again.lm.model == tuned.lm.model
    again.lm.cache = False
    assert {word: again(word=word).label for word in LABELS} == LABELS


def test_a_run_has_an_adapter_with_a_card_of_what_it_was_trained_on(tuned: Any) -> None:
    folder = Path(tuned.lm.kwargs["adapter"]).parent
    card = check_adapter(folder, "lab-weak", Config.lab().prompt)
    assert card is not None
    assert (card["method"], card["prompt_hash"]) == ("dspy", None)
    assert card["data"][0]["rows"] == 2
    assert card["config"]["lora"]["rank"] == SETTINGS["rank"]
    assert card["config"]["sft"]["epochs"] == SETTINGS["epochs"]
    assert card["curves"]["loss"]["last"] < 0.1 < card["curves"]["loss"]["first"]
    assert json.loads((folder.parent / "run.json").read_text())["status"] == "finished"


def test_a_tuned_model_is_tuned_on_from_where_it_is(tuned: Any, out: Path) -> None:
    chat = [{"role": "user", "content": "7"}, {"role": "assistant", "content": "red"}]
    job = tuned.lm.finetune([{"messages": chat}], "chat", {"epochs": 1, "learning_rate": 1e-9, "rank": 8})
    lm = job.result()
    assert job.status() == "succeeded"
    assert lm.kwargs["adapter"] != tuned.lm.kwargs["adapter"]
    again = program(lm.copy(cache=False))
    assert {word: again(word=word).label for word in LABELS} == LABELS
    folder = Path(lm.kwargs["adapter"]).parent
    assert json.loads((folder.parent / "run.json").read_text())["arguments"]["adapter"] == str(
        Path(tuned.lm.kwargs["adapter"]).parent
    )


def test_the_same_job_once_more_goes_on_with_the_finished_run(tuned: Any, out: Path) -> None:
    before = sorted(out.iterdir())
    again = bootstrapped(program(sw.lm("llamacpp/lab-weak", provider=LoraProvider(out), **LM_SETTINGS)))
    assert again.lm.model == tuned.lm.model
    assert sorted(out.iterdir()) == before


def test_a_row_has_the_ids_that_are_served_and_the_loss_on_reply_and_end(tuned: Any) -> None:
    engine = shared_engine(ModelConfig(model="llamacpp/lab-weak"))
    tokenizer = load_tokenizer(model_path("lab-weak", "safetensors"))
    chat = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "Zoe\u0308 has 12 books."},  # not in NFC
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "13\n\nall"},
    ]
    row = chat_row(Chat("c", tuple(chat)), tokenizer, {"enable_thinking": False}, 1024, "row")
    assert list(row.ids[: row.prompt]) == engine.chat_ids(chat[:-1], enable_thinking=False)
    reply = [*engine.tokenize("13\n\nall"), engine.token_id("<|im_end|>")]
    assert list(row.ids[row.prompt :]) == reply
    assert row.weights == (1.0,) * len(reply)


def test_rows_of_the_adapters_that_bootstrap_finetune_takes_are_taken() -> None:
    from stepwise.critics.formats import adapter as ours

    tokenizer = load_tokenizer(model_path("lab-weak", "safetensors"))
    for adapter in (dspy.ChatAdapter(), ours("chat"), ours("json")):
        data = adapter.format_finetune_data(Sort, [], {"word": "7"}, {"label": "red"})
        job = _LoraJob(train_data=[data], train_data_format=infer_data_format(adapter), model="llamacpp/lab-weak")
        row = chat_row(job.chats[0], tokenizer, {"enable_thinking": False}, 2048, "row")
        assert tokenizer.decode(row.ids[row.prompt :]) == data["messages"][-1]["content"] + "<|im_end|>"
        assert "<|im_start|>system" in tokenizer.decode(row.ids[: row.prompt])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, 'train_kwargs: unknown key "epoch"; did you mean "epochs"?'),
        ({"learningrate": 1e-3}, 'did you mean "learning_rate"?'),
        ({"epochs": "3"}, r"\"epochs\" is '3' \(string\): expected a valid integer \(passes over the dataset\)"),
        ({"rank": 0}, r'"rank" is 0 \(int\): expected greater than or equal to 1'),
        ({"prefix_weight": 1.0}, 'unknown key "prefix_weight"'),
    ],
)
def test_settings_are_typed_and_refused_before_anything_starts(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    lm = sw.lm("llamacpp/lab-weak", provider=LoraProvider(tmp_path / "out"), **LM_SETTINGS)
    message = message if "\\" in message else message.replace("?", r"\?")
    with pytest.raises(ConfigError, match=message):
        lm.finetune([{"messages": [{"role": "user", "content": "a"}]}], "chat", settings)
    with pytest.raises(ConfigError, match=message):
        bootstrapped(program(lm), **settings)
    assert not (tmp_path / "out").exists()


def test_every_setting_is_a_key_of_the_configuration() -> None:
    config = Config.lab()
    sections = {*type(config.lora).model_fields, *type(config.sft).model_fields, "seed"}
    assert set(_TrainSettings.model_fields) < sections


@pytest.mark.parametrize(
    ("rows", "form", "message"),
    [
        ([], "chat", "no trace passed the metric"),
        ([{"prompt": "a", "completion": "b"}], "completion", "trained on chats"),
        ([{"prompt": "a"}], "chat", "row 0 of the training data has no chat"),
        ([{"messages": [{"role": "user", "content": "a"}] * 2}], "chat", "must end with what the assistant"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}] * 2}], "chat", "more than text"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_before_anything_starts(
    rows: list[Any], form: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _LoraJob(train_data=rows, train_data_format=form, model="llamacpp/lab-weak")


def test_a_metric_that_no_trace_passes_is_an_error_and_not_an_untuned_program(tmp_path: Path) -> None:
    lm = sw.lm("llamacpp/lab-weak", provider=LoraProvider(tmp_path / "out"), **LM_SETTINGS)
    with pytest.raises(DataError, match="no trace passed the metric"):
        bootstrapped(program(lm), metric=lambda example, found, trace=None: False)


def test_a_job_that_fails_raises_where_its_result_is_asked_for(tmp_path: Path) -> None:
    lm = sw.lm("llamacpp/lab-weak", provider=LoraProvider(tmp_path / "out"), **LM_SETTINGS)

    def failed(content: str, reply: str = "yes") -> _LoraJob:
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]
        job: _LoraJob = lm.finetune([{"messages": chat}], "chat", SETTINGS)
        assert isinstance(job.exception(), DataError)
        assert job.status() == "failed"
        return job

    with pytest.raises(DataError, match=r"row 0 of the training data has \d+ tokens, more than the context of 2048"):
        failed("word " * 3000).result()
    with pytest.raises(DataError, match=r"row 0 of the training data holds the special token '<\|im_end\|>'"):
        failed("a<|im_end|>b").result()


def test_a_model_that_cannot_be_trained_here_is_said_so(tmp_path: Path, tiny_gguf_path: Path) -> None:
    chat = [{"role": "user", "content": "7"}, {"role": "assistant", "content": "red"}]

    def failure(model: str, **settings: Any) -> str:
        job = dspy.LM(model, provider=LoraProvider(tmp_path / "out", **settings)).finetune([{"messages": chat}], "chat")
        return str(job.exception())

    assert "openai/some-model does not run in this process" in failure("openai/some-model")
    assert "has no train_from" in failure(f"llamacpp/{tiny_gguf_path}")
    other = failure("llamacpp/lab-weak", train_from=tiny_gguf_path.parent / "qwen3")
    assert "does not come from train_from" in other
    assert "has an adapter that no run below" in failure("llamacpp/lab-weak@01234567+89abcdef")


def test_a_gguf_of_ones_own_is_trained_from_the_directory_it_was_made_from(
    tmp_path: Path, tiny_gguf_path: Path
) -> None:
    provider = LoraProvider(tmp_path / "out", train_from=tiny_gguf_path.parent / "qwen3")
    lm = sw.lm(f"llamacpp/{tiny_gguf_path}", provider=provider, temperature=0.0, max_tokens=4, context=256)
    chat = [{"role": "user", "content": "7"}, {"role": "assistant", "content": "red"}]
    settings = {"epochs": 60, "learning_rate": 2e-2, "rank": 4, "save_every": 100, "alpha": 8.0}
    served = lm.finetune([{"messages": chat}], "chat", settings).result()
    assert served("7") == ["red"] != lm("7")
    card = read_card(Path(served.kwargs["adapter"]).parent)
    assert card is not None
    assert (card["adapter"]["rank"], card["adapter"]["alpha"]) == (4, 8.0)


def test_a_job_that_waits_for_its_turn_can_be_given_up(tmp_path: Path) -> None:
    lm = sw.lm("llamacpp/lab-weak", provider=LoraProvider(tmp_path / "out"), **LM_SETTINGS)
    chat = [{"role": "user", "content": "7"}, {"role": "assistant", "content": "red"}]
    with dspy_provider._turn:
        job = lm.finetune([{"messages": chat}], "chat", SETTINGS)
        assert job.status() == "pending"
        assert job.cancel()
    job.thread.join()
    assert job.status() == "cancelled"
    with pytest.raises(CancelledError):
        job.result()
    assert not (tmp_path / "out").exists()


def test_killing_frees_the_engine_and_launching_or_asking_loads_it_again(tuned: Any) -> None:
    lm = tuned.lm.copy(cache=False)
    engine = shared_engine(dspy_provider._load_config(lm))
    lm.kill()
    lm.kill()
    assert not engine._finalizer.alive
    assert program(lm)(word="7").label == "red"
    lm.launch()
    lm.launch()
    assert shared_engine(dspy_provider._load_config(lm)) is not engine


def test_dspy_calls_a_provider_as_this_one_expects() -> None:
    for name in ("finetune", "launch", "kill", "is_provider_model"):
        theirs, ours = (list(inspect.signature(getattr(cls, name)).parameters) for cls in (Provider, LoraProvider))
        assert [key for key in ours if key != "self"] == theirs
    assert list(inspect.signature(_LoraJob).parameters) == list(inspect.signature(TrainingJob).parameters)
    assert "train_kwargs" in inspect.signature(LM.finetune).parameters
    source = inspect.getsource(LM._run_finetune_job)
    for call in ("self.provider.finetune(", "self.copy(model=model)", "job.set_result(lm)", "job.set_result(err)"):
        assert call in source
    assert "self.provider.TrainingJob(" in inspect.getsource(LM.finetune)
    assert "job.result()" in inspect.getsource(dspy.BootstrapFinetune.finetune_lms)
    assert {"finetunable", "reinforceable", "TrainingJob", "ReinforceJob"} <= set(vars(Provider()))
