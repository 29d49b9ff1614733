"""The tokenizer of a transformers model as GGUF metadata: byte-level BPE, with a pre-tokenizer that llama.cpp knows.

What llama.cpp does not do: the NFC normalisation of Qwen (stepwise normalises text at its door), and tokens that strip
the spaces beside them (refused).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwise.errors import ExportError
from stepwise.export.safetensors import read_json

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_GPT2 = "the ByteLevel pre-tokenizer's own"
# (regex, ignore_merges) -> tokenizer.ggml.pre: its name decides whether llama.cpp looks a word up before it merges.
_PRE_TOKENIZERS = {
    (_GPT2, False): "gpt-2",
    (_QWEN2, False): "qwen2",
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",
}
SUPPORTED = (
    "supported are byte-level BPE tokenizers (a tokenizer.json) with the pre-tokenizer of GPT-2, of Llama 3 "
    "(numbers in groups of up to three digits) or of Qwen2 and Qwen3 (single digits)"
)


@dataclass(frozen=True)
class GgufTokenizer:
    """What GGUF holds of a tokenizer. `tokens` and `types` have one entry per row of the embedding matrix."""

    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    special_ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | list[dict[str, str]] | None

    def write(self, writer: Any) -> None:
        """Add all keys to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for role, token_id in self.special_ids.items():
            getattr(writer, f"add_{role}_token_id")(token_id)
        # Always written: what llama.cpp assumes without the keys depends on the pre-tokenizer.
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_tokenizer(model_dir: Path, vocab_size: int) -> GgufTokenizer:
    """The tokenizer in `model_dir`, padded with unused tokens to `vocab_size`; ExportError if it cannot be written."""
    path = model_dir / "tokenizer.json"
    if not path.is_file() and (model_dir / "tokenizer.model").is_file():
        raise ExportError(
            f"{model_dir} has a SentencePiece tokenizer (tokenizer.model) and no tokenizer.json; {SUPPORTED}"
        )
    spec = read_json(path)
    model = spec.get("model") or {}
    _check_model(path, model)
    _check_normalizer(path, spec.get("normalizer"))
    added = spec.get("added_tokens") or []
    ids = {**model["vocab"], **{entry["content"]: entry["id"] for entry in added}}
    tokens, types = _vocabulary(path, model["vocab"], added, vocab_size)
    config = read_json(model_dir / "tokenizer_config.json", optional=True)
    special_ids = _special_ids(model_dir, config, ids)
    add_bos, add_eos = _added_by_post_processor(path, spec.get("post_processor"), special_ids, ids)
    return GgufTokenizer(
        pre=detect_pre_tokenizer(path, spec),
        tokens=tokens,
        types=types,
        merges=tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]),
        special_ids=special_ids,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(model_dir, config),
    )


def detect_pre_tokenizer(path: Path, spec: Mapping[str, Any]) -> str:
    """The `tokenizer.ggml.pre` that splits as the tokenizer.json `spec` does; raises ExportError if there is none."""
    pre = spec.get("pre_tokenizer") or {}
    stages = pre.get("pretokenizers", []) if pre.get("type") == "Sequence" else [pre]
    kinds = [stage.get("type") for stage in stages]
    regex = None
    if kinds == ["ByteLevel"] and stages[0].get("use_regex", True):
        regex = _GPT2
    elif kinds == ["Split", "ByteLevel"] and not stages[1].get("use_regex", True):
        split = stages[0]
        if split.get("behavior") == "Isolated" and not split.get("invert", False):
            regex = split.get("pattern", {}).get("Regex")
    if stages and stages[-1].get("add_prefix_space", False):
        raise ExportError(f"{path}: pre_tokenizer has add_prefix_space, which llama.cpp does not do; {SUPPORTED}")
    ignore_merges = bool(spec["model"].get("ignore_merges", False))
    name = _PRE_TOKENIZERS.get((regex or "", ignore_merges))
    if name is None:
        raise ExportError(
            f"{path}: llama.cpp has no counterpart of the pre_tokenizer {' + '.join(map(str, kinds))} "
            f"with regex {regex!r} and ignore_merges={ignore_merges}; {SUPPORTED}"
        )
    return name


def _check_model(path: Path, model: Mapping[str, Any]) -> None:
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ExportError(f"{path}: model.type is {model.get('type')!r}; {SUPPORTED}")
    if not isinstance(model.get("merges"), list) or not model["merges"]:
        raise ExportError(f"{path}: model.merges is missing or empty; train the tokenizer on some text")
    if model.get("byte_fallback"):
        raise ExportError(f"{path}: model.byte_fallback is true, so this is a SentencePiece tokenizer; {SUPPORTED}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token", "dropout"):
        if model.get(key):
            raise ExportError(f"{path}: model.{key} is {model[key]!r}, which llama.cpp does not have; {SUPPORTED}")
    missing = 256 - sum(char in model["vocab"] for char in _byte_characters())
    if missing:
        raise ExportError(
            f"{path}: {missing} of the 256 byte characters are not in the vocabulary, so some text has no tokens; "
            "train the tokenizer with initial_alphabet=ByteLevel.alphabet()"
        )


