"""Rows that teach to ask for help, from routed traces, and what of them is trained."""

from __future__ import annotations

from collections import Counter

import pytest

from stepwise.config import Config
from stepwise.data.calls import call_rows
from stepwise.data.examples import Example, read_examples, write_examples
from stepwise.errors import ConfigError, DataError
from stepwise.types import Problem, Step, Trace

MARKER = "<|reserved_0|>"
CFG = Config.load(None, [f"rl.marker={MARKER}"])


def weak(text: str) -> Step:
    return Step(text, "weak")


def strong(text: str, draft: str | None) -> Step:
    return Step(text, "strong", discarded=() if draft is None else (weak(draft),))


def trace(*steps: Step, answer: str = "9", question: str = "How many?") -> Trace:
    return Trace(Problem("p", question, answer), steps, "answer")


GOOD = trace(
    weak("Two and 2 are 4."),
    strong("4 and 1 are 5.", "4 and 1 are 6."),  # helped
    strong("Then 5 + 2 = 7.", "5 and 2 make 7."),  # says the same
    weak("7 + 2 = 9."),
    strong(r"So \boxed{9}.", None),  # before there was a draft
)


def test_calls_are_steps_that_helped_and_the_rest_is_the_models_own() -> None:
    counts = Counter[str]()
    rows = call_rows([GOOD, trace(strong(r"\boxed{8}", "So 9."))], CFG, counts)
    assert counts == {"traces": 2, "kept": 2, "calls": 2, "not needed": 1}
    assert [(row.origin, len(row.prefix), row.intervention, row.foreign) for row in rows] == [
        ("call", 1, MARKER, (0,)),
        ("kept", 2, "5 and 2 make 7.", (0, 1)),
        ("call", 4, MARKER, (0, 1, 2, 3)),
        ("kept", 3, "7 + 2 = 9.", (1, 2)),
    ]


def test_rows_are_written_and_read(tmp_path: object) -> None:
    rows = call_rows([GOOD], CFG)
    path = write_examples(f"{tmp_path}/rows.jsonl", rows, card={})
    assert read_examples(path) == rows
    assert all(isinstance(row, Example) for row in rows)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rl\.marker is not set; name a token"):
        call_rows([GOOD], Config.lab())
    with pytest.raises(DataError, match=r"of 1 traces those that ended right have 0 steps that help was needed"):
        call_rows([trace(weak(r"So \boxed{9}."))], CFG)
    for other in (trace(weak(f"{MARKER} 9")), trace(weak("9"), question=f"What is {MARKER}?")):
        with pytest.raises(DataError, match=r"'p' holds the marker '<\|reserved_0\|>' in its text"):
            call_rows([other], CFG)


def test_strong_steps_are_never_trained_and_a_call_is_one_token() -> None:
    transformers = pytest.importorskip("transformers")
    from stepwise import lab
    from stepwise.training.rendering import marker_id, render_all

    tokenizer = transformers.AutoTokenizer.from_pretrained(lab.model_path("lab-weak", "safetensors"))
    rows = call_rows([GOOD], CFG)
    tokens = render_all(rows, tokenizer, CFG.prompt, CFG.sft)
    for example, row in zip(rows, tokens, strict=True):
        target = row.ids[row.prompt :]
        trained = [token for token, weight in zip(target, row.weights, strict=True) if weight]
        if example.origin == "call":
            assert trained == [marker_id(tokenizer, MARKER)]
            assert row.weights[-1] == CFG.sft.call_weight
            assert row.num_trained == 1
        else:
            own = [t for i, t in enumerate((*example.prefix, example.intervention)) if i not in example.foreign]
            assert tokenizer.decode(trained) == "".join(f"{text}\n\n" for text in own)
    with pytest.raises(ConfigError, match=r"the marker '<call>' is split into .*; give a text that is one token"):
        marker_id(tokenizer, "<call>")
