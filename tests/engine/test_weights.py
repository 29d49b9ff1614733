"""A damaged GGUF is refused by a check of ours before llama.cpp, which may end the process, sees it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwise import lab
from stepwise.config import ModelConfig
from stepwise.errors import BackendError
from stepwise.models import load_backend
from stepwise.models.engine.weights import FINGERPRINT, read_gguf
from tests.engine.conftest import LoadEngine

pytest.importorskip("peft")

# Loads what is named on standard input, answers a line for each, and has the parent see where it dies.
LOADER = """
import sys
from pathlib import Path
from stepwise.errors import BackendError
from stepwise.models.engine.context import LlamaContext
def load(path):
    return LlamaContext(Path(path), context=64, sequences=1, threads=1, gpu_layers=0, kv_type="f32",
                        flash_attention=False, kv_memory=1 << 30)
base = load(sys.argv[1]) if len(sys.argv) > 1 else None
for number, line in enumerate(sys.stdin):
    try:
        if base:
            base.set_adapter(Path(line.strip()), str(number), 1.0)
        else:
            context = load(line.strip())
            context.token[:2], context.pos[:2], context.stream[:2] = 5, (0, 1), 0
            context.decode(2, 0)
            context.close()
    except BackendError:
        pass
    print("done", flush=True)
"""


class Child:
    """A process that loads GGUF files one after another, started anew where one has killed it."""

    def __init__(self, *base: str):
        self.base = base
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOADER, *self.base], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip

    def survives(self, path: Path) -> bool:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() == "done\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def adapters(tiny_gguf_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter of the tiny model in PEFT's layout and as adapter.gguf."""
    from stepwise.training import export_lora_gguf
    from tests.training.test_export_lora import random_adapter

    folder = tmp_path_factory.mktemp("adapters")
    random_adapter(tiny_gguf_path.parent / "qwen3", folder)
    export_lora_gguf(folder, folder / "adapter.gguf")
    return folder


def places(path: Path) -> tuple[list[int], int]:
    """Where the header of a GGUF holds counts, types, names and sizes (text of long lists aside), and its length."""
    data = path.read_bytes()
    spans: list[tuple[int, int]] = [(4, 24)]
    header = read_gguf(path)
    for name in (*header.fields, *header.shapes):
        at = data.index(struct.pack("<Q", len(name.encode())) + name.encode())
        spans.append((at, at + 8 + len(name) + 36))
    return [at for low, high in spans for at in range(low, high)], max(high for _, high in spans)


def damaged(path: Path, seed: int, count: int) -> Iterator[bytes]:
    """One after the other, `count` versions of a file that were cut off, or have other bytes in the header."""
    rng, whole = random.Random(seed), path.read_bytes()
    where, end = places(path)
    for number in range(count):
        if number % 5 == 0:
            yield whole[: rng.randrange(rng.choice((24, end, len(whole))))]
            continue
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            at, extreme = rng.choice(where), rng.choice((0, 1, 255, 2**31, 2**32 - 1, rng.randrange(2**32)))
            form = rng.choice(("<B", "<I", "<Q"))
            piece = struct.pack(form, extreme if form != "<B" else rng.randrange(256))
            data[at : at + len(piece)] = piece
        yield bytes(data)


def sweep(path: Path, tmp_path: Path, seed: int, count: int, *base: str) -> tuple[int, int]:
    """(how many were refused by our check, how many of the others ended the process)."""
    child, broken = Child(*base), tmp_path / "broken.gguf"
    passed = deaths = 0
    for data in damaged(path, seed, count):
        broken.write_bytes(data)
        with contextlib.suppress(BackendError):
            read_gguf(broken)
            passed += 1
            if child.survives(broken):
                continue
            deaths += 1
            child.close()
            child.start()
    child.close()
    return count - passed, deaths


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_damaged_model_ends_the_process(tiny_gguf_path: Path, tmp_path: Path, count: int) -> None:
    refused, deaths = sweep(tiny_gguf_path, tmp_path, 0, count)
    assert refused > count / 4
    assert deaths == 0


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_no_damaged_adapter_ends_the_process(adapters: Path, tiny_gguf_path: Path, tmp_path: Path, count: int) -> None:
    refused, deaths = sweep(adapters / "adapter.gguf", tmp_path, 1, count, str(tiny_gguf_path))
    assert refused > count / 4
    assert deaths == 0


def test_a_file_that_is_cut_off_anywhere_is_refused(tiny_gguf_path: Path, adapters: Path, tmp_path: Path) -> None:
    for path in (tiny_gguf_path, adapters / "adapter.gguf"):
        whole = path.read_bytes()
        for length in {*range(0, 4000, 37), *range(4000, len(whole), len(whole) // 50), len(whole) - 1}:
            (tmp_path / "cut.gguf").write_bytes(whole[:length])
            with pytest.raises(BackendError, match="not a sound GGUF file"):
                read_gguf(tmp_path / "cut.gguf")


def with_field(path: Path, out: Path, key: str, value: Any) -> Path:
    """A copy of a GGUF with the 32-bit number of `key` changed."""
    data = bytearray(path.read_bytes())
    at = data.index(key.encode()) + len(key) + 4
    data[at : at + 4] = struct.pack("<f" if isinstance(value, float) else "<I", value)
    out.write_bytes(data)
    return out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qwen3.block_count", 0),
        ("qwen3.block_count", 513),
        ("qwen3.attention.head_count", 0),
        ("qwen3.attention.head_count", 2 | 1 << 28),
        ("qwen3.rope.dimension_count", 62),
        ("qwen3.attention.layer_norm_rms_epsilon", -1.0),
    ],
)
def test_a_size_at_which_llama_cpp_aborts_is_named(
    tiny_gguf_path: Path, tmp_path: Path, load: LoadEngine, key: str, value: Any
) -> None:
    broken = with_field(tiny_gguf_path, tmp_path / "broken.gguf", key, value)
    with pytest.raises(BackendError, match=key.replace(".", r"\.")):
        load(path=broken)


