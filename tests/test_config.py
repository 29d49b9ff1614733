import json
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stepwise.config import Config, LoadConfig, ModelConfig, ScorerConfig
from stepwise.config.errors import explain
from stepwise.errors import ConfigError

SECRET = "sk-abcdefghijklmnop123456"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.load(path, overrides)
    return str(caught.value)


def test_the_annotated_file_is_the_lab_and_names_every_key(tmp_path: Path) -> None:
    text = files("stepwise.config").joinpath("lab.toml").read_text(encoding="utf-8")
    assert Config.load(write(tmp_path, text)) == Config.lab()
    for model in (LoadConfig, ScorerConfig, *(field.annotation for field in Config.model_fields.values())):
        for name in getattr(model, "model_fields", ()):
            assert f"{name} =" in text or f".{name}]" in text, f"lab.toml does not mention {name}"


@pytest.mark.parametrize(
    ("role", "table"), [("weak", "models.weak"), ("strong", "models.strong"), ("scorer", "scorer")]
)
def test_one_line_swaps_the_model_of_a_role_and_nothing_else(tmp_path: Path, role: str, table: str) -> None:
    config = Config.load(write(tmp_path, f'[{table}]\nmodel = "openai/other"\n'))
    assert config.role(role).model == "openai/other"  # type: ignore[arg-type]
    lab, other = Config.lab().role(role), config.role(role)  # type: ignore[arg-type]
    by_machine = {"context", "sequences", "threads"}  # what the lab sets, and is found for others
    assert {getattr(other, field) for field in by_machine} == {None}
    assert other.model_dump(exclude=by_machine | {"model"}) == lab.model_dump(exclude=by_machine | {"model"})
    assert config.routing == Config.lab().routing


def test_prompt_and_sampling_suit_the_weak_model_unless_they_are_set() -> None:
    mine = ["models.weak.model=llamacpp/mine.gguf"]
    general = Config.load(None, mine)
    assert "blank line between steps" in general.prompt.system
    assert "\\boxed{}" in general.prompt.system
    assert (general.sampling.temperature, general.sampling.max_step_tokens) == (0.3, 256)
    own = Config.load(None, [*mine, "prompt.system=Solve.", "sampling.max_step_tokens=99"])
    assert (own.prompt.system, own.sampling.temperature, own.sampling.max_step_tokens) == ("Solve.", 0.3, 99)
    assert Config.load(None, [*mine, "prompt.user=Solve: {question}"]).prompt.system == ""
    assert Config.load(None, ["models.strong.model=openai/x"]).prompt == Config.lab().prompt
    assert Config(models={"weak": "llamacpp/mine.gguf"}) == general  # type: ignore[arg-type]
    moved = Config.lab().models.model_copy(update={"weak": "llamacpp/the/same/as/base-f32.gguf"})
    assert Config.lab().model_copy(update={"models": moved}).prompt == Config.lab().prompt  # what was made for stays


def test_the_labs_critic_is_an_adapter_and_another_critic_takes_nothing_of_it_over(tmp_path: Path) -> None:
    lab = Config.lab()
    assert (lab.models.critic.model, lab.models.critic.lora, lab.critic_is_bare) == (
        "llamacpp/lab-critic", "lab-critic", True,
    )  # fmt: skip
    other = Config.load(write(tmp_path, 'models.critic.model = "openai/critic"'))
    assert (other.role("critic").model, other.role("critic").lora, other.critic_is_bare) == (
        "openai/critic", None, False,
    )  # fmt: skip


def test_overrides_win_over_the_file_and_take_toml_values_or_bare_words(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 3\n[routing]\nthreshold = 0.9\n")
    config = Config.load(
        path,
        [
            "routing.threshold=0.4",
            "routing.policy=never",
            "models.weak.flash_attention=false",
            "models.weak.model=llamacpp/some/file.gguf",
            "budget.money=1",
            'prompt.system="Solve it, step by step."',
        ],
    )
    assert (config.seed, config.routing.threshold, config.routing.policy) == (3, 0.4, "never")
    assert config.models.weak.flash_attention is False
    assert config.models.weak.model == "llamacpp/some/file.gguf"
    assert config.budget.money == 1.0
    assert config.prompt.system == "Solve it, step by step."


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("[routing]\ntreshold = 0.4\n", "routing.treshold", "routing.threshold"),
        ("threshold = 0.4\n", "threshold", "routing.threshold"),
        ('[models.weak]\nmodl = "a/b"\n', "models.weak.modl", "models.weak.model"),
        ('[models.critic]\nmodel = "a/b"\ncontxt = 4\n', "models.critic.contxt", "models.critic.context"),
        ("[prompt]\nsytem = 'x'\n", "prompt.sytem", "prompt.system"),
        ("[modells.weak]\ncontext = 100\n", "modells", "models"),
    ],
)
def test_an_unknown_key_names_the_file_the_key_and_the_nearest_valid_one(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    path = write(tmp_path, text)
    said = message(path)
    assert said.startswith(f'{path}: unknown key "{key}"')
    assert f'did you mean "{nearest}"?' in said


def test_an_unknown_key_like_no_other_lists_the_valid_ones(tmp_path: Path) -> None:
    said = message(write(tmp_path, "[routing]\nzzzzzz = 1\n"))
    assert "valid keys here are policy, threshold, " in said
    assert said.endswith("an option of the policy, scorer or scheme itself belongs into routing.options")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("seed=word", ["\"seed\" is 'word' (string)", "valid integer"]),
        ("seed=true", ['"seed" is True (bool)', "valid integer"]),
        (
            "models.weak=3",
            ['"models.weak" is 3 (int)', "expected a table of keys; set one of them, for example models.weak.model"],
        ),
        ("models.weak.context=10.5", ['"models.weak.context" is 10.5 (float)', "valid integer", "longest sequence"]),
        ("models.weak.kv_type=f8", ["'f16', 'f32' or 'q8_0'"]),
        ("models.weak.model=lab-weak", ["provider/name"]),
        ("routing.threshold=2", ["less than or equal to 1"]),
        ("models.strong.api_base=localhost:80", ["http://localhost:8080/v1"]),
    ],
)
def test_a_wrong_value_names_where_it_was_given_the_value_and_what_is_expected(override: str, parts: list[str]) -> None:
    said = message(None, override)
    assert said.startswith(f"--set {override.partition('=')[0]}: ")
    for part in parts:
        assert part in said


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    said = message(write(tmp_path, "seed = 'x'\n[routing]\npolcy = 'never'\n"))
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", "seed.x=3"])
def test_a_malformed_override_is_an_error_that_shows_the_form(override: str, tmp_path: Path) -> None:
    assert f'override "{override.partition("=")[0]}"' in message(write(tmp_path, "seed = 1"), override)