def _byte_characters() -> list[str]:
    """The characters that stand for the 256 bytes (GPT-2): a printable byte for itself, the others from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte) for byte in sorted(printable)] + [chr(256 + i) for i in range(256 - len(printable))]


def _check_normalizer(path: Path, normalizer: Mapping[str, Any] | None) -> None:
    stages = [normalizer] if normalizer else []
    if normalizer and normalizer.get("type") == "Sequence":
        stages = list(normalizer.get("normalizers", []))
    for stage in stages:
        if stage.get("type") != "NFC":
            raise ExportError(
                f"{path}: normalizer {stage.get('type')!r} cannot be written; only NFC or none is. {SUPPORTED}"
            )


def _vocabulary(
    path: Path, vocab: Mapping[str, int], added: list[dict[str, Any]], vocab_size: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    from gguf import TokenType

    largest = max([*vocab.values(), *(entry["id"] for entry in added)])
    if largest >= vocab_size:
        raise ExportError(
            f"{path} has token id {largest}, but the model's embedding has {vocab_size} rows; "
            "call model.resize_token_embeddings(len(tokenizer)) and save both again"
        )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, token_id in vocab.items():
        tokens[token_id], types[token_id] = token, int(TokenType.NORMAL)
    for entry in added:
        for flag in ("lstrip", "rstrip", "single_word"):
            if entry.get(flag):
                what = f"added token {entry['content']!r} has {flag}=true"
                raise ExportError(f"{path}: {what}, which GGUF cannot express; set it to false")
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = int(TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED)
    return tuple(tokens), tuple(types)


def _special_ids(model_dir: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    """Ids by role. Up to two more end tokens, of generation_config.json, become "eot" and "eom"."""
    generation = {
        **read_json(model_dir / "config.json"),
        **read_json(model_dir / "generation_config.json", optional=True),
    }
    found: dict[str, int] = {}
    for role in ("bos", "eos", "pad"):
        token = config.get(f"{role}_token")
        content = token.get("content") if isinstance(token, dict) else token
        values = _as_ids(generation.get(f"{role}_token_id"))
        if content is not None:
            if content not in ids:
                where = model_dir / "tokenizer_config.json"
                raise ExportError(f"{where}: {role}_token {content!r} is not in tokenizer.json; add it there")
            found[role] = ids[content]
        elif values:
            found[role] = values[0]
    if "eos" not in found:
        # llama.cpp would end every text at id 11.
        raise ExportError(f"{model_dir / 'tokenizer_config.json'}: there is no eos_token; set it")
    found.setdefault("bos", found["eos"])
    others = [token_id for token_id in _as_ids(generation.get("eos_token_id")) if token_id != found["eos"]]
    return {**found, **dict(zip(("eot", "eom"), others, strict=False))}


def _as_ids(value: Any) -> list[int]:
    return [
        token_id
        for token_id in (value if isinstance(value, list) else [value])
        if isinstance(token_id, int) and token_id >= 0
    ]


def _added_by_post_processor(
    path: Path, post: Mapping[str, Any] | None, special: Mapping[str, int], ids: Mapping[str, int]
) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around a text: only the post-processor says it where there is a tokenizer.json."""
    before: list[int] = []
    after: list[int] = []
    stages = [post] if post else []
    if post and post.get("type") == "Sequence":
        stages = list(post.get("processors", []))
    for stage in stages:
        if stage.get("type") == "ByteLevel":
            continue
        if stage.get("type") != "TemplateProcessing":
            raise ExportError(
                f"{path}: post_processor {stage.get('type')!r} cannot be written; ByteLevel and TemplateProcessing can"
            )
        side = before
        for piece in stage["single"]:
            if "Sequence" in piece:
                side = after
            else:
                side.append(ids.get(piece["SpecialToken"]["id"], -1))
    if before not in ([], [special.get("bos")]) or after not in ([], [special.get("eos")]):
        raise ExportError(
            f"{path}: post_processor puts tokens {before} before and {after} after a text; "
            f"GGUF can add bos ({special.get('bos')}) and eos ({special.get('eos')}) only: set them to these tokens"
        )
    return bool(before), bool(after)


def _chat_template(model_dir: Path, config: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    file = model_dir / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
