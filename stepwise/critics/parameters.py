"""What modules save and load: settings, predictors that keep their language models, a state of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import dspy
from dspy.predict.parameter import Parameter

from stepwise.config import ModelConfig
from stepwise.errors import ConfigError, DataError
from stepwise.models import provider


class Settings(Parameter):  # type: ignore[misc]
    """A module's own settings, saved and loaded with its predictors wherever the module stands in a program.

    Those named in `fixed` decide which predictors and models there are: they must be what they were when it was saved.

    >>> Settings(fixed=["method"], method="vote", samples=5).dump_state()
    {'method': 'vote', 'samples': 5}
    """

    def __init__(self, fixed: Sequence[str] = (), **values: Any) -> None:
        self.fixed, self.values = tuple(fixed), values

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The settings as plain JSON."""
        return dict(self.values)

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> Settings:
        """Take over saved settings. Raises ConfigError where they are those of another kind of module."""
        for name in self.fixed:
            saved, own = state.get(name), self.values[name]
            if saved != own:
                raise ConfigError(
                    f"this state was saved with {name} = {saved!r}, the module has {own!r}; make it with the same"
                )
        self.values = {**self.values, **state}
        return self

    def reset(self) -> None:
        """Nothing is learned here that could be reset."""


class Predictor(dspy.Predict):  # type: ignore[misc]
    """A dspy.Predict that does not lose its language model: not when an optimizer resets it, nor when it is loaded into
    a process where models that run here are not yet known to LiteLLM.

    >>> Predictor("question -> answer").signature.output_fields.keys()
    dict_keys(['answer'])
    """

    def reset(self) -> None:
        """Forget examples and traces; DSPy's own also forgets the language model."""
        lm = vars(self).get("lm")  # not there yet when it is made
        super().reset()
        self.lm = lm

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> Predictor:
        """See DSPy."""
        super().load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)
        self._declare_lm()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What pickle writes: of the signature, whose class may be one that was made on the way, name, instructions and
        fields. Nothing in it is run when it is read; what else DSPy saves whole it reads where `allow_pickle` says so.
        """
        state: dict[str, Any] = super().__getstate__()
        signature = state["signature"]
        return {**state, "signature": (signature.__name__, signature.instructions, _described(signature))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What pickle wrote; the model is made known to LiteLLM. Raises DataError for a signature in another form."""
        if not isinstance(state.get("signature"), tuple):
            raise DataError(
                f"a predictor was saved with its signature as {type(state.get('signature')).__name__}, by an earlier "
                "version; make the program anew and load its state: program.load('program.json')"
            )
        name, instructions, fields = state["signature"]
        super().__setstate__({**state, "signature": dspy.make_signature(fields, instructions, name)})
        self._declare_lm()

    def __deepcopy__(self, memo: dict[int, Any]) -> Predictor:
        """A copy with the same signature."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        state = copy.deepcopy(super().__getstate__(), memo)
        super(Predictor, other).__setstate__(state)
        return other

    def _declare_lm(self) -> None:
        if self.lm is not None and self.lm.model.startswith("llamacpp/") and self.lm.engine == "litellm":
            provider.register_litellm()
            provider.declare(
                self.lm.model, None, self.lm.kwargs.get("context", ModelConfig.model_fields["context"].default)
            )


def _described(signature: Any) -> dict[str, tuple[Any, Any]]:
    """Type and field of each name, in order: inputs, then outputs."""
    return {name: (field.annotation, field) for name, field in signature.fields.items()}
