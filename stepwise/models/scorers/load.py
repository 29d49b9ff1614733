"""From a name or a configuration to a scorer, and the two that have no model."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

from stepwise.config import LoadConfig, ScorerConfig, suited
from stepwise.config.scorers import SCORER_CARD
from stepwise.errors import BackendError, ConfigError, DataError, ScorerError
from stepwise.io import read_json
from stepwise.models.engine import Engine
from stepwise.models.http import Server
from stepwise.models.hub import adapter_path, hub_hint
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.scorers.base import BatchScorer, Item, Scored, Scorer
from stepwise.models.scorers.calibration import Calibration
from stepwise.models.scorers.classifier import ClassifierScorer, check_classifier
from stepwise.models.scorers.critiques import CritiqueForm
from stepwise.models.scorers.generative import GenerativeScorer, ServedGenerativeScorer
from stepwise.models.scorers.head import Head
from stepwise.models.scorers.judge import JudgeScorer, api_completion
from stepwise.models.scorers.label_token import LabelTokenScorer, ServedLabelScorer
from stepwise.models.scorers.layouts import MATH_SHEPHERD, QUESTION, RLHFLOW, Layout, Marked, PlainText, Question, Turns
from stepwise.models.scorers.pooling import QWEN_PRM_MARKER, PoolingScorer
from stepwise.models.scorers.probe import ProbeScorer, refuse_without_states
from stepwise.models.shared import load_engine
from stepwise.models.wrapped import generator_of
from stepwise.plugins import check_plugin, is_import_path, load_plugin, make_plugin
from stepwise.plugins.identity import plain
from stepwise.prompt import SolvePrompt
from stepwise.records import from_json
from stepwise.types import Problem, Usage, as_problem

_LONGEST = 4096  # tokens that a classifier reads, where its context is not set


def load_scorer(
    spec: str | Path | Mapping[str, Any] | ScorerConfig | Scorer, *, prompt: SolvePrompt | None = None, weak: Any = None
) -> Scorer:
    """The scorer that `spec` names: "llamacpp/lab-scorer" (label tokens of a GGUF), a `ScorerConfig` of any kind, or a
    scorer of your own: an object, its class, or the import path of that ("my_package.my_file:MyScorer").

    `prompt` must be the one that the solutions are written under; without one it is what `load_backend` takes for a
    model of this name. A classifier, a pooling server and a judge have their own. `weak` is the weak model, loaded or
    as a `ModelConfig`, whose states kind "probe" reads; a loaded one stays open. Raises `ConfigError` for a model that
    does not go with its kind, for a vocabulary without the label tokens or the marker, and for what is no scorer;
    `BackendError` when the model cannot be loaded, `CapabilityError` for a weak model without states.

    Example:
        >>> load_scorer(ScorerConfig(kind="constant", value=0.25)).score("1 + 1?", ["That is 2."])
        [0.25]
    """
    path, options = (spec.kind, spec.options) if isinstance(spec, ScorerConfig) else (spec, {})
    if isinstance(path, str) and is_import_path(path):
        spec = load_plugin(path, Scorer, field="scorer.kind" if isinstance(spec, ScorerConfig) else "scorer")
    if isinstance(spec, str | PathLike | Mapping | LoadConfig):
        spec = ScorerConfig.of(spec, "scorer")
    if not isinstance(spec, ScorerConfig):
        check_plugin(spec, Scorer, field="scorer")
        return cast(Scorer, make_plugin(spec, options, field="scorer"))
    if spec.kind == "constant":
        return ConstantScorer(spec.value)
    if spec.kind == "probe":
        return _probe(spec, prompt, weak)
    if spec.kind == "classifier":
        return ClassifierScorer(
            _classifier(spec),
            marker=spec.marker,
            context=spec.context or _LONGEST,
            dtype=spec.dtype,
            device=spec.device,
        )
    if spec.kind == "pooling":
        name, marker = _after("vllm", spec, "the model's name on the server"), spec.marker or QWEN_PRM_MARKER
        return PoolingScorer(_server(spec), name, marker=marker, requests=spec.requests)
    if spec.kind == "generative":
        return _generative(spec)
    return _judge(spec) if spec.kind == "judge" else _label_token(spec, prompt)


def check_scorer(spec: ScorerConfig) -> None:
    """Raise what `load_scorer` would for a classifier whose directory holds none, and for an import path where there is
    no scorer, before other models are loaded.

    Example:
        check_scorer(config.scorer)
    """
    if spec.kind == "classifier":
        check_classifier(_classifier(spec))
    if is_import_path(spec.kind):
        load_plugin(spec.kind, Scorer, field="scorer.kind")


def _classifier(spec: ScorerConfig) -> str:
    return _after("transformers", spec, "the directory of a model with a classification head")


def _probe(spec: ScorerConfig, prompt: SolvePrompt | None, weak: Any) -> Scorer:
    head = Head.load(_after("probe", spec, "the directory that `stepwise train probe` wrote"))
    if weak is None:
        raise ConfigError(
            'a scorer of kind "probe" reads the states of the weak model; give it: load_scorer(..., weak=)'
        )
    refuse_without_states(weak)
    if not isinstance(weak, LoadConfig):
        return ProbeScorer(generator_of(weak), head, force=spec.force)
    engine = load_engine(weak)
    try:
        backend = LlamaCppBackend(engine, prompt or suited(SolvePrompt(), weak.model))
        return ProbeScorer(backend, head, force=spec.force, owned=True)
    except BaseException:
        engine.close()
        raise


def _label_token(spec: ScorerConfig, prompt: SolvePrompt | None) -> Scorer:
    if not spec.local and spec.api_base is None:
        raise ConfigError(
            f'scorer.model is "{spec.model}"; label tokens are read from a local model or from a completions server: '
            'write model = "llamacpp/path.gguf", or add api_base, or choose kind = "judge" for a model behind an API, '
            'or kind = "classifier" with "transformers/DIRECTORY" for a classification head'
        )
    marker, good, bad = spec.tokens
    prompt = prompt or suited(SolvePrompt(), spec.model)
    tokens: dict[str, Any] = {"prompt": prompt, "marker": marker, "good": good, "bad": bad}
    if not spec.local:
        if spec.calibration:
            raise ConfigError(f"scorer.calibration is for a local model, not for {spec.model}; remove it")
        if spec.layout != "marker":
            raise ConfigError(
                f'scorer.layout is "{spec.layout}", which is read on a local model only; write model = '
                f'"llamacpp/path.gguf", or layout = "marker" for {spec.model}'
            )
        return ServedLabelScorer(_server(spec), spec.model.partition("/")[2], requests=spec.requests, **tokens)
    return _on_engine(spec, lambda engine: local_scorer(engine, spec, prompt, _calibration_of(spec, prompt)))


def local_scorer(
    engine: Engine, spec: ScorerConfig, prompt: SolvePrompt, calibration: Calibration | None = None
) -> LabelTokenScorer:
    """The scorer of kind "label_token" that `spec` describes, on an engine that is loaded. Raises `ConfigError`.

    Example:
        scorer = local_scorer(engine, ScorerConfig(layout="steps"), sw.SolvePrompt())
    """
    marker, good, bad = spec.tokens
    return LabelTokenScorer(
        engine, layout=_layout(engine, spec, prompt), prompt=prompt, marker=marker, good=good, bad=bad,
        calibration=calibration,
    )  # fmt: skip


def _calibration_of(spec: ScorerConfig, prompt: SolvePrompt) -> Calibration | None:
    """What `scorer.calibration`, else the card of the adapter, says of its scores; None without either. Raises
    `ConfigError` where the adapter was trained to read other tokens, or under another prompt.
    """
    own = _calibration(spec.calibration, "remove scorer.calibration") if spec.calibration else None
    path = adapter_path(spec.adapter).with_name("card.json") if spec.adapter else None
    if path is None or not path.is_file():
        return own
    remedy = "restore it, or remove it to go without its checks"
    facts = read_json(path, remedy).get("scorer")
    if not isinstance(facts, dict):
        return own
    card = read_json(path, remedy, SCORER_CARD)
    for name, value in facts["reading"].items():
        if (given := getattr(spec, name, None)) != value:
            raise ConfigError(
                f"scorer.{name} is {given!r}, but the adapter {spec.adapter} was trained with {value!r}; leave it out"
            )
    if spec.layout in ("marker", "steps") and card["prompt_hash"] != prompt.hash:
        raise ConfigError(
            f"the scorer {spec.adapter} was trained under the prompt {card['prompt_hash']}, but [prompt] has the hash "
            f"{prompt.hash}; set [prompt] as its card has it: {json.dumps(card['config']['prompt'])}"
        )
    return own or _calibration(path, remedy, "scorer.calibration")


def _calibration(path: str | Path, remedy: str, key: str = "") -> Calibration:
    """The calibration in a JSON file, in an object of it where `key` names one."""
    value = read_json(path, remedy)
    for name in key.split(".") if key else ():
        value = value[name]
    try:
        return from_json(Calibration, json.dumps(value))
    except ValueError as error:
        raise DataError(f"{path}: {key or 'it'} is no calibration ({error!s:.200}); {remedy}") from None


def _layout(engine: Engine, spec: ScorerConfig, prompt: SolvePrompt) -> Layout | None:
    """How solutions are written down for this scorer; None is the solve prompt with a marker after each step."""
    marker, good, _ = spec.tokens
    if spec.layout == "steps":
        return Marked(engine, prompt, marker)
    if spec.layout == "text":
        return PlainText(engine, spec.template or MATH_SHEPHERD[0], spec.step_template or MATH_SHEPHERD[1], marker)
    if spec.layout == "turns":
        return Turns(engine, spec.template or RLHFLOW[0], spec.step_template or RLHFLOW[1], good)
    return None


def _on_engine(spec: ScorerConfig, make: Callable[[Engine], Scorer]) -> Scorer:
    """A scorer on an engine of its own, which is closed where the scorer cannot be made."""
    engine = load_engine(spec, curve=None)  # it only reads: there is no batch of decodes to split
    try:
        return make(engine)
    except (ConfigError, BackendError) as error:
        engine.close()
        raise type(error)(f"[scorer]: {error}") from None


def _judge(spec: ScorerConfig) -> Scorer:
    if not spec.local:
        return JudgeScorer(
            api_completion(spec),
            _api_name(spec),
            ask=spec.ask,
            template=spec.template or QUESTION,
            requests=spec.requests,
            remote=True,
        )
    _, good, bad = spec.tokens
    form = f'Answer with one word: "{good}" if it is correct, "{bad}" if it is not.'

    def make(engine: Engine) -> LabelTokenScorer:
        layout = Question(engine, spec.template or QUESTION, form)
        return LabelTokenScorer(
            engine, layout=layout, good=good, bad=bad, name=f"judge {engine.name}", verdict=spec.ask == "verdict"
        )

    return _on_engine(spec, make)


def _generative(spec: ScorerConfig) -> Scorer:
    form = CritiqueForm.load(spec.template or "thinkprm")
    size = {"votes": spec.votes, "critique_tokens": spec.critique_tokens}
    if spec.local:
        return _on_engine(spec, lambda engine: GenerativeScorer(engine, form, ask=spec.ask, **size))
    if spec.ask == "probability":
        raise ConfigError(
            'scorer.ask is "probability", which is read from the logits of a verdict, and an API has none: set '
            'ask = "verdict" (the share of votes), or take a local model'
        )
    ask = api_completion(spec)
    drawn = {"temperature": form.temperature, "top_p": form.top_p} if spec.votes > 1 else {}

    def complete(chat: list[dict[str, str]], max_tokens: int) -> tuple[str, Usage]:
        return ask(chat, max_tokens=max_tokens, **drawn)

    return ServedGenerativeScorer(complete, _api_name(spec), form, requests=spec.requests, remote=True, **size)


def _api_name(spec: ScorerConfig) -> str:
    """One name, one server."""
    return f"{spec.model}@{spec.api_base}" if spec.api_base else spec.model


def _server(spec: ScorerConfig) -> Server:
    return Server(spec.api_base or "", key=spec.api_key())


def _after(provider: str, spec: ScorerConfig, what: str) -> str:
    """The part of the model's name after the provider, which must be the one that the kind has."""
    found, _, name = spec.model.partition("/")
    if found != provider:
        raise ConfigError(
            f'scorer.model is "{spec.model}"; a scorer of kind "{spec.kind}" is written "{provider}/..." with {what}'
            f"{hub_hint(spec.model) if provider == 'transformers' else ''}"
        )
    return name


