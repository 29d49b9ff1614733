"""A model's answers to problems, graded: pass@1 with and without an adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stepwise.config import Config, ModelConfig
from stepwise.errors import ConfigError, DataError
from stepwise.grading import Verdict, grade_many
from stepwise.models.base import Request
from stepwise.models.budget import Ledger
from stepwise.models.caps import uncapped
from stepwise.models.failures import error_of
from stepwise.models.hub import adapter_path
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.shared import load_engine
from stepwise.models.wrappers import Wrappers
from stepwise.runs.progress import progress
from stepwise.types import Problem

NOT_GENERATED = "NOT_GENERATED"


_NOT_THE_MODELS_FAULT = (NOT_GENERATED, Verdict.UNPARSEABLE_GOLD, Verdict.TIMEOUT, Verdict.ERROR)


_BATCH = 256


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Evaluated:
    """Answers of one model to `problems` problems, `samples` each, drawn at `temperature` with `seed`.

    `judged` answers say something about the model, of which `correct` are right: an answer that is missing or that
    cannot be read counts as wrong, while a text that could not be generated and an answer that the grader could not
    judge do not count at all. `verdicts` has every kind with its count. `model` is the engine's name of weights and
    adapter.

    >>> Evaluated("lab-weak", problems=2, samples=2, correct=3, judged=4, verdicts={}, temperature=1.0, seed=0).accuracy
    0.75
    """

    model: str
    problems: int
    samples: int
    correct: int
    judged: int
    verdicts: Mapping[str, int]
    temperature: float
    seed: int

    @property
    def accuracy(self) -> float | None:
        """pass@1: the share of `judged` answers that are right, None where nothing was judged."""
        return self.correct / self.judged if self.judged else None


def with_adapter(model: ModelConfig, adapter: str | Path | None) -> ModelConfig:
    """`model` with `adapter` attached to it, which `adapter_path` takes; as it is for None.

    >>> with_adapter(ModelConfig(model="llamacpp/lab-weak"), None).adapter is None
    True
    """
    if adapter is None:
        return model
    return ModelConfig(**{**model.model_dump(), "adapter": str(adapter_path(adapter))})


def evaluate(
    cfg: Config,
    problems: Sequence[Problem],
    adapter: str | Path | None = None,
    samples: int = 1,
    around: Wrappers | None = None,
) -> Evaluated:
    """Solve `problems` with models.weak under `cfg.prompt`, `samples` times each, and grade the answers.

    `adapter` is attached for it: a directory that training wrote, or a LoRA GGUF. Temperature and truncation are those
    of [sampling]; a solution has at most rl.max_tokens tokens. The model runs on an engine of its own, which is closed
    again. Equal arguments draw with equal random numbers, so that two adapters are compared on common draws. `around`
    is put around every call: caps, answers that are kept. Raises DataError for a problem without an answer, ConfigError
    for a model that is not local, BackendError where model or adapter cannot be loaded, BudgetExceededError where a cap
    would be passed.

    Example:
        before, after = (evaluate(config, problems, adapter) for adapter in (None, "out/sft/adapter"))
        print(f"{before.accuracy:.1%} -> {after.accuracy:.1%}")
    """
    for problem in problems:
        if problem.answer is None:
            raise DataError(f"problem {problem.id!r} has no answer, so that nothing can be graded; leave it out")
    if not problems or samples < 1:
        raise DataError(f"evaluate: {len(problems)} problems, samples={samples}; give at least one of each")
    if not cfg.models.weak.local:
        raise ConfigError(
            f"models.weak is {cfg.models.weak.model}, behind an API, and what is measured before and after runs in "
            "this process: leave --test and --test-lab out, and measure with `stepwise route`"
        )
    texts: list[tuple[Problem, str | None]] = []
    with (
        LlamaCppBackend(load_engine(with_adapter(cfg.models.weak, adapter)), cfg.prompt) as backend,
        progress("evaluating", len(problems)) as advance,
    ):
        name, size, drawn = backend.name, max(1, _BATCH // samples), cfg.sampling
        model = (around or Wrappers(Ledger(), cfg.prompt)).model(backend, "weak")
        for low in range(0, len(problems), size):
            chunk = problems[low : low + size]
            requests = [
                Request(
                    problem, stop="solution", max_tokens=cfg.rl.max_tokens, n=samples, temperature=drawn.temperature,
                    top_p=drawn.top_p, top_k=drawn.top_k, seed=cfg.seed, role="weak", run=uncapped(cfg).hash,
                )
                for problem in chunk
            ]  # fmt: skip
            results = model.continue_solutions(requests)
            for failure in (result.failed for result in results):
                if failure is not None and failure.kind == "budget":
                    raise error_of(failure)
            texts += [(chunk[result.request], None if result.finish == "error" else result.text) for result in results]
            advance(len(chunk))
    written = [(text, problem.answer) for problem, text in texts if text is not None]
    verdicts = Counter(map(str, grade_many(written)))
    verdicts[NOT_GENERATED] = len(texts) - len(written)
    unjudged = sum(verdicts[kind] for kind in _NOT_THE_MODELS_FAULT)
    return Evaluated(
        model=name,
        problems=len(problems),
        samples=samples,
        correct=verdicts[Verdict.CORRECT],
        judged=len(texts) - unjudged,
        verdicts={kind: count for kind, count in sorted(verdicts.items()) if count},
        temperature=cfg.sampling.temperature,
        seed=cfg.seed,
    )
