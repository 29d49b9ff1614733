"""InT's data pipeline (arXiv 2601.14209): from failed rollouts to interventions that a model can be trained on.

`collect` runs all of it. `stages` has each stage as a function, `rows` what passes between them, `leaks` the check that
an intervention does not give the answer away, `data` reads problems and writes datasets.
"""

from stepwise.interventions.account import Progress
from stepwise.interventions.data import check_problems, read_examples, read_problems, to_dataset, write_examples
from stepwise.interventions.filtering import StopRule
from stepwise.interventions.leaks import LeakCheck, LeakVerdict, answer_due, check_leak
from stepwise.interventions.pipeline import Models, collect, funnel, read_stage
from stepwise.interventions.settings import CollectSettings
from stepwise.interventions.soundness import FalseEquation, false_equations

__all__ = [
    "CollectSettings",
    "FalseEquation",
    "LeakCheck",
    "LeakVerdict",
    "Models",
    "Progress",
    "StopRule",
    "answer_due",
    "check_leak",
    "check_problems",
    "collect",
    "false_equations",
    "funnel",
    "read_examples",
    "read_problems",
    "read_stage",
    "to_dataset",
    "write_examples",
]
