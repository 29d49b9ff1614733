"""The `stepwise` command: `stepwise NAME ...` runs the program NAME of `programs/`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from stepwise import __version__

PROGRAMS = {
    "build_dataset": "Make a dataset to train on: interventions in another form, or what they are compared with.",
    "calibrate": "Set a routing policy for a budget: its operating point is picked and measured apart.",
    "config": "Print the annotated default configuration.",
    "demo": "Watch the lab's weak model solve problems with the strong one called in only where it is needed.",
    "evaluate_localizer": "Measure how often localizers name the first error, on ProcessBench's columns.",
    "export": "Write a trained adapter as GGUF: the adapter alone, or merged into its base as one model.",
    "fit_router": "Fit the routing model to traces: chances of a right step, lengths, what scores mean.",
    "intervene": "Collect interventions from a model's failed attempts (InT): problems in, a dataset out.",
    "intervene_one": "Find the first error of one attempt, and propose a step to put in its place (InT).",
    "localize": "Find the first error of an attempt at a problem, and show what is said of each step.",
    "pretrain_lab": "Make the lab's models from nothing.",
    "route": "Route problems through a weak and a strong model, step by step; resumable.",
    "train": "Train a LoRA adapter of models.weak: supervised (sft), by preference (dpo), by reinforcement (rl).",
    "train_router": "Train a routing policy by reinforcement: in a simulator of the models, or with the models.",
}
"""Every program, with the line that `stepwise --help` shows of it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command; returns the program's exit code, 2 when there is no such program."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: stepwise PROGRAM [options]\n\nPrograms (`stepwise PROGRAM --help` for the options of one):")
        for program, line in PROGRAMS.items():
            print(f"  {program:<18}  {line}")
        return 0
    if name == "--version":
        print(f"stepwise {__version__}")
        return 0
    if name not in PROGRAMS:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f'did you mean "{close[0]}"?' if close else "`stepwise --help` lists them."
        print(f'error: there is no program "{name}"; {hint}', file=sys.stderr)
        return 2
    try:
        code: int = importlib.import_module(f"{_package()}.{name}").main(rest)
    except KeyboardInterrupt:  # while it was being imported; a program that runs sees to it itself
        print("interrupted before anything was done", file=sys.stderr)
        return 130
    return code


def _package() -> str:
    """Where the programs are: in `programs` beside the library in a checkout, in `stepwise.programs` once installed."""
    found = importlib.util.find_spec("programs")
    beside = Path(__file__).parent.parent / "programs" / "__init__.py"
    return "programs" if found is not None and found.origin == str(beside) else "stepwise.programs"


if __name__ == "__main__":
    sys.exit(main())
