"""From rows of a dataset to token ids, as the engine holds them when it continues a solution.

The prompt is the chat up to the assistant's message. Each step is tokenized with what separates it from the next, as
the engine does, so that training and sampling see the same ids. What differs from InT (arXiv 2601.14209): the blank
line that ends the intervention is trained too, since with many tokenizers it is one token with the full stop before it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepwise.config.training import SftConfig
from stepwise.data.examples import Chat, Example
from stepwise.errors import ConfigError, DataError
from stepwise.prompt import SolvePrompt
from stepwise.steps import Splitter, has_answer, separated, split_steps


@dataclass(frozen=True)
class TokenRow:
    """Prompt and target as one sequence of ids, and a loss weight for each id of the target.

    >>> row = TokenRow((5, 7, 9, 2), prompt=2, weights=(1.0, 0.0))
    >>> row.size, row.num_trained
    (4, 1)
    """

    ids: tuple[int, ...]
    prompt: int
    weights: tuple[float, ...]

    @property
    def size(self) -> int:
        """Tokens of prompt and target."""
        return len(self.ids)

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return sum(self.weights)

    @property
    def num_trained(self) -> int:
        """Tokens with a loss."""
        return sum(weight > 0 for weight in self.weights)


def prompt_ids(tokenizer: Any, prompt: SolvePrompt, question: str) -> list[int]:
    """Ids of the chat up to where the assistant's message begins.

    Raises ConfigError for a template that begins no assistant's message, DataError for a question that holds a special
    token (the engine would read it as text, the template as the token).

    Example:
        ids = prompt_ids(trainee.tokenizer, sw.SolvePrompt(), "1 + 1?")
    """
    _check_plain(tokenizer, prompt.user + prompt.system, "the prompt")
    _check_plain(tokenizer, question, "the question")
    return _chat_ids(tokenizer, prompt.messages(question), prompt.template_args)


def _chat_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]], template_args: Mapping[str, Any]) -> list[int]:
    """Ids of a chat up to where the assistant's next message begins; ConfigError for a template that begins none."""
    chat = [{**message, "content": unicodedata.normalize("NFC", message["content"])} for message in messages]
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opened, **template_args)
        for opened in (True, False)
    ]
    if texts[0] == texts[1]:
        raise ConfigError(
            "the chat template does not begin the assistant's message (add_generation_prompt changes nothing); "
            "give the model a template that does"
        )
    ids: list[int] = tokenizer(texts[0], add_special_tokens=False)["input_ids"]
    return ids


def _check_plain(tokenizer: Any, text: str, what: str) -> None:
    """Raise DataError where `text` holds the text of a special token."""
    special = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    token = next((mark for mark in special if mark and mark in text), None)
    if token is not None:
        raise DataError(f"{what} holds the special token {token!r}; remove it from the text ({text!r:.60})")


def text_ids(tokenizer: Any, text: str, what: str) -> list[int]:
    r"""Ids of plain text; DataError where they do not give the text back.

    Example:
        ids = text_ids(trainee.tokenizer, "So 3.\n\n", "step 0")
    """
    _check_plain(tokenizer, text, what)
    text = unicodedata.normalize("NFC", text)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if back != text:
        raise DataError(
            f"{what} does not tokenize back to itself ({text!r:.60} becomes {back!r:.60}); the tokenizer cannot write "
            "it: normalize the text or train from a byte-level tokenizer"
        )
    return ids


def _render(
    example: Example, tokenizer: Any, prompt: SolvePrompt, settings: SftConfig, context: int | None = None
) -> TokenRow:
    """One row as ids with loss weights by role: prefix, intervention, suffix.

    A row that is `complete` ends with the end-of-message token, any other with the blank line after its last step
    (none after the first tokens of a sample). Raises DataError, naming the row, for another prompt's row, a target
    without a loss, text that does not tokenize back, and a sequence longer than `context`.
    """
    where = f"row {example.id!r}"
    check_prompt(where, example.prompt_hash, prompt)
    calls, foreign = example.origin == "call", set(example.foreign)
    weight = settings.call_weight if calls else settings.intervention_weight
    parts = (
        ([] if calls else _steps(example, prompt.splitter), weight),
        (split_steps(example.suffix, prompt.splitter), settings.suffix_weight),
    )
    kept = [(step, 0.0 if i in foreign else settings.prefix_weight) for i, step in enumerate(example.prefix)]
    texts = kept + [(step, weight) for steps, weight in parts for step in steps]
    head = prompt_ids(tokenizer, prompt, example.question)
    open_end = example.complete or example.origin == "first_tokens"
    open_end |= example.origin == "kept" and has_answer(example.intervention)
    tail: int | None = None
    if calls:
        tail = marker_id(tokenizer, example.intervention, [(where, example.question)])
    elif example.complete and texts:
        tail, weight = tokenizer.eos_token_id, texts[-1][1]
    return token_row(
        where, head, texts, tokenizer, context, open_end=open_end, tail=(tail, weight), splitter=prompt.splitter
    )


