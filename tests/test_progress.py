import io
import re
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from stepwise.runs.progress import announce, followed, heartbeat, progress, stage
from stepwise.runs.shell import Options, Run, program


def test_elsewhere_than_on_a_terminal_the_start_and_the_end_are_lines() -> None:
    text = io.StringIO()
    with progress("routing [0.5]", 3, console=Console(file=text)) as advance:
        for _ in range(3):
            advance(1)
    lines = text.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["routing [0.5]: 0/3", "routing [0.5]: 3/3"]


def test_on_a_terminal_a_bar_is_drawn() -> None:
    text = io.StringIO()
    with progress("routing", 2, console=Console(file=text, force_terminal=True, width=80)) as advance:
        advance(2)
    assert "2/2" in text.getvalue()


def test_an_interruption_still_says_how_far_it_came() -> None:
    text = io.StringIO()

    def interrupted_work() -> None:
        with progress("routing", 5, console=Console(file=text)) as advance:
            advance(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_work()
    assert "2/5" in text.getvalue().splitlines()[-1]


def test_a_note_ends_the_plain_line_until_there_is_another() -> None:
    text = io.StringIO()
    with progress("collecting", 2, console=Console(file=text, width=40)) as advance:
        advance(0, "examples 1, [guided] 10 %")
        advance(1, "examples 41, guided 12 %, 310k tokens, 0.42 of 5.00 spent")
        advance(1)
    lines = text.getvalue().splitlines()
    assert lines[0].startswith("collecting: 0/2")
    assert lines[-1].startswith("collecting: 2/2")
    assert lines[-1].endswith("examples 41, guided 12 %, 310k tokens, 0.42 of 5.00 spent")
    assert len(lines) == 2


def test_a_note_comes_by_itself_when_the_bar_has_not_moved_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("stepwise.runs.progress.time.monotonic", lambda: now)
    text = io.StringIO()
    with progress("collecting", 2, console=Console(file=text)) as advance:
        now = 9.0
        advance(0, "too early")
        now = 30.0
        advance(0, "in time")
    assert [line.rpartition(", ")[2] for line in text.getvalue().splitlines()] == ["0 s", "in time", "in time"]


def test_on_a_terminal_the_note_stands_under_the_bar_on_one_line_without_markup() -> None:
    text = io.StringIO()
    with progress("collecting", 2, console=Console(file=text, force_terminal=True, width=40)) as advance:
        advance(2)
        advance(0, "examples [41], " + "x" * 100)
    drawn = text.getvalue()
    assert "2/2" in drawn
    assert "examples [41], " in drawn
    assert "x" * 40 not in drawn


def test_on_a_terminal_a_stage_with_a_count_has_a_bar_that_moves_with_every_answer() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80)
    with progress("collecting", 2, console=console) as advance, stage("solving"), stage("answers", 5) as answered:
        answered(3)
        advance(0)
        time.sleep(0.3)  # a bar is drawn ten times a second
    drawn = re.sub(r"\x1b\[[\d;]*m", "", text.getvalue())
    assert "collecting" in drawn
    assert "  answers ━" in drawn
    assert "3/5" in drawn
    assert "answers 3/5" not in drawn  # which would stand there twice


def test_what_an_earlier_start_did_is_said_and_the_bar_begins_there() -> None:
    text = io.StringIO()
    with progress("training", 6, done=4, console=Console(file=text)) as advance:
        advance(2)
    assert [line.partition(",")[0] for line in text.getvalue().splitlines()] == [
        "training: 4 of 6 done", "training: 4/6", "training: 6/6",
    ]  # fmt: skip
    assert "going on at 5" in text.getvalue()


def test_a_bar_inside_another_is_a_stage_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, text = 0.0, io.StringIO()
    monkeypatch.setattr("stepwise.runs.progress.time.monotonic", lambda: now)
    with progress("outer", 2, console=Console(file=text)) as advance:
        with stage("guiding"), progress("answers", 5, console=Console(file=text)) as inside:
            inside(3, "note")
            now = 11.0
            advance(0)
        advance(2)
    assert text.getvalue().splitlines() == [
        "outer: 0/2, 0 s",
        "outer: 0/2, 11 s, guiding, answers 3/5 (16.4/min, 7 s left)",
        "outer: 2/2, 11 s, 10.9/min",
    ]
    with progress("later", 1, console=Console(file=text)) as advance:
        advance(1)
    assert "later: 1/1" in text.getvalue()


def test_a_unit_that_takes_long_shows_its_stage_although_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepwise.runs.progress._PLAIN_SECONDS", 0.0)
    text = io.StringIO()
    with progress("collecting", 2, console=Console(file=text)), stage("solving"):
        limit = time.monotonic() + 30
        while "solving" not in text.getvalue() and time.monotonic() < limit:
            time.sleep(0.1)
    assert "collecting: 0/2" in text.getvalue()
    assert ", solving" in text.getvalue()


def test_what_shows_nothing_is_said_to_be_at_work_and_what_shows_a_bar_is_not() -> None:
    text = io.StringIO()
    with heartbeat("stepwise mine", seconds=0.04, console=Console(file=text)):
        limit = time.monotonic() + 10
        while "at work" not in text.getvalue() and time.monotonic() < limit:
            time.sleep(0.01)
    assert text.getvalue().startswith("stepwise mine: at work for 0 s")
    text = io.StringIO()
    with heartbeat("stepwise mine", seconds=0.04, console=Console(file=text)):
        for _ in followed(range(3), "bar"):
            time.sleep(0.05)
    assert text.getvalue() == ""


def test_every_program_but_a_server_is_watched_for_silence(tmp_path: Path) -> None:
    def threads(run: Run[Options]) -> None:
        seen.append([thread.name for thread in threading.enumerate()])

    seen: list[list[str]] = []
    for number, main in enumerate((program(doc="It works.")(threads), program(doc="It waits.", waits=True)(threads))):
        assert main(["--out", str(tmp_path / str(number))]) == 0
    assert ["stepwise-heartbeat" in names for names in seen] == [True, False]


def test_what_is_announced_is_a_line_of_the_log_unless_a_bar_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "stepwise"):
        announce("loading [a] model")
        with progress("routing", 1, console=Console(file=io.StringIO())), stage("x"):
            announce("hidden")
    assert caplog.messages == ["loading [a] model"]
