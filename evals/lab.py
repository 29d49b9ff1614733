"""Measure the lab against its stated ranges and controls.

Every figure is measured on the spot, on problems that no model was made from. Prints a table with the range each figure
should lie in, writes lab.json, and with --cards adds the figures to the models' cards. A killed run goes on with the
part it was at. The sham control (--sham) trains lab-weak further on its own corpus, which needs torch.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwise.lab.families import FAMILIES
from stepwise.lab.problems import LabProblem, generate
from stepwise.models import load_backend
from stepwise.models.base import Backend, Request
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import auroc, wilson
from stepwise.steps import split_steps
from stepwise.training.export.gguf import export_gguf
from stepwise.types import Step

from .lab_corpus import solved
from .lab_tables import gates, show
from .lab_training import Recipe, pack, train

Solved = list[list[str]]  # for one problem: its samples, each a list of steps


class _Options(Options):
    models: Path | None = None
    """folder with lab-weak/model.gguf, ...; the shipped ones"""
    problems: int = 500
    """held-out problems of each split"""
    samples: int = 32
    """samples of a problem for coverage"""
    sham: int = 0
    """train lab-weak on its own corpus for so long"""
    cards: bool = False
    """write the figures into the models' cards"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> int:
    weak, strong = _load(run, "lab-weak"), _load(run, "lab-strong")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "solved": lambda: _solved(run, weak, strong),
        "right_rule": lambda: _right_rule(run, weak),
        "recovery": lambda: _recovery(run, weak),
        "scorer": lambda: _scorer(run, weak),
        "coverage": lambda: _coverage(run, weak),
    }
    if run.args.sham:
        parts["sham"] = lambda: _sham(run, figures["solved"]["test"]["lab-weak"]["solved"])
    figures: dict[str, Any] = {row["part"]: row["figures"] for row in run.rows("parts.jsonl")}
    for name, measure in parts.items():
        if name not in figures:
            figures[name] = measure()
            run.write("parts.jsonl", {"part": name, "figures": figures[name]})
    held = gates(figures)
    run.path("lab.json").write_text(json.dumps({"figures": figures, "gates": held}, indent=2) + "\n")
    show(run, figures, held)
    if run.args.cards:
        _write_cards(run, figures)
    return 0 if all(g["held"] for g in held) else 1


def _folder(run: Run[_Options], name: str) -> Path:
    from stepwise.lab import model_path

    return run.args.models / name if run.args.models else model_path(name).parent


def _load(run: Run[_Options], name: str) -> Backend:
    return load_backend(f"llamacpp/{_folder(run, name) / 'model.gguf'}")


