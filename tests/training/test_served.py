"""Rollouts from a server that answers as vLLM documents it: the lab's model in 32 bits stands behind the stand-in."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import Config
from stepwise.errors import BackendError, ConfigError
from tests.scorers.stand_in import Answer, Answers, StandIn, serving
from tests.training import rl_world

pytest.importorskip("peft")
pytest.importorskip("llama_cpp")
CONTEXT = 512
TEXT = {"Content-Type": "text/plain"}
KNOWN = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "seed", "logprobs", "return_token_ids",
         "min_p", "repetition_penalty", "skip_special_tokens"}  # fmt: skip


class Vllm:
    """A server with one model, "base", and the adapters that it is told to load; `shift` falsifies what it tells."""

    def __init__(self, cfg: Config, folder: Path) -> None:
        from stepwise.models.llamacpp import LlamaCppBackend
        from stepwise.models.shared import load_engine

        self.backend = LlamaCppBackend(load_engine(cfg.models.weak))
        self.adapters: dict[str, Path | None] = {"base": None}
        self.base, self.folder, self.shift, self.loaded = cfg.models.weak.train_from or "", folder, 0.0, list[str]()
        self._lock = threading.Lock()

    def __call__(self, path: str, body: dict[str, Any]) -> Answer:
        from stepwise.models.engine import GenerationJob
        from stepwise.training.export.gguf import export_lora_gguf

        if path == "/v1/load_lora_adapter":
            name = body["lora_name"]
            self.adapters[name] = export_lora_gguf(body["lora_path"], self.folder / f"{name}.gguf", self.base)
            self.loaded.append(name)
            return Answer(f"Success: LoRA adapter '{name}' added successfully.".encode(), 200, TEXT)
        if path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
            return Answer(b"Success: LoRA adapter removed successfully.", 200, TEXT)
        if path != "/v1/completions" or body["model"] not in self.adapters or set(body) - KNOWN:
            return Answer({"error": {"message": f"no {path} {sorted(set(body) - KNOWN)}"}}, 404)
        if len(body["prompt"]) + body["max_tokens"] > CONTEXT:
            told = f"max_tokens={body['max_tokens']} cannot be greater than max_model_len"
            return Answer({"error": {"message": told, "type": "BadRequestError"}}, 400)
        settings = {name: body[name] for name in ("n", "max_tokens", "temperature", "top_p", "top_k", "seed")}
        with self._lock:
            self.backend.set_adapter(self.adapters[body["model"]], check_base=False)
            job = GenerationJob(tuple(body["prompt"]), stop="none", **settings)
            made = self.backend.engine.generate([job])
        choices = [
            {"index": i, "text": "", "finish_reason": "stop" if each.finish == "eos" else "length", "stop_reason": None,
             "token_ids": list(each.ids), "prompt_token_ids": body["prompt"] if not i else None,
             "logprobs": {"tokens": ["?"] * len(each.ids), "text_offset": [0] * len(each.ids), "top_logprobs": None,
                          "token_logprobs": [value + self.shift for value in each.logprobs]}}
            for i, each in enumerate(made)
        ]  # fmt: skip
        written = sum(len(each.ids) for each in made)
        counts = {"prompt_tokens": len(body["prompt"]), "completion_tokens": written}
        return Answer({"id": "cmpl-1", "object": "text_completion", "choices": choices, "usage": counts})


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return rl_world.config(tmp_path_factory.mktemp("exact"), "rl.correction=truncate", "rl.steps=2")


@pytest.fixture
def vllm(exact: Config, tmp_path: Path) -> Iterator[tuple[Vllm, StandIn]]:
    model = Vllm(exact, tmp_path)
    with serving(model) as server:
        yield model, server
    model.backend.close()


def served(cfg: Config, url: str, **more: Any) -> Config:
    update = {"model": "openai/base", "api_base": f"{url}/v1", "context": CONTEXT, **more}
    weak = cfg.models.weak.model_copy(update=update)
    return cfg.model_copy(update={"models": cfg.models.model_copy(update={"weak": weak})})


def test_a_batch_is_what_the_engine_here_samples_and_bears_the_correction(
    exact: Config, vllm: tuple[Vllm, StandIn]
) -> None:
    from stepwise.training import losses
    from stepwise.training.lora import load_trainee
    from stepwise.training.policy import forward
    from stepwise.training.relay import rows_of
    from stepwise.training.sampler import Sampler
    from stepwise.training.served import ServedSampler

    model, server = vllm
    problems, trainee = rl_world.problems(2), load_trainee(exact)
    with Sampler(exact) as local:
        expected, _ = local.sample(problems, local.prompts(problems, trainee), step=1)
    with ServedSampler(served(exact, server.url)) as sampler:
        prompts = sampler.prompts(problems, trainee)
        made, _ = sampler.sample(problems, prompts, step=1)
        assert sampler.ledger.usage("weak").calls == 4
        for here, there in zip(expected, made, strict=True):
            names = ("id", "text", "steps", "spans", "token_ids", "finish")
            assert {n: getattr(there, n) for n in names} == {n: getattr(here, n) for n in names}
            assert there.logprobs == pytest.approx(here.logprobs, abs=1e-3)
        model.shift = -1.0
        rare, _ = sampler.sample(problems, prompts, step=1)
    for rollouts, ratio in ((made, 1.0), (rare, 2.0)):  # e, truncated at the cap
        rows, _ = rows_of(rollouts, prompts)
        logprobs, _ = forward(trainee, rows, exact)
        for row, line in zip(rows, logprobs, strict=True):
            weights = losses.importance_weights(line, row.sampler, "truncate", exact.rl.correction_cap)
            assert weights.tolist() == pytest.approx([ratio] * len(line), abs=0.02)
    assert len(made) == 4
    assert all(math.isfinite(value) for each in made for value in each.logprobs)


@pytest.mark.slow
def test_a_run_has_the_server_load_the_adapter_before_every_step(
    exact: Config, vllm: tuple[Vllm, StandIn], tmp_path: Path
) -> None:
    from stepwise.training.reinforce import grpo

    model, server = vllm
    grpo(rl_world.problems(4), served(exact, server.url), tmp_path / "out", locate=rl_world.locate)
    rows = rl_world.untimed(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert len(set(model.loaded)) >= 2  # the look before the first step, too
    assert set(model.adapters) == {"base", model.loaded[-1]}
    assert all(row["mismatch"] is None or row["mismatch"] < 1e-2 for row in rows)  # each step's own adapter
    assert {body["model"] for path, body, _ in server.requests if path == "/v1/completions"} == set(model.loaded)


def test_no_more_is_asked_for_than_the_context_of_the_server_has_room_for(
    exact: Config, vllm: tuple[Vllm, StandIn]
) -> None:
    from stepwise.training.lora import load_trainee
    from stepwise.training.served import ServedSampler

    _, server = vllm
    cfg = served(exact.model_copy(update={"rl": exact.rl.model_copy(update={"max_tokens": 4 * CONTEXT})}), server.url)
    problems = rl_world.problems(1)
    with ServedSampler(cfg) as sampler:
        prompts = sampler.prompts(problems, load_trainee(exact))
        assert len(sampler.sample(problems, prompts, step=1)[0]) == cfg.rl.group
    asked = [body for path, body, _ in server.requests if path == "/v1/completions"]
    assert {body["max_tokens"] + len(body["prompt"]) for body in asked} == {CONTEXT}


@pytest.mark.parametrize(
    ("update", "overrides", "said"),
    [
        ({}, {"correction": "none"}, 'set rl.correction = "truncate" or "mask"'),
        ({"context": None}, {}, "set models.weak.context"),
        ({"api_base": None}, {}, "give its api_base"),
        ({"train_from": None}, {}, "train_from"),
        ({}, {"credit": {"scheme": "vineppo"}}, "rl.credit.scheme needs values of a local model"),
    ],
)
def test_what_a_server_cannot_be_asked_is_said_at_once(
    exact: Config, update: dict[str, Any], overrides: dict[str, Any], said: str
) -> None:
    from stepwise.training.served import ServedSampler

    cfg = served(exact, "http://127.0.0.1:9", **update)
    cfg = cfg.model_copy(update={"rl": cfg.rl.model_copy(update=overrides)})
    with pytest.raises(ConfigError, match=said):
        ServedSampler(cfg)


def answering(completion: Any) -> Answers:
    def answers(path: str, body: dict[str, Any]) -> Answer:
        choices = [completion] * (body.get("n", 1) - ("fewer" in str(completion)))
        return Answer({"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 2}})

    return answers


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"text": "So 4.", "logprobs": None, "finish_reason": "stop"}, "no token ids with log-probabilities"),
        ({"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}, "no token ids"),
        (
            {"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "fewer"},
            "1 samples came for n = 2",
        ),
    ],
)
def test_a_server_that_tells_no_ids_is_told_which_does(exact: Config, choice: Any, said: str) -> None:
    from stepwise.training.served import ServedSampler

    problems = rl_world.problems(1)
    with serving(answering(choice)) as server, ServedSampler(served(exact, server.url)) as sampler:
        prompts = {problems[0].id: (1, 2, 3)}
        with pytest.raises(BackendError, match=f"{said}.*vLLM gives them from 0.10.2 on"):
            sampler.sample(problems, prompts, step=1)
        spent = sampler.ledger.usage("weak")
        assert spent.calls > 0  # paid all the same
        assert (spent.prompt_tokens, spent.generated_tokens) == (3 * spent.calls, 2 * spent.calls)


def test_a_server_that_loads_no_adapter_is_named_with_what_it_takes(exact: Config) -> None:
    from stepwise.training.lora import load_trainee
    from stepwise.training.served import ServedSampler

    with (
        serving(lambda path, body: Answer({"detail": "Not Found"}, 404)) as server,
        ServedSampler(served(exact, server.url)) as sampler,
        pytest.raises(BackendError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
    ):
        sampler.attach(load_trainee(exact))


def test_llama_server_tells_ids_with_its_log_probabilities() -> None:
    from stepwise.training.served import _drawn

    told = {"content": [{"id": 7, "token": "a", "logprob": -0.5}, {"id": 9, "token": "b", "logprob": -0.25}]}
    assert _drawn({"logprobs": told, "finish_reason": "length"}) == ((7, 9), (-0.5, -0.25), "length")
