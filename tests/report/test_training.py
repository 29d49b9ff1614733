from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from stepwise.errors import DataError
from stepwise.io import append_rows, write_rows
from stepwise.report.shell import LAB_NOTICE
from stepwise.report.training import (
    PLOTS,
    _figures,
    _pick,
    _read_metrics,
    _spaced,
    write_training_report,
)
from stepwise.training.rollouts import RlRollout, rollouts_name
from tests.report.browsing import BROWSER, played
from tests.report.markup import HOSTILE, Elements


def training_html(out: Path, **more: Any) -> str:
    """The text of the page that is written."""
    with TemporaryDirectory() as folder:
        return write_training_report(Path(folder) / "page.html", out, **more).read_text(encoding="utf-8")


METRICS: dict[str, Any] = {
    "reward": 0.25, "groups": 4, "kept_groups": 2, "no_spread": 0.5, "masked": 1, "verdicts": {"CORRECT": 1},
    "length": 80.5, "entropy": 0.4, "loss": -0.01, "grad_norm": 0.2, "clip_share": 0.0, "kl": None, "mismatch": 0.001,
    "mismatch_kl": 1e-5, "ess": 0.999, "generated_tokens": 900, "evaluated_tokens": 70, "trained_tokens": 800,
    "extra_tokens": 10, "flops": 1e9, "learning_rate": 1e-4, "generate_seconds": 3.0, "extra_seconds": 0.1,
    "train_seconds": 4.0, "peak_bytes": 2**31,
}  # fmt: skip


def rollout(step: int, problem: str, sample: int, reward: float | None, **more: Any) -> RlRollout:
    steps = ("First half.", "Second half.", r"So \boxed{7}.")
    verdict = {1.0: "CORRECT", 0.0: "WRONG", None: "NO_ANSWER"}[reward]
    given = {"step_advantages": (0.5, -0.25, None), **more}
    return RlRollout(
        f"{problem}/s{step}/r{sample}", step, problem, f"What of {problem}?", sample, "\n\n".join(steps), steps,
        ((0, 2), (2, 4), (4, 4)), (1, 2, 3, 4), (-0.1,) * 4, "answer", verdict, reward, **given,
    )  # fmt: skip


def group(step: int, problem: str, rewards: list[float | None], **more: Any) -> list[RlRollout]:
    return [rollout(step, problem, i, reward, **more) for i, reward in enumerate(rewards)]


def written(out: Path, *, model: str = "llamacpp/some.gguf", steps: int = 3, rollouts: bool = True) -> Path:
    append_rows(out / "metrics.jsonl", [{"step": i, **METRICS} for i in range(1, steps + 1)])
    card = {
        "program": "grpo", "config_hash": "abc123", "status": "running", "arguments": {"problems": 2, "adapter": None},
        "config": {"models": {"weak": {"model": model}, "strong": {"model": "llamacpp/lab-strong"}},
                   "rl": {"steps": 9, "loss": "dapo", "credit": {"scheme": "vppo"}}},
    }  # fmt: skip
    (out / "run.json").write_text(json.dumps(card))
    for step in range(1, steps + 1) if rollouts else ():
        (out / "rollouts").mkdir(exist_ok=True)
        rows = [
            *group(step, "even", [0.0, 0.0], step_advantages=(0.0, 0.0, 0.0)),
            *group(step, "mixed", [1.0, 0.0, None], first_error=1, step_scores=(0.9, 0.2, 0.4)),
        ]
        write_rows(out / rollouts_name(step), rows)
    return out


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return written(tmp_path / "run")


def titles(rows: list[dict[str, Any]]) -> list[str]:
    return [figure.title for figure in _figures(rows)]


def test_every_known_metric_with_a_value_is_drawn_and_no_other() -> None:
    rows = [{"step": 1, **METRICS}, {"step": 2, **METRICS}]
    known = {key for plot in PLOTS for key, _ in plot.keys}
    assert set(METRICS) - {"verdicts"} <= known
    expected = [plot.title for plot in PLOTS if any(METRICS.get(key) is not None for key, _ in plot.keys)]
    assert titles(rows) == expected
    assert "Divergence" not in expected  # kl is None everywhere


def test_missing_keys_are_left_out_and_new_ones_get_a_plot_under_their_own_name() -> None:
    assert titles([{"step": 1, "epoch": 0, "rows": 8, "loss": 1.0, "held_out_loss": 2.0, "name": "x"}]) == [
        "Loss",
        "held out loss",
    ]


