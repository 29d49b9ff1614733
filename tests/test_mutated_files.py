"""Files that were edited, cut or damaged: every reader of ours answers with an error of ours, or reads them."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from evals.mutations import mutants
from stepwise.config import Config
from stepwise.errors import StepwiseError
from stepwise.io import append_rows, read_rows
from stepwise.models.store import Answer, CallCache
from stepwise.routing import Threshold
from stepwise.routing.pomdp.fit import RouterFit, fit_router
from stepwise.routing.saved import load_policy, save_policy
from stepwise.runs.directory import RunDirectory
from stepwise.types import Problem, Step, Trace, Usage
from tests.routing.test_fit import NAMES, drawn


def _config(path: Path) -> object:
    return Config.load(path)


def _run(path: Path) -> object:
    directory = RunDirectory(path.parent, program="p", config=Config(), arguments={})
    directory.check(overwrite=False)
    with directory.ending():
        directory.open(anew=False)
        return directory.summary()


def _cache(path: Path) -> object:
    with CallCache(path, replays_are_free=True) as cache:
        return cache.find("k"), cache.spent(), cache.summary()


def _rows(path: Path) -> object:
    return read_rows(path, Trace)


READERS: dict[str, Callable[[Path], object]] = {
    "config.toml": _config, "run.json": _run, "answers.jsonl": _cache, "traces.jsonl": _rows,
    "policy.json": load_policy, "fit.json": RouterFit.load,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One good file for each reader."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "config.toml").write_bytes(files("stepwise.config").joinpath("lab.toml").read_bytes())
    directory = RunDirectory(folder / "run", program="p", config=Config(), arguments={})
    directory.claim("rows.jsonl").write_text("{}\n")
    with directory.ending():
        pass
    (folder / "run.json").write_bytes((folder / "run" / "run.json").read_bytes())
    with CallCache(folder / "answers.jsonl") as cache:
        cache.add([Answer("k", "weak", "p", Usage("m", 1, 2, 2, 3), {"text": "It is 3."})])
    append_rows(folder / "traces.jsonl", [Trace(Problem("p", "q"), (Step("It is 3.", "weak", 0.5),), "answer")])
    save_policy(folder / "policy.json", Threshold(0.5))
    fit_router(drawn(200), **NAMES, bins=4, samples=20).save(folder / "fit.json")
    return {name: (folder / name).read_bytes() for name in READERS}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_an_error_of_ours_or_is_read(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    reader, rng = READERS[name], random.Random(name)
    faults = {}
    for number, data in enumerate([whole[name], *mutants(whole[name], rng, 150)]):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(data)
        try:
            reader(path)
        except StepwiseError as error:
            if not number or str(path.parent) not in str(error):
                faults[f"the file is not named: {error!s:.200}"] = data[:300]
        except Exception as error:
            faults[f"{type(error).__name__}: {str(error)[:80]}"] = data[:300]
    assert faults == {}


@pytest.mark.parametrize("text", ["inf", "-inf", "nan", "1e400"])
@pytest.mark.parametrize(
    "key", ["budget.money", "budget.problem.money", "models.weak.price_in", "sampling.temperature"]
)
def test_a_number_that_is_none_is_refused(text: str, key: str) -> None:
    with pytest.raises(StepwiseError, match=key):
        Config.load(None, [f"{key}={text}"])
