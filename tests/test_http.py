"""The HTTP client: what may pass is tried again and counted, what may not fails at once and says why."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from stepwise.models.http import CallFailed, Server, retry_after
from tests.scorers.stand_in import Answer, in_turn, serving


def server(url: str, attempts: int = 3, **options: object) -> Server:
    return Server(url, attempts=attempts, backoff=0.0, timeout=20.0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        Answer({"message": "slow down"}, 429, {"Retry-After": "0"}),
        Answer({"message": "broken"}, 500),
        Answer(b"", 503),
        Answer(b"<html>gateway</html>", 502),
        Answer(b"<html>hello</html>"),
        Answer(b'{"data": [1, 2'),
        Answer(b'{"data": [1]}', cut=True),
        Answer(b""),
        Answer({"error": {"message": "overloaded", "code": 503}}),
    ],
    ids=["429", "500", "503 empty", "502 html", "200 html", "half JSON", "cut off", "nothing", "200 with 503 inside"],
)
def test_what_may_pass_is_tried_again_and_counted(bad: Answer) -> None:
    with serving(in_turn(bad, bad, Answer({"data": 7}))) as stand_in:
        reply = server(stand_in.url).post("/x", {"a": 1})
        assert (reply.data, reply.retries) == ({"data": 7}, 2)
        assert [body for _, body, _ in stand_in.requests] == [{"a": 1}] * 3
    with serving(in_turn(bad)) as stand_in:
        with pytest.raises(CallFailed) as failed:
            server(stand_in.url).post("/x", {})
        assert failed.value.retries == 2
        assert stand_in.url + "/x" in str(failed.value)
        assert len(stand_in.requests) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Answer({"message": "no such token"}, 400), "HTTP 400: .*no such token.*check that model"),
        (Answer({}, 401), "HTTP 401.*api_key_env"),
        (Answer({}, 404), "HTTP 404.*check api_base"),
        (Answer({"error": {"message": "bad input", "code": 400}}), "HTTP 200 with an error inside.*bad input"),
        (Answer({"error": "bad input"}), "HTTP 200 with an error inside.*bad input"),
    ],
)
def test_what_will_not_pass_fails_at_once(bad: Answer, message: str) -> None:
    with serving(in_turn(bad)) as stand_in:
        with pytest.raises(CallFailed, match=message) as failed:
            server(stand_in.url).post("/x", {})
        assert failed.value.retries == 0
        assert len(stand_in.requests) == 1


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (Answer({}, 400), "refused"), (Answer({}, 413), "refused"), (Answer({"error": "bad input"}), "refused"),
        (Answer({}, 401), "gone"), (Answer({}, 404), "gone"), (Answer({"error": {"code": 403}}), "gone"),
        (Answer({}, 503), "again"), (Answer(b"<html>"), "again"), (Answer({"error": {"code": 429}}), "again"),
    ],
)  # fmt: skip
def test_a_failure_says_whether_the_request_the_server_or_the_moment_is_wrong(bad: Answer, kind: str) -> None:
    with serving(in_turn(bad)) as stand_in, pytest.raises(CallFailed) as failed:
        server(stand_in.url, attempts=1).post("/x", {})
    assert failed.value.failure.kind == kind
    assert failed.value.failure.reason == str(failed.value)


def test_a_redirect_is_not_followed_since_the_key_would_go_with_it() -> None:
    with serving(in_turn(Answer({"data": 7}))) as other:
        sent_on = Answer({}, 307, {"Location": f"{other.url}/x"})
        with serving(in_turn(sent_on)) as stand_in, pytest.raises(CallFailed, match=r"HTTP 307.*as api_base"):
            server(stand_in.url, key="sk-verysecret123456").post("/x", {})
        assert other.requests == []


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(CallFailed, match=f"{url}/x: no answer .*is the server up") as failed:
        server(url, attempts=2).post("/x", {})
    assert failed.value.retries == 1


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        asked = Server(f"http://127.0.0.1:{deaf.getsockname()[1]}", attempts=2, backoff=0.0, timeout=0.2)
        with pytest.raises(CallFailed, match="timed out"):
            asked.post("/x", {})


def test_the_key_is_sent_and_never_shown() -> None:
    key = "sk-verysecret123456"
    with serving(lambda path, body: Answer({"message": f"wrong key {key}"}, 401)) as stand_in:
        with pytest.raises(CallFailed) as failed:
            server(stand_in.url, key=key).post("/x", {})
        assert stand_in.requests[0][2]["Authorization"] == f"Bearer {key}"
    assert key not in str(failed.value)


def test_a_proxy_of_the_environment_is_not_used_for_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(in_turn(Answer(1))) as stand_in:
        assert server(stand_in.url).post("/x", {}).data == 1


def test_an_address_may_end_in_v1_and_text_may_hold_a_lone_surrogate() -> None:
    with serving(in_turn(Answer(1))) as stand_in:
        server(stand_in.url + "/v1/").post("/pooling", {"text": "\ud800"})
        assert stand_in.requests[0][:2] == ("/pooling", {"text": "\ud800"})


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert retry_after("2.5") == 2.5
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (retry_after(soon) or 0) <= 100
    assert retry_after(format_datetime(datetime(2001, 1, 1, tzinfo=UTC), usegmt=True)) == 0
    assert retry_after("whenever") is None
    assert retry_after(None) is None
