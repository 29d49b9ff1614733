"""Adapters on disk: which base model and which prompt one belongs to, merging it into a copy of its base, and how much
the base solves with it.

The weights of a model directory are identified by a hash over every tensor's name, type, shape and bytes: it does not
depend on how they are spread over files.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepwise import io, lab
from stepwise.config import ModelConfig
from stepwise.errors import ConfigError, DataError, ExportError
from stepwise.models.hub import hub_hint, local_path
from stepwise.models.safetensors import Checkpoint, fingerprint, read_json
from stepwise.prompt import SolvePrompt
from stepwise.training import require_training

LAYOUT = ("adapter_config.json", "adapter_model.safetensors")
"""The files of an adapter in PEFT's layout."""
CARD = "card.json"
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Tokenizer and chat template are copied as they are: a tokenizer that is loaded and saved again may come out otherwise.
_BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
           "chat_template*", "generation_config.json")  # fmt: skip


def check_layout(adapter: str | Path) -> None:
    """Raise DataError unless `adapter` is a directory in PEFT's layout.

    >>> check_layout(lab.model_path("lab-critic", "safetensors"))
    """
    if not Path(adapter).is_dir():
        raise DataError(f"adapter {adapter}: no such directory; give the directory that training wrote, or its run")
    missing = [name for name in LAYOUT if not (Path(adapter) / name).is_file()]
    if missing:
        raise DataError(f"adapter {adapter} has no {' and no '.join(missing)}; give the directory that training wrote")


def described(adapter: str | Path) -> dict[str, Any]:
    """adapter_config.json of an adapter's directory.

    >>> described(lab.model_path("lab-critic", "safetensors"))["base_model_name_or_path"]
    'lab-weak'
    """
    check_layout(adapter)
    return read_json(Path(adapter) / LAYOUT[0])


def base_directory(model: ModelConfig) -> Path:
    """Where the weights to train lie in transformers' layout: `train_from`, or a lab model's own directory.

    Raises ConfigError where `train_from` is missing or is no such directory.

    >>> base_directory(ModelConfig(model="llamacpp/lab-weak")).name
    'lab-weak'
    """
    name = model.model.partition("/")[2]
    if model.train_from is None and model.local and name in lab.MODELS:
        return lab.model_path(name, "safetensors")
    if model.train_from is None:
        raise ConfigError(
            f"{model.model} has no train_from; training starts from transformers weights: set train_from to the "
            "directory that the GGUF was made from"
        )
    folder = local_path(model.train_from)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"train_from = {folder} holds no config.json; give a directory in transformers' layout{hub_hint(folder)}"
        )
    return folder


def base_of(adapter: str | Path, base: str | Path | None = None) -> Path:
    """Directory of the base of an adapter: `base`, or the one that adapter_config.json names.

    Either is a directory, "hf:ORG/REPO" or the name of a lab model. Raises DataError, with the remedy, where it is no
    directory in transformers' layout.

    >>> base_of(lab.model_path("lab-critic", "safetensors")).name
    'lab-weak'
    """
    named = str(base or described(adapter).get("base_model_name_or_path") or "")
    if named in lab.MODELS:
        return lab.model_path(named, "safetensors")
    folder = local_path(named)
    if not named or not (folder / "config.json").is_file():
        raise DataError(
            f"the base model {named!r} of adapter {adapter} is no directory with a config.json; give the directory "
            'that it was trained from as base, or "hf:ORG/REPO"'
        )
    return folder


def adapter_directory(name: str | Path) -> Path:
    """The directory in PEFT's layout that a name stands for: a lab adapter, a run that trained one, the directory
    itself, or the adapter.gguf in it. Raises DataError where there is none.

    >>> adapter_directory("lab-critic").name
    'lab-critic'
    """
    if name in lab.ADAPTERS:
        return lab.model_path(str(name), "safetensors")
    path = Path(name).expanduser()
    path = path.parent if path.suffix == ".gguf" and path.is_file() else path
    folder = path / "adapter" if (path / "adapter" / LAYOUT[0]).is_file() else path
    check_layout(folder)
    return folder


def read_card(adapter: str | Path) -> dict[str, Any] | None:
    """card.json of an adapter's directory, None where it has none; DataError where it is no JSON object.

    Example:
        card = read_card("out/sft/adapter")
        print(card["method"], card["base"]["name"], card["evaluation"])
    """
    path = Path(adapter) / CARD
    remedy = "restore it, or remove it to go without its checks"
    if not path.is_file():
        return None
    given = {name: dict for name in ("base", "config") if io.read_json(path, remedy).get(name) is not None}
    return io.read_json(path, remedy, given)


