from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwise.errors import DataError
from stepwise.interventions import funnel
from stepwise.io import append_rows
from stepwise.report import collection as pages
from stepwise.report.collection import _Facts, write_collection_report
from stepwise.report.shell import LAB_NOTICE
from stepwise.runs.directory import read_card
from tests.report import collected
from tests.report.browsing import BROWSER, played
from tests.report.markup import HOSTILE, Elements


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return collected.write(tmp_path / "collection")


def facts(out: Path) -> _Facts:
    return _Facts.read(out, read_card(out))


def collection_html(out: Path, **settings: Any) -> str:
    return write_collection_report(out.parent / "page.html", out, **settings).read_text(encoding="utf-8")


def articles(page: str) -> list[str]:
    return [part[: part.index("</article>")] for part in page.split("<article ")[1:]]


def card(page: str, name: str) -> str:
    return next(part for part in articles(page) if f"<h3>{name}</h3>" in part)


def test_every_candidate_has_one_fate(out: Path) -> None:
    assert facts(out).fates == {
        "a/r0/c0": pages.EXAMPLE,
        "a/r0/c1": pages.OUTDONE,
        "a/r0/c2": pages.SAME_STEP,
        "a/r5/c0": pages.TWIN,
        "a/r5/c1": pages.NO_SUCCESS,
        "b/r0/c0": "with the answer given away",
        "b/r0/c1": "of the answer's own step",
        "b/r0/c2": pages.UNREAD,
    }


def test_the_funnel_loses_no_row_and_says_why_each_was_left_out(out: Path) -> None:
    known = facts(out)
    stages = known.stages()
    assert all(stage.kept + sum(stage.left.values()) == stage.rows for stage in stages)
    assert [(stage.rows, stage.kept) for stage in stages] == [(10, 5), (5, 3), (8, 4), (4, 3), (3, 1)]
    assert stages[0].left == {
        "ended right": 1,
        "the model failed": 1,
        "could not be graded": 1,
        "same text as another attempt": 1,
        "over the limit of attempts": 1,
    }
    assert stages[1].left == {pages.FOUND_RIGHT: 1, pages.NOT_LOCATED: 1}
    assert stages[2].left == {
        pages.SAME_STEP: 1,
        "with the answer given away": 1,
        "of the answer's own step": 1,
        pages.UNREAD: 1,
    }
    assert "4 end with a wrong answer, 1 without an answer" in stages[0].note


def test_the_funnel_agrees_with_the_pipelines_own_counts(out: Path) -> None:
    known, counts = facts(out), funnel(out)
    stages = known.stages()
    assert [stage.rows for stage in stages[:4]] == [
        counts["rollouts"], counts["failed attempts"], counts["candidates"], counts["candidates guided"],
    ]  # fmt: skip
    assert stages[1].kept == counts["errors located"]
    assert stages[-1].kept == counts["examples"]


def test_with_all_candidates_kept_none_is_passed_over(tmp_path: Path) -> None:
    known = facts(collected.write(tmp_path / "all", keep="all"))
    assert known.fates["a/r0/c1"] == pages.TWIN


def test_a_verdict_of_the_leak_check_that_is_new_is_shown_by_its_own_name(out: Path) -> None:
    known = facts(out)
    row = known.rows["candidates"][5]
    object.__setattr__(row, "leak", "too_long")
    assert known.fates[row.id] == "too long"


def test_a_false_equation_is_a_fate_of_its_own_and_shown(out: Path) -> None:
    known = facts(out)
    first, _, third = known.rows["candidates"][:3]
    object.__setattr__(third, "unsound", "2 * 6 = 14")
    found = known.fates
    assert found[third.id] == pages.UNSOUND
    assert found[first.id] == pages.EXAMPLE
    shown = next(card for card in known.cards() if card.id == third.id)
    assert shown.fault == "2 * 6 = 14"


def test_success_shares_fall_into_none_and_tenths(out: Path) -> None:
    bars = {bar.label: bar.value for bar in facts(out).success_bars() if bar.value}
    assert bars == {"0": 1, "30": 1, "80": 1, "100": 1}


def test_a_share_on_the_edge_of_a_tenth_belongs_below_it() -> None:
    tries = collected.guided("a/r0/c0", 3, 7)
    known = _Facts({"guided": tries})
    assert [bar.label for bar in known.success_bars() if bar.value] == ["30"]


