import errno
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from stepwise.config import Config
from stepwise.errors import BackendError, BudgetExceededError, ConfigError, DataError
from stepwise.runs.directory import RunDirectory
from stepwise.runs.shell import Run, program
from tests.counting import SECRET, Counting, card, counting, rows


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "here"


def test_a_run_leaves_rows_metrics_and_a_card_of_what_it_was(out: Path) -> None:
    assert counting()(["--out", str(out), "--set", "seed=5", "--count", "2"]) == 0
    assert rows(out) == [0, 1]
    assert json.loads((out / "metrics.jsonl").read_text()) == {"rows": 2, "seed": 5}
    shown = card(out)
    config = Config.load(None, ["seed=5"])
    assert (shown["program"], shown["status"], shown["config_hash"]) == ("counting", "finished", config.hash)
    assert Config.model_validate(shown["config"]) == config
    assert shown["arguments"] == {"count": 2, "fail_at": -1}
    assert shown["files"] == ["rows.jsonl", "metrics.jsonl"]


def test_an_interrupted_run_says_so_in_one_line_and_goes_on_from_there(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = {"at": 2}

    @program(doc="Count.")
    def main(run: Run) -> None:
        for number in range(len(run.rows("rows.jsonl")), 4):
            if number == fail["at"]:
                raise KeyboardInterrupt
            run.write("rows.jsonl", {"n": number})

    assert main(["--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted; ")
    assert "rows.jsonl with 2 rows" in said
    assert len(said.splitlines()) == 1
    assert card(out)["status"] == "interrupted"
    fail["at"] = -1
    assert main(["--out", str(out)]) == 0
    assert "goes on (--overwrite starts anew)" in capsys.readouterr().out.replace("\n", " ")
    assert rows(out) == [0, 1, 2, 3]
    assert card(out)["status"] == "finished"


def test_a_failed_start_that_did_nothing_leaves_nothing_and_the_corrected_command_begins_there(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @program(Counting, doc="Count.")
    def main(run: Run) -> None:
        run.directory.claim("given.jsonl", is_input=True).write_text("{}\n")
        run.path("deep/er/rows.jsonl")
        if run.args.count == 1:
            raise DataError("count")
        run.write("rows.jsonl", {"n": 1})

    assert main(["--out", str(out), "--count", "1"]) == 2
    assert not out.exists()
    assert main(["--out", str(out), "--count", "2"]) == 0
    assert card(out)["status"] == "finished"
    assert main(["--out", str(out), "--count", "2"]) == 0
    assert f"the run in {out} is finished already (--overwrite starts anew)" in capsys.readouterr().out.replace(
        "\n", " "
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("models.weak.model=llamacpp/nowhere/x.gguf", "models.weak.model: nowhere/x.gguf: no such file"),
        ("models.weak.adapter=nowhere", "models.weak.adapter: nowhere: no such file"),
        ("scorer.model=llamacpp/nowhere.gguf", "scorer.model: nowhere.gguf: no such file"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_model_that_is_not_there_is_refused_before_anything_is_written_in_a_dry_run_too(
    out: Path, setting: str, said: str, dry: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert counting()(["--out", str(out), "--set", setting, *dry]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_dry_run_without_an_estimate_says_that_there_is_none(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @program(doc="Count.")
    def main(run: Run) -> None:
        run.write("rows.jsonl", {"n": 1})

    assert main(["--out", str(out), "--dry-run"]) == 0
    assert "is not estimated" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(("fail_at", "status"), [(9, "finished"), (1, "interrupted")])
def test_a_page_is_written_when_it_is_known_how_the_run_ended(
    out: Path, fail_at: int, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @program(Counting, doc="Count.")
    def main(run: Run) -> None:
        run.page("page.html", lambda path: path.write_text(str(card(out)["status"])), "the rows")
        run.write("rows.jsonl", {"n": 0})
        if run.args.fail_at == 1:
            raise KeyboardInterrupt

    main(["--out", str(out), "--fail-at", str(fail_at)])
    assert (out / "page.html").read_text() == status
    assert f"Look at the rows: {(out / 'page.html').resolve().as_uri()} " in capsys.readouterr().out.replace("\n", " ")


def test_a_program_that_is_not_resumable_starts_anew(out: Path) -> None:
    for _ in range(2):
        assert counting(resumable=False)(["--out", str(out)]) == 0
        assert rows(out) == [0, 1, 2]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--set", "seed=1"], "other settings: seed was 0, now 1;"),
        (["--set", "budget.problem.calls=9"], "other settings: budget.problem.calls was None, now 9;"),
        (["--count", "9"], "other arguments: count was 3, now 9;"),
    ],
)
def test_a_directory_of_another_run_is_refused_until_overwritten(
    out: Path, changed: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = counting()
    assert main(["--out", str(out)]) == 0
    (out / "notes.txt").write_text("mine")
    assert main(["--out", str(out), *changed]) == 2
    said = capsys.readouterr().err
    assert f"--out {out} holds a run with {named}" in said
    assert "--overwrite" in said
    assert rows(out) == [0, 1, 2]
    assert main(["--out", str(out), *changed, "--overwrite"]) == 0
    assert json.loads((out / "rows.jsonl").read_text().splitlines()[0])["start"] == 0
    assert (out / "notes.txt").read_text() == "mine"


def test_a_run_does_not_go_on_with_edited_code_of_the_users(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file, named = tmp_path / "rules_of_mine.py", ["--set", "routing.policy=rules_of_mine:Rule"]
    for text, code in (("x = 1\n", 0), ("x = 1\n", 0), ("x = 2\n", 2)):
        file.write_text(text)
        assert counting()(["--out", str(out), *named]) == code
    assert "holds a run with other code: rules_of_mine was " in capsys.readouterr().err


def test_a_directory_with_other_files_is_never_written_to(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("mine")
    assert counting()(["--out", str(out), "--overwrite"]) == 2
    assert "no directory of a run" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_what_same_run_leaves_out_of_the_configuration_may_change(out: Path) -> None:
    @program(doc="Go on.", same_run=lambda config: config.model_copy(update={"seed": 0}))
    def main(run: Run) -> None:
        run.write("seeds.jsonl", {"seed": run.config.seed})

    assert [main(["--out", str(out), "--set", f"seed={seed}"]) for seed in (1, 2)] == [0, 0]
    assert (out / "seeds.jsonl").read_text() == '{"seed":1}\n{"seed":2}\n'.replace(":", ": ")
    assert main(["--out", str(out), "--set", "budget.calls=2"]) == 2


@pytest.mark.parametrize("name", ["../up.jsonl", "/abs.jsonl", "run.json"])
def test_a_run_writes_only_inside_its_directory(out: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    @program(doc="Escape.")
    def main(run: Run) -> None:
        run.write(name, {"n": 1})

    assert main(["--out", str(out)]) == 2
    assert "no name for a file of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError, 2), (DataError, 2), (BackendError, 1), (BudgetExceededError, 1)]
)
def test_an_error_of_the_library_is_one_line_without_secrets(
    out: Path, error: type[Exception], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert counting(error)(["--out", str(out), "--fail-at", "1"]) == code
    assert capsys.readouterr().err == "error: row 1, [secret]\n"
    assert card(out)["status"] == "failed"
    assert rows(out) == [0]


def test_debug_shows_the_traceback(out: Path) -> None:
    with pytest.raises(BackendError):
        counting(BackendError)(["--out", str(out), "--fail-at", "1", "--debug"])


def test_a_mistake_that_is_not_the_users_stays_a_traceback(out: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        counting(ZeroDivisionError)(["--out", str(out), "--fail-at", "1"])
    assert card(out)["status"] == "failed"


@pytest.mark.parametrize("named", [True, False])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    out: Path, named: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = {"disk": False}
    write = RunDirectory._write

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *(["rows.jsonl"] if named else []))

    monkeypatch.setattr(RunDirectory, "_write", lambda *at: refuse() if full["disk"] else write(*at))

    @program(doc="Count.")
    def main(run: Run) -> None:
        for number in range(len(run.rows("rows.jsonl")), 3):
            if number == 2 and "mended" not in full:
                full["disk"] = True
                refuse()
            run.write("rows.jsonl", {"n": number})

    assert main(["--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {os.strerror(errno.ENOSPC)}")
    assert ("rows.jsonl" in said) == named
    assert len(said.splitlines()) == 1
    full.update(disk=False, mended=True)
    assert main(["--out", str(out)]) == 0
    assert rows(out) == [0, 1, 2]


def test_a_pipe_that_is_closed_early_is_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "talking.py"
    script.write_text(
        textwrap.dedent(
            """
            from stepwise.runs.shell import Run, program

            @program(doc="Talk.")
            def main(run: Run) -> None:
                for _ in range(100_000):
                    print("much more than a pipe holds")

            raise SystemExit(main())
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, str(script), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 1


def test_ctrl_c_ends_a_real_process_with_130_and_its_rows_on_disk(tmp_path: Path) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(
        textwrap.dedent(
            '''
            """Wait."""
            import time
            from stepwise.runs.shell import Run, program

            @program(doc=__doc__)
            def main(run: Run) -> None:
                run.write("rows.jsonl", {"n": 0})
                time.sleep(600)

            raise SystemExit(main())
            '''
        )
    )
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, str(script), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    deadline = time.monotonic() + 120
    while not (out / "rows.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.startswith("interrupted; ")
    assert "Traceback" not in said
    assert rows(out) == [0]


def test_the_librarys_log_is_shown_when_asked_for_and_its_warnings_always(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @program(doc="Log.")
    def main(run: Run) -> None:
        log = logging.getLogger("stepwise.models")
        log.info("loaded %s", "\x1b[2Ja model")
        log.warning("lost one: %s", SECRET)

    assert main(["--out", str(out)]) == 0
    quiet = capsys.readouterr().err
    assert main(["--out", str(out), "--verbose"]) == 0
    said = capsys.readouterr().err
    assert "loaded" not in quiet
    assert "lost one: [secret]" in quiet
    assert r"loaded \x1b[2Ja model" in said
    assert said.count("lost one") == 1
    assert not logging.getLogger("stepwise").handlers[1:]
