"""The sampler of reinforcement learning: the base GGUF in the engine, with the adapter in training attached to it.

The adapter is exported and attached anew before every step, and never merged. Sampling and training are two programs
that compute the same thing: whether they agree is measured on the tokens of the first step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepwise.config import Config
from stepwise.errors import BackendError, ConfigError, DataError
from stepwise.models.base import Request
from stepwise.steps import SEPARATOR
from stepwise.training.hints import Hints
from stepwise.training.lora import Trainee, base_directory
from stepwise.training.losses import Mismatch
from stepwise.training.rendering import prompt_ids, text_ids
from stepwise.types import Problem, Step

EXACT = 1e-3
"""Largest mean difference of log-probabilities, in nats, where everything is computed in 32 bits."""
# Measured on lab-weak, on its own problems and (in brackets) on questions of another kind, where it is less sure:
# F32 weights and cache without flash attention 6e-7 (9e-7), with it or an F16 cache 1e-5 (6e-4); F16 2e-5 (6e-4);
# Q8_0 5e-4 (up to 6e-2); Q8_0 with a Q8_0 cache 6e-4 (1e-2). lab-strong in place of lab-weak: .09 (1.1).
OF_WEIGHTS = {"ALL_F32": 0.0, "MOSTLY_F16": 0.005, "MOSTLY_BF16": 0.01, "MOSTLY_Q8_0": 0.06}
"""What the type of the GGUF's weights adds to it, by its name in GGUF."""
OF_CACHE = {"f32": 0.0, "f16": 0.005, "q8_0": 0.02}
"""And the type of the key-value cache; flash attention counts as an F16 cache."""
OF_OTHER_WEIGHTS = 0.2
"""For weights of fewer bits, which were not measured."""
OF_TRAINER = 0.02
"""For a trainer that computes in 16 bits, which was not measured."""


class Sampler:
    """`models.weak` on an engine of its own; `attach` gives it the trainee's adapter and empty caches.

    Raises ConfigError for a model that is not local, or that has a GGUF adapter already; what `load_engine` raises.
    """

    def __init__(self, cfg: Config):
        from stepwise.models.engine import load_engine
        from stepwise.models.llamacpp import LlamaCppBackend

        self._model = cfg.models.weak
        if not self._model.local:
            raise ConfigError(
                f'models.weak.model is "{self._model.model}"; grpo samples with the in-process engine: write '
                '"llamacpp/PATH.gguf", and the directory it was made from in train_from'
            )
        if self._model.lora is not None:
            raise ConfigError(
                f"models.weak.adapter is {self._model.lora}, which cannot be trained on; give its directory in PEFT's "
                "layout as the adapter to go on with, and leave models.weak.adapter out"
            )
        self._prompt = cfg.prompt
        self._folder = tempfile.TemporaryDirectory()
        self.backend = LlamaCppBackend(load_engine(self._model), cfg.prompt)

    @property
    def engine(self) -> Any:
        """The engine, with the adapter of the last `attach`."""
        return self.backend.engine

    def attach(self, trainee: Trainee) -> None:
        """Sample with the adapter as it is now, from a cold cache. Raises BackendError where it does not fit."""
        self.backend.set_adapter(trainee.export(Path(self._folder.name) / "adapter.gguf"))
        self.backend.forget()

    def prompts(
        self, problems: Iterable[Problem], trainee: Trainee, hints: Hints | None = None
    ) -> dict[str, tuple[int, ...]]:
        """The token ids of each problem's prompt, and of its hint where `hints` has one, by the problem's id.

        Raises DataError, naming the problem, for one that leaves no room in the context, and ConfigError for a context
        that the model has not, and where the two chat templates or tokenizers differ.
        """
        room, found = self.engine.context, {}
        if room > trainee.context:
            raise ConfigError(
                f"models.weak.context is {room}, but {trainee.base} has {trainee.context} positions; lower the context"
            )
        for problem in problems:
            steps = (hints or {}).get(problem.id, ())
            ids = tuple(self.backend.prefix_ids(Request(problem, tuple(Step(text, "hint") for text in steps))))
            theirs = tuple(prompt_ids(trainee.tokenizer, self._prompt, problem.question))
            for text in steps:
                where = f"the hint of problem {problem.id!r}"
                theirs += tuple(text_ids(trainee.tokenizer, text + SEPARATOR, where))
            if ids != theirs:
                raise ConfigError(
                    f"problem {problem.id!r}: the GGUF's chat template and tokenizer give {len(ids)} tokens and those "
                    f"of {trainee.base} {len(theirs)}, or others; make the GGUF from that directory"
                )
            if len(ids) >= room:
                what = "prompt and hint have" if steps else "prompt has"
                raise DataError(
                    f"problem {problem.id!r}: its {what} {len(ids)} tokens, which leaves no room in the context of "
                    f"{room}; raise models.weak.context, or leave the problem out"
                )
            found[problem.id] = ids
        return found

    def close(self) -> None:
        """Free the engine; calling it twice does nothing."""
        self.backend.close()
        self._folder.cleanup()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def exact_weights(cfg: Config, folder: str | Path) -> Config:
    """`cfg` with a sampler that computes as the trainer does: weights and cache in 32 bits, without flash attention.

    The GGUF is made from the trainer's own weights, as `folder`/base-f32.gguf, where it is not there yet.
    """
    from stepwise.export.gguf import export_gguf

    base = base_directory(cfg.models.weak)
    path = Path(folder) / "base-f32.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_gguf(base, path, "f32")
    changed = {"model": f"llamacpp/{path}", "train_from": str(base), "kv_type": "f32", "flash_attention": False}
    weak = cfg.models.weak.model_copy(update=changed)
    return cfg.model_copy(update={"models": cfg.models.model_copy(update={"weak": weak})})


