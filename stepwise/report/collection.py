"""The page of a collection: the funnel from rollouts to examples, and the attempts with what was put in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stepwise.errors import DataError, redact
from stepwise.interventions.collection import funnel, read_stage
from stepwise.interventions.rows import ROWS, spent
from stepwise.io import read_rows
from stepwise.report import collection_facts as facts_of
from stepwise.report.charts import bars_svg, stage_svg
from stepwise.report.collection_facts import Card, Facts, Stage
from stepwise.report.shell import first_of_each, of_the_lab, render, write_page
from stepwise.runs.directory import read_card
from stepwise.types import Problem

MAX_CARDS = 200


def write_collection_report(
    path: str | Path, out: str | Path, *, problems: Iterable[Problem] = (), max_cards: int = MAX_CARDS
) -> Path:
    """Write the page of the collection in the directory `out` (what `collect` wrote) to `path`; returns the path.

    Questions come from `problems`, from out/problems.jsonl, or from the examples. At most `max_cards` candidates and
    attempts are shown, the first few of every fate. A collection that is not finished yet has a page too. The same
    directory gives the same bytes. Raises DataError where `out` holds no collection, or `max_cards` is negative.
    """
    return write_page(path, collection_html(out, problems=problems, max_cards=max_cards))


def collection_html(out: str | Path, *, problems: Iterable[Problem] = (), max_cards: int = MAX_CARDS) -> str:
    """The text of the page that `write_collection_report` writes."""
    if max_cards < 0:
        raise DataError(f"max_cards is {max_cards}; it must be 0 or more")
    out = Path(out)
    run = read_card(out)
    facts = _read_facts(out, run, problems)
    found = facts_of.fates(facts)
    stages, all_cards = facts_of.stages(facts, found), facts_of.cards(facts, found)
    shown = first_of_each(all_cards, max_cards, lambda card: card.fate)
    names = {row.problem for row in facts.rows["rollouts"]}
    examples = stages[-1].kept
    return render(
        "collection.html.jinja",
        title="Interventions collected from failed attempts",
        subtitle=f"{len(names):,} problems, {stages[0].rows:,} rollouts, {examples:,} examples",
        meta=_meta(run, facts),
        notes=_notes(run, facts, stages),
        lab=of_the_lab(run, "weak", "critic"),
        scripts=("common.js", "cards.js"),
        styles=("page.css", "cards.css"),
        stages=[(stage, *_drawn(stage, stages)) for stage in stages],
        counts=funnel(out),
        successes=_successes(facts),
        errors=_errors(facts),
        cards=shown,
        total=len(all_cards),
        clean=redact,
        described=_described,
    )


def _read_facts(out: Path, run: Mapping[str, Any], problems: Iterable[Problem] = ()) -> Facts:
    """The rows of all stages in `out`; raises DataError where there is none."""
    rows = {name: read_stage(out, name) for name in ROWS}
    if not rows["rollouts"]:
        raise DataError(f"{out} holds no sealed chunk of a collection; give the directory that `collect` wrote")
    known = {problem.id: problem for problem in (*read_rows(out / "problems.jsonl", Problem), *problems)}
    return Facts(rows, str(run.get("arguments", {}).get("keep", "best")), known)


def _drawn(stage: Stage, stages: list[Stage]) -> tuple[Markup, str, list[tuple[str, int]]]:
    """The bar of a stage, its share that was kept in words, and what was left out with the class of its colour."""
    parts = [("kept", stage.becomes, stage.kept), *(("left", name, n) for name, n in stage.left.items())]
    share = f"{100 * stage.kept / stage.rows:.0f} %" if stage.rows else "–"
    return stage_svg(parts, max(s.rows for s in stages)), share, list(stage.left.items())


def _successes(facts: Facts) -> Markup | None:
    bars = facts_of.success_bars(facts)
    total = sum(bar.value for bar in bars)
    summary = f"Share of guided rollouts that end right, of {total:,} candidates; {bars[0].value:,} have none."
    return bars_svg(bars, "guided rollouts that end right (%), up to", summary, "f2") if total else None


def _errors(facts: Facts) -> Markup | None:
    bars = facts_of.error_bars(facts)
    if not bars:
        return None
    most = max(bars, key=lambda bar: bar.value)
    summary = f"Step of the first error, of {sum(bar.value for bar in bars):,} attempts; most often step {most.label}."
    return bars_svg(bars, "step of the first error, counted from 0", summary, "f3")


def _meta(run: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    config, how = run.get("config", {}), run.get("arguments", {})
    written = {
        name: spent(facts.rows[name]).generated_tokens for name in ("rollouts", "located", "candidates", "guided")
    }
    models = {name: sorted({row.made.model for row in facts.rows[name]}) for name in ("rollouts", "candidates")}
    return {
        "configuration": run.get("config_hash", ""),
        "weak model": ", ".join(models["rollouts"]),
        "critic": ", ".join(models["candidates"] or sorted({row.made.model for row in facts.rows["located"]})),
        "rollouts per problem": how.get("rollouts"),
        "candidates per error": config.get("critic", {}).get("candidates"),
        "guided rollouts, at most": how.get("guided"),
        "tokens generated": f"{sum(written.values()):,}",
        "status": "" if run.get("status") == "finished" else run.get("status", ""),
    }


def _notes(run: Mapping[str, Any], facts: Facts, stages: list[Stage]) -> list[str]:
    notes, how = [], run.get("arguments", {})
    blind = sum(not row.with_reference for row in facts.rows["located"])
    if blind:
        notes.append(
            f"For {blind:,} of {len(facts.rows['located']):,} attempts there was no reference solution: the critic "
            "was asked without one."
        )
    early = {name: how[name] for name in ("enough", "drop_after", "miss", "average") if how.get(name)}
    if early:
        rules = ", ".join(f"{name}: {value}" for name, value in early.items())
        notes.append(
            f"Guided rollouts of a candidate stop early ({rules}), so a share of successes is of those that were run, "
            "and is too high on average where a success ends them."
        )
    if not stages[-1].kept:
        notes.append("No example came out; the funnel shows where the attempts were lost.")
    return notes


def _described(card: Card) -> str:
    """One line about a card, for a reader who hears it."""
    where = "" if card.location is None else f", first error in step {card.location}"
    return f"{card.id}: {card.fate}{where}"
