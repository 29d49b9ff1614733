"""A credit scheme of one's own: the outcome is credited to the last step of a rollout alone.

stepwise train rl --lab 20 --set rl.credit=examples.own_credit:LastStep
"""

from stepwise.credit import Credit, outcome


class LastStep(Credit):
    def advantages(self, group, seed):
        advantages = outcome(group)  # (B, T), reward less the group's mean on every token
        for row, spans in zip(advantages, group.spans, strict=True):
            for start, _ in spans[-1:]:
                row[:start] = 0.0
        return advantages
