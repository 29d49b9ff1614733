"""[serve]: where `stepwise serve` listens, who may ask, and what a request may take."""

from __future__ import annotations

import os
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stepwise.config.budget import CapsConfig
from stepwise.config.errors import FrozenConfig, variable_name
from stepwise.errors import ConfigError

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_LEAST_KEY = 16  # characters


class KeyConfig(CapsConfig):
    """A key that clients may send, and the caps on all that is asked with it, over all starts of the server.

    Example:
        >>> KeyConfig(api_key_env="ALICE_KEY", money=1.0).money
        1.0
    """

    api_key_env: Annotated[str, AfterValidator(variable_name)]
    """NAME of the environment variable that holds the key"""

    def secret(self) -> str:
        """The key; raises ConfigError where its variable holds none, or one that is easily guessed."""
        value = os.environ.get(self.api_key_env, "")
        if len(value) < _LEAST_KEY or not value.isascii():
            raise ConfigError(
                f"serve.api_keys: {self.api_key_env} must hold a key of {_LEAST_KEY} or more ASCII characters; set it, "
                f"for example {self.api_key_env}=$(openssl rand -hex 24)"
            )
        return value


class ServeConfig(FrozenConfig):
    """How a configuration is served (`stepwise serve`).

    Example:
        >>> ServeConfig(port=9000).host
        '127.0.0.1'
    """

    host: str = "127.0.0.1"
    """address to listen at; any other than loopback needs keys"""
    port: int = Field(default=8790, ge=0, le=65535)
    """0 takes one that is free"""
    certificate: str | None = None
    """file of a TLS certificate (PEM, with its chain); with it, https alone is served"""
    certificate_key: str | None = None
    """file of its private key, where the certificate's file does not hold it"""
    hosts: tuple[str, ...] = Field(default=(), strict=False)
    """more names that the server goes by in a client's Host header; beyond loopback without any, every name"""
    api_keys: dict[str, KeyConfig] = Field(default={})
    """who may ask: a table for each, with api_key_env and caps of its own"""
    policies: dict[str, str] = Field(default={})
    """files of saved policies: model router-saved-NAME"""
    allow_import: tuple[str, ...] = Field(default=(), strict=False)
    """modules that those files may import classes from"""
    on_failure: Literal["keep", "fail"] = "keep"
    """where the strong model or the scorer is down: the weak model's step stands and is marked, or the request fails"""
    max_open: int | None = Field(default=None, ge=1)
    """answers in the making at once; unset: by the models' curves, or as many as they decode in one batch"""
    max_waiting: int = Field(default=64, ge=0)
    """requests that wait for their turn; more get a 429"""
    max_n: int = Field(default=8, ge=1)
    """most answers to one request"""
    max_tokens: int = Field(default=2048, ge=1)
    """most tokens of an answer, and what it gets where a request names no number"""
    max_body: int = Field(default=262_144, ge=1024)
    """most bytes of a request"""
    timeout: float = Field(default=300.0, gt=0)
    """seconds for a request, after which it ends with the steps that are there"""
    shared: str | None = None
    """directory that all replicas of a server share: caps of [budget] and [serve.api_keys] hold over all of them"""
    answers: bool = False
    """keep what models answer, in `shared` or else in --out, so that a request which comes again is not bought again"""

    @model_validator(mode="after")
    def _needs_keys_beyond_loopback(self) -> Self:
        if self.host not in LOOPBACK and not self.api_keys:
            raise ValueError(
                f'serve.host = {self.host!r} lets others in; name a key, [serve.api_keys.NAME] api_key_env = "...", or '
                'listen at host = "127.0.0.1"'
            )
        if self.certificate_key and not self.certificate:
            raise ValueError("serve.certificate_key is set without serve.certificate; name the certificate's file too")
        return self
