"""The arms of the training comparison: what each is trained on, and how, at equal training tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from stepwise import lab
from stepwise.config import Config
from stepwise.data.examples import Example, read_examples, unique
from stepwise.interventions import CollectSettings, collect
from stepwise.interventions.collection import read_stage
from stepwise.interventions.datasets import pairs, write_dataset
from stepwise.interventions.settings import BuildSettings
from stepwise.io import read_rows
from stepwise.lab.families import FAMILIES
from stepwise.lab.problems import LabProblem
from stepwise.lab.references import Granularity, reference
from stepwise.training import dpo, grpo, sft
from stepwise.training.adapters import base_directory
from stepwise.training.rendering import render_all
from stepwise.training.rollouts import hints_of
from stepwise.types import Problem

_FROZEN = ConfigDict(extra="forbid")
RARE, OFTEN = 0.005, 0.05  # shares of right uses: up to RARE a sample almost never finds the right rule


@dataclass(frozen=True)
class Arm:
    """One way to train: supervised on the dataset `data` ("" for none; "pairs": DPO), then reinforcement or not.

    `sft` and `rl` are settings of their sections beside the common ones. `alone` spends the tokens of both phases in
    the one that it has. `truth`: first errors come from the problems' own checker, and are moved by `shift` steps.
    `hints`: problems that have an intervention are also begun with the kept prefix and it.
    `labels` names what it uses that costs something beside tokens.
    """

    data: str = ""
    rl: dict[str, Any] | None = None
    sft: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    truth: bool = False
    shift: int = 0
    hints: bool = False
    labels: str = ""

    @property
    def supervised(self) -> str:
        """A name for what its supervised phase does; arms of one name share that phase, "" for those without."""
        settings = [f"{key}={value:g}" for key, value in sorted(self.sft.items())]
        return "-".join([self.data, *settings, *(["alone"] if self.alone else [])]) if self.data else ""


def _credit(scheme: str, **more: Any) -> dict[str, Any]:
    return {"credit": {"scheme": scheme, **more}}


PAPER: dict[str, Arm] = {
    "base": Arm(),
    "sham": Arm("own_corpus", alone=True),
    "rl": Arm(rl={}, alone=True),
    "rft+rl": Arm("rejection", rl={}),
    "reference+rl": Arm("reference", rl={}, labels="refs"),
    "compressed+rl": Arm("compressed", rl={}, labels="refs"),
    "reflection+rl": Arm("reflection", rl={}, labels="refs"),
    "strong+rl": Arm("strong", rl={}, labels="strong"),
    "int": Arm("intervention", labels="refs"),
    "int+rl": Arm("intervention", rl={}, labels="refs"),
    "int+replay+rl": Arm("intervention", rl={}, sft={"replay": 0.5}, labels="refs"),
    "true step+rl": Arm("true_step", rl={}, labels="truth"),
    "dpo": Arm("pairs", labels="refs"),
    "dpo+rl": Arm("pairs", rl={}, labels="refs"),
    "rl, groups of 32": Arm(rl={"group": 32, "problems": 2}, alone=True),
    "distill": Arm(rl=_credit("distill"), alone=True, labels="strong"),
    "rl, hints": Arm(rl={}, alone=True, hints=True, labels="refs"),
}
CLONED: dict[str, Arm] = {
    "reference": Arm("reference", labels="refs"),
    "strong": Arm("strong", labels="strong"),
    "int, suffix": Arm("suffix", labels="refs"),
    "int, no prefix": Arm("intervention", sft={"prefix_weight": 0.0}, labels="refs"),
    "int, no filter": Arm("unfiltered", labels="refs"),
    "int, moved": Arm("moved", labels="refs"),
    "true step": Arm("true_step", labels="truth"),
    "true step+replay": Arm("true_step", sft={"replay": 0.5}, labels="truth"),
}


def _with_truth(scheme: str, shift: int = 0) -> Arm:
    return Arm(rl=_credit(scheme, first_error="given"), alone=True, truth=True, shift=shift, labels="truth")


CREDIT: dict[str, Arm] = {
    "first_error, true": _with_truth("first_error"),
    "first_error, scorer": Arm(rl=_credit("first_error"), alone=True, labels="scorer"),
    "first_error, before": _with_truth("first_error", -1),
    "first_error, after": _with_truth("first_error", 1),
    "vppo, true": _with_truth("vppo"),
    "vppo, scorer": Arm(rl=_credit("vppo"), alone=True, labels="scorer"),
    "vineppo": Arm(rl=_credit("vineppo"), alone=True),
    "shuffled, true": _with_truth("shuffled"),
}
ARMS = {**PAPER, **CLONED, **CREDIT}
DEFAULT = (
    "sham", "rl", "rft+rl", "reference+rl", "reflection+rl", "strong+rl", "int", "int+rl",
    "int, suffix", "int, no prefix", "int, no filter",
    "vineppo", "first_error, true", "first_error, scorer", "vppo, true", "vppo, scorer",
)  # fmt: skip
"""What three seeds of fit into about three hours on two idle cores; the longest is not the last."""
COLLECTED = {"pairs", "true_step", "intervention", "suffix", "unfiltered", "moved", "rejection", "reflection"}
"""Datasets that are made from the collection."""


@checked(frozen=True, config=_FROZEN)
class Scale:
    """How much is trained: `sft_tokens` with a loss, then `rl_steps` batches of rollouts; `pool` training problems."""

    pool: int
    sft_tokens: int
    rl_steps: int
    rl_problems: int
    sft_rate: float
    rl_rate: float

    def config(self, cfg: Config, arm: Arm, seed: int) -> Config:
        """The configuration of one run. Tokens that the arm does not spend in one phase go to its other one."""
        tokens_per_step = self.rl_problems * cfg.rl.group * TOKENS_OF_A_SOLUTION
        steps, tokens = self.rl_steps, self.sft_tokens
        if arm.alone and arm.rl is not None:
            steps += round(self.sft_tokens / tokens_per_step)
        if arm.alone and arm.rl is None:
            tokens += self.rl_steps * tokens_per_step
        values = cfg.model_dump()
        values["seed"] = seed
        values["sft"] |= {"tokens": tokens, "learning_rate": self.sft_rate, **arm.sft}
        values["dpo"] |= {"tokens": tokens, "learning_rate": DPO_RATE * self.sft_rate, "batch": PAIRS_OF_A_STEP}
        own = {
            "steps": steps,
            "problems": self.rl_problems,
            "learning_rate": self.rl_rate,
            "max_tokens": 256,
            "no_answer": "mask",
        }
        given = arm.rl or {}
        credit = values["rl"]["credit"] | given.get("credit", {})
        values["rl"] |= own | given | {"credit": credit}
        return Config.model_validate(values)


TOKENS_OF_A_SOLUTION = 100  # of the lab, about
STEP_TOKENS = 2000  # with a loss, in one optimizer step of supervised training
PAIRS_OF_A_STEP = 50  # the same number of tokens, of both steps together
DPO_RATE = 0.1  # of supervised training's learning rate


def pool_of(n: int) -> list[LabProblem]:
    """The training problems of all arms: 30 % without a trap, 40 % with one trap whose right rule lab-weak sometimes
    uses, 30 % with one trap whose right rule it almost never uses; in the order in which they are generated.
    """
    quota = {"none": round(0.3 * n), "often": round(0.4 * n)}
    quota["rare"] = n - sum(quota.values())
    found: list[LabProblem] = []
    for problem in lab.generate("train", 8 * n + 200):
        kind = _kind(problem)
        if quota.get(kind, 0) > 0:
            quota[kind] -= 1
            found.append(problem)
    return found


def _kind(problem: LabProblem) -> str:
    if len(problem.traps) > 1:
        return "two"
    if not problem.traps:
        return "none"
    rate = FAMILIES[problem.traps[0]].right_rate
    return "often" if rate >= OFTEN else "rare" if rate <= RARE else "between"


def gather(cfg: Config, scale: Scale, out: Path) -> Path:
    """The collection that all datasets are made from (made or gone on with); its directory."""
    folder = out / "collection"
    settings = CollectSettings(
        accept="success", check_form=False, fresh=0, rollouts=4, attempts=2, guided=16, max_tokens=256, chunk=16
    )
    collect([made.problem for made in pool_of(scale.pool)], cfg, folder, settings=settings, licence="mit")
    return folder


def dataset(kind: str, cfg: Config, scale: Scale, out: Path) -> list[Example]:
    """The rows of one dataset (a key of the builder's kinds, or a granularity of references), made where missing."""
    assert kind != "pairs", "they are no rows of a dataset: see `preferences`"
    pool, folder = pool_of(scale.pool), out / "data" / kind
    if kind == "intervention":
        return read_examples(out / "collection" / "dataset.jsonl")
    if kind == "true_step":
        return true_steps(cfg, pool, out / "collection")
    settings = BuildSettings(
        own_corpus=4000,
        collect=CollectSettings(accept="success", check_form=False, fresh=0, rollouts=4, max_tokens=256, guided=16),
    )
    if kind == "compressed":
        source = [_with_reference(made, "compressed") for made in pool]
        path = write_dataset("reference", source, cfg, folder, settings=settings)
    elif kind in ("reference", "own_corpus", "strong"):
        path = write_dataset(kind, [made.problem for made in pool], cfg, folder, settings=settings)
    else:
        problems = [made.problem for made in pool]
        path = write_dataset(kind, out / "collection", cfg, folder, settings=settings, problems=problems)
    return read_examples(path)


def true_steps(cfg: Config, pool: Sequence[LabProblem], collection: Path) -> list[Example]:
    """What interventions would be at their best: the right step at the true first error of each failed attempt."""
    known, rows = {made.problem.id: made for made in pool}, []
    for failure in read_stage(collection, "failures"):
        made = known[failure.problem]
        place = made.first_error(failure.steps)
        step = None if place is None else made.true_step(failure.steps[:place])
        if step is not None:
            plain = made.problem
            rows.append(Example(f"{failure.id}/true", plain.question, plain.answer or "", failure.steps[:place], step,
                                "intervention", {"problem": plain.id, "failure": failure.id}, {}, cfg.prompt.hash,
                                cfg.hash, 0, 0, 0, variant="true"))  # fmt: skip
    return unique(rows)


def preferences(collection: Path) -> list[dict[str, Any]]:
    """Each intervention of the collection against the wrong step that it stands for."""
    return pairs(read_stage(collection, "examples"), read_stage(collection, "failures"))


def _with_reference(made: LabProblem, kind: Granularity) -> Problem:
    plain = made.problem
    return Problem(
        id=plain.id, question=plain.question, answer=plain.answer, reference=reference(made, kind), source=plain.source
    )


def supervise(name: str, cfg: Config, scale: Scale, seed: int, out: Path) -> Path:
    """The supervised phase of an arm (or go on with it), which arms of one kind share; its adapter's directory.

    Rows differ in length, so a batch holds as many as make `STEP_TOKENS` with a loss: at equal tokens all arms take
    the same number of optimizer steps.
    """
    arm, own = ARMS[name], scale.config(cfg, ARMS[name], seed)
    if arm.data == "pairs":
        return dpo(preferences(out / "collection"), own, sft_folder(out, name, seed))
    rows = dataset(arm.data, cfg, scale, out)
    replay = dataset("rejection", cfg, scale, out) if own.sft.replay else None
    own = own.model_copy(update={"sft": own.sft.model_copy(update={"batch": rows_of_a_step(rows, replay, own)})})
    return sft(rows, own, sft_folder(out, name, seed), replay=replay)


def rows_of_a_step(rows: Sequence[Example], replay: Sequence[Example] | None, cfg: Config) -> int:
    """How many rows have `STEP_TOKENS` tokens with a loss, on average over the rows and those that are replayed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_directory(cfg.models.weak))

    def mean(examples: Sequence[Example]) -> float:
        made = render_all(examples, tokenizer, cfg.prompt, cfg.sft)
        return sum(sum(weight > 0 for weight in row.weights) for row in made) / len(made)

    share = cfg.sft.replay
    tokens = (1 - share) * mean(rows) + (share * mean(replay) if replay else 0.0)
    return max(1, round(STEP_TOKENS / tokens))


def train(name: str, cfg: Config, scale: Scale, seed: int, out: Path) -> Path | None:
    """Train one arm from the base (or go on); the directory of its adapter, None for the base itself."""
    arm = ARMS[name]
    own, adapter = scale.config(cfg, arm, seed), None
    if arm.data:
        adapter = supervise(name, cfg, scale, seed, out)
    if arm.rl is not None:
        pool, folder = pool_of(scale.pool), run_folder(out, name, seed) / "rl"
        problems, hints = [p.problem for p in pool], dict[str, tuple[str, ...]]()
        if arm.hints:
            problems, hints = hinted(problems, dataset("intervention", cfg, scale, out))
        adapter = grpo(problems, own, folder, adapter=adapter, locate=locate_in(pool, arm), hints=hints)
    return adapter


def hinted(problems: Sequence[Problem], rows: Sequence[Example]) -> tuple[list[Problem], dict[str, tuple[str, ...]]]:
    """The problems, and once more those that have an intervention, begun with the kept prefix and it: their hints."""
    again = [replace(problem, id=f"{problem.id}/hinted") for problem in problems]
    hints = hints_of(rows, problems)
    return [*problems, *(copy for copy, one in zip(again, problems, strict=True) if one.id in hints)], {
        f"{name}/hinted": steps for name, steps in hints.items()
    }


def locate_in(pool: Sequence[LabProblem], arm: Arm) -> Any:
    """The function that an arm gives as `locate`: the problems' own checker; None where it gives none."""
    if not arm.truth:
        return None
    known = {made.problem.id: made for made in pool}

    def locate(problem: Problem, steps: Sequence[str]) -> int | None:
        place = known[problem.id].first_error(steps)
        return None if place is None else min(max(place + arm.shift, 0), len(steps) - 1)

    return locate


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Where one arm's run under one seed lies."""
    return out / "runs" / name.replace(", ", "-").replace("+", "-") / f"seed-{seed}"


def sft_folder(out: Path, name: str, seed: int) -> Path:
    """Where the supervised phase of an arm under one seed lies."""
    return out / "sft" / ARMS[name].supervised / f"seed-{seed}"


def adapter_after_sft(out: Path, name: str, seed: int) -> Path | None:
    """The adapter between the two phases of an arm that has both."""
    arm = ARMS[name]
    return sft_folder(out, name, seed) / "adapter" if arm.data and arm.rl is not None else None


def cost(out: Path, name: str, seed: int) -> dict[str, int]:
    """Tokens that one run trained on, and what reinforcement generated, evaluated and asked others for."""
    supervised = read_rows(sft_folder(out, name, seed) / "metrics.jsonl") if ARMS[name].data else []
    rewarded = read_rows(run_folder(out, name, seed) / "rl" / "metrics.jsonl")
    spent = {"trained": supervised[-1]["tokens"] if supervised else 0, "generated": 0, "evaluated": 0, "extra": 0}
    for row in rewarded:
        for key in spent:
            spent[key] += row[f"{key}_tokens"] or 0
    return spent


def no_spread(out: Path, name: str, seed: int) -> tuple[float, float] | None:
    """Share of groups whose rewards are all equal, in the first and the last quarter of reinforcement; None without."""
    rows = read_rows(run_folder(out, name, seed) / "rl" / "metrics.jsonl")
    shares = [row["no_spread"] for row in rows if row["no_spread"] is not None]
    part = max(1, len(shares) // 4)
    if not shares:
        return None
    return sum(shares[:part]) / part, sum(shares[-part:]) / part
