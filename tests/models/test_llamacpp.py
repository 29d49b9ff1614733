"""The llama.cpp backend continues an assistant's message exactly where it stands."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwise.config import ModelConfig
from stepwise.errors import BackendError, ConfigError
from stepwise.lab.problems import generate
from stepwise.models import load_backend
from stepwise.models.base import Backend, Completion, Request
from stepwise.models.engine import Generation, GenerationJob
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.prompt import SolvePrompt
from stepwise.steps import split_steps
from stepwise.types import Problem, Step

PROBLEM = Problem("p", "Mia has 12 apples and buys 5 more. How many?")


@pytest.fixture
def backend(tiny_gguf_path: Path) -> Iterator[LlamaCppBackend]:
    with load_backend(f"llamacpp/{tiny_gguf_path}", context=512, sequences=16) as made:
        assert isinstance(made, LlamaCppBackend)
        yield made


def step_of(made: Completion, author: str = "weak") -> Step:
    return Step(made.text, author, usage=made.usage, token_ids=made.token_ids)


Script = Callable[[list[str | int]], list[GenerationJob]]


@pytest.fixture
def scripted(backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Make the model write given pieces (text, each tokenized alone, or ids), whatever its weights want."""
    jobs: list[GenerationJob] = []

    def script(pieces: list[str | int]) -> list[GenerationJob]:
        ids = [i for p in pieces for i in ([p] if isinstance(p, int) else backend.engine.tokenize(p))]
        from stepwise.models.engine import sampling

        def draw(self: Any, logits: Any) -> tuple[list[int], list[float], list[float]]:
            position = self.__dict__.setdefault("at", self._start)
            self.at = position + 1
            zeros = [0.0] * len(logits)
            return [ids[min(position, len(ids) - 1)]] * len(logits), zeros, zeros

        init = sampling.Draws.__init__

        def begin(self: Any, *settings: Any) -> None:
            init(self, *settings)
            self._start = settings[-1][0]

        monkeypatch.setattr(sampling.Draws, "__call__", draw)
        monkeypatch.setattr(sampling.Draws, "__init__", begin)
        generate_jobs = backend.engine.generate

        def record(given: list[GenerationJob]) -> list[Generation]:
            jobs.extend(given)
            return generate_jobs(given)

        monkeypatch.setattr(backend.engine, "generate", record)
        return jobs

    return script


def test_it_is_a_backend_with_capabilities_found_by_a_probe(backend: LlamaCppBackend) -> None:
    assert isinstance(backend, Backend)
    assert dataclasses.asdict(backend.capabilities) == dict.fromkeys(
        ("prefill", "logprobs", "grammar", "batch", "adapters", "token_ids", "entropy", "states"), True
    )
    assert backend.parameters == backend.engine.parameters > 100_000


def test_the_prefix_is_the_prompt_then_each_step_with_its_blank_line_and_nothing_else(backend: LlamaCppBackend) -> None:
    steps = (Step("Mia starts with 12.", "strong"), Step("12 + 5 = 17", "intervention"))
    ids = backend.prefix_ids(Request(PROBLEM, steps))
    assert "blank line between steps" in backend.prompt.system  # of a model that is not the lab's
    prompt = backend.engine.prompt_ids(backend.prompt, PROBLEM.question)
    assert ids[: len(prompt)] == prompt
    assert backend.engine.detokenize(ids[len(prompt) :]) == b"Mia starts with 12.\n\n12 + 5 = 17\n\n"
    assert ids.count(backend.engine.token_id("<|im_start|>")) == 3  # system, user and assistant, no new turn


def test_what_it_sampled_itself_is_continued_with_the_very_ids(backend: LlamaCppBackend, scripted: Script) -> None:
    engine = backend.engine
    odd = [engine.tokenize(c)[0] for c in "12+5"] + engine.tokenize("=17.") + engine.tokenize("\n") * 2
    scripted(list(odd))
    made = backend.continue_solutions([Request(PROBLEM)])[0]
    assert (made.text, made.finish, made.token_ids) == ("12+5=17.", "step", tuple(odd))
    assert made.token_ids != tuple(engine.step_ids(made.text))
    own = backend.prefix_ids(Request(PROBLEM, (step_of(made),)))
    assert own[-len(odd) :] == odd
    other = dataclasses.replace(step_of(made), usage=dataclasses.replace(made.usage, model="another"))
    assert backend.prefix_ids(Request(PROBLEM, (other,)))[-len(engine.step_ids(made.text)) :] == engine.step_ids(
        made.text
    )
    edited = dataclasses.replace(step_of(made), text="12+5=18.")
    assert backend.prefix_ids(Request(PROBLEM, (edited,)))[-3:] == engine.step_ids("12+5=18.")[-3:]


