"""The `stepwise` command: `stepwise NAME ...` runs the program NAME of `programs/`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Timer
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter

from stepwise import __version__
from stepwise.errors import visible

PROGRAMS = {
    "demo": "Route lab problems under ten policies: what is saved.",
    "route": "Route problems through a weak and a strong model.",
    "serve": "Serve a router behind an OpenAI-compatible API.",
    "calibrate": "Set a routing policy for a budget, and measure it.",
    "board": "Every policy, scorer and trained model at equal cost.",
    "fit_router": "Fit the routing model (POMDP) to traces.",
    "train_router": "Train a routing policy by reinforcement.",
    "localize": "Find the first error of an attempt; propose a step for it.",
    "intervene": "Collect interventions: problems in, a dataset out.",
    "build_dataset": "Other datasets: controls, rewrites, pairs, routing.",
    "label_steps": "Labels for steps: rollouts, a critic, or both.",
    "train": "Train an adapter: sft, dpo, rl, scorer; fit a probe.",
    "loop": "Route, learn from what was escalated, route again.",
    "export": "Write an adapter as GGUF, alone or merged.",
    "evaluate_localizer": "How often first errors are named (ProcessBench).",
    "init": "Write a configuration for models of your own.",
    "doctor": "Check the installation and every model.",
    "import": "Make the training directory of a GGUF.",
    "config": "Print the annotated default configuration.",
}
"""Every program, with the line that `stepwise --help` shows of it."""
_DOC = """Find, repair and route the step at which a small language model goes wrong.

`stepwise PROGRAM --help` lists a program's options; in a checkout, `python -m evals.NAME`
runs a benchmark."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command; returns the program's exit code, 2 when there is no such program.

    Example:
        main(["route", "--dry-run", "--out", "out/try"])  # as `stepwise route --dry-run --out out/try`
    """
    app = App("stepwise", _DOC, version=f"stepwise {__version__}", help_format="plaintext")
    group = Group("Programs")
    for name, line in PROGRAMS.items():
        app.command(App(name, line, default_command=_starter(name), help_flags=(), version_flags=(), group=group))
    try:
        tokens = list(sys.argv[1:] if argv is None else argv)
        return app(tokens, exit_on_error=False, print_error=False, result_action="return_value") or 0
    except CycloptsError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while a program was being imported; one that runs sees to it itself
        print("interrupted before anything was done", file=sys.stderr)
        return 130


def _starter(name: str) -> Callable[..., int]:
    def start(*argv: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
        slow = Timer(3.0, print, [f"loading stepwise {name} ..."], {"file": sys.stderr, "flush": True})
        slow.daemon = True
        slow.start()
        try:
            module = importlib.import_module(f"{_package()}.{name}")
        finally:
            slow.cancel()
        code: int = module.main(argv)
        return code

    return start


def _package() -> str:
    """Where the programs are: in `programs` beside the library in a checkout, in `stepwise.programs` once installed."""
    found = importlib.util.find_spec("programs")
    beside = Path(__file__).parent.parent / "programs" / "__init__.py"
    return "programs" if found is not None and found.origin == str(beside) else "stepwise.programs"


if __name__ == "__main__":
    sys.exit(main())