def check_adapter(
    adapter: str | Path, base: str | Path | None = None, prompt: SolvePrompt | None = None
) -> dict[str, Any] | None:
    """Make sure that an adapter (a directory in PEFT's layout) was made for `base` and `prompt`; returns its card.

    `base` is a model directory (None: the one that adapter_config.json names), `prompt` what it will be asked under
    (None: not compared). The shapes of every adapted matrix are always compared; the weights' identity and the prompt's
    hash only where the adapter has a card (None is returned where it has none). Raises DataError for another base,
    ConfigError for another prompt.

    Example:
        card = check_adapter("out/sft/adapter", "models/Qwen3-0.6B", sw.SolvePrompt())
    """
    check_layout(adapter)
    folder, card = base_of(adapter, base), read_card(adapter)
    for problem in _misfits(Path(adapter), folder):
        raise DataError(f"adapter {adapter} does not fit the base {folder}: {problem}; give the base it was trained on")
    if card is None:
        return None
    made_for = card.get("base") or {}
    weights = made_for.get("fingerprint")
    if weights is not None and weights != fingerprint(folder):
        raise DataError(
            f"adapter {adapter} was trained on other weights: {made_for.get('name')} with fingerprint {weights}, but "
            f"{folder} has {fingerprint(folder)}; give that base, or train the adapter anew on this one"
        )
    trained_under = card.get("prompt_hash")
    if prompt is not None and trained_under is not None and trained_under != prompt.hash:
        raise ConfigError(
            f"adapter {adapter} was trained under the prompt {trained_under}, but [prompt] now has the hash "
            f"{prompt.hash}; set [prompt] as its card has it: {json.dumps((card.get('config') or {}).get('prompt'))}"
        )
    return card


def _misfits(adapter: Path, base: Path) -> Iterator[str]:
    """What does not fit: A is (rank, inputs), B (outputs, rank), of a matrix (outputs, inputs)."""
    weights, factors = Checkpoint.of_model(base), Checkpoint([adapter / LAYOUT[1]])
    tied = bool(read_json(base / "config.json").get("tie_word_embeddings", False))
    for name in sorted(factors.places):
        match = _FACTOR.fullmatch(name)
        if not match:
            continue
        module, side = match.groups()
        stored = "model.embed_tokens" if module == "lm_head" and tied else module
        if f"{stored}.weight" not in weights.places:
            yield f"it changes {module}, which the base has not"
            continue
        outputs, inputs = weights.shape(f"{stored}.weight")
        wanted, actual = (inputs, factors.shape(name)[1]) if side == "A" else (outputs, factors.shape(name)[0])
        if wanted != actual:
            yield f"{module} is ({outputs}, {inputs}), and the adapter's {side} is for {actual} instead of {wanted}"


@contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving without what only disturbs: bars that tear ours, and PEFT's use of a name that grew old.

    Example:
        with quiet():
            model.save_pretrained("out/model")
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def merge(adapter_dir: str | Path, out_dir: str | Path, base: str | Path | None = None) -> Path:
    """Write base plus adapter in transformers' layout, with tokenizer and chat template, to `out_dir`; returns it.

    `adapter_dir` is in PEFT's layout; `base` is its base's directory, "hf:ORG/REPO" or a lab model (None: the one that
    adapter_config.json names). What PEFT can merge is merged: DoRA and trained embeddings too, which a LoRA GGUF cannot
    hold. The sum is taken in float32, and needs main memory for that: adding to bfloat16 weights, and taking it off
    again, leaves a drift behind.
    `export_gguf(out_dir, ...)` makes a GGUF of it. Raises DataError for an adapter of another base and for an `out_dir`
    that is not empty, ExportError for a merge with infinite or undefined weights.

    Example:
        export_gguf(merge("out/sft/adapter", "out/merged"), "out/merged.gguf")
    """
    adapter, out = Path(adapter_dir), Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty; give a new directory for the merged model")
    require_training()
    folder = base_of(adapter, base)
    check_adapter(adapter, folder)
    draft = out.with_name(f".{out.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    with quiet():
        _merged(adapter, folder).save_pretrained(draft)
    for pattern in _BESIDE:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, draft / file.name)
    if out.exists():
        out.rmdir()
    draft.rename(out)
    return out


def _merged(adapter: Path, base: Path) -> Any:
    """The merged model in float32, on the CPU."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    changed = Checkpoint([adapter / LAYOUT[1]]).places
    if model.config.tie_word_embeddings and any("lm_head" in name or "embed_tokens" in name for name in changed):
        # One matrix is embedding and head. The adapter changes one of them only, so that they part here.
        model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
        model.config.tie_word_embeddings = False
    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ExportError(f"adapter {adapter} cannot be merged ({error!s:.200}); train it again") from error
