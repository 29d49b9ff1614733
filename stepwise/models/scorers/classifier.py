"""Process reward models with a classification head, through transformers, without remote code or pickle.

Two layouts of files are known, told apart by the tensors of the head:

- Qwen2.5-Math-PRM (arXiv 2501.07301; architecture Qwen2ForProcessRewardModel): `score.0.*`, ReLU, `score.2.*`, two
  classes. Input: chat template with the system text of the model card, `<extra_0>` after every step; the score is the
  softmax probability of class 1 at each marker.
- Skywork-o1-Open-PRM (architecture Qwen2ForPrmModel): `v_head.summary.*`, one value. Input: question and a line break,
  then each step and a line break; the score is the sigmoid of the value at the line break that ends a step.

What this does differently from the models' own code:
1. Nothing after the last step is evaluated: attention is causal, so it cannot change a score.
2. A special token typed into a step stays text; a marker typed into it is refused.
3. The head's last layer and the softmax are computed in float32, whatever the weights are stored as.
4. Skywork's own script splits a solution at every line break; here a step is what the caller says it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from stepwise.errors import BackendError, ConfigError, MissingDependencyError
from stepwise.io import parse_json
from stepwise.models.hub import hub_hint, local_path
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.pooling import QWEN_PRM_MARKER, QWEN_PRM_SYSTEM
from stepwise.models.scorers.prefix import PrefixScorer, Task
from stepwise.types import Usage

_BASES = {"qwen2": "Qwen2Model", "qwen3": "Qwen3Model", "llama": "LlamaModel", "mistral": "MistralModel"}
_MLP = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
_VALUE = ("v_head.summary.weight", "v_head.summary.bias")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class _Encoded(NamedTuple):
    """Ids of a solution, and the position of each step's score."""

    ids: list[int]
    positions: list[int]


