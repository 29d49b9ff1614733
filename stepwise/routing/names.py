"""Which models a policy is for: names as a configuration has them, and as loaded models do."""

from __future__ import annotations

import os
import re
from pathlib import PurePath
from typing import NamedTuple, Self

from stepwise.errors import ConfigError
from stepwise.records import record

# A scorer's name, and how it is set.
_SET_AS = re.compile(r"(.*?)(?: (with \{.*|\{.*|labels .*|prompt .*))?$", re.DOTALL)
_PLACE = re.compile(r"(.*?)(?:@([0-9a-f]{8}(?:\+.*)?|https?://.*))?$", re.DOTALL)
_HASH = re.compile("[0-9a-f]{8}")
_ASKED = ("judge", "generative")  # kinds that stand before a loaded name
_DTYPE = re.compile(r" (?:bfloat16|float16|float32)$")  # of a classifier


@record()
class ModelNames:
    """Names of the models that a policy is for; `config` and `prompt` are hashes of configuration and prompt.

    A name is as the configuration has it ("llamacpp/lab-weak"), or that of a loaded model ("lab-weak@11989165", with a
    hash of its weights). `splitter` says where steps end. What is None or "" is not known.

    Example:
        >>> ModelNames("llamacpp/lab-weak", "llamacpp/lab-strong").check(ModelNames("lab-weak@11989165", ""))
    """

    weak: str
    strong: str
    scorer: str | None = None
    config: str = ""
    prompt: str = ""
    splitter: str = ""

    def check(self, other: ModelNames, *, scorer: bool = True) -> None:
        """Raise `ConfigError` where a model (the scorer only if `scorer`) or the prompt of `other` is another one.

        What either side does not say is not checked.
        """
        for role in ("weak", "strong", *(["scorer"] if scorer else []), "splitter", "prompt"):
            ours, theirs = getattr(self, role), getattr(other, role)
            if ours and theirs and not _same_name(ours, theirs):
                part = {"prompt": "prompt", "splitter": "step splitter"}.get(role, f"{role} model")
                raise ConfigError(
                    f"the policy is for the {part} {ours!r}, the router has {theirs!r}; make it again for these "
                    "models, or force it"
                )


class _Named(NamedTuple):
    """A model's name, taken apart: `base` without the hash of its weights or the address of its server (`place`), `how`
    a scorer is set, `kind` which of `_ASKED` it is. One that is `loaded` has no provider before it, but for a model
    behind an API.
    """

    base: str
    place: str
    how: str
    kind: str

    @classmethod
    def of(cls, text: str) -> Self:
        text, how = _SET_AS.match(text).groups("")  # type: ignore[union-attr]
        word, _, rest = text.partition(" ")
        kind = next((each for each in _ASKED if each == word or f'"kind": "{each}"' in how), "")
        base, place = _PLACE.match(rest if word in _ASKED else text).groups("")  # type: ignore[union-attr]
        base = _DTYPE.sub("", base)
        if "/" in base and _HASH.fullmatch(place):  # no hash of weights, but an API's date of a model
            base, place = f"{base}@{place}", ""
        return cls(base, place, how, kind)

    @property
    def loaded(self) -> bool:
        return bool(self.place) or ("/" not in self.base and not self.how.startswith("with"))

    @property
    def once_loaded(self) -> set[str]:
        """What a configured model may be called when it is loaded."""
        provider, _, name = self.base.partition("/")
        path = PurePath(name)
        if provider == "llamacpp":
            return {path.parent.name if path.name == "model.gguf" else name.rpartition("/")[2].removesuffix(".gguf")}
        return {self.base, name, path.name} if provider == "transformers" else {self.base, name}


def _same_name(ours: str, theirs: str) -> bool:
    """Whether two names may be of one model; one of them may stand in a configuration and the other be loaded."""
    one, other = _Named.of(ours), _Named.of(theirs)
    if one.kind != other.kind:
        return False
    if one.loaded != other.loaded:  # what a scorer says of how it is set is said otherwise in a configuration
        configured, loaded = (other, one) if one.loaded else (one, other)
        local = configured.base.startswith("llamacpp/") or not _HASH.match(loaded.place)
        return local and loaded.base in configured.once_loaded
    weights_differ = one.place and other.place and one.place != other.place
    return os.path.normpath(one.base) == os.path.normpath(other.base) and one.how == other.how and not weights_differ
