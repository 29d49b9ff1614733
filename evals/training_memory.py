"""Memory and speed of training steps beside TRL's, at equal settings, in one run.

Each case is one optimizer step on a LoRA adapter, made again and again: supervised (sft), or the training part of GRPO
on rollouts that are given. Each side runs in a fresh process, in turn. Model, first adapter, rows, loss, micro-batches,
checkpointing and optimizer are equal; loss and gradient norm of the first step are compared, to show that the work is
the same. Rows are random tokens of equal length, so nothing is gained here by sorting them.

  step MB     most memory above the loaded model: resident memory of the process, on a GPU what torch allocated there
  tensors MB  most bytes of tensors alive at one time that one step made (what operations hold inside is not in it)
  largest MB  the largest one of these
  tokens/s    all tokens of a step by its time; on a CPU by its processor time, which other work does not change

On a CPU: lab-weak as shipped, and Qwen3-0.6B's shape cut to --layers. On a GPU: Qwen3-0.6B and 4B whole, in bfloat16
and in 4 bits, SFT on rows of 4,096 tokens, GRPO on 8 rollouts of 1,024. Weights are random but for lab-weak's. On a CPU
TRL's head runs in plain torch, on a GPU in Triton kernels: ratios of the one say little about the other. TRL comes with
pip install trl==1.16.0 datasets==5.2.0; without it, only our own rows are there. Finished rows are kept.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import PositiveInt, TypeAdapter

from stepwise.errors import DataError, MissingDependencyError
from stepwise.lab import MODELS, model_path
from stepwise.runs.shell import Options, Run, program

from .shapes import SHAPES, write_checkpoint
from .training_memory_worker import Base, Case, Job, Side

AIMS = {"memory": 1.0, "tensors": 1.0, "speed": 1.0}
CARD_BYTES = 24e9
Rows = dict[str, Any]


class _Options(Options):
    device: str = "cpu"
    """cpu or cuda"""
    shapes: tuple[str, ...] | None = None
    """lab-weak, or one of evals/shapes.py; by device without it"""
    methods: tuple[Literal["sft", "grpo"], ...] = ("sft", "grpo")
    """of training"""
    bases: tuple[Base, ...] | None = None
    """types of the base's weights"""
    layers: int | None = None
    """cut a random shape to so many layers, 0 for none"""
    rows: PositiveInt | None = None
    """sequences in a step"""
    tokens: PositiveInt | None = None
    """tokens of a sequence, a quarter of them prompt"""
    micro: PositiveInt | None = None
    """sequences in one pass, a divisor of --rows"""
    repeats: PositiveInt = 2
    """timed steps; the median counts"""
    threads: PositiveInt = 1
    """CPU threads"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> int:
    every = cases(run.args)
    sides: list[Side] = ["stepwise"] if missing() else ["stepwise", "trl"]
    done = {key(row): row for row in run.rows("rows.jsonl") if "error" not in row}
    for number, case in enumerate(every, start=1):
        for side in sides:
            wanted = {"side": side, "case": dataclasses.asdict(case)}
            if key(wanted) not in done:
                run.say(f"case {number} of {len(every)}, {label(case)}, {side} ...")
                done[key(wanted)] = {**wanted, **_measure(run, side, case)}
                run.write("rows.jsonl", done[key(wanted)])
    rows = [done[key({"side": side, "case": dataclasses.asdict(case)})] for case in every for side in sides]
    both = [ratios(case, done) for case in every] if len(sides) == 2 else []
    compared = [one for one in both if one is not None]
    result = {"versions": _versions(), "aims": AIMS, "rows": rows, "ratios": compared}
    run.path("training_memory.json").write_text(json.dumps(result, indent=2) + "\n")
    _print(run, rows, compared)
    failed = [f"{label(Case(**row['case']))}, {row['side']}" for row in rows if "error" in row]
    behind = [
        one["case"]
        for one in compared
        if max(one["memory"], one["tensors"]) > AIMS["memory"] or one["speed"] < AIMS["speed"]
    ]
    return run.missed([*failed, *behind])


def missing() -> list[str]:
    """What has to be installed for TRL's rows."""
    return [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]


