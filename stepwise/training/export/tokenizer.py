"""The tokenizer of a transformers model as GGUF metadata: byte-level BPE, with a pre-tokenizer that llama.cpp knows;
and whether a GGUF and the directory that training starts from (`train_from`) speak the same tokens.

What llama.cpp does not do: the NFC normalisation of Qwen (stepwise normalises text at its door), and tokens that strip
the spaces beside them (refused).

Token ids sampled by llama.cpp are trained on as they are, so one differing token, merge or split would silently train
on other text than was seen. Lists are compared first; then both tokenizers run on probe texts, since the rule that
splits text before merging is code in llama.cpp and a pattern in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from stepwise.errors import BackendError, ConfigError
from stepwise.models.engine.context import captured_log
from stepwise.models.engine.weights import read_gguf
from stepwise.models.safetensors import check, read_json

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_GPT2 = "the ByteLevel pre-tokenizer's own"
_DIGITS = "the same, after single digits"
# (regex, ignore_merges) -> tokenizer.ggml.pre: its name decides whether llama.cpp looks a word up before it merges.
_PRE_TOKENIZERS = {
    (_GPT2, False): "gpt-2",
    (_DIGITS, False): "smollm",
    (_QWEN2, False): "qwen2",
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",
}
_ORDINARY = (*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1))  # bytes of UTF-8 but the rarest
_UNUSED = 5  # llama.cpp's token type for padding rows of the embedding
_PROBES = (
    "Mia has 12 apples and buys 345.67 more.\n\nSo 12 + 345.67 = 357.67.\n\n",
    "  two  spaces\tand a tab, then\n\n\n three lines",
    "It's we'll I'D 'tis don't",
    "\\boxed{\\frac{1}{2}} $x^2 - 3x + 2 = 0$ <= 10%",
    "na\u00efve caf\u00e9 \u00bd \u2211 \u65e5\u672c\u8a9e \u041f\u0440\u0438\u0432\u0435\u0442 \U0001f600\u200d\u2764",
    "1 22 333 4444 55555 1,000,000",
    "for (int i=0;i<n;i++) { a[i] += 1; }  // ok\r\n",
)
_SUPPORTED = (
    "supported are byte-level BPE tokenizers (a tokenizer.json) with the pre-tokenizer of GPT-2, SmolLM, Llama 3 "
    "(numbers in groups of up to three digits) or of Qwen2 and Qwen3 (single digits)"
)


def read_tokenizer(model_dir: Path, vocab_size: int) -> dict[str, Any]:
    """The tokenizer in `model_dir`: the arguments of `gguf.GGUFWriter`'s methods add_NAME, by NAME.

    "token_list" and "token_types" are padded with unused tokens to `vocab_size`. Raises ExportError where a GGUF cannot
    hold it.

    >>> from stepwise.lab import model_path
    >>> read_tokenizer(model_path("lab-weak", "safetensors"), 1024)["token_list"][-1]  # padded
    '[PAD1023]'
    """
    path = model_dir / "tokenizer.json"
    check(
        path.is_file() or not (model_dir / "tokenizer.model").is_file(),
        f"{model_dir} has a SentencePiece tokenizer (tokenizer.model) and no tokenizer.json; {_SUPPORTED}",
    )
    spec = read_json(path)
    model = spec.get("model") or {}
    _check_model(path, model)
    for stage in _stages(spec.get("normalizer"), "normalizers"):
        kind = stage.get("type")
        check(kind == "NFC", f"{path}: normalizer {kind!r} cannot be written; only NFC or none is. {_SUPPORTED}")
    added = spec.get("added_tokens") or []
    ids = {**model["vocab"], **{entry["content"]: entry["id"] for entry in added}}
    tokens, types = _vocabulary(path, model["vocab"], added, vocab_size)
    config = read_json(model_dir / "tokenizer_config.json", optional=True)
    special_ids = _special_ids(model_dir, config, ids)
    add_bos, add_eos = _added_by_post_processor(path, spec.get("post_processor"), special_ids, ids)
    file = model_dir / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": _pre_tokenizer(path, spec),
        "token_list": tokens,
        "token_types": types,
        "token_merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        **{f"{role}_token_id": token_id for role, token_id in special_ids.items()},
        # Always written: what llama.cpp assumes without the keys depends on the pre-tokenizer.
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        **({} if template is None else {"chat_template": template}),
    }


def _pre_tokenizer(path: Path, spec: Mapping[str, Any]) -> str:
    """The `tokenizer.ggml.pre` that splits as the tokenizer.json `spec` does; raises ExportError if there is none."""
    stages = _stages(spec.get("pre_tokenizer"), "pretokenizers")
    kinds = [stage.get("type") for stage in stages]
    regex = None
    if kinds == ["ByteLevel"] and stages[0].get("use_regex", True):
        regex = _GPT2
    elif kinds == ["Digits", "ByteLevel"] and stages[0].get("individual_digits") and stages[1].get("use_regex", True):
        regex = _DIGITS
    elif kinds == ["Split", "ByteLevel"] and not stages[1].get("use_regex", True):
        split = stages[0]
        if split.get("behavior") == "Isolated" and not split.get("invert", False):
            regex = split.get("pattern", {}).get("Regex")
    prefixed = stages and stages[-1].get("add_prefix_space", False)
    check(not prefixed, f"{path}: pre_tokenizer has add_prefix_space, which llama.cpp does not do; {_SUPPORTED}")
    ignore_merges = bool(spec["model"].get("ignore_merges", False))
    name = _PRE_TOKENIZERS.get((regex or "", ignore_merges), "")
    check(
        name,
        f"{path}: llama.cpp has no counterpart of the pre_tokenizer {' + '.join(map(str, kinds))} "
        f"with regex {regex!r} and ignore_merges={ignore_merges}; {_SUPPORTED}",
    )
    return name


def pre_tokenizer_stages(name: str) -> dict[str, Any] | None:
    """The parts of a tokenizer.json that split a text as llama.cpp does under `tokenizer.ggml.pre` = `name`; None for a
    name that is not known here.

    >>> pre_tokenizer_stages("smollm")["pre_tokenizer"]["pretokenizers"][0]
    {'type': 'Digits', 'individual_digits': True}
    """
    regex = next((regex for (regex, _), known in _PRE_TOKENIZERS.items() if known == name), None)
    if regex is None:
        return None
    whole = regex in (_GPT2, _DIGITS)
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": whole}
    first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
    if not whole:
        first = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    stages = [bytes_of] if regex == _GPT2 else [first, bytes_of]
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": stages},
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
    }


def _check_model(path: Path, model: Mapping[str, Any]) -> None:
    kind, vocab, merges = model.get("type"), model.get("vocab"), model.get("merges")
    check(kind == "BPE" and isinstance(vocab, dict), f"{path}: model.type is {kind!r}; {_SUPPORTED}")
    check(
        isinstance(merges, list) and merges,
        f"{path}: model.merges is missing or empty; train the tokenizer on some text",
    )
    fallback = model.get("byte_fallback")
    check(not fallback, f"{path}: model.byte_fallback is true, so this is a SentencePiece tokenizer; {_SUPPORTED}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token", "dropout"):
        value = model.get(key)
        check(not value, f"{path}: model.{key} is {value!r}, which llama.cpp does not have; {_SUPPORTED}")
    # The characters that stand for the 256 bytes (GPT-2): a printable byte for itself, the others from 256 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    # Rare bytes without a token (SmolLM lacks 21) are passed over by transformers and llama.cpp alike.
    missing = [byte for byte in _ORDINARY if characters[byte] not in model["vocab"]]
    check(
        not missing,
        f"{path}: {len(missing)} of the byte characters of ordinary text are not in the vocabulary, so some text has "
        "no tokens; train the tokenizer with initial_alphabet=ByteLevel.alphabet()",
    )


def _stages(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The parts of a normalizer, pre-tokenizer or post-processor, which may be a sequence of them under `key`."""
    if not part:
        return []
    return list(part.get(key, [])) if part.get("type") == "Sequence" else [part]


