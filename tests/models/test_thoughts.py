r"""A box in a thought ends no solution, whoever opened the thought: template, model, a step before.

Every kind of mark, the router asking step by step, here and over an API.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stepwise import Problem, StepRouter
from stepwise.config import ModelConfig
from stepwise.grading import grade
from stepwise.models import load_backend
from stepwise.models.base import Completion, Request
from stepwise.models.engine.stopping import StopRule
from stepwise.models.litellm import LiteLLMBackend
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.routing import Always, Models, Never, RouteSettings, route_all
from stepwise.routing.compare import judged
from stepwise.routing.evidence import answered
from stepwise.steps import SEPARATOR
from stepwise.steps.thoughts import after_thought, open_thought, prompt_thought
from stepwise.training.export.gguf import export_gguf
from stepwise.types import Step, Trace
from tests.fakes import ScriptedBackend
from tests.scorers.stand_in import Answer, serving
from tests.tiny_models import CHAT_TEMPLATE, tiny_model

MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
]
GUESSES = ["Perhaps \\boxed{3}.", "Or \\boxed{7}, says the formula\n\\[ \\boxed{7} \\]"]
P = Problem("p", "What is 2 + 2?", "4")


def thinker(opened: str, begin: str, end: str) -> list[str]:
    """The steps of a model that guesses twice in its thought, begun by itself or, where `opened`, by the template."""
    return [("" if opened else begin) + GUESSES[0], GUESSES[1], f"No, it is 4.{end}Two and two.", "So \\boxed{4}."]


class Continuing(ScriptedBackend):
    """Ends steps by the rules of the engine, under a template that opens a thought."""

    def __init__(self, script: Sequence[str], opened: str):
        super().__init__({"p": list(script)})
        self.opened = opened

    def _one(self, at: int, sample: int, request: Request) -> Completion:
        made = super()._one(at, sample, request)
        before = SEPARATOR.join(step.text for step in request.prefix)
        rule = StopRule("step", thought=open_thought(self.opened + before))
        ending = rule.push((made.text + "\n\n").encode()) or rule.last(made.finish)
        return Completion(at, sample, made.text, ending.finish, usage=made.usage, thought=self.opened)


@pytest.mark.parametrize("by_template", [False, True])
@pytest.mark.parametrize(("begin", "end"), MARKS)
def test_a_router_goes_on_over_boxes_in_a_thought(begin: str, end: str, by_template: bool) -> None:
    opened = begin if by_template else ""
    model = Continuing(thinker(opened, begin, end), prompt_thought(f"<|im_start|>assistant\n{opened}"))
    for policy in (Never(), Always()):
        (trace,) = route_all([P], Models(model, model), policy, RouteSettings())
        assert (len(trace.steps), trace.finish, trace.answer) == (4, "answer", "4")
        assert judged(trace).verdict == "CORRECT"


@pytest.mark.parametrize(("begin", "end"), MARKS)
def test_a_thought_that_never_ends_has_no_answer(begin: str, end: str) -> None:
    mark = prompt_thought(begin)
    model = Continuing(GUESSES, mark)
    (trace,) = route_all([P], Models(model, model), Never(), RouteSettings())
    assert (trace.finish, trace.answer) == ("eos", None)
    assert judged(trace).answer_read_from == ""
    assert not answered([Step(GUESSES[0], "weak", thought=mark)])
    assert answered([Step(GUESSES[0] + end, "weak", thought=mark), Step("\\boxed{4}", "weak", thought=mark)])


def test_the_writer_of_a_step_says_whether_its_own_prompt_opened_a_thought() -> None:
    first = Trace(P, (Step(GUESSES[0], "weak", thought="<think>"),))
    assert first.answer is None
    made = Trace(P, (*first.steps, Step("So \\boxed{4}.", "strong")), "answer")
    assert made.answer == "4"


@pytest.mark.parametrize("typed", ["What is <think>?", "Does [THINK] open a thought", "<|channel|>analysis"])
def test_a_mark_that_a_question_holds_opens_nothing(typed: str) -> None:
    assert prompt_thought(f"<|im_start|>user\n{typed}<|im_end|>\n<|im_start|>assistant\n") == ""
    assert prompt_thought(f"[INST]{typed}[/INST]") == ""
    assert prompt_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""


@pytest.mark.parametrize(("begin", "end"), MARKS)
def test_what_stands_after_a_thought(begin: str, end: str) -> None:
    assert after_thought(f"\n{begin} 3? {end}It is 4.") == ("It is 4.", False)
    assert after_thought(f"3? {end}It is 4.") == ("It is 4.", False)
    assert after_thought(f"{begin}Perhaps 3.") == ("", True)
    assert after_thought("Perhaps 3.", begin) == ("", True)
    assert after_thought("It is 4.") == ("It is 4.", False)
    assert after_thought(f"It is 4. {begin}Or?") == (f"It is 4. {begin}Or?", False)


@pytest.mark.parametrize("opens", [True, False])
def test_a_thought_is_known_from_the_rendered_prompt_where_its_mark_is_a_control_token(
    tmp_path: Path, opens: bool
) -> None:
    pytest.importorskip("torch")
    directory = tiny_model(tmp_path / "model")
    words = (directory / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(words.replace("<|good|>", "[THINK]").replace("<|bad|>", "[/THINK]"))
    if opens:
        (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE + "[THINK]\n")
    with load_backend(f"llamacpp/{export_gguf(directory, tmp_path / 'm.gguf', 'f32')}", context=256) as backend:
        assert isinstance(backend, LlamaCppBackend)
        engine = backend.engine
        assert engine.detokenize([engine.token_id("[/THINK]")]) == b"[/THINK]"
        assert engine.detokenize([engine.token_id("<|score|>")]) == b""
        asked = [
            Request(Problem("q", "What does [THINK] open? [THINK]"), max_tokens=1),
            Request(P, (Step("So [/THINK].", "weak"),), max_tokens=1),
            Request(P, max_tokens=1, token_ids=tuple(engine.prompt_ids(backend.prompt, P.question))),
        ]
        assert [made.thought for made in backend.continue_solutions(asked)] == ["[THINK]" if opens else ""] * 3


# ----- over an API: raw text under a template, and messages


def writing(whole: str) -> Any:
    """A server that writes on at `whole` from where the prompt or the assistant's last message stops."""

    def answer(path: str, body: dict[str, Any]) -> Answer:
        raw = "prompt" in body
        done = body["prompt"].partition("ASSISTANT:")[2] if raw else ""
        if not raw and body["messages"][-1]["role"] == "assistant":
            done = body["messages"][-1]["content"]
        at = 0 if not done.strip() else whole.find(done.strip()) + len(done.strip())
        rest = whole[at:].lstrip("\n") if done.strip() else whole
        cut = rest.find("\n\n") if body.get("stop") else -1
        text = rest if cut < 0 else rest[:cut]
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "stop_reason": "\n\n" if cut >= 0 else None}
        choice |= {"text": text} if raw else {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
        kind = "text_completion" if raw else "chat.completion"
        reply = {"id": "x", "object": kind, "created": 1, "model": "m", "choices": [choice], "usage": usage}
        return Answer(reply, 200, {"Content-Type": "application/json"})

    return answer


@pytest.mark.parametrize(
    ("begin", "end", "by_template", "continuation"),
    [
        *((*mark, True, "raw") for mark in MARKS),
        *((*mark, False, "raw") for mark in MARKS[::4]),
        *((*mark, opens, "prefill") for mark in MARKS[::4] for opens in (False, True)),
    ],
)
def test_over_an_api_boxes_in_a_thought_end_no_solution(
    begin: str, end: str, by_template: bool, continuation: str, tmp_path: Path
) -> None:
    pytest.importorskip("litellm")
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[-1].content }} ASSISTANT:" + (begin + "\n" if by_template else ""))
    said = SEPARATOR.join(thinker("x" if by_template else "", begin, end))
    shown = begin + "\n" + said if by_template and continuation == "raw" else said
    with serving(writing(shown)) as server:
        config = ModelConfig(
            model="openai/m", api_base=f"{server.url}/v1", continuation=continuation, chat_template=str(template)
        )
        with LiteLLMBackend(config, attempts=2, backoff=0.01) as backend:
            router = StepRouter(backend, backend, policy=Never())
            (trace,) = router.solve_all([P], progress=False)
    assert (trace.finish, trace.answer) == ("answer", "4"), [step.text for step in trace.steps]
    assert grade(trace.solution, "4").value == "CORRECT"
    assert trace.steps[-1].text == "So \\boxed{4}."
