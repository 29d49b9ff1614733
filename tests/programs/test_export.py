"""The program export: an adapter in, a GGUF and its card out, and every mistake in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from programs.export import main
from stepwise.config import Config
from stepwise.models.engine import Engine
from stepwise.training.cards import write_card
from stepwise.training.export.gguf import export_gguf
from tests.tiny_models import tiny_model
from tests.training.parity import llama_logits, random_ids, transformers_logits
from tests.training.test_export_lora import random_adapter

for _package in ("torch", "transformers", "peft", "gguf", "llama_cpp"):
    pytest.importorskip(_package)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Base, a run with an adapter in it, and the PEFT model."""
    folder = tmp_path_factory.mktemp("export")
    base = tiny_model(folder / "base")
    model = random_adapter(base, folder / "run" / "adapter")
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    write_card(folder / "run" / "adapter", "sft", Config.lab(), base)
    return base, folder / "run", model


def test_the_adapter_alone_comes_out_with_its_card(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, run, model = made
    out = tmp_path / "out"
    assert main([str(run), "--adapter-only", "--out", str(out)]) == 0
    ids = random_ids(base, 30)
    gguf = export_gguf(base, tmp_path / "base.gguf", "f32")
    assert abs(llama_logits(gguf, ids, out / "adapter.gguf") - transformers_logits(model, ids)).max() < 1e-4
    card = json.loads((out / "card.json").read_text())
    assert (card["file"], card["quantization"], card["base"]) == ("adapter.gguf", "f32", "base")
    assert card["adapter"]["method"] == "sft"
    text = (out / "README.md").read_text()
    assert text.startswith('---\nbase_model: "base"\nlibrary_name: "gguf"\nlicense: "mit"\n')
    assert "# LoRA adapter on base" in text
    assert text.count("---\nbase_model") == 1


def test_the_merged_model_comes_out_and_the_engine_serves_it(made: tuple[Path, Path, Any], tmp_path: Path) -> None:
    base, run, model = made
    out = tmp_path / "out"
    arguments = [str(run / "adapter"), "--merge", "--quantization", "f32", "--transformers", "--out", str(out)]
    assert main(arguments) == 0
    ids = random_ids(base, 30)
    wanted = transformers_logits(model, ids)
    assert abs(transformers_logits(out / "model", ids) - wanted).max() < 1e-4
    with Engine.load(out / "model.gguf", kv_type="f32", flash_attention=False, context=64, sequences=1) as engine:
        assert abs(engine.score([ids], [[29]], range(40))[0].logits - wanted[29:, :40]).max() < 1e-4
    assert json.loads((out / "card.json").read_text())["what"] == "base and LoRA adapter, merged in float32"
    assert not list(out.glob(".merging-*"))
    again = [*arguments[:3], "q8_0", "--out", str(out), "--overwrite"]
    assert main(again) == 0
    assert not list(out.glob("model/*"))


def test_a_lab_adapter_is_found_by_name(tmp_path: Path) -> None:
    from stepwise.lab import model_path

    assert main(["lab-critic", "--adapter-only", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "adapter.gguf").read_bytes()[:4] == model_path("lab-critic").read_bytes()[:4]
    assert "The adapter has no card." in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--adapter-only"], "adapter nowhere: no such directory"),
        (["ADAPTER", "--merge", "--base", "nowhere"], "'nowhere' of adapter"),
        (["ADAPTER", "--merge", "--base", "lab-strong"], "does not fit the base"),
        (["ADAPTER", "--adapter-only", "--set", "prompt.system=Think."], "was trained under the prompt"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_gguf(
    made: tuple[Path, Path, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [str(made[1]) if text == "ADAPTER" else text for text in arguments]
    assert main([*given, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.glob("out/*.gguf"))


def test_one_of_the_two_forms_must_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["somewhere"]) == 2
    assert "give one of --adapter-only, --merge" in capsys.readouterr().err