def test_first_and_last_known_value_stand_below_a_plot() -> None:
    rows = [{"step": 1, "kl": None}, {"step": 2, "kl": 0.5}, {"step": 3, "kl": 0.25}, {"step": 4}]
    (figure,) = _figures(rows)
    assert figure.curves[0][2:] == ("0.5", "0.25")
    assert figure.drawing.count("series") == 1


def test_memory_is_in_gib_and_shares_have_the_whole_axis() -> None:
    drawn = {figure.title: figure for figure in _figures([{"step": 1, **METRICS}])}
    assert drawn["Peak memory"].curves[0][2] == "2"
    ends = [text for text in ("0", "0.5", "1") if f">{text}</text>" in drawn["Effective sample size"].drawing]
    assert ends == ["0", "0.5", "1"]


def test_a_step_that_was_done_again_counts_once(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 3.0}]
    append_rows(tmp_path / "metrics.jsonl", rows)
    assert _read_metrics(tmp_path) == [rows[0], rows[2]]


def test_a_rollout_shows_the_credit_of_every_step_as_number_sign_and_colour(out: Path) -> None:
    page = training_html(out)
    card = next(part for part in page.split("<article ")[1:] if "mixed/s1/r1" in part)
    steps = card.split("<li ")[1:]
    assert ["credit-plus" in step for step in steps] == [True, False, False]
    assert ["credit-minus" in step for step in steps] == [False, True, False]
    assert "▲ +0.5" in steps[0]
    assert "▼ −0.25" in steps[1]
    assert "no credit known" in steps[2]
    assert ["first error" in step for step in steps] == [False, True, False]
    assert [step.split('aria-hidden="true">')[1][:24].count("fill") for step in steps] == [1, 1, 1]
    assert "0.20" in steps[1]
    depths = [int(step.split("--depth:")[1].split("%")[0]) for step in steps]
    assert depths[0] > depths[1] > depths[2] == 0


def test_outcomes_are_right_wrong_or_why_there_is_no_reward(out: Path) -> None:
    page = Elements(training_html(out))
    outcomes = [a["data-outcome"] for a in page.named("article") if str(a["aria-label"]).startswith("mixed/s1")]
    assert outcomes == ["right", "wrong", "no answer"]
    assert "1 of 2 right, 1 without a reward" in page.text


def test_a_credit_of_zero_is_told_from_one_that_is_not_known(out: Path) -> None:
    page = training_html(out)
    even = next(part for part in page.split("<article ")[1:] if "even/s1/r0" in part)
    assert even.count('<b class="credit none">0</b>') == 3


def test_a_hint_stands_ahead_of_the_steps_and_is_none_of_them(tmp_path: Path) -> None:
    rows = [rollout(1, "p", 0, 1.0, hint=("Given <first>.", "Then."))]
    append_rows(tmp_path / "metrics.jsonl", [{"step": 1, **METRICS}])
    (tmp_path / "rollouts").mkdir()
    write_rows(tmp_path / rollouts_name(1), rows)
    page = training_html(tmp_path)
    ahead, steps = page.split('<ol class="steps">')
    assert "Given &lt;first&gt;.\n\nThen." in ahead
    assert steps.count("<li ") == 3


def test_groups_with_an_advantage_come_first_and_short_room_keeps_every_outcome() -> None:
    rows = [
        *group(1, "even", [0.0] * 4, step_advantages=(0.0, 0.0, 0.0)),
        *group(1, "mixed", [0.0, 0.0, 0.0, 1.0]),
    ]
    chosen = _pick(rows, 6)
    assert [row.problem for row, _ in chosen] == ["mixed"] * 4 + ["even"] * 2
    assert {about for row, about in chosen if row.problem == "mixed"} == {(1, 4, 4)}
    assert {row.reward for row, _ in _pick(rows, 2)} == {0.0, 1.0}


def test_steps_are_taken_from_the_whole_run() -> None:
    files = [Path(str(i)) for i in range(100)]
    assert [path.name for path in _spaced(files, 4)] == ["0", "33", "66", "99"]
    assert _spaced(files[:3], 15) == files[:3]
    assert _spaced(files, 1) == files[:1]
    assert _spaced(files, 0) == []


def test_the_number_of_rollouts_is_capped(out: Path) -> None:
    assert training_html(out).count("<article ") == 15
    assert not [a for a in Elements(training_html(out)).named("article") if "hidden" in a]  # read without JavaScript
    short = training_html(out, max_rollouts=6)
    assert short.count("<article ") == 6
    assert {a["data-training"] for a in Elements(short).named("article")} == {"1", "2", "3"}
    assert "asked for none" in training_html(out, max_rollouts=0)
    with pytest.raises(DataError, match="max_rollouts is -1"):
        training_html(out, max_rollouts=-1)


