"""What routing would spend (`--dry-run`), and whether a configuration can route at all, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepwise.config import Config, Roles
from stepwise.models.budget import Ledger
from stepwise.models.lab_judges import refuse_lab_judge
from stepwise.models.scorers.probe import refuse_without_states
from stepwise.routing.deciding import needs_scorer
from stepwise.routing.policy import Policy
from stepwise.runs.plan import PlannedCalls, likely_tokens, plan_critiques
from stepwise.types import Problem

_STEPS, _ESCALATED = 6, 0.3  # of a usual solution of a real model: how many, and which share goes to the strong model


def refuse_lab_judges(policy: Policy, scorer: Any, weak: Any, allowed: bool) -> None:
    """Raise `ConfigError` where a policy is the lab's model, or looks at scores of the lab's scorer, and the weak model
    is another; all loaded or configured.

    Example:
        refuse_lab_judges(sw.Threshold(0.5), config.scorer, config.models.weak, config.allow_lab)
    """
    refuse_lab_judge(policy, "policy", weak, allowed)
    if needs_scorer(policy):
        refuse_lab_judge(scorer, "scorer", weak, allowed)


def check_routing(config: Config, policies: Sequence[Policy]) -> None:
    """Raise `ConfigError` for what a run under `policies` would refuse: the lab's scorer for another model, the key of
    an API that is not set, a cap on money without prices.

    Example:
        >>> from stepwise.routing import Threshold
        >>> check_routing(Config.lab(), [Threshold(0.5)])
    """
    roles: list[Roles] = ["weak", "strong", *(["scorer"] if any(map(needs_scorer, policies)) else [])]  # type: ignore[list-item]
    models = {role: config.role(role) for role in roles}
    for policy in policies:
        refuse_lab_judges(policy, config.scorer, config.models.weak, config.allow_lab)
    if "scorer" in models and config.scorer.kind == "probe":
        refuse_without_states(config.models.weak)
    for model in models.values():
        for place in model.places if not model.local else ():
            place.api_key()
    Ledger.for_config(config, roles=roles)


def plan_routing(config: Config, policies: Sequence[Policy], problems: Sequence[Problem]) -> list[PlannedCalls]:
    """The most that routing `problems` under `policies` could ask of each role, every solution at its step limit, with
    a likely case beside it: usual solutions, of which three steps in ten are escalated.

    Raises what `check_routing` raises.

    Example:
        >>> from stepwise.routing import Never
        >>> plan_routing(Config.lab(), [Never()], [Problem("p", "1 + 1?", "2")])[0].calls
        30
    """
    check_routing(config, policies)
    steps, width, count = config.routing.max_steps, config.sampling.max_step_tokens, len(problems)
    prompts = [sum(len(m["content"].encode()) for m in config.prompt.messages(p.question)) for p in problems]
    longest = max(prompts, default=0) + 64  # what the template puts around it
    solution = sum(likely_tokens(p, steps * width) for p in problems)
    usual, read = min(_STEPS, steps), sum(prompts) // 3 + 64 * count

    def calls_of(role: Roles, asked: int, share: float, arms: int) -> PlannedCalls:
        """`asked` calls a step in all, of which usually a `share` is made, under so many policies."""
        calls, local, generates = asked * count * steps, role == "scorer" or config.role(role).local, role != "scorer"
        # A local model evaluates each token of a solution once; an API reads the whole prefix again at every step.
        prompt = longest + steps * width if local else steps * (longest + steps * width // 2)
        seen = arms * ((read + solution) if local else int(usual * share * (read + solution // 2)))
        new = arms * (read + solution)  # what is longer than this was a prefix sent before
        likely = PlannedCalls(
            role, int(asked * count * usual * share), seen, int(asked * solution * share) if generates else 0,
            cached_tokens=max(0, seen - new),
        )  # fmt: skip
        return PlannedCalls(role, calls, asked * count * prompt, calls * width if generates else 0, likely)

    writing = {
        "weak": [p for p in policies if p.name != "always"],
        "strong": [p for p in policies if p.name != "never"],
    }
    asked = {role: sum(p.calls_per_step.get(role, 1) for p in own) for role, own in writing.items()}
    scored = [policy for policy in policies if needs_scorer(policy)]
    whole = sum(policy.name == "always" for policy in writing["strong"])  # arms in which it writes every step
    strong = len(writing["strong"])
    share = (whole + _ESCALATED * (strong - whole)) / strong if strong else 0.0
    parts = [
        calls_of("weak", asked["weak"], 1.0, len(writing["weak"])),
        calls_of("strong", asked["strong"], share, strong),
    ]
    if scored:
        most = sum(policy.calls_per_step.get("scorer", 1) for policy in scored)
        longest_ones = [(length + steps * width, steps) for length in prompts] * most
        usual_ones = [
            (length // 3 + likely_tokens(p, steps * width), usual) for p, length in zip(problems, prompts, strict=True)
        ]
        critiques = plan_critiques(config, longest_ones, usual_ones * most)
        parts.append(critiques or calls_of("scorer", most, 1.0, len(scored)))
    return parts
