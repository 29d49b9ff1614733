"""A server whose steps end where there is something to check: no stop string is sent, and its reply is cut here."""

from __future__ import annotations

from stepwise.prompt import SolvePrompt
from stepwise.steps import split_steps
from stepwise.types import Step
from tests.models.test_litellm import behind, one, reply


def test_under_the_other_splitter_a_server_gets_no_stop_string_and_is_cut_where_a_reader_splits() -> None:
    text = "We add:\n\n1. 1 + 1 = 2\n2. 2 + 2 = 4\n\nSo \\boxed{4}."
    prompt = SolvePrompt(splitter="calculations")
    with behind(lambda path, body: reply(text), prompt=prompt) as (backend, server):
        step = one(backend, prefix=())
        assert (step.text, step.finish) == (split_steps(text, "calculations")[0], "step")
        assert "stop" not in server.requests[-1][1]
        one(backend, prefix=(Step(step.text, "weak"),))
        assert server.requests[-1][1]["messages"][-1]["content"] == "We add:\n\n1. 1 + 1 = 2\n"