def test_a_supervised_run_has_curves_and_no_rollouts(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 1 / i, "tokens": 100 * i, "learning_rate": 1e-4, "rows": 8} for i in (1, 2)]
    append_rows(tmp_path / "metrics.jsonl", rows)
    page = Elements(training_html(tmp_path))
    assert "Supervised training" in page.text
    assert "Rollouts" not in page.text
    assert titles(rows) == ["Loss", "Learning rate", "Tokens"]


def test_the_head_says_what_was_run_and_how_far_it_is(out: Path) -> None:
    text = Elements(training_html(out)).text
    for words in ("3 of 9 steps", "abc123", "vppo", "dapo", "llamacpp/some.gguf", "running"):
        assert words in text


def test_the_lab_is_named_where_its_model_is_trained_and_not_for_a_model_that_had_no_part(tmp_path: Path) -> None:
    assert LAB_NOTICE in Elements(training_html(written(tmp_path / "1", model="llamacpp/lab-weak"))).text
    assert LAB_NOTICE not in Elements(training_html(written(tmp_path / "2"))).text


def test_a_directory_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no metrics\.jsonl"):
        write_training_report(tmp_path / "r.html", tmp_path)
    append_rows(tmp_path / "metrics.jsonl", [{"loss": 1.0}])
    with pytest.raises(DataError, match=r"has no metrics\.jsonl"):
        write_training_report(tmp_path / "r.html", tmp_path)


def test_the_file_loads_nothing_and_the_same_directory_gives_the_same_bytes(out: Path, tmp_path: Path) -> None:
    first, second = (write_training_report(tmp_path / name, out) for name in ("1.html", "2.html"))
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    assert "url(" not in text
    assert not any("src" in attributes for _, attributes in Elements(text).found)


def test_no_string_of_a_rollout_can_become_markup(tmp_path: Path) -> None:
    harmless = {tag for tag, _ in Elements(training_html(written(tmp_path / "good"))).found}
    out = written(tmp_path / "bad", steps=1)
    rows = [
        dataclasses.replace(rollout(1, bad, i, 0.0), question=bad, steps=(bad, bad, bad), id=bad)
        for i, bad in enumerate(HOSTILE)
    ]
    write_rows(out / rollouts_name(1), rows)
    append_rows(out / "metrics.jsonl", [{"step": 2, **dict.fromkeys(HOSTILE, 1.0)}])
    page = Elements(training_html(out))
    assert {tag for tag, _ in page.found} <= harmless
    assert len(page.named("script")) == 1
    assert not [a for _, a in page.found if any(name.startswith("on") for name in a)]
    assert all(page.text.count(bad) >= 5 for bad in HOSTILE if "\0" not in bad)


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page's script is not run")
def test_a_reader_can_filter_rollouts_by_step_outcome_credit_and_words(out: Path, tmp_path: Path) -> None:
    page = write_training_report(tmp_path / "report.html", out)
    driver = """
      const id = (name) => document.getElementById(name), seen = {};
      const visible = () => [...document.querySelectorAll("#cards > article")].filter((card) => !card.hidden)
        .map((card) => card.getAttribute("aria-label").split(":")[0]).join() + " " + id("matches").textContent;
      const choose = (select, text) => {
        select.value = [...select.options].find((option) => option.textContent === text).value;
        select.dispatchEvent(new Event("change"));
      };
      seen.start = visible();
      choose(id("training"), "3"); seen.step = visible();
      choose(id("outcome"), "no answer"); seen.outcome = visible();
      choose(id("outcome"), "any"); choose(id("credit"), "none"); seen.credit = visible();
      choose(id("credit"), "any"); choose(id("training"), "any"); choose(id("location"), "1"); seen.error = visible();
      choose(id("location"), "any");
      id("search").value = "what EVEN"; id("search").dispatchEvent(new Event("input")); seen.search = visible();
      document.body.replaceChildren(JSON.stringify(seen));
    """
    text, console = played(page, tmp_path, driver=driver)
    assert console == ""
    assert json.loads(Elements(text[text.index("<body>") :]).text) == {
        "start": "mixed/s1/r0 of 15",
        "step": "mixed/s3/r0 of 5",
        "outcome": "mixed/s3/r2 of 1",
        "credit": "even/s3/r0 of 2",
        "error": "mixed/s1/r0 of 9",
        "search": "even/s1/r0 of 6",
    }
