"""Rollouts: steps as spans of tokens, rewards, and their files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.config import Config
from stepwise.errors import DataError
from stepwise.grading import Verdict
from stepwise.io import write_rows
from stepwise.steps import split_steps
from stepwise.training.rollouts import (
    RlRollout,
    _step_ranges,
    grade_rollouts,
    read_rollouts,
    rollouts_name,
    token_spans,
)
from stepwise.training.sampler import Sampler
from stepwise.types import Problem

TEXT = st.lists(
    st.sampled_from(["a", "B.", " ", "\n", "\n\n", "\r\n", "\r", "\t", "```", "~~~", "````py", "é", "\u00a0", "\u3000"])
).map("".join)


def plain(data: bytes) -> str:
    return data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


@given(TEXT | st.lists(st.sampled_from(["1 + 2 = 3", "3", "We add:", "\n", "\n\n", "\\[", "\\]"])).map("".join))
def test_under_the_other_splitter_they_are_whole_texts(text: str) -> None:
    data, steps = text.encode(), split_steps(text, "calculations")
    assert [data[a:b].decode() for a, b in _step_ranges(data, "calculations")] == steps
    pieces = [data[i : i + 3] for i in range(0, len(data), 3)]
    spans = token_spans(pieces, splitter="calculations")
    assert len(spans) == len(steps)
    assert b"".join(b"".join(pieces[a:b]) for a, b in spans) == data


def test_under_the_other_splitter_bytes_that_are_no_text_stay_where_they_are() -> None:
    data = b"1 + 2 = \xff 3\n\xe2\x82 4 = 4\nend"
    ranges = _step_ranges(data, "calculations")
    assert [plain(data[a:b]) for a, b in ranges] == split_steps(data.decode("utf-8", "replace"), "calculations")


def texts(pieces: list[bytes], end: int | None = None) -> list[bytes]:
    return [b"".join(pieces[start:stop]) for start, stop in token_spans(pieces, end)]


@given(TEXT)
def test_ranges_of_bytes_are_the_steps_of_split_steps(text: str) -> None:
    data = text.encode()
    assert [plain(data[a:b]) for a, b in _step_ranges(data)] == split_steps(text)


@given(st.lists(st.sampled_from([b"\xff", b"\xe2\x82", b"\n", b"\r", b"x", b" ", b"```", b"\xc2\xa0"])).map(b"".join))
def test_ranges_agree_with_split_steps_where_bytes_are_no_text(data: bytes) -> None:
    assert [plain(data[a:b]) for a, b in _step_ranges(data)] == split_steps(data.decode("utf-8", "replace"))


@given(TEXT, st.lists(st.integers(0, 12), max_size=12))
def test_spans_cover_the_tokens_in_order_and_follow_the_rule_of_the_first_byte(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(places)]
    spans, ranges = token_spans(pieces), _step_ranges(data)
    assert len(spans) == len(ranges)
    if spans:
        assert (spans[0][0], spans[-1][1]) == (0, len(pieces))
        assert all(a[1] == b[0] for a, b in pairwise(spans))
    for (start, stop), (begin, end) in zip(spans, ranges, strict=True):
        for place in range(start, stop):  # the rule of the module, said the slow way
            own = range(places[place], places[place + 1])
            first = next((byte for byte in own if any(a <= byte < b for a, b in ranges)), None)
            assert first is None or begin <= first < end


def test_a_blank_line_belongs_to_the_step_before_it_and_a_token_over_it_to_the_step_of_its_first_byte() -> None:
    assert texts([b"One", b".", b"\n\n", b"Two", b"."]) == [b"One.\n\n", b"Two."]
    assert texts([b"One", b".\n\nTw", b"o."]) == [b"One.\n\nTw", b"o."]
    assert texts([b"One.", b"\n\nTwo", b" more"]) == [b"One.", b"\n\nTwo more"]
    assert texts([b"\n", b"\n", b"One", b"\n\n", b""]) == [b"\n\nOne\n\n"]


def test_a_step_inside_one_token_has_an_empty_span() -> None:
    assert token_spans([b"One.\n\nTwo.\n\nThree", b" more"]) == ((0, 1), (1, 1), (1, 2))


def test_no_step_is_split_inside_a_code_fence_and_crlf_is_a_line_end() -> None:
    assert texts([b"A\r\n", b"\r\n", b"```\r\n", b"x\r\n\r\ny\r\n", b"```", b"\r\n\r\nB"]) == [
        b"A\r\n\r\n",
        b"```\r\nx\r\n\r\ny\r\n```",
        b"\r\n\r\nB",
    ]


def test_what_stands_after_the_stop_is_part_of_the_last_step() -> None:
    pieces = [b"\\boxed{4}.", b"\n\nSo", b""]
    assert len(token_spans(pieces)) == 2
    assert token_spans(pieces, end=11) == ((0, 3),)
    assert token_spans([b"\n", b"\n"]) == ()


def row(sample: int, text: str, **more: object) -> RlRollout:
    steps = tuple(split_steps(text))
    return RlRollout(f"p/s0/r{sample}", 0, "p", "?", sample, text, steps, (), (1,), (-0.5,), "eos", **more)  # type: ignore[arg-type]


def test_only_right_and_wrong_carry_a_reward_and_no_answer_does_as_it_is_told() -> None:
    problem = {"p": Problem("p", "?", "4")}
    rows = [row(0, "\\boxed{4}"), row(1, "\\boxed{5}"), row(2, "nothing"), row(3, "\\boxed{x^2 + * y}")]
    masked = grade_rollouts(rows, problem, "mask")
    assert [made.reward for made in masked] == [1.0, 0.0, None, 0.0]
    verdicts = [Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER, Verdict.UNPARSEABLE_PREDICTION]
    assert [made.verdict for made in masked] == verdicts
    unevaluated = grade_rollouts([row(0, "\\boxed{1 + 3}"), row(1, "\\boxed{}")], problem, "mask")
    assert [made.reward for made in unevaluated] == [0.0, None]
    assert unevaluated[0].verdict is Verdict.WRONG
    assert [made.reward for made in grade_rollouts(rows, problem, "wrong")] == [1.0, 0.0, 0.0, 0.0]
    broken = RlRollout("p/s0/r0", 0, "p", "?", 0, "", (), (), (), (), "error")
    assert grade_rollouts([broken], problem, "wrong") == [broken]
    with pytest.raises(DataError, match="'p' is not among"):
        grade_rollouts(rows, {}, "mask")


def test_rollouts_come_back_from_their_file_and_a_torn_one_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / rollouts_name(12)
    assert path.name == "step-00012.jsonl"
    rows = [row(0, "a\n\nb", verdict=Verdict.WRONG, reward=0.0, step_advantages=(0.25, None), step_scores=(0.5, 1.0))]
    path.parent.mkdir()
    path.write_text('{"id": "of an earlier start", "torn')
    write_rows(path, rows)
    assert read_rollouts(path) == rows
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    with pytest.raises(DataError, match="does not exist"):
        read_rollouts(tmp_path / "gone.jsonl")


def test_groups_are_drawn_from_seed_step_and_problem_alone(tiny_gguf_path: Path) -> None:
    cfg = Config.load(
        None, [f"models.weak.model=llamacpp/{tiny_gguf_path}", "rl.group=3", "rl.max_tokens=12", "seed=5"]
    )
    problems = [Problem("a", "1 + 1 = ?", "2"), Problem("b", "Two?", "2")]
    with Sampler(cfg) as sampler:
        prompts = {problem.id: tuple(sampler.engine.tokenize(problem.question)) for problem in problems}
        rows, evaluated = sampler.sample(problems, prompts, step=2)
        assert [made.id for made in rows] == [f"{name}/s2/r{i}" for name in "ab" for i in range(3)]
        assert evaluated == sum(map(len, prompts.values()))  # one prefill for a group
        assert all(len(made.token_ids) == len(made.logprobs) for made in rows)
        alone, _ = sampler.sample(problems[1:], prompts, step=2)
        other, _ = sampler.sample(problems[1:], prompts, step=3)
    assert [made.token_ids for made in alone] == [made.token_ids for made in rows[3:]]
    assert [made.token_ids for made in other] != [made.token_ids for made in rows[3:]]