def test_first_errors_are_counted_by_step_among_the_attempts_that_have_it(out: Path) -> None:
    bars = facts(out).error_bars()
    assert [(bar.label, bar.value) for bar in bars] == [("0", 0), ("1", 3)]
    assert "3 of 3 attempts" in bars[1].title


def test_a_card_shows_the_wrong_step_the_intervention_and_a_continuation_that_ended_right(out: Path) -> None:
    shown = card(collection_html(out), "a/r0/c0")
    text = Elements("<x " + shown).text
    assert collected.problem("a").question in text
    common, fork = shown.split('class="fork"')
    assert collected.STEPS[0] in common
    attempt, mended = fork.split('class="side"')[1:]
    assert "first error" in attempt[: attempt.index(collected.STEPS[2])]
    assert collected.STEPS[1] in attempt
    assert collected.REPAIR in mended
    assert "Counted again" in mended
    assert "Hm, so" not in mended
    assert "3 of 4 guided rollouts right" in text
    assert "six and six are twelve" in text


def test_a_candidate_without_a_success_shows_a_continuation_that_ended_wrong(out: Path) -> None:
    shown = card(collection_html(out), "a/r5/c1")
    assert "Hm, so" in shown
    assert 'class="verdict right"' not in shown
    assert "no answer" in shown  # that of the attempt


def test_a_leak_is_shown_with_what_was_found_and_an_attempt_without_an_error_whole(out: Path) -> None:
    page = collection_html(out)
    assert "says the answer: answer is 12" in Elements("<x " + card(page, "b/r0/c0")).text
    assert "the reply could not be read" in card(page, "b/r2")
    assert 'class="fork"' not in card(page, "b/r1")


def test_examples_come_first_and_each_kind_is_there_when_room_is_short(out: Path) -> None:
    page = collection_html(out)
    assert len(articles(page)) == 10
    assert "<h3>a/r0/c0</h3>" in articles(page)[0]
    short = collection_html(out, max_cards=4)
    assert len(articles(short)) == 4
    assert "Showing 4 of 10" in Elements(short).text
    assert not [a for a in Elements(page).named("article") if "hidden" in a]  # without JavaScript all can be read
    with pytest.raises(DataError, match="max_cards is -1"):
        collection_html(out, max_cards=-1)


def test_questions_come_from_the_directory_from_the_caller_or_from_examples(out: Path) -> None:
    assert "The question is not in this directory." in card(collection_html(out), "b/r1")
    given = collection_html(out, problems=[collected.problem("b")])
    assert collected.problem("b").question in card(given, "b/r1")
    append_rows(out / "problems.jsonl", [collected.problem("b")])
    assert collected.problem("b").question in card(collection_html(out), "b/r1")
    assert "Six and six." in card(collection_html(out), "b/r1")


def test_the_file_loads_nothing_and_the_same_directory_gives_the_same_bytes(out: Path, tmp_path: Path) -> None:
    first = write_collection_report(tmp_path / "x" / "1.html", out)
    second = write_collection_report(tmp_path / "x" / "2.html", out)
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert not any("src" in attributes for _, attributes in Elements(text).found)


def test_lab_models_are_called_that_and_others_are_not(tmp_path: Path) -> None:
    assert LAB_NOTICE in Elements(collection_html(collected.write(tmp_path / "lab", lab=True))).text
    assert LAB_NOTICE not in Elements(collection_html(collected.write(tmp_path / "other"))).text


def test_stopping_early_is_said(tmp_path: Path) -> None:
    assert "too high on average" not in collection_html(collected.write(tmp_path / "1"))
    assert "too high on average" in collection_html(collected.write(tmp_path / "2", enough=1))


def test_a_collection_in_which_nothing_failed_has_a_page(tmp_path: Path) -> None:
    rows = {"rollouts": [collected.rollout("a/r0", "CORRECT")]}
    text = Elements(collection_html(collected.write(tmp_path / "c", rows))).text
    assert "no attempt failed" in text
    assert "No example came out" in text


