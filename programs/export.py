"""Write a trained adapter as GGUF: the adapter alone, or merged into its base as one model.

ADAPTER is the directory that training wrote (PEFT's layout), the run it lies in, or the name of a lab adapter. With
--adapter-only DIR gets adapter.gguf, which the engine and llama-server attach to the base's GGUF. With --merge it gets
model.gguf: base plus adapter, added in float32. Beside it lie README.md and card.json: what it is, and the adapter's
own card.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from stepwise.io import write_text
from stepwise.models.safetensors import fingerprint
from stepwise.runs.progress import announce
from stepwise.runs.shell import POSITIONAL, Options, Run, one_of, program
from stepwise.training.adapters import adapter_directory, base_of, check_adapter, merge, read_card
from stepwise.training.cards import base_name, front_matter, markdown_table
from stepwise.training.export.gguf import Quantization, export_gguf, export_lora_gguf

_WHAT = one_of("Result", required=True)


class _Options(Options):
    adapter: Annotated[str, POSITIONAL]
    """the adapter's directory"""
    adapter_only: Annotated[bool, _WHAT] = False
    """write adapter.gguf, in F32"""
    merge: Annotated[bool, _WHAT] = False
    """write model.gguf: base and adapter as one model"""
    base: str | None = None
    """the base's directory; by default the one the adapter names"""
    quantization: Quantization = "q8_0"
    """of model.gguf"""
    transformers: bool = False
    """with --merge: keep the merged model in transformers' layout too"""


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> None:
    args = run.args
    adapter = adapter_directory(args.adapter)
    base = base_of(adapter, args.base)
    # Only a configuration that was given says under which prompt the adapter will be asked.
    check_adapter(adapter, base, run.config.prompt if run.shared.config or run.shared.set else None)
    if args.adapter_only:
        file = export_lora_gguf(adapter, run.path("adapter.gguf"), base)
    else:
        file = _merged_gguf(run, adapter, base)
    _write_cards(run, adapter, base, file)
    run.say(f"{file} ({file.stat().st_size / 1e6:,.1f} MB)")


def _merged_gguf(run: Run[_Options], adapter: Path, base: Path) -> Path:
    with TemporaryDirectory(dir=run.out, prefix=".merging-") as folder:
        announce(f"merging {adapter} into {base}")
        merged = merge(adapter, Path(folder) / base_name(base).rpartition("/")[2], base)
        announce(f"writing model.gguf ({run.args.quantization})")
        file = export_gguf(merged, run.path("model.gguf"), run.args.quantization)
        if run.args.transformers:
            for part in sorted(merged.iterdir()):
                part.rename(run.path(f"model/{part.name}"))
    return file


def _write_cards(run: Run[_Options], adapter: Path, base: Path, file: Path) -> None:
    """README.md and card.json of what was written."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    merged = file.name == "model.gguf"
    card = read_card(adapter) or {}
    facts = {
        "file": file.name,
        "what": "base and LoRA adapter, merged in float32" if merged else "LoRA adapter",
        "quantization": run.args.quantization if merged else "f32",
        "sha256": digest,
        "base": base_name(base),
        "base fingerprint": fingerprint(base),
    }
    text = json.dumps({**facts, "adapter": card or None}, indent=1, ensure_ascii=False)
    write_text(run.path("card.json"), text + "\n")
    write_text(run.path("README.md"), _readme(facts, adapter, card))


def _readme(facts: Mapping[str, Any], adapter: Path, card: Mapping[str, Any]) -> str:
    """The card of the exported file, and after it that of the adapter."""
    front = front_matter(
        base_model=facts["base"],
        library_name="gguf",
        license=card.get("license", "unknown"),
        pipeline_tag="text-generation",
        tags=["gguf", "stepwise", *(["lora"] if facts["file"] == "adapter.gguf" else [])],
    )
    own = adapter / "README.md"
    body = re.sub(r"\A---\n.*?\n---\n", "", own.read_text(encoding="utf-8"), flags=re.DOTALL) if own.is_file() else ""
    parts = [front, f"# {facts['file']}", markdown_table(("what", "value"), list(facts.items()))]
    return "\n\n".join([*parts, body.strip() or "The adapter has no card."]) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
