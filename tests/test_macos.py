"""What differs on a Mac (docs/macos.md), as far as another machine can tell; none of it was run there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stepwise.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("wanted", "cuda", "mps", "device"),
    [
        ("auto", True, False, "cuda"),
        ("auto", False, True, "cpu"),  # Metal must be named: training on it was never run
        ("auto", False, False, "cpu"),
        ("mps", False, True, "mps"),
        ("cuda:1", True, False, "cuda:1"),
        ("cpu", True, True, "cpu"),
    ],
)
def test_training_takes_the_device_that_is_named_or_cuda_or_the_cpu(
    wanted: str, cuda: bool, mps: bool, device: str
) -> None:
    pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')
    from stepwise.training.lora import choose_device

    assert choose_device(wanted, cuda=cuda, mps=mps) == device


@pytest.mark.parametrize(("wanted", "name"), [("mps", "Metal"), ("cuda:0", "CUDA")])
def test_a_device_that_torch_does_not_find_is_refused_with_a_remedy(wanted: str, name: str) -> None:
    pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')
    from stepwise.training.lora import choose_device

    with pytest.raises(ConfigError, match=rf'"{wanted}", but torch finds no {name} device; set it to "cpu"'):
        choose_device(wanted, cuda=False, mps=False)


def test_the_build_takes_the_flags_that_it_is_given() -> None:
    command = ["make", "-n", "-B", "demo", "CMAKE_ARGS=-DGGML_METAL=ON"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 'CMAKE_ARGS="-DGGML_METAL=ON"' in shown
    assert "GGML_NATIVE" not in shown
