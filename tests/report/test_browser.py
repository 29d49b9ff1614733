"""The page in a real browser, where there is one: its script runs under its own policy and shows the traces as text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepwise.report import Report, write_report
from tests.report import sample
from tests.report.browsing import BROWSER, played
from tests.report.markup import HOSTILE, Elements, hostile_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page's script is not run")


def rendered(report: Report, folder: Path, fragment: str = "", driver: str = "") -> tuple[str, str]:
    """The page of a report after its script ran, and what it wrote to the console; see `played`."""
    return played(write_report(folder / "report.html", report), folder, fragment, driver)


def viewer(page: str) -> Elements:
    """What the script put into the page (the copy for readers without JavaScript comes after it)."""
    return Elements(page[page.index('<div id="viewer">') : page.index("<noscript>")])


def test_the_first_trace_is_shown_and_the_console_stays_silent(tmp_path: Path) -> None:
    report = sample.report()
    page, console = rendered(report, tmp_path)
    assert console == ""
    shown = viewer(page)
    for step in report.traces[0].trace.steps:
        for part in (step, *step.discarded):
            assert part.text in shown.text
            assert part.decision in shown.text
            assert f"{part.score:.2f}" in shown.text
    assert "of 26" in Elements(page).text


def test_a_link_can_name_a_trace_and_a_theme(tmp_path: Path) -> None:
    report = sample.report()
    page, console = rendered(report, tmp_path, "#trace=25&theme=dark")
    assert console == ""
    assert Elements(page).named("html")[0]["data-theme"] == "dark"
    assert report.traces[24].trace.note in viewer(page).text


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    for number, bad in enumerate(HOSTILE, 1):
        page, console = rendered(hostile_report(), tmp_path, f"#trace={number}")
        assert console == ""
        found, shown = Elements(page), viewer(page)
        assert not {"img", "iframe"} & {tag for tag, _ in found.found}
        assert len(found.named("script")) == 2
        assert not [a for _, a in found.found if any(name.startswith("on") for name in a)]
        if "\0" not in bad:
            # question, gold answer, reference, note, policy, id; text and decision of two steps and three drafts
            assert shown.text.count(bad) >= 16


def test_an_empty_report_runs_without_an_error(tmp_path: Path) -> None:
    _, console = rendered(Report("Empty"), tmp_path)
    assert console == ""


def test_a_reader_can_page_filter_jump_and_sort(tmp_path: Path) -> None:
    driver = """
      const id = (name) => document.getElementById(name), seen = {};
      const head = () => document.querySelector("#viewer h3").textContent
        + " " + id("position").value + " " + id("matches").textContent;
      const choose = (select, text) => {
        select.value = [...select.options].find((option) => option.textContent === text).value;
        select.dispatchEvent(new Event("change"));
      };
      const policies = () => [...document.querySelectorAll("#policies tbody th")].map((cell) => cell.textContent);
      const press = (key, on) => on.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      seen.start = head();
      id("next").click(); seen.next = head();
      press("ArrowRight", document.body); seen.arrow = head();
      press("ArrowRight", id("position")); seen.typing = head();
      choose(id("policy"), "threshold 0.7"); seen.policy = head();
      choose(id("finish"), "repeated itself"); seen.finish = head();
      choose(id("outcome"), "right"); seen.none = id("viewer").textContent;
      choose(id("outcome"), "any"); choose(id("finish"), "any"); choose(id("policy"), "any");
      id("position").value = 999; id("position").dispatchEvent(new Event("change")); seen.jump = head();
      const sorts = document.querySelectorAll("#policies .sort"), given = policies();
      sorts[1].click(); seen.best = policies()[0];
      sorts[1].click(); seen.worst = policies()[0];
      sorts[1].click(); seen.given = policies().join() === given.join();
      id("theme").click(); seen.theme = document.documentElement.dataset.theme;
      document.body.replaceChildren(JSON.stringify(seen));
    """
    page, console = rendered(sample.report(), tmp_path, driver=driver)
    assert console == ""
    assert json.loads(Elements(page[page.index("<body>") :]).text) == {
        "start": "lab-test-0000 1 of 26",
        "next": "lab-test-0001 2 of 26",
        "arrow": "lab-test-0002 3 of 26",
        "typing": "lab-test-0002 3 of 26",
        "policy": "lab-test-0002 3 of 13",
        "finish": "lab-test-0090 1 of 1",
        "none": "No trace matches these filters.",
        "jump": "lab-test-0091 26 of 26",
        "best": "strong alone",
        "worst": "weak alone",
        "given": True,
        "theme": "light",
    }