def test_without_a_runs_card_the_rows_are_shown_all_the_same(out: Path) -> None:
    (out / "run.json").unlink()
    assert "weak-model@1" in collection_html(out)
    (out / "run.json").write_text("[broken")
    with pytest.raises(DataError, match=r"run\.json is not JSON"):
        collection_html(out)


def test_a_directory_without_a_collection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no sealed chunk"):
        write_collection_report(tmp_path / "r.html", tmp_path)
    assert not (tmp_path / "r.html").exists()


def hostile(folder: Path) -> Path:
    rows: dict[str, list[Any]] = {name: [] for name in collected.rows()}
    for i, bad in enumerate(HOSTILE):
        name = f"p{i}/r0"
        rows["rollouts"].append(collected.rollout(name, "WRONG", bad))
        rows["failures"].append(collected.failure(name, 1, (bad, bad), bad))
        rows["located"].append(collected.located(name, 1, reason=bad))
        rows["candidates"].append(collected.candidate(f"{name}/c0", bad, "leak", leak_reason=bad, leak_text=bad))
    out = collected.write(folder / "hostile", rows)
    append_rows(out / "problems.jsonl", [collected.problem(f"p{i}") for i in range(len(HOSTILE))])
    return out


def test_no_string_of_a_collection_can_become_markup(tmp_path: Path, out: Path) -> None:
    page = Elements(collection_html(hostile(tmp_path)))
    harmless = {tag for tag, _ in Elements(collection_html(out)).found}
    assert {tag for tag, _ in page.found} <= harmless
    assert len(page.named("script")) == 1
    assert not [a for _, a in page.found if any(name.startswith("on") for name in a)]
    assert all(page.text.count(bad) >= 4 for bad in HOSTILE if "\0" not in bad)


def test_a_key_in_a_failure_does_not_reach_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-private-value")
    rows = collected.rows()
    rows["located"][4] = collected.located("b/r2", None, "401 for key very-private-value")
    assert "very-private-value" not in collection_html(collected.write(tmp_path / "k", rows))


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page's script is not run")
def test_a_reader_can_page_filter_and_search(out: Path, tmp_path: Path) -> None:
    page = write_collection_report(tmp_path / "report.html", out)
    driver = """
      const id = (name) => document.getElementById(name), seen = {};
      const visible = () => [...document.querySelectorAll("#cards > article")].filter((card) => !card.hidden)
        .map((card) => card.querySelector("h3").textContent).join() + " " + id("matches").textContent;
      const choose = (select, text) => {
        select.value = [...select.options].find((option) => option.textContent === text).value;
        select.dispatchEvent(new Event("change"));
      };
      const look = (words) => { id("search").value = words; id("search").dispatchEvent(new Event("input")); };
      seen.start = visible();
      id("next").click(); seen.next = visible();
      choose(id("fate"), "with the answer given away"); seen.fate = visible();
      choose(id("fate"), "any"); choose(id("location"), "1"); seen.location = visible();
      choose(id("silent"), "without an answer"); seen.silent = visible();
      choose(id("location"), "any"); choose(id("silent"), "any");
      look("USELESS"); seen.search = visible();
      look("useless pelican"); seen.none = id("none").textContent + id("none").hidden;
      look(""); seen.back = visible();
      document.body.replaceChildren(JSON.stringify(seen));
    """
    text, console = played(page, tmp_path, driver=driver)
    assert console == ""
    assert json.loads(Elements(text[text.index("<body>") :]).text) == {
        "start": "a/r0/c0 of 10",
        "next": "a/r5/c1 of 10",
        "fate": "b/r0/c0 of 1",
        "location": "b/r0/c0 of 8",
        "silent": "a/r5/c1 of 2",
        "search": "a/r5/c1 of 1",
        "none": "No case matches these filters.false",
        "back": "a/r0/c0 of 10",
    }


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page's script is not run")
def test_under_its_own_policy_the_script_shows_one_case_and_a_link_can_name_it(out: Path, tmp_path: Path) -> None:
    text, console = played(write_collection_report(tmp_path / "r.html", out), tmp_path, "#case=3&theme=dark")
    assert console == ""
    shown = [a for a in Elements(text).named("article") if "hidden" not in a]
    assert len(shown) == 1
    assert shown[0]["data-problem"] == "a"
    assert Elements(text).named("html")[0]["data-theme"] == "dark"
