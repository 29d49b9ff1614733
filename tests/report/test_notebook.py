"""What a notebook shows of lists of traces, comparisons and configurations, and traces as a table of data."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import stepwise as sw
from stepwise.config import Config
from stepwise.errors import DataError, MissingDependencyError
from stepwise.report.notebook import _MAX_TRACES, _rows
from stepwise.routing.compare import Comparison, Measured
from stepwise.routing.estimates import Estimate
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Step, Trace, Traces, Usage
from tests.report import sample
from tests.report.markup import HOSTILE, Elements


def solved(name: str = "p", answer: str = "4", gold: str | None = "4") -> Trace:
    draft = Step("Two.", "weak", 0.1, Usage("w", 1, 9, 9, 3, cost=0.5))
    steps = (
        Step("One.", "weak", 0.9, Usage("w", 1, 9, 9, 5, cost=0.5)),
        Step(f"\\boxed{{{answer}}}", "strong", None, Usage("s", 1, 9, 9, 7), discarded=(draft,)),
    )
    return Trace(Problem(id=name, question="2 + 2?", answer=gold), steps, "answer", Usage("prm", 2, 30, 20))


def comparison() -> Comparison:
    views = tuple(view for view in sample.traces() if view.policy == sample.traces()[0].policy)
    cost = cost_of([view.trace for view in views])
    return Comparison([Measured("Never (weak alone)", "never", None, views, cost, 1.5)])


def test_a_row_says_what_a_trace_cost_each_role_with_its_discarded_drafts() -> None:
    (row,) = _rows(Traces([solved()], "Threshold 0.50"))
    assert (row["problem"], row["policy"], row["answer"], row["gold"]) == ("p", "Threshold 0.50", "4", "4")
    assert (row["verdict"], row["correct"], row["finish"]) == ("CORRECT", True, "answer")
    assert (row["steps"], row["strong_steps"], row["solution"]) == (2, 1, "One.\n\n\\boxed{4}")
    assert [row[f"weak_{key}"] for key in ("calls", "tokens", "money")] == [2, 8, 1.0]
    assert [row[f"strong_{key}"] for key in ("calls", "tokens", "money")] == [1, 7, None]
    assert [row[f"scorer_{key}"] for key in ("calls", "tokens")] == [2, 20]


def test_without_a_gold_answer_nothing_is_called_wrong() -> None:
    (row,) = _rows([solved(gold=None)], policy="mine")
    assert (row["verdict"], row["correct"], row["policy"]) == ("", None, "mine")


def test_a_comparison_has_a_row_for_each_trace_of_each_policy() -> None:
    rows = _rows(comparison())
    assert len(rows) == len(comparison()[0].views)
    assert {row["policy"] for row in rows} == {sample.traces()[0].policy}


def test_what_is_no_trace_is_named() -> None:
    for wrong in (["p"], "traces.jsonl", [{"id": "p"}]):
        with pytest.raises(DataError, match=r"traces(\[0\])? is .*(str|dict)\); give what solve_all"):
            _rows(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("made", "package"), [(sw.traces_to_frame, "pandas"), (sw.traces_to_dataset, "datasets")])
def test_a_table_has_these_columns_or_names_what_is_missing(made: Any, package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(MissingDependencyError, match=rf"needs {package}; install it with: pip install "):
            made([solved()])
        return
    table = made(Traces([solved(), solved("q", "5")], "Never"))
    columns = list(table.columns) if package == "pandas" else table.column_names
    assert columns == list(_rows([solved()])[0])
    assert list(table["correct"]) == [True, False]


def test_a_list_of_traces_is_a_list_and_shows_each_with_its_verdict() -> None:
    traces = Traces([solved(), solved("q", "5"), solved("r", gold=None)], "Never")
    assert isinstance(traces, list)
    assert traces[1:] == [solved("q", "5"), solved("r", gold=None)]
    for same in (copy.copy(traces), pickle.loads(pickle.dumps(traces))):
        assert (same, same.policy) == (traces, "Never")
    found = Elements(traces._repr_html_())
    assert len(found.named("style")) == 1
    for words in ("3 traces", "Never", "1 right", "✓", "✗", "?", "answered, answer 5", "2 + 2?"):
        assert words in found.text, words


def test_a_long_list_says_how_many_it_leaves_out() -> None:
    text = Elements(Traces([solved()] * (_MAX_TRACES + 7))._repr_html_()).text
    assert f"The first {_MAX_TRACES} of {_MAX_TRACES + 7}" in text
    assert f"traces[{_MAX_TRACES + 6}]" in text


def test_a_comparison_shows_the_table_of_the_page() -> None:
    found = Elements(comparison()._repr_html_())
    assert "Never (weak alone)" in found.text
    assert "problems per policy" in found.text
    assert len(found.named("tr")) == 2
    assert not found.named("script")


def test_a_configuration_shows_what_differs_from_the_defaults_first() -> None:
    config = Config(seed=7)
    text = Elements(config._repr_html_()).text
    first = text[: text.index("settings have their default")]
    assert "seed" in first
    assert "7" in first
    assert "models.weak.model" in text[len(first) :]
    assert "nothing differs from the defaults" in Elements(Config()._repr_html_()).text
    assert "api_key_env" in Elements(config.models.weak._repr_html_()).text


def test_what_is_printed_of_traces_comparisons_and_configurations() -> None:
    traces = Traces([solved(), solved("q", "5"), solved("r", gold=None)], "Never")
    assert str(traces).splitlines() == [
        "3 traces under Never, 1 right",
        "p: answer 4, right (answered), 2 steps, 1 by the strong model, 7 strong tokens",
        "q: answer 5, wrong (answered), 2 steps, 1 by the strong model, 7 strong tokens",
        "r: answer 4 (answered), 2 steps, 1 by the strong model, 7 strong tokens",
    ]
    assert str(Traces([solved()] * (_MAX_TRACES + 7))).endswith("\nand 7 more")
    for words in ("2 + 2?", "discarded draft", "finish: answer (answered)", "gold 4"):
        assert words in str(solved())
    assert str(comparison()[0]) == str(comparison())
    assert str(Config(seed=7)) == "Config: as by default, but for\n  seed = 7"
    assert str(Config()) == "Config: as by default"


def test_a_problem_is_printed_with_what_is_known_of_it_and_one_of_the_lab_with_its_traps_too() -> None:
    made = sw.lab.generate("test", 4)[3]
    lines = str(made).splitlines()
    assert str(made.problem).splitlines() == lines[:-1]
    assert lines[0] == f"{made.problem.id}: {made.problem.question}"
    assert lines[1] == f"answer: {made.problem.answer}"
    assert lines[-1] == f"traps: {', '.join(made.traps)}"
    assert made.problem._repr_html_().startswith("<pre>")
    assert str(Problem("p", "Why?")) == "p: Why?"


def test_money_of_a_row_is_that_of_the_ledger() -> None:
    (row,) = _rows(Traces([solved()], "Never", {"weak": (5.0, 5.0), "strong": (1.0, 2.0), "scorer": (0.0, 0.0)}))
    assert (row["weak_money"], row["scorer_money"]) == (1.0, 0.0)  # what a reply says goes before a price
    assert row["strong_money"] == pytest.approx((9 * 1 + 7 * 2) / 1e6)
    problems = [made.problem for made in sw.lab.generate("test", 2)]
    with sw.StepRouter("llamacpp/lab-weak", "llamacpp/lab-strong", "llamacpp/lab-scorer", sw.Threshold(0.9)) as router:
        every = [_rows(router.solve_all(problems)), _rows(sw.compare(router, ["always"], problems))]
    # Local models without a price cost nothing.
    assert {row[f"{role}_money"] for rows in every for row in rows for role in ("weak", "strong", "scorer")} == {0.0}


def test_what_has_words_of_its_own_is_shown_as_these_in_a_notebook() -> None:
    figure = Estimate(0.12, 0.03, 0.21, 1.0)
    assert figure._repr_html_() == "<pre>0.12 (0.03 to 0.21)</pre>"


@pytest.mark.parametrize("bad", HOSTILE)
def test_no_string_can_become_markup(bad: str) -> None:
    traces = Traces([Trace(Problem(id=bad, question=bad, answer=bad), (Step(text=bad, author=bad),), note=bad)], bad)
    found = Elements(traces._repr_html_())
    assert {tag for tag, _ in found.found} <= {"div", "span", "b", "strong", "style", "details", "summary"}
    config = Config.model_validate({"prompt": {"system": bad}})
    assert {tag for tag, _ in Elements(config._repr_html_()).found} <= {
        "div", "span", "strong", "style", "details", "summary", "table", "tbody", "tr", "th", "td",
    }  # fmt: skip
