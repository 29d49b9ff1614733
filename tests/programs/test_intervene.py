"""The intervene program: problem files, what is told before and after, interruptions, caps, other starts."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from programs import intervene
from stepwise.data.examples import read_examples
from stepwise.interventions.collection import funnel
from stepwise.interventions.settings import CollectSettings, Writers
from stepwise.io import append_rows, read_rows
from stepwise.types import Problem
from tests import limits
from tests.fakes import ScriptedBackend
from tests.interventions import world

SMALL = ["--rollouts", "3", "--candidates", "2", "--guided", "8", "--chunk", "2", "--max-tokens", "100"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six sums in a file."""
    monkeypatch.setenv("COLUMNS", "80")
    append_rows(tmp_path / "sums.jsonl", world.problems(6))
    return tmp_path / "sums.jsonl"


def start(file: Path, out: Path, *arguments: str, writers: Writers | None = None) -> int:
    """The program, with the models that know how to add."""
    given = ["--problems", str(file), "--out", str(out), *SMALL, *arguments]
    return intervene.main(given, writers=writers or world.writers())


def test_a_file_becomes_a_dataset_and_its_story_is_told_in_80_columns(
    file: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out"
    assert start(file, out, "--licence", "mit") == 0
    rows = read_rows(out / "dataset.jsonl")
    assert rows
    assert all({"question", "answer", "prefix", "intervention"} <= row.keys() for row in rows)
    assert 'license: "mit"' in (out / "dataset.md").read_text()
    assert (out / "report.html").stat().st_size > 1000
    (counts,) = read_rows(out / "metrics.jsonl")
    assert counts == funnel(out)
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines() if str(out) not in line)
    assert re.search(rf"failed attempts +{counts['failed attempts']} +\d+% of rollouts", said)
    assert f"{len(rows)} examples: {out / 'dataset.jsonl'}" in said.replace("\n", " ")
    assert "weak (weak):" in said
    assert "critic (critic):" in said
    example = read_examples(out / "dataset.jsonl")[0]
    assert example.intervention in said


def test_every_setting_of_a_collection_is_an_option_and_stands_in_the_card(file: Path, tmp_path: Path) -> None:
    given = {"rollouts": 2, "enough": None, "keep": "all", "concurrency": 3, "check_sums": False, "attempts": 1}
    options = [f"--{name.replace('_', '-')}={str(value).lower()}" for name, value in given.items()]
    assert start(file, tmp_path / "out", *options) == 1  # these settings keep no example
    told = json.loads((tmp_path / "out" / "dataset.md").read_text().partition("```json\n")[2].partition("\n```")[0])
    assert {name: told["settings"][name] for name in given} == given
    assert told["settings"]["critic"]["candidates"] == 2
    arguments = json.loads((tmp_path / "out" / "run.json").read_text())["arguments"]
    assert set(CollectSettings.model_fields) <= set(arguments)


@pytest.mark.parametrize(
    ("option", "value"), [("--rollouts", "0"), ("--keep", "worst"), ("--batch", "2.5"), ("--floor", "1")]
)
def test_a_setting_out_of_range_is_refused_with_its_name(
    file: Path, tmp_path: Path, capsys: Captured, option: str, value: str
) -> None:
    assert start(file, tmp_path / "out", option, value) == 2
    assert f"{option} is {value}: it should be" in capsys.readouterr().err


