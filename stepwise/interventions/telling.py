"""How far a collection is, in one line."""

from __future__ import annotations

from collections.abc import Callable

from stepwise.interventions.account import Progress


def in_words(now: Progress) -> str:
    """One short line for the progress bar: "examples 41, guided 12 % right, 310k tokens, 0.42 of 5.00 spent"."""
    parts = [f"examples {now.examples:,}"]
    if now.guided:
        parts.append(f"guided {now.successes / now.guided:.0%} right")
    written = sum((now.generated or {}).values())
    parts.append(_of_cap(f"{short(written)}{{}} tokens", written, now, "total_tokens", short))
    if now.money is None:
        parts.append("no price known")
    elif now.money or "money" in (now.left or {}):
        parts.append(_of_cap(f"{now.money:.2f}{{}} spent", now.money, now, "money", "{:.2f}".format))
    here = now.problems - now.problems_before
    if here and now.seconds > 0:
        parts.append(f"{short((written - now.generated_before) / now.seconds)} tokens/s")
        left = (now.problems_in_all - now.problems) * now.seconds / here
        if left:
            parts.append(f"about {left:.0f} s left" if left < 120 else f"about {left / 60:.0f} min left")
    return ", ".join(parts)


def short(count: float) -> str:
    """A count in few characters: 950, 31k, 2.4M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if count >= unit:
            shown = count / unit
            return f"{shown:.1f}{name}" if shown < 10 else f"{shown:.0f}{name}"
    return f"{count:.0f}"


def _of_cap(shown: str, spent: float, now: Progress, name: str, form: Callable[[float], str]) -> str:
    """`shown` with the cap that this is spent of, where there is one."""
    left = (now.left or {}).get(name)
    return shown.format("" if left is None else f" of {form(spent + left)}")
