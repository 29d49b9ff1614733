import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from stepwise.config import ModelConfig
from stepwise.errors import REDACTED, BackendError, keep_secret, redact, visible
from stepwise.io import append_rows, read_rows, write_rows, write_text
from stepwise.models.failures import failure_of
from stepwise.models.store import Answer, CallCache
from stepwise.report import Report, TraceView, write_report
from stepwise.report.terminal import show_trace
from stepwise.runs.progress import progress
from stepwise.runs.shell import Run, complain, program
from stepwise.types import Problem, Step, Trace, Usage


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
    ("name", "hidden"),
    [(name, True) for name in ("DB_PASSWD", "API_KEY_2", "OPENAI_API_KEY_PROD", "TOKEN1", "my_secrets", "PASSPHRASE")]
    + [(name, False) for name in ("SSH_KEY_PATH", "TOKENIZERS_PARALLELISM", "KEYBOARD", "KEY_FILE", "HOMEDIR")],
)
def test_the_value_of_a_variable_that_nobody_configured_goes_by_its_name(
    name: str, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "plain-words-as-key")
    assert redact("sent plain-words-as-key") == (f"sent {REDACTED}" if hidden else "sent plain-words-as-key")


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


VALUE = 'quatre-vingt "dix" & neuf/pommes+7'


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key in a variable whose name says nothing, which a configuration names."""
    monkeypatch.setenv("GATEWAY_LOGIN", VALUE)
    ModelConfig(model="openai/x", api_key_env="GATEWAY_LOGIN")
    return VALUE


def leaks(text: str) -> list[str]:
    """Pieces of eight characters of the key that `text` holds, as they are or as JSON writes them."""
    forms = (VALUE, json.dumps(VALUE)[1:-1])
    return [form[i : i + 8] for form in forms for i in range(len(form) - 7) if form[i : i + 8] in text]


def test_the_value_of_a_variable_that_a_configuration_names_is_a_secret_also_when_it_is_cut(configured: str) -> None:
    said = f"your key {configured} is wrong"
    assert redact(said) == f"your key {REDACTED} is wrong"
    for cut in range(len(said)):
        assert not leaks(redact(said[:cut])), cut
        assert not leaks(redact(said[cut:])), cut
    for form in (json.dumps(said), said.replace('"', "&quot;").replace("&", "&amp;")):
        assert "vingt" not in redact(form)
    assert redact("quatre pommes") == "quatre pommes"


def test_no_way_out_lets_a_key_pass_that_a_server_echoed(
    configured: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Step(f"It is {configured}, and cut {configured[:20]}", "weak", usage=Usage("openai/x", 1))
    trace = Trace(Problem("p", f"Say {configured}"), (step,), "error", note=f"refused {configured}")
    append_rows(tmp_path / "traces.jsonl", [trace])
    write_rows(tmp_path / "rows.jsonl", [trace])
    write_text(tmp_path / "card.json", json.dumps({"note": configured}))
    with CallCache(tmp_path / "answers.jsonl") as cache:
        cache.add([Answer("k", "weak", "p", Usage(), {"text": configured})])
        assert not leaks(json.dumps(cache.find("k")))
    write_report(
        tmp_path / "report.html", Report("Title", rows=(), traces=(TraceView(trace, "policy"),), notes=(configured,))
    )

    @program(doc="Talk.")
    def main(run: Run) -> None:
        run.write("rows.jsonl", {"echo": configured})
        run.say(f"said {configured}")
        run.say_json({"echo": configured})
        run.table(configured, ["a"], [[configured]])
        raise BackendError(f"HTTP 401: {configured[3:]}")

    assert main(["--out", str(tmp_path / "out")]) == 1
    complain(configured)
    console = io.StringIO()
    show_trace(trace, Console(file=console, width=300))
    with progress(f"asking {configured}", 1, console=Console(file=console)) as advance:
        advance(1, f"note {configured}")
    said = capsys.readouterr()
    texts = {file.name: file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    texts |= {"out": said.out, "err": said.err, "console": console.getvalue()}
    texts["failure"] = failure_of(RuntimeError(configured)).reason
    assert {name: leaks(text) for name, text in texts.items() if leaks(text)} == {}
    assert read_rows(tmp_path / "traces.jsonl", Trace)[0].problem.id == "p"


def test_escapes_never_reach_a_terminal_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b]0;title\x07\x1b[2J\x9b31m\rred\x08"

    @program(doc="Talk.")
    def main(run: Run) -> None:
        run.say(hostile)
        run.say_json({"text": hostile})
        run.table("Title", ["a"], [[hostile]])
        complain(hostile)
        with progress(hostile, 1) as advance:
            advance(1, hostile)
        raise BackendError(hostile)

    main(["--out", str(tmp_path / "out")])
    console = io.StringIO()
    show_trace(Trace(Problem("p", hostile), (Step(hostile, "weak"),), note=hostile), Console(file=console))
    said = capsys.readouterr()
    for text in (said.out, said.err, console.getvalue(), failure_of(RuntimeError(hostile)).reason):
        assert not set(text) & set("\x1b\x07\x9b\r\x08")
    assert visible("\x1b[2J\tok\n") == "\\x1b[2J\tok\n"


def test_data_keep_words_that_only_look_like_keys(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [Problem("p", "What is sk-learn_pipeline?")])
    assert read_rows(tmp_path / "rows.jsonl", Problem)[0].question == "What is sk-learn_pipeline?"


@pytest.mark.parametrize(
    "value",
    [
        'zq7-"Hunter2"+plain',
        '"begins-with-a-quote',
        "back\\slash\\and\ttab\\",
        "ключ-от-квартиры-99",
        "\U0001f511key-of-mine\n2",
    ],
)
@pytest.mark.parametrize("ascii", [True, False])
def test_json_stays_json_without_a_secret_wherever_it_was_cut(
    value: str, ascii: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PROVIDER", value)
    keep_secret("MY_PROVIDER")
    for start in range(len(value)):
        for end in range(start + 1, len(value) + 1):
            said = json.loads(redact(json.dumps({"a": f"so {value[start:end]}"}, ensure_ascii=ascii), as_json=True))[
                "a"
            ]
            assert (said == f"so {value[start:end]}") is (end - start < 8)
            assert not any(value[i : i + 8] in said for i in range(len(value) - 7))


def test_rows_in_which_a_key_was_cut_at_a_quote_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PROVIDER", 'Hunter2" and more')
    keep_secret("MY_PROVIDER")
    append_rows(tmp_path / "rows.jsonl", [{"text": "I am Hunter2"}])  # the quote that follows is the row's own
    write_text(tmp_path / "card.json", json.dumps({"text": "I am Hunter2"}))
    with CallCache(tmp_path / "answers.jsonl") as cache:
        cache.add([Answer("k", "weak", "p", Usage("m", 1, 2, 2, 3), "I am Hunter2")])
    with CallCache(tmp_path / "answers.jsonl", replays_are_free=True) as cache:
        assert cache.find("k") == "I am Hunter2"
    assert read_rows(tmp_path / "rows.jsonl") == [json.loads((tmp_path / "card.json").read_text())]
