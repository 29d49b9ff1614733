"""The tokenizer inside a GGUF gives the ids that transformers gives, for text and for chats."""

from __future__ import annotations

import json
import random
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stepwise.errors import ExportError
from stepwise.training import export_gguf
from tests.tiny_models import SPECIAL_TOKENS, tiny_model, train_tokenizer

for _package in ("torch", "transformers", "gguf", "llama_cpp"):
    pytest.importorskip(_package)

PIECES = (
    *("Mia has", "apples", "So the answer is", "\\boxed{", "}", "don't", "WE'LL", "they've", "it's", "x's", "I'M"),
    *(
        "0",
        "7",
        "42",
        "365",
        "2024",
        "1234567",
        "3.14",
        "-5",
        "½",
        "²",
        "٣",
        "१२",
        "+",
        "=",
        "==",
        "...",
        "!?",
        "$%&",
        "_",
    ),
    *(
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\n\n",
        "\n\n\n",
        "\r\n",
        "\r",
        " \n",
        "\n ",
        "\u00a0",
        "\u3000",
        "\u2009",
        "\v",
        "\f",
    ),
    *("é", "Zoë", "naïve", "ß", "ſ", "K", "日本語", "한국어", "العربية", "हिन्दी", "ไทย", "Ωμέγα", "привет"),
    *(
        "😀",
        "👩‍👩‍👧",
        "🇩🇪",
        "e\u0301",
        "\u200b",
        "\u200d",
        "\ufeff",
        "—",
        "“",
        "”",
        "…",
        "<|",
        "|>",
        "<|im_",
        "<",
        "'",
        "''",
    ),
    *SPECIAL_TOKENS,
)


def random_text(rng: random.Random) -> str:
    """Pieces, runs of ASCII and lone characters of every plane, as NFC: what reaches the library's tokenizers."""
    parts = []
    for _ in range(rng.randint(1, 16)):
        kind = rng.random()
        if kind < 0.8:
            parts.append(rng.choice(PIECES))
        elif kind < 0.9:
            parts.append("".join(chr(rng.randint(9, 126)) for _ in range(rng.randint(1, 8))))
        else:
            code = rng.choice((rng.randint(0xA0, 0x2FFF), rng.randint(0x3000, 0xD7FF), rng.randint(0x1F000, 0x1FFFF)))
            parts.append(chr(code))
    return unicodedata.normalize("NFC", "".join(parts))


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model", num_hidden_layers=1, pre="gpt-2")


@pytest.mark.parametrize(
    ("pre", "add_bos"), [("gpt-2", False), ("llama-bpe", False), ("llama-bpe", True), ("qwen2", False), ("qwen2", True)]
)
def test_token_ids_agree_with_transformers_on_a_thousand_random_texts(tmp_path: Path, pre: Any, add_bos: bool) -> None:
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    model_dir = tiny_model(tmp_path / "model", pre=pre, add_bos=add_bos, num_hidden_layers=1)
    path = export_gguf(model_dir, tmp_path / "model.gguf", "f16")
    reference = AutoTokenizer.from_pretrained(model_dir)
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(1000)]
    with closing(Llama(str(path), vocab_only=True, verbose=False)) as llama:
        for text in texts:
            assert llama.tokenize(text.encode(), add_bos=True, special=True) == reference(text)["input_ids"], repr(text)
        ordinary = [text for text in texts if not any(token in text for token in SPECIAL_TOKENS)]
        assert len(ordinary) > 100
        for text in ordinary:
            assert llama.detokenize(llama.tokenize(text.encode(), add_bos=False)).decode() == text


def test_llama_3_splitting_without_word_lookup_has_its_own_name(tmp_path: Path) -> None:
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    model_dir = tiny_model(tmp_path / "model", pre="llama-bpe", num_hidden_layers=1)

    def unreachable_word(spec: dict[str, Any]) -> None:
        spec["model"]["ignore_merges"] = False
        spec["model"]["merges"] = [pair for pair in spec["model"]["merges"] if "".join(pair) != "Ġanswer"]

    edit(model_dir / "tokenizer.json", unreachable_word)
    path = export_gguf(model_dir, tmp_path / "model.gguf", "f16")
    expected = AutoTokenizer.from_pretrained(model_dir)("the answer is 12345")["input_ids"]
    assert train_tokenizer("llama-bpe").encode("the answer is 12345").ids != expected
    with closing(Llama(str(path), vocab_only=True, verbose=False)) as llama:
        assert llama.metadata["tokenizer.ggml.pre"] == "smaug-bpe"
        assert llama.tokenize(b"the answer is 12345", add_bos=False) == expected


