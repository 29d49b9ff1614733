"""The route program in chunks, in one process: the same traces, sealed; and where workers are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest

from programs import build_dataset, intervene, route, train
from stepwise.config import Config
from stepwise.data.streamed import StreamedProblems
from stepwise.errors import DataError
from stepwise.io import read_rows, write_rows
from stepwise.routing.chunked import About, Routed, shown
from stepwise.routing.compare import judge
from stepwise.routing.names import ModelNames
from stepwise.routing.policies import Threshold
from stepwise.types import Trace
from tests.routing.lab_world import LabWorld

RAY = ["--set", "workers.backend=ray"]


def start(out: Path, *arguments: str) -> int:
    return route.main(["--out", str(out), *arguments])


def steps(out: Path) -> list[tuple[str, list[str]]]:
    return [(t.problem.id, [s.text for s in t.steps]) for t in read_rows(out / "traces.jsonl", Trace)]


def test_chunks_give_the_traces_of_a_run_without_them_in_the_order_of_the_problems(
    world: LabWorld, tmp_path: Path
) -> None:
    ids = [problem.id for problem in world.problems]
    assert start(tmp_path / "plain", "--n", "10") == 0
    assert start(tmp_path / "chunks", "--n", "10", "--chunk", "4") == 0
    assert steps(tmp_path / "chunks") == sorted(steps(tmp_path / "plain"), key=lambda each: ids.index(each[0]))
    assert [name for name, _ in steps(tmp_path / "chunks")] == ids
    assert [f.name for f in sorted((tmp_path / "chunks" / "chunks").iterdir())] == ["00000", "00001", "00002"]


def test_a_chunk_that_is_not_sealed_is_done_again_whole_and_no_other(world: LabWorld, tmp_path: Path) -> None:
    assert start(tmp_path, "--n", "10", "--chunk", "4") == 0
    whole, asked = steps(tmp_path), len(world.weak.requests)
    shutil.move(tmp_path / "chunks" / "00001", tmp_path / "chunks" / "00001.open")  # killed while it was written
    assert start(tmp_path, "--n", "10", "--chunk", "4") == 0
    assert steps(tmp_path) == whole
    again = {request.problem.id for request in world.weak.requests[asked:]}
    assert again == {trace.problem.id for trace in read_rows(tmp_path / "traces.jsonl", Trace)[4:8]}


def test_problems_of_a_file_are_read_as_they_are_needed_and_a_changed_file_is_refused(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "problems.jsonl", tmp_path / "out"
    write_rows(file, world.problems)
    assert start(out, "--problems", str(file), "--chunk", "4") == 0
    write_rows(file, world.problems[::-1])
    assert start(out, "--problems", str(file), "--chunk", "4") == 2
    assert "was begun with other problems" in capsys.readouterr().err


def test_a_bad_row_ends_the_run_at_its_chunk_and_what_is_sealed_stays(
    world: LabWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "problems.jsonl", tmp_path / "out"
    write_rows(file, [*world.problems[:6], {"question": ""}])
    assert start(out, "--problems", str(file), "--chunk", "4") == 2
    assert "problems.jsonl, line 7" in capsys.readouterr().err
    assert len(read_rows(out / "chunks" / "00000" / "traces.jsonl", Trace)) == 4


@pytest.mark.parametrize("line", ["not JSON", '["a list"]', '{"question": "1 + 1?", "answer": "see below"}'])
def test_streamed_rows_are_checked_one_by_one(line: str, tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n\n" + line + "\n")
    problems = iter(StreamedProblems(file))
    assert next(problems).answer == "2"
    with pytest.raises(DataError, match=r"problems\.jsonl, line 3"):
        next(problems)


def test_the_row_of_more_traces_than_are_shown_is_that_of_all(world: LabWorld, tmp_path: Path) -> None:
    assert start(tmp_path, "--n", "10", "--chunk", "4") == 0
    sizes = {"weak": 1000, "strong": 9000, "scorer": None}
    routed = Routed(Threshold(), About(ModelNames("w", "s", None), sizes, {}), None)
    everything = read_rows(tmp_path / "traces.jsonl", Trace)
    traces, row = shown(tmp_path / "traces.jsonl", routed, most=3)
    assert traces == everything[:3]
    assert row == dataclasses.replace(judge(routed, everything).row, seconds=None)  # type: ignore[arg-type]
    assert shown(tmp_path / "traces.jsonl", routed, most=10) == (everything, None)


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        (route, [], "stepwise route without --chunk runs in one process"),
        (route, ["--chunk", "4", "--stream"], "--chunk 4 does not go with --stream"),
        (train, ["sft", "--dataset", "rows.jsonl"], "stepwise train runs in one process"),
        (intervene, ["--lab", "4"], 'set accept to "success"'),
    ],
)
def test_what_runs_in_one_process_refuses_workers(
    program: object, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([*arguments, *RAY, "--out", str(tmp_path / "out")]) == 2  # type: ignore[attr-defined]
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_without_ray_the_remedy_is_its_installation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for program in (route, build_dataset):
        few = ["--lab", "4", "--kind", "rejection"] if program is build_dataset else ["--lab", "4", "--chunk", "2"]
        assert program.main([*few, *RAY, "--out", str(tmp_path / program.__name__)]) == 1
        assert 'pip install "stepwise[ray]"' in capsys.readouterr().err


def test_workers_change_nothing_of_what_a_run_is() -> None:
    one, two = Config.lab(), Config.load(None, ["workers.backend=ray", "workers.actors_per_node=8"])
    assert one.hash == two.hash
