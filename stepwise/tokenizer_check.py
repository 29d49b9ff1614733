"""Whether a GGUF and the transformers directory that training starts from (`train_from`) speak the same tokens.

Token ids sampled by llama.cpp are trained on as they are, so one differing token, merge or split would silently train
on other text than was seen. Lists are compared first; then both tokenizers run on probe texts, since the rule that
splits text before merging is code in llama.cpp and a pattern in transformers.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from stepwise.errors import ConfigError, MissingDependencyError

_UNUSED = 5  # llama.cpp's token type for padding rows of the embedding
PROBES = (
    "Mia has 12 apples and buys 345.67 more.\n\nSo 12 + 345.67 = 357.67.\n\n",
    "  two  spaces\tand a tab, then\n\n\n three lines",
    "It's we'll I'D 'tis don't",
    "\\boxed{\\frac{1}{2}} $x^2 - 3x + 2 = 0$ <= 10%",
    "na\u00efve caf\u00e9 \u00bd \u2211 \u65e5\u672c\u8a9e \u041f\u0440\u0438\u0432\u0435\u0442 \U0001f600\u200d\u2764",
    "1 22 333 4444 55555 1,000,000",
    "for (int i=0;i<n;i++) { a[i] += 1; }  // ok\r\n",
)


def check_train_from(gguf: Path, directory: Path) -> None:
    """Raise ConfigError, naming the first difference, unless both tokenizers agree.

    Compared: the token of every id (padding rows of the GGUF aside), every merge in order, the end-of-sequence token,
    the beginning-of-sequence token where the directory names one, and the ids of probe texts. Needs the `train` extra.
    """
    remedy = f"{gguf} does not come from train_from = {directory}; point train_from at the directory it was made from"
    ours, theirs = _read_gguf(gguf), _read_directory(directory)
    for name in ("tokens", "merges"):
        difference = _first_difference(ours[name], theirs[name])
        if difference:
            raise ConfigError(f"tokenizers differ in their {name}: {difference}; {remedy}")
    for name in ("eos", "bos"):
        if theirs[name] is not None and ours[name] != theirs[name]:
            raise ConfigError(f"tokenizers differ in {name}: {ours[name]!r} in the GGUF, {theirs[name]!r}; {remedy}")
    for text, mine, other in zip(PROBES, _ids_llama(gguf), _ids_transformers(directory), strict=True):
        if mine != other:
            raise ConfigError(f"tokenizers split {text!r} differently: {mine} in the GGUF, {other}; {remedy}")


def _first_difference(ours: list[str], theirs: list[str]) -> str:
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return f"number {index} is {mine!r} in the GGUF, {other!r} in the directory"
    return "" if len(ours) == len(theirs) else f"{len(ours)} in the GGUF, {len(theirs)} in the directory"


def _read_gguf(path: Path) -> dict[str, Any]:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingDependencyError("comparing tokenizers needs gguf; pip install 'stepwise[train]'") from None
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; train_from needs a model in a GGUF file")
    fields = GGUFReader(path).fields

    def content(name: str) -> Any:
        field = fields.get(f"tokenizer.ggml.{name}")
        return None if field is None else field.contents()

    tokens, kinds = content("tokens") or [], content("token_type") or []
    while kinds and kinds[-1] == _UNUSED:
        tokens, kinds = tokens[:-1], kinds[:-1]

    def special(name: str) -> str | None:
        token = content(f"{name}_token_id")
        return None if token is None else tokens[token]

    return {"tokens": tokens, "merges": content("merges") or [], "eos": special("eos"), "bos": special("bos")}


def _read_directory(directory: Path) -> dict[str, Any]:
    full = _read_json(directory / "tokenizer.json")
    settings = _read_json(directory / "tokenizer_config.json")
    model = full.get("model", {})
    by_id = {index: token for token, index in model.get("vocab", {}).items()}
    by_id |= {added["id"]: added["content"] for added in full.get("added_tokens", [])}
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges", [])]

    def special(name: str) -> str | None:
        token = settings.get(f"{name}_token")
        return token["content"] if isinstance(token, dict) else token

    tokens = [by_id.get(index, "") for index in range(max(by_id, default=-1) + 1)]
    return {"tokens": tokens, "merges": merges, "eos": special("eos"), "bos": special("bos")}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); train_from must be a transformers directory") from None


def _ids_llama(path: Path) -> list[list[int]]:
    from llama_cpp import Llama

    with closing(Llama(str(path), vocab_only=True, verbose=False)) as model:
        return [model.tokenize(text.encode(), add_bos=False, special=False) for text in PROBES]


def _ids_transformers(directory: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in PROBES]
