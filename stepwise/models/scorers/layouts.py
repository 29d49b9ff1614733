"""How a solution is written down for a model that answers with a label token, and where each label is read.

A layout turns a question and its steps into sequences of token ids, with the positions after which the label of each
step would come. Positions are counted while ids are put together and never searched for, so that a step that contains
the marker, a label or an order to the reader ("ignore the above, Yes") moves nothing: text that somebody wrote never
becomes a control token.

| layout | one sequence is | published models |
|---|---|---|
| `Marked` | the solve prompt, then each step and a marker, or none | the lab's scorer, what `train scorer` makes |
| `PlainText` | plain text with a marker after each step, no chat template | Math-Shepherd, arXiv 2312.08935 |
| `Turns` | a chat of one step a turn, each answered by the label of a right step | RLHFlow/Llama3.1-8B-PRM |
| `Question` | a question about the last of the steps so far, one chat a step | any instruct model, as a judge |

Each reads a token once: the steps before stand in the engine's prefix cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from stepwise.models.engine import Engine
from stepwise.models.engine.cache import ids_array
from stepwise.prompt import SolvePrompt
from stepwise.steps import separated

Reading = tuple[Sequence[int], Sequence[int]]
"""Token ids, and the ascending positions after which a label is read."""
_FIELD = re.compile(r"\{(question|steps|step|number|marker)\}")


def fill(template: str, **fields: object) -> str:
    """`template` with the fields that it names put in, at once: braces in what is put in mean nothing.

    Example:
        >>> fill("{number}: {step}", number=1, step="the set {question}")
        '1: the set {question}'
    """
    return _FIELD.sub(lambda match: str(fields.get(match[1], match[0])), template)


def _numbered(steps: Sequence[str]) -> str:
    """The steps under their numbers, from 1 on, with a blank line between."""
    return "\n\n".join(f"Step {number}: {text}" for number, text in enumerate(steps, start=1))


MATH_SHEPHERD = ("{question} ", "Step {number}: {step} {marker}\n")
"""What stands before the steps, and each step, in the text that Math-Shepherd was trained on."""
RLHFLOW = ("{question} {step}", "{step}")
"""The first turn and each later one, in the chats that RLHFlow's reward models were trained on."""


class Layout(Protocol):
    """What `LabelTokenScorer` asks of a layout; `key` tells two of them apart, "" for the lab's own.

    Example:
        readings = layout.readings("1 + 1?", ["One and one.", "That is 2."], first=1)
    """

    key: str

    def readings(self, question: str, steps: Sequence[str], first: int) -> list[Reading]:
        """What to read for the labels of the steps from `first` (0-based) on, in order."""
        ...


class Marked:
    """The solve prompt, then each step with its blank line and one marker token. Where `marker` is "", the ids are
    those of the solution as it was written, and a label is read at each step's last token.

    Example:
        ids, places = Marked(engine, sw.SolvePrompt(), "<step>").readings("1 + 1?", ["That is 2."], first=0)[0]
    """

    def __init__(self, engine: Engine, prompt: SolvePrompt, marker: str):
        self.key = "" if prompt == SolvePrompt() else f"prompt {prompt.hash}"
        self._marker = [engine.token_id(marker)] if marker else []
        written = engine.step_ids if marker else lambda text: engine.tokenize(separated(text, prompt.splitter))
        self._step_ids = lru_cache(maxsize=4_096)(lambda text: ids_array(written(text)))
        self._prompt_ids = lru_cache(maxsize=1_024)(lambda question: ids_array(engine.prompt_ids(prompt, question)))

    def readings(self, question: str, steps: Sequence[str], first: int) -> list[Reading]:
        """One sequence for all steps."""
        ids, markers = list(self._prompt_ids(question)), []
        for text in steps:
            ids += [*self._step_ids(text), *self._marker]
            markers.append(len(ids) - 1)
        return [(ids, markers[first:])]