def cases(args: _Options) -> list[Case]:
    """The cases of the options, each checked; raises DataError for what cannot be run."""
    on_gpu = args.device.startswith("cuda")
    shapes = args.shapes or (["qwen3-0.6b", "qwen3-4b"] if on_gpu else ["lab-weak", "qwen3-0.6b"])
    bases: tuple[Base, ...] = args.bases or (("bfloat16", "4bit") if on_gpu else ("float32",))
    if unknown := [shape for shape in shapes if shape not in (*SHAPES, "lab-weak")]:
        raise DataError(f"--shapes has {unknown[0]!r}; known are lab-weak, {', '.join(SHAPES)}")
    if "4bit" in bases and not on_gpu:
        raise DataError("--bases 4bit needs --device cuda")
    layers = args.layers if args.layers is not None else 0 if on_gpu else 4
    found = []
    for shape in shapes:
        for base in bases:
            for method in args.methods:
                rows, prompt, completion, micro = _sizes(args, shape, method, on_gpu)
                if rows % micro:
                    raise DataError(f"--micro is {micro}; it must divide the {rows} rows of a step")
                lab = shape == "lab-weak"
                cut = None if lab or not layers else layers
                found.append(Case(shape, cut, method, base, rows, prompt, completion, micro, not lab))
    return found


def _sizes(args: _Options, shape: str, method: str, on_gpu: bool) -> tuple[int, int, int, int]:
    """Rows, tokens of the prompt and of the completion, rows in one pass."""
    if on_gpu:
        rows, prompt, completion, micro = (2, 256, 3840, 1) if method == "sft" else (8, 256, 1024, 4)
    elif shape == "lab-weak":
        rows, prompt, completion, micro = 32, 64, 192, 32
    else:
        rows, prompt, completion, micro = (1, 64, 448, 1) if method == "sft" else (4, 32, 96, 4)
    if args.tokens:
        prompt, completion = args.tokens // 4, args.tokens - args.tokens // 4
    return args.rows or rows, prompt, completion, args.micro or min(micro, args.rows or rows)


def key(row: Rows) -> str:
    """What makes a row the same: side and case."""
    return json.dumps([row["side"], row["case"]], sort_keys=True)


def label(case: Case) -> str:
    """A short name of a case."""
    cut = f"/{case.layers}" if case.layers else ""
    kind = {"float32": "fp32", "bfloat16": "bf16", "4bit": "4bit"}[case.base]
    return f"{case.shape}{cut} {case.method} {kind}"


def _measure(run: Run[_Options], side: Side, case: Case) -> Rows:
    args = run.args
    folder = str(_model(run, case))
    figures = alone(Job(side, case, folder, run.config.lora, args.device, args.repeats, args.threads, run.config.seed))
    if "error" in figures:
        return figures
    clock = "seconds" if args.device.startswith("cuda") else "cpu_seconds"
    return {**figures, "tokens_per_second": case.tokens / figures[clock]}


def alone(job: Job) -> Rows:
    """The figures of a job in a process of its own; where it failed, `error` with the end of what it said."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(job.threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", f"{__package__}.training_memory_worker"]
    given = TypeAdapter(Job).dump_json(job).decode()
    ended = subprocess.run(command, input=given, env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["nothing was said"]
        return {"error": f"exit code {ended.returncode}: {said[-1][:300]}"}
    figures: Rows = json.loads(ended.stdout.strip().splitlines()[-1])
    return figures


def _model(run: Run[_Options], case: Case) -> Path:
    """Directory of the case's weights; random ones are made once for each shape."""
    if case.shape in MODELS:
        return model_path(case.shape, "safetensors")
    shape = dict(SHAPES[case.shape])
    if case.layers:
        shape["num_hidden_layers"] = min(case.layers, shape["num_hidden_layers"])
    folder = run.out / "models" / f"{case.shape}-{shape['num_hidden_layers']}"
    if not (folder / "model.safetensors.index.json").is_file():  # written last
        run.say(f"making random weights in {folder} ...")
        try:
            write_checkpoint(shape, folder)
        except MissingDependencyError as error:
            raise MissingDependencyError(f"{error}; --shapes lab-weak needs none") from error
    return folder


