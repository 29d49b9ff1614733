"""The features of real attempts, and the tables on them, on attempts written by hand."""

from __future__ import annotations

import dataclasses
import doctest
from contextlib import closing
from pathlib import Path

import pytest

from evals import real, signals, splitters
from evals.signals import Attempt, Features
from stepwise.models import dialects, load_backend
from stepwise.models.base import Request
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.records import to_json
from stepwise.routing import LeastLogprob, TokenEntropy
from stepwise.types import Problem, Step, Usage

PIECES = ("We", " add:", "\n\n", "3+4", " = 7", "\n", "7*2 = 14", ".\n\n", "\\boxed{14}")
LOGPROBS = (-0.1, -0.2, -0.3, -2.0, -0.1, -0.1, -0.5, -0.1, -0.05)


def attempt(name: str, verdict: str = "CORRECT", low: float = -2.0) -> Attempt:
    logprobs = tuple(low if value == -2.0 else value for value in LOGPROBS)
    entropies = tuple(-2 * value for value in logprobs)
    return Attempt(name, "?", 0.3, "answer", verdict, PIECES, None, logprobs, entropies)


@pytest.mark.parametrize("splitter", ["paragraphs", "calculations"])
def test_every_token_is_in_one_step_and_the_steps_are_those_of_the_splitter(splitter: str) -> None:
    steps = attempt("a").steps(splitter)  # type: ignore[arg-type]
    spans = [span for _, span in steps]
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(len(PIECES)))
    wanted = {"paragraphs": ["We add:", "3+4 = 7\n7*2 = 14.", "\\boxed{14}"],
              "calculations": ["We add:\n\n3+4 = 7\n", "7*2 = 14.\n\n", "\\boxed{14}"]}  # fmt: skip
    assert [text for text, _ in steps] == wanted[splitter]


def test_features_are_what_the_signals_say_at_each_step() -> None:
    features = Features.of(attempt("a"), "paragraphs")
    assert features.of_signal(LeastLogprob()) == [-0.3, -2.0, -0.05]
    assert features.badness(LeastLogprob("worst")) == [0.3, 2.0, 2.0]
    assert features.of_signal(TokenEntropy())[2] == pytest.approx(0.1)
    assert features.whole()["length in tokens"] == len(PIECES)


def test_the_examples_in_docstrings_are_true() -> None:
    assert not doctest.testmod(signals).failed + doctest.testmod(real).failed


def test_both_tables_are_printed_of_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "attempts"
    rows = [attempt(f"p{i}", "CORRECT" if i % 2 else "WRONG", -1.0 - (not i % 2)) for i in range(12)]
    out.mkdir()
    (out / "attempts.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    assert splitters.main(["--attempts", str(out), "--out", str(tmp_path / "split")]) == 0
    assert "calculations" in capsys.readouterr().out
    run = type("Run", (), {"table": lambda self, *parts: print(*parts), "say": print})()
    signals._show_attempts(run, [Features.of(row, "paragraphs") for row in rows])
    printed = capsys.readouterr().out
    assert "12 attempts, 6 right" in printed
    assert "('least_logprob, worst step', '1.00 (1.00 to 1.00)'" in printed


def test_a_model_that_is_shown_the_steps_is_asked_in_a_chat_and_its_answers_are_kept_apart() -> None:
    problem, first = Problem("p", "Add 1 and 2."), Step("1 + 2 = 3.", "weak")
    inner = load_backend("llamacpp/lab-strong")
    assert isinstance(inner, LlamaCppBackend)
    with closing(real.Shown(inner)) as shown:
        assert shown.name != inner.name
        start = Request(problem, max_tokens=8, seed=1)
        assert shown.continue_solutions([start])[0].text == inner.continue_solutions([start])[0].text
        later = dataclasses.replace(start, prefix=(first,))
        (made,) = shown.continue_solutions([later])
        chat = inner.prompt.messages(problem.question)
        asked = inner.engine.chat_ids([*chat, {"role": "assistant", "content": first.text}])
        told = inner.engine.chat_ids(dialects.chat(inner.prompt, problem.question, first.text, None, whole=False))
        assert len(told) > len(asked)  # something is asked behind what is shown
        assert made.usage.prompt_tokens == len(told)


def test_the_line_between_the_models_is_what_an_arm_is_measured_against(capsys: pytest.CaptureFixture[str]) -> None:
    rates = {role: {"reads": 100.0, "writes": 10.0} for role in ("weak", "strong")}
    spent = {"weak": (20, 0), "strong": (0, 20), "Random": (10, 10), "signal": (10, 10)}
    right = {"weak": (0, 0), "strong": (1, 1), "Random": (0, 1), "signal": (1, 1)}
    rows = [
        real.Row(f"p{i}", arm, "CORRECT" if right[arm][i % 2] else "WRONG",
                 *(Usage("m", 1, 10, 10, tokens) for tokens in spent[arm]))
        for i in range(20) for arm in spent
    ]  # fmt: skip
    run = type("Run", (), {"table": lambda self, *parts: print(*parts), "say": lambda self, text: print(text)})()
    real._show(run, rows, list(spent), rates)
    printed = capsys.readouterr().out
    assert "('Random', '50.0% (30% to 70%)', '10', '20', '2.2', '+0.0 (" in printed
    assert "('signal', '100.0% (84% to 100%)', '10', '20', '2.2', '+50.0 (+50 to +50)', '+50.0 (" in printed
    assert "200 problems see 11 points, 643 problems see 6 points" in printed
