"""The sampler of reinforcement learning: the base GGUF in the engine, with the adapter in training attached to it.

The adapter is exported and attached anew before every step, and never merged. Sampling and training are two programs
that compute the same thing: whether they agree is measured on the tokens of the first step.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from stepwise.config import Config
from stepwise.errors import BackendError, BudgetExceededError, ConfigError, DataError
from stepwise.models.base import Completion, Generator, Request
from stepwise.models.budget import Ledger
from stepwise.models.engine import Engine
from stepwise.models.hub import gguf_path
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.shared import load_engine
from stepwise.models.sizes import GgufFacts
from stepwise.models.wrappers import Wrappers
from stepwise.seeds import rng as seeded
from stepwise.seeds import seed_for
from stepwise.steps import separated, split_steps
from stepwise.training.adapters import base_directory
from stepwise.training.export.gguf import export_gguf
from stepwise.training.lora import Trainee
from stepwise.training.losses import Mismatch
from stepwise.training.rendering import prompt_ids, text_ids
from stepwise.training.rollouts import Hints, RlRollout, token_spans
from stepwise.types import Failure, Problem, Step

T = TypeVar("T")
EXACT = 1e-3
"""Largest mean difference of log-probabilities, in nats, where everything is computed in 32 bits."""
# Measured on lab-weak, on its own problems and (in brackets) on questions of another kind, where it is less sure:
# F32 weights and cache without flash attention 6e-7 (9e-7), with it or an F16 cache 1e-5 (6e-4); Q8_0 with a Q8_0 cache
# 6e-4 (1e-2). lab-strong in place of lab-weak: .09 (1.1). Real models by type of their weights: sampler_gaps.json.
MARGIN = 1.5
"""What is tolerated, of the largest mean difference that was measured for a type of weights."""
OF_CACHE = {"f32": 0.0, "f16": 0.005, "q8_0": 0.02}
"""What the type of the key-value cache adds; flash attention counts as an F16 cache."""
OF_TRAINER = 0.02
"""For a trainer that computes in 16 bits, which was not measured."""


def check_paid(failures: Iterable[Failure | None]) -> None:
    """Raises BudgetExceededError where a cap refused something: a step that lacks it would train on something else.

    >>> check_paid([None, Failure("refused", "the prompt is too long")])  # raises for one of kind "budget"
    """
    for failure in failures:
        if failure is not None and failure.kind == "budget":
            raise BudgetExceededError(
                f"{failure.reason}; the same command goes on when the cap is raised", cap=failure.cap
            )


class Sampler:
    """`models.weak` on an engine of its own; `attach` gives it the trainee's adapter and empty caches.

    `backend` is one that is loaded already; `ledger` has what the run may spend. Raises ConfigError for a model that is
    not local, or that has a GGUF adapter already; what `load_engine` raises.

    Example:
        sampler = Sampler(config)
        sampler.attach(trainee)
        rollouts, usage = sampler.sample(problems, prompts, step=1)
    """

    def __init__(self, cfg: Config, backend: LlamaCppBackend | None = None, ledger: Ledger | None = None) -> None:
        self._cfg, weak = cfg, cfg.models.weak
        if not weak.local:
            raise ConfigError(
                f'models.weak.model is "{weak.model}"; grpo samples with the in-process engine: write '
                '"llamacpp/PATH.gguf", and the directory it was made from in train_from'
            )
        if weak.lora is not None:
            raise ConfigError(
                f"models.weak.adapter is {weak.lora}, which cannot be trained on; give its directory in PEFT's "
                "layout as the adapter to go on with, and leave models.weak.adapter out"
            )
        self._folder = tempfile.TemporaryDirectory()
        self.backend = LlamaCppBackend(load_engine(weak), cfg.prompt) if backend is None else backend
        self.ledger = ledger or Ledger.for_config(cfg)
        self._model = Wrappers(self.ledger, cfg.prompt, callbacks=tuple, run=cfg.hash).model(self.backend, "weak")

    @property
    def engine(self) -> Engine:
        """The engine, with the adapter of the last `attach`."""
        return self.backend.engine

    def attach(self, trainee: Trainee) -> None:
        """Sample with the adapter as it is now, from a cold cache. Raises BackendError where it does not fit."""
        # How far sampler and trainer are apart is measured at the first step: a copy in other bits may be wanted.
        self.backend.set_adapter(trainee.export(Path(self._folder.name) / "adapter.gguf"), check_base=False)
        self.backend.reset_cache()

    def generate(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[tuple[int, ...]],
        *,
        num_samples: int,
        max_tokens: Sequence[int],
        seeds: Sequence[int],
        step: int = 0,
    ) -> list[Completion]:
        """`num_samples` ends of solutions of each of `problems` after each of `prompts` (token ids), in order, as [rl]
        has them drawn; a completion's `request` is the prompt's place.

        `max_tokens` and `seeds` are one per prompt; `step`, of training, is told as the attempt. A prompt is evaluated
        once for its samples. All that is sampled in training is sampled here, through the wrappers of a model. Raises
        BudgetExceededError where a cap has no room for all of them.
        """
        rl = self._cfg.rl
        requests = [
            Request(
                problem, stop="solution", max_tokens=room, n=num_samples, temperature=rl.temperature, top_p=rl.top_p,
                top_k=rl.top_k, seed=seed, role="weak", run=self._cfg.hash, attempt=step, token_ids=ids,
            )
            for problem, ids, room, seed in zip(problems, prompts, max_tokens, seeds, strict=True)
        ]  # fmt: skip
        results = self._model.continue_solutions(requests)
        check_paid(result.failed for result in results)
        return results

    def sample(
        self,
        problems: Sequence[Problem],
        prompts: Mapping[str, tuple[int, ...]],
        step: int,
        hints: Hints | None = None,
    ) -> tuple[list[RlRollout], int]:
        """`rl.group` solutions of each problem, not graded yet, and how many prompt tokens were evaluated for them.

        `prompts` are token ids by problem id, and end with the problem's hint where `hints` has one. The random numbers
        follow from the seed, `step`, the problem's id and the sample's number alone. Raises BackendError where most
        rollouts fail.
        """
        rl, seed = self._cfg.rl, self._cfg.seed
        results = self.generate(
            problems,
            [prompts[problem.id] for problem in problems],
            num_samples=rl.group,
            max_tokens=[rl.max_tokens] * len(problems),
            seeds=[seed_for(seed, problem.id, "rl", step) for problem in problems],
            step=step,
        )
        errors = [result.error for result in results if result.finish == "error"]
        if 2 * len(errors) > len(results):
            name = self.engine.name
            raise BackendError(f"{name} failed for {len(errors)} of {len(results)} rollouts, first: {errors[0]}")
        rows = [self._rollout(result, problems[result.request], step, hints or {}) for result in results]
        return rows, sum(result.usage.evaluated_tokens for result in results)

    def _pieces(self, result: Completion) -> list[bytes]:
        """The bytes of each token of a completion."""
        return [self.engine.token_bytes(token) for token in result.token_ids]

    def _rollout(self, result: Completion, problem: Problem, step: int, hints: Hints) -> RlRollout:
        pieces = self._pieces(result)
        splitter = self._cfg.prompt.splitter
        steps = tuple(split_steps(result.text, splitter))
        spans = token_spans(pieces, result.end, splitter)
        if len(spans) != len(steps):  # would give credit to the wrong tokens
            raise BackendError(
                f"a rollout of problem {problem.id!r} has {len(steps)} steps, but {len(spans)} spans of tokens"
            )
        return RlRollout(
            f"{problem.id}/s{step}/r{result.sample}", step, problem.id, problem.question, result.sample, result.text,
            steps, spans, result.token_ids, result.logprobs or (), result.finish, hint=hints.get(problem.id, ()),
            thought=result.thought,
        )  # fmt: skip

    def prompts(
        self, problems: Iterable[Problem], trainee: Trainee, hints: Hints | None = None
    ) -> dict[str, tuple[int, ...]]:
        """The token ids of each problem's prompt, and of its hint where `hints` has one, by the problem's id.

        Raises DataError, naming the problem, for one that leaves no room in the context, and ConfigError for a context
        that the model has not, and where the two chat templates or tokenizers differ.
        """
        return self._prompts(self.backend, problems, trainee, hints)

    def _prompts(
        self, model: Generator, problems: Iterable[Problem], trainee: Trainee, hints: Hints | None
    ) -> dict[str, tuple[int, ...]]:
        room, prompts = self.engine.context, {}
        if room > trainee.context:
            raise ConfigError(
                f"models.weak.context is {room}, but {trainee.base} has {trainee.context} positions; lower the context"
            )
        for problem in problems:
            steps = (hints or {}).get(problem.id, ())
            ids = tuple(model.prefix_ids(Request(problem, tuple(Step(text, "hint") for text in steps))))
            theirs = tuple(prompt_ids(trainee.tokenizer, self._cfg.prompt, problem.question))
            for text in steps:
                where = f"the hint of problem {problem.id!r}"
                theirs += tuple(text_ids(trainee.tokenizer, separated(text, self._cfg.prompt.splitter), where))
            if ids != theirs:
                raise ConfigError(
                    f"problem {problem.id!r}: the GGUF's chat template and tokenizer give {len(ids)} tokens and those "
                    f"of {trainee.base} {len(theirs)}, or others; make the GGUF from that directory"
                )
            if len(ids) >= room:
                what = "prompt and hint have" if steps else "prompt has"
                raise DataError(
                    f"problem {problem.id!r}: its {what} {len(ids)} tokens, which leaves no room in the context of "
                    f"{room}; raise models.weak.context, or leave the problem out"
                )
            prompts[problem.id] = ids
        return prompts

    def check_agreement(self, gap: Mismatch, trainee: Trainee) -> None:
        """Raise BackendError, with what differs, where sampler and trainer disagree by more than the tolerance."""
        cfg = self._cfg
        weak, facts, base = cfg.models.weak, _sampler_facts(cfg), trainee.model.get_base_model()
        # The type in which the trainer's frozen layers compute, such as "float32".
        trainer = "4bit" if getattr(base, "is_loaded_in_4bit", False) else str(base.dtype).removeprefix("torch.")
        most = _tolerance(cfg, facts, trainer)
        if gap.mean <= most:
            return
        attention = "with" if weak.flash_attention else "without"
        raise BackendError(
            f"at the first step the log-probabilities of sampler and trainer differ by {gap.mean:.2g} nats in the "
            f"mean (at most {gap.worst:.2g}), more than {most:.2g}. The sampler is {weak.model} with "
            f"{facts.quantization} weights, a {weak.kv_type} cache, {attention} flash attention; the trainer computes "
            f"{trainee.base} in {trainer}. If they are not the same weights, mend train_from; if only the rounding "
            "differs, set rl.correction, or rl.tolerance"
        )

    def close(self) -> None:
        """Free the engine; calling it twice does nothing."""
        self.backend.close()
        self._folder.cleanup()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batch_of(items: Sequence[T], size: int, seed: int, step: int) -> list[T]:
    """The problems of step `step` (from 1 on): every pass over `items` is shuffled anew, and what is left of it over
    whole batches is passed over, so that no problem is twice in a batch.

    >>> first, second = batch_of("abcd", 2, seed=1, step=1), batch_of("abcd", 2, seed=1, step=2)
    >>> sorted(first + second)
    ['a', 'b', 'c', 'd']
    """
    size = min(size, len(items))
    epoch, place = divmod(step - 1, len(items) // size)
    order = list(items)
    seeded(seed, "rl", epoch).shuffle(order)
    return order[place * size : (place + 1) * size]


def exact_weights(cfg: Config, folder: str | Path) -> Config:
    """`cfg` with a sampler that computes as the trainer does: weights and cache in 32 bits, without flash attention.

    The GGUF is made from the trainer's own weights, as `folder`/base-f32.gguf, where it is not there yet.

    Example:
        config = exact_weights(config, "out/exact")  # slower, for checks
    """
    base = base_directory(cfg.models.weak)
    path = Path(folder) / "base-f32.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_gguf(base, path, "f32")
    changed = {"model": f"llamacpp/{path}", "train_from": str(base), "kv_type": "f32", "flash_attention": False}
    weak = cfg.models.weak.model_copy(update=changed)
    return cfg.model_copy(update={"models": cfg.models.model_copy(update={"weak": weak})})


def _sampler_facts(cfg: Config) -> GgufFacts:
    return GgufFacts.read(gguf_path(cfg.models.weak.model.partition("/")[2]))


def _tolerance(cfg: Config, facts: GgufFacts, trainer: str) -> float:
    """Largest mean difference of log-probabilities at the first step: `rl.tolerance`, or by what computes in how many
    bits; `facts` are of the sampler's GGUF, `trainer` is the type of the trainer's weights, such as "float32".
    """
    if cfg.rl.tolerance is not None:
        return cfg.rl.tolerance
    kind = "f16" if cfg.models.weak.flash_attention and cfg.models.weak.kv_type == "f32" else cfg.models.weak.kv_type
    return EXACT + _of_weights(facts) + OF_CACHE[kind] + (0.0 if trainer == "float32" else OF_TRAINER)


def _of_weights(facts: GgufFacts) -> float:
    """What is tolerated for the sampler's weights: MARGIN times the mean difference that `evals.sampler_gaps` found for
    their type (for BF16: Q8_0) in the widest measured model of their architecture that is no wider than they are, since
    narrow models lose more. Where there is none, of the model that loses most; where the type was not measured, of the
    type that does.
    """
    if facts.quantization == "ALL_F32":
        return 0.0
    every = json.loads(files("stepwise.training").joinpath("sampler_gaps.json").read_text())["models"].values()
    arch, width = facts.fields.get("general.architecture"), facts.of_arch("embedding_length")
    alike = [model for model in every if model["architecture"] == arch and model["width"] <= width]
    nearest = [max(alike, key=lambda model: model["width"])["gaps"]] if alike else [model["gaps"] for model in every]
    name = {"BF16": "Q8_0"}.get(facts.quantization, facts.quantization)
    measured: list[float] = [gaps[name]["mean"] for gaps in nearest if name in gaps]
    return MARGIN * max(measured or [float(row["mean"]) for gaps in nearest for row in gaps.values()])
