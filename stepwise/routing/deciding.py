"""A policy checked when it is handed in, and asked."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from stepwise.errors import ConfigError, PluginError, StepwiseError, reason_of
from stepwise.plugins import check_choice, check_plugin, make_plugin, options_of
from stepwise.routing.policy import NAMES, Action, Evidence, Look, Policy, View


def label_of(policy: Policy) -> str:
    """The policy's name and operating point, for tables.

    Example:
        >>> from stepwise.routing.policies import Threshold
        >>> label_of(Threshold(0.3))
        'Threshold 0.30'
    """
    name = NAMES.get(policy.name, policy.family[:1].upper() + policy.family[1:])
    if policy.point is None:
        return name
    return f"{name} {policy.point:g}" if 0 < abs(policy.point) < 0.01 else f"{name} {policy.point:.2f}"


def needs_scorer(policy: Policy) -> bool:
    """Whether a policy cannot do without a scorer, whenever it asks it.

    >>> from stepwise.routing.policies import Never, Threshold
    >>> needs_scorer(Threshold(0.5)), needs_scorer(Never())
    (True, False)
    """
    return policy.needs_scores or "scores" in policy.looks


def check_policy(policy: Any, *, field: str = "policy") -> Policy:
    """`policy` itself, or one of a class without arguments.

    Raises `ConfigError`, naming `field`, class and remedy, for what is no policy and for one with a wrong part.

    >>> from stepwise.routing.policies import Never
    >>> check_policy(Never)  # a class without arguments
    Never()
    """
    policy = make_plugin(policy, {}, field=field)
    check_plugin(policy, Policy, field=field)
    name = f"{field}: {type(policy).__name__}"
    for evidence in policy.looks:
        check_choice(f"{name}.looks", evidence, get_args(Evidence))
    if policy.dial:
        check_choice(f"{name}.dial", policy.dial, options_of(policy))
    try:
        inspect.signature(policy.decide).bind(None)
    except TypeError:
        raise ConfigError(f"{name}.decide must take one argument: def decide(self, view)") from None
    return policy  # type: ignore[no-any-return]


async def decide(policy: Policy, view: View) -> Action | Look:
    """What `policy` says of `view`.

    Raises `PluginError`, naming step, problem, class and remedy, where it raises, returns no action, or looks for
    evidence that is not in its `looks` or is there already. Errors that are not its fault (a model is gone) pass.

    Example:
        action = await decide(sw.Threshold(0.5), view)  # Escalate(steps=1, reason='score 0.30 < 0.50')
    """
    name, cause = f"{type(policy).__name__}.decide()", None
    try:
        action: Any = policy.decide(view)
        if inspect.isawaitable(action):  # it asks a model
            action = await action
        if isinstance(action, Action):
            return action
        fault = _fault_of(policy, action, view)
        if not fault:
            return action  # type: ignore[no-any-return]
    except PluginError as error:
        fault, cause = str(error), error
    except StepwiseError:
        raise
    except Exception as error:
        raised = f"{name} raised {type(error).__name__}: {reason_of(error)}"
        hint = _missing_in(policy, view) if isinstance(error, IndexError) or "NoneType" in str(error) else ""
        fault, cause = raised + hint, error  # type: ignore[assignment]
    raise PluginError(f"the policy failed at step {view.index} of problem {view.problem.id!r}: {fault}") from cause


def _missing_in(policy: Policy, view: View) -> str:
    """What `view` had not and a policy may have counted on, and how it comes to have it; "" for nothing."""
    if view.draft is None and policy.when == "before":
        return '; there is no draft yet, view.draft is None: set when = "after" to be asked after each draft'
    return ""


def _fault_of(policy: Policy, action: Any, view: View) -> str:
    """What is wrong with what `policy.decide` returned where it is no action, and what to do; "" for nothing."""
    name = f"{type(policy).__name__}.decide()"
    if isinstance(action, Look):
        there = view.draft is not None if action.what == "draft" else action.what in view.looked
        if not there and action.what in policy.looks:
            return ""
        fault = "again, although it is there" if there else "which is not in its `looks`"
        return f"{name} looks for {action.what!r} {fault}; correct it"
    hint = f"; {action.__name__} is the class, write {action.__name__}()" if inspect.isclass(action) else ""
    return (
        f"{name} returned {action!r}, which is no action{hint}; return Keep(), Escalate(), HandOver(), "
        'Resample() or Look("draft") of stepwise.routing'
    )
