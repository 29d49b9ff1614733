import dataclasses
import io

import pytest
from rich.console import Console

from stepwise.report import show_trace, summary_table
from stepwise.report.shell import FINISH_WORDS, LAB_NOTICE, Report
from stepwise.types import Problem, Step, Trace, Usage
from tests.report import sample


def printed(trace: Trace, width: int = 100, colour: bool = False) -> str:
    out = io.StringIO()
    kind = "truecolor" if colour else None
    show_trace(trace, Console(file=out, width=width, force_terminal=colour, color_system=kind))
    return out.getvalue()


def test_every_step_is_shown_with_author_score_decision_and_discarded_drafts() -> None:
    trace = next(view.trace for view in sample.traces() if any(step.discarded for step in view.trace.steps))
    text = printed(trace, 200)
    for step in trace.steps:
        assert step.text in text
        assert step.decision in text
        assert f"{step.score:.2f}" in text
        for draft in step.discarded:
            assert draft.text in text
    assert "discarded draft" in text
    assert "finish: answer (answered)" in text


@pytest.mark.parametrize("finish", FINISH_WORDS)
def test_every_finish_is_named(finish: str) -> None:
    text = printed(Trace(Problem("p", "q"), (), finish, note="because"))
    assert f"finish: {finish or 'open'} ({FINISH_WORDS[finish]})" in text
    assert "because" in text


@pytest.mark.parametrize("width", [30, 80])
def test_lines_wrap_at_the_width_of_the_terminal(width: int) -> None:
    trace = Trace(Problem("p", "word " * 100), (Step("x" * 500, "weak", 0.5), Step("y " * 300, "strong")), "answer")
    lines = printed(trace, width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert sum(line.count("x") for line in lines) == 500


def test_authors_have_different_colours_and_drafts_are_dim() -> None:
    draft = Step("gone", "weak", 0.1)
    trace = Trace(Problem("p", "q"), (Step("by weak", "weak"), Step("by strong", "strong", discarded=(draft,))))
    text = printed(trace, colour=True)

    def style(words: str) -> str:
        before = text[: text.index(words)]
        return before[before.rindex("\x1b[") :]

    assert style("by weak") != style("by strong")
    assert style("gone").startswith("\x1b[2;9m")


def test_only_the_badge_and_the_finish_are_emphasised() -> None:
    text = printed(Trace(Problem("p", "q"), (Step("a", "weak", 0.5),), "answer"), colour=True)
    reversed_parts = [part.split("m", 1)[1] for part in text.split("\x1b[")[1:] if "7" in part.split("m")[0].split(";")]
    assert reversed_parts == [" W "]
    bold = [part.split("m", 1)[1] for part in text.split("\x1b[")[1:] if "1" in part.split("m")[0].split(";")]
    assert [part.strip() for part in bold] == ["p", "W", "finish: answer (answered)"]


def test_model_output_cannot_drive_the_terminal_or_use_markup() -> None:
    step = Step("[red]plain[/red]\x1b[2J\x07\x9bm\r", "weak\x1b]0;title\x07", 0.5, Usage("m\x1b[1m"))
    text = printed(Trace(Problem("i\x1b[0m", "q\x08"), (step,), "error", note="n\x1b[31m"))
    assert "\x1b" not in text
    assert not {"\x07", "\x08", "\x9b", "\r"} & set(text)
    assert r"[red]plain[/red]\x1b[2J\x07\x9bm\x0d" in text


def test_traces_show_method_prints_to_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    sample.traces()[0].trace.show()
    assert "finish: answer" in capsys.readouterr().out


def test_abandoned_drafts_are_shown() -> None:
    text = printed(Trace(Problem("p", "q"), (), "error", abandoned=(Step("half a st", "strong"),)))
    assert "abandoned draft" in text
    assert "half a st" in text


def shown(report: Report, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(summary_table(report))
    return out.getvalue()


def test_the_table_holds_one_line_per_policy_with_every_figure() -> None:
    lines = shown(sample.report()).splitlines()
    line = next(line for line in lines if "threshold 0.7" in line)
    figures = "90.0 % 85.8–94.2 34.0 % 8,160 32,160 183 G 2,297 11.1"
    assert " ".join(line.split()) == f"threshold 0.7 {figures}"
    assert sum("random" in line for line in lines) == 4


def test_lab_figures_are_called_that_below_the_table() -> None:
    report = sample.report()
    assert LAB_NOTICE[:20] in shown(report)
    assert LAB_NOTICE[:20] not in shown(dataclasses.replace(report, lab=False))


def test_names_in_the_table_are_not_read_as_markup() -> None:
    row = dataclasses.replace(sample.rows()[0], policy="[red]x[/red]\x1b[2J")
    assert r"[red]x[/red]\x1b[2J" in shown(Report("[b]t[/b]", rows=(row,)))


def test_the_table_fits_eighty_columns() -> None:
    assert max(len(line) for line in shown(sample.report(), 80).splitlines()) <= 80


def test_a_narrow_terminal_gets_fewer_columns_and_whole_headings() -> None:
    report = Report("t", rows=sample.rows())
    for width, kept in ((80, False), (140, True)):
        out = io.StringIO()
        Console(file=out, width=width).print(summary_table(report, width))
        assert "…" not in out.getvalue()
        assert ("95 % interval" in out.getvalue()) is kept
        assert "All tokens" in out.getvalue()
