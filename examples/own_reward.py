"""A reward of one's own: a right answer earns more the shorter its solution is.

stepwise train rl --lab 20 --set rl.reward=examples.own_reward:Short
"""

from stepwise.credit import Reward
from stepwise.grading import Verdict


class Short(Reward):
    def reward(self, problem, solution, verdict):
        if verdict is not Verdict.CORRECT:
            return 0.0
        return 1.0 - min(len(solution), 2000) / 4000
