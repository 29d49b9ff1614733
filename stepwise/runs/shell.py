"""The shell that every program shares: options, output directory, dry run, interruption, one-line errors.

A program is one function, and a class of its own options, which cyclopts reads from the command line:

    class _Options(Options):
        n: PositiveInt = 50
        # and what --help says of it, as its docstring

    @program(_Options, doc=__doc__, plan=plan)
    def main(run: Run[_Options]) -> None:
        for problem in problems[: run.args.n]:
            run.write("traces.jsonl", trace)
        run.metrics(accuracy=0.93)

`main(argv)` then reads these and the options of all, and returns an exit code: 0, 1 for a failure, 2 for a mistake
in the input, 130 after Ctrl-C.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepwise.config import ENGINE_KINDS, Config, Roles, ScorerConfig
from stepwise.errors import BackendError, ConfigError, DataError, StepwiseError, redact, visible
from stepwise.io import append_rows, read_rows
from stepwise.lab import ADAPTERS, MODELS
from stepwise.runs.directory import RunDirectory
from stepwise.runs.options import (
    PIPE,
    POSITIONAL,
    ColumnNames,
    Options,
    OptionsT,
    SharedOptions,
    one_of,
    parse_options,
)
from stepwise.runs.plan import PlannedCalls, show_plan
from stepwise.runs.progress import announce, heartbeat

__all__ = ["PIPE", "POSITIONAL", "ColumnNames", "Options", "Run", "check_files", "complain", "one_of", "program"]
_log = logging.getLogger(__package__)
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


class Run(Generic[OptionsT]):
    """What a program gets: its configuration, its own options, those of all, a console (standard output), and an output
    directory.

    Example:
        def main(run: Run[Mine]) -> None:
            run.write("rows.jsonl", {"n": run.args.n})
            run.console.print(f"Written to {run.out}")
    """

    def __init__(
        self, config: Config, args: OptionsT, shared: SharedOptions, directory: RunDirectory, console: Console
    ) -> None:
        self.config = config
        self.args = args
        self.shared = shared
        self.console = console
        self.directory = directory
        """For the library's functions that work in an open directory."""
        self.resumed = False
        """Whether it goes on with what an earlier start left."""
        self._pages: list[Callable[[], None]] = []

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
        if not self.directory.holds(name):
            return []
        return read_rows(path) if cls is None else read_rows(path, cls)

    def metrics(self, **values: Any) -> None:
        """Append one row to metrics.jsonl."""
        self.write("metrics.jsonl", values)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table, every column aligned to the right."""
        table = Table(title=Text(visible(title)), title_justify="left")
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(Text(visible(cell)) for cell in row))
        self.console.print(table)

    def say(self, text: str) -> None:
        """Print a line to the console, without markup, secrets and control characters; paths are not broken."""
        for line in visible(text).split("\n"):
            whole = textwrap.fill(line, self.console.width, break_long_words=False, break_on_hyphens=False)
            self.console.print(whole, markup=False, highlight=False, soft_wrap=True)

    def page(self, name: str, write: Callable[[Path], Any], shows: str) -> None:
        """Have `write` make the page `name` once the run has ended, so that it says how, and say where it is.

        `shows` names what can be looked at there.
        """
        path = self.path(name)

        def made() -> None:
            write(path)
            self.say(f"Look at {shows}: {path.resolve().as_uri()}")

        self._pages.append(made)

    def write_pages(self) -> None:
        """Write the pages that were asked for, once."""
        while self._pages:
            self._pages.pop(0)()

    def refuse_failure(self, faults: Sequence[str], total: int, of: str = "problems") -> None:
        """Raise BackendError where all of `total` came to nothing; `faults` say why each did that failed."""
        if total and len(faults) == total:
            raise BackendError(
                f"all {total} {of} failed, for example: {faults[0]}; mend that, and run the command again"
            )

    def missed(self, bars: Iterable[str]) -> int:
        """The exit code of a measurement: 1, and said, where it missed any of its bars."""
        names = list(dict.fromkeys(bars))
        if names:
            self.say(f"MISSED: {', '.join(names)}")
        return int(bool(names))

    def held(self, title: str, rows: Sequence[Mapping[str, Any]]) -> int:
        """Print rows that say in `held` whether they did, named by their first column; their exit code."""
        words = {True: "held", False: "MISSED"}
        shown = [[words[v] if isinstance(v, bool) else str(v) for v in row.values()] for row in rows]
        self.table(title, list(rows[0]), shown)
        return self.missed(str(next(iter(row.values()))) for row in rows if not row["held"])

    def empty(self, made: int, reason: str) -> int:
        """The exit code of a run that made so many of what it is for: 1, with the reason said, where there are none."""
        if not made:
            self.say(f"error: {reason}")
        return int(not made)

    def say_json(self, row: Any) -> None:
        """Print `row` as one line of JSON, without secrets, for the program that reads standard output."""
        print(redact(json.dumps(row), shapes=False, as_json=True), flush=True)


def program(
    options: type[OptionsT] = Options,  # type: ignore[assignment]
    *,
    doc: str | None,
    plan: Callable[[Config, OptionsT], Sequence[PlannedCalls]] | None = None,
    resumable: bool | Callable[[OptionsT], bool | None] | None = True,
    waits: bool = False,
    same_run: Callable[[Config], Config] = lambda config: config,
    on_workers: bool = False,
) -> Callable[[Callable[..., int | None]], Callable[..., int]]:
    """Turn `function(run)` into `main(argv=None) -> exit code`. The file's name is the program's name.

    `doc` is the module's docstring, shown by --help; `options` the program's own. `plan` says what the run would spend,
    per role, for --dry-run. A program that is not `resumable` starts anew each time: its own files of an earlier start
    with the same settings go once it has a file to put there; with None, which options may decide, it writes nothing
    and leaves the directory alone. One that `waits` for others, as a server does, is not said to be at work while it
    shows nothing. `same_run` leaves out of the configuration what may change
    between the starts of one run. `on_workers`: it does its chunks where [workers] says; others
    refuse that. What is given to `main` by name, such as models in place of those of the
    configuration, goes to the function.

    Example:
        main = program(Mine, doc=__doc__)(my_main)  # or above it, as a decorator
        main(["--n", "5", "--out", "out/mine"])
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., int]:
        file = Path(function.__code__.co_filename)
        name = file.stem
        command = f"python -m evals.{name}" if file.parent.name == "evals" else f"stepwise {name}"

        def start(args: OptionsT, shared: SharedOptions, given: dict[str, Any]) -> int:
            config = Config.load(shared.config, [*shared.set, *args.overrides()])
            if not on_workers:
                config.workers.refuse(command)
            console = Console(stderr=getattr(args, "as_json", False))  # with --json, standard output is for a program
            out = shared.out or Path("out") / name
            computed = args.model_dump(mode="json", exclude=set(options.neutral))
            fields = ((key, options.model_fields[key]) for key in computed)
            unset = {key: field.get_default() for key, field in fields if not field.is_required()}
            directory = RunDirectory(
                out, program=name, config=same_run(config), arguments=computed,
                defaults=json.loads(json.dumps(unset, default=str)),
            )  # fmt: skip
            goes_on = resumable(args) if callable(resumable) else resumable
            if goes_on is not None:
                directory.check(overwrite=shared.overwrite)
            if plan is not None and not given:
                check_files(config)
            if shared.dry_run:
                if plan is None:
                    console.print("Nothing was run; how much this program would ask models for is not estimated.")
                else:
                    show_plan(plan(config, args), config, console)
                return 0
            run = Run(config, args, shared, directory, console)
            if goes_on is not None:
                run.resumed = directory.open(anew=shared.overwrite or not goes_on, later=not goes_on)
            if run.resumed:
                state = "is finished already" if directory.finished else "goes on"
                run.say(f"the run in {out} {state} (--overwrite starts anew)")
            try:
                with directory.ending() if goes_on is not None else nullcontext():
                    _log.info("%s begins in %s with configuration %s", name, out, config.hash)
                    code = function(run, **given) or 0
                    directory.failed = bool(code)
            except KeyboardInterrupt:
                remedy = f"the same command {'goes on from there' if goes_on else 'starts anew'}"
                complain(f"interrupted; {directory.summary()}; {remedy}")
                return 130
            finally:
                run.write_pages()
            return code

        @functools.wraps(function)
        def main(argv: Sequence[str] | None = None, **given: Any) -> int:
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show must not cost the run its end
                    stream.reconfigure(errors="replace")
            try:
                parsed = parse_options(command, doc, options, sys.argv[1:] if argv is None else argv)
            except ConfigError as error:
                complain(f"error: {str(error).rstrip('.')}; `{command} --help` lists the options")
                return 2
            if parsed is None:
                return 0
            args, shared = parsed
            level = logging.DEBUG if shared.debug else logging.INFO if shared.verbose else logging.WARNING
            with _logged(level), nullcontext() if waits else heartbeat(command):
                return _guarded(lambda: start(args, shared, given), debug=shared.debug)

        return main

    return decorate


