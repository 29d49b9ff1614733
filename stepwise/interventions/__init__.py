"""InT's data pipeline (arXiv 2601.14209): from failed rollouts to interventions that a model can be trained on.

`collect` runs all of it. `stages` has each stage as a function, `rows` what passes between them, `leaks` the check that
an intervention does not give the answer away, `data` reads problems and writes datasets. `from_routing` makes
interventions of routed traces, `build` (`baselines`) the datasets that they are compared with.
"""

from stepwise.data.examples import mix, read_examples, to_dataset, write_examples
from stepwise.data.problems import check_problems, read_problems
from stepwise.interventions.account import Progress
from stepwise.interventions.baselines import build, write_dataset
from stepwise.interventions.filtering import StopRule
from stepwise.interventions.leaks import LeakCheck, LeakVerdict, answer_due, check_leak
from stepwise.interventions.pipeline import Models, collect, funnel, read_stage
from stepwise.interventions.settings import CollectSettings
from stepwise.interventions.soundness import FalseEquation, false_equations
from stepwise.interventions.work import BuildSettings

__all__ = [
    "BuildSettings",
    "CollectSettings",
    "FalseEquation",
    "LeakCheck",
    "LeakVerdict",
    "Models",
    "Progress",
    "StopRule",
    "answer_due",
    "build",
    "check_leak",
    "check_problems",
    "collect",
    "false_equations",
    "funnel",
    "mix",
    "read_examples",
    "read_problems",
    "read_stage",
    "to_dataset",
    "write_dataset",
    "write_examples",
]
