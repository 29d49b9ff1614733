"""Which base model and which prompt an adapter belongs to, and whether those at hand are the same.

The weights of a model directory are identified by a hash over every tensor's name, type, shape and bytes: it does not
depend on how they are spread over files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepwise.errors import ConfigError, DataError
from stepwise.export.safetensors import Checkpoint, read_json
from stepwise.models.hub import PREFIX, fetch
from stepwise.prompt import SolvePrompt
from stepwise.training.lora import LAYOUT, check_layout, described

CARD = "card.json"
_CHUNK = 1 << 22
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def base_of(adapter: str | Path, base: str | Path | None = None) -> Path:
    """Directory of the base of an adapter: `base`, or the one that adapter_config.json names.

    Either is a directory, "hf:ORG/REPO" or the name of a lab model. Raises DataError, with the remedy, where it is no
    directory in transformers' layout.
    """
    from stepwise import lab

    named = str(base or described(adapter).get("base_model_name_or_path") or "")
    if named in lab.MODELS:
        return lab.model_path(named, "safetensors")
    folder = fetch(named) if named.startswith(PREFIX) else Path(named).expanduser()
    if not named or not (folder / "config.json").is_file():
        raise DataError(
            f"the base model {named!r} of adapter {adapter} is no directory with a config.json; give the directory "
            'that it was trained from as base, or "hf:ORG/REPO"'
        )
    return folder


def fingerprint(base: str | Path) -> str:
    """Sixteen hex digits that stand for the weights in a model directory. Reads all of them once per process.

    Raises ExportError for a directory without safetensors.
    """
    places = Checkpoint.of_model(Path(base)).places
    files = sorted({place.file.resolve() for place in places.values()})
    return _fingerprint(Path(base), tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _fingerprint(base: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """`stamps` are here to hash files anew that were replaced."""
    digest = hashlib.sha256()
    for name, place in sorted(Checkpoint.of_model(base).places.items()):
        digest.update(f"{name} {place.dtype} {place.shape}\n".encode())
        with place.file.open("rb") as file:
            file.seek(place.start)
            left = place.stop - place.start
            while left and (chunk := file.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()[:16]


def read_card(adapter: str | Path) -> dict[str, Any] | None:
    """card.json of an adapter's directory, None where it has none; DataError where it is no JSON object."""
    path = Path(adapter) / CARD
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); restore it, or remove it to go without its checks") from None
    if not isinstance(card, dict):
        raise DataError(f"{path} holds no JSON object; restore it, or remove it to go without its checks")
    return card


def adapter_directory(name: str | Path) -> Path:
    """The directory that a name stands for: a lab adapter, a run that trained one, or the directory itself."""
    from stepwise.lab import ADAPTERS, model_path

    if name in ADAPTERS:
        return model_path(str(name), "safetensors")
    inside = Path(name) / "adapter"
    return inside if (inside / "adapter_config.json").is_file() else Path(name)


def check_adapter(
    adapter: str | Path, base: str | Path | None = None, prompt: SolvePrompt | None = None
) -> dict[str, Any] | None:
    """Make sure that an adapter (a directory in PEFT's layout) was made for `base` and `prompt`; returns its card.

    `base` is a model directory (None: the one that adapter_config.json names), `prompt` what it will be asked under
    (None: not compared). The shapes of every adapted matrix are always compared; the weights' identity and the prompt's
    hash only where the adapter has a card (None is returned where it has none). Raises DataError for another base,
    ConfigError for another prompt.
    """
    check_layout(adapter)
    folder, card = base_of(adapter, base), read_card(adapter)
    for problem in _misfits(Path(adapter), folder):
        raise DataError(f"adapter {adapter} does not fit the base {folder}: {problem}; give the base it was trained on")
    if card is None:
        return None
    made_for = card.get("base") or {}
    known = made_for.get("fingerprint")
    if known is not None and known != fingerprint(folder):
        raise DataError(
            f"adapter {adapter} was trained on other weights: {made_for.get('name')} with fingerprint {known}, but "
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
    weights = Checkpoint.of_model(base)
    tied = bool(read_json(base / "config.json").get("tie_word_embeddings", False))
    factors = Checkpoint([adapter / LAYOUT[1]])
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
        wanted, found = (inputs, factors.shape(name)[1]) if side == "A" else (outputs, factors.shape(name)[0])
        if wanted != found:
            yield f"{module} is ({outputs}, {inputs}), and the adapter's {side} is for {found} instead of {wanted}"
