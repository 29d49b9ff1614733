"""The directory of a collection: its models with their caps and answers, and the dataset of what is sealed.

How chunks are done and sealed is `stepwise.runs.chunks`'. Under the caps of [budget] nothing is asked for that could
pass one. What was paid for is written down as it is told, in spent.jsonl, so that the caps hold over all starts of a
run, those that were killed and those without a cap included. A call that was broken off is not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise.config import Config, Roles
from stepwise.data.examples import Example, unique, write_examples
from stepwise.errors import ConfigError
from stepwise.grading import GRADER_VERSION
from stepwise.interventions.settings import Writers, in_use
from stepwise.models.budget import Ledger
from stepwise.models.caps import uncapped
from stepwise.models.crew import at_work
from stepwise.models.sizes import settled
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.runs.chunks import sealed_rows
from stepwise.runs.directory import RunDirectory, opened


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


@dataclass(frozen=True)
class _Making:
    """How the models of a collection are made: `writers`, or those of the configuration."""

    writers: Writers | None = None

    @contextmanager
    def models(self, config: Config, ledger: Ledger, store: CallCache | None, keep_local: bool) -> Iterator[Writers]:
        around = Wrappers(
            ledger, config.prompt, store, run=uncapped(config).hash, keep_local=keep_local,
            reply_tokens=config.critic.max_tokens,
        )  # fmt: skip
        with in_use(self.writers, config) as models, models.within(around):
            yield models

    def about(self, models: Writers) -> None:
        """Nothing: they are loaded when they are first asked."""


@contextmanager
def working(
    out: str | Path | RunDirectory,
    program: str,
    config: Config,
    arguments: Mapping[str, Any],
    writers: Writers | None,
    roles: Sequence[Roles] = ("weak", "critic"),
) -> Iterator[tuple[RunDirectory, Any]]:
    """The open directory of a run, and the crew that does its chunks, with `writers` or the configuration's models.

    The models raise BudgetExceededError instead of passing a cap; what those answer that are not the lab's is kept in
    the run's answers.jsonl when it arrives, and free to a chunk that is done again. Caps do not make it another
    run: it goes on when they are raised. `roles` are those that are asked.

    Example:
        with working("out/int", "intervene", config, {"lab": 100}, None) as (directory, crew):
            run_chunks(directory, problems, 8, ["rollouts"], work, finish, crew=crew, label="solving")
    """
    with ExitStack() as stack:
        if writers is not None and config.workers.backend != "process":
            raise ConfigError(
                'models that are handed in loaded stay in this process; set workers.backend to "process", or name them '
                "in the configuration"
            )
        directory = stack.enter_context(opened(out, program=program, config=uncapped(config), arguments=arguments))
        if writers is None:  # sees that all fit into memory together, and keeps what is chosen for them with the run
            settled(config, [name for name in roles if name != "critic" or config.critic.method != "reference"])
        yield directory, stack.enter_context(at_work(config, directory, _Making(writers)))
