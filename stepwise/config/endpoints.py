"""[[models.NAME.endpoints]]: the addresses at which a model is to be had."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from stepwise.config.errors import FrozenConfig, variable_name


def _without_secrets(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError('expected an address such as "http://localhost:8080/v1"')
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("the address must hold no user, password or query; name the variable of a key in api_key_env")
    return value


Address = Annotated[str, AfterValidator(_without_secrets)]
VariableName = Annotated[str, AfterValidator(variable_name)]


class EndpointConfig(FrozenConfig):
    """One of several places that serve a model. What is not set is as for the model itself.

    Example:
        >>> EndpointConfig(api_base="http://gpu1:8000/v1", weight=2.0).order
        1
    """

    model: str | None = None
    """provider/name, where this place has another name for the model"""
    api_base: Address | None = None
    """address of an OpenAI-compatible endpoint"""
    api_key_env: VariableName | None = None
    """NAME of the environment variable that holds the API key"""
    weight: float = Field(default=1.0, gt=0)
    """its share of the problems, beside the others of its order"""
    order: int = Field(default=1, ge=1)
    """endpoints of a higher order are asked only where those of lower ones fail or rest"""
