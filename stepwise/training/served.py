"""Rollouts from a server: `models.weak` of reinforcement learning behind a completions API that takes token ids and
tells those that it sampled, with their log-probabilities (vLLM; llama-server for single batches).

1. Ids go out and come back, so that no text is tokenized twice; a prompt is that of the trainer's own tokenizer.
2. Before every step the adapter in training is saved and loaded by the server under a new name, as vLLM does it
   (/v1/load_lora_adapter): the server must see the directory, and was started with --enable-lora,
   --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.
3. Server and trainer are not the same program: the server's log-probabilities are those of the behaviour policy, and
   the importance correction of [rl] is required.
4. What runs on behind the answer is cut off: where it ends follows from the tokens before it alone.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from stepwise.config import Config
from stepwise.credit import load_credit
from stepwise.errors import BackendError, ConfigError, redact
from stepwise.models.api import SENDING
from stepwise.models.base import Capabilities, Completion, Generator, Request, first_of
from stepwise.models.budget import Ledger
from stepwise.models.driver import outside
from stepwise.models.engine.stopping import StopRule
from stepwise.models.failures import failure_of
from stepwise.models.http import CallFailed, Server
from stepwise.models.wrappers import Wrappers
from stepwise.prompt import SolvePrompt
from stepwise.steps import separated
from stepwise.training.adapters import base_directory
from stepwise.training.lora import Trainee, load_tokenizer
from stepwise.training.rendering import prompt_ids, text_ids
from stepwise.training.rollouts import Hints
from stepwise.training.sampler import Sampler
from stepwise.types import Failure, Finish, Problem, Usage

_PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": False}  # no defaults of the server's own


class TokenServer(Generator):
    """A model behind /v1/completions, token ids in and out; `served` is the name that it is asked by.

    Requests must have `token_ids`. Raises ConfigError for a model without an address.

    Example:
        model = TokenServer(config, tokenizer)
        completion = await model.generate(sw.Request(problem, stop="solution", token_ids=ids, n=8))
    """

    remote = True
    capabilities = Capabilities(logprobs=True, token_ids=True, batch=True)

    def __init__(self, cfg: Config, tokenizer: Any) -> None:
        weak = cfg.models.weak
        if weak.api_base is None:
            raise ConfigError(f"models.weak is {weak.model}; to sample from a server, give its api_base")
        self.served = weak.model.partition("/")[2]
        self.name = f"{weak.model}@{weak.api_base.rstrip('/').removesuffix('/v1')}"
        self.prompt: SolvePrompt = cfg.prompt
        self.prompt_hash, self._tokenizer, self._context = cfg.prompt.hash, tokenizer, weak.context
        self.server = Server(weak.api_base, key=weak.api_key(), timeout=weak.timeout)
        self._pool = ThreadPoolExecutor(weak.requests, thread_name_prefix="stepwise-rollouts")

    async def generate(self, request: Request) -> Completion:
        """The samples, by one call."""
        most = Usage(self.name, 1, len(request.token_ids), len(request.token_ids), request.n * request.max_tokens)
        if (sending := SENDING.get()) is not None:
            sending(most)
        try:
            return await outside(asyncio.wrap_future(self._pool.submit(self._ask, request)))
        except CallFailed as error:
            usage = error.usage if error.usage.calls else Usage(self.name, 1, retries=error.retries)
            return Completion.of_failure(failure_of(error), usage, n=request.n)

    def close(self) -> None:
        """Wait for the requests in flight; calling it twice does nothing."""
        self._pool.shutdown(cancel_futures=True)

    def prefix_ids(self, request: Request) -> list[int]:
        """The chat up to the assistant's message and the steps, by the trainer's tokenizer."""
        ids = prompt_ids(self._tokenizer, self.prompt, request.problem.question)
        for step in request.prefix:
            ids += text_ids(self._tokenizer, separated(step.text, self.prompt.splitter), "a step")
        return ids

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes that each token adds to the text; those of a character in several tokens stand at its last."""
        texts = [self._tokenizer.decode(ids[:i], skip_special_tokens=True, clean_up_tokenization_spaces=False)
                 for i in range(len(ids) + 1)]  # fmt: skip
        ends = [len(text.rstrip("\ufffd").encode()) for text in texts]
        ends = [*accumulate(ends[:-1], max), max(ends)]
        data = texts[-1].encode()
        return [data[start:stop] for start, stop in pairwise(ends)]

    def _ask(self, request: Request) -> Completion:
        room = (self._context or 2**31) - len(request.token_ids)  # vLLM refuses what may pass its context
        body = {
            "model": self.served, "prompt": list(request.token_ids), "n": request.n,
            "max_tokens": max(1, min(request.max_tokens, room)),
            "temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k,
            "seed": request.seed % 2**31, "logprobs": 1, "return_token_ids": True, **_PLAIN,
        }  # fmt: skip
        data, retries = self.server.post("/v1/completions", body)
        try:
            drawn = [_drawn(choice) for choice in data["choices"]]
            read = int(data["usage"]["prompt_tokens"])
            cached = int((data["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            fault = f"no token ids with log-probabilities in {redact(repr(data)[:200])}"
            raise self._useless(fault, data, retries) from None
        if len(drawn) != request.n:
            raise self._useless(f"{len(drawn)} samples came for n = {request.n}", data, retries)
        samples = []
        for number, (ids, logprobs, finish) in enumerate(drawn):
            prompt = (read, max(0, read - cached)) if not number else (0, 0)
            usage = Usage(self.name, 1, *prompt, len(ids), retries if not number else 0)
            samples.append(self._completion(request, request.sample + number, ids, logprobs, finish, usage))
        return first_of(samples)

    def _useless(self, fault: str, data: Any, retries: int) -> CallFailed:
        """What cannot be used was paid for all the same, where the reply says what it cost."""
        told = data.get("usage") if isinstance(data, dict) else None
        counts = [told.get(key) if isinstance(told, dict) else 0 for key in ("prompt_tokens", "completion_tokens")]
        read, written = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
        remedy = "vLLM gives them from 0.10.2 on (return_token_ids), llama-server with its log-probabilities"
        failure = Failure("gone", f"{self.name}: {fault}; {remedy}")
        return CallFailed(failure, Usage(self.name, 1, read, read, written, retries))

    def _completion(
        self, request: Request, sample: int, ids: tuple[int, ...], logprobs: tuple[float, ...], finish: Finish,
        usage: Usage,
    ) -> Completion:  # fmt: skip
        rule, seen, end = StopRule(request.stop, splitter=self.prompt.splitter), 0, None
        for seen, piece in enumerate(self.pieces(ids), start=1):  # noqa: B007
            if (ending := rule.push(piece)) is not None:
                end = ending.content
                break
        else:
            ending = rule.last(finish)
        return Completion(0, sample, rule.text(ending), ending.finish, ids[:seen], logprobs[:seen], usage, end=end)


class _Weights(NamedTuple):
    """What the steps of reinforcement learning ask of an engine."""

    name: str
    context: int
    parameters: int


class ServedSampler(Sampler):
    """`models.weak` on a server, with the trainee's adapter loaded by it before every step; see the module.

    Without an `attach`, what it samples is what the server has under the configured name. Raises ConfigError for a
    configuration without a correction, without an address or with a credit scheme that asks the sampler's engine.

    Example:
        with ServedSampler(config) as sampler:  # models.weak: openai/NAME, api_base, train_from, context
            rollouts, _ = sampler.sample(problems, sampler.prompts(problems, trainee), step=1)
    """

    def __init__(self, cfg: Config, ledger: Ledger | None = None) -> None:
        self._cfg, weak, base = cfg, cfg.models.weak, base_directory(cfg.models.weak)
        needs = load_credit(cfg.rl.credit).needs
        for wrong, said in (
            (cfg.rl.correction == "none", 'set rl.correction = "truncate" or "mask": a server is not the trainer'),
            (weak.context is None, "set models.weak.context, the longest sequence that the server takes"),
            (bool(cfg.rl.marker), "leave rl.marker out: its places are known on a local model alone"),
            (needs in ("values", "evidence", "teacher"), f"rl.credit.scheme needs {needs} of a local model"),
        ):
            if wrong:
                raise ConfigError(f"models.weak is {weak.model}, behind {weak.api_base}; {said}")
        self._folder = tempfile.TemporaryDirectory()
        self.tokens = TokenServer(cfg, load_tokenizer(base))
        self.ledger = ledger or Ledger.for_config(cfg)
        self._model = Wrappers(self.ledger, cfg.prompt, callbacks=tuple, run=cfg.hash).model(self.tokens, "weak")
        self._loaded, self._parameters = "", 0

    @property
    def engine(self) -> Any:
        """Name, context and size of the served model."""
        return _Weights(self.tokens.name, self._cfg.models.weak.context or 0, self._parameters)

    def attach(self, trainee: Trainee) -> None:
        """Have the server load the adapter as it is now. Raises BackendError where it does not."""
        self._parameters = sum(weights.numel() for weights in trainee.model.parameters())
        name = f"stepwise-{trainee.num_updates}-{uuid.uuid4().hex[:8]}"
        folder = trainee.save(Path(self._folder.name) / name)
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, f"; it must see {folder}")
        if self._loaded:
            self._post("unload_lora_adapter", {"lora_name": self._loaded})
            shutil.rmtree(folder.with_name(self._loaded))
        self._loaded = self.tokens.served = name

    def _post(self, path: str, body: dict[str, str], more: str = "") -> None:
        try:
            self.tokens.server.post(f"/v1/{path}", body, text=True)
        except CallFailed as error:
            raise BackendError(
                f"the adapter in training cannot be put on the server: {error}{more}, and be vLLM with --enable-lora "
                "and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            ) from None

    def _pieces(self, result: Completion) -> list[bytes]:
        return self.tokens.pieces(result.token_ids)

    def prompts(
        self, problems: Iterable[Problem], trainee: Trainee, hints: Hints | None = None
    ) -> dict[str, tuple[int, ...]]:
        """See `Sampler.prompts`; they are the trainer's own."""
        return self._prompts(self.tokens, problems, trainee, hints)

    def close(self) -> None:
        """End the threads; calling it twice does nothing."""
        self.tokens.close()
        self._folder.cleanup()


def _drawn(choice: Any) -> tuple[tuple[int, ...], tuple[float, ...], Finish]:
    """Ids and log-probabilities of a choice, as vLLM and llama-server tell them, and how it ended."""
    told, finish = choice["logprobs"], "length" if choice["finish_reason"] == "length" else "eos"
    if "content" in told:
        ids = tuple(int(entry["id"]) for entry in told["content"])
        logprobs = tuple(float(entry["logprob"]) for entry in told["content"])
    else:
        ids, logprobs = tuple(map(int, choice["token_ids"])), tuple(map(float, told["token_logprobs"]))
    if len(ids) != len(logprobs):
        raise ValueError("ids and log-probabilities are not of the same tokens")
    return ids, logprobs, finish  # type: ignore[return-value]
