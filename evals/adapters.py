"""The three formats side by side: does every reply parse, and what does a format cost?

On a model with random weights (made here, 0.4M parameters; --model takes another), which knows no format: the
library's signatures on lab problems, --calls times in each format held to a grammar, and --free times without one.
A reply counts as parsed if every value is of its field's type and within its constraints, which is checked here once
more, strictly. Time per call is time divided by calls, --threads calls at a time; ratios are of processor time, which
other work on the machine does not change. Tokens are per request, so that of a repair counts as one more.

On models.critic, which knows the compact format without instructions: first errors found in attempts at held-out lab
problems, with and without the grammar.

Prints two tables, writes adapters.json. Finished calls are kept when it is stopped.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import dspy
from pydantic import PositiveInt, TypeAdapter, ValidationError

from stepwise.critics import ErrorLocalizer, signatures
from stepwise.critics.formats import Format, adapter
from stepwise.critics.formats.field_format import constrained
from stepwise.critics.module import CriticModule, critic_lm, run_all
from stepwise.errors import BackendError, DataError, MissingDependencyError
from stepwise.lab import generate
from stepwise.lab.problems import LabProblem
from stepwise.lab.references import reference
from stepwise.runs.shell import Options, Run, program

from .lab_corpus import slipped

Rows = dict[str, Any]
CONTEXT = 16_384
FREE_TOKENS = 300
TIMES = ("seconds", "cpu_seconds")


class _Options(Options):
    calls: PositiveInt = 1000
    """calls of each format under a grammar"""
    free: int = 200
    """calls of each format without one"""
    problems: int = 200
    """attempts for models.critic"""
    model: str | None = None
    """model that knows no format, as llamacpp/FILE.gguf"""
    max_tokens: PositiveInt = 4096
    """longest reply under a grammar"""
    threads: PositiveInt = 8
    """calls at a time"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        model = run.args.model or f"llamacpp/{_random_model(Path(scratch))}"
        held = [_formats_row(run, model, form, held=True) for form in get_args(Format)]
        free = [_formats_row(run, model, form, held=False) for form in get_args(Format) if run.args.free]
    known = _critic(run) if run.args.problems else []
    result = {"random weights": [*held, *free], "critic": known}
    run.path("adapters.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _print(run, held, free, known)
    return 0 if all(row["parsed"] == row["calls"] for row in held) else 1


def _random_model(folder: Path) -> Path:
    try:
        from tests.tiny_models import tiny_gguf
    except ImportError as error:
        raise MissingDependencyError(
            f'a random model is made in a checkout, with "stepwise[train]" ({error}); give --model'
        ) from error
    return tiny_gguf(folder, max_position_embeddings=CONTEXT)


class OneCall(CriticModule):
    """Any signature, asked once; values that are not what the signature says are a failure too. Numbers are held to the
    bounds that the signatures have, so that none is moved.
    """

    first_number = 0

    def __init__(self, lm: Any, adapter: Any) -> None:
        super().__init__({"ask": "question -> answer"}, lm, adapter, bare=False)

    async def run(self, given: Rows, signature: Any, config: Rows) -> dspy.Prediction:
        """One call."""
        wrong = invalid(signature, await self.call(self.ask, given, signature, config))
        return dspy.Prediction(failure="; ".join(wrong) or None)


def invalid(signature: Any, prediction: Any) -> list[str]:
    """The output fields whose value is not strictly of its type and within its constraints."""
    wrong = []
    for name, field in signature.output_fields.items():
        try:
            TypeAdapter(constrained(field)).validate_python(prediction[name], strict=True)
        except (KeyError, ValidationError) as error:
            wrong.append(f"{name}: {error}")
    return wrong


def tasks(problems: Sequence[LabProblem], seed: int = 0) -> Iterator[tuple[str, Any, Rows]]:
    """Names, signatures as the modules ask them, and inputs, in turn and without end."""
    rng = random.Random(seed)
    while True:
        for problem in problems:
            steps = slipped(problem, rng)
            first, last = problem.first_error(steps) or 0, len(steps) - 1
            given = {"problem": problem.problem.question, "reference": reference(problem),
                     "attempt": signatures.numbered(steps)}  # fmt: skip
            draft = {"location": first, "content": steps[first], "answer": problem.problem.answer}
            short = {name: given[name] for name in ("problem", "attempt")}
            located = {**given, "first_error": first}
            verify = signatures.at_most_rows(signatures.VerifyAttempt, "checks", last + 1)
            yield "verify", signatures.bounded(verify, first_error=last, critical_error=last), given
            yield "propose", signatures.bounded(signatures.ProposeIntervention, location=first), located
            yield "review", signatures.ReviewIntervention, {**located, **draft}
            yield "judge", signatures.JudgeStep, given
            yield "solve", signatures.SolveByReference, {name: given[name] for name in ("problem", "reference")}
            yield "decide", signatures.DecideStep, {**short, "scores": "0.9 ?", "budget": "100"}
            prefix = dspy.ChainOfThought(signatures.without_reference(signatures.JudgePrefix))
            yield "judge by chain of thought", prefix.predict.signature, short


def _formats_row(run: Run[_Options], model: str, form: Format, *, held: bool) -> Rows:
    """Makes the calls that are missing in calls.jsonl, and sums up those of this kind."""
    from stepwise import lm

    total = run.args.calls if held else run.args.free
    longest = run.args.max_tokens if held else FREE_TOKENS
    kind = f"{form}, {'grammar' if held else 'free'}"
    before = sum(row["kind"] == kind for row in run.rows("calls.jsonl"))
    if before < total:
        made = tasks(generate("val", 50))
        items = [
            {"name": name, "signature": signature, "given": given, "config": {"seed": number}}
            for number, (name, signature, given) in zip(range(total), made, strict=False)
        ][before:]
        language = lm(
            model, context=CONTEXT, sequences=run.args.threads, temperature=1.0, max_tokens=longest, cache=False
        )
        module = OneCall(language, _adapter(form, held))
        start, cpu = time.perf_counter(), time.process_time()
        block = 8 * run.args.threads
        for at in range(0, len(items), block):
            for row in _called(module, items[at : at + block], run.args.threads):
                run.write("calls.jsonl", {"kind": kind, **row})
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        run.write("times.jsonl", {"kind": kind, "calls": len(items), **spent})
    return _summed(run, kind, form, held)


def _adapter(form: Format, held: bool, *, bare: bool = False) -> Any:
    made = adapter(form, bare=bare)
    if not held:
        made.constrain = lambda *_: None
    return made


def _called(module: OneCall, items: list[Rows], threads: int) -> Iterator[Rows]:
    given = [{key: item[key] for key in ("given", "signature", "config")} for item in items]
    for item, made in zip(items, run_all(module, given, concurrency=threads), strict=True):
        yield {
            "signature": item["name"], "failure": made.failure, "repairs": len(made.repairs),
            "calls": made.usage.calls, "prompt": made.usage.prompt_tokens, "generated": made.usage.generated_tokens,
        }  # fmt: skip


def _summed(run: Run[_Options], kind: str, form: Format, held: bool) -> Rows:
    rows = [row for row in run.rows("calls.jsonl") if row["kind"] == kind]
    timed = [row for row in run.rows("times.jsonl") if row["kind"] == kind]
    asked = sum(row["calls"] for row in rows)
    return {
        "format": form, "grammar": held, "calls": len(rows), "parsed": sum(row["failure"] is None for row in rows),
        "repairs": sum(row["repairs"] for row in rows),
        "prompt_tokens": sum(row["prompt"] for row in rows) / max(asked, 1),
        "generated_tokens": sum(row["generated"] for row in rows) / max(asked, 1),
        **{name: sum(row[name] for row in timed) / max(sum(row["calls"] for row in timed), 1) for name in TIMES},
        "failed": dict(Counter(row["signature"] for row in rows if row["failure"] is not None)),
    }  # fmt: skip


def _critic(run: Run[_Options]) -> list[Rows]:
    """First errors found by models.critic in the compact format without instructions; nothing where it is missing."""
    try:
        language = critic_lm(run.config).copy(cache=False)
    except (BackendError, DataError) as error:
        run.say(f"Accuracy is skipped: models.critic ({run.config.models.critic.model}) cannot be loaded: {error}")
        return []
    rng = random.Random(1)
    attempts = [(problem, slipped(problem, rng)) for problem in generate("test", run.args.problems)]
    items = [{"problem": p.problem, "steps": steps, "reference": reference(p)} for p, steps in attempts]
    truth = [p.first_error(steps) for p, steps in attempts]
    constant = Counter(truth).most_common(1)[0]
    rows = []
    for held in (True, False):
        module = ErrorLocalizer(language, adapter=_adapter("compact", held, bare=True))
        label = f"critic, {'grammar' if held else 'free'}"
        made = run_all(module, items, concurrency=run.args.threads, progress=label)
        found = [m.failure is None and m.first_error == first for m, first in zip(made, truth, strict=True)]
        rows.append({
            "grammar": held, "attempts": len(made), "accuracy": sum(found) / len(found),
            "constant_guess": constant[1] / len(truth), "parsed": sum(m.failure is None for m in made),
            "repairs": sum(len(m.repairs) for m in made),
            "generated_tokens": sum(m.usage.generated_tokens for m in made) / len(made),
        })  # fmt: skip
    return rows


def _print(run: Run[_Options], held: list[Rows], free: list[Rows], known: list[Rows]) -> None:
    from rich.table import Table

    table = Table(title="Random weights; tokens per request, time per call", title_justify="left")
    for name in ("format", "grammar", "parsed", "repairs", "prompt", "reply", "CPU ms", "ratio"):
        table.add_column(name, justify="left" if name in ("format", "grammar") else "right")
    for row in [*held, *free]:
        against = next(r for r in (held if row["grammar"] else free) if r["format"] == "compact")
        ratio = f"{row['cpu_seconds'] / against['cpu_seconds']:.2f}" if against["cpu_seconds"] else ""
        table.add_row(
            row["format"], "yes" if row["grammar"] else "no", f"{row['parsed']}/{row['calls']}", str(row["repairs"]),
            f"{row['prompt_tokens']:.0f}", f"{row['generated_tokens']:.0f}",
            f"{1000 * row['cpu_seconds']:.0f}", ratio,
        )  # fmt: skip
    run.console.print(table)
    if not known:
        return
    title = f"{run.config.models.critic.model}, compact without instructions, lab problems: first error found"
    table = Table(title=title, title_justify="left")
    for name in ("grammar", "attempts", "accuracy", "best constant guess", "parsed", "repairs", "generated"):
        table.add_column(name, justify="left" if name == "grammar" else "right")
    for row in known:
        table.add_row(
            "yes" if row["grammar"] else "no", str(row["attempts"]), f"{row['accuracy']:.3f}",
            f"{row['constant_guess']:.3f}", str(row["parsed"]), str(row["repairs"]), f"{row['generated_tokens']:.0f}",
        )  # fmt: skip
    run.console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
