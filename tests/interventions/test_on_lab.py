"""The pipeline on the lab's models: a chunk is made again whole, so what was killed and went on is what was not."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stepwise import lab
from stepwise.errors import DataError
from stepwise.interventions import funnel

SCRIPT = """
import sys
from stepwise.config import Config
from stepwise.interventions import CollectSettings, collect
from stepwise.lab.problems import generate

cfg = Config.load(None, ["critic.candidates=2", "critic.temperature=0.3"])
settings = CollectSettings(rollouts=2, guided=8, batch=4, compare=4, fresh=2, chunk=2, max_tokens=300,
                           check_sums=False, accept="success")
collect([made.problem for made in generate("val", 8)], cfg, sys.argv[1], settings=settings)
"""


def shipped() -> bool:
    try:
        return lab.model_path("lab-weak").exists() and lab.model_path("lab-critic").exists()
    except DataError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")
def test_a_collection_with_the_labs_models_killed_four_times_is_the_same_file_for_file(tmp_path: Path) -> None:
    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True)
    rng, took = random.Random(3), time.monotonic() - began
    interrupted = 0
    for _ in range(4):
        child = subprocess.Popen(command(tmp_path / "killed"))
        try:
            child.wait(rng.uniform(0.3, 0.8) * took)
        except subprocess.TimeoutExpired:
            interrupted += 1
        child.kill()
        child.wait()
    subprocess.run(command(tmp_path / "killed"), check=True)
    assert interrupted
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    counts = funnel(tmp_path / "whole")
    assert counts["failed attempts"] >= counts["errors located"] > 0
    assert counts["guided rollouts"] > 0


def command(out: Path) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(out)]


def files(out: Path) -> dict[str, bytes]:
    """Everything but the run's card, which has times, and what was paid, which holds what a killed start has lost."""
    left_out = ("run.json", "spent.jsonl")
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in left_out}
