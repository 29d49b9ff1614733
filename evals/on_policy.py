"""How far each kind of training data is from what the model itself writes.

Negative log-likelihood per token under the base (lab-weak, at temperature 1), with the base's own entropy at the same
positions beside it: their difference is what the text is less likely than the model's own samples would be there.
InT (arXiv 2601.14209) reports the first alone, over whole targets, lowest for interventions and highest for
references; but most of an intervention's target is a prefix that the model wrote itself, so prefix and content are told
apart here. Means are over tokens; intervals are 95 %, by bootstrap over problems. The end of the message is not
counted. Lab figures.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from stepwise.config import Config
from stepwise.config.training import SftConfig
from stepwise.data.examples import Example
from stepwise.interventions.building import Builder
from stepwise.interventions.datasets import KINDS
from stepwise.interventions.pipeline import Chunk, run_stages
from stepwise.interventions.rows import by_id
from stepwise.interventions.settings import BuildSettings, CollectSettings, in_use
from stepwise.lab.problems import LabProblem, generate
from stepwise.lab.references import Granularity, reference
from stepwise.runs.progress import followed
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import bootstrap

from .lab_tables import table

if TYPE_CHECKING:
    from stepwise.training.lora import Trainee

DRAWS = 4000
GRANULARITIES: tuple[Granularity, ...] = ("full", "regrouped", "compressed")
# Weights that tell the roles of a row's tokens apart; nothing is trained with them.
_ROLES = SftConfig(prefix_weight=1.0, intervention_weight=2.0)
WHOLE, PREFIX, CONTENT, WRONG = "interventions, whole", "  kept prefix", "  intervention", "  wrong step instead"
Floats = NDArray[np.float64]


class Tokens(NamedTuple):
    """One text: the problem it belongs to, and for each of its tokens (T,) the negative log-likelihood and entropy."""

    problem: str
    nll: Floats
    entropy: Floats


class _Options(Options):
    problems: PositiveInt = 120
    """"""
    split: str = "train"
    """of the lab's problems"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> None:
    from stepwise.training.lora import load_trainee

    sources = data(run.config, generate(run.args.split, run.args.problems))
    trainee = load_trainee(run.config)
    found = measured_apart(sources.pop(WHOLE), sources.pop(WRONG), trainee, run.config)
    texts = followed(sources.items(), "kinds of texts")
    found |= {name: measured(rows, trainee, run.config) for name, rows in texts}
    figures = summarize(found, sorted({text.problem for text in found[WHOLE]}))
    run.path("on_policy.json").write_text(json.dumps(figures, indent=2) + "\n")
    show(run, figures)


def data(config: Config, labs: Sequence[LabProblem]) -> dict[str, list[Example]]:
    """Texts of every kind for the same problems, one or a few of each."""
    known = {lab.problem.id: lab.problem for lab in labs}
    settings = CollectSettings(
        accept="success", check_form=False, fresh=0, attempts=1, guided=8, miss=0.0, max_tokens=400
    )
    with in_use(None, config) as writers:
        rows = run_stages(Chunk(known, writers, config, settings))
        how = BuildSettings(collect=settings, per_problem=1, full_share=1.0)
        work = Builder(known, writers, config, settings, "", how, rows)
        made = {name: KINDS[kind](dataclasses.replace(work, kind=kind)) for name, kind in {
            WHOLE: "intervention", "rewrites by repair": "reflection", "strong's solutions": "strong",
            "own solutions": "first_tokens", "own, ended right": "rejection",
        }.items()}  # fmt: skip
    made[WRONG] = _wrong_steps(made[WHOLE], rows["failures"])
    for kind in GRANULARITIES:
        given = {lab.problem.id: dataclasses.replace(lab.problem, reference=reference(lab, kind)) for lab in labs}
        made[f"references, {kind}"] = KINDS["reference"](dataclasses.replace(work, kind="reference", problems=given))
    return made


def _wrong_steps(examples: Iterable[Example], failures: Sequence[Any]) -> list[Example]:
    """The same prefixes, with the step that the interventions replace."""
    attempts = by_id(failures)
    return [
        dataclasses.replace(example, intervention=attempts[example.parents["failure"]].steps[len(example.prefix)])
        for example in examples
    ]


def measured(rows: Sequence[Example], trainee: Trainee, config: Config, role: float | None = None) -> list[Tokens]:
    """Every row's tokens, or those with the weight `role` alone."""
    import torch

    from stepwise.training.batches import micro_batches
    from stepwise.training.logprobs import pad, token_logprobs
    from stepwise.training.rendering import render_all

    given = render_all(rows, trainee.tokenizer, config.prompt, _ROLES, trainee.context)
    wanted = []
    for example, row in zip(rows, given, strict=True):
        chosen = [role is None or weight == role for weight in row.weights]
        chosen[-1] = chosen[-1] and not example.complete  # the end of the message
        wanted.append([*[False] * row.prompt, *chosen])
    found: list[Tokens] = [Tokens("", np.empty(0), np.empty(0))] * len(rows)
    for group in micro_batches([len(row.ids) for row in given], config.lora.micro_tokens):
        ids = torch.tensor(pad([given[i].ids for i in group], 0), device=trainee.device)
        there = torch.tensor(pad([[True] * len(given[i].ids) for i in group], False), device=trainee.device)
        asked = torch.tensor(pad([wanted[i] for i in group], False), device=trainee.device)
        with torch.no_grad(), trainee.model.disable_adapter():
            made = token_logprobs(trainee.model, ids, there, asked, tile=config.lora.tile, entropy=True)
        assert made.entropy is not None
        for place, i in enumerate(group):
            own = asked[place]
            nll, entropy = (-made.logprobs[place][own]).double(), made.entropy[place][own].double()
            found[i] = Tokens(rows[i].parents["problem"], nll.cpu().numpy(), entropy.cpu().numpy())
    return found


