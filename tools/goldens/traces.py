"""Traces of lab problems under eight policies, as plain data.

Every group of problems is solved by a router of its own, from empty caches, so that one group recorded alone equals
the same group in a whole record. `ARITHMETIC` says how models are loaded: with "exact" llama.cpp's sums do not depend
on what shares a batch, so records of two loops can be equal to the bit; "shipped" is what users run, where the last
digits do depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .names import resolve

PROBLEMS, GROUP = 60, 12
ARITHMETIC: Mapping[str, Mapping[str, Any]] = {
    "exact": {"kv_type": "f32", "flash_attention": False},
    "shipped": {},
}
BINDING, AMPLE = 200, 1_000_000  # caps on the strong tokens of one group; without one it takes about 180, and a step
# is only begun where 128 are left
CAPPED = "threshold, cap binds"
LAW_EDGES = (0.0, 0.2, 0.5, 0.8, 0.95, 1.0)
LAW_ROWS = (
    (0.01, 0.02, 0.05, 0.12, 0.80),  # right
    (0.25, 0.25, 0.20, 0.15, 0.15),  # wrong earlier
    (0.55, 0.20, 0.10, 0.07, 0.08),  # wrong just now
)
HAZARD = (0.0, 0.0, 0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)


def policies() -> dict[str, tuple[Any, dict[str, int]]]:
    """Policy and run caps by name."""
    from stepwise import routing as r

    law = resolve("ObservationLaw")(LAW_EDGES, LAW_ROWS)
    model = resolve("RoutingPomdp")(0.93, (0.99,), HAZARD, LAW_ROWS, 20.0)
    return {
        "threshold": (r.Threshold(0.5), {}),
        CAPPED: (r.Threshold(0.9), {"strong_tokens": BINDING}),
        "threshold, cap does not bind": (r.Threshold(0.9), {"strong_tokens": AMPLE}),
        "look": (r.TwoStage(r.FirstTokenEntropy(), 0.1, 0.74, r.Agreement(3, by="text"), 0.5), {}),
        "resample": (r.Signalled(r.StepScore(), 0.7, action="resample", tries=2, last="escalate"), {}),
        "hand over": (r.Signalled(r.MaxLogit(), -0.06, action="hand_over"), {}),
        "review of the solution": (r.Cascade("least_score", 0.5), {}),
        "planned": (r.Planned(model, law, 0.3), {}),
    }


def groups(problems: int = PROBLEMS) -> list[list[Any]]:
    """The first `problems` problems of the test split, in groups."""
    import stepwise as sw

    everyone = [made.problem for made in sw.lab.generate("test", problems)]
    return [everyone[i : i + GROUP] for i in range(0, problems, GROUP)]


def record(problems: int = PROBLEMS, arithmetic: str = "exact", only: Iterable[str] = ()) -> list[dict[str, Any]]:
    """One row per problem and policy, those of a problem side by side; `only` names policies (all where empty)."""
    chosen = set(only) or set(policies())
    rows = [
        row(name, arithmetic, trace)
        for group in groups(problems)
        for name, (policy, caps) in policies().items()
        if name in chosen
        for trace in solve(group, policy, caps, arithmetic)
    ]
    order = {problem.id: number for number, problem in enumerate(p for group in groups(problems) for p in group)}
    return sorted(rows, key=lambda row: order[row["problem"]])


def solve(problems: list[Any], policy: Any, caps: Mapping[str, int], arithmetic: str) -> list[Any]:
    """Traces of the problems by a router that is loaded for them."""
    import stepwise as sw

    load = ARITHMETIC[arithmetic]
    weak, strong = (sw.ModelConfig(model=f"llamacpp/lab-{name}", **load) for name in ("weak", "strong"))
    scorer = sw.ScorerConfig(model="llamacpp/lab-scorer", **load)
    with sw.StepRouter(weak, strong, scorer, policy, budget=sw.BudgetConfig(**caps)) as router:
        return list(router.solve_all(problems, progress=False))


def row(policy: str, arithmetic: str, trace: Any) -> dict[str, Any]:
    """A trace with the names of its policy and problem."""
    return {
        "policy": policy,
        "arithmetic": arithmetic,
        "problem": trace.problem.id,
        "question": trace.problem.question,
        "finish": "answer" if trace.finish == "capped" else trace.finish,  # once, the two were one
        "note": trace.note,
        "scorer": used(trace.scorer_usage),
        "steps": [step(one) for one in trace.steps],
        "abandoned": [step(one) for one in trace.abandoned],
    }


def step(one: Any) -> dict[str, Any]:
    """A step with all that was discarded for it. `evaluated` tokens depend on what a cache held: they are not kept."""
    return {
        "text": one.text,
        "author": one.author,
        "score": one.score,
        "ids": list(one.token_ids),
        "decision": one.decision,
        "usage": used(one.usage),
        "discarded": [step(draft) for draft in one.discarded],
        "evidence": [step(piece) for piece in one.evidence],
    }


def used(usage: Any) -> dict[str, Any]:
    """What a call is counted as."""
    counts = (usage.calls, usage.prompt_tokens, usage.generated_tokens)
    return {"model": usage.model, **dict(zip(("calls", "prompt", "generated"), counts, strict=True))}


def pieces(trace: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Everything that a model wrote for a trace: steps, drafts, evidence."""
    waiting = [*trace["steps"], *trace["abandoned"]]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += [*one["discarded"], *one["evidence"]]
