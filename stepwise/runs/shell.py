"""The shell that every program shares: options, output directory, dry run, interruption, one-line errors.

A program is one function:

    @program(doc=__doc__, arguments=arguments, plan=plan)
    def main(run: Run) -> None:
        for problem in ...:
            run.write("traces.jsonl", trace)
        run.metrics(accuracy=0.93)

`main(argv)` then parses `--config FILE --set a.b=c --out DIR --dry-run --overwrite --debug` and the program's own
arguments, and returns an exit code: 0, 1 for a failure, 2 for a mistake in the input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stepwise.config import Config
from stepwise.errors import ConfigError, DataError, StepwiseError, redact
from stepwise.io import append_rows, read_rows
from stepwise.runs.directory import RunDirectory
from stepwise.runs.plan import PlannedCalls, show_plan

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_NO_SETTINGS = (
    "config",
    "set",
    "out",
    "dry_run",
    "overwrite",
    "debug",
    "show",
    "stream",
    "json",
    "licence",
    "column_names",
)  # these do not change what is computed


class Run:
    """What a program gets: its configuration, its own arguments, a console (standard output), an output directory."""

    def __init__(self, config: Config, args: argparse.Namespace, directory: RunDirectory, console: Console) -> None:
        self.config = config
        self.args = args
        self.console = console
        self.directory = directory
        """For the library's functions that work in an open directory."""

    @property
    def out(self) -> Path:
        """The output directory; it is made when it is first asked for."""
        return self.directory.made()

    def path(self, name: str) -> Path:
        """Where the run's file `name` belongs; the file counts as the run's own, and `--overwrite` removes it."""
        return self.directory.claim(name)

    def write(self, name: str, *rows: Any) -> None:
        """Append rows (the library's types, or dictionaries) to the JSON Lines file `name`; then they are on disk."""
        append_rows(self.path(name), rows)

    def rows(self, name: str, cls: type[Any] | None = None) -> list[Any]:
        """What an earlier, interrupted start of this same run already wrote to `name`: empty at the first start."""
        path = self.directory.path / name
        return read_rows(path) if cls is None else read_rows(path, cls)

    def metrics(self, **values: Any) -> None:
        """Append one row to metrics.jsonl."""
        self.write("metrics.jsonl", values)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table, every column aligned to the right."""
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def say(self, text: str) -> None:
        """Print a line to the console, without markup and without secrets."""
        self.console.print(redact(text), markup=False, highlight=False)


def program(
    *,
    doc: str | None,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    plan: Callable[[Config, argparse.Namespace], Sequence[PlannedCalls]] | None = None,
    resumable: bool = True,
    same_run: Callable[[Config], Config] = lambda config: config,
    neutral: Sequence[str] = (),
) -> Callable[[Callable[..., int | None]], Callable[..., int]]:
    """Turn `function(run)` into `main(argv=None) -> exit code`. The file's name is the program's name.

    `doc` is the module's docstring, shown by --help. `arguments` adds the program's own options. `plan` says what the
    run would spend, per role, for --dry-run. A program that is not `resumable` starts anew each time: it
    removes its own files of an earlier start with the same settings instead of going on from them. `same_run` leaves
    out of the configuration what may change between the starts of one run, and `neutral` names such arguments. What is
    given to `main` by name, such as models in place of those of the configuration, goes to the function.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., int]:
        file = Path(function.__code__.co_filename)
        name = file.stem
        command = f"python -m evals.{name}" if file.parent.name == "evals" else f"stepwise {name}"

        def start(args: argparse.Namespace, given: dict[str, Any]) -> int:
            config = Config.load(args.config, args.set)
            own = {key: value for key, value in vars(args).items() if key not in (*_NO_SETTINGS, *neutral)}
            console = Console(stderr=getattr(args, "json", False))  # with --json, standard output is for a program
            directory = RunDirectory(args.out, program=name, config=same_run(config), arguments=own)
            directory.check(overwrite=args.overwrite)
            if args.dry_run:
                show_plan(plan(config, args) if plan else [], config, console)
                return 0
            going_on = directory.open(anew=args.overwrite or not resumable)
            run = Run(config, args, directory, console)
            if going_on:
                run.say(f"going on with the run in {args.out} (--overwrite starts anew)")
            try:
                with directory.ending():
                    code = function(run, **given) or 0
                    directory.failed = bool(code)
            except KeyboardInterrupt:
                remedy = "the same command goes on from there" if resumable else "the same command starts anew"
                _complain(f"interrupted; {directory.summary()}; {remedy}")
                return 130
            return code

        @functools.wraps(function)
        def main(argv: Sequence[str] | None = None, **given: Any) -> int:
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            options = _parser(name, command, doc)
            if arguments is not None:
                arguments(options)
            args = options.parse_args(argv)
            return _guarded(lambda: start(args, given), debug=args.debug)

        return main

    return decorate


def positive(text: str) -> int:
    """Type of an argparse option that counts something: a whole number of at least 1."""
    number = int(text) if text.strip().isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def _parser(name: str, command: str, doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    shared = parser.add_argument_group("shared by all programs")
    shared.add_argument("--config", type=Path, metavar="FILE", help="TOML file; without it, the embedded lab")
    shared.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        help="change one setting, for example routing.threshold=0.4",
    )
    shared.add_argument(
        "--out", type=Path, default=Path("out") / name, metavar="DIR", help="output (default: %(default)s)"
    )
    shared.add_argument("--dry-run", action="store_true", help="print what the run would spend, and do not run")
    shared.add_argument("--overwrite", action="store_true", help="remove the files of an earlier run in DIR first")
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _guarded(work: Callable[[], int], *, debug: bool) -> int:
    """Run `work`; a StepwiseError or a disk that takes no more becomes one line on standard error.

    Anything else stays a traceback.
    """
    try:
        return work()
    except KeyboardInterrupt:
        _complain("interrupted before anything was written")
        return 130
    except StepwiseError as error:
        if debug:
            raise
        _complain(f"error: {error}")
        return 2 if isinstance(error, ConfigError | DataError) else 1
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would complain again when it flushes at its end
        return 1
    except OSError as error:
        if debug or error.errno not in _CANNOT_WRITE:
            raise
        place = f" ({error.filename})" if error.filename else ""
        _complain(f"error: {error.strerror}{place}; make room or give another --out, then run the same command again")
        return 1


def _complain(text: str) -> None:
    print(redact(text), file=sys.stderr)
