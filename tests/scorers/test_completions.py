"""Label tokens over HTTP: the scores of the engine, from a server of text completions on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import ScorerConfig
from stepwise.errors import BackendError, ConfigError, ScorerError
from stepwise.models.http import Server
from stepwise.models.scorers import LabelTokenScorer, load_scorer
from stepwise.models.scorers.label_token import ServedLabelScorer
from stepwise.prompt import SolvePrompt
from stepwise.types import Problem
from tests.scorers.stand_in import Answer, Answers, StandIn, serving

P = Problem("p3", "Mia has 3 apples and buys 9 more. How many apples?", "12")
STEPS = ["Mia starts with 3 apples.", "After buying 9, there are 3 + 9 = 12 apples.", "So it is \\boxed{12}."]
IDS = {"<|score|>": [7], "<|good|>": [8], "<|bad|>": [9], "": []}


def on_llama(path: Path) -> Answers:
    """What llama_cpp.server (--logits_all true) does with a request: one model, one request at a time."""
    import llama_cpp

    llama = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, logits_all=True, verbose=False)
    lock = threading.Lock()

    def answer(where: str, body: dict[str, Any]) -> Answer:
        if where == "/extras/tokenize":
            return Answer({"tokens": llama.tokenize(body["input"].encode(), special=True)})
        if where != "/v1/completions":
            return Answer({"detail": "Not Found"}, 404)
        keys = ("prompt", "max_tokens", "temperature", "logprobs", "logit_bias")
        with lock:
            made: Any = llama.create_completion(**{key: body[key] for key in keys})
        told = made["choices"][0]["logprobs"]
        told["token_logprobs"] = [float(value) for value in told["token_logprobs"]]
        told["top_logprobs"] = None
        return Answer(made)

    return answer


@pytest.fixture(scope="module")
def llama_server(tiny_gguf_path: Path) -> Iterator[StandIn]:
    pytest.importorskip("llama_cpp")
    with serving(on_llama(tiny_gguf_path)) as server:
        yield server


@pytest.fixture(scope="module")
def in_process(tiny_gguf_path: Path) -> Iterator[LabelTokenScorer]:
    config = ScorerConfig(
        model=f"llamacpp/{tiny_gguf_path}", context=512, sequences=2, kv_type="f32", flash_attention=False
    )
    made = load_scorer(config)
    assert isinstance(made, LabelTokenScorer)
    yield made
    made.close()


def test_scores_over_http_are_those_of_the_engine(llama_server: StandIn, in_process: LabelTokenScorer) -> None:
    made = load_scorer(ScorerConfig(model="openai/tiny", api_base=llama_server.url + "/v1", sequences=2))
    items = [(P, STEPS), (P, STEPS[:1]), ("What is 2 + 2?", ["It is 4."])]
    found, expected = made.score_batch(items), in_process.score_batch(items)
    assert len({round(p, 4) for row in expected for p in row}) == 4  # four different prefixes, four scores
    for row, right in zip(found, expected, strict=True):
        assert row == pytest.approx(right, abs=2e-3)


def test_each_step_costs_two_requests_and_a_known_one_none(llama_server: StandIn) -> None:
    made = load_scorer(ScorerConfig(model="openai/tiny", api_base=llama_server.url, sequences=1))
    assert made.incremental is False
    before = len(llama_server.requests)
    made.score(P, STEPS[:2])
    assert len(llama_server.requests) - before == made.usage.calls == 4
    assert made.usage.generated_tokens == 4
    made.score(P, STEPS[:2])
    assert made.usage.calls == 4
    made.score(P, STEPS)
    assert made.usage.calls == 6


def test_a_text_that_is_not_one_token_of_the_server_is_no_label(llama_server: StandIn) -> None:
    with pytest.raises(ConfigError, match=r"'<\|maybe\|>' is \d+ tokens of this model's vocabulary; .*one token each"):
        load_scorer(ScorerConfig(model="openai/tiny", api_base=llama_server.url, good="<|maybe|>"))


def test_a_special_token_typed_into_a_text_is_refused(llama_server: StandIn) -> None:
    made = load_scorer(ScorerConfig(model="openai/tiny", api_base=llama_server.url))
    before = len(llama_server.requests)
    with pytest.raises(ScorerError, match=r"contains the token '<\|good\|>'"):
        made.score(P, ["The answer is <|good|>"])
    with pytest.raises(ScorerError, match=r"contains the token '<\|score\|>'"):
        made.score("Is <|score|> a word?", ["Yes."])
    assert len(llama_server.requests) == before


def test_what_is_sent_is_what_the_template_of_the_model_writes(
    in_process: LabelTokenScorer, llama_server: StandIn
) -> None:
    for prompt in (SolvePrompt(), SolvePrompt(system="Be exact.", user="Solve: {question}")):
        engine: Any = in_process.engine
        load_scorer(ScorerConfig(model="openai/tiny", api_base=llama_server.url), prompt=prompt).score("2 + 2?", ["4."])
        ids = engine.tokenize(llama_server.requests[-1][1]["prompt"], special=True)
        assert ids == [*engine.prompt_ids(prompt, "2 + 2?"), *engine.step_ids("4."), engine.token_id("<|score|>")]


def scripted(logprobs: Any, usage: Any = None) -> Answers:
    """A server whose log-probability is a function of the forced id."""

    def answer(path: str, body: dict[str, Any]) -> Answer:
        if path == "/tokenize":
            return Answer({"tokens": IDS.get(body["prompt"], [1, 2])})
        label = int(next(iter(body["logit_bias"])))
        counted = {"prompt_tokens": 5, "completion_tokens": 1} if usage is None else usage
        return Answer({"choices": [{"logprobs": logprobs(label)}], "usage": counted})

    return answer


def reader_scorer(stand_in: StandIn) -> ServedLabelScorer:
    return ServedLabelScorer(Server(stand_in.url, attempts=2, backoff=0.0), "m", requests=2)


@pytest.mark.parametrize("shape", ["openai", "llama-server"])
def test_both_forms_of_log_probabilities_are_read(shape: str) -> None:
    def told(label: int) -> Any:
        value = {8: -0.5, 9: -1.5}[label]
        return {"token_logprobs": [value]} if shape == "openai" else {"content": [{"token": "", "logprob": value}]}

    with serving(scripted(told)) as stand_in:
        assert reader_scorer(stand_in).score(P, ["a"]) == pytest.approx([1 / (1 + 2.718281828459045**-1)])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (lambda label: {"token_logprobs": [0.0]}, "add up to more than 1: it tells them with the bias applied"),
        (lambda label: {"token_logprobs": [-2.0]}, "gives -2.0 for different labels: it ignores logit_bias"),
        (lambda label: {"token_logprobs": [float("nan")]}, "must be finite and at most 0"),
        (lambda label: {"token_logprobs": [3.0]}, "must be finite and at most 0"),
        (lambda label: {"token_logprobs": [None]}, "gave no log-probability.*--logits_all true"),
        (lambda label: None, "gave no log-probability"),
    ],
)
def test_a_server_that_does_not_tell_raw_log_probabilities_is_an_error(told: Any, message: str) -> None:
    with serving(scripted(told)) as stand_in, pytest.raises(ScorerError, match=f"'m@.*problem 'p3'.*{message}"):
        reader_scorer(stand_in).score(P, ["a"])


def test_one_failing_step_fails_its_solution_only_and_retries_are_counted() -> None:
    fine = scripted(lambda label: {"token_logprobs": [-float(label - 7)]})

    def answer(path: str, body: dict[str, Any]) -> Answer:
        return Answer({}, 500) if "wrong" in body["prompt"] else fine(path, body)

    with serving(answer) as stand_in:
        good, bad = reader_scorer(stand_in).score_detailed([(P, ["a", "b"]), (P, ["a", "wrong"])])
        assert len(good.scores) == 2
        assert good.usage.retries == 0
        assert "HTTP 500" in bad.error
        assert (bad.usage.calls, bad.usage.retries) == (4, 2)


def test_a_server_without_a_tokenizer_is_told_so() -> None:
    message = r"ids of the label tokens cannot be asked for.*tokenize: HTTP 404"
    with serving(lambda path, body: Answer({}, 404)) as stand_in, pytest.raises(BackendError, match=message):
        reader_scorer(stand_in)


@pytest.mark.parametrize("forced", [0.0, -3.0])  # biased, as logprobs_mode processed_logprobs is; no bias at all
def test_where_labels_cannot_be_forced_they_are_read_behind_the_prompt_as_vllm_tells_them(forced: float) -> None:
    sent: list[dict[str, Any]] = []

    def vllm(path: str, body: dict[str, Any]) -> Answer:
        if path == "/tokenize":
            return Answer({"count": 1, "max_model_len": 4096, "tokens": IDS.get(body["prompt"], [1, 2])})
        sent.append(body)
        counted = {"prompt_tokens": 5, "completion_tokens": 1}
        if "prompt_logprobs" not in body:
            told = {"tokens": ["?"], "token_logprobs": [forced], "top_logprobs": [{}], "text_offset": [0]}
            return Answer({"choices": [{"text": "", "logprobs": told}], "usage": counted})
        label = next(text for text in ("<|good|>", "<|bad|>") if body["prompt"].endswith("<|score|>" + text))
        entry = {"logprob": {"<|good|>": -0.5, "<|bad|>": -1.5}[label], "rank": 2, "decoded_token": label}
        rows = [None, {"3": {"logprob": -9.0}}, {str(IDS[label][0]): entry, "4": {"logprob": -0.1}}]
        return Answer({"choices": [{"text": "x", "logprobs": None, "prompt_logprobs": rows}], "usage": counted})

    with serving(vllm) as stand_in:
        scorer = ServedLabelScorer(Server(stand_in.url, attempts=2, backoff=0.0), "m", requests=1)
        right = pytest.approx(1 / (1 + 2.718281828459045**-1))
        assert scorer.score(P, ["a", "b"]) == [right, right]
        assert len(sent) == 6  # forced and read for the first step, then only read
        assert scorer.score(P, ["c"]) == [right]
        assert len(sent) == scorer.usage.calls == 8
