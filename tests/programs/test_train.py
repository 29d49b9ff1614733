"""The program train, on a tiny random-weight model; what it trains well is tested with the trainers."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from stepwise.data.examples import write_examples
from stepwise.io import append_rows, read_rows, write_rows
from stepwise.types import Problem
from tests.training.sft_world import ROW, row

pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

from programs.train import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def toml(tiny_gguf_path: Path, tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[models.weak]\nmodel = "llamacpp/{tiny_gguf_path}"\ntrain_from = "{tiny_gguf_path.parent / "qwen3"}"\n'
        'context = 512\nkv_type = "f32"\nflash_attention = false\n[lora]\nrank = 4\ndevice = "cpu"\n'
        "[sft]\nbatch = 2\nepochs = 1\n[rl]\nsteps = 1\nproblems = 2\ngroup = 2\nmax_tokens = 8\n"
        'no_answer = "wrong"\n[prompt]\nsystem = ""\n'  # under which the rows were made
    )
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return str(write_examples(tmp_path / "rows.jsonl", [row(i) for i in range(4)], card={}))


@pytest.fixture
def problems(tmp_path: Path) -> str:
    path = tmp_path / "problems.jsonl"
    append_rows(path, [Problem(f"p{i}", f"What is {i} + 4?", str(i + 4)) for i in range(3)])
    return str(path)


def test_a_cap_holds_for_what_is_measured_before_and_after_and_the_answers_are_kept(
    toml: str, rows: str, problems: str, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "sft"
    command = ["sft", "--config", toml, "--dataset", rows, "--test", problems, "--samples", "1", "--out", str(out)]
    assert main([*command, "--set", "budget.total_tokens=12"]) == 1
    assert "budget.total_tokens" in capsys.readouterr().err
    assert not (out / "metrics.jsonl").exists()  # nothing was trained
    paid = len((out / "spent.jsonl").read_text().splitlines())
    assert 0 < paid <= 3
    assert main([*command, "--set", "budget.total_tokens=10_000"]) == 0
    spent = [json.loads(line) for line in (out / "spent.jsonl").read_text().splitlines()]
    assert {row["apart"] for row in spent} == {"evaluation"}
    assert len(spent) <= 3 + 3 + 1  # one may have been cut by the cap; what was whole is not asked for again


def test_sft_leaves_an_adapter_with_a_card_that_knows_before_and_after_and_a_page(
    toml: str, rows: str, problems: str, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "sft"
    assert (
        main(["sft", "--config", toml, "--dataset", rows, "--test", problems, "--samples", "1", "--out", str(out)]) == 0
    )
    card = json.loads((out / "adapter" / "card.json").read_text())
    assert card["evaluation"]["before"]["problems"] == card["evaluation"]["after"]["problems"] == 3
    assert card["evaluation"]["before"]["model"] != card["evaluation"]["after"]["model"]
    assert "Supervised training" in (out / "report.html").read_text()
    said = capsys.readouterr()
    plan = (
        "4 rows: 2 optimizer steps, learning rate 0.0002 at its peak; that is few: sft.batch = 1 would make 4 (now 2)"
    )
    assert said.err.count(f"supervised training: {plan}\n") == 1
    assert "loading the weights to train from" in said.err
    assert "pass@1 on 3 problems: 0.0% before, 0.0% after" in said.out
    page = (out / "report.html").read_text()
    assert "running" not in re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    assert "0.0 % before, 0.0 % after" in page
    assert rows in page
    trained = (out / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    again = ["sft", "--config", toml, "--dataset", rows, "--test", problems, "--samples", "1", "--out", str(out)]
    assert main(again) == 0
    said = capsys.readouterr()
    assert "finished already" in said.out
    assert "the adapter is trained already" in said.err
    assert "loading the weights" not in said.err
    assert "evaluating" not in said.err
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == trained


def test_rl_goes_on_from_the_run_that_sft_made(toml: str, rows: str, problems: str, tmp_path: Path) -> None:
    first, out = str(tmp_path / "sft"), tmp_path / "rl"
    assert main(["sft", "--config", toml, "--dataset", rows, "--out", first]) == 0
    teacher = "".join(
        line for line in Path(toml).read_text().splitlines(True) if line.startswith(("model =", "context"))
    )
    Path(toml).write_text(f'{Path(toml).read_text()}[rl.credit]\nscheme = "distill"\n[models.strong]\n{teacher}')
    command = ["rl", "--config", toml, "--problems", problems, "--adapter", first, "--out", str(out)]
    assert main(command) == 0
    lines = read_rows(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1]
    assert lines[0]["reward"] == 0.0  # random weights answer nothing, which counts as wrong here
    assert (out / "rollouts" / "step-00001.jsonl").exists()
    again = [*command[:-1], str(tmp_path / "overwritten")]
    assert main([*again, "--overwrite"]) == 0


def test_interventions_begin_the_rollouts_of_their_problems(
    toml: str, rows: str, tmp_path: Path, capsys: Captured
) -> None:
    given = [Problem(id=name, question=ROW.question, answer=ROW.answer) for name in ("p0", "copy")]
    append_rows(tmp_path / "asked.jsonl", given)
    write_examples(tmp_path / "hints.jsonl", [ROW], card={})
    out = tmp_path / "rl"
    asked, hints = str(tmp_path / "asked.jsonl"), str(tmp_path / "hints.jsonl")
    assert main(["rl", "--config", toml, "--problems", asked, "--hints", hints, "--out", str(out)]) == 2
    assert "no rollout has an answer" in capsys.readouterr().err  # random weights: nothing is trained, and that is said
    assert not (out / "adapter").exists()
    found = {made["problem"]: made["hint"] for made in read_rows(out / "rollouts" / "step-00001.jsonl")}
    assert found == {"p0": [*ROW.prefix, ROW.intervention], "copy": []}


def test_dpo_trains_on_pairs_and_leaves_a_card_and_a_page(toml: str, tmp_path: Path) -> None:
    made = row(1)
    texts = {"prompt": made.question, "chosen": made.target, "rejected": f"{made.prefix[0]}\n\nThere are 9 coins."}
    path, out = tmp_path / "pairs.jsonl", tmp_path / "dpo"
    write_rows(path, [texts])
    assert main(["dpo", "--config", toml, "--dataset", str(path), str(path), "--out", str(out)]) == 0
    card = json.loads((out / "adapter" / "card.json").read_text())
    assert (card["method"], card["data"][0]["rows"], "dpo" in card["config"]) == ("dpo", 1, True)
    page = (out / "report.html").read_text()
    assert "Preference training" in page
    assert "Log-probability of steps" in page


def test_files_given_twice_and_the_same_rows_count_once(toml: str, rows: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["sft", "--config", toml, "--dataset", rows, rows, "--out", str(out)]) == 0
    assert json.loads((out / "adapter" / "card.json").read_text())["data"][0]["rows"] == 4


def test_another_dataset_under_the_same_name_is_refused(toml: str, rows: str, tmp_path: Path, capsys: Captured) -> None:
    command = ["sft", "--config", toml, "--dataset", rows, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    write_examples(Path(rows), [row(i) for i in range(5, 9)], card={})
    assert main(command) == 2
    assert "belongs to other data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["sft"], "sft needs --dataset FILE"),
        (["sft", "--dataset", "ROWS", "--lab", "3"], "give --dataset FILE, and --problems or --lab to rl"),
        (["rl", "--dataset", "ROWS"], "rl trains on problems"),
        (["rl"], "rl needs --problems FILE or --lab N"),
        (["dpo"], "dpo needs --dataset FILE; make one with `stepwise build_dataset --kind pairs`"),
        (["dpo", "--dataset", "ROWS", "--lab", "3"], "dpo trains on a dataset; give --dataset FILE"),
        (["dpo", "--dataset", "ROWS", "--replay", "ROWS"], "--replay is for sft"),
        (["dpo", "--dataset", "ROWS"], "row 1, field prompt is None; give a text"),
        (["sft", "--dataset", "ROWS", "--hints", "ROWS"], "--hints are for rl"),
        (["rl", "--lab", "2", "--hints", "ROWS"], "no row of the hints belongs to any of the problems"),
        (["sft", "--dataset", "nowhere.jsonl"], "no such file"),
        (["rl", "--lab", "2", "--adapter", "nowhere"], "adapter nowhere: no such directory"),
        (["rl", "--lab", "2", "--set", "rl.credit.schem=vppo"], 'did you mean "rl.credit.scheme"?'),
        (["sft", "--dataset", "ROWS", "--set", "sft.replay=0.5"], "no rows to replay were given"),
        (["sft", "--dataset", "ROWS", "--set", "models.weak.train_from=/nowhere"], "holds no config.json"),
    ],
)
def test_wrong_input_is_one_line(
    given: list[str], said: str, toml: str, rows: str, tmp_path: Path, capsys: Captured
) -> None:
    arguments = [rows if word == "ROWS" else word for word in given]
    assert main([*arguments, "--config", toml, "--out", str(tmp_path / "out")]) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_a_dry_run_counts_the_rollouts_and_writes_nothing(
    toml: str, problems: str, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out"
    assert main(["rl", "--config", toml, "--problems", problems, "--dry-run", "--out", str(out)]) == 0
    assert "32" in capsys.readouterr().out.replace(",", "")  # 1 step, 2 problems, 2 rollouts, 8 tokens each
    assert not out.exists()


def labels_of(path: Path, n: int, labels: tuple[int, ...] = (0, 1)) -> str:
    """Solutions of two steps, whose second one has the labels in turn."""
    rows = [
        {"question": f"What is {i} + 4?", "steps": ["Add.", f"It is {i + 5 - right}."], "labels": [1, right]}
        for i, right in zip(range(n), itertools.cycle(labels), strict=False)
    ]
    write_rows(path, rows)
    return str(path)


def test_a_probe_is_fitted_to_labelled_steps_and_says_what_it_is_for(
    toml: str, tmp_path: Path, capsys: Captured
) -> None:
    out, labels = tmp_path / "probe", labels_of(tmp_path / "labels.jsonl", 24)
    command = ["probe", "--config", toml, "--labels", labels, "--states", str(tmp_path / "states.jsonl"), "--out"]
    assert main([*command, str(out)]) == 0
    said = capsys.readouterr().out
    assert "first errors of test problems: AUROC" in said
    assert f'scorer.model="probe/{out / "head"}"' in said.replace("\n", " ")
    card = json.loads((out / "head" / "card.json").read_text())
    assert card["facts"]["problems"] == {"train": 14, "validation": 4, "test": 6}
    states = (tmp_path / "states.jsonl").read_text()
    assert main([*command, str(tmp_path / "again")]) == 0  # nothing is read a second time
    assert (tmp_path / "states.jsonl").read_text() == states
    assert json.loads((tmp_path / "again" / "head" / "card.json").read_text())["components"] == card["components"]


def test_a_probe_refuses_labels_that_teach_nothing_and_a_model_behind_an_api(
    toml: str, tmp_path: Path, capsys: Captured
) -> None:
    few = labels_of(tmp_path / "few.jsonl", 4)
    right, wrong = (labels_of(tmp_path / f"{label}.jsonl", 24, (label,)) for label in (1, 0))
    for labels, says in (
        (few, "of 4 problems"),
        (right, "0 first errors; both"),
        (wrong, "are all wrong; a threshold"),
    ):
        assert main(["probe", "--config", toml, "--labels", labels, "--out", str(tmp_path / "no")]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert says in error
        assert "loading" not in error  # before anything is computed
    api = ["--set", "models.weak.model=openai/NAME", "--out", str(tmp_path / "no")]
    assert main(["probe", "--labels", few, *api]) != 0
    assert "'openai/NAME' gives none" in " ".join(capsys.readouterr().err.split())
    assert main(["probe", "--out", str(tmp_path / "no")]) == 2
    assert "probe needs --labels" in capsys.readouterr().err
    assert main(["sft", "--labels", few, "--dataset", few, "--out", str(tmp_path / "no")]) == 2
    assert "sft takes no --labels" in capsys.readouterr().err
