"""[[models.NAME.endpoints]]: what a configuration may say of them, and what it says itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stepwise import load_backend
from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.models.endpoints import Endpoints


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('endpoints = [{api_base = "http://a/v1"}]', "llamacpp/lab-strong runs in this process"),
        ('model = "openai/m"\nendpoints = [{api_base = "a"}]', "expected an address such as"),
        ('model = "openai/m"\nendpoints = [{weight = 0}]', "greater than 0"),
        ('model = "openai/m"\nendpoints = [{api_key = "x"}]', "api_key_env"),
        ('model = "openai/m"\nendpoints = [{model = "m2"}]', "not provider/name"),
        ('model = "openai/m"\nendpoints = [{}, {weight = 2}]', "openai/m at None stands there twice"),
        ('model = "openai/m"\nendpoints = "http://a/v1"', "tuple"),
        ('model = "openai/m"\ncooldown = 5', "means nothing without endpoints"),
    ],
)
def test_a_configuration_that_makes_no_sense_says_what_would(tmp_path: Path, toml: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"[models.strong]\n{toml}\n")
    with pytest.raises(ConfigError, match=said):
        Config.load(path)


def test_a_configuration_without_endpoints_has_the_hash_that_it_had() -> None:
    assert "endpoints" not in json.dumps(Config.lab().model_dump(mode="json"))
    listed = Config.load(None, ['models.strong={model="openai/m",endpoints=[{api_base="http://a/v1"}]}'])
    assert Config.model_validate(listed.model_dump(mode="json")) == listed
    assert listed.hash != Config.lab().hash


def test_a_critic_is_at_one_place() -> None:
    with pytest.raises(ConfigError, match="LiteLLM's proxy"):
        Config.load(None, ['models.critic={model="openai/m",endpoints=[{api_base="http://a/v1"}]}'])


def test_a_name_with_endpoints_is_loaded_as_such() -> None:
    given = {"model": "openai/m", "endpoints": [{"api_base": "http://a/v1"}, {"api_base": "http://b/v1"}]}
    with load_backend(given) as model:
        assert isinstance(model, Endpoints)
        assert model.name == "openai/m@http://a|openai/m@http://b"


def test_the_configurations_of_the_page_are_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "endpoints.md"
    several, one, learning = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(several)
    strong = Config.load(path).models.strong
    assert [place.order for place in strong.endpoints] == [1, 1, 2]
    assert strong.places[2].model == "openrouter/qwen/qwen-2.5-7b-instruct"
    path.write_text(one)
    assert Config.load(path).scorer.api_base == "http://localhost:8001/v1"
    path.write_text(learning)
    assert Config.load(path).rl.correction == "truncate"
