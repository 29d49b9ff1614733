"""The page of a training run: curves from metrics.jsonl, and rollouts with the credit that each of their steps got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from stepwise.errors import DataError
from stepwise.io import read_rows
from stepwise.report.series import Line, curves_svg, line_swatch, number
from stepwise.report.shell import FINISH_WORDS, first_of_each, of_the_lab, write_page
from stepwise.report.words import percent, verdict_word
from stepwise.runs.directory import read_card
from stepwise.training.adapters import read_card as read_card_of
from stepwise.training.rollouts import RlRollout, read_rollouts

MAX_ROLLOUTS = 120
_FILES = 15  # steps from which rollouts are shown, at most
_NO_CURVE = ("step", "epoch", "rows")
_SHARE = (0.0, 1.0)


class _Plot(NamedTuple):
    """One small plot: its title, what it shows in a few words, and the metrics in it with their names.

    Values are divided by `unit`; `span` are the ends of their axis, None where the values decide.
    """

    title: str
    hint: str
    keys: tuple[tuple[str, str], ...]
    unit: float = 1.0
    span: tuple[float, float] | None = None


PLOTS: tuple[_Plot, ...] = (
    _Plot("Reward", "mean over the rollouts that carry one", (("reward", "reward"),), span=_SHARE),
    _Plot("Loss", "of the optimizer's step", (("loss", "loss"),)),
    _Plot("Margin", "beta times the change of log p(chosen) - log p(rejected)", (("margin", "margin"),)),
    _Plot("Accuracy", "share of pairs with a margin above 0", (("accuracy", "share"),), span=_SHARE),
    _Plot(
        "Log-probability of steps",
        "mean over pairs, nats",
        (("logp_chosen", "chosen"), ("logp_rejected", "rejected")),
    ),
    _Plot("Groups", "problems in a step, and those with any advantage", (("kept_groups", "kept"), ("groups", "all"))),
    _Plot(
        "Groups without spread", "share of groups whose rewards are all equal", (("no_spread", "share"),), span=_SHARE
    ),
    _Plot("Masked rollouts", "without a reward or other credit", (("masked", "masked"),)),
    _Plot("Length", "mean tokens of a rollout", (("length", "length"),)),
    _Plot("Entropy", "of the next token, nats", (("entropy", "entropy"),)),
    _Plot("Divergence", "from the base model, nats per token", (("kl", "divergence"),)),
    _Plot("Clipped", "share of tokens whose ratio is clipped", (("clip_share", "share"),)),
    _Plot("Gradient", "its norm before clipping", (("grad_norm", "norm"),)),
    _Plot("Mismatch", "mean difference of log-probabilities, sampler and trainer", (("mismatch", "mismatch"),)),
    _Plot("Mismatch as divergence", "of the sampler from the trainer, nats", (("mismatch_kl", "divergence"),)),
    _Plot("Effective sample size", "share left by the ratio of trainer and sampler", (("ess", "share"),), span=_SHARE),
    _Plot("Learning rate", "of this step", (("learning_rate", "rate"),)),
    _Plot("Tokens", "with a loss, so far", (("tokens", "tokens"),)),
    _Plot(
        "Tokens by use",
        "in each step",
        (
            ("generated_tokens", "generated"),
            ("evaluated_tokens", "evaluated"),
            ("trained_tokens", "trained"),
            ("extra_tokens", "for the credit"),
        ),
    ),
    _Plot(
        "Seconds",
        "of each step",
        (
            ("generate_seconds", "sampling"),
            ("train_seconds", "training"),
            ("extra_seconds", "for the credit"),
            ("seconds", "whole step"),
        ),
    ),
    _Plot("Floating-point operations", "of each step", (("flops", "operations"),)),
    _Plot("Peak memory", "GiB", (("peak_bytes", "memory"),), 2.0**30),
)
"""The metrics that are known, in the order of the page; others follow under their own names."""


class _Figure(NamedTuple):
    """A plot that is drawn: title, hint, drawing, and for each curve its swatch, name, first and last value."""

    title: str
    hint: str
    drawing: Markup
    curves: tuple[tuple[Markup | None, str, str, str], ...]


def write_training_report(path: str | Path, out: str | Path, *, max_rollouts: int = MAX_ROLLOUTS) -> Path:
    """Write the page of the training run in the directory `out` (of `sft`, `dpo`, `grpo`) to `path`; returns the path.

    Rollouts are shown from evenly spaced steps, at most `max_rollouts`, groups with an advantage first. A run that is
    still going has a page too. The same directory gives the same bytes. Raises DataError where `out` has no metrics, or
    `max_rollouts` is negative.

    Example:
        write_training_report("out/rl/report.html", "out/rl")
    """
    if max_rollouts < 0:
        raise DataError(f"max_rollouts is {max_rollouts}; it must be 0 or more")
    out = Path(out)
    rows, run = _read_metrics(out), read_card(out)
    files = sorted((out / "rollouts").glob("step-*.jsonl"))
    views = _rollout_views(files, max_rollouts)
    strongest = max((abs(a) for view in views for a in view["row"].step_advantages if a is not None), default=0.0)
    config = run.get("config", {})
    steps, planned = rows[-1]["step"], config.get("rl", {}).get("steps") if files else None
    if files or "reward" in rows[-1]:
        title, section = "Reinforcement learning", "rl"
    elif "margin" in rows[-1]:
        title, section = "Preference training", "dpo"
    else:
        title, section = "Supervised training", "sft"
    return write_page(
        path,
        "training.html.jinja",
        title=title,
        subtitle=f"{steps:,}{f' of {planned:,}' if planned else ''} steps",
        meta=_meta(run, section, out),
        lab=of_the_lab(run, "weak"),
        scripts=("common.js", "cards.js"),
        styles=("page.css", "cards.css"),
        figures=_figures(rows),
        views=views,
        steps=len(files),
        strongest=number(strongest),
    )


def _read_metrics(out: Path) -> list[dict[str, Any]]:
    """The rows of out/metrics.jsonl by step, the last of each; raises DataError where there is none."""
    rows = {row["step"]: row for row in read_rows(out / "metrics.jsonl") if isinstance(row.get("step"), int)}
    if not rows:
        raise DataError(f"{out} has no metrics.jsonl with a step in it; give the directory that sft, dpo or grpo wrote")
    return [rows[step] for step in sorted(rows)]


def _figures(rows: Sequence[Mapping[str, Any]]) -> list[_Figure]:
    """Every plot for which there is a value: those that are known, then the other numbers in the rows."""
    named = {key for plot in PLOTS for key, _ in plot.keys} | set(_NO_CURVE)
    others = dict.fromkeys(key for row in rows for key in row if key not in named)
    drawn = []
    for plot in (*PLOTS, *(_Plot(key.replace("_", " "), "", ((key, key),)) for key in others)):
        lines = [Line(name, _points(rows, key, plot.unit)) for key, name in plot.keys]
        lines = [line for line in lines if any(y is not None for _, y in line.points)]
        if lines:
            drawn.append(_figure(plot, lines))
    return drawn


def _rollout_views(files: Sequence[Path], most: int) -> list[dict[str, Any]]:
    """At most `most` rollouts of evenly spaced `files`, whole groups as far as there is room."""
    chosen = _spaced(files, min(_FILES, most))
    rows = [row for file in chosen for row in _pick(read_rollouts(file), max(1, most // len(chosen)))]
    strongest = max((abs(a) for row, _ in rows for a in row.step_advantages if a is not None), default=0.0)
    return [_view(row, group, strongest) for row, group in rows]


def _spaced(items: Sequence[Path], most: int) -> list[Path]:
    """At most `most` of the items, the first and the last among them, about equally far apart."""
    if len(items) <= most or most < 2:
        return list(items[:most] if most < 2 else items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _pick(rows: Sequence[RlRollout], most: int) -> list[tuple[RlRollout, tuple[int, int, int]]]:
    """At most `most` rollouts of one step with what their group did, groups with an advantage first."""
    groups: dict[str, list[RlRollout]] = {}
    for row in rows:
        groups.setdefault(row.problem, []).append(row)
    ordered = sorted(groups.values(), key=lambda group: not any(any(row.step_advantages) for row in group))
    kept: list[tuple[RlRollout, tuple[int, int, int]]] = []
    for group in ordered:
        room = most - len(kept)
        rewards = [row.reward for row in group if row.reward is not None]
        about = (sum(reward > 0 for reward in rewards), len(rewards), len(group))
        kept += [(row, about) for row in first_of_each(group, room, lambda row: row.reward)]
        if len(kept) >= most:
            break
    return kept


def _points(rows: Sequence[Mapping[str, Any]], key: str, unit: float) -> list[tuple[float, float | None]]:
    values = ((row["step"], row.get(key)) for row in rows)
    return [(step, value / unit if isinstance(value, int | float) and not isinstance(value, bool) else None)
            for step, value in values]  # fmt: skip


def _figure(plot: _Plot, lines: Sequence[Line]) -> _Figure:
    curves = []
    for i, line in enumerate(lines):
        known = [(x, y) for x, y in line.points if y is not None]
        curves.append(
            (line_swatch(i) if len(lines) > 1 else None, line.name, number(known[0][1]), number(known[-1][1]))
        )
    said = "; ".join(f"{name} {first} at first, {last} at last" for _, name, first, last in curves)
    return _Figure(plot.title, plot.hint, curves_svg(lines, f"{plot.title}: {said}.", plot.span), tuple(curves))


def _view(row: RlRollout, group: tuple[int, int, int], strongest: float) -> dict[str, Any]:
    """A rollout as it is shown; `group` is (right, with a reward, all) of the rollouts of its problem in its step."""
    outcome = "no reward" if row.reward is None else "right" if row.reward > 0 else "wrong"
    if outcome == "no reward":
        outcome = verdict_word(str(row.verdict)) if row.verdict else "no text"
    signs = {"plus" if a > 0 else "minus" for a in row.step_advantages if a}
    credit = {0: "none", 2: "plus and minus"}.get(len(signs), f"only {next(iter(signs), '')}")
    steps = [_step(row, i, strongest) for i in range(len(row.steps))]
    finish = FINISH_WORDS[row.finish]
    return {"row": row, "steps": steps, "group": group, "outcome": outcome, "credit": credit, "finish": finish}


def _step(row: RlRollout, i: int, strongest: float) -> dict[str, Any]:
    """A step as it is shown: `depth` is how strong its colour is, in percent; `words` its advantage as written."""
    credit = row.step_advantages[i] if i < len(row.step_advantages) else None
    score = row.step_scores[i] if i < len(row.step_scores) else None
    kind = "none" if not credit else "plus" if credit > 0 else "minus"
    sign = {"plus": "▲ +", "minus": "▼ −"}.get(kind, "")
    words = "no credit known" if credit is None else f"{sign}{number(abs(credit))}"
    depth = round(8 + 40 * abs(credit) / strongest) if credit and strongest else 0
    wrong = row.first_error == i
    return {"text": row.steps[i], "kind": kind, "words": words, "depth": depth, "score": score, "wrong": wrong}


def _meta(run: Mapping[str, Any], name: str, out: Path) -> dict[str, Any]:
    config, how = run.get("config", {}), run.get("arguments", {})
    section, rows, data = config.get(name, {}), how.get("rows"), how.get("dataset")
    card = read_card_of(out / "adapter") or {}
    rows = rows or sum(part.get("rows", 0) for part in card.get("data", ()) if name != "rl") or None
    batch = section.get("batch")
    tests = [row for file in ("before.jsonl", "after.jsonl") for row in read_rows(out / file)]
    shares = [percent(row["correct"] / row["judged"] if row["judged"] else None) for row in tests]
    scheme = section.get("credit", {}).get("scheme")
    return {
        "configuration": run.get("config_hash"),
        "model": config.get("models", {}).get("weak", {}).get("model"),
        "starts from": how.get("adapter"),
        "dataset": ", ".join(data) if isinstance(data, list) else data,
        "problems": how.get("problems"),
        "rows": rows,
        "tested on": how.get("test"),
        "pass@1": ", ".join(f"{share} {when}" for share, when in zip(shares, ("before", "after"), strict=False)),
        "hinted problems": how.get("hints"),
        "credit": scheme,
        "teacher": config.get("models", {}).get("strong", {}).get("model") if scheme == "distill" else None,
        "loss": section.get("loss"),
        "rollouts of a problem": section.get("group"),
        "beta": section.get("beta"),
        "rows in a step": min(batch, rows) if batch and rows else batch,
        "learning rate": section.get("learning_rate"),
        "rank of the adapter": config.get("lora", {}).get("rank"),
        "seed": config.get("seed"),
        "status": None if run.get("status") == "finished" else run.get("status"),
    }
