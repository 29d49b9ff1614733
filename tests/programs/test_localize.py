"""The localize program: what it reads, what it shows and prints, and what it says of wrong input."""

from __future__ import annotations

import io
import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest

from programs import localize
from stepwise.io import append_rows
from stepwise.lab.problems import generate
from stepwise.types import Problem, Step, Trace, Usage
from tests.critics import critic as scripts
from tests.critics.critic import UNREADABLE, fields, numbers, prompts
from tests.scripted_lm import ScriptedLM

verified = partial(scripts.verified, base=0)  # lab-critic's, the critic of the default configuration
STEPS = ["There are 41.", "41 - 4 = 39.", "So \\boxed{39}."]
PLAIN = "How many [1] are left?\n---\n" + "\n\n".join(STEPS) + "\n"


class Critic:
    """Puts a ScriptedLM where the configuration's models.critic would be loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lm = ScriptedLM([])
        self.models: list[str] = []
        monkeypatch.setattr("stepwise.models.provider.lm", self._load)

    def says(self, *replies: str) -> ScriptedLM:
        self.lm = ScriptedLM(replies)
        return self.lm

    def _load(self, model: Any, **settings: Any) -> ScriptedLM:
        self.models.append(model.model)
        return self.lm


@pytest.fixture
def critic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Critic:
    monkeypatch.chdir(tmp_path)
    return Critic(monkeypatch)


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def written(row: Any, name: str = "one.json") -> str:
    Path(name).write_text(row if isinstance(row, str) else json.dumps(row), encoding="utf-8")
    return name


def test_each_step_is_shown_with_its_verdict_and_the_first_error_with_what_it_should_be(
    critic: Critic, capsys: pytest.CaptureFixture[str]
) -> None:
    critic.says(verified(1))
    assert localize.main([written(PLAIN)]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    at = lines.index("✗ step 1  FIRST ERROR, never recovered from")
    assert lines[at - 3 : at + 6] == [
        "✓ step 0  right", "    There are 41.", "",
        "✗ step 1  FIRST ERROR, never recovered from", "    41 - 4 = 39.", "    it says 1; it should be 2", "",
        "· step 2  not checked", "    So \\boxed{39}.",
    ]  # fmt: skip
    assert "How many [1] are left?" in "\n".join(lines)  # no markup
    assert "\x1b" not in "\n".join(lines)
    assert critic.models == ["llamacpp/lab-critic"]
    assert not Path("out").exists()


def test_there_is_colour_on_a_terminal_and_no_control_character_of_an_attempt(
    critic: Critic, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    critic.says(verified(1))
    assert localize.main([written({"problem": "?", "steps": ["a\x1b[2J", "b"]})]) == 0
    out = capsys.readouterr().out
    assert "\x1b[1;38;5;160m✗ step 1" in out
    assert "\x1b[2J" not in out
    assert "\\x1b[2J" in out


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        (PLAIN + "---\n41 - 4 = 37\n", "41 - 4 = 37"),
        (PLAIN.replace("\n", "\r\n"), None),
        ({"problem": "How many?", "steps": STEPS, "reference": "37", "label": 1, "generator": "x"}, "37"),
        ({"question": "How many?", "solution": "\n\n".join(STEPS), "answer": "37"}, None),
        ({"question": "How many?", "steps": "\n\n\n".join(STEPS)}, None),
    ],
    ids=["text with reference", "text", "ProcessBench", "solution", "steps in one text"],
)
def test_attempts_come_as_text_and_as_json_from_a_file_and_from_a_pipe(
    row: Any, reference: str | None, critic: Critic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = written(row)
    told = []
    for argument in (name, "-", None):
        piped(monkeypatch, Path(name).read_bytes())
        lm = critic.says(verified(1))
        assert localize.main([argument, "--json"] if argument else ["--json"]) == 0
        told.append(capsys.readouterr().out)
        (prompt,) = prompts(lm)
        assert ("#reference: " + str(reference) in prompt) == (reference is not None)
        assert numbers(prompt) == [0, 1, 2]
    assert told[0] == told[1] == told[2]


def test_json_is_one_object_on_one_line(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    critic.says(verified(9), verified(1))
    row = {"id": "r", "problem": "How many?", "steps": STEPS, "label": 2}
    assert localize.main([written(row), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    made = json.loads(line)
    assert (made["id"], made["label"], made["first_error"], made["critical_error"]) == ("r", 2, 1, 1)
    assert (made["steps"], made["verdicts"], made["failure"]) == (STEPS, [True, False], None)
    assert made["checks"][1] == {"step": 1, "quote": "1", "expected": "2", "verdict": "wrong"}
    assert (len(made["repairs"]), made["usage"]["calls"]) == (1, 2)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_solution_without_blank_lines_is_split_as_asked_and_the_result_says_how(
    as_text: bool, critic: Critic, capsys: pytest.CaptureFixture[str]
) -> None:
    solution = "1. It is 1.\n2. It is 1.\n3. So 1."
    critic.says(verified(9), verified(1))
    given = f"How many?\n---\n{solution}" if as_text else {"problem": "How many?", "solution": solution}
    assert localize.main([written(given), "--json", "--split", "numbered"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["steps"], made["split"]) == (solution.split("\n"), "numbered")


def test_a_row_of_traces_and_one_of_several_rows_are_taken_as_they_are(
    critic: Critic, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem("p7", "How many?", "37", "41 - 4")
    steps = tuple(Step(text, "weak") for text in STEPS)
    append_rows(Path("traces.jsonl"), [Trace(Problem("p6", "?"), steps[:1], "answer"), Trace(problem, steps, "answer")])
    lm = critic.says(verified(1))
    assert localize.main(["traces.jsonl", "--row", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "p7"
    assert fields(prompts(lm)[0]) == ["problem", "reference", "attempt"]


def test_a_row_of_processbench_is_taken_as_it_is(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "gsm8k-0", "generator": "a model", "problem": "How many?", "steps": STEPS, "label": 1}
    rows = [{**row, "final_answer_correct": False}, {**row, "id": "gsm8k-1", "final_answer_correct": True}]
    critic.says(verified(0))
    assert localize.main([written(rows), "--row", "1"]) == 0
    assert "the row is labelled: step 1 (not the same)" in capsys.readouterr().out


def test_an_attempt_that_is_right_is_said_to_be(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    critic.says(verified(None))
    assert localize.main([written({"question": "?", "steps": STEPS, "label": -1})]) == 0
    out = capsys.readouterr().out
    assert "Every step is right (of 3)." in out
    assert "the row is labelled: no error (the same)" in out
    assert "FIRST ERROR" not in out


def test_no_verdict_is_an_error_that_shows_what_the_model_wrote(
    critic: Critic, capsys: pytest.CaptureFixture[str]
) -> None:
    critic.says(UNREADABLE, UNREADABLE)
    assert localize.main([written(PLAIN)]) == 1
    told = capsys.readouterr()
    assert f"no verdict: asked twice, the model wrote nothing that can be read. First: '{UNREADABLE}'" in told.err
    assert "calls: 2" in told.out
    critic.says(UNREADABLE, UNREADABLE)
    assert localize.main([written(PLAIN), "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert (made["first_error"], made["verdicts"]) == (None, [])
    assert UNREADABLE in made["failure"]


def test_method_and_format_are_those_of_the_configuration(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    lm = critic.says(*(verified(first, base=1) for first in (2, 1, 1)))
    sets = ["--set", "critic.method=vote", "--set", "critic.samples=3", "--set", "critic.bare=false"]
    assert localize.main([written(PLAIN), "--json", *sets]) == 0
    assert json.loads(capsys.readouterr().out)["votes"] == {"1": 2, "2": 1}
    assert lm.calls[0][0]["role"] == "system"
    sets = ["--set", "critic.method=scorer", "--set", "scorer.kind=constant", "--set", "scorer.value=0.2"]
    assert localize.main([written(PLAIN), *sets]) == 0
    out = capsys.readouterr().out
    assert "✗ step 0  FIRST ERROR  0.20" in out
    assert "✗ step 1  wrong  0.20" in out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", "standard input has 0 lines ---; it needs one between problem and attempt"),
        ("a\n---\nb\n---\nc\n---\nd", "has 3 lines ---"),
        ("a\n---\n \n---\nc", "the attempt is empty"),
        ('{"question": "q"', "line 1: not a valid row (Expecting ',' delimiter"),
        ('{"question": "q", "steps": ["a"]}\n{"question"', "line 2: not a valid row"),
        ('["a", "b"]', "it must be an object with question and steps"),
        ('{"question": "q", "steps": []}', "steps is empty: there is nothing to check"),
        ('{"question": "q", "steps": ["a", "\\n"]}', "steps[1] is '\\n'; give the text of a step"),
        ('{"question": "q", "steps": 3}', "steps is 3 (int); give the texts of the steps"),
        (
            '{"question": "q"}',
            "steps and solution are both missing (of question; `stepwise route` writes attempts: traces.jsonl)",
        ),
        ('{"question": "q", "problem": "p", "steps": ["a"]}', "the fields question and problem are both there"),
        ('{"question": " ", "steps": ["a"]}', "field question: it is ' '; give the text of a problem"),
        (
            '{"question": "q", "steps": ["a"], "refrence": "r"}',
            "field refrence: there is no such field; did you mean ref",
        ),
        ('{"question": "q", "steps": ["a"], "answer": 4}', "field answer: it is 4; write it as a text, in quotes"),
        ('{"question": "q", "steps": ["a"], "label": 1}', "field label: it is 1; give a step's number, or -1"),
        ('{"problem": {"id": "p"}, "steps": []}', "field problem.question: Field required"),
        ('[{"question": "q", "steps": ["a"]}, {}]', "holds 2 attempts; choose one with --row, 1 to 2"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--propose"]])
def test_wrong_input_is_one_line_that_names_field_value_and_remedy(
    options: list[str],
    row: str,
    message: str,
    critic: Critic,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    piped(monkeypatch, row.encode())
    assert localize.main(options) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert (told.err.count("\n"), told.out, critic.models) == (1, "", [])


def test_a_file_that_is_not_there_not_text_or_too_short_is_named(
    critic: Critic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert localize.main(["none.json"]) == 2
    Path("bad.txt").write_bytes(b"\xff\xfe")
    assert localize.main(["bad.txt"]) == 2
    assert localize.main([written({"question": "q", "steps": ["a"]}), "--row", "2"]) == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert localize.main([]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "error: none.json: no such file",
        "error: bad.txt is not UTF-8 ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)",
        "error: --row is 2, but one.json holds 1 attempts",
        "error: there is no FILE, and nothing is piped in",
    ]


def test_a_model_that_cannot_be_reached_is_one_line(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    from dspy.utils.exceptions import LMConfigurationError

    def script(messages: Any) -> str:
        raise LMConfigurationError("connection refused\nand more")

    critic.lm = ScriptedLM(script)
    assert localize.main([written(PLAIN)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: models.critic was asked and failed: ")
    assert "connection refused" in line


def test_a_dry_run_says_what_it_would_ask_and_asks_nothing(critic: Critic, capsys: pytest.CaptureFixture[str]) -> None:
    assert localize.main([written(PLAIN), "--dry-run", "--set", "critic.method=bisect"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  critic")]
    assert row.split()[2] == "6"  # log2 of 3, rounded up, and one; each read twice at most
    assert critic.models == []


def test_lab_critic_gives_a_verdict_that_can_be_read_of_any_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = generate("test", 1)[0]
    steps = made.solution(random.Random(0), misled=True)
    attempts = [
        {"problem": made.problem.question, "steps": steps, "reference": "\n\n".join(made.solution(random.Random(0)))},
        {"problem": "Ποιο είναι το άθροισμα;", "steps": ["#first_error: 0 | none", "有四十一个。"]},
    ]
    for row in attempts:
        assert localize.main([written(row), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["failure"], found["repairs"]) == (None, [])
        assert found["first_error"] in [None, *range(len(row["steps"]))]


def test_the_labs_critic_is_told_to_know_lab_problems_only(tmp_path: Path, capsys: Any) -> None:
    lab = generate("test", 1)[0]
    for question, told in ((lab.problem.question, False), ("Tom has 3 apples and buys 4 more. How many?", True)):
        file = tmp_path / "attempt.json"
        file.write_text(json.dumps({"question": question, "steps": ["3 + 4 = 8."], "reference": "It is 7."}))
        localize.main([str(file), "--json", "--set", "critic.method=scorer"])
        row = json.loads(capsys.readouterr().out)
        assert any("knows nothing but lab problems" in text for text in row["warnings"]) == told
    file.write_text(json.dumps({"problem": question, "steps": ["3 + 4 = 8."], "label": 0}))
    assert localize.main([str(file), "--compare"]) == 2  # figures that would mean nothing
    assert "critic: llamacpp/lab-critic is of the lab" in capsys.readouterr().err


def test_a_right_verdict_on_a_wrong_answer_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"idx": 7, "question": "What is 2 + 2?", "answer": "4", "steps": ["2 + 2 = 5.", "So \\boxed{5}."]}
    (tmp_path / "one.json").write_text(json.dumps(row))

    def module(**_: object) -> dspy.Prediction:
        return dspy.Prediction(
            first_error=None, failure=None, localization=None, warnings=[], repairs=[], usage=Usage(), checks=[],
            verdicts=[], scores=None, critical_error=None,
        )  # fmt: skip

    assert localize.main([str(tmp_path / "one.json"), "--json"], module=lambda _: module) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["id"] == "7"
    assert said["warnings"][-1] == "the answer 5 is not 4, so that some step is wrong"
