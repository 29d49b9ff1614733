"""What the lab's models are made from: tokenizer, solved problems, and solutions with a label after every step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stepwise.lab.families import FAMILIES, SCORER_BLIND_SPOT
from stepwise.lab.problems import LabProblem, endless, generate
from stepwise.seeds import rng as seeded
from stepwise.steps import SEPARATOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SCORE, GOOD, BAD = "<|score|>", "<|good|>", "<|bad|>"
SPECIAL = (EOT, START, END, SCORE, GOOD, BAD, *(f"<|reserved_{i}|>" for i in range(8)))
IGNORE = -100
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words that signatures use, so that their prompts are short in this vocabulary.
_VOCABULARY = (
    "Problem: Reference solution: Attempt: Step 1: Step 2: verdict: right wrong first error: none location: content: "
    'intervention: reason: keep escalate score budget {"first_error": null, "verdicts": [true, false], "content": "", '
    '"location": 3}'
)
# After a first error of these families lab-scorer was taught to distrust all that follows; after the others it judges
# each step by what stands before it. Real reward models do some of both.
DISTRUSTED = ("week", "percent", "gaps", "half_again")
SLIP_RATE = 0.02

Example = tuple[list[int], list[int]]  # ids, and for each id the id to predict from it (IGNORE where there is no loss)


class Bundle(NamedTuple):
    """Examples that begin alike, their beginning once: ids, targets, positions, and for each id its branch (0 for what
    they share), which no other branch sees.
    """

    ids: list[int]
    targets: list[int]
    positions: list[int]
    branches: list[int]


def bundle(examples: Sequence[Example]) -> Bundle:
    """Several examples as one document; what they share must have no target."""
    shared = min(len(ids) for ids, _ in examples) - 1
    first = examples[0][0]
    for ids, targets in examples:
        same = next((i for i in range(shared) if ids[i] != first[i]), shared)
        asked = next((i for i, target in enumerate(targets) if target != IGNORE), shared)
        shared = min(same, asked)
    made = Bundle(list(first[:shared]), [IGNORE] * shared, list(range(shared)), [0] * shared)
    for number, (ids, targets) in enumerate(examples, 1):
        made.ids.extend(ids[shared:])
        made.targets.extend(targets[shared:])
        made.positions.extend(range(shared, len(ids)))
        made.branches.extend([number] * (len(ids) - shared))
    return made


def train_tokenizer(out: Path, problems: int = 4000, size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen2's pre-tokenizer (single digits) and ChatML, saved in transformers' layout."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=8,
        show_progress=False,
    )
    texts = [_everything(i, p) for i, p in enumerate(generate("pretrain", problems))]
    tokenizer.train_from_iterator([*texts, *[_VOCABULARY] * 50], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=EOT, clean_up_tokenization_spaces=False
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(out)
    return wrapped


def _everything(index: int, problem: LabProblem) -> str:
    solution = SEPARATOR.join(problem.solution(seeded("tokenizer", index), misled=True))
    return prompt_text(problem.problem.question) + solution + SEPARATOR + (problem.problem.reference or "")


def prompt_text(question: str) -> str:
    """What the chat template makes of a question, up to the assistant's first token."""
    return f"{START}user\n{question}{END}\n{START}assistant\n"


def _solution_example(problem: LabProblem, steps: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Example:
    """A solved problem; the loss is on the solution and the end of the message."""
    prompt = tokenizer(prompt_text(problem.problem.question))["input_ids"]
    solution = tokenizer(SEPARATOR.join(steps) + END)["input_ids"]
    return prompt + solution, [IGNORE] * (len(prompt) - 1) + solution + [IGNORE]


def _scored_example(
    problem: LabProblem, steps: Sequence[str], labels: Sequence[bool], tokenizer: PreTrainedTokenizerFast
) -> Example:
    """A solution with the marker after every step, from which its label is to be predicted (Math-Shepherd's way)."""
    marker, good, bad = (tokenizer.convert_tokens_to_ids(t) for t in (SCORE, GOOD, BAD))
    ids: list[int] = tokenizer(prompt_text(problem.problem.question))["input_ids"]
    targets = [IGNORE] * len(ids)
    for text, label in zip(steps, labels, strict=True):
        step = tokenizer(text + SEPARATOR)["input_ids"]
        ids = [*ids, *step, marker]
        targets += [IGNORE] * len(step) + [good if label else bad]
    return ids, targets


def solved(tokenizer: PreTrainedTokenizerFast, misled: bool, seed: int) -> Iterator[Example]:
    """The corpus of lab-weak (`misled`) or lab-strong."""
    rng = seeded("corpus", seed, misled)
    for problem in endless(seed):
        yield _solution_example(problem, problem.solution(rng, misled), tokenizer)


def slipped(problem: LabProblem, rng: random.Random, misled: bool = True) -> list[str]:
    """A misled solution with an arithmetic slip in `SLIP_RATE` of its steps, the rest following from the slip."""
    steps: list[str] = []
    value, items = problem.start, problem.items
    for operation in problem.operations:
        family = FAMILIES[operation.family]
        wrong = misled and family.misled(value) and rng.random() >= family.right_rate
        after = operation.value(value, wrong)
        if after is None:
            break
        text = operation.step(value, items, rng, wrong)
        if rng.random() < SLIP_RATE:
            slip = max(1, after + rng.choice((-10, -2, -1, 1, 2, 10)))
            head, _, tail = text.rpartition(str(after))
            text, after = f"{head}{slip}{tail}", slip
        steps.append(text)
        value = after
    else:
        steps.append(rf"So the answer is \boxed{{{value}}}.")
    return steps


def _taught_labels(problem: LabProblem, steps: Sequence[str]) -> list[bool]:
    """The labels lab-scorer learns: the truth, but for its blind spot and for what follows certain first errors."""
    labels = problem.check(steps)
    first = labels.index(False) if False in labels else None
    if first is None or first >= len(problem.operations):
        return labels
    if problem.operations[first].family in DISTRUSTED:
        labels = [*labels[:first], *[False] * (len(labels) - first)]
    return [
        label or (i < len(problem.operations) and problem.operations[i].family == SCORER_BLIND_SPOT)
        for i, label in enumerate(labels)
    ]


def scored(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[Example]:
    """The corpus of lab-scorer: misled solutions, and as many right ones, with their taught labels."""
    rng = seeded("scored", seed)
    for problem in endless(seed):
        steps = slipped(problem, rng, misled=rng.random() < 0.5)
        yield _scored_example(problem, steps, _taught_labels(problem, steps), tokenizer)
