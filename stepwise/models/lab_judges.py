"""The lab's scorer and critic are refused for other models: they know nothing but lab problems."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from stepwise.config import LoadConfig
from stepwise.errors import ConfigError
from stepwise.lab import model_path
from stepwise.models.engine.weights import read_gguf
from stepwise.models.hub import PREFIX, gguf_path


def is_lab_model(model: Any) -> bool:
    """Whether a model (loaded, configured, or a critic's) has the lab's vocabulary, whatever it is called and wherever
    it lies: it has seen nothing but lab problems.

    Example:
        >>> is_lab_model(LoadConfig(model="llamacpp/lab-critic")), is_lab_model(LoadConfig(model="openai/NAME"))
        (True, False)
    """
    if isinstance(model, LoadConfig):
        names = [model.model] if getattr(model, "kind", "label_token") in ("label_token", "judge") else []
    elif hasattr(model, "predictors"):  # a module of DSPy
        names = [str(getattr(each.lm, "model", "")).partition("@")[0] for each in model.predictors()]
    else:
        paths = (getattr(engine, "path", None) for engine in getattr(model, "engines", ()))
        names = [f"llamacpp/{path}" for path in paths if path is not None]
    local = [name.removeprefix("llamacpp/") for name in names if name.startswith("llamacpp/")]
    files = [gguf_path(name) for name in local if not name.startswith(PREFIX)]  # the lab's are on no hub
    return any(_has_lab_vocabulary(file, file.stat().st_mtime_ns) for file in files if file.is_file())


def refuse_lab_judge(judge: Any, role: str, weak: Any, allowed: bool) -> None:
    """Raise `ConfigError` where a scorer or critic is the lab's, the model that it is to judge is another, and that is
    not asked for (`allow_lab`). Each is loaded or configured.
    """
    if not allowed and is_lab_model(judge) and not is_lab_model(weak):
        names = (getattr(model, "model", None) or getattr(model, "name", "that model") for model in (judge, weak))
        called, other = (name if isinstance(name, str) else "that model" for name in names)
        raise ConfigError(
            f"{role}: {called} is of the lab and knows nothing but lab problems, but the weak model is {other}; give a "
            f"{role} for it, or a policy that needs none, or allow this one: allow_lab = true (allow_lab=True in a "
            "script)"
        )


@lru_cache(maxsize=64)
def _has_lab_vocabulary(path: Path, mtime_ns: int) -> bool:
    tokens, lab = (read_gguf(file).fields.get("tokenizer.ggml.tokens", ()) for file in (path, model_path("lab-weak")))
    return bool(tokens) and list(tokens) == list(lab)
