"""The process that the pool starts: one JSON request per line on stdin, one JSON reply per line on stdout.

It ends when its stdin closes, so it never outlives its parent. A job that runs on after the parent was killed is ended
by the kernel: the alarm below has no handler, and so needs no help from a computation that holds the interpreter.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwise.grading.equality import Algebra

MEMORY = 4 << 30


def _answer(request: dict[str, Any], algebra: Algebra | None = None) -> dict[str, Any]:
    """One reply: {"equal": bool}, {"unreadable": role, "reason": ...}, {"timeout": ...} or {"error": ...}.

    `algebra` decides what is neither a number nor a word; None: `algebra.equal`.
    """
    from math_verify.errors import TimeoutException

    from stepwise.grading.algebra import equal
    from stepwise.grading.equality import compare
    from stepwise.grading.text import Unreadable

    try:
        prediction, gold = request["prediction"], request["gold"]
        options = {"shortcut": request["shortcut"], "bare": request.get("bare", False)}
        return {"equal": compare(prediction, gold, algebra or equal, **options)}
    except Unreadable as error:
        return {"unreadable": error.role, "reason": error.reason}
    except TimeoutException as error:  # a BaseException of math-verify's, which `except Exception` would miss
        return {"timeout": str(error)}
    except Exception as error:  # failures are data here: the caller turns this into Verdict.ERROR
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def _limit_memory() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main() -> None:
    """Serve until stdin closes. Replies go to a private copy of stdout, so that nothing else can print into them.

    Example:
        worker = subprocess.Popen([sys.executable, "-m", "stepwise.grading.worker"], stdin=PIPE, stdout=PIPE)
        json.loads(worker.stdout.readline())  # {"ready": 4711}, the process
    """
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if sys.platform == "linux":
        _limit_memory()
    _answer({"prediction": "x+1", "gold": "1+x", "shortcut": False})  # imports and warms up before the first clock runs
    _send(replies, {"ready": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["alarm"])
        reply = _answer(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, reply | {"id": request["id"]})


def _send(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
