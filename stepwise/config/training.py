"""How a model is trained: the sections [lora], [sft], [dpo], [prm] and [rl] of the configuration."""

from __future__ import annotations

import difflib
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from stepwise.config.errors import FrozenConfig
from stepwise.plugins import is_import_path

Scheme = Literal[
    "outcome", "first_error", "vppo", "vineppo", "capo", "pure_min", "oppo", "distill", "shuffled"
]  # keys of stepwise.credit.SCHEMES


class LoraConfig(FrozenConfig):
    """The LoRA adapter that training changes; the base model stays as it is.

    >>> LoraConfig(rank=8, alpha=16.0).alpha
    16.0
    """

    rank: int = Field(default=16, ge=1)
    """rank of the adapter"""
    alpha: float = Field(default=32.0, gt=0)
    """the adapter's output is scaled by alpha / rank"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """on the adapter's input, in supervised training only"""
    target_modules: str | list[str] = "all-linear"
    """layers that get an adapter: "all-linear" (all but the head), or names such as ["q_proj", "v_proj"]"""
    base: Literal["auto", "float32", "bfloat16", "4bit"] = "auto"
    """how the frozen base lies in memory; auto: float32 on a CPU, bfloat16 on a GPU; 4bit needs bitsandbytes"""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps (never run); auto: a CUDA device where there is one, else the CPU"""
    checkpointing: bool = False
    """gradient checkpointing: less memory, about a third more time; turn it on for models of billions"""
    micro_tokens: int = Field(default=8192, ge=16)
    """most tokens, padding included, in one forward and backward pass; fewer where a probe says that memory is short"""
    tile: int = Field(default=1024, ge=1)
    """positions whose logits are in memory at a time, for 8,192 tokens of the vocabulary"""


class FitConfig(FrozenConfig):
    """Passes over a dataset: what supervised and preference training share.

    >>> FitConfig(epochs=2).learning_rate
    0.0002
    """

    epochs: int = Field(default=4, ge=1)
    """passes over the dataset"""
    tokens: int | None = Field(default=None, ge=1)
    """instead of epochs: stop after so many tokens with a loss; comparisons at equal tokens need it"""
    batch: int = Field(default=64, ge=1)
    """rows in one step of the optimizer; unset, and not for the lab's models: of few rows fewer, for 20 steps"""
    learning_rate: float = Field(default=2e-4, gt=0)
    """at its peak; it falls as a cosine to a tenth"""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """share of the steps in which the learning rate rises"""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's"""
    clip_norm: float = Field(default=1.0, gt=0)
    """largest norm of the gradient"""
    save_every: int = Field(default=20, ge=1)
    """steps between checkpoints: what a crash costs at most"""
    save_minutes: float = Field(default=10.0, gt=0)
    """minutes between checkpoints, where so many steps take longer"""


class SftConfig(FitConfig):
    """Supervised training on prefix and intervention (InT, arXiv 2601.14209).

    Example:
        config = sw.Config.load(None, ["sft.epochs=2", "sft.learning_rate=1e-3"])
        sw.sft("out/int/dataset.jsonl", config, "out/sft")
    """

    prefix_weight: float = Field(default=1.0, ge=0)
    """loss weight of the kept prefix's tokens; 0 leaves them out"""
    intervention_weight: float = Field(default=1.0, ge=0)
    """loss weight of the intervention's tokens"""
    call_weight: float = Field(default=16.0, ge=0)
    """loss weight of a marker in rows of --kind calls: one token, where a step of one's own is a dozen"""
    suffix_weight: float = Field(default=1.0, ge=0)
    """loss weight of what follows it, in rows that have a suffix"""
    replay: float = Field(default=0.0, ge=0, lt=1)
    """share of the rows that are the model's own right solutions, against forgetting; needs such rows"""


class DpoConfig(FitConfig):
    """Preference training on interventions against wrong steps (DPO, arXiv 2305.18290).

    >>> DpoConfig(beta=0.2).learning_rate
    2e-05
    """

    learning_rate: float = Field(default=2e-5, gt=0)
    """at its peak; it falls as a cosine to a tenth; lower than supervised training's"""
    beta: float = Field(default=0.1, gt=0)
    """how strongly the model is held to where it started: rewards are beta times log-ratios"""
    nll: float = Field(default=0.0, ge=0)
    """weight of the chosen step's loss in nats per token, as in RPO (arXiv 2404.19733); 0 leaves it out"""


