"""Steps that end where there is something to check, from a collection to what is trained: the same steps everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import Config
from stepwise.data.examples import Example, read_examples, read_pairs
from stepwise.errors import DataError
from stepwise.interventions.collection import collect, read_stage
from stepwise.interventions.datasets import build, pairs
from stepwise.interventions.from_routing import from_routing
from stepwise.io import read_rows
from stepwise.steps import ends_step, join_steps, split_steps
from stepwise.types import Problem, Trace
from tests.fakes import ScriptedBackend
from tests.interventions import world

CONFIG = Config.load(None, ["critic.candidates=2", "prompt.splitter=calculations"])


def written(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
    """The world's solution, with a lead-in of its own paragraph, and sums on lines that follow one another."""
    first, *others, last = world.written(problem, prefix, seed).split("\n\n")
    return "\n".join([f"We add:\n\n{first}", *others, f"\n{last}"])


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScriptedBackend]:
    weak, out = ScriptedBackend(written, "weak"), tmp_path_factory.mktemp("int") / "out"
    collect(world.problems(4), CONFIG, out, settings=world.SETTINGS, writers=world.writers(weak))
    return out, weak


def test_rollouts_and_prefixes_are_texts_as_written_and_are_read_in_the_same_steps(collected: Any) -> None:
    out, weak = collected
    for row in read_stage(out, "rollouts"):
        assert "".join(row.steps) == row.text
        assert row.steps[0] == row.text[: row.text.index("\n", 9) + 1], "the lead-in and its sum are one step"
    guided = [request for request in weak.requests if request.prefix]
    assert guided
    for request in guided:
        texts = [step.text for step in request.prefix]
        assert split_steps(join_steps([*texts, "x"], "calculations"), "calculations") == [
            *texts[:-1], f"{texts[-1]}\n\n", "x"
        ]  # fmt: skip


def test_examples_say_how_they_are_split_and_their_card_too(collected: Any) -> None:
    out, _ = collected
    examples = read_examples(out)
    assert examples
    attempts = {row.id: row for row in read_stage(out, "failures")}
    for example in examples:
        assert example.splitter == "calculations"
        assert example.prefix == attempts[example.parents["failure"]].steps[: len(example.prefix)]
        assert example.target == "".join((*example.prefix, example.intervention))
    assert '"step splitter": "calculations"' in (out / "dataset.md").read_text()


def test_pairs_of_them_share_the_prefix_to_the_letter(collected: Any) -> None:
    out, _ = collected
    examples = read_examples(out)
    made = read_pairs(pairs(examples, read_stage(out, "failures")), splitter="calculations")
    assert len(made) == len(examples)
    for pair, example in zip(made, examples, strict=True):
        assert pair.prefix == example.prefix
        assert pair.chosen == (example.intervention,)
        assert len(pair.rejected) == 1


def test_other_datasets_of_the_collection_and_solutions_as_they_were_written(collected: Any) -> None:
    out, _ = collected
    for kind in ("unfiltered", "suffix", "moved"):
        rows = build(kind, out, CONFIG, writers=world.writers(ScriptedBackend(written, "weak")))
        assert rows
        assert {row.splitter for row in rows} == {"calculations"}
    right = {row.text for row in read_stage(out, "rollouts") if row.verdict == "CORRECT"}
    rejection = build("rejection", out, CONFIG, writers=world.writers(ScriptedBackend(written, "weak")))
    assert {row.intervention for row in rejection} <= right
    with pytest.raises(DataError, match="collected under another prompt"):
        build("unfiltered", out, world.CONFIG)


def test_a_proposal_that_only_leads_to_something_is_no_step() -> None:
    assert not ends_step("Now we add:", "calculations")
    assert ends_step("Now we add:\n\n3 + 4 = 7", "calculations")
    assert ends_step("Now we add:", "paragraphs")


def test_routed_traces_of_the_other_splitter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="steps by the splitter 'paragraphs', the configuration by 'calculations'"):
        from_routing([Trace(world.problems(1)[0])], CONFIG, tmp_path / "out", writers=world.writers())


def test_files_of_the_default_are_as_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    collect(world.problems(2), world.CONFIG, out, settings=world.SETTINGS, writers=world.writers())
    rows = [*out.rglob("*.jsonl")]
    assert rows
    assert not any("splitter" in json.loads(line) for path in rows for line in path.read_text().splitlines())
    assert read_rows(out / "dataset.jsonl", Example)
