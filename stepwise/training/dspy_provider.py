"""DSPy's fine-tuning of a local model: `dspy.BootstrapFinetune` trains a LoRA adapter here and gets it served at once.

    lm = sw.lm("llamacpp/lab-weak", provider=LoraProvider("out/tuned"))
    program.set_lm(lm)
    tuned = dspy.BootstrapFinetune(metric=metric, train_kwargs={"epochs": 8}).compile(program, trainset=trainset)

The tuned program's language model is the same GGUF with the adapter attached, and the adapter's hash is in its name, so
that no cached answer of the untuned model is taken for one of it. A saved program holds the adapter's path and finds it
again; to tune it once more, give its language model a provider again (`lm.provider = LoraProvider(...)`).

What differs from DSPy's own local provider:
1. A LoRA adapter is trained, in this process, and attached; nothing is relaunched.
2. The loss is on the assistant's reply and its end, and only there.
3. `train_kwargs` are typed: an unknown key is an error that names the nearest one, before anything is started.
4. A job that fails raises where its result is asked for. DSPy stores the exception as if it were a result.
5. Jobs run one after another: each wants the whole machine.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus
from pydantic import Field, ValidationError, create_model

from stepwise import lab
from stepwise.config import Config, ModelConfig
from stepwise.config.errors import FrozenConfig, explain
from stepwise.config.training import LoraConfig, SftConfig
from stepwise.data.examples import Chat, read_chat
from stepwise.errors import ConfigError, DataError
from stepwise.models.hub import adapter_path, gguf_path
from stepwise.models.provider import declare
from stepwise.models.shared import LOAD_FIELDS, close_engines, identity, shared_engine
from stepwise.models.store import key_of
from stepwise.prompt import SolvePrompt
from stepwise.runs.directory import opened
from stepwise.training.adapters import base_directory, check_layout
from stepwise.training.lora import load_trainee
from stepwise.training.rendering import chat_row, prompt_ids
from stepwise.training.supervised import train_rows
from stepwise.training.trainer import finish, run_arguments

_LOCAL = "llamacpp/"
_IDENTITY = re.compile(r"@([0-9a-f]{8})(?:\+([0-9a-f]{8}\S*))?$")
_ROLES = {"prefix_weight", "intervention_weight", "suffix_weight", "replay"}  # of rows that a DSPy program has not
_TEMPLATE_ARGS = SolvePrompt().template_args  # those that `llamacpp/` serves a chat with
_turn = threading.Lock()


_FIELDS: dict[str, Any] = {
    name: (info.annotation, info)
    for section in (LoraConfig, SftConfig)
    for name, info in section.model_fields.items()
    if name not in _ROLES
} | {"seed": (int, Field(default=0, ge=0, description="everything random in the job follows from it"))}
_TrainSettings = create_model("TrainSettings", __base__=FrozenConfig, **_FIELDS)
"""The keys that `train_kwargs` may have: those of [lora], of [sft] but for the roles of rows, and `seed`."""


class _LoraJob(TrainingJob):  # type: ignore[misc]
    """One fine-tuning in the background. `result()` is the tuned `dspy.LM`, or raises what went wrong.

    Settings and data are checked when it is made: ConfigError, DataError.
    """

    def __init__(
        self,
        thread: threading.Thread | None = None,
        model: str | None = None,
        train_data: list[dict[str, Any]] | None = None,
        train_data_format: TrainDataFormat | str | None = None,
        train_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.settings = _checked(train_kwargs or {})
        if train_data_format not in (None, TrainDataFormat.CHAT):
            raise DataError(f"train_data_format is {train_data_format!r}; local models are trained on chats: give CHAT")
        self.chats = [
            read_chat(row.get("messages"), f"row {i} of the training data", f"row {i}")
            for i, row in enumerate(train_data or [])
        ]
        if not self.chats:
            raise DataError("there is nothing to train on; no trace passed the metric: look at the metric or teacher")
        self.adapter: Path | None = None
        super().__init__(thread, model, train_data, train_data_format, train_kwargs)

    def status(self) -> TrainingStatus:
        """Where the job is, in DSPy's words."""
        if self.cancelled():
            return TrainingStatus.cancelled
        if self.done():
            return TrainingStatus.failed if self.exception() else TrainingStatus.succeeded
        return TrainingStatus.running if self.running() else TrainingStatus.pending

    def cancel(self) -> bool:
        """Give the job up while it waits for its turn; False once it is at work, since it cannot be stopped then."""
        return Future.cancel(self)

    def set_result(self, result: Any) -> None:
        """What DSPy calls at the end with the copied LM, which gets its adapter here, or with the exception."""
        if self.cancelled():
            return
        if isinstance(result, Exception):
            self.set_exception(result)
        else:
            super().set_result(result if self.adapter is None else _served(result, self.adapter))