@pytest.mark.parametrize("merges", ["pairs", "strings"])
def test_merges_may_be_pairs_or_strings(model_dir: Path, merges: str) -> None:
    from gguf import GGUFReader

    def change(spec: dict[str, Any]) -> None:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in spec["model"]["merges"]]
        spec["model"]["merges"] = pairs if merges == "pairs" else [" ".join(pair) for pair in pairs]

    edit(model_dir / "tokenizer.json", change)
    reader = GGUFReader(export_gguf(model_dir, model_dir / "model.gguf"))
    assert reader.fields["tokenizer.ggml.merges"].contents()[0].count(" ") == 1


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_gets_the_ids_that_transformers_gives_it(model_dir: Path, place: str) -> None:
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter
    from transformers import AutoTokenizer

    if place == "tokenizer_config.json":
        template = (model_dir / "chat_template.jinja").read_text()
        (model_dir / "chat_template.jinja").unlink()
        edit(model_dir / place, lambda config: config.update(chat_template=template))
    messages = [
        {"role": "system", "content": "Solve it step by step."},
        {"role": "user", "content": "Mia has 12 apples.\n\nHow many?"},
        {"role": "assistant", "content": "She has 12.\n\nSo it is \\boxed{12}."},
        {"role": "user", "content": "Sure? 日本語"},
    ]
    reference = AutoTokenizer.from_pretrained(model_dir)
    expected = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    with closing(Llama(str(export_gguf(model_dir, model_dir / "m.gguf")), vocab_only=True, verbose=False)) as llama:
        formatter = Jinja2ChatFormatter(
            template=llama.metadata["tokenizer.chat_template"], eos_token="<|im_end|>", bos_token=""
        )
        prompt = formatter(messages=messages).prompt
        assert llama.tokenize(prompt.encode(), add_bos=False, special=True) == expected


def test_a_model_without_chat_template_is_written_without_one(model_dir: Path) -> None:
    from gguf import GGUFReader

    (model_dir / "chat_template.jinja").unlink()
    reader = GGUFReader(export_gguf(model_dir, model_dir / "model.gguf"))
    assert "tokenizer.chat_template" not in reader.fields


def test_special_ids_and_every_end_token_reach_llama_cpp(model_dir: Path) -> None:
    import llama_cpp
    from gguf import GGUFReader

    ids = {token: train_tokenizer("gpt-2").token_to_id(token) for token in SPECIAL_TOKENS}
    ends = [ids["<|im_end|>"], ids["<|good|>"]]
    edit(model_dir / "generation_config.json", lambda config: config.update(eos_token_id=ends))
    path = export_gguf(model_dir, model_dir / "model.gguf")
    fields = GGUFReader(path).fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == ids["<|im_end|>"]
    assert fields["tokenizer.ggml.padding_token_id"].contents() == ids["<|endoftext|>"]
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    with closing(llama_cpp.Llama(str(path), vocab_only=True, verbose=False)) as llama:
        vocab = llama_cpp.llama_model_get_vocab(llama.model)
        assert all(llama_cpp.llama_vocab_is_eog(vocab, token_id) for token_id in ends)
        assert not llama_cpp.llama_vocab_is_eog(vocab, ids["<|score|>"])
        assert llama_cpp.llama_vocab_is_control(vocab, ids["<|score|>"])


def test_a_special_token_may_be_given_as_an_object(model_dir: Path) -> None:
    edit(model_dir / "tokenizer_config.json", lambda config: config.update(eos_token={"content": "<|im_end|>"}))
    assert export_gguf(model_dir, model_dir / "model.gguf").is_file()


def _sentencepiece(spec: dict[str, Any]) -> None:
    spec["model"]["byte_fallback"] = True


def _unknown_regex(spec: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": r"\d+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _template_with_other_token(spec: dict[str, Any]) -> None:
    pieces = [{"SpecialToken": {"id": "<|score|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    spec["post_processor"] = {"type": "TemplateProcessing", "single": pieces}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_sentencepiece, "SentencePiece tokenizer; supported are byte-level BPE"),
        (
            _unknown_regex,
            r"no counterpart of the pre_tokenizer Split \+ ByteLevel with regex .*; supported are byte-level",
        ),
        (_template_with_other_token, "post_processor puts tokens"),
        (lambda spec: spec.update(pre_tokenizer=None), "no counterpart of the pre_tokenizer"),
        (lambda spec: spec["model"].update(type="Unigram"), "model.type is 'Unigram'"),
        (lambda spec: spec["model"].update(merges=[]), "model.merges is missing or empty"),
        (lambda spec: spec["model"].update(unk_token="?"), "model.unk_token"),
        (lambda spec: spec["model"].update(ignore_merges=True), "ignore_merges=True"),
        (lambda spec: spec["model"]["vocab"].pop("Ġ"), "1 of the byte characters of ordinary text"),
        (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase'"),
        (lambda spec: spec["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space"),
        (lambda spec: spec["added_tokens"][0].update(lstrip=True), "lstrip=true"),
        (lambda spec: spec["added_tokens"][0].update(id=9999), "token id 9999.*resize_token_embeddings"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(model_dir: Path, change: Any, message: str) -> None:
    edit(model_dir / "tokenizer.json", change)
    with pytest.raises(ExportError, match=message):
        export_gguf(model_dir, model_dir / "model.gguf")


def test_a_sentencepiece_model_is_named_as_such(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").rename(model_dir / "tokenizer.model")
    with pytest.raises(ExportError, match=r"SentencePiece tokenizer .*supported are byte-level BPE"):
        export_gguf(model_dir, model_dir / "model.gguf")


def test_end_tokens_that_are_missing_or_unknown_are_refused(model_dir: Path) -> None:
    edit(model_dir / "tokenizer_config.json", lambda config: config.update(eos_token="<|nowhere|>"))
    with pytest.raises(ExportError, match=r"eos_token '<\|nowhere\|>' is not in tokenizer.json"):
        export_gguf(model_dir, model_dir / "model.gguf")
    edit(model_dir / "tokenizer_config.json", lambda config: config.pop("eos_token"))
    for name in ("config.json", "generation_config.json"):
        edit(model_dir / name, lambda config: config.pop("eos_token_id"))
    with pytest.raises(ExportError, match="no eos_token; set it"):
        export_gguf(model_dir, model_dir / "model.gguf")
