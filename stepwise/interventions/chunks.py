"""Work in chunks with fixed members, each done whole or not at all: what is on disk after a crash is what it would be.

A chunk begins with empty caches, since which sequences share a batch changes the last digits of logits and so, now and
then, a token. Its files are written in a directory of another name, which is renamed when all of them are on disk; one
that was not renamed is thrown away and made again. So whatever ends the process, the same call later gives the same
files as if nothing had happened, as far as the models themselves repeat their answers (local ones do; with
`concurrency` above 1 the critic's batches depend on timing). That holds for the lab. Where answers are dear, of models
behind an API and of local ones that are not the lab's, each is on disk when it arrives, in answers.jsonl: a chunk that
is done again has it for nothing, and what is asked beside it may differ in its last digits.

Under the caps of [budget] nothing is asked for that could pass one. What was paid for is written down as it is told, in
spent.jsonl, so that the caps hold over all starts of a run, those that were killed and those without a cap included. A
call that was broken off is not counted.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from stepwise.config import Config, Roles
from stepwise.data.examples import Example, unique, write_examples
from stepwise.errors import BudgetExceededError
from stepwise.grading import GRADER_VERSION
from stepwise.interventions.settings import Writers, in_use
from stepwise.io import append_rows, read_rows
from stepwise.models.caps import Caps, uncapped
from stepwise.models.sizes import settled
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.runs.directory import RunDirectory, opened
from stepwise.runs.progress import progress

T = TypeVar("T")
Sealed = Callable[[Path, int, bool], str | None]
"""Hears of a chunk that is sealed: its folder, its number of members, whether an earlier start sealed it. What it
returns stands beside the bar."""
_OPEN = ".open"


def run_chunks(
    directory: RunDirectory,
    members: Sequence[T],
    size: int,
    names: Sequence[str],
    work: Callable[[Sequence[T]], Mapping[str, Sequence[Any]]],
    finish: Callable[[], Path],
    *,
    caps: Caps,
    label: str,
    on_sealed: Sealed | None = None,
) -> Path:
    """Do `work` for `size` members at a time, then `finish`; what it returns is returned.

    What `work` returns, rows for all of the file `names`, is sealed as a chunk; chunks that are sealed already are
    passed over. `label` names the bar to show. No chunk is begun that, at the mean cost of those before it, would pass
    a cap: then, where `work` itself meets one, and after Ctrl-C, what is sealed is finished before the exception goes
    on.

    Example:
        out = run_chunks(directory, problems, 20, ["rollouts"], lambda part: {"rollouts": solved(part)}, finish,
                         caps=caps, label="solving")
    """
    folder = directory.made() / "chunks"
    folder.mkdir(exist_ok=True)
    for left in folder.glob(f"*{_OPEN}"):  # what an earlier start left open
        shutil.rmtree(left)
    try:
        done = min(len([*folder.iterdir()]) * size, len(members))
        with progress(label, len(members), done=done) as advance:
            for first in range(0, len(members), size):
                chunk, place = members[first : first + size], folder / f"{first // size:05d}"
                for name in names:  # a chunk is the run's own before it is there, so that --overwrite finds it
                    directory.claim(f"chunks/{place.name}/{name}.jsonl", folder=False)
                before = place.exists()
                if not before:
                    caps.check(first, len(chunk))
                    _seal(place, work(chunk))
                note = on_sealed(place, len(chunk), before) if on_sealed else None
                advance(0 if before else len(chunk), note)
    except (BudgetExceededError, KeyboardInterrupt):
        finish()
        raise
    return finish()


def _seal(folder: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    """Write the files of a chunk, and give it its name once they are on disk."""
    draft = folder.with_name(folder.name + _OPEN)
    draft.mkdir()
    for name, part in rows.items():
        append_rows(draft / f"{name}.jsonl", part)
    os.replace(draft, folder)
    with suppress(OSError, AttributeError):  # not every system lets a directory be synced
        place = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def sealed_rows(out: str | Path, name: str, kind: type[T]) -> list[T]:
    """The rows of the file `name` (without its ending) in all sealed chunks of `out`, in order.

    >>> sealed_rows("out/nothing", "rollouts", dict)
    []
    """
    folders = sorted(p for p in (Path(out) / "chunks").glob("*") if p.is_dir() and p.suffix != _OPEN)
    return [row for folder in folders for row in read_rows(folder / f"{name}.jsonl", kind)]


def sealed_counts(out: str | Path) -> Counter[str]:
    """What became of what, over all sealed chunks of `out`.

    Example:
        print(sealed_counts("out/int")["examples"])
    """
    counts: Counter[str] = Counter()
    for row in sealed_rows(out, "counts", dict):
        counts.update(row)
    return counts


def write_sealed(
    directory: RunDirectory,
    config: Config,
    card: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    licence: str,
    stage: str = "examples",
    name: str = "dataset",
) -> Path:
    """The examples of all sealed chunks as one dataset with its card; `settings` and the configuration stand in it.

    Example:
        path = write_sealed(directory, config, {"kind": "intervention"}, {"rollouts": 4}, licence="cc-by-4.0")
    """
    path = directory.claim(f"{name}.jsonl")
    directory.claim(f"{name}.md")
    configuration = {
        "configuration": uncapped(config).hash,
        "prompt": config.prompt.hash,
        "step splitter": config.prompt.splitter,
        "sampling": config.sampling.model_dump(),
        "seed": config.seed,
        "grader": GRADER_VERSION,
    }
    examples = unique(sealed_rows(directory.path, stage, Example))
    # That of a row counts the settings too, so that it is another hash than the configuration's.
    configuration["config_hash of the rows (configuration and settings)"] = sorted({e.config_hash for e in examples})
    card = {**card, "settings": {**settings, **configuration}}
    return write_examples(path, examples, card=card, licence=licence)


@contextmanager
def working(
    out: str | Path | RunDirectory,
    program: str,
    config: Config,
    arguments: Mapping[str, Any],
    writers: Writers | None,
    roles: Sequence[Roles] = ("weak", "critic"),
) -> Iterator[tuple[RunDirectory, Writers, Caps]]:
    """The open directory of a run, the models (`writers`, or those of the configuration) and its caps.

    The models raise BudgetExceededError instead of passing a cap; what those answer that are not the lab's is kept in
    the run's answers.jsonl when it arrives, and free to a chunk that is done again. Caps do not make it another
    run: it goes on when they are raised. `roles` are those that are asked.

    Example:
        with working("out/int", "intervene", config, {"lab": 100}, None) as (directory, writers, caps):
            rollouts = sample_rollouts(Chunk(problems, writers, config, settings), writers.weak)
    """
    with ExitStack() as stack:
        directory = stack.enter_context(opened(out, program=program, config=uncapped(config), arguments=arguments))
        if writers is None:  # sees that all fit into memory together, and keeps what is chosen for them with the run
            settled(config, [name for name in roles if name != "critic" or config.critic.method != "reference"])
        models = stack.enter_context(in_use(writers, config))
        caps, store = Caps(config, directory), None
        loads = [config.role(role) for role in ("weak", "strong", "critic", "scorer")]
        keep_local = any(role.local and not role.model.startswith("llamacpp/lab-") for role in loads)
        if keep_local or not all(role.local for role in loads):
            store = stack.enter_context(CallCache(directory.claim("answers.jsonl"), replays_are_free=True))
            for lost in store.unanswered:
                caps.add(lost.role, lost.perhaps)
        around = Wrappers(
            caps.ledger, config.prompt, store, run=uncapped(config).hash, keep_local=keep_local,
            reply_tokens=config.critic.max_tokens,
        )  # fmt: skip
        yield directory, stack.enter_context(models.within(around)), caps