@pytest.mark.parametrize(
    ("pieces", "text", "finish"),
    [
        (["a = 1", ".", "\n\n"], "a = 1.", "step"),
        (["\n\n", "a = 1.\n\n"], "a = 1.", "step"),
        (["So \\boxed{", "17}", ".", "\n"], "So \\boxed{17}.", "answer"),
        (["So \\boxed{17}", "<end>"], "So \\boxed{17}", "answer"),
        (["So 17", "<end>"], "So 17", "eos"),
        (["<end>"], "", "eos"),
        (["x"], "x" * 60, "repeat"),
        (["\n"], "", "repeat"),
    ],
)
def test_each_way_to_end_is_told_apart(
    backend: LlamaCppBackend, scripted: Script, pieces: list[str], text: str, finish: str
) -> None:
    end = backend.engine.token_id("<|im_end|>")
    scripted([end if piece == "<end>" else piece for piece in pieces])
    made = backend.continue_solutions([Request(PROBLEM, max_tokens=80)])[0]
    assert made.finish == finish
    assert made.text.startswith(text)
    assert made.text.strip("x") == text.strip("x")
    assert made.usage.generated_tokens == len(made.token_ids) == len(made.logprobs or ())


def test_a_step_without_its_blank_line_gets_one_before_it_is_continued(
    backend: LlamaCppBackend, scripted: Script
) -> None:
    end = backend.engine.token_id("<|im_end|>")
    for tail, missing in ((["17", end], b"\n\n"), (["17\n", end], b"\n"), (["17\n\n"], b"")):
        scripted(["It is ", *tail])
        made = backend.continue_solutions([Request(PROBLEM, max_tokens=30)])[0]
        ids = backend.prefix_ids(Request(PROBLEM, (step_of(made),)))
        assert backend.engine.detokenize(ids).endswith(b"It is 17\n\n")
        assert end not in ids[-6:]
        assert backend.engine.detokenize(made.token_ids) + missing == b"It is 17\n\n"


def test_a_solution_runs_over_blank_lines_to_its_answer(backend: LlamaCppBackend, scripted: Script) -> None:
    scripted(["a\n\n", "b\n\n", "\\boxed{3}\n\n", "never"])
    made = backend.continue_solutions([Request(PROBLEM, stop="solution", max_tokens=60)])[0]
    assert (made.text, made.finish) == ("a\n\nb\n\n\\boxed{3}", "answer")