def check_files(config: Config) -> None:
    """Raise ConfigError for a local model, or an adapter of one, that is not there: before anything is written.

    Example:
        check_files(Config.load(None, ["models.weak.model=llamacpp/gone.gguf"]))  # raises
    """
    for role in get_args(Roles):
        model = config.role(role)
        if not model.local or (isinstance(model, ScorerConfig) and model.kind not in ENGINE_KINDS):
            continue
        place = role if role == "scorer" else f"models.{role}"
        weights = model.model.partition("/")[2]
        for key, name, remedy in (
            ("model", weights, "the path of a GGUF, or the name of a lab model"),
            ("adapter", model.adapter, "the path of a LoRA adapter in GGUF, or the run that trained it"),
        ):
            elsewhere = name is None or name in (*MODELS, *ADAPTERS) or name.startswith("hf:")
            if not elsewhere and not Path(str(name)).expanduser().exists():
                raise ConfigError(f"{place}.{key}: {name}: no such file; give {remedy}")


@contextmanager
def _logged(threshold: int) -> Iterator[None]:
    """Print on standard error what the library logs, a line each, from this level on, and always what `announce` says;
    tracebacks only where everything is shown.
    """

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complain(self.format(record))

    handler, logger, announced = Lines(), logging.getLogger("stepwise"), logging.getLogger(announce.__module__)
    levels = logger.level, announced.level
    logger.addHandler(handler)
    logger.setLevel(threshold)
    announced.setLevel(min(threshold, logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(levels[0])
        announced.setLevel(levels[1])


def _guarded(work: Callable[[], int], *, debug: bool) -> int:
    """Run `work`; a StepwiseError or a disk that takes no more becomes one line on standard error.

    Anything else stays a traceback.
    """
    try:
        return work()
    except KeyboardInterrupt:
        complain("interrupted before anything was written")
        return 130
    except StepwiseError as error:
        if debug:
            raise
        complain(f"error: {error}")
        return 2 if isinstance(error, ConfigError | DataError) else 1
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would complain again when it flushes at its end
        return 1
    except OSError as error:
        if debug or error.errno not in _CANNOT_WRITE:
            raise
        place = f" ({error.filename})" if error.filename else ""
        complain(f"error: {error.strerror}{place}; make room or give another --out, then run the same command again")
        return 1


def complain(text: str) -> None:
    """Print a line to standard error, without secrets and control characters.

    Example:
        complain("error: no such file")
    """
    print(visible(text), file=sys.stderr)