class ClassifierScorer(PrefixScorer):
    """Scores from a classification head at the end of each step; see the module's text for the layouts.

    `directory` (or "hf:ORG/REPO") holds config.json, tokenizer files and safetensors. `marker` None is the layout's
    own. `context`: longest solution in tokens, no more than the model was made for. `dtype` is "bfloat16", "float16" or
    "float32", `device` as in PyTorch ("cpu", "cuda", "cuda:1", "mps"); `batch_tokens`: most tokens of one padded batch.
    A step appended costs its whole prefix (no key-value cache is kept). Raises `ConfigError` where the tokenizer lacks
    the marker, `BackendError` where the files are not such a model.

    Example:
        scorer = ClassifierScorer("models/Skywork-o1-Open-PRM-Qwen-2.5-1.5B", dtype="float32")
        scorer.score("1 + 1?", ["That is 2."])
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        marker: str | None = None,
        context: int = 4096,
        dtype: str = "bfloat16",
        device: str = "cpu",
        batch_tokens: int = 8192,
        memory: int = 10_000,
    ):
        folder = local_path(directory)
        config = _read_config(folder)
        super().__init__(f"{folder.name} {dtype}", memory=memory)
        self._files = _digest(folder)  # while they are the ones that are loaded
        self._torch, transformers = _libraries()
        self._head = self._load_head(folder, dtype, device)
        self._model = self._load_base(transformers, folder, config, dtype, device)
        self._tokenizer = _load_tokenizer(transformers, folder)
        self.chat = "score.0.weight" in self._head
        self.marker_text = (marker or QWEN_PRM_MARKER) if self.chat else ""
        usual = QWEN_PRM_MARKER if self.chat else "\n"
        self._marker = self._one_token(marker or usual, folder)
        self._asked_for = "" if marker in (None, usual) else f"marker {marker!r}"
        self.context = min(context, config.get("max_position_embeddings") or context)
        self.batch_tokens = max(batch_tokens, self.context)
        tensors = [*self._model.parameters(), *self._head.values()]
        self.parameters = sum(tensor.numel() for tensor in tensors)
        widest = 4 * config["hidden_size"] + 3 * config["intermediate_size"]
        self.memory_bytes = (self.parameters + self.batch_tokens * widest) * _BYTES[dtype]
        self.device = device
        self._compute = Lock()  # the tokenizer is not thread safe, and one forward pass at a time is fastest

    def _model_name(self) -> str:
        return f"{self.name}@{self._files}"

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; batches are made of solutions of similar length."""
        with self._compute:
            encoded = [self._encode(task) for task in tasks]
            results: dict[int, Scored] = {}
            for batch in self._batches(encoded):
                rows = self._probabilities([encoded[place] for place in batch])
                for place, row in zip(batch, rows, strict=True):
                    length = len(encoded[place].ids)
                    results[place] = Scored(row[tasks[place].first :], Usage(self.name, 1, length, length))
        too_long = (
            "the solution has {} tokens, more than the context of {}; raise scorer.context, as far as the model goes"
        )
        return [
            results.get(place) or Scored([], Usage(self.name), too_long.format(len(each.ids), self.context))
            for place, each in enumerate(encoded)
        ]

    def close(self) -> None:
        """Free the model; calling it twice does nothing."""
        super().close()
        with self._compute:
            self._model = None
            self._head = {}

    # ----- text

    def _encode(self, task: Task) -> _Encoded:
        ids, positions = self._prompt_ids(task.question), []
        for text in task.steps:
            ids += [*self._plain_ids(text), self._marker]
            positions.append(len(ids) - 1)
        return _Encoded(ids, positions)

    def _prompt_ids(self, question: str) -> list[int]:
        if not self.chat:
            bos = self._tokenizer.bos_token_id
            return [*([] if bos is None else [bos]), *self._plain_ids(question + "\n")]
        chat = [{"role": "system", "content": QWEN_PRM_SYSTEM}, {"role": "user", "content": question}]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _one_token(self, text: str, folder: Path) -> int:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ConfigError(
                f"{folder}: the tokenizer has no token {text!r} (it makes {len(ids)} of it); "
                "set scorer.marker to the token that the model was trained to score at"
            )
        return int(ids[0])

    # ----- numbers

    def _batches(self, encoded: Sequence[_Encoded]) -> Iterator[list[int]]:
        """Places of the solutions that fit, longest first, so many at once as `batch_tokens` allows when padded."""
        fitting = [place for place, one in enumerate(encoded) if len(one.ids) <= self.context]
        fitting.sort(key=lambda place: -len(encoded[place].ids))
        while fitting:
            n = max(1, self.batch_tokens // len(encoded[fitting[0]].ids))
            yield fitting[:n]
            fitting = fitting[n:]

    def _probabilities(self, batch: Sequence[_Encoded]) -> list[list[float]]:
        if self._model is None:
            raise BackendError(f"scorer {self.name!r} is closed; load it again")
        torch, longest = self._torch, max(len(each.ids) for each in batch)
        # Padded on the right: causal attention never looks there. Both (batch, longest).
        ids = torch.tensor([each.ids + [0] * (longest - len(each.ids)) for each in batch], device=self.device)
        lengths = torch.tensor([len(each.ids) for each in batch], device=self.device)
        mask = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return [self._classify(hidden[row, each.positions]) for row, each in enumerate(batch)]

    def _classify(self, hidden: Any) -> list[float]:
        """Probabilities (steps,) from hidden states (steps, width)."""
        head, linear = self._head, self._torch.nn.functional.linear
        if self.chat:
            inner = linear(hidden, head["score.0.weight"], head["score.0.bias"]).relu().float()
            logits = linear(inner, head["score.2.weight"].float(), head["score.2.bias"].float())
            return list(map(float, logits.softmax(-1)[:, 1].tolist()))
        values = linear(hidden.float(), head["v_head.summary.weight"].float(), head["v_head.summary.bias"].float())
        return list(map(float, values[:, 0].sigmoid().tolist()))

    # ----- files

    def _load_head(self, folder: Path, dtype: str, device: str) -> dict[str, Any]:
        from safetensors import safe_open

        found: dict[str, Any] = {}
        for name, file in _head_files(folder).items():
            with safe_open(file, framework="pt", device="cpu") as tensors:
                found[name] = tensors.get_tensor(name)
        if set(found) == set(_MLP) and found["score.2.weight"].shape[0] != 2:
            raise BackendError(
                f"{folder}: score.2.weight has {found['score.2.weight'].shape[0]} classes; a process reward model has 2"
            )
        return {name: tensor.to(device=device, dtype=getattr(self._torch, dtype)) for name, tensor in found.items()}

    def _load_base(self, transformers: Any, folder: Path, config: dict[str, Any], dtype: str, device: str) -> Any:
        kind = getattr(transformers, _BASES[config["model_type"]])
        how = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        try:
            with _quiet(transformers):
                model, info = kind.from_pretrained(folder, dtype=getattr(self._torch, dtype), **how)
        except (OSError, ValueError, RuntimeError) as error:
            raise BackendError(f"{folder}: transformers cannot load it ({str(error)[:300]})") from error
        if info["missing_keys"]:
            names = sorted(info["missing_keys"])[:4]
            raise BackendError(f"{folder}: tensors are missing from its files ({', '.join(names)}, ...); copy it again")
        return model.to(device).eval()


def check_classifier(directory: str | Path) -> None:
    """Raise BackendError where a directory holds no classifier that is known; it reads headers alone.

    Example:
        check_classifier("models/Skywork-o1-Open-PRM-Qwen-2.5-1.5B")  # nothing: it can be loaded
    """
    folder = local_path(directory)
    _read_config(folder)
    _head_files(folder)


def _head_files(folder: Path) -> dict[str, Path]:
    """In which file each tensor of the head is."""
    _libraries()
    from safetensors import SafetensorError, safe_open

    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt", device="cpu") as tensors:
                found |= {name: file for name in tensors.keys() if name in _MLP + _VALUE}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise BackendError(f"{file}: no readable safetensors file ({error}); copy it again") from error
    if set(found) not in (set(_MLP), set(_VALUE)):
        raise BackendError(
            f"{folder}: no head of a process reward model in its *.safetensors "
            f"(found {sorted(found) or 'nothing'}); known are {', '.join(_MLP)} and {', '.join(_VALUE)}"
        )
    return found


def _digest(folder: Path) -> str:
    """Twelve hex digits of weights, configuration and tokenizer."""
    digest = hashlib.sha256()
    for file in sorted(each for kind in ("safetensors", "json", "jinja", "txt") for each in folder.glob(f"*.{kind}")):
        with file.open("rb") as data:
            digest.update(file.name.encode() + hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()[:12]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise BackendError(
            f"{path} does not exist; give the directory of a model in transformers format{hub_hint(folder)}"
        )
    try:
        config: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise BackendError(f"{path} is no configuration of a model ({error!r}); copy it again") from error
    if kind not in _BASES:
        raise BackendError(f"{path}: model_type is {kind!r}; supported are {', '.join(_BASES)}")
    if not any(folder.glob("*.safetensors")):
        raise BackendError(f"{folder} holds no *.safetensors; pickled weights (*.bin) are not read: convert them first")
    return config


def _load_tokenizer(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BackendError(f"{folder}: its tokenizer cannot be loaded ({str(error)[:300]})") from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bar, and no report of the head's tensors as unexpected: they are read apart."""
    told = transformers.utils.logging
    level, bar = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bar:
            told.enable_progress_bar()


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f'a classifier needs torch and transformers ({error}); pip install "stepwise[train]"'
        ) from error
    return torch, transformers
