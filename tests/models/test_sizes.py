"""What a configuration leaves open about a local model is chosen by its GGUF and the machine, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepwise import lab
from stepwise.config import Config, LoadConfig, ModelConfig, ScorerConfig
from stepwise.errors import BackendError
from stepwise.models.machine import free_memory, physical_cores
from stepwise.models.sizes import GgufFacts, complete, completed, in_words, settled
from stepwise.runs.directory import RunDirectory

GIB = 1 << 30


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A model of the user's own: the lab's weights under another name."""
    path = tmp_path / "mine.gguf"
    path.symlink_to(lab.model_path("lab-weak"))
    return f"llamacpp/{path}"


def test_what_is_open_follows_from_model_memory_and_cores(mine: str) -> None:
    loads: dict[str, LoadConfig] = {"weak": ModelConfig(model=mine)}
    roomy = complete(loads, free=64 * GIB, cores=6)
    trained = GgufFacts.read(lab.model_path("lab-weak")).context
    assert roomy.chosen == {"weak": {"threads": 6, "context": min(4096, trained), "sequences": 16}}
    facts = GgufFacts.read(lab.model_path("lab-weak"))
    each = facts.sequence_bytes(min(4096, trained), "f16")
    tight = complete(loads, free=facts.fixed_bytes(16) + 10 * each, cores=6)
    assert tight.chosen["weak"]["sequences"] == 5  # half of what is free beside the weights
    assert tight.needs["weak"] <= facts.fixed_bytes(16) + 10 * each
    assert "mine: 6 threads" not in in_words(tight)
    assert "5 sequences at once, 6 threads" in in_words(tight)


def test_what_is_set_stays_and_the_labs_models_have_the_labs_values(mine: str) -> None:
    own = ModelConfig(model=mine, context=300, sequences=3, threads=2)
    assert complete({"weak": own}, free=64 * GIB).chosen == {}
    assert completed(own) is own
    part = complete({"weak": ModelConfig(model=mine, sequences=3)}, free=64 * GIB, cores=2)
    assert part.chosen["weak"].keys() == {"context", "threads"}
    load = ModelConfig(model="llamacpp/lab-weak")
    assert (load.context, load.sequences, load.threads) == (2048, 64, 1)
    assert complete({"weak": load}).chosen == {}
    assert ScorerConfig() == ScorerConfig(context=2048, sequences=64, threads=1)


def test_models_that_do_not_fit_together_are_refused_with_what_each_needs(mine: str) -> None:
    loads: dict[str, LoadConfig] = {
        "weak": ModelConfig(model=mine, sequences=64, context=4096),
        "strong": ModelConfig(model=mine, sequences=1, context=512),
    }
    with pytest.raises(BackendError, match=r"1\.0 GiB are free: weak \(mine\.gguf\) needs .*64 sequences of 4096"):
        complete(loads, free=GIB)
    with pytest.raises(BackendError, match="Set sequences or context of weak lower"):
        complete(loads, free=GIB)
    assert complete({"weak": ModelConfig(model="openai/NAME")}, free=1).needs == {}
    on_gpu = ModelConfig(model=mine, gpu_layers=-1)
    assert complete({"weak": on_gpu}, free=GIB, cores=1).chosen["weak"]["sequences"] == 16


def test_what_was_chosen_at_the_first_start_is_taken_at_the_next(mine: str, tmp_path: Path) -> None:
    config = Config.load(None, [f"models.weak.model={mine}"])

    def start(free: int) -> int | None:
        directory = RunDirectory(tmp_path / "run", program="route", config=config, arguments={})
        directory.check(overwrite=False)
        directory.open(anew=False)
        with directory.ending():
            directory.claim("rows.jsonl").write_text("{}\n")
            return complete({"weak": config.models.weak}, free=free, cores=1).models["weak"].sequences

    facts = GgufFacts.read(lab.model_path("lab-weak"))
    just = facts.fixed_bytes(16) + 16 * facts.sequence_bytes(facts.context, "f16")
    assert start(64 * GIB) == 16
    assert start(just) == 16
    assert complete({"weak": config.models.weak}, free=just, cores=1).models["weak"].sequences == 8
    assert settled(Config.lab(), ["weak"]) == Config.lab()


def test_memory_and_cores_are_those_of_the_container(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    assert free_memory(tmp_path) is None
    write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert free_memory(tmp_path) == 8000 * 1024
    write("proc/self/cgroup", "0::/a/b\n")
    write("sys/fs/cgroup/a/memory.max", "5000000\n")
    write("sys/fs/cgroup/a/memory.current", "3000000\n")
    write("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 500000\n")
    write("sys/fs/cgroup/a/b/memory.max", "max\n")
    assert free_memory(tmp_path) == 2_500_000
    write("proc/self/cgroup", "4:memory:/x\n2:cpu,cpuacct:/x\n")
    write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "4000000")
    write("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1000000")
    assert free_memory(tmp_path) == 3_000_000
    write("proc/self/cgroup", "0::/a\n")
    write("sys/fs/cgroup/a/cpu.max", "100000 100000")
    assert physical_cores(tmp_path) == 1


def test_no_more_sequences_are_made_than_a_run_has_problems() -> None:
    load = ModelConfig(model=f"llamacpp/{lab.model_path('lab-weak')}", threads=1)
    many, few = (complete({"weak": load}, free=8 << 30, cores=1, most=most) for most in (None, 3))
    assert (many.models["weak"].sequences, few.models["weak"].sequences) == (16, 3)
    assert few.needs["weak"] < many.needs["weak"]