class _Free(BatchScorer):
    """A scorer without a model: it costs nothing."""

    incremental = True
    parameters: int | None = 0
    memory_bytes: int | None = 0


class ConstantScorer(_Free):
    """Gives every step the score `p`: a control, and a stand-in where a scorer is asked for but not wanted.

    Example:
        >>> ConstantScorer(0.25).score("1 + 1?", ["One and one.", "That is 2."])
        [0.25, 0.25]
    """

    def __init__(self, p: float):
        if not 0 <= p <= 1:
            raise ScorerError(f"ConstantScorer: p is {p!r}; give a probability in [0, 1]")
        super().__init__(f"constant {p}")
        self.p = float(p)

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """`p` for each step."""
        return [Scored([self.p] * len(steps), Usage(self.name)) for _, steps in items]


class PerfectScorer(_Free):
    """Knows which steps are right: the bound that no scorer beats, where a checker exists (the lab's problems have
    one).

    `check(problem, steps)` says of each step whether it is right given the problem and the steps before it as
    written; a right step scores 1.0, a wrong one 0.0.

    Example:
        >>> PerfectScorer(lambda problem, steps: ["3" not in step for step in steps]).score("1 + 1?", ["That is 3."])
        [0.0]
    """

    def __init__(self, check: Callable[[Problem, Sequence[str]], Sequence[bool]], name: str = "perfect"):
        super().__init__(name)
        self.check = check
        try:
            self._asked_for = json.dumps(plain(check))
        except TypeError:  # of which cannot be said which one it is
            self._asked_for = f"unsaved-{uuid.uuid4().hex[:8]}"

    def score_detailed(self, items: Sequence[Item]) -> list[Scored]:
        """1.0 for each right step, 0.0 for each wrong one."""
        return [
            Scored([float(bool(right)) for right in self.check(as_problem(problem), steps)], Usage(self.name))
            for problem, steps in items
        ]
