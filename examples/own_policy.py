"""A policy of one's own: a draft that is scored low goes to the strong model, but only in the first steps.

stepwise route --set routing.policy=examples.own_policy:Early --set routing.options.threshold=0.4
"""

import stepwise as sw


class Early(sw.Policy):
    when, needs_scores, dial = "after", True, "threshold"

    def __init__(self, threshold=0.5, steps=3):
        self.threshold, self.steps = threshold, steps

    def decide(self, view):
        low = (view.scores[-1] or 0.0) < self.threshold
        return sw.Escalate() if low and view.index < self.steps else sw.Keep()
