import pytest

from stepwise.errors import REDACTED, redact


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-abc123DEF456",
        "sk-ab***wxyz",
        "hf_abcdefghijklmn",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA1234567890abc",
        "ghp_1234567890abcdef",
        "xoxb-1234-abcd-5678",
    ],
)
def test_what_is_shaped_like_a_key_is_taken_out(secret: str) -> None:
    assert redact(f"Incorrect API key provided: {secret}, see the manual") == (
        f"Incorrect API key provided: {REDACTED}, see the manual"
    )


def test_the_value_of_a_variable_named_like_a_secret_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_COMPANY_API_KEY", "plain-words-as-key")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert redact("sent plain-words-as-key and abc") == f"sent {REDACTED} and abc"


@pytest.mark.parametrize(
    "text",
    [
        "12 + 5 = 17.\n\nSo \\boxed{17}",
        "a risk-averse task-oriented desk",
        "llamacpp/lab-weak",
        "token_ids and api_key_env",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text
