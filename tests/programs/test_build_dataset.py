"""The program on the lab's models: datasets of a small collection, of problems, of routed traces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from programs.build_dataset import main
from stepwise.data.examples import read_examples
from stepwise.interventions import collect
from stepwise.io import append_rows
from stepwise.lab.problems import generate
from stepwise.lab.references import reference
from stepwise.steps import extract_answer
from tests.interventions import world

N = 6


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collection")
    collect(world.problems(N), world.CONFIG, out, settings=world.SETTINGS, writers=world.writers())
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The problems of the collection."""
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    append_rows(path, world.problems(N))
    return path


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: object) -> tuple[int, str]:
        code = main([*map(str, arguments), "--out", str(tmp_path / "out")])
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_the_right_rollouts_of_a_collection(
    collection: Path, file: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    given = ["--kind", "rejection", "--collection", collection, "--problems", file]
    code, said = run(*given, "--option", "per_problem=1", "--licence", "mit")
    rows = read_examples(tmp_path / "out" / "dataset.jsonl")
    assert code == 0
    assert f"{len(rows)} rows of the kind rejection" in said
    assert 0 < len(rows) <= N
    assert all(extract_answer(row.target) == row.answer for row in rows)
    assert 'license: "mit"' in (tmp_path / "out" / "dataset.md").read_text()


def test_pairs_of_a_collection(
    collection: Path, file: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    code, _ = run("--kind", "pairs", "--collection", collection, "--problems", file)
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert code == 0
    assert len(rows) == len(read_examples(collection / "dataset.jsonl")) > 0
    assert rows[0].keys() == {"id", "prompt", "chosen", "rejected", "answer", "prompt_hash"}


@pytest.mark.parametrize("kind", ["full", "compressed", "regrouped"])
def test_references_of_the_lab_at_each_granularity(
    kind: str, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    assert run("--kind", "reference", "--split", "val", "--n", 4, "--granularity", kind)[0] == 0
    rows = read_examples(tmp_path / "out" / "dataset.jsonl")
    assert [row.target for row in rows] == [reference(made, kind) for made in generate("val", 4)]  # type: ignore[arg-type]


def test_problems_of_a_file(tmp_path: Path, run: Callable[..., tuple[int, str]]) -> None:
    file = tmp_path / "problems.jsonl"
    rows = [
        {"problem": "1 + 1?", "solution": "It is \\boxed{2}."},
        {"problem": "1 + 2?", "answer": "3"},
        {"problem": "1 + (?", "answer": "(("},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = run("--kind", "reference", "--problems", file)
    assert code == 0
    assert "1 left out" in " ".join(said.split())
    assert [row.target for row in read_examples(tmp_path / "out" / "dataset.jsonl")] == ["It is \\boxed{2}."]
    card = (tmp_path / "out" / "dataset.md").read_text()
    assert '"problems without a reference solution": 1' in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "suffix"], "--kind suffix is made from a collection"),
        (["--kind", "pairs"], "--kind pairs is made from a collection"),
        (["--kind", "routing"], "--kind routing is made from traces"),
        (["--kind", "rejection", "--collection", "nowhere"], "holds no sealed chunk"),
        (["--kind", "reference", "--option", "rounds"], "has no value"),
        (["--kind", "reference", "--option", "round=2"], "--option round: Extra inputs are not permitted"),
        (["--kind", "reference", "--option", "rounds=0"], "--option rounds: Input should be greater"),
        (["--kind", "reference", "--option", "collect.guided=x"], "--option collect.guided: Input should be a valid"),
        (["--kind", "reference", "--problems", "p.jsonl", "--granularity", "full"], "for the lab's problems"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, run: Callable[..., tuple[int, str]]) -> None:
    code, said = run(*arguments)
    assert code == 2
    assert message in " ".join(said.split())


def test_a_dry_run_asks_nobody_and_says_how_much_it_would(
    collection: Path, file: Path, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    code, said = run("--kind", "strong", "--n", 5, "--option", "per_problem=2", "--dry-run")
    assert code == 0
    assert "strong" in said
    assert "10,240" in said  # 5 problems, 2 solutions, 1,024 tokens
    said = run("--kind", "reflection", "--collection", collection, "--problems", file, "--dry-run")[1]
    assert "critic" in said
    assert "weak" in said
    assert "asks no model" in run("--kind", "reference", "--dry-run")[1]
    assert not (tmp_path / "out").exists()


def test_steps_of_routed_traces(tmp_path: Path, run: Callable[..., tuple[int, str]]) -> None:
    from programs.route import main as route

    problems = ["--split", "train", "--n", "6"]
    assert route([*problems, "--set", "routing.threshold=0.6", "--out", str(tmp_path / "routed")]) == 0
    options = ["--option", "collect.guided=4", "--option", "collect.max_tokens=300"]
    code, said = run("--kind", "routing", "--traces", tmp_path / "routed", *options)
    rows = read_examples(tmp_path / "out" / "dataset.jsonl")
    assert code == 0
    assert f"{len(rows)} rows of the kind routing" in said
    assert rows
    assert {row.origin for row in rows} == {"routing"}