def sampler_weights(cfg: Config) -> str:
    """The type of the weights in the GGUF of `models.weak`, by its name in GGUF, such as "MOSTLY_Q8_0"."""
    from gguf import GGUFReader, LlamaFileType

    from stepwise.models.hub import gguf_path

    field = GGUFReader(gguf_path(cfg.models.weak.model.partition("/")[2])).fields.get("general.file_type")
    kind = -1 if field is None else int(field.contents())
    return next((found.name for found in LlamaFileType if found.value == kind), f"type {kind}")


def tolerance(cfg: Config, weights: str, trainer: str) -> float:
    """Largest mean difference of log-probabilities at the first step: `rl.tolerance`, or by what computes in how many
    bits; `trainer` is the type of the trainer's weights, such as "float32".
    """
    if cfg.rl.tolerance is not None:
        return cfg.rl.tolerance
    cache = "f16" if cfg.models.weak.flash_attention and cfg.models.weak.kv_type == "f32" else cfg.models.weak.kv_type
    rough = OF_WEIGHTS.get(weights, OF_OTHER_WEIGHTS) + OF_CACHE[cache]
    return EXACT + rough + (0.0 if trainer == "float32" else OF_TRAINER)


def check_agreement(found: Mismatch, cfg: Config, trainee: Trainee) -> None:
    """Raise BackendError, with what differs, where sampler and trainer disagree by more than the tolerance."""
    weak, weights, trainer = cfg.models.weak, sampler_weights(cfg), trainer_type(trainee)
    most = tolerance(cfg, weights, trainer)
    if found.mean <= most:
        return
    attention = "with" if weak.flash_attention else "without"
    raise BackendError(
        f"at the first step the log-probabilities of sampler and trainer differ by {found.mean:.2g} nats in the mean "
        f"(at most {found.worst:.2g}), more than {most:.2g}. The sampler is {weak.model} with {weights} weights, a "
        f"{weak.kv_type} cache, {attention} flash attention; the trainer computes {trainee.base} in {trainer}. If they "
        "are not the same weights, mend train_from; if only the rounding differs, set rl.correction, or rl.tolerance"
    )


def trainer_type(trainee: Trainee) -> str:
    """The type in which the trainer's frozen layers compute, such as "float32"; "4bit" for quantized ones."""
    base = trainee.model.get_base_model()
    if getattr(base, "is_loaded_in_4bit", False):
        return "4bit"
    return str(base.dtype).removeprefix("torch.")