class PrmConfig(FitConfig):
    """Training of a process reward model that answers with a label token (`stepwise train scorer`).

    >>> PrmConfig(layout="text").good
    '+'
    """

    epochs: int = Field(default=3, ge=1)
    """passes over the labels"""
    batch: int = Field(default=16, ge=1)
    """solutions in one step of the optimizer"""
    layout: Literal["steps", "marker", "text", "turns"] = "steps"
    """what it reads, as in [scorer]; steps: the solution as it was written, with a label where each step ends"""
    marker: str | None = None
    """token after each step, for the layouts that have one"""
    good: str = "+"
    """token that stands for a right step"""
    bad: str = "-"
    """token that stands for a wrong step"""
    calibration: Literal["platt", "temperature", "isotonic"] = "platt"
    """how scores become probabilities, on the problems left out for validation; isotonic needs hundreds of labels"""


class CreditConfig(FrozenConfig):
    """What each step of a rollout is credited with; `stepwise.credit` has the formulas.

    >>> CreditConfig(scheme="vineppo", continuations=8).continuations
    8
    """

    scheme: Scheme | str = "outcome"
    """how outcomes become advantages per token, or a scheme of your own: my_package.my_file:MyCredit"""
    first_error: Literal["scorer", "critic", "given"] = "scorer"
    """who finds first errors: the scorer, the critic (shown the reference), or a function given to grpo"""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """a step that the scorer puts below this is wrong"""
    scale: bool = False
    """outcome, capo: divide by the standard deviation, as GRPO does"""
    leave_one_out: bool = False
    """outcome: the mean of the other rollouts as baseline, as RLOO does"""
    blame: Literal["step", "rest"] = "step"
    """first_error: the error step alone, or all from it on"""
    alpha: float = Field(default=0.5, ge=0)
    """vppo: reward of the tokens of the good prefix"""
    shorten: float = Field(default=0.1, ge=0, lt=1)
    """vppo: the good prefix is shortened by this share of the rollout"""
    relu: bool = False
    """vppo: no negative advantage on the good prefix"""
    continuations: int = Field(default=4, ge=1)
    """vineppo: fresh rollouts from every step boundary"""
    critiques: int = Field(default=4, ge=1)
    """capo: critiques of each rollout"""
    agree: Literal["intersection", "majority", "union"] = "majority"
    """capo: how many critiques must name a step"""
    evidence_clip: float = Field(default=1.0, gt=0)
    """oppo: largest size of the log-likelihood ratio of one token"""
    distill_clip: float = Field(default=5.0, gt=0)
    """distill: largest size of a token's advantage, in nats"""

    @field_validator("scheme")
    @classmethod
    def _is_known_or_an_import_path(cls, value: str) -> str:
        names = get_args(Scheme)
        if value not in names and not is_import_path(value):
            near = difflib.get_close_matches(value, names, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"it is one of {', '.join(names)}"
            raise ValueError(f'"{value}" is no credit scheme; {hint} One of your own: "my_package.my_file:MyCredit"')
        return value


class RlConfig(FrozenConfig):
    """Reinforcement learning on groups of rollouts, on-policy.

    >>> RlConfig(steps=20, loss="dapo", clip_high=0.28).group
    8
    """

    steps: int = Field(default=100, ge=1)
    """optimizer steps, if updates = 1; else batches of rollouts"""
    problems: int = Field(default=16, ge=1)
    """problems in one batch"""
    group: int = Field(default=8, ge=2)
    """rollouts of each problem"""
    max_tokens: int = Field(default=1024, ge=1)
    """most tokens of one rollout"""
    temperature: float = Field(default=1.0, gt=0)
    """of the rollouts; anything but 1 is another distribution than the one trained, and refused with a correction"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """1 switches it off; truncated sampling is refused with a correction"""
    top_k: int = Field(default=0, ge=0)
    """0 switches it off; truncated sampling is refused with a correction"""
    learning_rate: float = Field(default=1e-4, gt=0)
    """constant after the warm-up"""
    warmup: int = Field(default=0, ge=0)
    """steps in which the learning rate rises"""
    clip_norm: float = Field(default=1.0, gt=0)
    """largest norm of the gradient"""
    loss: Literal["grpo", "dr_grpo", "dapo", "grpo_lambda"] = "dr_grpo"
    """how token losses are added up: per rollout, by a constant, over all tokens; or GRPO-lambda's traces"""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """the ratio counts down to 1 - clip_low"""
    clip_high: float = Field(default=0.2, gt=0)
    """and up to 1 + clip_high; DAPO takes 0.28"""
    kl: float = Field(default=0.0, ge=0)
    """weight of the divergence from the base model, which is the disabled adapter"""
    updates: int = Field(default=1, ge=1)
    """optimizer steps on each batch of rollouts"""
    trace: float = Field(default=0.99, ge=0, le=1)
    """grpo_lambda: decay of the trace"""
    laser: float = Field(default=0.0, ge=0)
    """weight of LaSeR's self-scoring loss; 0 switches it off"""
    laser_mix: float = Field(default=0.1, ge=0, le=1)
    """LaSeR: share of the self-score's advantage"""
    reward: str | None = None
    """what a rollout earns, by import path: "my_package.my_file:MyReward", or a function; unset: 1 right, 0 wrong"""
    marker: str | None = Field(default=None, min_length=1)
    """a token by which models.weak may ask models.strong to write a step; unset: it solves alone"""
    strong_cost: float = Field(default=0.0, ge=0)
    """with marker: what each token of models.strong takes off the reward"""
    no_answer: Literal["mask", "wrong"] = "wrong"
    """a rollout without an answer earns what a wrong one does, or ("mask") carries no reward and leaves its group"""
    correction: Literal["none", "truncate", "mask"] = "none"
    """where the sampler is not the trainer (quantized weights): weigh tokens by the truncated ratio, or mask them"""
    correction_cap: float = Field(default=2.0, gt=1)
    """where the ratio is cut, or beyond which a token is masked"""
    tolerance: float | None = Field(default=None, gt=0)
    """largest mean difference of log-probabilities of sampler and trainer at step 1; unset: by weights and cache"""
    save_every: int = Field(default=5, ge=1)
    """steps between checkpoints: what a crash costs at most"""
    save_minutes: float = Field(default=10.0, gt=0)
    """minutes between checkpoints, where so many steps take longer"""
    look: int = Field(default=24, ge=0)
    """problems whose groups are sampled before training, to see whether any can teach something; 0: none"""
    credit: CreditConfig = CreditConfig()
    """a table of [rl.credit], or the import path of a scheme of your own"""

    @field_validator("credit", mode="before")
    @classmethod
    def _path_is_a_scheme(cls, value: Any) -> Any:
        return {"scheme": value} if isinstance(value, str) else value

    @field_validator("reward")
    @classmethod
    def _is_an_import_path(cls, value: str | None) -> str | None:
        if value is not None and not is_import_path(value):
            raise ValueError(f'"{value}" is no import path; write "my_package.my_file:MyReward"')
        return value

    @model_validator(mode="after")
    def _calls_can_be_credited(self) -> Self:
        if self.strong_cost and self.marker is None:
            raise ValueError(f'strong_cost is {self.strong_cost:g}, but nobody is asked; set marker = "<|reserved_0|>"')
        if self.marker is not None and (self.laser or self.loss == "grpo_lambda"):
            what = "laser" if self.laser else 'loss = "grpo_lambda"'
            raise ValueError(
                f"{what} reads a rollout as one text, which it is not with a marker; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _corrects_what_can_be_corrected(self) -> Self:
        truncated = self.temperature != 1.0 or self.top_p < 1.0 or self.top_k > 0
        if self.correction != "none" and truncated:
            raise ValueError(
                "the ratio of a correction is biased where sampling is truncated or tempered; "
                'set temperature = 1.0, top_p = 1.0 and top_k = 0, or correction = "none"'
            )
        return self