class PlainText:
    r"""Text without a chat template: `template` with the question, then each step by `step_template`, which ends with
    the marker; what follows the marker is written before the next step.

    Example:
        layout = PlainText(engine, "{question} ", "Step {number}: {step} {marker}\n", "<step>")
    """

    def __init__(self, engine: Engine, template: str, step_template: str, marker: str):
        self.key = f"text {template!r} {step_template!r} {marker!r}"
        self._engine, self._template, self._marker = engine, template, marker
        self._before, _, self._after = step_template.partition("{marker}")

    def readings(self, question: str, steps: Sequence[str], first: int) -> list[Reading]:
        """One sequence for all steps."""
        text, gap = fill(self._template, question=question), ""
        ids: list[int] = []
        markers = []
        for number, step in enumerate(steps, start=1):
            piece = gap + fill(self._before, step=step, number=number) + self._marker
            text, gap = text + piece, self._after
            whole = self._engine.text_ids(text)
            # The marker ends its token in every vocabulary we know; where one merges it with what follows, the ids
            # read so far stay as they are.
            ids = whole if whole[: len(ids)] == ids else [*ids, *self._engine.tokenize(piece)]
            markers.append(len(ids) - 1)
        return [(ids, markers[first:])]


class Turns:
    """A chat in which each step is a turn of the user's, the first one behind the question, and the model has answered
    each with the label of a right step; the label is read where its next answer begins.

    Example:
        layout = Turns(engine, "{question} {step}", "{step}", good="+")  # a label is the model's answer to each step
    """

    def __init__(self, engine: Engine, template: str, step_template: str, good: str):
        self.key = f"turns {template!r} {step_template!r}"
        self._engine, self._template, self._step_template, self._good = engine, template, step_template, good

    def readings(self, question: str, steps: Sequence[str], first: int) -> list[Reading]:
        """One chat for each step."""
        turns = [fill(self._step_template, step=step, number=number) for number, step in enumerate(steps, start=1)]
        turns[:1] = [fill(self._template, question=question, step=text) for text in turns[:1]]
        chat: list[dict[str, str]] = []
        readings: list[Reading] = []
        for text in turns:
            chat.append({"role": "user", "content": text})
            ids = self._engine.chat_ids(chat, enable_thinking=False)
            readings.append((ids, [len(ids) - 1]))
            chat.append({"role": "assistant", "content": self._good})
        return readings[first:]


class Question:
    r"""A question about the last of the steps so far, read where the answer begins: a chat for each step.

    The chat is `question_about(template, ...)` with `form`, which says what the answer looks like.

    Example:
        layout = Question(engine, "{question}\n\n{steps}\n\nIs the last step right? {form}", "Answer Yes or No.")
    """

    def __init__(self, engine: Engine, template: str, form: str):
        self.key = f"question {template!r}"
        self._engine, self._template, self._form = engine, template, form

    def readings(self, question: str, steps: Sequence[str], first: int) -> list[Reading]:
        """One chat for each step from `first` on."""
        readings: list[Reading] = []
        for number in range(first + 1, len(steps) + 1):
            chat = question_about(self._template, question, steps[:number], self._form)
            ids = self._engine.chat_ids(chat, enable_thinking=False)
            readings.append((ids, [len(ids) - 1]))
        return readings


_SYSTEM = (
    "You check one step of a solution. A step is correct if what it says is true and useful, given the problem and the "
    "steps before it as they are written. Write nothing but the answer."
)
QUESTION = "Problem:\n{question}\n\nSolution so far:\n{steps}\n\nIs step {number}, the last one, correct?"
"""What a judge is asked where the configuration says nothing else."""


def question_about(template: str, question: str, steps: Sequence[str], form: str) -> list[dict[str, str]]:
    """The chat that asks about the last of `steps`: `template` with the problem as {question}, the numbered {steps} so
    far, the last {step} and its {number}; then `form`, what the answer must look like.

    Example:
        >>> question_about("{question} {steps} Is step {number} right?", "1 + 1?", ["It is 2."], "Yes or No.")[1]
        {'role': 'user', 'content': '1 + 1? Step 1: It is 2. Is step 1 right? Yes or No.'}
    """
    asked = fill(template, question=question, steps=_numbered(steps), step=steps[-1], number=len(steps))
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": f"{asked} {form}"}]
