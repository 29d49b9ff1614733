"""The directory of a run alone: whose it is, what it clears away and how it sums its files up."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from stepwise.config import Config
from stepwise.errors import BackendError, DataError
from stepwise.runs.directory import RunDirectory, opened
from stepwise.runs.shell import Run, program
from tests.counting import Counting


def card(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "run.json").read_text()))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "here"


def close(directory: RunDirectory) -> None:
    with directory.ending():
        pass


def in_chunks(out: Path) -> RunDirectory:
    directory = RunDirectory(out, program="chunks", config=Config(), arguments={})
    for chunk in ("00000", "00001"):
        directory.claim(f"chunks/{chunk}/rows.jsonl").write_text("{}\n" * 3)
    directory.claim("rows.jsonl").write_text("{}\n")
    return directory


def test_starting_anew_removes_directories_that_are_empty_then_and_no_others(out: Path) -> None:
    close(in_chunks(out))
    (out / "chunks" / "00001" / "notes.txt").write_text("mine")
    again = RunDirectory(out, program="chunks", config=Config(), arguments={})
    again.open(anew=True)
    assert [str(path.relative_to(out)) for path in sorted(out.rglob("*"))] == [
        "chunks", "chunks/00001", "chunks/00001/notes.txt",
    ]  # fmt: skip
    close(again)


def test_like_files_of_chunks_are_summed_up(out: Path) -> None:
    directory = in_chunks(out)
    assert directory.summary() == f"{out} holds chunks/*/rows.jsonl with 6 rows, rows.jsonl with 1 rows"
    for step in ("00001", "00002"):
        directory.claim(f"rollouts/step-{step}.jsonl").write_text("{}\n")
    directory.claim("given.jsonl", is_input=True).write_text("{}\n")
    assert directory.summary().endswith("rows.jsonl with 1 rows, rollouts/step-*.jsonl with 2 rows")
    directory.claim("chunks/00002/rows.jsonl", folder=False)
    assert not (out / "chunks" / "00002").exists()
    close(directory)


def test_two_processes_never_write_to_one_directory(out: Path) -> None:
    def directory() -> RunDirectory:
        return RunDirectory(out, program="test_run", config=Config(), arguments={"count": 3, "fail_at": -1})

    first, second, late = directory(), directory(), directory()
    assert not first.open(anew=False)
    assert not late.open(anew=False)
    first.claim("rows.jsonl")
    for begin in (lambda: second.open(anew=False), lambda: second.open(anew=True), late.made):
        with pytest.raises(DataError, match="another process is at work"):
            begin()
    assert card(out)["files"] == ["rows.jsonl"]
    close(first)
    with pytest.raises(DataError, match="another run began"):
        late.made()
    close(late)
    assert card(out)["status"] == "finished"
    assert second.open(anew=False)
    close(second)


def test_a_function_opens_a_path_itself_and_uses_a_directory_that_is_open_as_it_is(out: Path) -> None:
    config = Config()
    with opened(out, program="outer", config=config, arguments={}) as directory:
        directory.claim("rows.jsonl")
        with opened(directory, program="inner", config=config, arguments={"other": 1}) as same:
            assert same is directory
        assert card(out)["status"] == "running"
    assert card(out)["program"] == "outer"
    assert card(out)["status"] == "finished"
    with pytest.raises(DataError, match="another program"), opened(out, program="inner", config=config, arguments={}):
        pass


def test_a_run_goes_on_when_there_are_options_that_there_were_not_when_it_began(out: Path) -> None:
    def directory(count: int = 3, seed: int = 0) -> RunDirectory:
        config = Config.load(None, [f"seed={seed}"])
        return RunDirectory(out, program="p", config=config, arguments={"n": 1, "count": count}, defaults={"count": 3})

    first = directory()
    first.claim("rows.jsonl")
    close(first)
    older = card(out)
    del older["arguments"]["count"], older["config"]["rl"], older["config"]["scorer"]["kind"]  # type: ignore[index, attr-defined]
    (out / "run.json").write_text(json.dumps({**older, "config_hash": "of an older version"}))
    directory().check(overwrite=False)
    for other, said in ((directory(count=4), "count was 3, now 4"), (directory(seed=1), "seed was 0, now 1")):
        with pytest.raises(DataError, match=f"{said};"):
            other.check(overwrite=False)


@pytest.mark.parametrize("fails", [BackendError, RuntimeError, KeyboardInterrupt])
def test_what_an_earlier_start_left_goes_when_there_is_something_to_put_in_its_place(
    out: Path, fails: type[BaseException]
) -> None:
    """A program that starts anew each time and fails before it has a figure has cost none."""

    def program_of(error: type[BaseException] | None) -> Callable[..., int]:
        @program(doc="Measure.", resumable=False)
        def main(run: Run) -> None:
            run.directory.freeze("engine", {"threads": 1})  # what is found out about the machine is no figure
            assert run.out == out
            if error is not None:
                raise error("gone")
            run.path("figures.json").write_text("new")
            run.path("table.json").write_text("new")

        return main

    assert program_of(None)(["--out", str(out)]) == 0
    (out / "figures.json").write_text("old")
    with suppress(RuntimeError):
        assert program_of(fails)(["--out", str(out)]) in (1, 130)
    assert (out / "figures.json").read_text() == "old"
    assert {"figures.json", "table.json"} <= set(card(out)["files"])
    assert program_of(None)(["--out", str(out)]) == 0
    assert (out / "figures.json").read_text() == "new"
    assert card(out)["status"] == "finished"


def test_a_program_that_writes_nothing_leaves_the_directory_of_another_run_alone(out: Path) -> None:
    @program(Counting, doc="Count.", resumable=lambda args: True if args.count > 1 else None)
    def main(run: Run) -> None:
        if run.args.count > 1:
            run.write("rows.jsonl", *({"n": n} for n in range(run.args.count)))

    assert main(["--out", str(out), "--count", "2"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["--out", str(out), "--count", "1"]) == 0
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_where_a_run_failed_and_left_something_that_it_had_not_claimed_the_next_one_begins(
    out: Path, overwrite: bool
) -> None:
    directory = RunDirectory(out, program="serving", config=Config(), arguments={})
    with suppress(BackendError), directory.ending():
        (directory.made() / "server").mkdir()
        raise BackendError("the server ended")
    again = RunDirectory(out, program="serving", config=Config(), arguments={})
    again.check(overwrite=overwrite)
    assert card(out)["status"] == "failed"
