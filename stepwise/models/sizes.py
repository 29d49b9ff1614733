"""What the configuration leaves open about a local model, found from its GGUF and this machine; and whether the models
of a run fit into memory together, before any is loaded.

`complete` fills in: the context (4,096 tokens, or what the model was trained for), the threads (physical cores), and
the sequences that are decoded at once: at most 16, as many as keep the key-value caches of all models within half of
the memory that is free beside their weights. A model on a GPU counts little here: its memory is not looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from stepwise.config import ENGINE_KINDS, Config, LoadConfig, Roles, ScorerConfig
from stepwise.errors import BackendError
from stepwise.models.engine.context import BATCH, KV_BYTES, library
from stepwise.models.engine.weights import read_gguf
from stepwise.models.hub import gguf_file
from stepwise.models.machine import free_memory, physical_cores
from stepwise.runs.directory import CURRENT
from stepwise.runs.progress import announce

SHARE = 0.5
"""Of the memory that is free beside the weights, what the caches of sequences may take where nothing else is said."""
_CONTEXTS, _SEQUENCES, _FEW = (4096, 2048), 16, 4
_ROWS = 64  # of logits that the engine has room for, at least
_COPIES = 1 << 29  # bytes of prefixes whose sequence was needed for another, of each engine (`Engine.load`)
_GIB = 1 << 30
_LoadT = TypeVar("_LoadT", bound=LoadConfig)


@dataclass(frozen=True)
class GgufFacts:
    """What the header of a GGUF says of a model. Sizes are in bytes, lengths in tokens.

    >>> from stepwise.lab import model_path
    >>> GgufFacts.read(model_path("lab-weak")).context
    2048
    """

    path: Path
    fields: Mapping[str, Any]
    vocab: int
    weights: int

    @classmethod
    def read(cls, path: Path) -> GgufFacts:
        """Raises BackendError for a file that is no sound GGUF."""
        header = read_gguf(path)
        shapes = header.shapes
        tokens = header.fields.get("tokenizer.ggml.tokens", ())
        embedding = shapes.get("token_embd.weight", (0, len(tokens)))
        return cls(path, header.fields, int(embedding[-1]), path.stat().st_size)

    def of_arch(self, name: str, default: int = 0) -> int:
        """A number that the architecture has, the largest where layers differ."""
        value = self.fields.get(f"{self.fields.get('general.architecture')}.{name}", default)
        return int(np.max(value))

    @property
    def context(self) -> int:
        """Longest sequence that the model was trained for."""
        return self.of_arch("context_length", _CONTEXTS[0])

    @cached_property
    def quantization(self) -> str:
        """The type of the weights, such as "Q4_K_M"."""
        kinds = {value: name.removeprefix("LLAMA_FTYPE_") for name, value in vars(library()).items() if
                 name.startswith("LLAMA_FTYPE_") and isinstance(value, int)}  # fmt: skip
        name: str = kinds.get(self.fields.get("general.file_type", -1), "unknown")
        return name.removeprefix("MOSTLY_")

    @property
    def template(self) -> str:
        """The chat template, "" where there is none."""
        return str(self.fields.get("tokenizer.chat_template", ""))

    @property
    def thinks(self) -> bool:
        """Whether the template knows of thoughts before the answer."""
        return "<think>" in self.template or "enable_thinking" in self.template

    def sequence_bytes(self, context: int, kv_type: str) -> int:
        """What the key-value cache of one sequence takes."""
        heads, layers = self.of_arch("attention.head_count", 1), self.of_arch("block_count", 1)
        width = self.of_arch("embedding_length") // max(heads, 1)
        both = sum(self.of_arch(f"attention.{side}_length", width) for side in ("key", "value"))
        kv_heads = self.fields.get(f"{self.fields.get('general.architecture')}.attention.head_count_kv", heads)
        cells = int(np.sum(kv_heads)) if isinstance(kv_heads, np.ndarray) else layers * int(kv_heads)
        return int(math.ceil(context / 256) * 256 * cells * both * KV_BYTES[kv_type])

    def fixed_bytes(self, sequences: int) -> int:
        """All but the cache of sequences: weights, logits (twice), activations of a batch, copies of prefixes.

        Within a tenth of what was measured on models of 135 million to 1.5 billion weights.
        """
        logits = max(sequences, _ROWS) * self.vocab * 4
        wide = 2 * self.of_arch("feed_forward_length") + 6 * self.of_arch("embedding_length")
        return self.weights + 2 * logits + BATCH * wide * 4 + _COPIES


class _Completed(NamedTuple):
    """`models` by role with nothing left open, what was `chosen` for each, and the bytes that each `needs`; `fresh`
    where the run in progress did not hold all of that already, so that it is to be said.
    """

    models: dict[str, LoadConfig]
    chosen: dict[str, dict[str, int]]
    needs: dict[str, int]
    fresh: bool


def complete(
    models: Mapping[str, LoadConfig],
    *,
    free: int | None = None,
    cores: int | None = None,
    most: int | None = None,
) -> _Completed:
    """Fill in what `models` (by role; those that llama.cpp runs here) leave open, and see whether they fit; `most`:
    sequences that the run can have at work at once.

    What is chosen is kept with the run in progress, and later starts of it go by that. `free` bytes and `cores` are the
    machine's where they are not given. Raises BackendError, with what each model needs and what to change, where they
    do not fit together, and for a GGUF that is missing or broken.

    Example:
        >>> from stepwise.config import ModelConfig
        >>> complete({"weak": ModelConfig(model="llamacpp/lab-weak")}).chosen  # the lab's values are set
        {}
    """
    free = free_memory() if free is None else free
    local = {role: load for role, load in models.items() if runs_here(load)}
    facts = {role: GgufFacts.read(gguf_file(load.model.partition("/")[2])) for role, load in local.items()}
    paths = [fact.path for fact in facts.values()]
    for place, (role, fact) in enumerate(facts.items()):
        if fact.path in paths[:place]:  # the weights of a file are loaded once
            facts[role] = dataclasses.replace(fact, weights=0)
    run = CURRENT.get()
    new = {role: dict[str, int](run.frozen(_frozen_key(load)) if run else {}) for role, load in local.items()}
    before = {role: set(fields) for role, fields in new.items()}
    for role, load in local.items():
        if load.threads is None:
            new[role].setdefault("threads", cores or physical_cores())
    for longest in _CONTEXTS:
        sizes = {
            role: load.context or new[role].get("context") or min(longest, facts[role].context)
            for role, load in local.items()
        }
        each = {
            role: 0 if load.gpu_layers else facts[role].sequence_bytes(sizes[role], load.kv_type)
            for role, load in local.items()
        }
        num = min(_sequences_that_fit(local, facts, each, free), most or _SEQUENCES)
        if num >= min(_FEW, most or _FEW) or all(load.context for load in local.values()):
            break
    done, needs = dict(models), {}
    for role, load in local.items():
        if load.context is None:
            new[role].setdefault("context", sizes[role])
        if load.sequences is None:
            new[role].setdefault("sequences", num)
        done[role] = load.model_copy(update=new[role])
        sequences = done[role].sequences or 1
        needs[role] = _fixed(load, facts[role], sequences) + sequences * each[role]
    _refuse_too_large(done, facts, needs, free)
    for role, fields in new.items():
        if run and fields:
            run.freeze(_frozen_key(local[role]), fields)
    fresh = any(set(fields) - before[role] for role, fields in new.items())
    return _Completed(done, {role: fields for role, fields in new.items() if fields}, needs, fresh)


def completed(load: _LoadT) -> _LoadT:
    """One model alone with nothing left open; see `complete`.

    Example:
        load = completed(sw.ModelConfig(model="llamacpp/weak.gguf"))
        print(load.context, load.sequences, load.threads)
    """
    if not runs_here(load) or None not in (load.context, load.sequences, load.threads):
        return load
    result: Any = complete({"model": load}).models["model"]
    return result  # type: ignore[no-any-return]


def settled(config: Config, roles: Sequence[Roles], *, most: int | None = None) -> Config:
    """`config` with nothing left open about the models of `roles`, all that a run loads; says what was chosen. No more
    than `most` sequences are at work at once.

    Raises as `complete` does.

    Example:
        config = settled(config, ["weak", "strong", "scorer"])
    """
    models: dict[str, LoadConfig] = {role: config.role(role) for role in roles}
    result = complete(models, most=most)
    if not result.chosen:
        return config
    if result.fresh:
        announce(in_words(result))
    for role, load in result.models.items():
        if role == "scorer":
            config = config.model_copy(update={"scorer": load})
        else:
            config = config.model_copy(update={"models": config.models.model_copy(update={role: load})})
    return config


def in_words(result: _Completed) -> str:
    """What was chosen, in one line.

    Example:
        print(in_words(complete({"weak": config.models.weak})))  # chosen for this machine: weak ...
    """
    parts = []
    for role, fields in result.chosen.items():
        shown = [f"{fields[key]:,} {word}" for key, word in _WORDS.items() if key in fields]
        name = Path(result.models[role].model).stem
        parts.append(f"{role} {name}: {', '.join(shown)}, {result.needs[role] / _GIB:.1f} GiB")
    return "chosen for this machine: " + "; ".join(parts)


_WORDS = {"context": "tokens of context", "sequences": "sequences at once", "threads": "threads"}


def _frozen_key(load: LoadConfig) -> str:
    return f"{load.model}, as it is loaded"


def runs_here(load: LoadConfig) -> bool:
    """Whether llama.cpp runs the model in this process.

    >>> from stepwise.config import ModelConfig
    >>> runs_here(ModelConfig(model="llamacpp/weak.gguf")), runs_here(ModelConfig(model="openai/NAME"))
    (True, False)
    """
    return load.local and (not isinstance(load, ScorerConfig) or load.kind in ENGINE_KINDS)


def _fixed(load: LoadConfig, facts: GgufFacts, sequences: int) -> int:
    """Of main memory: of a device's, nothing is known here."""
    return _COPIES if load.gpu_layers else facts.fixed_bytes(sequences)


