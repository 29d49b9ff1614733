"""What went wrong with a call to a model: exceptions of any library become a `Failure`, by class and status.

The taxonomy is `Failure.kind`: this request is refused, the model is gone, try again, out of budget. Messages are for
people; no text is ever parsed.
"""

from __future__ import annotations

from stepwise.errors import (
    BackendError,
    BudgetExceededError,
    DataError,
    RequestRefusedError,
    RetryLaterError,
    ScorerError,
    StepwiseError,
    visible,
)
from stepwise.types import Failure, FailureKind

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_OF_ONE_REQUEST = frozenset({400, 413, 414, 415, 422})
_REFUSED = frozenset({"LMInvalidRequestError", "LMUnsupportedFeatureError", "ContextWindowExceededError",
                      "ContentPolicyViolationError", "BadRequestError"})  # fmt: skip
_GONE = frozenset({
    "LMAuthError", "LMBillingError", "LMConfigurationError", "LMNotConfiguredError", "LMUnsupportedModelError",
    "AuthenticationError", "PermissionDeniedError", "NotFoundError", "BackendError",
})  # fmt: skip
_ERRORS = {"refused": RequestRefusedError, "gone": BackendError, "again": RetryLaterError}


def kind_of_status(status: int) -> FailureKind:
    """What an HTTP status that is no success means: this request is refused, another try may succeed, or neither.

    >>> kind_of_status(429), kind_of_status(400), kind_of_status(401)
    ('again', 'refused', 'gone')
    """
    if status in _PASSING:
        return "again"
    return "refused" if status in _OF_ONE_REQUEST else "gone"


def failure_of(error: BaseException) -> Failure:
    """What `error`, raised by a model's client, means.

    Statuses count where the exception has one (`status_code`, `status`, `code`); then its class and bases, of LiteLLM,
    DSPy, httpx and the standard library. What nobody knows says that the model is gone: it stops a run, and loses
    nothing.

    >>> failure_of(TimeoutError("no answer in 60 s")).kind, failure_of(DataError("the prompt is empty")).kind
    ('again', 'refused')
    """
    carried = getattr(error, "failure", None)
    if isinstance(carried, Failure):
        return carried
    reason = visible(f"{type(error).__name__}: {error}" if not isinstance(error, StepwiseError) else str(error))
    if isinstance(error, BudgetExceededError):
        return Failure("budget", reason, error.cap)
    if isinstance(error, RequestRefusedError | DataError | ScorerError):
        return Failure("refused", reason)
    if isinstance(error, RetryLaterError):
        return Failure("again", reason)
    if isinstance(error, StepwiseError):
        return Failure("gone", reason)
    found = [getattr(error, name, None) for name in ("status_code", "status", "code")]
    status = next((value for value in found if isinstance(value, int)), 0)
    names = {kind.__name__ for kind in type(error).__mro__}
    if status >= 400:
        return Failure(kind_of_status(status), reason)
    if names & _REFUSED and "LMUnsupportedModelError" not in names:  # that says that there is no such model
        return Failure("refused", reason)
    return Failure("again" if isinstance(error, TimeoutError | ConnectionError) else "gone", reason)


def is_gone(error: BaseException) -> bool:
    """Whether `error` itself says that no other request will fare better: a key that is refused, no such model.

    >>> is_gone(BackendError("HTTP 401: the key is wrong")), is_gone(ValueError("?")), is_gone(TimeoutError())
    (True, False, False)
    """
    return failure_of(error).kind == "gone" and bool(_GONE & {kind.__name__ for kind in type(error).__mro__})


def error_of(failure: Failure, where: str = "") -> StepwiseError:
    """The exception that says what `failure` says; `where` stands before the reason.

    >>> error_of(Failure("gone", "HTTP 401: the key is wrong"), "openai/NAME")
    BackendError('openai/NAME: HTTP 401: the key is wrong')
    """
    message = f"{where}: {failure.reason}" if where else failure.reason
    if failure.kind == "budget":
        return BudgetExceededError(message, cap=failure.cap)
    return _ERRORS[failure.kind](message)