def test_a_token_that_runs_past_the_blank_line_is_cut_and_ids_agree_with_the_text(
    backend: LlamaCppBackend, scripted: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = backend.engine
    tokens = engine.tokenize("17")
    strange = engine.tokenize("z")[0]
    real = engine.vocabulary.token_bytes
    monkeypatch.setattr(engine.vocabulary, "token_bytes", lambda t: b".\n\nThe" if t == strange else real(t))
    scripted([*tokens, strange])
    made = backend.continue_solutions([Request(PROBLEM)])[0]
    assert (made.text, made.finish, made.logprobs) == ("17.", "step", None)
    assert made.token_ids == (*tokens, *engine.tokenize(".\n\n"))


def test_length_is_said_and_usage_adds_up(backend: LlamaCppBackend) -> None:
    request = Request(PROBLEM, n=3, max_tokens=7, temperature=1.0, seed=8)
    made = backend.continue_solutions([request, Request(Problem("q", "2 + 2 ="), max_tokens=5)])
    assert [(one.request, one.sample) for one in made] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    prompt = len(backend.prefix_ids(request))
    assert [one.usage.evaluated_tokens for one in made[:3]] == [prompt, 0, 0]
    for one in made:
        assert (one.usage.calls, one.usage.model) == (1, backend.name)
        assert one.usage.generated_tokens == len(one.token_ids) == len(one.logprobs or ())
    assert made[0].usage.prompt_tokens == prompt
    assert made[0].finish in ("length", "eos", "step")


def test_one_request_that_is_too_long_does_not_spoil_the_others(backend: LlamaCppBackend) -> None:
    long = Request(Problem("long", "very " * 2000 + "long"), n=2)
    made = backend.continue_solutions([Request(PROBLEM, max_tokens=3), long, Request(PROBLEM, max_tokens=3)])
    assert [one.finish == "error" for one in made] == [False, True, True, False]
    assert "context of 512" in made[1].error
    assert backend.continue_solutions([]) == []


def test_a_model_without_a_template_says_so_for_each_request(backend: LlamaCppBackend) -> None:
    vocabulary = backend.engine.vocabulary
    vocabulary.template = None
    bare = LlamaCppBackend(backend.engine)
    assert not bare.capabilities.prefill
    made = bare.continue_solutions([Request(PROBLEM, n=2)])
    assert [one.finish for one in made] == ["error", "error"]
    assert "chat template" in made[0].error


def test_fifty_problems_in_lockstep_evaluate_hardly_more_than_their_distinct_tokens(tiny_gguf_path: Path) -> None:
    """As routing does it: drafts that are kept, drafts that another model's step replaces, and drafts drawn again."""
    with load_backend(f"llamacpp/{tiny_gguf_path}", context=512, sequences=64) as made:
        assert isinstance(made, LlamaCppBackend)
        prefixes: list[tuple[Step, ...]] = [()] * 50
        problems = [item.problem for item in generate("train", 50)]
        for turn in range(6):
            requests = [
                Request(p, prefix, max_tokens=14, temperature=1.0, seed=turn * 100 + i)
                for i, (p, prefix) in enumerate(zip(problems, prefixes, strict=True))
            ]
            drafts = made.continue_solutions(requests)
            for i, draft in enumerate(drafts):
                replaced = Step(f"Step {turn} of {i} says {i * 7 + turn}.", "strong")
                prefixes[i] += (replaced if (i + turn) % 3 == 0 else step_of(draft),)
        counters = made.engine.counters
    spent = counters.evaluated_tokens / counters.distinct_tokens
    assert 1.0 <= spent <= 1.05


def test_concurrent_callers_get_what_they_get_alone(backend: LlamaCppBackend) -> None:
    requests = [Request(Problem(str(i), f"What is {i} + {i}?"), max_tokens=10, temperature=0.0) for i in range(8)]
    alone = [backend.continue_solutions([request])[0].text for request in requests]
    together: dict[int, str] = {}

    def call(i: int) -> None:
        together[i] = backend.continue_solutions([requests[i]])[0].text

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(together[i] == alone[i] for i in range(8)) >= 7  # a tie in half precision may fall the other way


def test_load_backend_takes_a_string_a_config_and_a_backend(tiny_gguf_path: Path) -> None:
    config = ModelConfig(
        model=f"llamacpp/{tiny_gguf_path}", context=64, sequences=2, kv_type="f32", flash_attention=False
    )
    prompt = SolvePrompt(system="Think.")
    with load_backend(config, prompt=prompt, context=128) as made:
        assert isinstance(made, LlamaCppBackend)
        assert (made.engine.context, made.engine.sequences, made.prompt) == (128, 2, prompt)
        assert load_backend(made) is made
        with pytest.raises(ConfigError, match="context"):
            load_backend(made, context=64)
    with pytest.raises(BackendError, match="closed"):
        made.continue_solutions([Request(PROBLEM)])


def test_what_cannot_be_loaded_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no such file"):
        load_backend(f"llamacpp/{tmp_path / 'missing.gguf'}")


def test_under_the_other_splitter_it_stops_where_a_reader_splits_and_goes_on_from_its_own_ids(
    backend: LlamaCppBackend, scripted: Script
) -> None:
    other = LlamaCppBackend(backend.engine, SolvePrompt(splitter="calculations"))
    pieces = ["We add:", "\n", "\n", "1. 1 + 1 = 2", "\n", "2. 2 + 2 = 4", "\n\n", "So"]
    steps = list[Step]()
    for start in (0, 5, 7):
        jobs = scripted(pieces[start:])  # type: ignore[arg-type]
        (made,) = other.continue_solutions([Request(PROBLEM, tuple(steps), max_tokens=40)])
        assert list(jobs[-1].ids[-sum(len(step.token_ids) for step in steps) :] if steps else []) == [
            token for step in steps for token in step.token_ids
        ]
        if start < 7:
            steps.append(step_of(made))
    assert [step.text for step in steps] == split_steps("".join(pieces), "calculations")[:2]
