"""The training comparison: its pool, its bookkeeping, its measures; and, slow, a reduced form of all of it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from evals import training_arms as arms
from evals.training_measures import SAMPLES, Measured, interval, pass_at, scores, strata
from evals.training_tables import show
from stepwise.config import Config
from stepwise.lab.families import FAMILIES
from stepwise.lab.problems import generate

SCALE = arms.Scale(20, 80_000, 50, 8, 1e-3, 2e-3)


def measured(arm: str, right: list[int], seed: int = 0) -> Measured:
    return Measured(arm, seed, tuple(right), 0.05, 1000, {"trained": 186_000, "generated": 415_000}, (0.79, 0.76), 0.05)


def test_the_pool_has_its_shares_and_nothing_of_the_held_out_problems() -> None:
    pool = arms.pool_of(20)
    kinds = [arms._kind(made) for made in pool]
    assert [kinds.count(kind) for kind in ("none", "often", "rare")] == [6, 8, 6]
    assert {made.problem.question for made in pool}.isdisjoint(p.problem.question for p in generate("test", 200))
    assert all(FAMILIES[made.traps[0]].right_rate <= 0.005 for made, kind in zip(pool, kinds, strict=True)
               if kind == "rare")  # fmt: skip
    assert arms.pool_of(20) == pool


def test_every_arm_spends_the_same_tokens_but_for_those_that_train_once() -> None:
    def spent(name: str) -> float:
        cfg, arm = SCALE.config(Config(), arms.ARMS[name], 3), arms.ARMS[name]
        rollouts = cfg.rl.steps * cfg.rl.problems * cfg.rl.group * arms.TOKENS_OF_A_SOLUTION
        return (cfg.sft.tokens or 0) * bool(arm.data) + rollouts * (arm.rl is not None)

    whole = spent("int+rl")
    for name in ("sham", "rl", "reference+rl", "vineppo", "first_error, true"):
        assert spent(name) == pytest.approx(whole, rel=0.02)
    assert spent("int") == SCALE.sft_tokens


def test_arms_share_a_supervised_phase_only_where_nothing_in_it_differs() -> None:
    names = [name for name, arm in arms.ARMS.items() if arm.data]
    for one in names:
        for other in names:
            a, b = arms.ARMS[one], arms.ARMS[other]
            same = (a.data, a.sft) == (b.data, b.sft) and SCALE.config(Config(), a, 0).sft == SCALE.config(
                Config(), b, 0
            ).sft
            assert (a.supervised == b.supervised) == same
    assert arms.ARMS["int"].supervised == arms.ARMS["int+rl"].supervised == "intervention"
    assert arms.ARMS["rl"].supervised == ""


def test_an_arms_settings_reach_its_configuration() -> None:
    cfg = SCALE.config(Config(), arms.ARMS["first_error, true"], 4)
    assert (cfg.seed, cfg.rl.credit.scheme, cfg.rl.credit.first_error) == (4, "first_error", "given")
    assert (cfg.sft.learning_rate, cfg.rl.learning_rate) == (1e-3, 2e-3)
    assert SCALE.config(Config(), arms.ARMS["int, no prefix"], 0).sft.prefix_weight == 0
    assert SCALE.config(Config(), arms.ARMS["int+replay+rl"], 0).sft.replay == 0.5
    wide = SCALE.config(Config(), arms.ARMS["rl, groups of 32"], 0).rl
    assert (wide.group, wide.problems, wide.steps, wide.max_tokens) == (32, 2, 62, 256)


def test_first_errors_in_truth_are_the_problems_checkers() -> None:
    pool = arms.pool_of(10)
    assert arms.locate_in(pool, arms.ARMS["vppo, scorer"]) is None
    locate, made = arms.locate_in(pool, arms.ARMS["vppo, true"]), pool[0]
    steps = ["nonsense", "more"]
    assert locate(made.problem, steps) == made.first_error(steps) == 0
    assert arms.locate_in(pool, arms.ARMS["first_error, after"])(made.problem, steps) == 1


@pytest.mark.parametrize(
    ("k", "right", "n", "wanted"), [(1, 4, 16, 0.25), (16, 1, 16, 1.0), (2, 1, 4, 0.5), (3, 0, 4, 0)]
)
def test_pass_at_k_is_the_unbiased_estimate(k: int, right: int, n: int, wanted: float) -> None:
    assert pass_at(k, right, n) == pytest.approx(wanted)


def test_strata_are_by_traps_and_by_what_the_base_fails() -> None:
    problems = generate("test", 30)
    base = [0 if i < 10 else 5 for i in range(30)]
    masks = strata(problems, base)
    assert masks["failed by base"].sum() == 10
    assert sum(int(masks[name].sum()) for name in ("no trap", "one trap", "two traps")) == 30
    assert all(not problems[i].traps for i in np.flatnonzero(masks["no trap"]))


def test_an_interval_is_paired_so_that_equal_arms_differ_by_nothing() -> None:
    rng = np.random.default_rng(1)
    right = rng.integers(0, SAMPLES + 1, (3, 40)).tolist()
    one = [measured("a", row, seed) for seed, row in enumerate(right)]
    everything = np.ones(40, bool)
    assert interval(one, one, everything) == (0.0, 0.0, 0.0)
    better = [measured("b", [min(SAMPLES, r + 4) for r in row], seed) for seed, row in enumerate(right)]
    mean, low, high = interval(better, one, everything)
    assert 0 < low < mean < high
    assert mean == pytest.approx(scores(better, 1).mean() - scores(one, 1).mean())


def test_tables_fit_80_columns_and_say_that_few_seeds_are_a_smoke_run(tmp_path: Path) -> None:
    problems = generate("test", 60)
    assert len({trap for made in problems for trap in made.traps}) == 8
    rng = np.random.default_rng(2)
    rows = [measured(name, rng.integers(0, SAMPLES + 1, 60).tolist()) for name in arms.ARMS]
    text = io.StringIO()
    console = Console(file=text, width=80)
    said: list[str] = []
    run: Any = SimpleNamespace(console=console, say=said.append, path=lambda name: tmp_path / name)
    summary = show(run, rows, problems, measured("base", [0] * 30 + [3] * 30, 10_000))
    assert set(summary["arms"]) == set(arms.ARMS)
    assert all(len(line) <= 80 for line in text.getvalue().splitlines())
    assert "…" not in text.getvalue()
    assert any("smoke run: 1 seed" in line for line in said)
    assert summary["arms"]["sham"]["over sham"] == (0.0, 0.0, 0.0)
    assert summary["differences"]["int, suffix over int"][0] == pytest.approx(
        summary["arms"]["int, suffix"]["pass@k"][1] - summary["arms"]["int"]["pass@k"][1]
    )
    page = (tmp_path / "training.html").read_text()
    assert page.count("<svg") == 3
    assert all(f"<th>{len_}" in page for len_ in sorted({len(made.operations) for made in problems}))
    assert "vppo, scorer, all problems: " in page


def test_hinted_copies_begin_with_the_intervention_and_the_problems_stay() -> None:
    problems = [made.problem for made in arms.pool_of(10)[:3]]
    row = arms.Example(
        "r", problems[1].question, problems[1].answer or "", ("One.",), "Two.", "intervention",
        {"problem": problems[1].id}, {}, "h", "c", 0, 0, 0,
    )  # fmt: skip
    pool, hints = arms.hinted(problems, [row])
    assert pool[:3] == problems
    assert [problem.question for problem in pool[3:]] == [problems[1].question]
    assert hints == {pool[3].id: ("One.", "Two.")}
    assert pool[3].id not in {problem.id for problem in problems}


def test_an_unknown_arm_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evals.training import main

    assert main(["--arms", "nothing", "--out", str(tmp_path / "out")]) == 2
    assert "--arms nothing: unknown" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_reduced_form_runs_to_its_tables_and_goes_on_with_more_arms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from evals.training import main

    pytest.importorskip("peft")
    common = ["--seeds", "1", "--problems", "20", "--pool", "20", "--sft-tokens", "4000", "--rl-steps", "2"]
    command = [*common, "--rl-problems", "2", "--workers", "1", "--out", str(tmp_path / "out")]
    assert main(["--arms", "sham", "int+rl", *command]) == 0
    first = capsys.readouterr().out
    assert "over sham" in first
    assert main(["--arms", "sham", "int+rl", "vppo, true", *command]) == 0
    again = capsys.readouterr().out
    assert "vppo, true" in again
    assert (tmp_path / "out" / "training.json").exists()
