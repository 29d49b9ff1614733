"""From a name or a configuration to a scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwise.errors import ConfigError
from stepwise.prompt import SolvePrompt
from stepwise.scorers.base import Scorer
from stepwise.scorers.label_token import LabelTokenScorer

if TYPE_CHECKING:
    from stepwise.config import ScorerConfig


def load_scorer(spec: str | ScorerConfig | Scorer, *, prompt: SolvePrompt | None = None) -> Scorer:
    """The scorer that `spec` names: "llamacpp/lab-scorer" or a `ScorerConfig` (a GGUF with label tokens), or a scorer
    as it is.

    `prompt` must be the one that the solutions are written under. Raises `ConfigError` for a model behind an API, which
    gives no logits of chosen tokens, and for a vocabulary without the label tokens; `BackendError` when it cannot be
    loaded.
    """
    from stepwise.config import ScorerConfig

    if isinstance(spec, str):
        spec = ScorerConfig(model=spec)
    if not isinstance(spec, ScorerConfig):
        return spec
    if not spec.local:
        raise ConfigError(
            f'scorer.model is "{spec.model}"; a label-token scorer reads the logits of a local model: '
            'write model = "llamacpp/path.gguf"'
        )
    from stepwise.engine import load_engine

    return LabelTokenScorer(load_engine(spec), prompt=prompt, marker=spec.marker, good=spec.good, bad=spec.bad)
