"""Steps that end where there is something to check, in the routing loop: what is drawn is what is read again."""

from __future__ import annotations

import pytest

from stepwise.errors import ConfigError
from stepwise.prompt import SolvePrompt
from stepwise.records import from_json, to_json
from stepwise.routing import Models, RouteSettings, StepRouter, Threshold, route_all
from stepwise.routing.names import ModelNames
from stepwise.steps import split_steps
from stepwise.types import Trace
from tests.fakes import Line, ScriptedBackend, ScriptedScorer
from tests.routing.scripted import P

PROMPT = SolvePrompt(splitter="calculations")
DRAWN = ["We add:\n\n1. 1 + 1 = 2\n", "\n2. 2 + 2 = 4\n", "So \\boxed{4}."]


def routed(scores: dict[str, float], strong: list[str]) -> tuple[Trace, ScriptedScorer]:
    scorer = ScriptedScorer(scores)
    weak = [*DRAWN[:2], Line(DRAWN[2], "answer")]
    models = Models(ScriptedBackend({"p": weak}), ScriptedBackend({"p": strong}, "strong"), scorer)
    return route_all([P], models, Threshold(0.5), RouteSettings(prompt=PROMPT))[0], scorer


def test_the_trace_is_the_text_as_drawn_and_is_read_in_the_same_steps() -> None:
    trace, scorer = routed({}, [])
    assert trace.text == "".join(DRAWN)
    assert [step.text for step in trace.steps] == split_steps(trace.text, trace.splitter)
    assert trace.splitter == "calculations"
    assert from_json(Trace, to_json(trace)) == trace
    assert {text.strip("\n") for _, steps in scorer.batches[-1] for text in steps} == {s.strip("\n") for s in DRAWN}
    assert "splitter" not in to_json(Trace(P))  # the default is not written down


def test_a_step_of_the_strong_model_without_a_line_end_gets_a_blank_line() -> None:
    trace, _ = routed({DRAWN[1].strip("\n"): 0.1}, ["", "2. Twice 2 is 4."])
    assert trace.text == "We add:\n\n1. 1 + 1 = 2\n2. Twice 2 is 4.\n\nSo \\boxed{4}."


def test_the_splitter_is_part_of_the_prompts_hash_and_of_every_card() -> None:
    plain = SolvePrompt()
    assert PROMPT.hash != plain.hash
    weak, strong, cards = ScriptedBackend({}), ScriptedBackend({}, "strong"), []
    for prompt in (PROMPT, plain):
        weak.prompt_hash = strong.prompt_hash = prompt.hash
        cards.append(StepRouter(weak, strong, ScriptedScorer({}), prompt=prompt).card)
    assert [card.splitter for card in cards] == ["calculations", "paragraphs"]
    with pytest.raises(ConfigError, match="for the step splitter 'calculations', the router has 'paragraphs'"):
        ModelNames("", "", splitter="calculations").check(cards[1])
    cards[1].check(ModelNames("", ""))  # a card of before there was another one
