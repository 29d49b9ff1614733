"""A scorer of one's own: a step in which an equation is false is wrong, any other is right.

stepwise route --set scorer.kind=examples.own_scorer:Sums
"""

import stepwise as sw
from stepwise.interventions.checks.sums import false_equations


class Sums(sw.Scorer):
    def score(self, problem, steps):
        return [0.0 if false_equations(step) else 1.0 for step in steps]
