"""Text to token ids and back, as the GGUF's own tokenizer and chat template have it.

Text is normalised to Unicode NFC at this door: Qwen's tokenizer does so and llama.cpp's copy of it does not. A
special token that somebody typed into a message stays text; only the template's own marks become control tokens.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise.errors import BackendError, ConfigError
from stepwise.models.engine.context import LlamaContext
from stepwise.steps.thoughts import is_thought_mark

_CONTROL, _USER_DEFINED = 1 << 3, 1 << 4
_PROBES = (
    "It's we'll 12345 and 6.7%\n\n  x\r\n\t(a+b)=c",
    "na\u00efve \u65e5\u672c\u8a9e \u041f\u0440\u0438 \U0001f600",
    "...\n\n\nfor i in x:  ",
)


class Vocabulary:
    """The tokens of one model. Thread safe: the vocabulary does not change.

    Example:
        ids = engine.vocabulary.raw_ids("1 + 1 = 2")
        print([engine.vocabulary.text(token) for token in ids])
    """

    def __init__(self, context: LlamaContext):
        self._lib, self._vocab, self._path = context.lib, context.vocab, context.path
        self._lock = threading.Lock()
        self._open, self._process = True, os.getpid()
        self.size = context.vocabulary
        self.starts: npt.NDArray[np.bool_] | None = None  # (V,) for grammars: which may follow a whole character
        self._pieces: dict[int, bytes] = {}
        source = self._lib.llama_model_chat_template(context.model, None)
        self.template: str | None = source.decode("utf-8", "replace") if source else None
        attributes = [self._lib.llama_vocab_get_attr(self._vocab, t) for t in range(self.size)]
        self.control = [t for t, a in enumerate(attributes) if a & _CONTROL]
        self._special = {self.text(t): t for t, a in enumerate(attributes) if a & (_CONTROL | _USER_DEFINED)}
        self._special_texts = [s for t in self.control if (s := self.text(t))]
        self.end_tokens = frozenset(t for t in range(self.size) if self._lib.llama_vocab_is_eog(self._vocab, t))

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Call llama.cpp about the vocabulary, which goes with the model: after `close` that is an error, not a
        crash.
        """
        if os.getpid() != self._process:  # another thread of the parent may have had the lock
            raise BackendError("the engine was loaded before this process was forked; load it in the child")
        with self._lock:
            if not self._open:
                raise BackendError(f"the engine of {self._path} is closed; load it again")
            return getattr(self._lib, function)(self._vocab, *arguments)

    def close(self) -> None:
        """To be called before the model is freed."""
        with self._lock:
            self._open = False

    def text(self, token: int) -> str:
        """The token as the vocabulary spells it: a control token's name, byte-level characters for others."""
        text: bytes = self._ask("llama_vocab_get_text", token)
        return text.decode("utf-8", "replace") if text else ""

    def token_id(self, text: str) -> int:
        """The id of the special token of that text, or else of the one ordinary token that it is; raises ConfigError
        where it is split into several.
        """
        ids = [self._special[text]] if text in self._special else self.tokenize(text)
        if len(ids) != 1:
            known, parts = (
                ", ".join(list(self._special)[:12]),
                [self.detokenize([token]).decode("utf-8", "replace") for token in ids],
            )
            raise ConfigError(
                f"{self._path}: the vocabulary has no token {text!r}, which is split into {parts}; give a text that is "
                f"one token, such as a special one of this model: {known}"
            )
        return ids[0]

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text` without a beginning-of-sequence token; with `special`, special tokens in it become control
        tokens.
        """
        data = unicodedata.normalize("NFC", text).encode("utf-8", "replace")
        n = -len(data) - 8
        while n < 0:  # where there is too little room, llama.cpp says how much it needs
            ids = (ctypes.c_int32 * -n)()
            n = self._ask("llama_tokenize", data, len(data), ids, -n, False, special)
        return list(ids[:n])

    def raw_ids(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text that no template was put around: with `special`, special tokens in it become control tokens; a
        beginning-of-sequence token comes first where the model wants one and the text has none.
        """
        ids, bos = self.tokenize(text, special), self._token("bos")
        return [bos, *ids] if self._ask("llama_vocab_get_add_bos") and ids[:1] != [bos] else ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token, but for one that begins or ends a thought
        ("[THINK]"), without which nobody could tell an answer from a guess. Raises BackendError for an id outside the
        vocabulary.
        """
        piece = self._pieces.get(token)
        if piece is None:
            if not 0 <= token < self.size:
                raise BackendError(f"token id {token} is outside the vocabulary of {self.size} tokens of {self._path}")
            n = -64
            while n < 0:
                buffer = ctypes.create_string_buffer(-n)
                n = self._ask("llama_token_to_piece", token, buffer, len(buffer), 0, False)
            piece = buffer.raw[:n]
            if not piece and is_thought_mark(text := self.text(token)):
                piece = text.encode()
            self._pieces[token] = piece
        return piece

    def detokenize(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`, control tokens left out (see `token_bytes`)."""
        return b"".join(map(self.token_bytes, ids))

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens by their names."""
        control = set(self.control)
        return "".join(self.text(t) if t in control else self.token_bytes(t).decode("utf-8", "replace") for t in ids)

    def chat_ids(self, messages: Sequence[Mapping[str, str]], **template_args: Any) -> list[int]:
        """Ids of the chat up to where the assistant's message begins, by the model's own template.

        The same ids as transformers' `apply_chat_template(..., add_generation_prompt=True)`, except that special tokens
        typed into a message stay text. Raises BackendError where the model has no template or the template refuses.
        """
        used = set("".join(value for message in messages for value in message.values()))
        mark = next(chr(c) for c in range(0xE000, 0xF8FF) if chr(c) not in used)  # private use: no message holds it
        guarded = [{key: self._guard(value, mark) for key, value in message.items()} for message in messages]
        if not self.template:
            raise BackendError(
                f"{self._path} has no chat template (tokenizer.chat_template); export the model with one"
            )
        bos, eos = (self.text(t) if t >= 0 else "" for t in (self._token("bos"), self._token("eos")))
        try:
            text = render_chat(self.template, guarded, bos_token=bos, eos_token=eos, **template_args)
        except BackendError as error:
            raise BackendError(f"the chat template of {self._path} refuses these messages: {error}") from error
        # Special tokens longest first: one may begin like another. A mark that the template tore off its token goes.
        specials = sorted(self._special_texts, key=len, reverse=True)
        marked = "|".join([*(re.escape(s[0]) + mark + re.escape(s[1:]) for s in specials), f".?{mark}"])
        parts = re.split(f"({marked})", text, flags=re.DOTALL) if mark in text else [text]
        ids: list[int] = []
        for number, part in enumerate(parts):  # by turns the template's, and what somebody typed
            ids += self.tokenize(part.replace(mark, ""), special=number % 2 == 0)
        return ids

    def _guard(self, text: str, mark: str) -> str:
        """`text` in NFC, with `mark` after the first character of every special token typed into it."""
        text = unicodedata.normalize("NFC", text)
        for special in self._special_texts:
            if special in text:
                text = text.replace(special, special[0] + mark + special[1:])
        return text

    def _token(self, name: str) -> int:
        return int(self._ask(f"llama_vocab_{name}"))

    def fingerprint(self) -> str:
        """Twelve hex digits: equal where tokens, their kinds and the way text is split into them are equal.

        The merges show in how the probe texts are split: llama.cpp does not give them out.
        """
        tokens = [self.text(t) for t in range(self.size)]
        splits = [
            self.tokenize(text)
            for text in (*_PROBES, "".join(t for t in tokens if t.isascii() and t.isalpha())[:20000])
        ]
        text = json.dumps([tokens, sorted(self._special.values()), splits])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], **template_args: Any) -> str:
    """The chat as text up to where the assistant's message begins, in a sandbox, with what transformers gives to a
    template. Raises BackendError where the template refuses, in whatever way it does.

    Example:
        >>> render_chat("{{ messages[0].role }}: {{ messages[0].content }}", [{"role": "user", "content": "1 + 1"}])
        'user: 1 + 1'
    """
    args = {"add_generation_prompt": True, "raise_exception": _raise_exception, **template_args}
    try:
        return str(_compiled(template).render(messages=messages, **args))
    except Exception as error:  # a template is a program: it may divide by zero, recurse, or miss a key
        raise BackendError(f"{error} ({type(error).__name__})") from error


def _raise_exception(message: str) -> None:
    raise BackendError(message)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(jinja2.ext.Extension):
        """transformers' {% generation %} block, which marks the assistant's tokens for training: here it passes
        through.
        """

        tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as an attribute of the instance)

        def parse(self, parser: Any) -> Any:
            parser.stream.skip(1)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationTag]
    )
    environment.filters["tojson"] = tojson
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
