import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from stepwise.errors import DataError
from stepwise.report import Report, TraceView, write_report
from stepwise.report.page import _island
from stepwise.report.shell import LAB_NOTICE
from stepwise.types import Problem, Step, Trace, Usage
from tests.report import sample
from tests.report.markup import HOSTILE, Elements, data_of, hostile_report


def page_html(report: Report, max_traces: int = 500) -> str:
    """The text of the page that is written."""
    with TemporaryDirectory() as folder:
        return write_report(Path(folder) / "page.html", report, max_traces).read_text(encoding="utf-8")


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    path = write_report(tmp_path / "a" / "b" / "report.html", sample.report())
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    for tag, attributes in Elements(text).found:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#")[:6] in ("data:,", "#trace", "#"), tag


def test_the_policy_of_the_page_allows_its_own_script_by_hash_and_nothing_else() -> None:
    page = page_html(sample.report())
    policy = next(a["content"] for a in Elements(page).named("meta") if a.get("http-equiv"))
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in str(policy)
    assert f"script-src 'sha256-{digest}'" in str(policy)


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(tmp_path / "1.html", sample.report()).read_bytes()
    assert write_report(tmp_path / "2.html", sample.report()).read_bytes() == first


def test_an_existing_page_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert "<!doctype html>" in write_report(str(path), Report("new")).read_text()
    assert len(list(tmp_path.iterdir())) == 1


def test_header_table_and_plots_show_what_the_report_holds() -> None:
    report = sample.report()
    page = Elements(page_html(report))
    for text in (report.title, report.subtitle, *report.notes, *report.meta, *report.meta.values()):
        assert text in page.text
    assert len(page.named("tr")) == 1 + len(report.rows)
    assert "83.0 %" in page.text
    assert "77.8–88.2" in page.text
    drawings = [a for a in page.named("svg") if "plot" in (a.get("class") or "")]
    assert len(drawings) == 6
    assert all(drawing["aria-label"] for drawing in drawings)


def test_lab_figures_are_called_that_and_other_figures_are_not() -> None:
    report = sample.report()
    assert LAB_NOTICE in Elements(page_html(report)).text
    assert LAB_NOTICE not in Elements(page_html(dataclasses.replace(report, lab=False))).text


def test_traces_are_in_the_page_once_and_complete() -> None:
    report = sample.report()
    data = data_of(page_html(report))
    assert len(data["traces"]) == len(report.traces)
    assert len(data["problems"]) == len({view.trace.problem for view in report.traces}) < len(report.traces)
    for shown, view in zip(data["traces"], report.traces, strict=True):
        assert data["problems"][shown["problem"]]["question"] == view.trace.problem.question
        assert [step["text"] for step in shown["steps"]] == [step.text for step in view.trace.steps]
        assert [step.get("score") for step in shown["steps"]] == [step.score for step in view.trace.steps]
        assert [step["author"] for step in shown["steps"]] == [step.author for step in view.trace.steps]
        for step, own in zip(shown["steps"], view.trace.steps, strict=True):
            assert [draft["text"] for draft in step.get("discarded", [])] == [draft.text for draft in own.discarded]
        assert shown["policy"] == view.policy
        assert shown["right"] == (view.verdict == "correct")


def test_a_traces_cost_counts_the_drafts_that_were_thrown_away() -> None:
    draft, kept = Step("x", "weak", 0.1, Usage("w", 1, 9, 9, 7)), Step("y", "strong", 0.9, Usage("s", 1, 9, 9, 11))
    trace = Trace(
        Problem("p", "q"),
        (dataclasses.replace(kept, discarded=(draft,)),),
        "error",
        Usage("scorer", 1, 30, 20, 0),
        "the weak model failed",
        (dataclasses.replace(draft, text="lost"),),
    )
    shown = json.loads(_island([TraceView(trace, "", "", 2.5e6)]))["traces"][0]
    assert shown["cost"] == {
        "strong tokens": "11",
        "all tokens": "25",
        "calls": "3",
        "tokens scored": "20",
        "parameter-tokens": "2.50 M",
    }
    assert shown["abandoned"][0]["text"] == "lost"
    assert shown["finish"] == "a model failed"


