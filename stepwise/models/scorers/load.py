"""From a name or a configuration to a scorer."""

from __future__ import annotations

from typing import Any

from stepwise.config import ScorerConfig
from stepwise.errors import ConfigError
from stepwise.models.http import Server
from stepwise.models.scorers.base import Scorer
from stepwise.models.scorers.classifier import ClassifierScorer
from stepwise.models.scorers.completions import ServedLabelScorer
from stepwise.models.scorers.judge import JudgeScorer, api_completion, engine_completion
from stepwise.models.scorers.label_token import LabelTokenScorer
from stepwise.models.scorers.pooling import QWEN_PRM_MARKER, PoolingScorer
from stepwise.models.scorers.simple import ConstantScorer
from stepwise.models.shared import load_engine
from stepwise.prompt import SolvePrompt


def load_scorer(spec: str | ScorerConfig | Scorer, *, prompt: SolvePrompt | None = None) -> Scorer:
    """The scorer that `spec` names: "llamacpp/lab-scorer" (label tokens of a GGUF), a `ScorerConfig` of any kind, or a
    scorer as it is.

    `prompt` must be the one that the solutions are written under; a classifier, a pooling server and a judge have
    their own. Raises `ConfigError` for a model that does not go with its kind and for a vocabulary without the label
    tokens or the marker; `BackendError` when the model cannot be loaded.
    """
    if isinstance(spec, str):
        spec = ScorerConfig(model=spec)
    if not isinstance(spec, ScorerConfig):
        return spec
    if spec.kind == "constant":
        return ConstantScorer(spec.value)
    if spec.kind == "classifier":
        directory = _after("transformers", spec, "the directory of a model with a classification head")
        return ClassifierScorer(
            directory, marker=spec.marker, context=spec.context, dtype=spec.dtype, device=spec.device
        )
    if spec.kind == "pooling":
        name, marker = _after("vllm", spec, "the model's name on the server"), spec.marker or QWEN_PRM_MARKER
        return PoolingScorer(_server(spec), name, marker=marker, requests=spec.sequences)
    return _judge(spec) if spec.kind == "judge" else _label_token(spec, prompt)


def _label_token(spec: ScorerConfig, prompt: SolvePrompt | None) -> Scorer:
    if not spec.local and spec.api_base is None:
        raise ConfigError(
            f'scorer.model is "{spec.model}"; label tokens are read from a local model or from a completions server: '
            'write model = "llamacpp/path.gguf", or add api_base, or choose kind = "judge" for a model behind an API'
        )
    tokens: dict[str, Any] = {
        "prompt": prompt,
        "marker": spec.marker or "<|score|>",
        "good": spec.good,
        "bad": spec.bad,
    }
    if not spec.local:
        return ServedLabelScorer(_server(spec), spec.model.partition("/")[2], requests=spec.sequences, **tokens)
    engine = load_engine(spec)
    try:
        return LabelTokenScorer(engine, **tokens)
    except ConfigError:
        engine.close()
        raise


def _judge(spec: ScorerConfig) -> Scorer:
    if not spec.local:
        return JudgeScorer(api_completion(spec), spec.model, ask=spec.ask, requests=spec.sequences, remote=True)
    engine = load_engine(spec)
    return JudgeScorer(
        engine_completion(engine, spec.ask),
        engine.name,
        ask=spec.ask,
        requests=spec.sequences,
        memory_bytes=engine.memory_bytes,
        parameters=engine.parameters,
        close=engine.close,
    )


def _server(spec: ScorerConfig) -> Server:
    return Server(spec.api_base or "", key=spec.api_key())


def _after(provider: str, spec: ScorerConfig, what: str) -> str:
    """The part of the model's name after the provider, which must be the one that the kind has."""
    found, _, name = spec.model.partition("/")
    if found != provider:
        raise ConfigError(
            f'scorer.model is "{spec.model}"; a scorer of kind "{spec.kind}" is written "{provider}/..." with {what}'
        )
    return name
