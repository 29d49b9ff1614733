"""The forms in which published models write critiques: what they are given, and where their verdicts stand.

A form is data, a TOML file with the keys of `CritiqueForm`; `templates` has those of ThinkPRM, GenPRM and TIPS, and
says of each where it was taken from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from stepwise.config.errors import FrozenConfig, explain, merged
from stepwise.errors import ConfigError
from stepwise.io import parse_json
from stepwise.models.scorers.layouts import fill

_TEMPLATES = Path(__file__).parent / "templates"
FORMS = tuple(sorted(path.stem for path in _TEMPLATES.glob("*.toml")))


class CritiqueForm(FrozenConfig):
    """How a generative reward model is asked, and how its critiques and verdicts are written.

    Example:
        >>> form = CritiqueForm(user="{question} {steps}", stops=("It is",), lead=" It is ", good="right", bad="wrong")
        >>> form.first, form.covers
        (1, 'step')
    """

    system: str = ""
    """the system's message"""
    user: str
    """the user's message, with {question} and {steps}; the first one, with {question} and {step}, beside `next_user`"""
    next_user: str = ""
    """the user's message of each later step, with {step}: the solution is then a chat of a step a turn"""
    header: bool = True
    """whether the assistant's message begins before the critique; else the critique follows the user's message"""
    step: str = "Step {number}: {step}"
    """a step among {steps}"""
    joint: str = "\n"
    """what stands between two steps"""
    first: Literal[0, 1] = 1
    """the number of the first step"""
    prefill: str = ""
    """what the assistant's message begins with"""
    opening: str = ""
    """what each critique begins with, with {number} and {step}"""
    stops: tuple[str, ...] = Field(strict=False, min_length=1)
    """strings with which a critique comes to its verdict"""
    end_thought: bool = False
    """whether a thought that the critique leaves open is ended before the verdict"""
    head: str = ""
    """what stands behind the critique before the first verdict"""
    lead: str = Field(min_length=1)
    """what stands right before a verdict, with {number}"""
    good: str = Field(min_length=1)
    """the verdict on a right step"""
    bad: str = Field(min_length=1)
    """the verdict on a wrong step"""
    close: str = ""
    """what stands behind a verdict"""
    covers: Literal["step", "solution"] = "step"
    """whether a critique is of one step, or of all steps that are asked about together"""
    reply: Literal["", "sections", "json"] = ""
    """how verdicts stand in a whole reply: in a section a step, or in a block of JSON at the end; unset: the form needs
    an engine"""
    temperature: float = Field(default=0.7, ge=0)
    """of critiques, where there are several votes; a single one is greedy"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """of critiques"""
    top_k: int = Field(default=0, ge=0)
    """of critiques"""

    @model_validator(mode="after")
    def _can_be_filled_and_read(self) -> Self:
        steps = ("next_user", "{step}") if self.next_user else ("user", "{steps}")
        for key, needed in (("user", "{question}"), steps, ("step", "{step}")):
            if needed not in getattr(self, key):
                raise ValueError(f"{key} has no {needed}; add it")
        if self.good == self.bad:
            raise ValueError(f"good and bad are both {self.good!r}; give the words of the two verdicts")
        if self.covers == "solution" and (self.next_user or "{number}" not in self.lead):
            raise ValueError('covers = "solution" needs a lead with {number}, and no next_user')
        return self

    @classmethod
    def load(cls, name: str) -> Self:
        """The form of that name among `FORMS`, or in a TOML file. Raises `ConfigError` for what is none."""
        file = _TEMPLATES / f"{name}.toml" if name in FORMS else Path(name).expanduser()
        if not file.is_file():
            raise ConfigError(f"scorer.template: {name}: no such file; give one in TOML, or one of {', '.join(FORMS)}")
        try:
            return cls.model_validate(merged({}, file))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, str(file))) from None

    def chat(self, question: str, steps: Sequence[str], turns: Sequence[str]) -> list[dict[str, str]]:
        """The messages before the critique; `turns` are the assistant's, where each step is one of the user's."""
        chat = [{"role": "system", "content": self.system}] if self.system else []
        if not self.next_user:
            parts = [fill(self.step, step=step, number=number) for number, step in enumerate(steps, self.first)]
            content = fill(self.user, question=question, steps=self.joint.join(parts))
            return [*chat, {"role": "user", "content": content}]
        for place, step in enumerate(steps):
            template = self.next_user if place else self.user
            content = fill(template, question=question, step=step, number=place + self.first)
            chat.append({"role": "user", "content": content})
            chat += [{"role": "assistant", "content": turn} for turn in turns[place : place + 1]]
        return chat


def read_reply(form: CritiqueForm, text: str, steps: Sequence[str]) -> list[bool | None]:
    r"""The verdict on each step in a whole reply, None where there is none, or where two contradict each other.

    Example:
        >>> form = CritiqueForm.load("thinkprm")
        >>> read_reply(form, "Step 1: 2x = 4\n\nCritique: Yes.\n\nStep 1 is \\boxed{correct}", ["2x = 4"])
        [True]
    """
    return _READERS[form.reply](form, text, steps)


def _from_sections(form: CritiqueForm, text: str, steps: Sequence[str]) -> list[bool | None]:
    """A section begins with a line "Step N" and its verdict ends a line of it; the step, where it is repeated behind
    that line's beginning, is passed over. A model stops at the first wrong step: what follows it is wrong, too.
    """
    label = re.escape(form.step.partition("{number}")[0].strip())
    heading = rf"^[ \t*#>]*{label}[ ]*%s\b"
    for number, step in enumerate(steps, form.first):
        quoted = r"\s+".join(map(re.escape, step.split()))
        text = re.sub(rf"({heading % number})[:*. \t]*{quoted}", r"\1", text, flags=re.MULTILINE)
    sign, word = re.escape(form.lead.split()[-1]), rf"({re.escape(form.good)}|{re.escape(form.bad)})"
    verdict = re.compile(rf"{sign}\s*(?:\\text{{\s*)?{word}\s*}}+[\s.*$]*$", re.MULTILINE)
    said: dict[int, set[bool]] = {}
    _, *parts = re.split(heading % r"(\d+)", text, flags=re.MULTILINE)
    for number_text, section in zip(parts[::2], parts[1::2], strict=True):
        if words := verdict.findall(section):
            said.setdefault(int(number_text), set()).add(words[-1] == form.good)
    labels = [said.get(number, set()) for number in range(form.first, form.first + len(steps))]
    verdicts = [next(iter(each)) if len(each) == 1 else None for each in labels]
    wrong = verdicts.index(False) if False in verdicts else len(steps)
    return [False if place > wrong and not each else verdicts[place] for place, each in enumerate(labels)]


def _from_json(form: CritiqueForm, text: str, steps: Sequence[str]) -> list[bool | None]:
    """The block of JSON that ends the reply, by the steps' numbers."""
    block = re.search(r"```json((?:(?!```).)*)```\s*\Z", text, re.DOTALL)
    try:
        labels = parse_json(block[1])["step_labels"] if block else None
    except (ValueError, KeyError, TypeError):
        labels = None
    words = {form.good: True, form.bad: False}
    said = labels if isinstance(labels, dict) else {}
    return [words.get(str(said.get(str(number)))) for number in range(form.first, form.first + len(steps))]


_READERS: dict[str, Callable[[CritiqueForm, str, Sequence[str]], list[bool | None]]] = {
    "sections": _from_sections,
    "json": _from_json,
}