def marker_id(tokenizer: Any, marker: str, questions: Iterable[tuple[str, str]] = ()) -> int:
    """The token by which the model asks for help. Raises ConfigError for a text that is no single token, DataError for
    one that stands in one of the `questions`, each with what it is called.

    Example:
        marker_id(trainee.tokenizer, "<|reserved_0|>")
    """
    ids: list[int] = tokenizer(marker, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        parts = [tokenizer.decode([token]) for token in ids]
        raise ConfigError(
            f"the marker {marker!r} is split into {parts}; give a text that is one token, best a special one that no "
            f"text needs, of: {', '.join(list(tokenizer.get_added_vocab())[:12])}"
        )
    for name, question in questions:
        if marker in question:
            raise DataError(
                f"{name} holds the marker {marker!r} in its question ({question!r:.60}); take another marker"
            )
    return ids[0]


def check_prompt(where: str, made_under: str, prompt: SolvePrompt) -> None:
    """Raise DataError for a row, called `where`, that was made under another prompt (a hash).

    >>> check_prompt("row 1", SolvePrompt().hash, SolvePrompt())
    """
    if made_under != prompt.hash:
        raise DataError(
            f"{where} was made under another prompt ({made_under}, now {prompt.hash}); set [prompt] as it was, or "
            "collect again"
        )


def token_row(
    where: str,
    head: Sequence[int],
    texts: Sequence[tuple[str, float]],
    tokenizer: Any,
    context: int | None,
    *,
    open_end: bool = False,
    tail: tuple[int | None, float] = (None, 0.0),
    splitter: Splitter = "paragraphs",
) -> TokenRow:
    """Steps with their loss weights after the ids `head` of a prompt; each with what separates it, the last one without
    where `open_end`. `tail`: a token behind them, with its weight. DataError, naming `where`, as `_render`.

    Example:
        head = prompt_ids(tokenizer, sw.SolvePrompt(), "1 + 1?")
        row = token_row("row 1", head, [("One and one.", 0.0), ("That is 2.", 1.0)], tokenizer, context=None)
    """
    ids: list[int] = []
    weights: list[float] = []
    for place, (step, weight) in enumerate(texts):
        last = open_end and place + 1 == len(texts)
        piece = text_ids(tokenizer, step if last else separated(step, splitter), f"{where}, step {place}")
        ids += piece
        weights += [weight] * len(piece)
    if tail[0] is not None:
        ids.append(tail[0])
        weights.append(tail[1])
    if not any(weights):
        raise DataError(f"{where} has no token with a loss; give it a text, or raise the [sft] weight of its role")
    if context is not None and len(head) + len(ids) > context:
        raise DataError(
            f"{where} has {len(head) + len(ids)} tokens, more than the context of {context}; raise "
            "models.weak.context, or leave the row out"
        )
    return TokenRow((*head, *ids), len(head), tuple(weights))


def chat_row(chat: Chat, tokenizer: Any, template_args: Mapping[str, Any], context: int | None, where: str) -> TokenRow:
    """A chat as the ids that the engine serves it with, the loss on the last message and its end.

    Raises DataError, naming `where`, for a special token in a message and for a chat longer than `context`.

    Example:
        row = chat_row(chat, trainee.tokenizer, config.prompt.template_args, trainee.context, "row 1")
    """
    for message in chat.messages:
        _check_plain(tokenizer, message["content"], where)
    head = _chat_ids(tokenizer, chat.messages[:-1], template_args)
    reply = [*text_ids(tokenizer, chat.messages[-1]["content"], where), tokenizer.eos_token_id]
    if context is not None and len(head) + len(reply) > context:
        raise DataError(
            f"{where} has {len(head) + len(reply)} tokens, more than the context of {context}; raise "
            "models.weak.context, or leave the row out (of a DSPy program: its demonstrations, exclude_demos=True)"
        )
    return TokenRow((*head, *reply), len(head), (1.0,) * len(reply))


def render_all(
    examples: Sequence[Example | Chat],
    tokenizer: Any,
    prompt: SolvePrompt,
    settings: SftConfig,
    context: int | None = None,
) -> list[TokenRow]:
    """Every row; the first that cannot be used raises, before any compute is spent.

    Example:
        rows = render_all(read_examples("out/int/dataset.jsonl"), trainee.tokenizer, config.prompt, config.sft)
    """
    return [
        chat_row(row, tokenizer, prompt.template_args, context, f"row {row.id!r}")
        if isinstance(row, Chat)
        else _render(row, tokenizer, prompt, settings, context)
        for row in examples
    ]


def _steps(example: Example, splitter: Splitter) -> list[str]:
    return [example.intervention] if example.origin == "first_tokens" else split_steps(example.intervention, splitter)
