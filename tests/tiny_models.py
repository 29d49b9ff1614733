"""Tiny random-weight models in transformers format, with real tokenizers: the code paths of real models, in a second.

Equal arguments give equal files. torch and transformers are imported only where weights are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

Arch = Literal["llama", "qwen2", "qwen3"]
PreTokenizer = Literal["gpt-2", "smollm", "llama-bpe", "qwen2"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|score|>", "<|good|>", "<|bad|>")
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_REGEX = QWEN2_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_RARE = {"Ą", "Ć", "ÿ", "À"}  # the bytes 4, 6, 255 and 192, which are among those that SmolLM's vocabulary lacks
_NAMES = ("Mia", "Tom", "Ava", "Ben", "Zoë", "José")
_THINGS = ("apples", "marbles", "stickers", "books", "coins")


def training_text() -> Iterator[str]:
    """Word problems with worked solutions: enough repetition for merges across words, digits, blank lines and boxes."""
    for i in range(240):
        name, thing = _NAMES[i % len(_NAMES)], _THINGS[i % len(_THINGS)]
        a, b = 3 + i * 7 % 90, 2 + i * 5 % 40
        yield (
            f"{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?\n\n"
            f"{name} starts with {a} {thing}.\n\nAfter buying {b}, there are {a} + {b} = {a + b} {thing}.\n\n"
            f"So the answer is \\boxed{{{a + b}}}.\n\nIt's what we've counted, isn't it?\r\n\tYes - they'll agree!"
        )


def train_tokenizer(pre: PreTokenizer = "qwen2", *, vocab_size: int = 512, add_bos: bool = False) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` with the pre-tokenizer that real models of that name have.

    smollm lacks tokens for a few rare bytes, as SmolLM does; llama-bpe looks a whole word up before it merges
    (`ignore_merges`), as Llama 3 does; qwen2 normalises to NFC, as Qwen does. `add_bos` adds a post-processor that puts
    <|endoftext|> first.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        split = pre_tokenizers.Split(Regex(QWEN2_REGEX if pre == "qwen2" else LLAMA3_REGEX), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - (_RARE if pre == "smollm" else set()))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    first: Any = processors.ByteLevel(trim_offsets=False)
    if add_bos:
        bos = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
        first = processors.Sequence(
            [first, processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])]
        )
    tokenizer.post_processor = first
    return tokenizer


def write_tokenizer(model_dir: Path, tokenizer: Any, *, add_bos: bool = False) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers 5 lays them out."""
    tokenizer.save(str(model_dir / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>" if add_bos else None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
    }
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (model_dir / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def tiny_model(
    model_dir: Path,
    arch: Arch = "qwen3",
    *,
    tied: bool = True,
    pre: PreTokenizer = "qwen2",
    add_bos: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
    **config: Any,
) -> Path:
    """Write a random-weight model to `model_dir` in transformers format and return the directory.

    0.4M parameters: 2 layers, width 128, 2 heads of 64, 1 key-value head, context 512; `config` overrides any of it.
    Norms and biases are random too, so that a tensor put in the wrong place changes the logits.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(pre, add_bos=add_bos)
    settings: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(getattr(torch, dtype)).save_pretrained(model_dir, max_shard_size=max_shard_size)
    write_tokenizer(model_dir, tokenizer, add_bos=add_bos)
    return model_dir


def tiny_gguf(tmp_dir: Path, arch: Arch = "qwen3", quantization: str = "f32", **options: Any) -> Path:
    """Path of a tiny GGUF made in `tmp_dir`; its transformers form stands beside it, in the directory named `arch`."""
    from stepwise.training.export.gguf import export_gguf

    model_dir = tiny_model(tmp_dir / arch, arch, **options)
    return export_gguf(model_dir, tmp_dir / f"{arch}-{quantization}.gguf", quantization)  # type: ignore[arg-type]