def test_a_value_of_another_type_is_named(adapters: Path, load: LoadEngine, tmp_path: Path) -> None:
    data, key = (adapters / "adapter.gguf").read_bytes(), b"adapter.lora.alpha"
    (tmp_path / "broken.gguf").write_bytes(data.replace(key + b"\x06", key + b"\x04"))  # a float becomes a uint32
    with pytest.raises(BackendError, match=r"adapter\.lora\.alpha is \d+, which is no float"):
        load(adapter=tmp_path / "broken.gguf")


@pytest.mark.parametrize("key", ["qwen3.rope.dimension_count", "qwen3.attention.key_length", "qwen3.vocab_size"])
def test_a_size_that_a_converter_leaves_out_is_not_missed(tiny_gguf_path: Path, tmp_path: Path, key: str) -> None:
    data = tiny_gguf_path.read_bytes().replace(key.encode(), key[:-1].encode() + b"_")
    (tmp_path / "other.gguf").write_bytes(data)
    assert key not in read_gguf(tmp_path / "other.gguf").fields


def test_the_fields_are_those_that_the_package_gguf_reads(tiny_gguf_path: Path, adapters: Path) -> None:
    from gguf import GGUFReader

    for path in (tiny_gguf_path, adapters / "adapter.gguf", lab.model_path("lab-weak")):
        ours, theirs = read_gguf(path), GGUFReader(path)
        contents = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
        assert {name: getattr(value, "tolist", lambda v=value: v)() for name, value in ours.fields.items()} == contents
        assert ours.shapes == {tensor.name: tuple(tensor.shape) for tensor in theirs.tensors}


# ----- where an adapter comes from


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF of other weights of the same shape."""
    from tests.tiny_models import tiny_gguf

    return tiny_gguf(tmp_path_factory.mktemp("other"), seed=7)


def test_an_adapter_of_another_base_of_the_same_shape_is_refused(
    load: LoadEngine, tiny_gguf_path: Path, other_base: Path, adapters: Path
) -> None:
    load(adapter=adapters / "adapter.gguf")
    with pytest.raises(BackendError, match=r"was trained on other weights: its base is \w{16}.*comes from \w{16}"):
        load(path=other_base, adapter=adapters / "adapter.gguf")


def test_a_configured_model_with_an_adapter_of_another_base_is_refused(other_base: Path, adapters: Path) -> None:
    config = ModelConfig(model=f"llamacpp/{other_base}", context=64, adapter=str(adapters / "adapter.gguf"))
    with pytest.raises(BackendError, match="was trained on other weights"):
        load_backend(config)


def without_fingerprint(path: Path, out: Path) -> Path:
    """As an earlier version or another program wrote it."""
    out.write_bytes(path.read_bytes().replace(FINGERPRINT.encode(), b"unknown." + FINGERPRINT[8:].encode()))
    return out


@pytest.mark.parametrize("spoil", ["card", "train_from"])
def test_a_card_beside_the_adapter_counts_where_the_files_do_not_say(
    load: LoadEngine, tiny_gguf_path: Path, other_base: Path, adapters: Path, tmp_path: Path, spoil: str
) -> None:
    trained_on = read_gguf(tiny_gguf_path).fields[FINGERPRINT]
    adapter = without_fingerprint(adapters / "adapter.gguf", tmp_path / "adapter.gguf")
    load(path=other_base, adapter=adapter)  # nothing is known
    (tmp_path / "card.json").write_text(json.dumps({"base": {"fingerprint": trained_on}, "adapter": {}}))
    load(adapter=adapter)
    if spoil == "card":
        with pytest.raises(BackendError, match="other weights"):
            load(path=other_base, adapter=adapter)
        return
    foreign = without_fingerprint(other_base, tmp_path / "other.gguf")
    load(path=foreign, adapter=adapter)
    load(path=foreign, adapter=adapter, train_from=tiny_gguf_path.parent / "qwen3")
    with pytest.raises(BackendError, match="other weights"):
        load(path=foreign, adapter=adapter, train_from=other_base.parent / "qwen3")


def _forge(card: dict[str, Any]) -> str:
    return json.dumps({**card, "adapter": {"sha256": "0" * 64}})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_forge, "changed or replaced"),
        (lambda _: json.dumps({"file": "adapter.gguf", "sha256": "f" * 64}), "changed or replaced"),
        (lambda _: "{", "cannot be read"),
        (lambda _: "[]", "cannot be read"),
    ],
)
def test_an_adapter_that_is_not_the_one_its_card_describes_is_refused(
    load: LoadEngine, adapters: Path, tmp_path: Path, write: Callable[[dict[str, Any]], str], message: str
) -> None:
    shutil.copy(adapters / "adapter.gguf", tmp_path)
    (tmp_path / "card.json").write_text(write({"base": {"fingerprint": None}}))
    with pytest.raises(BackendError, match=message):
        load(adapter=tmp_path / "adapter.gguf")
