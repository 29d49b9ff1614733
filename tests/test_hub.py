"""Models named by their place on the hub, with the hub library's functions replaced: nothing here needs a network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwise import BackendError, ConfigError, DataError, MissingDependencyError, ModelConfig, load_backend
from stepwise.models.base import Request
from stepwise.models.hub import adapter_path, fetch, gguf_file, gguf_path
from stepwise.training.adapters import adapter_directory
from stepwise.types import Problem

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    fetch.cache_clear()
    yield
    fetch.cache_clear()


def test_a_file_of_a_repository_is_fetched_once_and_runs(tiny_gguf_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(tiny_gguf_path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    for spec in ("hf:org/repo/sub/model-q8_0.gguf", "llamacpp/hf:org/repo/sub/model-q8_0.gguf"):
        with load_backend(spec, context=256, sequences=2) as backend:  # type: ignore[attr-defined]
            assert backend.continue_solutions([Request(Problem("a", "2 + 2?"), max_tokens=3)])[0].error == ""
    assert asked == [("org/repo", "sub/model-q8_0.gguf")]


def test_a_whole_repository_is_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "snapshot_download", lambda repository: str(tmp_path / repository))
    assert fetch("hf:org/repo") == tmp_path / "org/repo"


def test_a_configuration_may_name_the_hub_directly() -> None:
    assert ModelConfig(model="hf:org/repo/m.gguf").model == "llamacpp/hf:org/repo/m.gguf"
    assert ModelConfig(model="hf:org/repo/m.gguf").local


def test_a_path_or_a_lab_model_never_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    assert gguf_path("some/model.gguf") == Path("some/model.gguf")
    with pytest.raises(BackendError, match=r'no such file.*"hf:Qwen/Qwen3-0.6B/FILE.gguf" is downloaded'):
        gguf_file("Qwen/Qwen3-0.6B")
    assert gguf_path("lab-weak").name == "model.gguf"


@pytest.mark.parametrize("spec", ["hf:", "hf:org", "hf:org/", "hf:/repo/file.gguf", "org/repo/file.gguf"])
def test_a_place_that_cannot_be_one_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="hf:ORG/REPO/FILE"):
        fetch(spec)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("LocalEntryNotFoundError", "connect to the network"),
        ("OfflineModeIsEnabled", "unset HF_HUB_OFFLINE"),
        ("GatedRepoError", "accept its terms"),
        ("RepositoryNotFoundError", "check the name"),
        ("RemoteEntryNotFoundError", "check the file's name"),
    ],
)
def test_what_the_hub_refuses_is_said_with_its_remedy(name: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = getattr(hub.errors, name)

    def download(*_: Any) -> str:
        raise kind.__new__(kind, "refused with hf_abcdefghijk\nand more")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(BackendError, match=remedy) as raised:
        fetch("hf:org/repo/file.gguf")
    assert "hf:org/repo/file.gguf" in str(raised.value)
    assert "abcdefghijk" not in str(raised.value)


def test_offline_a_file_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackendError, match="HF_HUB_OFFLINE"):
        fetch("hf:org/repo/file.gguf")


def test_without_the_hub_library_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match="pip install huggingface_hub"):
        fetch("hf:org/repo/file.gguf")


def test_an_adapter_is_its_file_or_the_directory_or_the_run_that_it_lies_in(tmp_path: Path) -> None:
    file = tmp_path / "run" / "adapter" / "adapter.gguf"
    file.parent.mkdir(parents=True)
    file.touch()
    assert {adapter_path(name) for name in (file, file.parent, tmp_path / "run")} == {file}
    with pytest.raises(DataError, match=r"has no adapter\.gguf"):
        adapter_path(tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (file.parent / name).touch()
    assert {adapter_directory(name) for name in (file, file.parent, tmp_path / "run")} == {file.parent}
    with pytest.raises(DataError, match="nowhere: no such directory"):
        adapter_directory("nowhere")
