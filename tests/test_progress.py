import io

import pytest
from rich.console import Console

from stepwise.progress import progress


def test_elsewhere_than_on_a_terminal_the_start_and_the_end_are_lines() -> None:
    text = io.StringIO()
    with progress("routing [0.5]", 3, console=Console(file=text)) as advance:
        for _ in range(3):
            advance(1)
    lines = text.getvalue().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["routing [0.5]: 0/3", "routing [0.5]: 3/3"]


def test_on_a_terminal_a_bar_is_drawn() -> None:
    text = io.StringIO()
    with progress("routing", 2, console=Console(file=text, force_terminal=True, width=80)) as advance:
        advance(2)
    assert "2/2" in text.getvalue()


def test_an_interruption_still_says_how_far_it_came() -> None:
    text = io.StringIO()

    def interrupted_work() -> None:
        with progress("routing", 5, console=Console(file=text)) as advance:
            advance(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_work()
    assert "2/5" in text.getvalue().splitlines()[-1]
