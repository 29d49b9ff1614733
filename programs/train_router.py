"""Train a routing policy by reinforcement, in a simulator of the models.

--fit FILE is the fit of the routing model that programs.fit_router wrote. One policy is trained for each price of a
strong token, where a right solution is worth 1; --set routing.policy=... has no effect here. The policies lie in the
output directory's folder policies, each with its card, and programs.route takes a card (--policy FILE). A killed run
goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from stepwise.errors import DataError
from stepwise.io import read_rows
from stepwise.routing.learned import Learned, files_of
from stepwise.routing.names import ModelNames
from stepwise.routing.policy import FOR_GOOD
from stepwise.routing.pomdp.fit import RouterFit
from stepwise.routing.pomdp.simulator import RouterSimulator
from stepwise.routing.ppo import PpoSettings, train
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Trace

_PRICES = (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3, 6.4e-3)


class _Options(Options):
    fit: Path
    """fit.json of programs.fit_router"""
    traces: tuple[Path, ...] = ()
    """to draw token counts from"""
    kind: Literal["agg", "seq"] = "agg"
    """TRIM-Agg or TRIM-Seq"""
    prices: tuple[float, ...] = tuple(_PRICES)
    """of a strong token"""
    draft_share: float = 0.0
    """price of a drafted token over that"""
    stay: tuple[int, ...] = ()
    """strong steps on end, beside one"""
    hand_over: bool = False
    """let the strong model write all that is left, too"""
    batches: PositiveInt = 1055
    """of the training"""
    size: PositiveInt = 64
    """episodes in a batch"""
    test: PositiveInt = 10000
    """episodes for the figures"""
    dropout: float = 0.1
    """TRIM-Agg's"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args, fit = run.args, RouterFit.load(run.args.fit)
    models = fit.card.models
    if len(set(args.prices)) < len(args.prices):
        raise DataError(f"--prices has {args.prices}; give each price once")
    world = RouterSimulator.from_fit(fit, tokens=_tokens_of(args.traces))
    policies = [_train_one(run, world, models, price) for price in args.prices]
    _show(run, fit, policies)


def _train_one(run: Run[_Options], world: RouterSimulator, models: ModelNames, price: float) -> Learned:
    """The policy for one price; gone on with, or taken as it is, where it is there."""
    args = run.args
    settings = PpoSettings(
        kind=args.kind,
        price=price,
        draft_share=args.draft_share,
        stay=tuple(args.stay),
        hand_over=args.hand_over,
        batches=args.batches,
        problems=args.size,
        dropout=args.dropout,
        test=args.test,
        seed=run.config.seed,
    )
    with progress(f"training at {price:g} per token", args.batches) as advance:
        return train(world, settings, models, _folder(run, price), advance=advance)


def _show(run: Run[_Options], fit: RouterFit, policies: Sequence[Learned]) -> None:
    """What the policies do in the simulator, beside the exact optimum of the fit where drafts are free."""
    rows = []
    for card in (policy.card for policy in policies):
        exact, done = sum(fit.pomdp(1.0).solve(card.price, 1e-5).root_value) / 2, vars(card.simulated)
        names = ["keep" if r == 0 else "hand over" if r >= FOR_GOOD else str(r) for r in card.runs]
        run.metrics(**done, price=card.price, kind=card.kind, actions=names, exact_plan=exact, batches=card.batches)
        form = "{price:g} {accuracy:.3f} {strong_tokens:.1f} {objective:.4f} {error:.4f} {exact:.4f} {batches}"
        rows.append(form.format(**done, price=card.price, exact=exact, batches=card.batches).split())
    columns = ("price", "right", "strong tokens", "worth", "error", "exact plan", "best batch")
    run.table(f"In the simulator, {run.args.test} episodes", columns, rows)
    run.say(f"The policies: {run.out / 'policies'}; route with stepwise route --policy CARD.json")


def _folder(run: Run[_Options], price: float) -> Path:
    """The folder of the policies; the files of that for `price` in it are the run's own."""
    weights, card = files_of("policies", price)
    for file in (weights, card, card.with_suffix(".checkpoint")):
        run.path(str(file))
    return run.out / "policies"


def _tokens_of(files: Sequence[Path]) -> list[int]:
    """Token counts of the steps in files of traces that are there, drafts thrown away left out."""
    for path in files:
        if not path.is_file():
            raise DataError(f"--traces {path}: no such file; make one with stepwise fit_router --lab N")
    traces = [trace for path in files for trace in read_rows(path, Trace, finished=True)]
    counts = [step.usage.generated_tokens for trace in traces for step in trace.steps if step.usage.generated_tokens]
    if files and not counts:
        raise DataError("--traces: no step says how many tokens it has; leave --traces out")
    return counts


if __name__ == "__main__":
    sys.exit(main())
