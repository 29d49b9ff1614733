"""From a name or a configuration to a scorer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwise.errors import ConfigError
from stepwise.models.scorers.base import Scorer
from stepwise.prompt import SolvePrompt

if TYPE_CHECKING:
    from stepwise.config import ScorerConfig
    from stepwise.models.http import Server


def load_scorer(spec: str | ScorerConfig | Scorer, *, prompt: SolvePrompt | None = None) -> Scorer:
    """The scorer that `spec` names: "llamacpp/lab-scorer" (label tokens of a GGUF), a `ScorerConfig` of any kind, or a
    scorer as it is.

    `prompt` must be the one that the solutions are written under; a classifier, a pooling server and a judge have
    their own. Raises `ConfigError` for a model that does not go with its kind and for a vocabulary without the label
    tokens or the marker; `BackendError` when the model cannot be loaded.
    """
    from stepwise.config import ScorerConfig

    if isinstance(spec, str):
        spec = ScorerConfig(model=spec)
    if not isinstance(spec, ScorerConfig):
        return spec
    if spec.kind == "constant":
        from stepwise.models.scorers.simple import ConstantScorer

        return ConstantScorer(spec.value)
    if spec.kind == "classifier":
        from stepwise.models.scorers.classifier import ClassifierScorer

        directory = _after("transformers", spec, "the directory of a model with a classification head")
        return ClassifierScorer(
            directory, marker=spec.marker, context=spec.context, dtype=spec.dtype, device=spec.device
        )
    if spec.kind == "pooling":
        from stepwise.models.scorers.pooling import QWEN_PRM_MARKER, PoolingScorer

        name, marker = _after("vllm", spec, "the model's name on the server"), spec.marker or QWEN_PRM_MARKER
        return PoolingScorer(_server(spec), name, marker=marker, requests=spec.sequences)
    return _judge(spec) if spec.kind == "judge" else _label_token(spec, prompt)


def _label_token(spec: ScorerConfig, prompt: SolvePrompt | None) -> Scorer:
    from stepwise.models.scorers.label_token import LabelTokenScorer

    marker = spec.marker or "<|score|>"
    if spec.local:
        from stepwise.models.engine import load_engine

        engine = load_engine(spec)
        try:
            return LabelTokenScorer(engine, prompt=prompt, marker=marker, good=spec.good, bad=spec.bad)
        except ConfigError:
            engine.close()
            raise
    if spec.api_base is None:
        raise ConfigError(
            f'scorer.model is "{spec.model}"; label tokens are read from a local model or from a completions server: '
            'write model = "llamacpp/path.gguf", or add api_base, or choose kind = "judge" for a model behind an API'
        )
    from stepwise.models.scorers.completions import CompletionsReader

    reader = CompletionsReader(_server(spec), spec.model.partition("/")[2], requests=spec.sequences)
    try:
        return LabelTokenScorer(reader, prompt=prompt, marker=marker, good=spec.good, bad=spec.bad, incremental=False)
    except ConfigError:
        reader.close()
        raise


def _judge(spec: ScorerConfig) -> Scorer:
    from stepwise.models.scorers.judge import JudgeScorer, api_completion, engine_completion

    if not spec.local:
        return JudgeScorer(api_completion(spec), spec.model, ask=spec.ask, requests=spec.sequences)
    from stepwise.models.engine import load_engine

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
    from stepwise.models.http import Server

    return Server(spec.api_base or "", key=spec.api_key())


def _after(provider: str, spec: ScorerConfig, what: str) -> str:
    """The part of the model's name after the provider, which must be the one that the kind has."""
    found, _, name = spec.model.partition("/")
    if found != provider:
        raise ConfigError(
            f'scorer.model is "{spec.model}"; a scorer of kind "{spec.kind}" is written "{provider}/..." with {what}'
        )
    return name
