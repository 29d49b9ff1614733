"""Whether a GGUF and the transformers directory that training starts from (`train_from`) speak the same tokens.

Token ids sampled by llama.cpp are trained on as they are, so one differing token, merge or split would silently train
on other text than was seen. Lists are compared first; then both tokenizers run on probe texts, since the rule that
splits text before merging is code in llama.cpp and a pattern in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def check_train_from(gguf: str | Path, directory: str | Path) -> None:
    """Raise ConfigError, naming the first difference, unless both tokenizers agree.

    Compared: the token of every id (padding rows aside), every merge in order, the end-of-sequence token, the
    beginning-of-sequence token where the directory names one, and the ids of probe texts. Needs the `train` extra.
    Raises ExportError where the directory holds a tokenizer that no GGUF of ours can have.
    """
    from stepwise.export.tokenizer import read_tokenizer

    gguf, directory = Path(gguf), Path(directory)
    fields = _read_gguf(gguf)
    theirs = read_tokenizer(directory, len(fields["tokens"]))
    remedy = f"{gguf} does not come from train_from = {directory}; point train_from at the directory it was made from"
    ours = _used(fields["tokens"], fields.get("token_type", ()))
    for name, mine, other in (
        ("tokens", ours, _used(theirs.tokens, theirs.types)),
        ("merges", fields.get("merges", ()), theirs.merges),
    ):
        difference = _first_difference(mine, other)
        if difference:
            raise ConfigError(f"tokenizers differ in their {name}: {difference}; {remedy}")
    for name in ("eos", "bos"):
        wanted, found = theirs.special_ids.get(name), fields.get(f"{name}_token_id")
        if wanted is not None and wanted != found:
            raise ConfigError(f"tokenizers differ in the id of {name}: {found} in the GGUF, {wanted}; {remedy}")
    for text, ids, other_ids in zip(PROBES, _ids_llama(gguf), _ids_transformers(directory), strict=True):
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


def _read_gguf(path: Path) -> dict[str, Any]:
    """Contents of the fields below tokenizer.ggml."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingDependencyError('comparing tokenizers needs gguf; pip install "stepwise[train]"') from None
    try:
        fields = GGUFReader(path).fields
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as a GGUF file ({error}); train_from goes with a local GGUF"
        ) from None
    prefix = "tokenizer.ggml."
    found = {name.removeprefix(prefix): field.contents() for name, field in fields.items() if name.startswith(prefix)}
    if "tokens" not in found:
        raise ConfigError(f"{path} holds no tokenizer; train_from goes with a GGUF of a whole model")
    return found


def _ids_llama(path: Path) -> list[list[int]]:
    from llama_cpp import Llama

    from stepwise.models.engine.context import captured_log

    with captured_log(), closing(Llama(str(path), vocab_only=True, verbose=False)) as model:
        return [model.tokenize(text.encode(), add_bos=False, special=False) for text in PROBES]


def _ids_transformers(directory: Path) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in PROBES]
