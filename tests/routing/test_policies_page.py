"""docs/policies.md has every policy that a configuration can name, with the options that its class takes."""

from __future__ import annotations

import inspect
from pathlib import Path

from stepwise.routing.policy import Policy
from stepwise.routing.saved import POLICIES

BAR = "\\|"
PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def line(name: str, cls: type[Policy]) -> str:
    when = cls.when if isinstance(cls.when, str) else "after"  # of its signal, unless that stands before the draft
    options = ", ".join(
        f"`{option.name}`" if option.default is option.empty else f"`{option.name} = {option.default!r}`"
        for option in inspect.signature(cls).parameters.values()
    )
    does = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    cells = (f"`{name}`", f"`{cls.__name__}`", when, options, does)
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def test_the_page_has_a_line_for_each_policy_as_its_class_has_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    wanted = [line(name, cls) for name, cls in POLICIES.items()]
    missing = "\n".join(each for each in wanted if each not in page)
    assert not missing, f"docs/policies.md lacks:\n{missing}"
    assert sum(text.startswith("| `") for text in page.splitlines()) == len(wanted)
