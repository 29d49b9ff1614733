"""Every error of the library: one root, and each class is also the stdlib error a caller would expect.

A message says what is wrong, where (file, field, value), and the remedy. Adding one: inherit from `StepwiseError` and
from the nearest stdlib error, keep the constructor's arguments equal to `args` (so that it pickles), and name the
remedy.
"""


class StepwiseError(Exception):
    """Root of every error that this library raises on purpose."""


class ConfigError(StepwiseError, ValueError):
    """A configuration file, key or value is wrong."""


class DataError(StepwiseError, ValueError):
    """An input row, problem or argument is wrong."""


class BackendError(StepwiseError, RuntimeError):
    """A model could not be loaded, or a whole call to it failed."""


class CapabilityError(BackendError):
    """The backend cannot do what was asked of it (prefill, grammar, adapters, ...)."""


class ScorerError(StepwiseError, ValueError):
    """A process reward model returned something that is not one probability per step."""


class ExportError(StepwiseError, ValueError):
    """A model cannot be written in the format asked for."""


class BudgetExceededError(StepwiseError, RuntimeError):
    """A hard cap on tokens, calls or money was reached; `cap` is its key, such as "budget.problem.calls"."""

    def __init__(self, message: str, *, cap: str = ""):
        super().__init__(message)
        self.cap = cap


class GradingError(StepwiseError, RuntimeError):
    """The grader's worker processes could not be run."""


class MissingDependencyError(StepwiseError, ImportError):
    """An optional package is needed for this; the message says which extra installs it."""
