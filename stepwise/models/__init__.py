"""What turns a prefix into text, behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from stepwise.errors import ConfigError
from stepwise.prompt import SolvePrompt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stepwise.config import ModelConfig
    from stepwise.models.base import Backend


def load_backend(
    spec: str | Path | Mapping[str, Any] | ModelConfig | Backend, *, prompt: SolvePrompt | None = None, **overrides: Any
) -> Backend:
    """The backend that `spec` names: "llamacpp/lab-weak", "llamacpp/path/to/model.gguf", "hf:ORG/REPO/FILE.gguf", any
    model that LiteLLM reaches ("openai/...", "anthropic/...", with api_base for a server), a ModelConfig, or a backend
    as it is.

    `prompt` is put around every question; without one it asks for steps, but of the lab's models. `overrides` replace
    fields of the ModelConfig (context=512, adapter="a.gguf"). Each call loads the model anew. Raises ConfigError for a
    wrong spec, BackendError where the model cannot be loaded.

    Example:
        >>> with load_backend("llamacpp/lab-weak", context=512) as weak:  # doctest: +SKIP
        ...     weak.continue_solutions([Request(Problem("p", "What is 2 + 2?"))])[0].text
    """
    from stepwise.config import ModelConfig, suited

    if hasattr(spec, "continue_solutions") and not isinstance(spec, type):
        backend = cast("Backend", spec)
        if overrides:
            raise ConfigError(f"{backend.name} is loaded already; {', '.join(overrides)} cannot be changed on it")
        return backend
    spec = ModelConfig.of(spec, "model").model_copy(update=overrides)
    prompt = prompt or suited(SolvePrompt(), spec.model)
    if not spec.local and spec.endpoints:
        from stepwise.models.endpoints import Endpoints

        return Endpoints(spec, prompt)
    if not spec.local:
        from stepwise.models.litellm import LiteLLMBackend

        return LiteLLMBackend(spec, prompt)
    from stepwise.models.llamacpp import LlamaCppBackend
    from stepwise.models.shared import load_engine

    return LlamaCppBackend(load_engine(spec), prompt)


__all__ = ["load_backend"]
