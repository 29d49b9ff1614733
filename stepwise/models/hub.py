"""Where the weights of a model lie: a shipped lab model, a path, or a file of the Hugging Face hub.

"hf:ORG/REPO/FILE.gguf" is one file of a repository and "hf:ORG/REPO" the whole repository (a directory in transformers'
layout). Writing "hf:" is what asks for a download; nothing else ever causes one. Files go to huggingface_hub's own
cache, and HF_HUB_OFFLINE=1 uses what is there already.
"""

from __future__ import annotations

import difflib
import re
from functools import lru_cache
from pathlib import Path

from stepwise.errors import BackendError, ConfigError, DataError, MissingDependencyError, redact
from stepwise.lab import ADAPTERS, MODELS, model_path

PREFIX = "hf:"
_ADAPTER = "adapter.gguf"
_REMEDIES = {
    "GatedRepoError": "accept its terms on the hub and set HF_TOKEN",
    "RepositoryNotFoundError": "check the name, or set HF_TOKEN where the repository is private",
    "EntryNotFoundError": "check the file's name in the repository",
    "RemoteEntryNotFoundError": "check the file's name in the repository",
    "LocalEntryNotFoundError": "connect to the network (and unset HF_HUB_OFFLINE), or give the path of a local file",
    "OfflineModeIsEnabled": "unset HF_HUB_OFFLINE, or give the path of a local file",
    "HFValidationError": 'write "hf:ORG/REPO/FILE.gguf"',
}


def gguf_path(name: str) -> Path:
    """Path of the GGUF that `name` (what follows "llamacpp/") stands for: a lab model, "hf:...", or a path.

    Raises DataError for a lab model whose weights are missing, and what `fetch` raises. A path is not looked at. The
    name of a lab adapter stands for the model it belongs to.

    >>> gguf_path("lab-critic") == gguf_path("lab-weak"), gguf_path("models/mine.gguf").name
    (True, 'mine.gguf')
    """
    return model_path(ADAPTERS.get(name, name)) if name in (*MODELS, *ADAPTERS) else local_path(name)


def gguf_file(name: str) -> Path:
    """`gguf_path` of a file that is there; raises BackendError, with what may be meant, where it is not.

    >>> gguf_file("lab-weak").name
    'model.gguf'
    """
    path = gguf_path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, (*MODELS, *ADAPTERS), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "give the path of a GGUF, or the name of a lab model"
        raise BackendError(f"{path}: no such file; {hint}{hub_hint(name, '/FILE.gguf')}")
    return path


def local_path(name: str | Path) -> Path:
    """A path as it is, "hf:..." as that of what was downloaded.

    >>> local_path("models/weak.gguf").name
    'weak.gguf'
    """
    return fetch(str(name)) if str(name).startswith(PREFIX) else Path(name).expanduser()


def hub_hint(name: str | Path, file: str = "") -> str:
    """What to write where a path that is not there looks like the name of a repository; "" where it does not.

    >>> hub_hint("Qwen/Qwen3-0.6B")
    '; "hf:Qwen/Qwen3-0.6B" is downloaded from the hub'
    """
    is_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(name)) and not str(name).endswith(".gguf")
    return f'; "{PREFIX}{name}{file}" is downloaded from the hub' if is_name else ""


def adapter_path(name: str | Path) -> Path:
    """Path of the LoRA adapter in GGUF that `name` stands for: a lab adapter, "hf:...", its path, or the directory that
    training wrote it into, or that of the run. Raises DataError for a directory that has none.

    >>> adapter_path("lab-critic").name
    'adapter.gguf'
    """
    if name in ADAPTERS:
        return model_path(str(name))
    path = local_path(name)
    if not path.is_dir():
        return path
    for file in (path / _ADAPTER, path / "adapter" / _ADAPTER):
        if file.is_file():
            return file
    raise DataError(f"{name} has no {_ADAPTER}; write it with export_lora_gguf, or give the GGUF's path")


@lru_cache(maxsize=256)
def fetch(spec: str) -> Path:
    """The local path of "hf:ORG/REPO/FILE" or "hf:ORG/REPO", downloaded where it is not in the cache yet.

    Raises ConfigError for a spec of another form, MissingDependencyError without huggingface_hub, BackendError where
    the hub has no such file, refuses it, or cannot be reached.

    Example:
        path = fetch("hf:ORG/REPO/FILE.gguf")
    """
    parts = spec.removeprefix(PREFIX).split("/")
    if not spec.startswith(PREFIX) or len(parts) < 2 or not all(parts):
        raise ConfigError(f'{spec!r} is not a place on the hub; write "hf:ORG/REPO/FILE.gguf" or "hf:ORG/REPO"')
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependencyError(
            f"{spec}: huggingface_hub is needed to load from the hub; pip install huggingface_hub, or give a local path"
        ) from error
    try:
        if file:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        return Path(huggingface_hub.snapshot_download(repository))
    except Exception as error:  # the hub's own errors, those of its HTTP library, no room on the disk
        kind = next((cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _REMEDIES), "")
        remedy = _REMEDIES.get(kind, _REMEDIES["LocalEntryNotFoundError"])
        lines = redact(str(error)).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"{spec} could not be loaded from the hub ({lines[0]}); {remedy}") from error
