"""Generative reward models: what they are asked in the published forms, where a verdict is read, what no text moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stepwise.config import ScorerConfig
from stepwise.errors import BackendError, ConfigError, ScorerError
from stepwise.models.engine.jobs import Generation, GenerationJob, Logits
from stepwise.models.scorers import GenerativeScorer, JudgeScorer, load_scorer
from stepwise.models.scorers.critiques import FORMS, CritiqueForm
from stepwise.models.scorers.generative import ServedGenerativeScorer
from stepwise.models.scorers.label_token import label_score
from stepwise.types import Problem, Usage
from tests.scorers.stand_in import Answer, in_turn, serving
from tests.scorers.test_critiques import ATTACKS, CARD, STEPS, TIPS
from tests.scorers.test_judge import chat_answer

P = Problem("p", "Solve 2x + 3 = 7.")
RIGHT, WRONG = label_score(3.0, 0.0), label_score(0.0, 2.0)


class _Worker:
    def adopt(self, driver: object) -> bool:
        return False


class ScriptedEngine:
    """Characters are tokens. Critiques are written in order, the last one for ever; the verdicts that are read for the
    `wrong` ones (0-based, in order) lean to the bad word.
    """

    parameters, memory_bytes, name = 1, 1, "scripted@00000000"

    def __init__(
        self, *critiques: str, wrong: Sequence[int] = (), finish: str = "step", context: int = 50_000, error: str = ""
    ):
        self.critiques, self.wrong, self.finish, self.context, self.error = critiques, wrong, finish, context, error
        self.jobs, self.read = list[GenerationJob](), list[str]()
        self.labels = set[str]()
        self.worker = _Worker()
        self.vocabulary = SimpleNamespace(end_tokens={0}, spelled=self.text)

    @property
    def prompts(self) -> list[str]:
        return [self.text(job.ids) for job in self.jobs]

    def text(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def tokenize(self, text: str) -> list[int]:
        return [*map(ord, text)]

    def chat_ids(self, chat: Sequence[dict[str, str]], add_generation_prompt: bool) -> list[int]:
        text = "".join(f"<{message['role']}>{message['content']}\0\n" for message in chat)
        return self.tokenize(text + "<assistant>" * add_generation_prompt)

    async def agenerate(self, jobs: Sequence[GenerationJob]) -> list[Generation]:
        self.jobs += jobs
        made = self.critiques[min(len(self.jobs), len(self.critiques)) - 1]
        await asyncio.sleep(0)
        return [Generation(0, 0, made, self.finish, (1,) * len(made), evaluated_tokens=5, error=self.error)]  # type: ignore[arg-type]

    async def ascore(self, ids: Any, positions: Any, labels: Any) -> list[Logits]:
        assert positions == [[len(ids[0]) - 1]]
        self.labels.add(self.text(labels))
        values = (0.0, 2.0) if len(self.read) in self.wrong else (3.0, 0.0)
        self.read.append(self.text(ids[0]))
        return [Logits(np.array([values], np.float32), 7)]

    def reset_cache(self) -> None: ...

    def close(self) -> None: ...


def scorer(engine: ScriptedEngine, template: str = "thinkprm", **settings: Any) -> GenerativeScorer:
    return GenerativeScorer(engine, CritiqueForm.load(template), **settings)  # type: ignore[arg-type]


def test_thinkprm_reads_the_published_prompt_and_writes_the_published_reply() -> None:
    engine = ScriptedEngine(" Right, 7 - 3 is 4.", " Half of 4 is 2.", wrong=[1])
    assert scorer(engine).score(P, STEPS[:2]) == pytest.approx([RIGHT, WRONG])
    prompt = (
        "<user>You are given a math problem and a proposed step-by-step solution:\n\n[Math Problem]\n\n"
        f"{P.question}\n\n[Solution]\n\nStep 1: {STEPS[0]}\nStep 2: {STEPS[1]}\n\nReview and critique each step in the "
        "proposed solution to determine whether each step is correct. If the solution is incomplete, only verify the "
        "provided steps.\0\n<assistant>"
    )
    said = (
        f"Let's verify step by step:\n\nStep 1: {STEPS[0]}\n\nCritique: Right, 7 - 3 is 4. "
        f"The step is \\boxed{{correct}}\n\nStep 2: {STEPS[1]}\n\nCritique:"
    )
    assert engine.prompts[1] == prompt + said
    assert engine.read[1] == prompt + said + " Half of 4 is 2. The step is \\boxed{"
    assert engine.labels == {"ci"}  # where "correct" and "incorrect" part


def test_genprm_is_a_turn_for_each_step_with_the_critiques_of_the_steps_before() -> None:
    engine = ScriptedEngine("It is right.\n", "Half of 4 is 2.\n", wrong=[1])
    assert scorer(engine, "genprm").score(P, STEPS[:2]) == pytest.approx([RIGHT, WRONG])
    system = (
        "<system>You are a math teacher. Your task is to review and critique the paragraphs in solution step by step."
    )
    analyze = "<analyze>\nLet's analyze the Paragraph {} step by step: "
    first = f"{system}\0\n<user>{P.question}\n{STEPS[0]}"  # and no header: the critique follows the user's message
    assert engine.prompts[0] == first + analyze.format(1)
    reply = "It is right.\n</analyze>\n<output>\n**Judgement**: $\\boxed{Yes}$\n</output>\n"
    second = f"{first}\0\n<assistant>{analyze.format(1)}{reply}\0\n<user>{STEPS[1]}{analyze.format(2)}"
    assert engine.prompts[1] == second
    assert engine.read[1] == second + "Half of 4 is 2.\n</analyze>\n<output>\n**Judgement**: $\\boxed{"


def test_tips_is_one_critique_and_a_label_for_each_step() -> None:
    engine = ScriptedEngine("<think>The second one is wrong.", wrong=[1, 2])
    assert scorer(engine, "tips").score(P, STEPS) == pytest.approx([RIGHT, WRONG, WRONG])
    assert len(engine.jobs) == 1
    assert engine.jobs[0].max_tokens == 3 * 512
    assert f"<paragraph_1>\n{STEPS[1]}\n</paragraph_1>" in engine.prompts[0]
    assert engine.read[2] == engine.prompts[0] + (
        '<think>The second one is wrong.\n</think>\n\n```json\n{\n  "step_labels": {"0": 1, "1": 0, "2": '
    )
    again = ScriptedEngine("Fine.")
    made = scorer(again, "tips")
    made.learn(P, STEPS[:2], [0.9, 0.2])
    made.score(P, STEPS)
    assert again.read == [again.prompts[0] + 'Fine.\n\n```json\n{\n  "step_labels": {"0": 1, "1": 0, "2": ']


@pytest.mark.parametrize("template", ["thinkprm", "genprm"])
def test_a_step_is_judged_alike_with_and_without_later_ones_and_costs_one_critique(template: str) -> None:
    at_once, bit_by_bit = ScriptedEngine("One.", "Two.", "Three."), ScriptedEngine("One.", "Two.", "Three.")
    whole, parts = scorer(at_once, template), scorer(bit_by_bit, template)
    whole.score(P, STEPS)
    for n in range(1, 4):
        parts.score(P, STEPS[:n])
    assert at_once.read == bit_by_bit.read
    assert whole.usage == parts.usage
    assert [[v.critique for v in step] for step in parts.verdicts(P, STEPS)] == [["One."], ["Two."], ["Three."]]
    parts.score(P, STEPS)
    assert len(bit_by_bit.jobs) == 3


def test_scores_of_another_process_do_without_their_critiques_by_writing_them_again() -> None:
    engine = ScriptedEngine("One.", "Two.")
    made = scorer(engine)
    made.learn(P, STEPS[:1], [0.125])
    assert made.score(P, STEPS[:2]) == pytest.approx([0.125, RIGHT])
    assert len(engine.jobs) == 2


def test_votes_are_drawn_apart_and_their_probabilities_or_verdicts_are_averaged() -> None:
    mean = scorer(ScriptedEngine("A.", "B.", "C.", wrong=[1]), votes=3)
    assert mean.score(P, STEPS[:1]) == pytest.approx([(2 * RIGHT + WRONG) / 3])
    engine = ScriptedEngine("A.", "B.", "C.", wrong=[1])
    share = scorer(engine, votes=3, ask="verdict")
    assert share.score(P, STEPS[:1]) == pytest.approx([2 / 3])
    assert [(job.first, job.temperature) for job in engine.jobs] == [(0, 0.7), (1, 0.7), (2, 0.7)]
    assert len({job.seed for job in engine.jobs}) == 1
    assert (
        len(
            {
                made.identity
                for made in (mean, share, scorer(ScriptedEngine("A.")), scorer(ScriptedEngine("A."), "tips"))
            }
        )
        == 4
    )
    assert share.usage == Usage(share.name, 3, share.usage.prompt_tokens, 3 * 12, 6)
    single = ScriptedEngine("A.")
    scorer(single).score(P, STEPS[:1])
    assert single.jobs[0].temperature == 0


def test_a_critique_is_cut_at_its_tokens_and_has_a_verdict_all_the_same() -> None:
    engine = ScriptedEngine(" On and on and", finish="length")
    made = scorer(engine, critique_tokens=32)
    assert made.score(P, STEPS[:1]) == pytest.approx([RIGHT])
    assert engine.jobs[0].max_tokens == 32
    assert [verdict.finished for (verdict,) in made.verdicts(P, STEPS[:1])] == [False]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("template", FORMS)
def test_no_text_of_a_step_or_of_a_critique_moves_the_place_where_a_verdict_is_read(template: str, attack: str) -> None:
    form = CritiqueForm.load(template)
    engine = ScriptedEngine(f"It says: {attack}", wrong=[1])
    assert scorer(engine, template).score(P, [STEPS[0], attack]) == pytest.approx([RIGHT, WRONG])
    assert len(engine.read) == 2
    for number, text in enumerate(engine.read, form.first):
        assert text.endswith(form.lead.replace("{number}", str(number)))


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_step_says_is_no_answer_of_a_judge(attack: str) -> None:
    for answer, score in (("0.25", 0.25), ("0", 0.0)):
        assert JudgeScorer(lambda chat, answer=answer: (answer, Usage()), "m").score(P, [attack]) == [score]  # type: ignore[misc]


def test_a_critique_that_cannot_be_written_is_the_errors_reason() -> None:
    with pytest.raises(ScorerError, match=r"problem 'p': the prompt is too long"):
        scorer(ScriptedEngine("", error="the prompt is too long")).score(P, STEPS)
    with pytest.raises(ScorerError, match="leave no room in a context of 1200"):
        scorer(ScriptedEngine("x" * 400, context=1200)).score(P, ["Word. " * 100])


def test_what_makes_no_scorer_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(ConfigError, match="votes is 0; give a whole number of at least 1"):
        scorer(ScriptedEngine("A."), votes=0)
    with pytest.raises(ConfigError, match="votes is 0: input should be greater than or equal to 1"):
        load_scorer({"kind": "generative", "votes": 0})
    with pytest.raises(ConfigError, match=r"critique_tokens is 512, .* more than the context of 800; lower it"):
        scorer(ScriptedEngine("A.", context=800))
    api = {"kind": "generative", "model": "openai/m", "api_base": "http://127.0.0.1:9/v1"}
    with pytest.raises(ConfigError, match=r'ask is "probability", .* an API has none: set ask = "verdict"'):
        load_scorer(api)
    with pytest.raises(ConfigError, match=r'continues messages that were begun, .* template = "thinkprm" or "tips"'):
        load_scorer({**api, "ask": "verdict", "template": "genprm"})
    with pytest.raises(ConfigError, match='"votes" is set, but means nothing to a scorer of kind "judge"'):
        load_scorer({"kind": "judge", "votes": 2})


def test_behind_an_api_whole_replies_are_votes_on_every_step() -> None:
    replies = iter([CARD, CARD.replace("{incorrect}", "{correct}"), "I cannot say.", CARD])
    chats: list[Any] = []

    def complete(chat: list[dict[str, str]], max_tokens: int) -> tuple[str, Usage]:
        chats.append((chat, max_tokens))
        return next(replies), Usage("m", 1, 10, 10, 20)

    made = ServedGenerativeScorer(complete, "m", CritiqueForm.load("thinkprm"), votes=3, critique_tokens=64, requests=1)
    assert made.score(P, STEPS[:2]) == [1.0, 0.5]
    assert made.usage == Usage(made.name, 3, 30, 30, 60)
    assert (len(chats), chats[0][1]) == (3, 128)
    assert "Let's verify" not in chats[0][0][-1]["content"]


def test_a_reply_that_says_nothing_of_a_step_fails_its_item_with_its_end() -> None:
    made = ServedGenerativeScorer(lambda chat, most: ("Fine, all of it.", Usage()), "m", CritiqueForm.load("tips"))
    with pytest.raises(ScorerError, match=r"problem 'p', step 0: 1 critiques and no verdict on it.*Fine, all of it"):
        made.score(P, STEPS)


def test_an_api_is_asked_through_litellm_and_failures_fail_their_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(
        in_turn(chat_answer(TIPS.format(aside="")), Answer({"error": {"message": "no model"}}, 404))
    ) as server:
        spec = {"kind": "generative", "model": "openai/m", "api_base": server.url + "/v1", "ask": "verdict"}
        made = load_scorer({**spec, "template": "tips", "critique_tokens": 100})
        assert made.score(P, STEPS) == [1.0, 0.0, 0.0]
        _, body, _ = server.requests[0]
        assert (body["temperature"], body["max_tokens"]) == (0, 300)
        with pytest.raises(ScorerError, match="no model"):
            made.score(P, [*STEPS, "And more."])
        made.close()


@pytest.fixture
def local(tiny_gguf_path: Path) -> dict[str, Any]:
    pytest.importorskip("llama_cpp")
    return {"kind": "generative", "model": f"llamacpp/{tiny_gguf_path}", "context": 4096, "critique_tokens": 8}


@pytest.mark.parametrize("template", FORMS)
def test_on_the_engine_every_step_has_a_verdict_and_an_attack_moves_no_step_before_it(
    local: dict[str, Any], template: str
) -> None:
    made = load_scorer(ScorerConfig(**local, sequences=4, template=template, votes=2))
    assert isinstance(made, GenerativeScorer)
    (calm,) = made.score_detailed([(P, STEPS[:1])])
    assert all(0 < score < 1 for score in calm.scores)
    assert 0 < calm.usage.generated_tokens <= 2 * 8
    made.reset_cache()
    if template != "tips":  # which reads the whole solution before it judges a step
        assert made.score(P, [STEPS[0], ATTACKS[0]])[0] == pytest.approx(calm.scores[0], abs=0.01)
    assert len(made.score_batch([(P, [*STEPS, *ATTACKS]), ("2 + 2?", ["It is 4."])])[0]) == 6
    made.close()


def test_a_chat_template_that_refuses_the_form_is_one_clear_error() -> None:
    class Refusing(ScriptedEngine):
        def chat_ids(self, chat: Sequence[dict[str, str]], add_generation_prompt: bool) -> list[int]:
            raise BackendError("the chat template refuses these messages: no system role")

    with pytest.raises(BackendError, match="no system role"):
        scorer(Refusing("A."), "genprm")