BAD: list[tuple[bytes, str]] = [
    (b"", "has no rows"),
    (b"\n\n", "has no rows"),
    (b"\xff\xfe{}", "is not UTF-8"),
    (b'{"question": "Add."', "line 1"),
    (b'{"answer": "3"}\n', "row 1: there is no text in the field question"),
    (b'{"question": "a", "problem": "b", "answer": "3"}\n', "question and problem are both there"),
    (b'{"question": "a", "answer": "3", "id": "x"}\n{"question": "b", "answer": "3", "id": "x"}\n', "occurs twice"),
    (b'{"question": "a"}\n', "no problem can be used"),
    (b'{"question": "a", "answer": "(("}\n', "no problem can be used"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_bad_input_is_one_line_that_names_the_file(
    file: Path, tmp_path: Path, capsys: Captured, data: bytes, message: str
) -> None:
    file.write_bytes(data)
    assert start(file, tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert str(file) in said
    assert len([line for line in said.splitlines() if "none has an answer" not in line]) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_refused(file: Path, tmp_path: Path, capsys: Captured) -> None:
    assert start(tmp_path / "none.jsonl", tmp_path / "out") == 2
    assert "no such file" in capsys.readouterr().err


def test_what_is_left_out_and_what_has_no_reference_is_told_before_anything_is_spent(
    file: Path, tmp_path: Path, capsys: Captured
) -> None:
    file.unlink()
    append_rows(file, [*world.problems(3, reference=False), Problem("bad", "Add ((.", "((")])
    assert start(file, tmp_path / "dry", "--dry-run") == 0
    dry = capsys.readouterr()
    assert start(file, tmp_path / "out") == 0
    for said in (dry.err, capsys.readouterr().out):
        plain = " ".join(said.split())
        assert "3 problems, 1 left out (bad: " in plain
        assert "3 have no reference solution; the critic is asked without one" in plain
        assert "llamacpp/lab-weak knows lab problems only, and 3 of 3 are none: set models.weak.model" in plain
    assert "likely" in dry.out
    assert not (tmp_path / "dry").exists()
    assert not read_examples(tmp_path / "out" / "dataset.jsonl")[0].with_reference


def test_the_lab_needs_no_warning_and_a_critic_behind_an_api_a_hint(tmp_path: Path, capsys: Captured) -> None:
    assert intervene.main(["--lab", "3", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert capsys.readouterr().err == "3 problems\n"
    critic = ["--set", "models.critic.model=openai/x", "--set", "budget.problem.calls=3"]
    assert intervene.main(["--lab", "3", "--out", str(tmp_path / "out"), "--dry-run", *critic]) == 0
    said = capsys.readouterr().err
    assert "--concurrency 8 is faster" in said
    assert "[budget.problem] do not count here" in said


def test_the_same_command_goes_on_and_other_problems_or_settings_are_refused(
    file: Path, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out"
    assert start(file, out) == 0
    first = (out / "dataset.jsonl").read_bytes()
    assert start(file, out, "--licence", "mit") == 0  # the rows are the same
    assert "is finished already" in capsys.readouterr().out.replace("\n", " ")
    assert start(file, out, "--rollouts", "4") == 2
    assert "holds a run with other arguments" in capsys.readouterr().err
    assert start(file, out, "--set", "seed=1") == 2
    append_rows(file, [Problem("more", "Add 1, 2, 3, 4.", "10")])
    assert start(file, out) == 2
    assert "began with other problems" in capsys.readouterr().err
    assert start(file, out, "--n", "6") == 2  # --n is another argument
    assert start(file, out, "--overwrite", "--n", "6") == 0
    assert (out / "dataset.jsonl").read_bytes() == first


def test_a_reached_cap_ends_in_a_dataset_and_one_line_and_goes_on_when_it_is_raised(
    file: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert start(file, tmp_path / "whole") == 0
    calls = sum(row["usage"]["calls"] for row in _written(tmp_path / "whole"))
    out = tmp_path / "out"
    capsys.readouterr()
    assert start(file, out, "--set", f"budget.calls={calls - 5}") == 1
    told = capsys.readouterr()
    assert f"error: budget.calls = {calls - 5}" in told.err
    assert "What became of the attempts" in told.out
    assert "cap on calls: " in told.out
    assert "4 of 6 problems are done." in told.out
    part = (out / "dataset.jsonl").read_bytes()
    assert part
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    assert start(file, out, "--set", f"budget.calls={10 * calls}") == 0
    whole = (tmp_path / "whole" / "dataset.jsonl").read_bytes()
    assert (out / "dataset.jsonl").read_bytes() == whole
    assert whole.startswith(part)


def test_a_cap_reached_before_anything_is_sealed_is_what_the_error_says(
    file: Path, tmp_path: Path, capsys: Captured
) -> None:
    assert start(file, tmp_path / "out", "--set", "budget.calls=1") == 1
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("error: budget.calls = 1: ")
    assert "0 of 6 problems are done." in told.out
    assert "What became of the attempts" not in told.out


def _written(out: Path) -> list[Any]:
    names = ("rollouts", "located", "candidates", "guided")
    return [row for name in names for path in out.glob(f"chunks/*/{name}.jsonl") for row in read_rows(path)]


def test_a_full_disk_and_a_dead_model_end_in_one_line_and_keep_what_is_sealed(
    file: Path, tmp_path: Path, capsys: Captured
) -> None:
    def written(problem: Problem, prefix: tuple[str, ...], seed: int) -> str:
        end = f" so {'o' * 15_000}." if problem.id == "p3" else "."
        return world.written(problem, prefix, seed).replace(".", end)

    long = world.writers(ScriptedBackend(written, "weak"))
    with limits.no_file_over(14_000):
        assert start(file, tmp_path / "out", writers=long) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: File too large")
    assert "then run the same command again" in said
    assert [path.name for path in sorted((tmp_path / "out" / "chunks").glob("?????"))] == ["00000"]
    gone = ScriptedBackend(world.written, "weak")
    gone.broken = True
    assert start(file, tmp_path / "out", writers=world.writers(gone)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: weak was told to fail"
    assert (tmp_path / "out" / "chunks" / "00000").is_dir()
    assert start(file, tmp_path / "out") == 0
    assert start(file, tmp_path / "whole") == 0
    assert (tmp_path / "out" / "dataset.jsonl").read_bytes() == (tmp_path / "whole" / "dataset.jsonl").read_bytes()


def test_where_no_attempt_fails_it_says_why_there_is_no_example(file: Path, tmp_path: Path, capsys: Captured) -> None:
    right = ScriptedBackend(lambda p, prefix, _: "\n\n".join(world.solution(p, prefix, None)), "weak")
    assert start(file, tmp_path / "out", writers=world.writers(right)) == 0
    assert "no attempt ended wrong" in capsys.readouterr().out
    assert (tmp_path / "out" / "dataset.jsonl").read_bytes() == b""


def victim(file: Path, out: Path, said: Path, sign: signal.Signals) -> None:
    """A start that is sent a signal in the middle of its second chunk, and writes what it says to the file `said`."""

    left = [sign]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of the test runner ignores it

    def heard(call: int) -> None:
        if left and (out / "chunks" / "00000").exists():
            os.kill(os.getpid(), left.pop())

    with said.open("w", buffering=1) as sys.stderr:
        code = start(file, out, writers=world.counted(heard))
    os._exit(code)


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_killed_or_interrupted_in_a_later_chunk_the_same_command_gives_the_same_dataset(
    file: Path, tmp_path: Path, sign: signal.Signals, code: int
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert start(file, whole) == 0
    child = multiprocessing.get_context("fork").Process(target=victim, args=(file, out, tmp_path / "said", sign))
    child.start()
    child.join()
    assert child.exitcode == code
    said = (tmp_path / "said").read_text()
    if sign is signal.SIGINT:
        line = said.splitlines()[-1]
        assert line.startswith("interrupted; ")
        assert "chunks/*/rollouts.jsonl with " in line
        assert line.endswith("the same command goes on from there")
    # What is sealed has become a dataset with its page, where there was time for it.
    assert [(out / name).exists() for name in ("dataset.jsonl", "report.html")] == [sign is signal.SIGINT] * 2
    assert start(file, out) == 0
    assert (out / "dataset.jsonl").read_bytes() == (whole / "dataset.jsonl").read_bytes()
