"""The rows that models are trained on, as JSON Lines and from datasets: examples (supervised), pairs (preference)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from stepwise.data.tables import read_table
from stepwise.errors import DataError
from stepwise.io import write_rows, write_text
from stepwise.prompt import SolvePrompt
from stepwise.records import from_json, record
from stepwise.steps import Splitter, join_steps, split_steps
from stepwise.types import KeptSplitter

Origin = Literal[
    "intervention", "distillation", "routing", "reference", "reflection", "strong", "rejection", "first_tokens",
    "own_corpus", "call", "kept",
]  # fmt: skip
Row = TypeVar("Row", "Example", "Example | Chat")
_TEXTS = ("prompt", "chosen", "rejected")


# `ignore` lets a dataset have columns beside these, such as those of another loader.
@record(extra="ignore")
class Example:
    """One row of the dataset: after `prefix` (steps of the attempt), the model is to write `intervention`.

    `origin` says where the text comes from: a critic's step (intervention), a reference's next step in its place
    (distillation), an escalated step that was needed (routing), a reference solution, a rewrite with the reference in
    view (reflection), the strong model (strong: a whole solution, or an escalated step that was not needed), the
    model's own right solutions (rejection), the first tokens of its solutions whatever they end in (first_tokens), or
    the corpus that it was pretrained on (own_corpus); a marker, by which the model is to ask for help with the step
    (call), or its own steps where it is to ask for none (kept). `variant` names the form of it, where a builder of
    datasets knows several ("" is the plain one).

    `complete`: the text is a whole solution, `prefix` is empty, and the end of the message is trained after it.
    `foreign` are the places in the prefix of steps that the model did not write and that are never trained.
    `suffix` is what followed the intervention, where that is trained too. `successes` of `guided` rollouts from here
    ended right; 0 of 0 where none were made. `parents` are the ids of the problem, the attempt, the candidate or the
    rollout behind it; `models` the names of those who wrote by role. `splitter` says where its steps end.

    Example:
        row = read_examples("out/int/dataset.jsonl")[0]
        print(row.prefix, row.intervention, row.origin, f"{row.successes} of {row.guided}")
    """

    id: str
    question: str
    answer: str
    prefix: tuple[str, ...]
    intervention: str
    origin: Origin
    parents: dict[str, str]
    models: dict[str, str]
    prompt_hash: str
    config_hash: str
    seed: int
    successes: int = Field(ge=0)
    guided: int = Field(ge=0)
    with_reference: bool = True
    source: str = ""
    complete: bool = False
    suffix: str = ""
    variant: str = ""
    splitter: KeptSplitter = "paragraphs"
    foreign: Annotated[tuple[int, ...], Field(exclude_if=lambda value: not value)] = ()

    @property
    def target(self) -> str:
        """Prefix and intervention as one text, nothing after it (InT, arXiv 2601.14209, the section on SFT) but the
        `suffix` of a row that has one.
        """
        return join_steps((*self.prefix, self.intervention, *filter(None, (self.suffix,))), self.splitter)


@record()
class PreferencePair:
    """Two continuations of the same correct prefix, in steps; `prompt` is the question.

    `prompt_hash` is that of the prompt under which the attempt was made, None where the row does not say.

    >>> PreferencePair("1", "1 + 1?", (), chosen=("1 + 1 = 2.",), rejected=("1 + 1 = 3.",)).rejected
    ('1 + 1 = 3.',)
    """

    id: str
    prompt: str
    prefix: tuple[str, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    prompt_hash: str | None = None


@record()
class Chat:
    """Messages, each a role and a text, of which the last is the assistant's: that one is trained.

    >>> Chat("1", ({"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"})).messages[1]["role"]
    'assistant'
    """

    id: str
    messages: tuple[dict[str, str], ...]


def unique(rows: Iterable[Row]) -> list[Row]:
    """Rows without the examples whose question and target occurred before; chats all stay.

    >>> chat = Chat("1", ({"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}))
    >>> len(unique([chat, chat]))  # of examples, equal ones would be one
    2
    """
    kept: dict[Any, Row] = {}
    for i, row in enumerate(rows):
        kept.setdefault((row.question, row.target) if isinstance(row, Example) else i, row)
    return list(kept.values())


def write_examples(
    path: str | Path,
    examples: Sequence[Example],
    *,
    card: Mapping[str, Any],
    licence: str = "other",
) -> Path:
    """Write the dataset as JSON Lines, and its card beside it (same name, ending .md); returns the path.

    `card` holds counts, models and settings; `licence` is the licence's short name. Both files are whole or not there:
    they are written under another name first.

    Example:
        examples = build("rejection", "gsm8k.jsonl", config)
        write_examples("set.jsonl", examples, card={"models": {"weak": "m.gguf"}}, licence="mit")  # and set.md
    """
    path = Path(path)
    write_rows(path, examples)
    write_text(path.with_suffix(".md"), _card_text(path.stem, examples, card, licence))
    return path


def read_examples(source: str | Path | Any) -> list[Example]:
    """The inverse of `write_examples`, also for a `datasets.Dataset`; either column names. The directory of a run
    stands for the dataset in it.

    Raises DataError naming file, row and field.

    Example:
        rows = read_examples("out/int/dataset.jsonl")
        rows[0].target  # what is trained: the kept prefix and the intervention
    """
    rows, where = read_table(source, prefer="dataset")
    return [_example(row, f"{where}, row {number}") for number, row in enumerate(rows, 1)]


def _example(row: Any, where: str) -> Example:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {row!r:.60}; it must be an object, as `write_examples` writes them")
    names = {"problem": "question", "solution": "answer"}
    plain = {names.get(name, name): value for name, value in row.items() if value is not None}
    # `datasets` gives every row all keys that any row has, None where the row has not.
    for name in ("parents", "models"):
        if isinstance(plain.get(name), Mapping):
            plain[name] = {key: value for key, value in plain[name].items() if value is not None}
    try:
        return from_json(Example, json.dumps(plain))
    except ValueError as error:
        lacking = [name for name in ("prefix", "intervention") if name not in plain]
        if lacking and "question" in plain:
            raise DataError(
                f"{where}: a problem, not a row of examples (it has no {' and no '.join(lacking)}); make a dataset of "
                "the problems first: stepwise intervene --problems FILE"
            ) from None
        raise DataError(f"{where}: not a row of examples ({_first(error)})") from None


def read_training_rows(source: str | Path | Any, prompt: SolvePrompt) -> list[Example | Chat]:
    r"""Rows of any form that supervised training takes, each as an `Example` or a `Chat`.

    Beside what `read_examples` reads: {"messages": [...]}, whose last message is trained; {"prompt": ..., "completion":
    ...} with lists of messages, the same; and with texts, where the completion is a whole solution of the question
    `prompt`, asked under `prompt`'s template. Raises DataError naming file, row and field.

    >>> read_training_rows([{"prompt": "1 + 1?", "completion": "So \\boxed{2}."}], SolvePrompt())[0].complete
    True
    """
    if isinstance(source, list | tuple) and all(isinstance(row, Example | Chat) for row in source):
        return list(source)
    rows, where = read_table(source, prefer="dataset")
    return [_training_row(row, f"{where}, row {number}", f"row {number}", prompt) for number, row in enumerate(rows, 1)]


def _training_row(row: Any, where: str, name: str, prompt: SolvePrompt) -> Example | Chat:
    if not isinstance(row, Mapping) or (row.get("messages") is None and row.get("completion") is None):
        return _example(row, where)
    name = str(row.get("id") or name)
    asked, reply = row.get("prompt"), row.get("completion")
    if row.get("messages") is not None:
        return read_chat(row["messages"], where, name)
    if isinstance(asked, list) and isinstance(reply, list):
        return read_chat([*asked, *reply], where, name)
    question, solution = (_pair_text(row.get(field), f"{where}, field {field}") for field in ("prompt", "completion"))
    made_from: dict[str, Any] = {"parents": {}, "models": {}, "prompt_hash": prompt.hash, "config_hash": "", "seed": 0}
    return Example(
        name, question, str(row.get("answer") or ""), (), solution, "reference", **made_from,
        successes=0, guided=0, complete=True, splitter=prompt.splitter,
    )  # fmt: skip


def read_chat(messages: Any, where: str, name: str) -> Chat:
    """Messages as role and text; DataError for what is no chat that ends with the assistant's reply.

    >>> chat = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    >>> read_chat(chat, "line 1", "1").id
    '1'
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < 2:
        raise DataError(f'{where} has no chat; it must be {{"messages": [...]}} with at least a request and a reply')
    chat = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            if any(part.get("type") != "text" for part in content):
                raise DataError(f"{where}: a message of role {message['role']!r} holds more than text; leave it out")
            content = "".join(part["text"] for part in content)
        chat.append({"role": str(message["role"]), "content": content})
    if chat[-1]["role"] != "assistant" or not chat[-1]["content"].strip():
        raise DataError(f"{where} ends with {chat[-1]!r:.80}; it must end with what the assistant is to reply")
    return Chat(name, tuple(chat))


def _card_text(name: str, examples: Sequence[Example], card: Mapping[str, Any], licence: str) -> str:
    """Markdown, with the fields that dataset hubs read in front: licence, size, where the rows come from."""
    origins = {origin: sum(e.origin == origin for e in examples) for origin in sorted({e.origin for e in examples})}
    counts = {
        "examples": len(examples),
        "problems": len({e.parents.get("problem", e.question) for e in examples}),
        "by origin": origins,
        "made without a reference solution": sum(not e.with_reference for e in examples),
    }
    front = f"---\nlicense: {json.dumps(licence)}\nconfigs:\n- config_name: default\n  data_files: {name}.jsonl\n---\n"
    body = json.dumps({"counts": counts, **card}, indent=2, ensure_ascii=False, default=str)
    return (
        f"{front}\n# {name}\n\nInterventions: after `prefix`, a model is to write `intervention` as its next step "
        "(InT, arXiv 2601.14209). `successes` of `guided` continuations from there ended right. Rows that are "
        "`complete` are whole solutions.\n\n"
        f"```json\n{body}\n```\n"
    )


def read_pairs(*sources: str | Path | Any, splitter: Splitter = "paragraphs") -> list[PreferencePair]:
    r"""Pairs, those of the same texts once. A source is a JSON Lines file that the dataset builder wrote, a
    `datasets.Dataset`, or rows with the texts `prompt`, `chosen` and `rejected`.

    The prefix is the longest run of steps that `chosen` and `rejected` begin with; steps end as `splitter`, that of the
    prompt, says. Raises DataError naming file, row
    and field: for a field without a text, and for texts of which one is, or begins with, the other.

    >>> row = {"prompt": "What is 2 + 3?", "chosen": "Add.\n\nIt is 5.", "rejected": "Add.\n\nIt is 6."}
    >>> pair = read_pairs([row])[0]
    >>> pair.prefix, pair.chosen, pair.rejected
    (('Add.',), ('It is 5.',), ('It is 6.',))
    """
    pairs: dict[tuple[Any, ...], PreferencePair] = {}
    for rows, source in (read_table(source, prefer="dataset") for source in sources):
        for number, row in enumerate(rows, 1):
            pair = _pair(row, f"{source}, row {number}", f"row {number}", splitter)
            pairs.setdefault((pair.prompt, pair.prefix, pair.chosen, pair.rejected), pair)
    return list(pairs.values())


def _pair(row: Any, where: str, name: str, splitter: Splitter) -> PreferencePair:
    """One row as a pair, called `name` where it has no id; DataError names `where` and the field."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {row!r:.60}; it must be an object with prompt, chosen and rejected")
    prompt, chosen, rejected = (_pair_text(row.get(field), f"{where}, field {field}") for field in _TEXTS)
    better, worse = split_steps(chosen, splitter), split_steps(rejected, splitter)
    shared = next((i for i, (left, right) in enumerate(zip(better, worse, strict=False)) if left != right), None)
    if shared is None:
        short = "chosen" if len(better) <= len(worse) else "rejected"
        beginning = f"{short} is only the beginning of the other"
        reason = "chosen equals rejected" if len(better) == len(worse) else beginning
        raise DataError(f"{where}: {reason}, so there is no step to prefer; leave the row out")
    steps = (tuple(better[:shared]), tuple(better[shared:]), tuple(worse[shared:]))
    prompt_hash = row.get("prompt_hash")
    return PreferencePair(str(row.get("id") or name), prompt, *steps, None if prompt_hash is None else str(prompt_hash))


def _pair_text(value: Any, where: str) -> str:
    """A text as `pairs` writes it, as it is or as the one message of a list."""
    if isinstance(value, Sequence) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} is {value!r:.60}; give a text, or a list with one message that has one")
    return value


def _first(error: ValueError) -> str:
    lines = str(error).splitlines()
    return " ".join(line.strip() for line in lines[1:3]) or str(error)