def test_a_missing_file_and_broken_toml_name_the_file(tmp_path: Path) -> None:
    assert message(tmp_path / "none.toml").startswith(f"{tmp_path / 'none.toml'}: cannot be read")
    broken = write(tmp_path, "a = = 1")
    assert message(broken).startswith(f"{broken}: not valid TOML")
    broken.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in message(broken)


@pytest.mark.parametrize(
    "text",
    [
        f'[models.strong]\napi_key_env = "{SECRET}"\n',
        f'[models.strong]\napi_key = "{SECRET}"\n',
        f'[models.strong]\nkey = "{SECRET}"\n',
        f'[models.strong]\ncontext = "{SECRET}"\n',
        f'[models.strong]\napi_base = "https://user:{SECRET}@host/v1"\n',
        f'[models.strong]\napi_base = "https://host/v1?key={SECRET}"\n',
        f'[models.strong]\napi_base = "{SECRET}"\n',
        f'"{SECRET}" = 1\n',
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_never_repeated(tmp_path: Path, text: str) -> None:
    assert SECRET not in message(write(tmp_path, text))


@pytest.mark.parametrize("value", [SECRET, "AKIAIOSFODNN7EXAMPLE", "hf_abcdefghijkl", "my-key", "", "3KEY", "k" * 65])
def test_only_the_name_of_an_environment_variable_is_taken_for_a_key(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(model="openai/x", api_key_env=value)
    with pytest.raises(ValidationError) as raw:
        ModelConfig.model_validate({"model": "openai/x", "api_key_env": value})
    shown = str(caught.value) + repr(caught.value) + explain(raw.value, ModelConfig, "here")
    assert "name of an environment variable" in shown
    assert not value or value not in shown


def test_the_key_is_read_from_the_environment_and_stands_in_no_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(model="openai/x", api_key_env="STEPWISE_TEST_KEY")
    monkeypatch.delenv("STEPWISE_TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="STEPWISE_TEST_KEY"):
        model.api_key()
    monkeypatch.setenv("STEPWISE_TEST_KEY", SECRET)
    assert model.api_key() == SECRET
    assert SECRET not in repr(model) + str(model) + json.dumps(model.model_dump()) + model.model_dump_json()
    assert ModelConfig(model="openai/x").api_key() is None


def test_a_price_that_nobody_gave_is_unknown_except_for_a_model_in_this_process() -> None:
    assert ModelConfig(model="openai/x").prices is None
    assert ModelConfig(model="openai/x", price_in=1.0, price_out=2.0).prices == (1.0, 2.0)
    assert ModelConfig(model="llamacpp/lab-weak").prices == (0.0, 0.0)


def test_half_a_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="price_out"):
        ModelConfig(model="openai/x", price_in=1.0)


def test_a_configuration_is_frozen_hashable_and_equal_by_value() -> None:
    with pytest.raises(ConfigError, match="Config cannot be changed; make another"):
        Config.lab().seed = 1  # type: ignore[misc]
    assert Config.lab() == Config.load() == Config()
    assert len({Config.lab(), Config(), Config.load(None, ["seed=1"])}) == 2


@given(st.integers(0, 2**31), st.floats(0, 1))
def test_the_hash_follows_the_values(seed: int, threshold: float) -> None:
    overrides = [f"seed={seed}", f"routing.threshold={threshold!r}"]
    config = Config.load(None, overrides)
    assert config.hash == Config.load(None, overrides).hash
    assert (config.hash == Config().hash) == (config == Config())
    assert Config.model_validate(json.loads(config.model_dump_json())) == config


def test_the_path_of_a_gguf_without_its_provider_is_refused_with_the_right_name() -> None:
    with pytest.raises(ConfigError, match=r'"llamacpp/models/foo\.gguf"'):
        Config.load(overrides=["models.weak.model=models/foo.gguf"])
