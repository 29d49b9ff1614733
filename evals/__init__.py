"""Benchmarks that print a table and write JSON: `python -m evals.NAME` in a checkout."""

import sys
import threading


def _say_loading() -> None:
    if all(thread.name != "stepwise-heartbeat" for thread in threading.enumerate()):  # it has not begun yet
        print("loading the benchmark ...", file=sys.stderr, flush=True)


if sys.argv[0] == "-m":  # as a program, whose imports (PyTorch) may take longer than a reader waits
    _timer = threading.Timer(3.0, _say_loading)
    _timer.daemon = True
    _timer.start()