def measured_apart(
    examples: Sequence[Example], wrong: Sequence[Example], trainee: Trainee, config: Config
) -> dict[str, list[Tokens]]:
    """The interventions' tokens, prefix and content also apart, and those of the steps that they replace."""
    return {
        WHOLE: measured(examples, trainee, config),
        PREFIX: measured(examples, trainee, config, _ROLES.prefix_weight),
        CONTENT: measured(examples, trainee, config, _ROLES.intervention_weight),
        WRONG: measured(wrong, trainee, config, _ROLES.intervention_weight),
    }


def summarize(found: Mapping[str, Sequence[Tokens]], hard: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Figures of each source, over all problems and over the `hard` ones, those that have an intervention."""
    out = {}
    for name, texts in found.items():
        kept = [text for text in texts if text.problem in set(hard)]
        surprising = np.concatenate([text.nll for text in texts]) if texts else np.empty(0)
        out[name] = {
            "texts": len(texts),
            "problems": len({text.problem for text in texts}),
            "tokens": int(sum(len(text.nll) for text in texts)),
            "below_one_percent": float((surprising > -np.log(0.01)).mean()) if len(surprising) else None,
            **_means(texts),
            "hard": _means(kept),
        }
    return out


def _means(texts: Sequence[Tokens]) -> dict[str, Any]:
    """Means over tokens with their intervals, and the excess of a whole text; None where there are no tokens."""
    parts = {"nll": [t.nll for t in texts], "entropy": [t.entropy for t in texts]}
    parts["excess"] = [nll - entropy for nll, entropy in zip(*parts.values(), strict=True)]
    problems = [text.problem for text in texts]
    means: dict[str, Any] = {name: mean_of_tokens(problems, values) for name, values in parts.items()}
    return {**means, "excess_per_text": sum(map(np.sum, parts["excess"])) / len(texts) if texts else None}


def mean_of_tokens(problems: Sequence[str], values: Sequence[Floats]) -> list[float] | None:
    """Mean over all tokens, and the ends of its 95 % interval over resampled problems.

    `values` (one array of tokens for each text) belong to `problems`, of which each is drawn with all its texts.
    """
    names = sorted(set(problems))
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for problem, tokens in zip(problems, values, strict=True):
        place = names.index(problem)
        sums[place] += tokens.sum()
        counts[place] += len(tokens)

    def mean(rows: np.ndarray) -> float | None:
        return float(sums[rows].sum() / counts[rows].sum()) if counts[rows].sum() else None

    found = bootstrap(mean, len(names), samples=DRAWS) if names else None
    return None if found is None else list(found)


def show(run: Run[_Options], figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Two tables: over all problems, and over those that have an intervention."""

    def shown(value: Sequence[float] | None) -> str:
        return "" if value is None else f"{value[0]:.2f} ±{(value[2] - value[1]) / 2:.2f}"

    def mean(value: Sequence[float] | None) -> str:
        return "" if value is None else f"{value[0]:.2f}"

    def total(value: float | None) -> str:
        return "" if value is None else f"{value:.0f}"

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f} %"

    table(
        run,
        "Nats per token under lab-weak",
        ("", "texts", "NLL", "entropy", "excess", "p < 1 %"),
        [
            (name, row["texts"], shown(row["nll"]), mean(row["entropy"]), mean(row["excess"]),
             percent(row["below_one_percent"]))
            for name, row in figures.items()
        ],
    )  # fmt: skip
    table(
        run,
        f"The same over the {figures[WHOLE]['problems']} problems that have an intervention",
        ("", "NLL", "entropy", "excess", "of a text"),
        [
            (name, shown(row["nll"]), mean(row["entropy"]), shown(row["excess"]), total(row["excess_per_text"]))
            for name, row in ((name, row["hard"]) for name, row in figures.items())
        ],
    )
    run.say(
        "± is half of the 95 % interval. Excess: NLL less entropy, 0 for samples at temperature 1 and below 0 for "
        f"those drawn at {run.config.sampling.temperature}. Of a text: summed over its tokens. p < 1 %: share of "
        "tokens that the base gives less than that. Rewrites by repair: the critic's steps with the weak model's own "
        "text between them."
    )


if __name__ == "__main__":
    raise SystemExit(main())