def ratios(case: Case, done: dict[str, Rows]) -> Rows | None:
    """Ours by TRL's; None where one of them failed. `same` says whether both computed the same first step."""
    ours, theirs = (done[key({"side": side, "case": dataclasses.asdict(case)})] for side in get_args(Side))
    if "error" in ours or "error" in theirs:
        return None
    close = 1e-4 if case.base == "float32" else 5e-2  # half precision rounds differently
    pairs = [(ours[name], theirs[name]) for name in ("loss", "grad_norm")]
    return {
        "case": label(case),
        "memory": ours["step_bytes"] / theirs["step_bytes"],
        "tensors": ours["tensor_bytes"] / theirs["tensor_bytes"],
        "speed": ours["tokens_per_second"] / theirs["tokens_per_second"],
        "same": all(abs(a - b) <= close * max(1.0, abs(a)) for a, b in pairs),
    }


def _versions() -> dict[str, str | None]:
    import importlib.metadata

    names = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes")
    found = {name: importlib.util.find_spec(name) is not None for name in names}
    return {name: importlib.metadata.version(name) if there else None for name, there in found.items()}


def _print(run: Run[_Options], rows: Sequence[Rows], compared: Sequence[Rows]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=f"Training steps on {run.args.device}", box=box.SIMPLE_HEAD)
    for column in ("case", "side", "tokens/s", "step\nMB", "tensors\nMB", "largest\nMB"):
        table.add_column(column, justify="left" if column in ("case", "side") else "right", no_wrap=True)
    for row in rows:
        sizes = [f"{row[k] / 1e6:,.1f}" for k in ("step_bytes", "tensor_bytes", "largest_bytes") if k in row]
        figures = [f"{row['tokens_per_second']:,.0f}", *sizes] if sizes else ["failed", "", "", ""]
        table.add_row(label(Case(**row["case"])), row["side"], *figures)
    run.console.print(table)
    for case in dict.fromkeys(Case(**row["case"]) for row in rows):
        again = "with checkpointing" if case.checkpointing else "without checkpointing"
        lengths = f"{case.rows} x ({case.prompt} + {case.completion}) tokens, {case.micro} at a time"
        run.say(f"{label(case)}: {lengths}, {again}")
    for row in (row for row in rows if "error" in row):
        run.say(f"{label(Case(**row['case']))}, {row['side']}: {row['error']}")
    for one in compared:
        parts = [f"{name} {one[name]:.2f}" for name in AIMS]
        run.say(f"{one['case']}, ours / TRL's: {', '.join(parts)}" + ("" if one["same"] else "; NOT THE SAME STEP"))
    if compared:
        run.say("aims: memory and tensors at most 1, speed at least 1")
    if absent := missing():
        run.say(f"{' and '.join(absent)} not installed: our rows only; pip install trl==1.16.0 datasets==5.2.0")
    for row in rows:
        if "qwen3-4b" in row["case"]["shape"] and row["case"]["base"] == "4bit" and "peak_bytes" in row:
            within = "within" if row["peak_bytes"] <= CARD_BYTES else "NOT within"
            run.say(f"{label(Case(**row['case']))}, {row['side']}: {row['peak_bytes'] / 1e9:.1f} GB, {within} 24 GB")
    if not run.args.device.startswith("cuda"):
        run.say("not measured: a GPU (whole models, bfloat16 and 4 bits, long rows); there, --device cuda does it")


if __name__ == "__main__":
    raise SystemExit(main())