class LoraProvider(Provider):  # type: ignore[misc]
    """Trains LoRA adapters of "llamacpp/..." models for DSPy; each job has a run directory of its own below `out`.

    `train_from` is the directory that the GGUF was made from, in transformers' layout (a lab model knows its own).
    `config` has the defaults of the [lora] and [sft] settings that `train_kwargs` change, the seed, and in models.weak
    the longest context. A tuned LM can be tuned again: its adapter is gone on with. Equal data and settings give
    the run directory of the earlier job, and so go on with it.

    Example:
        model = sw.lm("llamacpp/lab-weak", provider=LoraProvider("out/tuned"))
        program = dspy.BootstrapFinetune(metric=metric).compile(program, trainset=examples)
    """

    def __init__(
        self, out: str | Path, *, train_from: str | Path | None = None, config: Config | str | Path | None = None
    ) -> None:
        super().__init__()
        self.finetunable = True
        self.TrainingJob = _LoraJob
        self.out = Path(out).absolute()
        self.train_from = train_from
        self.config = Config.of(config, "config")

    @staticmethod
    def is_provider_model(model: str) -> bool:
        """True for the models that run on the engine in this process."""
        return model.startswith(_LOCAL)

    @staticmethod
    def launch(lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Load the LM's model now; the first call would do it otherwise."""
        shared_engine(_load_config(lm))

    @staticmethod
    def kill(lm: Any, launch_kwargs: dict[str, Any] | None = None) -> None:
        """Free the memory of the LM's model, which DSPy wants before it trains; the next call loads it again."""
        close_engines(gguf_path(_load_config(lm).model.removeprefix(_LOCAL)))

    def finetune(
        self,
        job: _LoraJob,
        model: str,
        train_data: list[dict[str, Any]],
        train_data_format: TrainDataFormat | str | None = None,
        train_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Train on the job's chats; returns the tuned model's name and leaves the adapter's path in `job.adapter`.

        Raises ConfigError, DataError, BackendError as `sft` does, and CancelledError for a job that was cancelled.
        """
        with _turn:
            if not job.set_running_or_notify_cancel():
                raise CancelledError("the fine-tuning was cancelled before it began")
            cfg, start = self._plan(model, job.settings)
            folder = self._train(job.chats, cfg, start)
        job.adapter = folder / "adapter.gguf"
        spec, weights, _ = _parts(model)
        return f"{spec}@{weights or _digest(gguf_path(spec.removeprefix(_LOCAL)))}+{_digest(job.adapter)}"

    def _plan(self, model: str, settings: Mapping[str, Any]) -> tuple[Config, Path | None]:
        """The job's whole configuration, and the directory of the adapter that it goes on with."""
        spec, _, adapter = _parts(model)
        if not self.is_provider_model(spec):
            raise ConfigError(f"{model} does not run in this process, so it is not trained here; use llamacpp/...")
        weak, name = self.config.models.weak.model_dump(), spec.removeprefix(_LOCAL)
        if spec != self.config.models.weak.model:
            weak |= {"model": spec, "train_from": None, "adapter": None}
        source = self.train_from or (
            lab.model_path(lab.ADAPTERS[name], "safetensors") if name in lab.ADAPTERS else None
        )
        if source is not None:
            weak["train_from"] = str(source)
        chosen = ModelConfig(**weak)
        base_directory(chosen)
        sections = {
            key: kind(
                **{
                    **getattr(self.config, key).model_dump(),
                    **{name: value for name, value in settings.items() if name in kind.model_fields},
                }
            )
            for key, kind in (("lora", LoraConfig), ("sft", SftConfig))
        }
        models = self.config.models.model_copy(update={"weak": chosen})
        seed = settings.get("seed", self.config.seed)
        cfg = self.config.model_copy(update={**sections, "models": models, "seed": seed})
        return cfg, self._begun(model, adapter, chosen.lora)

    def _begun(self, model: str, digest: str | None, adapter: str | None) -> Path | None:
        """Directory, in PEFT's layout, of the adapter that the LM has; None where it has none."""
        if digest is None:
            return None
        if adapter in lab.ADAPTERS:
            return lab.model_path(str(adapter), "safetensors")
        known = [*sorted(self.out.glob("*/adapter/adapter.gguf")), *([adapter_path(adapter)] if adapter else [])]
        for file in known:
            if file.is_file() and _digest(file) == digest:
                check_layout(file.parent)
                return file.parent
        raise ConfigError(
            f"{model} has an adapter that no run below {self.out} made; give the provider a config whose "
            "models.weak.adapter is its GGUF, with PEFT's layout beside it, or tune the model without the adapter"
        )

    def _train(self, chats: Sequence[Chat], cfg: Config, start: Path | None) -> Path:
        """The adapter's directory of a run on `chats`, new or gone on with."""
        name, data = "traces of a DSPy program", [{"messages": list(chat.messages)} for chat in chats]
        arguments = run_arguments(start, rows=data)
        out = self.out / key_of({"config": cfg.hash, **arguments})[:12]
        with opened(out, program="dspy", config=cfg, arguments=arguments) as directory:
            trainee = load_trainee(cfg, adapter=start, dropout=True)
            prompt_ids(trainee.tokenizer, SolvePrompt(), "1 + 1 = ?")  # refuses a template that begins no reply
            rows = [
                chat_row(chat, trainee.tokenizer, _TEMPLATE_ARGS, trainee.context, f"{chat.id} of the training data")
                for chat in chats
            ]
            train_rows(trainee, rows, cfg, directory, label="fine-tuning")
            return finish(directory, trainee, cfg, "dspy", {name: data})


def _checked(train_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given, of the right types; ConfigError names the nearest key of an unknown one."""
    try:
        return _TrainSettings.model_validate(dict(train_kwargs)).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ConfigError(explain(error, _TrainSettings, "train_kwargs")) from None


def _parts(model: str) -> tuple[str, str | None, str | None]:
    """What loads a model, and where its name has them the hashes of weights and adapter."""
    match = _IDENTITY.search(model)
    return (model[: match.start()], match[1], match[2]) if match else (model, None, None)


def _load_config(lm: Any) -> ModelConfig:
    """How the engine behind a LM is loaded."""
    return ModelConfig(
        model=_parts(lm.model)[0], **{key: lm.kwargs[key] for key in LOAD_FIELDS if lm.kwargs.get(key) is not None}
    )


def _served(lm: Any, adapter: Path) -> Any:
    """`lm` with the adapter attached and loaded, under a name that holds the hashes of both."""
    lm.kwargs["adapter"] = str(adapter)
    config = _load_config(lm)
    engine = shared_engine(config)
    lm.model = f"{config.model}@{identity(engine)}"
    declare(lm.model, config.prices, engine.context)
    return lm


def _digest(path: Path) -> str:
    """The first eight hex digits of a file's SHA-256, as they stand in a model's name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]