def sample(
    backend: Backend,
    problems: Sequence[LabProblem],
    n: int = 1,
    temperature: float = 0.7,
    seed: int = 0,
    prefixes: Sequence[Sequence[str]] | None = None,
    label: str = "solving",
) -> list[Solved]:
    """`n` whole solutions of each problem, continued from its prefix where one is given, in batches."""
    out: list[Solved] = []
    size = max(1, 256 // n)
    with progress(label, len(problems)) as advance:
        for low in range(0, len(problems), size):
            chunk = problems[low : low + size]
            before = [list(p) for p in prefixes[low : low + size]] if prefixes else [[] for _ in chunk]
            requests = [
                Request(
                    p.problem,
                    tuple(Step(text, "weak") for text in prefix),
                    "solution",
                    max_tokens=400,
                    n=n,
                    temperature=temperature,
                    seed=seed,
                )
                for p, prefix in zip(chunk, before, strict=True)
            ]
            found: list[Solved] = [[] for _ in chunk]
            for c in backend.continue_solutions(requests):
                found[c.request].append([*before[c.request], *split_steps(c.text)])
            out += found
            advance(len(chunk))
    return out


def right(problem: LabProblem, steps: Sequence[str]) -> bool:
    """Whether the solution ends in the right answer (a lab answer is a whole number, so text equality is exact)."""
    from stepwise.steps import extract_answer

    return extract_answer("\n\n".join(steps)) == problem.problem.answer


def _rate(values: Iterable[bool]) -> dict[str, float]:
    listed = list(values)
    if not listed:
        return {"solved": float("nan"), "low": 0.0, "high": 1.0, "n": 0}
    spread = wilson(sum(listed), len(listed))
    return {"solved": float(np.mean(listed)), "low": spread.low, "high": spread.high, "n": len(listed)}


def _solved(run: Run[_Options], weak: Backend, strong: Backend) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for split in ("test", "test-wording", "test-family", "test-long", "test-recovery"):
        problems = generate(split, run.args.problems)
        table[split] = {}
        for name, backend in (("lab-weak", weak), ("lab-strong", strong)):
            results = [
                right(p, s[0])
                for p, s in zip(problems, sample(backend, problems, label=f"{name}, {split}"), strict=True)
            ]
            row: dict[str, Any] = _rate(results)
            if split == "test":
                groups: dict[str, list[bool]] = defaultdict(list)
                for p, ok in zip(problems, results, strict=True):
                    groups[f"length {len(p.operations)}"].append(ok)
                    groups[f"{len(p.traps)} traps"].append(ok)
                    if len(p.traps) == 1:
                        groups[f"one trap: {p.traps[0]}"].append(ok)
                row["by"] = {key: _rate(groups[key]) for key in sorted(groups)}
            table[split][name] = row
    return table


def _right_rule(run: Run[_Options], weak: Backend) -> dict[str, Any]:
    """Share of right uses of each rule at temperature 1, among steps whose prefix is right."""
    problems = generate("test", run.args.problems, start=20_000)
    uses: dict[str, list[bool]] = defaultdict(list)
    for p, samples in zip(problems, sample(weak, problems, n=4, temperature=1.0, label="right rules"), strict=True):
        for steps in samples:
            verdicts = p.check(steps)
            first = verdicts.index(False) if False in verdicts else len(verdicts)
            value = p.start
            for i in range(min(first + 1, len(p.operations), len(verdicts))):
                family = FAMILIES[p.operations[i].family]
                name = family.name if family.misled(value) else "ordinary"
                uses[name].append(verdicts[i])
                value = p.values()[i]
    return {name: _rate(uses[name]) for name in sorted(uses)}


def _recovery(run: Run[_Options], weak: Backend) -> dict[str, Any]:
    """Share of solutions with a wrong step that end wrong all the same."""
    out = {}
    for split in ("test", "test-recovery"):
        problems = generate(split, run.args.problems)
        ends = [
            not right(p, steps)
            for p, samples in zip(
                problems, sample(weak, problems, n=2, seed=5, label=f"recovery, {split}"), strict=True
            )
            for steps in samples
            if p.first_error(steps) is not None
        ]
        out[split] = _rate(ends)
    return out


def _coverage(run: Run[_Options], weak: Backend) -> dict[str, Any]:
    """Problems failed in every sample, and what continuing from four places makes of them, on fresh samples."""
    n = run.args.samples
    problems = generate("test", run.args.problems)
    everything = sample(weak, problems, n=n, seed=11, label=f"{n} samples each")
    hard = [
        (p, s[0])
        for p, s in zip(problems, everything, strict=True)
        if not any(right(p, steps) for steps in s) and p.first_error(s[0]) is not None
    ]
    errors = [(p, steps, p.first_error(steps) or 0) for p, steps in hard]
    errors = [(p, steps, e) for p, steps, e in errors if e < len(p.operations) and p.true_step(steps[:e])]
    places: dict[str, list[list[str]]] = {
        "problem only": [[] for _ in errors],
        "correct prefix": [steps[:e] for _, steps, e in errors],
        "prefix and the wrong step": [steps[: e + 1] for _, steps, e in errors],
        "prefix and the true step": [[*steps[:e], p.true_step(steps[:e]) or ""] for p, steps, e in errors],
    }
    out: dict[str, Any] = {
        "failed_all": len(hard) / len(problems),
        "problems": len(problems),
        "samples": n,
        "used": len(errors),
    }
    kept = [p for p, _, _ in errors]
    for name, prefixes in places.items():
        results = [
            [right(p, steps) for steps in samples]
            for p, samples in zip(kept, sample(weak, kept, n=n, seed=12, prefixes=prefixes, label=name), strict=True)
        ]
        accuracy = float(np.mean(results)) if results else float("nan")
        out[name] = {"accuracy": accuracy, "covered": sum(map(any, results)), "of": len(results)}
    return out


def _scorer(run: Run[_Options], weak: Backend) -> dict[str, Any]:
    """Scores of lab-weak's own steps by state: S0 right so far, S1 wrong earlier, S2 wrong just now."""
    from stepwise import load_scorer

    scorer = load_scorer(f"llamacpp/{_folder(run, 'lab-scorer') / 'model.gguf'}")
    problems = generate("test", run.args.problems)
    attempts = [s[0] for s in sample(weak, problems, seed=21, label="attempts to score")]
    scores = scorer.score_batch([(p.problem, steps) for p, steps in zip(problems, attempts, strict=True)])
    states: dict[str, list[float]] = {"S0": [], "S1": [], "S2": []}
    by_family: dict[str, list[float]] = defaultdict(list)
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for p, steps, values in zip(problems, attempts, scores, strict=True):
        first = p.first_error(steps)
        state = ["S0" if first is None or i < first else "S2" if i == first else "S1" for i in range(len(steps))]
        for i, (where, value) in enumerate(zip(state, values, strict=True)):
            states[where].append(value)
            if where == "S2" and i < len(p.operations):
                by_family[p.operations[i].family].append(value)
            if i and state[i - 1] == where:
                pairs[where].append((values[i - 1], value))
    return {
        "auroc": auroc(states["S0"], states["S2"]),
        "means": {k: float(np.mean(v)) for k, v in states.items() if v},
        "steps": {k: len(v) for k, v in states.items()},
        "lag1": {k: float(np.corrcoef(np.array(v).T)[0, 1]) for k, v in pairs.items() if len(v) > 30},
        "auroc_by_first_error": {k: auroc(states["S0"], v) for k, v in sorted(by_family.items()) if len(v) >= 5},
    }


def _sham(run: Run[_Options], before: float) -> dict[str, Any]:
    """lab-weak, trained on more of its own corpus: what "more pretraining" alone would give any method."""
    path = continue_on_own_corpus(_folder(run, "lab-weak"), run.args.sham, run.out / "sham")
    problems = generate("test", run.args.problems)
    with_more = load_backend(f"llamacpp/{path}")
    results = [right(p, s[0]) for p, s in zip(problems, sample(with_more, problems, label="sham"), strict=True)]
    return {**_rate(results), "tokens": run.args.sham, "before": before, "gain": float(np.mean(results)) - before}


def continue_on_own_corpus(model_dir: Path, tokens: int, out: Path, seed: int = 7) -> Path:
    """The sham control: lab-weak trained for `tokens` more on fresh draws of its own corpus; the GGUF's path."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = Recipe(tokens, seed=seed, muon_rate=0.005, adam_rate=7.5e-4)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    batches = pack(solved(tokenizer, misled=True, seed=100 + seed), recipe.rows, recipe.row, tokenizer.pad_token_id)
    train(model, batches, recipe, out)
    model.to(torch.bfloat16).save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    return export_gguf(out / "model", out / "model.gguf", quantization="q8_0")


def _write_cards(run: Run[_Options], figures: dict[str, Any]) -> None:
    command = f"python -m evals.lab --problems {run.args.problems} --samples {run.args.samples} --sham {run.args.sham}"
    own: dict[str, dict[str, Any]] = {
        "lab-weak": {k: figures[k] for k in ("right_rule", "recovery", "coverage", "sham") if k in figures},
        "lab-strong": {},
        "lab-scorer": {"scorer": figures["scorer"]},
    }
    for name, extra in own.items():
        path = _folder(run, name) / "card.json"
        card = json.loads(path.read_text())
        solved = {split: both[name] for split, both in figures["solved"].items() if name in both}
        card["measured"] = {"command": command, **({"solved": solved} if solved else {}), **extra}
        path.write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
