import dataclasses

import pytest

from stepwise.errors import DataError
from stepwise.grading import Verdict
from stepwise.report.shell import badge
from stepwise.report.words import VERDICT_WORDS, verdict_word
from stepwise.routing.compare import PolicyRow, TraceView
from stepwise.types import Problem, Step, Trace
from tests.report import sample


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accuracy", 1.2),
        ("accuracy", float("nan")),
        ("strong_share", -0.1),
        ("strong_tokens", -1),
        ("n", 0),
        ("calls", 1.5),
    ],
)
def test_a_row_with_an_impossible_figure_is_refused_by_the_fields_name(field: str, value: float) -> None:
    with pytest.raises(DataError, match=field):
        dataclasses.replace(sample.rows()[0], **{field: value})


def test_a_row_is_built_by_position_compares_and_hashes() -> None:
    values = ("threshold 0.5", "threshold", 0.5, 0.8, 0.7, 0.9, 0.25, 100, 400, 1e9, 40, 1.5, 50)
    assert PolicyRow(*values) == PolicyRow(*values)
    assert hash(PolicyRow(*values)) == hash(PolicyRow(*values))


def test_never_and_always_are_the_single_models_and_nothing_else_is() -> None:
    assert [row.anchor for row in sample.rows()] == ["weak", *[""] * 10, "strong"]


def test_a_trace_is_escalated_when_a_kept_step_is_the_strong_models() -> None:
    weak, strong = Step("a", "weak"), Step("b", "strong")
    problem = Problem("p", "q")
    assert TraceView(Trace(problem, (weak, strong))).escalated
    assert not TraceView(Trace(problem, (weak, Step("c", "weak", discarded=(strong,))))).escalated


def test_only_the_three_roles_have_a_colour_and_every_author_has_a_letter() -> None:
    assert [badge(name)[0] for name in ("weak", "strong", "intervention", 'weak" x', "")] == [
        "weak",
        "strong",
        "intervention",
        "other",
        "other",
    ]
    assert [badge(name)[1] for name in ("weak", "strong", "openai/gpt", "ß", "<>", "")] == list("WSOS??")


def test_every_verdict_of_the_grader_has_words_and_only_a_correct_one_is_right() -> None:
    assert {verdict.lower() for verdict in Verdict} <= set(VERDICT_WORDS)
    assert [verdict for verdict in Verdict if verdict_word(verdict) == "right"] == [Verdict.CORRECT]
    assert TraceView(Trace(Problem("p", "q")), "", Verdict.CORRECT).verdict == "CORRECT"


def test_verdicts_are_written_in_words_and_an_unknown_one_still_is() -> None:
    assert verdict_word("correct") == "right"
    assert verdict_word("NO_ANSWER") == "no answer"
    assert verdict_word("") == "not graded"
    assert verdict_word("half_right") == "half right"
