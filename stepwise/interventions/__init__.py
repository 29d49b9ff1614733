"""InT's data pipeline (arXiv 2601.14209): from failed rollouts to interventions that a model can be trained on.

`pipeline` is the method on a page, `filtering` says who is asked for guided rollouts, `checks` what a step must not do,
`rows` is what passes between the stages. `collect` runs all of it, chunk after chunk. `from_routing` makes
interventions of routed traces, `build` (`datasets`) the datasets that they are compared with.
"""

from stepwise.interventions.checks.leaks import LeakCheck, LeakVerdict, answer_due, check_leak
from stepwise.interventions.checks.sums import FalseEquation, false_equations
from stepwise.interventions.collection import collect, funnel, read_stage
from stepwise.interventions.datasets import build, pairs, write_dataset
from stepwise.interventions.from_routing import from_routing
from stepwise.interventions.settings import BuildSettings, CollectSettings, Writers

__all__ = [
    "BuildSettings",
    "CollectSettings",
    "FalseEquation",
    "LeakCheck",
    "LeakVerdict",
    "Writers",
    "answer_due",
    "build",
    "check_leak",
    "collect",
    "false_equations",
    "from_routing",
    "funnel",
    "pairs",
    "read_stage",
    "write_dataset",
]