def _vocabulary(
    path: Path, vocab: Mapping[str, int], added: list[dict[str, Any]], vocab_size: int
) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    largest = max([*vocab.values(), *(entry["id"] for entry in added)])
    check(
        largest < vocab_size,
        f"{path} has token id {largest}, but the model's embedding has {vocab_size} rows; "
        "call model.resize_token_embeddings(len(tokenizer)) and save both again",
    )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, token_id in vocab.items():  # padding that was written down as words stays padding
        if token != tokens[token_id]:
            tokens[token_id], types[token_id] = token, int(TokenType.NORMAL)
    for entry in added:
        for flag in ("lstrip", "rstrip", "single_word"):
            problem = f"added token {entry['content']!r} has {flag}=true"
            check(not entry.get(flag), f"{path}: {problem}, which GGUF cannot express; set it to false")
        tokens[entry["id"]] = entry["content"]
        types[entry["id"]] = int(TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED)
    return tokens, types


def _special_ids(model_dir: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    """Ids by role. Up to two more end tokens, of generation_config.json, become "eot" and "eom"."""
    generation = {
        **read_json(model_dir / "config.json"),
        **read_json(model_dir / "generation_config.json", optional=True),
    }
    where, special = model_dir / "tokenizer_config.json", dict[str, int]()
    for role in ("bos", "eos", "pad"):
        token = config.get(f"{role}_token")
        content = token.get("content") if isinstance(token, dict) else token
        values = _as_ids(generation.get(f"{role}_token_id"))
        if content is not None:
            check(content in ids, f"{where}: {role}_token {content!r} is not in tokenizer.json; add it there")
            special[role] = ids[content]
        elif values:
            special[role] = values[0]
    check("eos" in special, f"{where}: there is no eos_token; set it")  # llama.cpp would end every text at id 11
    special.setdefault("bos", special["eos"])
    others = [token_id for token_id in _as_ids(generation.get("eos_token_id")) if token_id != special["eos"]]
    return {**special, **dict(zip(("eot", "eom"), others, strict=False))}


def _as_ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token_id for token_id in values if isinstance(token_id, int) and token_id >= 0]


