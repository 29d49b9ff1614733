"""What a local model can do, tried out: its speed, and whether it writes steps and a boxed answer when it is asked as
the configuration asks. `stepwise doctor` shows it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from stepwise.config import LoadConfig, SamplingConfig
from stepwise.grading import grade
from stepwise.models.base import Request
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.shared import load_engine
from stepwise.models.sizes import GgufFacts
from stepwise.prompt import SolvePrompt
from stepwise.steps import split_steps
from stepwise.types import Problem

SAMPLE = Problem(
    "sample",
    "A box holds 12 pencils. A teacher buys 5 boxes and gives away 18 pencils. How many pencils are left?",
    "42",
)
"""Asked of every model; nothing is measured on it."""
_READ, _WRITTEN, _TRIES = 256, 32, 3  # tokens that speed is measured on, and how often
_MOST_STEPS = 12


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was seen, and what mends it where it is not as it should be.

    `broken` is what a run would fail at, or give figures that mean nothing with.

    >>> Finding("steps", "one of 900 tokens", remedy="ask for blank lines in the prompt", broken=True).broken
    True
    """

    what: str
    seen: str
    remedy: str = ""
    broken: bool = False


def describe(facts: GgufFacts) -> str:
    """A model in one line: architecture, weights, type, context, tokenizer, template.

    >>> from stepwise.lab import model_path
    >>> describe(GgufFacts.read(model_path("lab-weak"))).split(", ")[0]
    'qwen3'
    """
    fields, parts = facts.fields, []
    label = fields.get("general.size_label") or f"{facts.weights / 1e6:,.0f} MB"
    parts.append(f"{fields.get('general.architecture')}, {label}, {facts.quantization}")
    parts.append(f"trained on {facts.context:,} tokens")
    parts.append(f"tokenizer {fields.get('tokenizer.ggml.model')}/{fields.get('tokenizer.ggml.pre', 'default')}")
    parts.append("no chat template" if not facts.template else "thinks unless told not to" if facts.thinks else "chat")
    return ", ".join(parts)


def speeds_of(engine: Engine) -> tuple[float, float]:
    """Tokens a second that a model reads and writes alone, the best of three tries.

    Example:
        reads, writes = speeds_of(backend.engine)
    """
    ids = tuple(engine.tokenize("one and two makes three. " * _READ))[:_READ]
    reads, writes = [], []
    for _ in range(_TRIES):
        engine.reset_cache()
        began = time.perf_counter()
        engine.generate([GenerationJob(ids, max_tokens=1)])
        read = time.perf_counter()
        made = engine.generate([GenerationJob(ids, max_tokens=_WRITTEN, temperature=1.0)])[0]
        reads.append(len(ids) / (read - began))
        writes.append(len(made.ids) / (time.perf_counter() - read))
    return max(reads), max(writes)


def try_out(
    load: LoadConfig, prompt: SolvePrompt, sampling: SamplingConfig, *, writes: bool = True
) -> Iterator[Finding]:
    """Load a local model and look at its speed and, where it `writes` solutions, at one of them.

    Raises what `load_engine` raises.

    Example:
        for finding in try_out(config.models.weak, config.prompt, config.sampling):
            print(finding.what, finding.seen, finding.remedy)
    """
    with LlamaCppBackend(load_engine(load), prompt) as backend:
        engine = backend.engine
        speed = speeds_of(engine)
        speeds = f"reads {speed[0]:,.3g} tokens/s, writes {speed[1]:,.3g}"
        yield Finding("speed", f"{speeds} (one sequence, {load.threads} threads)")
        if not writes:
            return
        if not backend.capabilities.prefill:
            yield Finding(
                "template", "refuses a question", "take a GGUF with a chat template (an instruct model)", True
            )
            return
        room = min(_MOST_STEPS * sampling.max_step_tokens, engine.context // 2)
        answer = backend.continue_solutions([Request(SAMPLE, stop="solution", max_tokens=room, temperature=0.0)])[0]
        yield from _look_at(answer.text, answer.finish, sampling, engine)


def _look_at(text: str, finish: str, sampling: SamplingConfig, engine: object = None) -> Iterator[Finding]:
    r"""What a solution of `SAMPLE` says about prompt, template and splitter.

    >>> [each.what for each in _look_at("5 * 12 = 60.\n\n60 - 18 = 42.\n\n\\boxed{42}", "answer", SamplingConfig())]
    ['steps', 'answer', 'sample problem']
    """
    steps = split_steps(text)
    longest = max((len(engine.tokenize(step)) for step in steps), default=0) if hasattr(engine, "tokenize") else 0
    if "<think>" in text:
        yield Finding(
            "thoughts", "it thinks before it answers", "set [prompt] template_args = { enable_thinking = false }", True
        )
    one = len(steps) < 2
    yield Finding(
        "steps",
        f"{len(steps)}" + (f", the longest of {longest} tokens" if longest else ""),
        "the prompt ([prompt] system) has to ask for steps with a blank line between them" if one else
        f"raise sampling.max_step_tokens above {longest}" if longest > sampling.max_step_tokens else "",
        one or longest > sampling.max_step_tokens,
    )  # fmt: skip
    boxed = "\\boxed" in text
    remedy = "" if boxed else "the prompt ([prompt] system) has to ask for the answer in \\boxed{}"
    if not boxed and finish == "length":
        remedy += "; it was cut: raise models.*.context"
    yield Finding("answer", "in a box" if boxed else f"no box (the text ends {text[-60:]!r})", remedy, not boxed)
    if boxed:
        verdict = grade(text, SAMPLE.answer or "").value
        yield Finding("sample problem", f"{verdict.lower()}, ended by {finish}")
