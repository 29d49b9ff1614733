"""What runs is split into the batches that the model's curve says are fastest, and a run keeps its curve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stepwise.config import Config, ModelConfig
from stepwise.errors import DataError
from stepwise.interventions.settings import Writers, in_use
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.engine.context import build_id
from stepwise.models.engine.curve import SMALLEST, Curve, measure
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.shared import close_engines, load_engine, open_problems, shared_engine
from stepwise.runs.directory import RunDirectory
from tests.engine.conftest import LoadEngine

# Tokens a second by number of sequences, as measured on a 0.5B (Q4_K_M) with AVX-512, and on a 1.5B.
SMALL = {1: 49, 2: 28, 3: 33, 4: 40, 6: 40, 8: 62, 12: 77, 16: 100, 32: 101}
LARGE = {1: 25, 2: 26, 4: 28, 8: 31, 16: 57}


def curve_of(rates: dict[int, float]) -> Curve:
    return Curve({n: n / rate for n, rate in rates.items()})


def partitions(n: int, largest: int) -> Iterator[list[int]]:
    if not n:
        yield []
    for size in range(min(n, largest), 0, -1):
        for rest in partitions(n - size, size):
            yield [size, *rest]


@pytest.mark.parametrize("rates", [SMALL, LARGE])
def test_the_split_is_the_fastest_of_all(rates: dict[int, float]) -> None:
    curve = curve_of(rates)
    for n in range(1, 13):
        assert sum(curve.split(n)) == n
        fastest = min(sum(map(curve.cost, sizes)) for sizes in partitions(n, n))
        assert curve.time(n) == pytest.approx(fastest)


def test_four_sequences_run_one_after_another_where_a_batch_of_four_is_slower() -> None:
    curve = curve_of(SMALL)
    assert [curve.split(n) for n in (1, 2, 4, 6)] == [(1,), (1, 1), (1,) * 4, (1,) * 6]
    assert [curve.split(n) for n in (7, 8, 9, 16)] == [(7,), (8,), (9,), (16,)]
    assert all(curve.time(n) <= n * curve.cost(1) for n in range(1, 40))


def test_a_model_that_batches_well_runs_everything_together() -> None:
    assert [curve_of(LARGE).split(n) for n in (2, 4, 7, 16)] == [(2,), (4,), (7,), (16,)]


def test_no_more_are_kept_running_than_make_it_faster() -> None:
    assert curve_of(SMALL).fastest == 16  # 32 are 1 % faster
    assert curve_of({1: 50, 2: 30, 4: 40}).fastest == 1


@pytest.mark.parametrize("seconds", [{}, {2: 0.1}, {1: 0.0}])
def test_a_curve_that_is_none_is_refused(seconds: dict[int, float]) -> None:
    with pytest.raises(DataError, match="give seconds above 0 by number of sequences, 1 among them"):
        Curve(seconds)


class Clock:
    """A context whose decodes take the time that `rates` say."""

    parameters, vocabulary = SMALLEST, 100

    def __init__(self, rates: dict[int, float], streams: int = 64, slowness: float = 1.0) -> None:
        self.curve, self.streams, self.slowness, self.now = curve_of(rates), streams, slowness, 0.0
        self.token, self.pos, self.stream, self.want = np.zeros((4, 512), np.int32)
        self.held: dict[int, int] = {}

    def decode(self, n: int, rows: int) -> None:
        for stream, position in zip(self.stream[:n], self.pos[:n], strict=True):
            assert self.held.get(int(stream), 0) == position  # llama.cpp wants positions without a gap
            self.held[int(stream)] = int(position) + 1
        assert rows == n == self.want[:n].sum()
        self.now += self.curve.cost(n) * self.slowness

    def truncate(self, stream: int, n: int) -> None:
        self.held[stream] = n


def test_a_curve_is_measured_at_a_few_sizes_and_leaves_the_model_empty() -> None:
    context: Any = Clock(SMALL)
    curve = measure(context, lambda: context.now)
    assert curve is not None
    assert list(curve.seconds) == [1, 2, 3, 4, 6, 8, 12, 16, 24]  # 24 brought nothing, so 32 was not tried
    assert curve.seconds[16] == pytest.approx(0.16)
    assert set(context.held.values()) == {0}


def test_measuring_a_slow_model_ends_early_and_one_with_few_sequences_at_its_number() -> None:
    slow: Any = Clock(LARGE, slowness=20)
    curve = measure(slow, lambda: slow.now)
    assert curve is not None
    assert list(curve.seconds) == [1, 4, 16]
    few: Any = Clock(LARGE, streams=5)
    curve = measure(few, lambda: few.now)
    assert curve is not None
    assert list(curve.seconds) == [1, 2, 3, 4, 5]


def test_a_model_that_is_faster_the_more_it_has_is_given_more() -> None:
    gpu: Any = Clock({1: 100, 256: 25_600}, streams=256)
    curve = measure(gpu, lambda: gpu.now)
    assert curve is not None
    assert curve.fastest == 256


def test_a_tiny_model_has_no_curve_and_keeps_everything_together(tiny_gguf_path: Path) -> None:
    with Engine.load(tiny_gguf_path, context=256, sequences=4, curve="measured") as engine:
        assert engine.curve is None
        assert engine.concurrency == 4


# Singles up to 3, then batches; no more than 4 at once.
STEPPED = Curve({1: 1.0, 2: 9.0, 3: 9.0, 4: 2.0, 8: 4.1})


def jobs(engine: Engine, count: int) -> list[GenerationJob]:
    ids = [tuple(engine.tokenize(f"{i} apples are red.")) for i in range(count)]
    return [GenerationJob(each, 8, temperature=0.8, seed=i, ignore_end=True) for i, each in enumerate(ids)]


def test_an_engine_goes_by_its_curve_and_draws_the_same(load: LoadEngine) -> None:
    engine = load(sequences=8)
    plain, calls = engine.generate(jobs(engine, 3)), engine.counters.decode_calls
    assert calls <= 9  # everything together
    for count, most in ((3, 3 * 8 + 1), (8, 2 * 9)):  # one by one; four, and four again
        engine.reset_cache()
        engine.set_curve(STEPPED)
        before = engine.counters.decode_calls
        made = engine.generate(jobs(engine, count))
        used = engine.counters.decode_calls - before
        assert [each.ids for each in made][:3] == [each.ids for each in plain]
        assert most - 4 <= used <= most, (count, used)
    np.testing.assert_allclose(made[0].logprobs, plain[0].logprobs, atol=1e-4)


def test_scores_do_not_depend_on_the_split(load: LoadEngine) -> None:
    engine = load(sequences=8)
    ids = [engine.tokenize(f"Mia has {i} apples and buys {i} more.") for i in range(6)]
    ends = [[len(each) - 1] for each in ids]
    plain = engine.score(ids, ends, [1, 2, 3])
    engine.reset_cache()
    engine.set_curve(STEPPED)
    for one, other in zip(engine.score(ids, ends, [1, 2, 3]), plain, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-3)


def test_as_many_problems_are_open_as_the_curves_want_and_memory_allows(load: LoadEngine) -> None:
    weak, strong = (LlamaCppBackend(load(sequences=6)) for _ in range(2))
    assert open_problems(weak, strong) is None
    weak.engine.set_curve(STEPPED)
    strong.engine.set_curve(Curve({1: 1.0, 2: 1.1, 4: 3.0}))
    assert open_problems(weak, strong) == 6  # 4 and 2
    assert open_problems(weak) == 4
    assert open_problems(weak, weak) == 4  # one engine
    strong.engine.set_curve(STEPPED)
    assert open_problems(weak, strong) == 6  # 8 would not fit
    assert open_problems(SimpleNamespace(name="an API")) is None


# ----- what a run keeps


def model_of(path: Path) -> ModelConfig:
    """Nothing is left open that would be found out about the machine."""
    return ModelConfig(model=f"llamacpp/{path}", context=256, sequences=8, threads=1)


def started(out: Path) -> RunDirectory:
    directory = RunDirectory(out, program="a_test", config=Config(), arguments={})
    directory.check(overwrite=False)
    directory.open(anew=False)
    return directory


def test_a_run_keeps_curve_sequences_threads_and_build_for_its_later_starts(
    tmp_path: Path, tiny_gguf_path: Path
) -> None:
    model, out = model_of(tiny_gguf_path), tmp_path / "run"
    with started(out).ending(), load_engine(model, curve=STEPPED) as engine:
        first = engine.generate(jobs(engine, 5))
        (out / "rows.jsonl").touch()
    ((key, facts),) = json.loads((out / "engines.json").read_text()).items()
    assert key.startswith(f"llamacpp/{tiny_gguf_path} ")
    assert facts == {
        "context": 256, "sequences": 8, "threads": 1, "curve": STEPPED.to_dict(), "build": build_id(),
    }  # fmt: skip
    with started(out).ending(), load_engine(model) as engine:
        assert engine.curve is not None
        assert engine.curve.seconds == STEPPED.seconds
        assert engine.generate(jobs(engine, 5)) == first  # to the last digit
    (out / "engines.json").write_text(json.dumps({key: {**facts, "sequences": 3, "threads": 2}}))
    with started(out).ending(), load_engine(model) as engine:
        assert (engine.sequences, engine.threads) == (3, 2)
    with load_engine(model) as engine:  # outside of the run
        assert (engine.sequences, engine.threads, engine.curve) == (8, 1, None)


def test_another_build_than_the_run_began_with_is_said(
    tmp_path: Path, tiny_gguf_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, out = model_of(tiny_gguf_path), tmp_path / "run"
    with started(out).ending(), load_engine(model, curve=STEPPED):
        (out / "rows.jsonl").touch()
    text = (out / "engines.json").read_text()
    (out / "engines.json").write_text(text.replace(build_id(), "0.1 AVX"))
    with started(out).ending(), load_engine(model):
        assert f"another build of llama.cpp (0.1 AVX, now {build_id()})" in caplog.text


def test_an_engine_that_is_loaded_already_goes_by_the_curve_of_the_run(tmp_path: Path, tiny_gguf_path: Path) -> None:
    model, out = model_of(tiny_gguf_path), tmp_path / "run"
    with started(out).ending(), load_engine(model, curve=STEPPED):
        (out / "rows.jsonl").touch()
    try:
        assert shared_engine(model).curve is None
        with started(out).ending():
            assert shared_engine(model).curve is not None
    finally:
        close_engines(tiny_gguf_path)


def test_models_that_are_handed_in_loaded_go_by_the_curve_of_the_collection_too(
    tmp_path: Path, tiny_gguf_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, out = model_of(tiny_gguf_path), tmp_path / "run"
    with LlamaCppBackend(load_engine(model, curve=STEPPED)) as weak:
        writers = Writers(Config(), weak=weak)
        with started(out).ending(), in_use(writers, Config()):
            (out / "rows.jsonl").touch()
    more = model.model_copy(update={"sequences": 2})
    with LlamaCppBackend(load_engine(more)) as weak:
        assert weak.engine.curve is None
        with started(out).ending(), in_use(Writers(Config(), weak=weak), Config()):
            assert weak.engine.curve is not None
            assert weak.engine.curve.seconds == STEPPED.seconds
    assert "the run began with sequences 8, now 2" in caplog.text


def test_a_lab_model_leaves_no_such_file(tmp_path: Path, tiny_gguf_path: Path) -> None:
    with started(tmp_path / "run").ending(), load_engine(model_of(tiny_gguf_path)):
        pass
    assert not (tmp_path / "run" / "engines.json").exists()