def test_no_string_of_a_report_can_become_markup() -> None:
    page = page_html(hostile_report())
    harmless = Elements(page_html(sample.report()))
    found = Elements(page)
    assert len(found.named("script")) == 2
    assert {tag for tag, _ in found.found} <= {tag for tag, _ in harmless.found} | {"p"}
    assert not [a for _, a in found.found if any(name.startswith("on") for name in a)]
    assert "alert(1)</script>" not in page


def test_hostile_strings_come_out_of_the_data_unchanged() -> None:
    data = data_of(page_html(hostile_report()))
    assert [problem["question"] for problem in data["problems"]] == list(HOSTILE)
    assert [trace["steps"][0]["decision"] for trace in data["traces"]] == list(HOSTILE)
    assert [trace["steps"][0]["discarded"][0]["model"] for trace in data["traces"]] == list(HOSTILE)


def test_the_data_is_plain_ascii_without_angle_brackets() -> None:
    text = _island(hostile_report().traces)
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_a_report_with_nothing_in_it_is_still_a_page() -> None:
    page = page_html(Report("Empty"))
    assert "This report holds no traces." in page
    assert "<table" not in page
    assert data_of(page) == {"problems": [], "traces": []}


def test_steps_without_scores_and_a_score_of_zero_are_told_apart() -> None:
    steps = (Step("a", "weak"), Step("b", "weak", 0.0))
    shown = json.loads(_island([TraceView(Trace(Problem("p", "q"), steps))]))["traces"][0]["steps"]
    assert "score" not in shown[0]
    assert shown[1]["score"] == 0.0


@pytest.mark.parametrize(
    "text",
    ["x" * 200_000, r"$\frac{a}{b} < \boxed{\{1, 2\}}$", "Привет 你好 👩‍🔬 e\u0301"],
    ids=["long", "latex", "unicode"],
)
def test_any_text_survives(text: str, tmp_path: Path) -> None:
    trace = Trace(Problem("p", text), (Step(text, "weak", 0.5),), "answer")
    path = write_report(tmp_path / "r.html", Report("t", traces=(TraceView(trace),)))
    data = data_of(path.read_text(encoding="utf-8"))
    assert data["problems"][0]["question"] == text
    assert data["traces"][0]["steps"][0]["text"] == text
    assert text in Elements(path.read_text(encoding="utf-8")).text


def test_over_the_cap_the_first_traces_of_every_policy_are_kept_and_the_page_says_so() -> None:
    trace = sample.traces(1)[0].trace
    views = [TraceView(trace, policy) for policy in ("a", "b", "c") for _ in range(100)]
    page = page_html(Report("t", traces=tuple(views)), max_traces=30)
    assert [shown["policy"] for shown in data_of(page)["traces"]] == ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    assert "Showing 30 of 300 traces, the first of every policy." in page
    assert len(data_of(page)["traces"]) == 30
    assert "Showing 26 of 26 traces. " in page_html(sample.report())


def test_a_negative_cap_is_refused_and_zero_shows_none() -> None:
    with pytest.raises(DataError, match="max_traces is -1"):
        page_html(sample.report(), max_traces=-1)
    assert data_of(page_html(sample.report(), max_traces=0))["traces"] == []


def test_a_key_in_a_note_does_not_reach_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-private-value")
    trace = Trace(Problem("p", "q"), (), "error", note="401 for key very-private-value")
    report = Report("t", traces=(TraceView(trace),), meta={"from": "very-private-value"}, notes=("very-private-value",))
    assert "very-private-value" not in page_html(report)


def test_without_javascript_the_first_traces_are_there() -> None:
    page = page_html(sample.report())
    static = page[page.index("<noscript>") : page.index("</noscript>")]
    assert static.count('class="stepwise-trace"') == 3
    assert static.count("<style>") == 1
    assert sample.traces()[0].trace.problem.question in static
