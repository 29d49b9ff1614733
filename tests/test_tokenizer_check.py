import json
import shutil
from pathlib import Path

import pytest

from stepwise.errors import ConfigError, ExportError
from stepwise.training.export.tokenizer import check_train_from

pytest.importorskip("gguf", reason='needs pip install "stepwise[train]"')


@pytest.fixture
def directory(tiny_gguf_path: Path, tmp_path: Path) -> Path:
    """A copy of the transformers form of `tiny_gguf_path`, to be spoiled."""
    return Path(shutil.copytree(tiny_gguf_path.parent / "qwen3", tmp_path / "model"))


def edit(path: Path, change: dict[str, object]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_a_model_and_its_own_export_agree(tiny_gguf_path: Path, directory: Path) -> None:
    check_train_from(tiny_gguf_path, directory)
    check_train_from(str(tiny_gguf_path), str(directory))


def test_a_renamed_token_is_named(tiny_gguf_path: Path, directory: Path) -> None:
    spec = json.loads((directory / "tokenizer.json").read_text())
    vocab, marker = spec["model"]["vocab"], "<|score|>"
    number = next(entry["id"] for entry in spec["added_tokens"] if entry["content"] == marker)
    vocab.pop(marker, None)
    for entry in spec["added_tokens"]:
        entry["content"] = entry["content"].replace("score", "other")
    edit(directory / "tokenizer.json", spec)
    with pytest.raises(ConfigError, match=rf"tokens: number {number} is '<\|score\|>' in the GGUF, '<\|other\|>'"):
        check_train_from(tiny_gguf_path, directory)


def test_merges_in_another_order_are_named(tiny_gguf_path: Path, directory: Path) -> None:
    spec = json.loads((directory / "tokenizer.json").read_text())
    merges = spec["model"]["merges"]
    merges[5], merges[6] = merges[6], merges[5]
    edit(directory / "tokenizer.json", spec)
    with pytest.raises(ConfigError, match=r"merges: number 5 is .* point train_from at the directory"):
        check_train_from(tiny_gguf_path, directory)


def test_another_end_of_sequence_token_is_named(tiny_gguf_path: Path, directory: Path) -> None:
    edit(directory / "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    with pytest.raises(ConfigError, match="id of eos"):
        check_train_from(tiny_gguf_path, directory)


def test_another_way_to_split_text_is_found_by_running_both(tiny_gguf_path: Path, directory: Path) -> None:
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    edit(directory / "tokenizer.json", {"pre_tokenizer": gpt2})
    with pytest.raises(ConfigError, match=r"tokenizers split .* differently"):
        check_train_from(tiny_gguf_path, directory)


def test_files_that_are_not_there_or_not_models_are_named(
    tiny_gguf_path: Path, directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"none\.gguf cannot be read"):
        check_train_from(tmp_path / "none.gguf", directory)
    (tmp_path / "text.gguf").write_text("no model at all, but long enough for a header")
    with pytest.raises(ConfigError, match=r"text\.gguf cannot be read as a GGUF"):
        check_train_from(tmp_path / "text.gguf", directory)
    with pytest.raises(ExportError, match="empty"):
        check_train_from(tiny_gguf_path, tmp_path / "empty")
