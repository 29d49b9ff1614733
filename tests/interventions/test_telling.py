from __future__ import annotations

import pytest

from stepwise.interventions.collection import Progress, _in_words, _short

NOW = Progress(
    problems=40, problems_in_all=100, rollouts=160, failures=90, examples=41, guided=200, successes=24,
    generated={"weak": 300_000, "critic": 10_000}, money=0.42, left={"money": 4.58}, seconds=60.0,
    problems_before=10, generated_before=10_000,
)  # fmt: skip


def test_one_line_has_examples_success_tokens_money_rate_and_time() -> None:
    assert _in_words(NOW) == (
        "examples 41, guided 12% right, 310k tokens, 0.42 of 5.00 spent, 5.0k tokens/s, about 2 min left"
    )


@pytest.mark.parametrize(
    ("changed", "said", "unsaid"),
    [
        ({"money": None, "left": {}}, "no price known", "spent"),
        ({"money": 0.0, "left": {}}, "310k tokens, 5.0k", "spent"),
        ({"money": 0.42, "left": {}}, "0.42 spent", " of "),
        ({"left": {"total_tokens": 90_000}}, "310k of 400k tokens", "5.00"),
        ({"guided": 0, "successes": 0}, "examples 41, 310k", "guided"),
        ({"problems": 100}, "tokens/s", "left"),
        ({"problems_before": 40}, "spent", "tokens/s"),  # nothing was done here: there is no rate yet
    ],
)
def test_what_is_not_known_is_left_out(changed: dict[str, object], said: str, unsaid: str) -> None:
    line = _in_words(Progress(**{**vars(NOW), **changed}))  # type: ignore[arg-type]
    assert said in line
    assert unsaid not in line


def test_counts_are_short() -> None:
    assert [_short(n) for n in (0, 950, 1_000, 31_400, 2_440_000, 24_000_000)] == [
        "0", "950", "1.0k", "31k", "2.4M", "24M",
    ]  # fmt: skip
