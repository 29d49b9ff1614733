import re

import pytest

from stepwise.report import html_of
from stepwise.report.shell import resource
from stepwise.types import Problem, Step, Trace, Usage
from tests.report import sample
from tests.report.markup import HOSTILE, Elements


def test_a_notebook_shows_what_the_terminal_shows() -> None:
    trace = next(view.trace for view in sample.traces() if any(step.discarded for step in view.trace.steps))
    text = Elements(trace._repr_html_()).text
    for step in trace.steps:
        assert step.text in text
        assert f"{step.score:.2f}" in text
        assert step.decision in text
        assert step.usage.model in text
        for draft in step.discarded:
            assert draft.text in text
    assert trace.problem.question in text
    assert "answered" in text


def test_the_fragment_is_a_plain_string_without_script_or_outside_resource() -> None:
    text = html_of(sample.traces()[0].trace)
    assert type(text) is str
    found = Elements(text)
    assert not {"script", "link", "img", "iframe", "html", "body"} & {tag for tag, _ in found.found}
    assert "http" not in text


def test_every_rule_of_its_style_is_scoped() -> None:
    rules = re.findall(r"([^{}]+)\{[^{}]*\}", resource("trace.css"))
    selectors = [selector.strip() for rule in rules for selector in rule.split(",")]
    assert len(selectors) > 15
    assert all(selector.startswith(".stepwise-trace") for selector in selectors)


def test_it_sets_no_ground_and_no_text_colour_of_its_own() -> None:
    rules = dict(re.findall(r"([^{}]+)\{([^{}]*)\}", resource("trace.css")))
    whole = rules[".stepwise-trace "]
    assert "color: inherit" in whole
    assert "background" not in whole


@pytest.mark.parametrize("bad", HOSTILE)
def test_no_string_of_a_trace_can_become_markup(bad: str) -> None:
    draft = Step(text=bad, author=bad, score=0.5, usage=Usage(bad))
    steps = (Step(text=bad, author=bad, usage=Usage(bad), discarded=(draft,), decision=bad),)
    found = Elements(
        html_of(
            Trace(
                Problem(id=bad, question=bad, answer=bad, reference=bad), steps, "repeat", note=bad, abandoned=(draft,)
            )
        )
    )
    assert {tag for tag, _ in found.found} <= {"div", "span", "b", "strong", "style", "details", "summary"}
    allowed = {"class", "role", "aria-label", "aria-hidden", "title", "style"}
    assert {name for _, attributes in found.found for name in attributes} <= allowed
    if "\0" not in bad:
        assert bad in found.text


def test_authors_are_told_apart_without_colour() -> None:
    steps = (Step("a", "weak"), Step("b", "strong"), Step("c", "intervention"), Step("d", "other-model"))
    text = html_of(Trace(Problem("p", "q"), steps))
    assert re.findall(r'<b class="badge (\w+)" aria-hidden="true">(\w)</b>', text) == [
        ("weak", "W"),
        ("strong", "S"),
        ("intervention", "I"),
        ("other", "O"),
    ]


def test_an_empty_open_trace_is_shown_as_such() -> None:
    text = Elements(html_of(Trace(Problem("p", "q")))).text
    assert "0 steps, still open" in text