def _sequences_that_fit(
    local: Mapping[str, LoadConfig], facts: Mapping[str, GgufFacts], each: Mapping[str, int], free: int | None
) -> int:
    """As many for each model that leaves it open; 1 where nothing fits, which is refused later."""
    if free is None:
        return _FEW
    left = free - sum(_fixed(load, facts[role], load.sequences or _SEQUENCES) for role, load in local.items())
    left -= sum(each[role] * load.sequences for role, load in local.items() if load.sequences)
    open_ones = sum(each[role] for role, load in local.items() if not load.sequences)
    return max(1, min(_SEQUENCES, int(SHARE * left / open_ones))) if open_ones else _SEQUENCES


def _refuse_too_large(
    models: Mapping[str, LoadConfig], facts: Mapping[str, GgufFacts], needs: Mapping[str, int], free: int | None
) -> None:
    total = sum(needs.values())
    if free is None or total <= free:
        return
    rows = [
        f"{role} ({facts[role].path.name}) needs {size / _GIB:.1f} GiB with {models[role].sequences} sequences of "
        f"{models[role].context} tokens" for role, size in needs.items()
    ]  # fmt: skip
    raise BackendError(
        f"the models need {total / _GIB:.1f} GiB together and {free / _GIB:.1f} GiB are free: {'; '.join(rows)}. Set "
        f"sequences or context of {max(needs, key=lambda role: needs[role])} lower (or leave them out), take a GGUF of "
        'fewer bits, set kv_type = "q8_0", or close other programs'
    )