def _added_by_post_processor(
    path: Path, post: Mapping[str, Any] | None, special: Mapping[str, int], ids: Mapping[str, int]
) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around a text: only the post-processor says it where there is a tokenizer.json."""
    before: list[int] = []
    after: list[int] = []
    for stage in _stages(post, "processors"):
        kind, side = stage.get("type"), before
        check(
            kind in ("ByteLevel", "TemplateProcessing"),
            f"{path}: post_processor {kind!r} cannot be written; ByteLevel and TemplateProcessing can",
        )
        for piece in stage["single"] if kind == "TemplateProcessing" else ():
            if "Sequence" in piece:
                side = after
            else:
                side.append(ids.get(piece["SpecialToken"]["id"], -1))
    check(
        before in ([], [special.get("bos")]) and after in ([], [special.get("eos")]),
        f"{path}: post_processor puts tokens {before} before and {after} after a text; "
        f"GGUF can add bos ({special.get('bos')}) and eos ({special.get('eos')}) only: set them to these tokens",
    )
    return bool(before), bool(after)


def check_train_from(gguf: str | Path, directory: str | Path, texts: Sequence[str] = _PROBES) -> None:
    """Raise ConfigError, naming the first difference, unless both tokenizers agree.

    Compared: the token of every id (padding rows aside), every merge in order, the end-of-sequence token, the
    beginning-of-sequence token where the directory names one, and the ids of `texts`. Needs the `train` extra.
    Raises ExportError where the directory holds a tokenizer that no GGUF of ours can have.

    Example:
        check_train_from("models/Qwen3-0.6B-Q8_0.gguf", "models/Qwen3-0.6B")  # raises where they differ
    """
    from llama_cpp import Llama
    from tokenizers import Tokenizer

    gguf, directory = Path(gguf), Path(directory)
    try:
        fields = read_gguf(gguf).fields
    except BackendError as error:
        raise ConfigError(f"{gguf} cannot be read as a GGUF file ({error}); train_from goes with a local one") from None
    if "tokenizer.ggml.tokens" not in fields:
        raise ConfigError(f"{gguf} holds no tokenizer; train_from goes with a GGUF of a whole model")
    fields = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()}
    theirs = read_tokenizer(directory, len(fields["tokens"]))
    remedy = f"{gguf} does not come from train_from = {directory}; point train_from at the directory it was made from"
    ours, others = (
        _used(fields["tokens"], fields.get("token_type", ())),
        _used(theirs["token_list"], theirs["token_types"]),
    )
    for name, mine, other in (("tokens", ours, others), ("merges", fields.get("merges", ()), theirs["token_merges"])):
        if difference := _first_difference(mine, other):
            raise ConfigError(f"tokenizers differ in their {name}: {difference}; {remedy}")
    for name in ("eos", "bos"):
        theirs_id, ours_id = (ids.get(f"{name}_token_id") for ids in (theirs, fields))
        if theirs_id is not None and theirs_id != ours_id:
            raise ConfigError(f"tokenizers differ in the id of {name}: {ours_id} in the GGUF, {theirs_id}; {remedy}")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    with captured_log(), closing(Llama(str(gguf), vocab_only=True, verbose=False)) as model:
        for text in texts:
            ids = model.tokenize(text.encode(), add_bos=False, special=False)
            other_ids = tokenizer.encode(text, add_special_tokens=False).ids
            if ids != other_ids:
                raise ConfigError(f"tokenizers split {text!r} differently: {ids} in the GGUF, {other_ids}; {remedy}")


def _used(tokens: Sequence[str], types: Sequence[int]) -> Sequence[str]:
    """`tokens` without the unused ones at the end."""
    count = len(tokens)
    while 0 < count <= len(types) and types[count - 1] == _UNUSED:
        count -= 1
    return tokens[:count]


def _first_difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return f"number {index} is {mine!r} in the GGUF, {other!r} in the directory"
    return "" if len(ours) == len(theirs) else f"{len(ours)} in the GGUF, {len(theirs)} in the directory"
