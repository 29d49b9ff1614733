"""`stepwise import`: a GGUF as the directory that training starts from, with a tokenizer that is llama.cpp's."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from stepwise.errors import ConfigError, ExportError
from stepwise.models.engine.weights import read_gguf
from stepwise.models.safetensors import Checkpoint
from stepwise.training.export.config import ARCHITECTURES, read_config
from stepwise.training.export.from_gguf import exportable, import_gguf, texts
from stepwise.training.export.gguf import export_gguf
from stepwise.training.export.tokenizer import check_train_from
from tests.tiny_models import Arch, PreTokenizer, tiny_gguf

pytest.importorskip("transformers", reason='needs pip install "stepwise[train]"')
gguf = pytest.importorskip("gguf", reason='needs pip install "stepwise[train]"')


@pytest.mark.parametrize(
    ("arch", "pre"), [("llama", "smollm"), ("llama", "llama-bpe"), ("qwen2", "qwen2"), ("llama", "gpt-2")]
)
def test_weights_and_tokenizer_are_those_of_the_gguf(arch: Arch, pre: PreTokenizer, tmp_path: Path) -> None:
    padded = 600  # rows; the tokenizer has fewer words
    file = tiny_gguf(tmp_path, arch, "f32", pre=pre, vocab_size=padded)
    assert read_gguf(file).fields["tokenizer.ggml.pre"] == pre
    made = import_gguf(file, tmp_path / "made", dtype="float32")
    original, copy = Checkpoint.of_model(tmp_path / arch), Checkpoint.of_model(made)
    for name in original.places:
        assert (original.read(name) == copy.read(name)).all(), name
    words = json.loads((made / "tokenizer.json").read_text())["model"]["vocab"]
    assert not any(word.startswith("[PAD") for word in words)
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    again = export_gguf(made, tmp_path / "again.gguf", "f32")
    check_train_from(again, tmp_path / arch, texts=list(texts(50)))
    assert exportable(made) == ""


def test_padding_rows_that_are_written_down_as_words_are_padding(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path, "qwen2", "f32", pre="qwen2", vocab_size=600)
    path = tmp_path / "qwen2" / "tokenizer.json"
    spec = json.loads(path.read_text())
    taken = {*spec["model"]["vocab"].values(), *(entry["id"] for entry in spec["added_tokens"])}
    spec["model"]["vocab"] |= {f"[PAD{number}]": number for number in range(600) if number not in taken}
    path.write_text(json.dumps(spec))
    check_train_from(file, tmp_path / "qwen2")


def test_what_cannot_be_imported_is_named_with_the_way_that_there_is(tmp_path: Path) -> None:
    file = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(file, "plamo")
    writer.add_type("model")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigError, match=r"does not know 'plamo'.*convert_hf_to_gguf\.py"):
        import_gguf(file, tmp_path / "made")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        import_gguf(file, tmp_path / "full")


def test_a_tokenizer_that_differs_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path, "llama", "f32", pre="gpt-2")
    data = file.read_bytes()
    assert data.count(b"gpt-2") == 1
    file.write_bytes(data.replace(b"gpt-2", b"qwen2"))  # llama.cpp splits by another rule than the words were made for
    made = import_gguf(file, tmp_path / "made")  # as the GGUF says, so that both agree
    assert json.loads((made / "tokenizer.json").read_text())["normalizer"] == {"type": "NFC"}
    file.write_bytes(data.replace(b"gpt-2", b"bloom"))  # a rule that is not known here
    with pytest.raises(ConfigError, match=r"tokenizers split .* differently"):
        import_gguf(file, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_every_causal_architecture_is_exported_or_named_with_llama_cpps_converter(tmp_path: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    assert names >= set(ARCHITECTURES)
    for name in names - set(ARCHITECTURES):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
        with pytest.raises(ExportError, match=r"convert_hf_to_gguf\.py") as caught:
            read_config(tmp_path)
        assert "\n" not in str(caught.value)
        assert name in exportable(tmp_path)


def test_the_program_says_what_to_write_into_the_configuration(
    tiny_gguf_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = importlib.import_module("programs.import")
    out = tmp_path / "made"
    assert program.main([str(tiny_gguf_path), str(out), "--out", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "both tokenizers agree on 1,000 texts" in said
    assert f'train_from = "{out}"' in said
