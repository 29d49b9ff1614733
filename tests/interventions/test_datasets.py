"""Every kind of dataset from one collection of sums, of which the truth is known."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import ModelsConfig
from stepwise.critics import signatures
from stepwise.critics.formats.compact_format import write_fields
from stepwise.critics.rewriter import SolutionRewriter
from stepwise.data.examples import Example, read_examples
from stepwise.errors import BackendError, ConfigError, DataError
from stepwise.interventions.checks.leaks import LeakVerdict
from stepwise.interventions.collection import collect, read_stage
from stepwise.interventions.datasets import KINDS, NEED_COLLECTION, Recipe, build, pairs, write_dataset
from stepwise.interventions.rows import FailedAttempt, by_id
from stepwise.interventions.settings import BuildSettings, Writers
from stepwise.io import write_rows
from stepwise.runs.chunks import sealed_rows
from stepwise.steps import extract_answer
from stepwise.types import Problem
from tests.critics.critic import asked
from tests.fakes import Line, ScriptedBackend
from tests.interventions import world
from tests.interventions.world import CONFIG, SETTINGS, SUM
from tests.scripted_lm import Messages, ScriptedLM

N = 6
BUILD = BuildSettings(collect=SETTINGS, chunk=2, per_problem=2, samples=4)
WHOLE = ("reference", "reflection", "strong", "rejection")


def rewrites(messages: Messages) -> str:
    """A rewrite that ends right for every other question."""
    request = asked(messages)
    problem = next(p for p in world.problems(20) if p.question in request)
    slip = None if int(problem.id[1:]) % 2 else 1
    values = {"reflection": "I slipped.", "solution": "\n\n".join(world.solution(problem, (), slip))}
    return write_fields(signatures.RewriteAttempt, values)


def writers(weak: Any = None) -> Writers:
    strong = ScriptedBackend(lambda p, prefix, seed: "\n\n".join(world.solution(p, prefix, None)), "strong")
    return world.writers(weak, strong=strong, rewriter=SolutionRewriter(ScriptedLM(rewrites, "critic")))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collection")
    collect(
        world.problems(N), CONFIG, out, settings=SETTINGS.model_copy(update={"enough": None}), writers=world.writers()
    )
    return out


def made(kind: str, source: Any, counts: Counter[str] | None = None, **settings: Any) -> list[Example]:
    problems = world.problems(N) if isinstance(source, Path) else None
    return build(kind, source, CONFIG, problems=problems, settings=BUILD.model_copy(update=settings), writers=writers(),
                 counts=counts)  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "own_corpus"])
def test_rows_of_every_kind_lead_back_to_a_problem_and_carry_the_prompt(kind: str, collection: Path) -> None:
    rows = build(kind, collection, CONFIG, problems=world.problems(N), settings=BUILD, writers=writers())
    known = by_id(world.problems(N))
    assert rows or kind == "earlier"  # this critic mends the first wrong sum alone, and may not there
    by_id(rows)
    for row in rows:
        assert row.question == known[row.parents["problem"]].question
        assert row.answer == known[row.parents["problem"]].answer
        assert row.prompt_hash == CONFIG.prompt.hash
        assert row.id.startswith(row.parents["problem"] + "/")
        assert row.complete is (kind in (*WHOLE, "suffix", "first_tokens") and not _cut(row))


def _cut(row: Example) -> bool:
    return row.origin == "first_tokens" and extract_answer(row.target) is None


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_solutions_end_right(kind: str, collection: Path) -> None:
    for row in made(kind, collection):
        assert row.origin == kind
        assert row.prefix == ()
        assert extract_answer(row.target) == row.answer
        assert (row.successes, row.guided) == (0, 0)


def test_the_models_own_right_rollouts_are_those_of_the_collection_each_text_once(collection: Path) -> None:
    right = [row for row in read_stage(collection, "rollouts") if row.verdict == "CORRECT"]
    rows = made("rejection", collection, per_problem=9)
    assert {row.intervention for row in rows} == {row.text for row in right}
    assert len(rows) == len({(row.problem, row.text) for row in right}) < len(right)
    assert {row.parents["rollout"] for row in rows} <= {row.id for row in right}
    fresh = made("rejection", world.problems(N), samples=9, per_problem=1)
    assert max(Counter(row.question for row in fresh).values()) == 1


def test_references_get_a_box_and_those_that_contradict_the_answer_are_left_out_and_counted() -> None:
    problems = [
        Problem("a", "q1", "4", "2 + 2 = 4"),
        Problem("b", "q2", "5", r"So \boxed{6}."),
        Problem("c", "q3", "6"),
        Problem("d", "q4", "7", "3 + 4\n\n\nis \\boxed{7}"),
    ]
    counts: Counter[str] = Counter()
    rows = made("reference", problems, counts)
    assert [row.intervention for row in rows] == ["2 + 2 = 4\n\nSo the answer is \\boxed{4}.", "3 + 4\n\nis \\boxed{7}"]
    assert counts == {
        "references whose answer is not the gold answer": 1, "problems without a reference solution": 1,
    }  # fmt: skip


def test_an_attempt_is_repaired_until_it_ends_right_or_the_rounds_are_used_up(collection: Path) -> None:
    counts, later = Counter[str](), Counter[str]()
    rows = made("reflection", collection, counts, rounds=1, per_problem=9)
    more = made("reflection", collection, later, rounds=4, per_problem=9)
    assert rows
    assert counts["failed attempts"] == counts["attempts that took a repair"] == later["rewrites that end right"]
    assert later["rewrites that end right"] > counts["rewrites that end right"] > 0
    assert all(extract_answer(row.target) == row.answer for row in [*rows, *more])
    attempts = by_id(read_stage(collection, "failures"))
    for row in more:
        failed = attempts[row.parents["failure"]].steps
        first = next(i for i, step in enumerate(failed) for a, b, c in SUM.findall(step) if int(a) + int(b) != int(c))
        assert row.intervention.split("\n\n")[:first] == list(failed[:first])  # what was right is kept
        assert all(int(a) + int(b) == int(c) for a, b, c in SUM.findall(row.target))


def test_what_is_asked_for_in_a_repair_is_kept_with_the_dataset(collection: Path, tmp_path: Path) -> None:
    path = write_dataset("reflection", collection, CONFIG, tmp_path, problems=world.problems(N), settings=BUILD,
                         writers=writers())  # fmt: skip
    candidates = {row["id"] for row in sealed_rows(tmp_path, "candidates", dict)}
    assert {row.parents["candidate"] for row in read_examples(path)} <= candidates
    guided = {row["candidate"] for row in sealed_rows(tmp_path, "guided", dict)}
    assert guided
    assert guided <= candidates


def test_a_model_that_can_writes_the_whole_solution_anew(collection: Path) -> None:
    counts: Counter[str] = Counter()
    rows = made("reflection", collection, counts, reflection="rewrite")
    assert {int(row.parents["problem"][1:]) % 2 for row in rows} == {1}
    assert counts["rewrites that end right"] < counts["failed attempts"]
    assert counts["rewrites with a false equation"] == counts["failed attempts"] - counts["rewrites that end right"]
    unchecked = SETTINGS.model_copy(update={"check_sums": False})
    loose = made("reflection", collection, reflection="rewrite", collect=unchecked)
    assert len(loose) >= len(rows)
    assert {row.models["critic"] for row in loose} == {"critic"}


def test_the_first_tokens_of_one_sample_and_a_share_of_whole_ones(collection: Path) -> None:
    beginnings = made("first_tokens", collection, first_tokens=3, full_share=0.0)
    assert [len(row.intervention.split()) for row in beginnings] == [3] * N
    assert not any(row.complete for row in beginnings)
    whole = made("first_tokens", world.problems(N), full_share=1.0)
    assert all(row.complete and extract_answer(row.target) for row in whole)
    assert any(extract_answer(row.target) != row.answer for row in whole)  # nothing is filtered
    mixed = Counter(row.complete for row in made("first_tokens", world.problems(60), full_share=0.2))
    assert 0 < mixed[True] < 30


def test_without_the_filter_every_attempt_keeps_its_first_candidate(collection: Path) -> None:
    counts: Counter[str] = Counter()
    rows, filtered = made("unfiltered", collection, counts), made("intervention", collection)
    clean = {row.failure for row in read_stage(collection, "candidates") if row.leak is LeakVerdict.CLEAN}
    assert filtered == read_examples(collection / "dataset.jsonl")
    assert len(rows) <= len(clean)
    assert {row.target for row in filtered} <= {row.target for row in rows}
    assert counts["without a success"] == sum(row.successes == 0 for row in rows)


def test_the_suffix_is_a_continuation_that_ended_right(collection: Path) -> None:
    guided = by_id(read_stage(collection, "guided"))
    for row in made("suffix", collection):
        assert guided[row.id].candidate == row.parents["candidate"]
        assert guided[row.id].text == row.suffix
        assert extract_answer(row.target) == row.answer


def test_a_moved_intervention_has_the_same_text_at_another_step(collection: Path) -> None:
    attempts, filtered = by_id(read_stage(collection, "failures")), by_id(made("intervention", collection))
    for row in made("moved", collection):
        kept = filtered[row.parents["candidate"]]
        assert row.intervention == kept.intervention
        assert len(row.prefix) != len(kept.prefix)
        assert row.prefix == attempts[row.parents["failure"]].steps[: len(row.prefix)]
        assert row.guided == 0


@pytest.mark.parametrize(("kind", "distance"), [("earlier", {-1}), ("random", {-2, -1, 1, 2})])
def test_another_place_is_proposed_for(kind: str, distance: set[int], collection: Path) -> None:
    located = {row.failure: row.first_error for row in read_stage(collection, "located")}
    rows = _located(kind, collection)
    assert {at - located[name] for name, at in rows} <= distance
    assert rows


def _located(kind: str, collection: Path) -> list[tuple[str, Any]]:
    recipe = Recipe(kind, collection, CONFIG, BUILD, world.problems(N))
    builder = recipe.builder(recipe.members, writers())
    KINDS[kind](builder)
    return [(row.failure.rpartition("/")[0], row.first_error) for row in builder.written["located"]]


def test_the_own_corpus_is_the_same_every_time_and_holds_wrong_solutions() -> None:
    rows = build("own_corpus", (), CONFIG, settings=BuildSettings(own_corpus=40))
    assert rows == build("own_corpus", (), CONFIG, settings=BuildSettings(own_corpus=40))
    right = [extract_answer(row.target) == row.answer for row in rows]
    assert len(rows) == 40
    assert 5 < sum(right) < 35
    assert {row.origin for row in rows} == {"own_corpus"}


def test_a_dataset_killed_and_gone_on_with_is_the_same_and_what_is_sealed_is_not_asked_again(tmp_path: Path) -> None:
    def go(out: Path, weak: ScriptedBackend) -> Path:
        return write_dataset("rejection", world.problems(N), CONFIG, out, settings=BUILD, writers=writers(weak))

    broken = world.breaking("p3")
    with pytest.raises(BackendError, match="told to fail"):
        go(tmp_path / "out", broken)
    torn = tmp_path / "out" / "chunks" / "00002.open"
    torn.mkdir()
    (torn / "rollouts.jsonl").write_text("torn")
    again = ScriptedBackend(world.written, "weak")
    path = go(tmp_path / "out", again)
    assert {request.problem.id for request in again.requests} == {"p4", "p5"}
    whole = go(tmp_path / "whole", ScriptedBackend(world.written, "weak"))
    for file in whole.parent.rglob("*"):
        if file.is_file() and file.name != "run.json":
            assert (path.parent / file.relative_to(whole.parent)).read_bytes() == file.read_bytes()
    card = json.loads((path.parent / "run.json").read_text())
    own = {str(file.relative_to(path.parent)) for name in card["files"] for file in path.parent.glob(name)}
    assert {str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file()} == {
        "run.json", *own,
    }  # fmt: skip
    with pytest.raises(DataError, match="other arguments"):
        write_dataset("reference", world.problems(N), CONFIG, tmp_path / "out", settings=BUILD, writers=writers())


def test_the_card_says_what_became_of_what(collection: Path, tmp_path: Path) -> None:
    path = write_dataset(
        "strong", world.problems(2), CONFIG, tmp_path, settings=BUILD, writers=writers(), licence="mit"
    )
    text = path.with_suffix(".md").read_text()
    card = json.loads(text.partition("```json\n")[2].partition("\n```")[0])
    assert card["what became of what"] == {"solutions": 4, "right solutions": 4}
    assert card["counts"]["by origin"] == {"strong": 2}  # the script writes one text for each problem
    assert card["models"] == {"strong": ["strong"]}
    assert 'license: "mit"' in text


def test_what_cannot_be_made_is_refused_by_name(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="kind 'sft' is not one of intervention"):
        made("sft", collection)
    for kind in NEED_COLLECTION:
        with pytest.raises(DataError, match="is made from a collection"):
            made(kind, world.problems(2))
    with pytest.raises(DataError, match="holds no sealed chunk"):
        build("reference", tmp_path, CONFIG)
    with pytest.raises(DataError, match=r"6 problems of .* are not among those given, first 'p0'"):
        build("reference", collection, CONFIG, problems=[])
    other = CONFIG.model_copy(update={"prompt": CONFIG.prompt.model_copy(update={"system": "Be brief."})})
    with pytest.raises(DataError, match="collected under another prompt"):
        build("rejection", collection, other, problems=world.problems(N))


def test_pairs_set_the_intervention_against_the_step_in_its_place(collection: Path, tmp_path: Path) -> None:
    failures: list[FailedAttempt] = read_stage(collection, "failures")
    examples = made("intervention", collection)
    rows = pairs(examples, failures)
    assert [row["id"] for row in rows] == [example.id for example in examples]
    for row, example in zip(rows, examples, strict=True):
        steps = by_id(failures)[example.parents["failure"]].steps
        assert row["prompt"] == example.question
        assert row["chosen"] == example.target
        assert row["rejected"] == "\n\n".join(steps[: len(example.prefix) + 1])
        assert row["rejected"] != row["chosen"]
    file = tmp_path / "pairs.jsonl"
    write_rows(file, rows)
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    with pytest.raises(DataError, match="is not among the rows given"):
        pairs(examples, [])
    example, failed = examples[0], by_id(failures)[examples[0].parents["failure"]]
    shorter = replace(failed, steps=failed.steps[: len(example.prefix)])
    assert pairs([example], [shorter]) == []  # it ends where the intervention comes: nothing to set against it


def test_a_solution_that_failed_to_be_written_is_no_row() -> None:
    weak = ScriptedBackend(
        lambda p, prefix, seed: Line(error="gone") if seed % 3 == 0 else world.written(p, prefix, seed)
    )
    rows = build("rejection", world.problems(4), CONFIG, settings=BUILD, writers=writers(weak))
    assert all(row.intervention for row in rows)


@pytest.mark.parametrize("kind", ["reflection", "rejection"])
def test_the_labs_critic_is_asked_about_no_other_models_attempts(kind: str) -> None:
    weak = ScriptedBackend({"p0": ["I do not know."]}, "weak")
    if kind == "rejection":  # asks no critic
        assert build(kind, world.problems(1), CONFIG, settings=BUILD, writers=Writers(CONFIG, weak=weak)) == []
        return
    with pytest.raises(ConfigError, match="critic: llamacpp/lab-critic is of the lab"):
        build(kind, world.problems(1), CONFIG, settings=BUILD, writers=Writers(CONFIG, weak=weak))
    assert weak.requests == []
    other = CONFIG.model_copy(update={"models": ModelsConfig(weak={"model": "openai/NAME"})})
    with pytest.raises(ConfigError, match="is of the lab"):
        Recipe(kind, world.problems(1), other, BUILD).planned()
