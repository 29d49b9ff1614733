"""The teacher of distillation: what it reads, in how many calls, and which models cannot be one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stepwise.config import Config
from stepwise.errors import BackendError, ConfigError
from stepwise.models.engine.jobs import Logits
from stepwise.training.policy import check_teacher, read_logprobs
from stepwise.training.rollouts import read_rollouts
from stepwise.types import Problem
from tests.training import rl_world
from tests.training.rl_world import problems, untimed
from tests.training.test_labels import GROUP, labeller

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

TABLE = np.random.default_rng(0).normal(0, 2, (256, 256)).astype(np.float32)


class Reader:
    """An engine whose next token depends on the last one alone; one token is one byte."""

    name, parameters, context = "reader", 50, 100
    vocabulary = SimpleNamespace(size=256, text=chr)

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, sequences: Any, positions: Any, token_ids: Any) -> list[Logits]:
        self.calls.append(sum(map(len, positions)))
        return [
            Logits(np.empty((0, 256), np.float32), 0, "too long")
            if len(ids) > self.context
            else Logits(TABLE[[ids[p] for p in places]][:, list(token_ids)], len(places))
            for ids, places in zip(sequences, positions, strict=True)
        ]

    def prompt_ids(self, prompt: Any, question: str) -> list[int]:
        return list(question.encode())


def expected(ids: tuple[int, ...], start: int) -> list[float]:
    rows = TABLE.astype(np.float64)
    return [
        float(rows[a, b] - np.log(np.exp(rows[a]).sum())) for a, b in zip(ids[start - 1 :], ids[start:], strict=False)
    ]


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
def test_every_token_is_read_after_all_before_it_however_few_fit_into_a_call(most: int) -> None:
    reader = Reader()
    pairs = [((1, 2), (3, 4, 5, 6)), ((9,), (8,)), ((1,) * 99, (2, 3)), ((1, 2), tuple(range(7)))]
    found, evaluated = read_logprobs(reader, pairs, 256 * most)  # type: ignore[arg-type]
    for (prompt, ids), values in zip(pairs, found, strict=True):
        if len(prompt) > 90:
            assert values == "too long"
        else:
            np.testing.assert_allclose(values, expected((*prompt, *ids), len(prompt)), atol=1e-5)
    assert max(reader.calls) <= most
    assert sum(reader.calls) == 14
    assert evaluated == 12


def test_gaps_are_taken_of_every_rollout_with_tokens_and_counted_as_cost() -> None:
    reader = Reader()
    broken = dataclasses.replace(GROUP[2], finish="error", id="broken")
    run = labeller("distill", teacher=reader)
    known, usage, size = run.label([*GROUP, broken])
    for row, what in zip(GROUP, known, strict=False):
        read = expected((*run.prompts["p"], *row.token_ids), len(run.prompts["p"]))
        np.testing.assert_allclose(what.teacher, np.array(read) + 0.5, atol=1e-5)
    assert GROUP[2].reward is None
    assert known[4].teacher is None
    tokens = sum(len(row.token_ids) for row in GROUP)
    assert (usage.generated_tokens, usage.evaluated_tokens, size) == (0, tokens, 50)
    reader.context = 5
    with pytest.raises(BackendError, match="reader failed for 4 of 4 rollouts, first: too long"):
        run.label(GROUP)


def test_a_teacher_with_other_tokens_prompts_or_too_little_room_is_refused() -> None:
    cfg = rl_world.config(None, "rl.credit.scheme=distill", "rl.max_tokens=60")
    asked = [Problem("p", "2 + 2?", "4")]
    prompts = {"p": tuple(b"2 + 2?")}

    def check(**changed: Any) -> None:
        engine: Any = SimpleNamespace(
            **{"vocabulary": Reader.vocabulary, "context": 66, "prompt_ids": Reader().prompt_ids, **changed}
        )
        check_teacher(engine, Reader(), asked, prompts, cfg)  # type: ignore[arg-type]

    check()
    check(vocabulary=SimpleNamespace(size=300, text=chr))  # padding at the end
    with pytest.raises(ConfigError, match=r"models\.strong\.model is .*lab-strong, whose token 65 is 'B', but 'A' in"):
        check(vocabulary=SimpleNamespace(size=256, text=lambda token: chr(token + (token == 65))))
    with pytest.raises(ConfigError, match=r"writes the prompt of problem 'p' as 2 tokens, but .* as 6, or others"):
        check(prompt_ids=lambda prompt, question: [1, 2])
    with pytest.raises(ConfigError, match=r"models\.strong\.context is 65, but .* may have 66 tokens; raise it"):
        check(context=65)


def with_strong(cfg: Config, model: str) -> Config:
    strong = cfg.models.strong.model_copy(update={"model": model})
    return cfg.model_copy(update={"models": cfg.models.model_copy(update={"strong": strong})})


def test_models_that_cannot_teach_are_refused_before_anything_is_sampled(tiny_gguf_path: Path, tmp_path: Path) -> None:
    from stepwise.training.reinforce import grpo

    cfg = rl_world.config(None, "rl.credit.scheme=distill")
    with pytest.raises(ConfigError, match=r'models\.strong\.model is "openai/gpt", but .*"distill" needs'):
        grpo(problems(1), with_strong(cfg, "openai/gpt"), tmp_path / "far")
    with pytest.raises(ConfigError, match=r"whose token \d+ is .* but .* in models\.weak\.model.*same family"):
        grpo(problems(1), with_strong(cfg, f"llamacpp/{tiny_gguf_path}"), tmp_path / "other")
    assert not (tmp_path / "other" / "rollouts").exists()
    with pytest.raises(ConfigError, match=r"locate is given, but .* asks teacher"):
        grpo(problems(1), cfg, tmp_path / "judged", locate=rl_world.locate)


def test_a_run_credits_every_token_by_the_teacher_whether_there_is_an_answer_or_not(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from stepwise import lab
    from stepwise.training.lora import load_trainee
    from stepwise.training.reinforce import grpo
    from stepwise.training.rendering import prompt_ids

    cfg = rl_world.config(None, "rl.credit.scheme=distill", "rl.steps=2", "rl.max_tokens=24")  # no answer in 24 tokens
    adapter = grpo(problems(2), cfg, tmp_path / "out")
    rows = untimed(tmp_path / "out" / "metrics.jsonl")
    for row in rows:
        assert (row["reward"], row["masked"], row["kept_groups"], row["groups"]) == (None, 0, 2, 2)
        assert row["trained_tokens"] == row["generated_tokens"] > 0
        assert row["extra_tokens"] > row["generated_tokens"]
        assert row["grad_norm"] > 0
    model = AutoModelForCausalLM.from_pretrained(lab.model_path("lab-strong", "safetensors"), dtype=torch.float32)
    tokenizer = load_trainee(cfg).tokenizer
    for made in read_rollouts(tmp_path / "out" / "rollouts" / "step-00001.jsonl"):
        prompt = prompt_ids(tokenizer, cfg.prompt, made.question)
        ids = torch.tensor([[*prompt, *made.token_ids]])
        with torch.no_grad():
            told = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
        gaps = np.clip(told.numpy()[len(prompt) - 1 :] - np.array(made.logprobs), -5, 5)
        means = [gaps[start:stop].mean() for start, stop in made.spans]
        np.testing.assert_allclose(made.step_advantages, means, atol=0.1)  # the teacher's GGUF has 8 bits
    card = json.loads((adapter / "card.json").read_text())
    assert card["config"]["models"]["strong"]["model"] == cfg.models.strong.model
