"""The way into models of one's own: init, doctor, and a first route without a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from programs import doctor, init, route
from stepwise import lab
from stepwise.config import Config, SamplingConfig
from stepwise.io import read_rows
from stepwise.models.checkup import _look_at


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """The lab's pair under names of a user's own, so that nothing is taken for the lab."""
    for name in ("weak", "strong"):
        (tmp_path / f"{name}.gguf").symlink_to(lab.model_path(f"lab-{name}"))
    return str(tmp_path / "weak.gguf"), str(tmp_path / "strong.gguf")


def test_init_writes_what_can_be_loaded_and_says_what_the_files_are(pair: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    options = [*pair, "--file", str(file), "--out", str(tmp_path / "out")]
    assert init.main(options) == 0
    text, config = file.read_text(), Config.load(file)
    assert config.models.weak.model == f"llamacpp/{pair[0]}"
    assert config.models.weak.context is not None
    assert config.models.weak.sequences is config.models.weak.threads is None
    assert config.sampling.max_step_tokens == 256
    assert "# qwen3, " in text
    assert "# sequences = 16" in text
    assert "No [scorer]" in text
    assert init.main(options) == 2  # it is not written over
    assert init.main([pair[0], str(tmp_path / "none.gguf"), "--file", str(tmp_path / "other.toml")]) == 1
    assert not (tmp_path / "other.toml").exists()


def test_doctor_finds_nothing_in_the_lab_and_says_what_each_model_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--quick", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "nothing is broken" in out
    assert "64 x 2,048 tokens" in " ".join(out.split())
    assert not (tmp_path / "out").exists()


def test_doctor_names_what_is_broken_and_how_to_mend_it(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--weak", pair[0], "--strong", str(tmp_path / "none.gguf")]
    assert doctor.main([*models, "--quick"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "BROKEN loading: " in out
    assert "none.gguf: no such file" in out
    assert (
        doctor.main(["--weak", pair[0], "--strong", pair[1], "--quick", "--set", "models.weak.sequences=999999"]) == 1
    )
    assert "Set sequences or context of weak lower" in " ".join(capsys.readouterr().out.split())
    keyless = ["--set", "models.strong.model=openai/x", "--set", "models.strong.api_key_env=NO_SUCH_KEY_HERE"]
    assert doctor.main(["--quick", *keyless]) == 1
    assert "NO_SUCH_KEY_HERE" in capsys.readouterr().out


@pytest.mark.slow
def test_doctor_tries_the_models_out(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code = doctor.main(
        ["--weak", pair[0], "--strong", pair[1], "--set", "prompt.system=", "--set", "models.weak.threads=1"]
    )
    out = capsys.readouterr().out
    assert out.count("tokens/s") == 2
    assert out.count(" steps: ") == 2
    assert code == int("BROKEN" in out)


@pytest.mark.parametrize(
    ("text", "finish", "broken", "remedy"),
    [
        ("5 * 12 = 60.\n\n60 - 18 = 42.\n\n\\boxed{42}", "answer", [], ""),
        ("5 * 12 = 60. 60 - 18 = 42. \\boxed{42}", "answer", ["steps"], "blank line between them"),
        ("5 * 12 = 60.\n\nIt is 42.", "end", ["answer"], "ask for the answer in \\boxed{}"),
        ("<think>\n\nHm.\n\n</think>\n\nIt is\n\n\\boxed{42}", "answer", ["thoughts"], "enable_thinking = false"),
    ],
)
def test_what_a_sample_solution_says_of_the_prompt(text: str, finish: str, broken: list[str], remedy: str) -> None:
    found = [each for each in _look_at(text, finish, SamplingConfig()) if each.broken]
    assert [each.what for each in found] == broken
    assert all(remedy in each.remedy for each in found)


def test_two_paths_and_problems_are_enough_for_a_first_table(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--weak",
        pair[0],
        "--strong",
        pair[1],
        "--lab",
        "16",
        "--set",
        "prompt.system=",
        "--out",
        str(tmp_path / "o"),
    ]
    assert route.main([*options, "--dry-run"]) == 0
    assert route.main(options) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "16 problems, 4 of them to set the threshold" in out
    assert "There is no scorer; the threshold was set on 4 problems that are not in the table" in out
    assert "Routed less weak alone, paired:" in out
    rows = read_rows(tmp_path / "o" / "metrics.jsonl")
    assert [row["n"] for row in rows[:2]] == [12, 12]
    assert rows[2]["family"] == "always"
    assert rows[2]["n"] <= 4
    assert rows[0]["strong_tokens"] == 0 < rows[1]["strong_tokens"]
    assert route.main(options) == 0  # every answer is known by now
    again = read_rows(tmp_path / "o" / "metrics.jsonl")[-3:]
    assert [row["strong_tokens"] for row in again] == [row["strong_tokens"] for row in rows]
    policy = ["--policy", str(tmp_path / "o" / "policy.json"), "--n", "3"]
    assert route.main([*policy, *options[:-2], "--out", str(tmp_path / "p")]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--weak", "a.gguf"], "go together"), (["--weak", "WEAK", "--strong", "STRONG", "--lab", "3"], "8 or more")],
)
def test_what_a_first_try_cannot_do_is_said(
    options: list[str], message: str, pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"WEAK": pair[0], "STRONG": pair[1]}
    assert route.main([*(named.get(o, o) for o in options), "--out", str(tmp_path / "o")]) == 2
    assert message in capsys.readouterr().err
